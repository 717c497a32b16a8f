"""One repository on the Hub, as a token sees it: look, create, upload, commit."""

import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    constants,
    get_session,
    hf_hub_url,
)
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from timm_mix.hub.errors import HubError, hub_errors, is_temporary, with_retries
from timm_mix.version import __version__

__all__ = ["Head", "PullRequest", "Remote"]

LIBRARY: dict[str, Any] = {"library_name": "timm_mix", "library_version": __version__}


@dataclass(frozen=True)
class Head:
    """A revision as it is on the Hub.

    files: name -> digest: sha256 of large files, git's sha1 of the others.
    large: names of the files that are stored as large ones.

    >>> Head("3f2a", private=False, files={"config.json": "9c1d"}, large=frozenset()).files
    {'config.json': '9c1d'}
    """

    sha: str | None
    private: bool
    files: dict[str, str]
    large: frozenset[str]


@dataclass(frozen=True)
class PullRequest:
    """A pull request on the Hub: the page to look at, and the revision by which its files are read.

    >>> PullRequest("https://huggingface.co/me/my_model/discussions/1", "refs/pr/1").reference
    'refs/pr/1'
    """

    url: str
    reference: str


class Remote:
    """A repository, asked for over the network by its methods. Every method raises HubError, in one line.

    Args:
        repo_id: owner/name.
        token: None takes HF_TOKEN or what `hf auth login` has stored.
        revision: the branch that is written to; None is the main one.
        create_pr: commits become pull requests.

    >>> Remote("me/my_model").url
    'https://.../me/my_model'
    """

    def __init__(self, repo_id: str, *, token: str | None = None, revision: str | None = None, create_pr: bool = False):
        self.repo_id = repo_id
        self.revision = revision
        self.create_pr = create_pr
        self._token = token
        self._api = HfApi(token=token, **LIBRARY)
        self._checked: str | None = None
        self.url = f"{constants.ENDPOINT}/{repo_id}"

    def owner(self) -> str:
        """The user whose token this is."""
        with self._doing("asking whose token this is"):
            return str(with_retries(self._api.whoami)["name"])

    def look(self, revision: str | None = None) -> Head | None:
        """The head of a revision (of the main branch); None: there is none, or this token may not see it.

        The Hub answers for a repository that was renamed, too; a push to its old name is refused.
        """

        def info() -> Any:
            return self._api.model_info(self.repo_id, revision=revision, files_metadata=True)

        with self._doing("looking at it"):
            try:
                found = with_retries(info)
            except GatedRepoError:  # a kind of RepositoryNotFoundError, but it is there
                raise
            except RepositoryNotFoundError:
                return None
            except RevisionNotFoundError:
                if revision is None:
                    raise
                return None
        if found.id != self.repo_id:  # a card would name an address that may be somebody else's one day
            raise HubError(f"cannot push to {self.repo_id}: the Hub calls it {found.id}; give this name")
        siblings = found.siblings or []
        files = {file.rfilename: (file.lfs.sha256 if file.lfs else file.blob_id) or "" for file in siblings}
        large = frozenset(file.rfilename for file in siblings if file.lfs)
        return Head(found.sha, bool(found.private), files, large)

    def read(self, name: str, head: Head) -> bytes:
        """A file as it is at this head."""

        def call() -> bytes:
            url = hf_hub_url(self.repo_id, name, revision=head.sha)
            answer = get_session().get(url, headers=self._headers())
            hf_raise_for_status(answer)
            return bytes(answer.content)

        with self._doing(f"reading its {name}"):
            return with_retries(call)

    def create(self, private: bool | None) -> None:
        """Make an empty repository; one that has appeared meanwhile is taken as it is."""
        owner, name = self.repo_id.split("/")
        body: dict[str, Any] = {"name": name, "organization": owner, "type": "model"}
        if private is not None:
            body["visibility"] = "private" if private else "public"

        def call() -> None:  # HfApi.create_repo repeats one kind of 409 for ever, without a pause
            url = f"{constants.ENDPOINT}/api/repos/create"
            hf_raise_for_status(get_session().post(url, headers=self._headers(), json=body))

        with self._doing("creating it"):
            try:
                with_retries(call)
            except HfHubHTTPError as error:
                if error.response.status_code != 409 or is_temporary(error):
                    raise

    def create_branch(self, branch: str) -> None:
        with self._doing(f"making the branch {branch}"):
            with_retries(lambda: self._api.create_branch(self.repo_id, branch=branch, exist_ok=True))

    def check_card(self, text: str) -> None:
        """The Hub's own check of the metadata, before anything is made or sent; once."""
        if text == self._checked:
            return

        def call() -> str | None:  # ModelCard.validate asks huggingface.co, whatever HF_ENDPOINT says, before 2.2
            url, body = f"{constants.ENDPOINT}/api/validate-yaml", {"repoType": "model", "content": text}
            answer = get_session().post(url, json=body, headers={"Accept": "text/plain"})
            if answer.status_code == 400:
                return answer.text
            hf_raise_for_status(answer)
            return None

        with self._doing("checking README.md"):
            if (wrong := with_retries(call)) is not None:
                raise ValueError(f"{_messages(wrong)}; correct the metadata between its --- lines")
        self._checked = text

    def upload(self, additions: list[CommitOperationAdd], *, large: bool) -> None:
        """Send the large files; nothing of them is to be seen before the commit. huggingface_hub repeats by itself."""
        with self._doing("uploading the weights"):
            if large and not constants.HF_HUB_DISABLE_XET and importlib.util.find_spec("hf_xet"):
                with_retries(self._ask_for_xet)
            self._api.preupload_lfs_files(
                self.repo_id,
                additions,
                revision=self.revision,
                create_pr=self.create_pr,
                free_memory=False,
                gitignore_content="",  # a .gitignore over there must not leave the weights out
            )

    def _ask_for_xet(self) -> None:
        """Xet's own client repeats this question for minutes, in silence, where the Hub is in trouble."""
        where = "None?create_pr=1" if self.create_pr else quote(self.revision or "main", safe="")
        url = f"{constants.ENDPOINT}/api/models/{self.repo_id}/xet-write-token/{where}"
        hf_raise_for_status(get_session().get(url, headers=self._headers()))

    def commit(
        self,
        operations: list[CommitOperationAdd | CommitOperationDelete],
        message: str,
        parent: str | None,
        done: Callable[[], str | None],
    ) -> str | None:
        """One commit on `parent`; its URL (a pull request's own one), or None where nothing has changed.

        Args:
            done: the URL, where a commit whose answer was lost has worked after all.
        """

        def call() -> str:
            info = self._api.create_commit(
                self.repo_id,
                operations,
                commit_message=message,
                revision=self.revision,
                create_pr=self.create_pr,
                parent_commit=parent,
            )
            if self.create_pr:
                return str(info.pr_url)
            return "" if info.oid == parent else str(info.commit_url)

        with self._doing("committing"):
            try:
                return with_retries(call, done) or None
            except Exception:
                found = done()  # the very last answer may have been lost, or come from a proxy that asked twice
                if found is None:
                    raise
                return found

    def pull_requests(self, title: str) -> list[PullRequest]:
        """Those of this title that are not closed."""

        def call() -> list[Any]:
            return list(self._api.get_repo_discussions(self.repo_id, discussion_type="pull_request"))

        with self._doing("looking at its pull requests"):
            found = with_retries(call)
        alive = [one for one in found if one.title == title and one.status in ("open", "draft")]
        return [PullRequest(one.url, one.git_reference) for one in alive]

    def _headers(self) -> dict[str, str]:
        return build_hf_headers(token=self._token, **LIBRARY)

    def _doing(self, what: str) -> Any:
        return hub_errors(f"push to {self.repo_id} ({what})")


def _messages(answer: str) -> str:
    """What is wrong with a card, from {"errors": [{"message": ...}]}."""
    try:
        return "; ".join(error["message"] for error in json.loads(answer)["errors"])
    except (ValueError, TypeError, KeyError):
        return answer
