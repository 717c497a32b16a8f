"""One release into one repository by one commit.

Everything that changes goes into a single commit on the head that was looked at before (parent_commit), so that the
repository is at every moment as it was or as it is to be. Whoever is interrupted gives the same command again: what is
there already is neither sent nor committed twice. A commit whose answer was lost is looked for before another try.
"""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, get_token
from huggingface_hub.utils import validate_repo_id
from huggingface_hub.utils.sha import git_hash, sha_fileobj

from timm_mix.card.short import has_own_words, how_to_load, is_signed
from timm_mix.hub.errors import NO_TOKEN, HubError
from timm_mix.hub.release import CARD, OF_THE_WEIGHTS, WEIGHTS, Release
from timm_mix.hub.remote import Head, Remote

__all__ = ["PushResult", "PushedFile", "Wish", "check_wish", "full_repo_id", "push_release"]


@dataclass(frozen=True)
class Wish:
    """How a release is to be pushed; see push_to_hub.

    >>> Wish(revision="draft", dry_run=True).remote("me/my_model").revision
    'draft'
    """

    private: bool | None = None
    create_pr: bool = False
    revision: str | None = None
    token: str | None = None
    dry_run: bool = False
    message: str | None = None

    @property
    def has_token(self) -> bool:
        return bool(self.token or get_token())

    def remote(self, repo_id: str) -> Remote:
        return Remote(repo_id, token=self.token, revision=self.revision, create_pr=self.create_pr)


@dataclass(frozen=True)
class PushedFile:
    """change: "add", "change", "unchanged", "remove", or "unknown" where a dry run could not reach the Hub.

    >>> PushedFile("config.json", size=512, change="unchanged").change
    'unchanged'
    """

    name: str
    size: int
    change: str


@dataclass(frozen=True)
class PushResult:
    """What a push did, or what it would do (dry run).

    commit_url: None where nothing changed, in a dry run, and with a pull request.
    pull_request_url: the new one, or an open one that holds the same files already.
    ignored: names in the folder that stay at home.
    reload: the line that loads it anywhere.
    unreached: why a dry run could not compare with the Hub.
    private: whether the repository is a private one; None in a dry run.
    folded: the push of the folded network.

    >>> file = PushedFile("config.json", size=512, change="unchanged")
    >>> url = "https://huggingface.co/me/my_model"
    >>> PushResult("me/my_model", url, (file,), ignored=("notes.txt",), reload="import timm; ...").commit_url is None
    True
    """

    repo_id: str
    url: str
    files: tuple[PushedFile, ...]
    ignored: tuple[str, ...]
    reload: str
    commit_url: str | None = None
    pull_request_url: str | None = None
    dry_run: bool = False
    unreached: str | None = None
    private: bool | None = None
    folded: "PushResult | None" = None


def check_wish(repo_id: str, wish: Wish) -> None:
    """Everything that needs no network.

    Raises:
        ValueError: the name is none that the Hub takes; an empty revision, or one beside a pull request.

    >>> check_wish("me/my_model", Wish(revision="draft"))
    >>> check_wish("me/my_model", Wish(revision="draft", create_pr=True))
    Traceback (most recent call last):
        ...
    ValueError: a pull request goes to the main branch; leave the revision 'draft' out
    """
    if not isinstance(repo_id, str) or not repo_id:
        raise ValueError(f"wanted a repository as owner/name, got {repo_id!r}")
    validate_repo_id(repo_id)
    if wish.create_pr and wish.revision is not None:
        raise ValueError(f"a pull request goes to the main branch; leave the revision {wish.revision!r} out")
    if wish.revision is not None and not wish.revision.strip():
        raise ValueError("the revision is empty; give a branch, or leave it out")


def full_repo_id(repo_id: str, wish: Wish) -> str:
    """owner/name; a name alone belongs to the owner of the token.

    Raises:
        HubError: there is no token, or the Hub does not take it.

    >>> full_repo_id("me/my_model", Wish(dry_run=True))
    'me/my_model'
    """
    if not wish.has_token and not wish.dry_run:
        raise HubError(f"cannot push to {repo_id}: {NO_TOKEN}")
    if "/" in repo_id or not wish.has_token:
        return repo_id
    return f"{wish.remote(repo_id).owner()}/{repo_id}"


def push_release(release: Release, wish: Wish, *, made_private: bool = False) -> PushResult:
    """Make the repository hold the release, or say what that would change (dry run).

    Args:
        made_private: a repository that is made is a private one, where the wish does not say.
    Raises:
        HubError: one line, see there.

    >>> from timm_mix.hub.release import read_release
    >>> from timm_mix.hub.save import save_pretrained
    >>> folder = save_pretrained(timm.create_model("test_resnet", num_classes=5), "my_model")
    >>> result = push_release(read_release(folder, "me/my_model", license="mit"), Wish(dry_run=True))
    >>> sorted(file.name for file in result.files)
    ['README.md', 'config.json', 'model.safetensors']
    """
    repo_id = release.facts.repo_id
    remote = wish.remote(repo_id)
    if wish.dry_run:
        return _compare_only(release, remote)
    head = _open(release, remote, wish, made_private)
    release = _keep_their_card(release, remote, head)
    files = _compare(release, head)
    result = replace(_result(release, remote, files), private=head.private)
    if all(file.change == "unchanged" for file in files):
        return result
    try:
        url = _send(release, remote, head, files, _message(release, wish))
    except HubError as error:
        raise _with_state(error, repo_id, head) from error
    return replace(result, pull_request_url=url) if wish.create_pr else replace(result, commit_url=url)


def _message(release: Release, wish: Wish) -> str:
    """One line, also for the title of a pull request, by which it is found again."""
    return " ".join((wish.message or "").split()) or f"Upload {release.facts.architecture}"


def _open(release: Release, remote: Remote, wish: Wish, made_private: bool) -> Head:
    """The head to commit on, after making the repository and the branch where they are missing."""
    main = remote.look()
    try:
        if main is None:
            remote.check_card(release.card)
            remote.create(True if wish.private is None and made_private else wish.private)
            main = remote.look()
        if main is None:
            raise HubError(
                f"cannot push to {remote.repo_id}: it exists, but this token may not see it; take another one"
            )
        if wish.private and not main.private:
            raise HubError(
                f"cannot push to {remote.repo_id} as a private repository: it is public; make it private in its "
                "settings, or choose another name"
            )
        if remote.revision in (None, "main"):
            return main
        branch = str(remote.revision)
        head = remote.look(branch)
        if head is None:
            remote.create_branch(branch)
            head = remote.look(branch)
    except HubError as error:
        raise _with_state(error, remote.repo_id, main) from error
    if head is None:
        raise HubError(
            f"cannot push to {remote.repo_id}: it has no revision {remote.revision} and none can be made; give a branch"
        )
    return head


def _keep_their_card(release: Release, remote: Remote, head: Head) -> Release:
    """Where the folder has no card, one that somebody has written on the Hub stays."""
    if not release.short_card or head.files.get(CARD) in (None, _digest(release.files[CARD], large=CARD in head.large)):
        return release
    there = remote.read(CARD, head)
    if is_signed(there):
        return release
    kept = release.with_card(there, f"{remote.url}/blob/{head.sha}/{CARD}")
    return kept if has_own_words(there) else release


def _send(release: Release, remote: Remote, head: Head, files: tuple[PushedFile, ...], message: str) -> str | None:
    """Upload what changes and commit it; the URL of the commit, or of the pull request."""

    def done() -> str | None:
        if remote.create_pr:
            return _pull_request(release, remote, message)
        try:
            now = remote.look(remote.revision)
        except HubError:  # another try cannot harm: on a head that has moved the Hub takes no commit
            return None
        arrived = now is not None and now.sha != head.sha and _is_same(release, now)
        return f"{remote.url}/commit/{now.sha}" if now is not None and arrived else None

    if remote.create_pr and (url := _pull_request(release, remote, message)):
        return url
    changed = [file.name for file in files if file.change in ("add", "change")]
    additions = [CommitOperationAdd(name, release.files[name]) for name in changed]
    removals = [CommitOperationDelete(file.name) for file in files if file.change == "remove"]
    if CARD in changed:
        remote.check_card(release.card)
    remote.upload(additions, large=WEIGHTS in changed)
    release.check_unmoved()
    return remote.commit([*additions, *removals], message, head.sha, done)


def _pull_request(release: Release, remote: Remote, title: str) -> str | None:
    """An open pull request that brings this very release already."""
    for one in remote.pull_requests(title):
        head = remote.look(one.reference)
        if head is not None and _is_same(release, head):
            return one.url
    return None


def _compare_only(release: Release, remote: Remote) -> PushResult:
    try:
        head = remote.look(remote.revision) or remote.look() or Head(None, False, {}, frozenset())
        release = _keep_their_card(release, remote, head)
    except HubError as error:
        files = tuple(PushedFile(name, _size(content), "unknown") for name, content in release.files.items())
        return replace(_result(release, remote, files), dry_run=True, unreached=str(error))
    return replace(_result(release, remote, _compare(release, head)), dry_run=True)


def _result(release: Release, remote: Remote, files: tuple[PushedFile, ...]) -> PushResult:
    reload = how_to_load(release.facts, remote.revision)
    return PushResult(remote.repo_id, remote.url, files, release.ignored, reload)


def _is_same(release: Release, head: Head) -> bool:
    return all(file.change == "unchanged" for file in _compare(release, head))


def _compare(release: Release, head: Head) -> tuple[PushedFile, ...]:
    files = []
    for name, content in sorted(release.files.items()):
        change = "add"
        if name in head.files:
            same = _digest(content, large=name in head.large) == head.files[name]
            change = "unchanged" if same else "change"
        files.append(PushedFile(name, _size(content), change))
    stale = [name for name in OF_THE_WEIGHTS if name in head.files and name not in release.files]
    return (*files, *(PushedFile(name, 0, "remove") for name in stale))


def _digest(content: bytes | Path, *, large: bool) -> str:
    """As the Hub names what it holds: sha256 of large files, git's sha1 of the others."""
    if not large:
        return git_hash(content if isinstance(content, bytes) else content.read_bytes())
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    with content.open("rb") as stream:
        return sha_fileobj(stream).hex()


def _size(content: bytes | Path) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


def _with_state(error: HubError, repo_id: str, head: Head | None) -> HubError:
    """A push that failed may leave an empty repository; never a half filled one."""
    if head is None or WEIGHTS in head.files:
        return error
    return HubError(f"{error} ({repo_id} exists and holds no weights yet)")
