"""Repositories: git objects with their real hashes, branches, tags, pull requests."""

import fnmatch
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from loopback_hub.wire import RefusalError

__all__ = ["GITATTRIBUTES", "Blob", "Commit", "PullRequest", "Repo", "git_sha1", "tree_sha1"]

# what the Hub puts into a new model repository, in short
GITATTRIBUTES = "".join(
    f"*.{ending} filter=lfs diff=lfs merge=lfs -text\n"
    for ending in (
        "7z",
        "bin",
        "ckpt",
        "gz",
        "h5",
        "npy",
        "npz",
        "onnx",
        "pickle",
        "pkl",
        "pt",
        "pth",
        "safetensors",
        "zip",
    )
).encode()
REGULAR_LIMIT = 10_000_000  # bytes; larger files go to LFS whatever their name


def git_sha1(kind: str, data: bytes) -> str:
    return hashlib.sha1(f"{kind} {len(data)}\0".encode() + data).hexdigest()


@dataclass(frozen=True)
class Blob:
    """A file of a commit.

    oid: git's hash, of an LFS file that of its pointer.  sha256: LFS files only.  read: gives the bytes.
    """

    oid: str
    size: int
    read: Callable[[], bytes] = field(repr=False, compare=False)
    sha256: str | None = None

    @property
    def data(self) -> bytes:
        return self.read()

    @property
    def etag(self) -> str:
        return self.sha256 or self.oid

    @classmethod
    def regular(cls, data: bytes) -> "Blob":
        return cls(git_sha1("blob", data), len(data), lambda: data)

    @classmethod
    def lfs(cls, sha256: str, size: int, read: Callable[[], bytes]) -> "Blob":
        return cls(git_sha1("blob", _pointer(sha256, size)), size, read, sha256)

    def entry(self, path: str) -> dict:
        """As the tree endpoint lists it."""
        entry: dict = {"type": "file", "path": path, "size": self.size, "oid": self.oid}
        if self.sha256:
            pointer_size = len(_pointer(self.sha256, self.size))
            entry["lfs"] = {"oid": self.sha256, "size": self.size, "pointerSize": pointer_size}
        return entry


def _pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


@dataclass(frozen=True)
class Commit:
    sha: str
    parent: str | None
    message: str
    author: str
    time: int
    files: dict[str, Blob]


@dataclass(frozen=True)
class PullRequest:
    number: int
    title: str
    author: str
    ref: str


def tree_sha1(files: Mapping[str, str]) -> str:
    """git's hash of a tree: {path: blob oid}."""
    entries: dict[str, tuple[str, str]] = {}
    below: dict[str, dict[str, str]] = {}
    for path, oid in files.items():
        name, slash, rest = path.partition("/")
        if slash:
            below.setdefault(name, {})[rest] = oid
        else:
            entries[name] = ("100644", oid)
    for name, part in below.items():
        entries[name] = ("40000", tree_sha1(part))
    # git sorts folders as if their names ended in a slash
    order = sorted(entries, key=lambda name: name + "/" if entries[name][0] == "40000" else name)
    body = b"".join(f"{entries[name][0]} {name}\0".encode() + bytes.fromhex(entries[name][1]) for name in order)
    return git_sha1("tree", body)


class Repo:
    """One model repository. `commits` is the history of main, oldest first."""

    def __init__(self, repo_id: str, author: str, clock: Callable[[], int], *, private: bool = False):
        self.id, self.private = repo_id, private
        self.branches: dict[str, str] = {}
        self.tags: dict[str, str] = {}
        self.pull_requests: list[PullRequest] = []
        self.objects: dict[str, Commit] = {}
        self.lfs: dict[str, bytes] = {}  # sha256 -> bytes that came by the LFS protocol
        self._clock = clock
        self._refs: dict[str, str] = {}  # of pull requests
        self.add(Blob.regular(GITATTRIBUTES), ".gitattributes", author=author, message="initial commit")

    def add(self, blob: Blob, path: str, *, author: str, message: str) -> Commit:
        return self.commit({path: blob}, author=author, message=message)

    # -- reading

    @property
    def head(self) -> str:
        return self.branches["main"]

    @property
    def commits(self) -> list[Commit]:
        return self.history("main")

    def history(self, revision: str) -> list[Commit]:
        found = [self.at(revision)]
        while found[-1].parent:
            found.append(self.objects[found[-1].parent])
        return found[::-1]

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return {path: blob.data for path, blob in self.at(revision).files.items()}

    def at(self, revision: str) -> Commit:
        """The commit of a branch, tag, refs/pr/N, or of a hash (7 digits are enough)."""
        name = revision.removeprefix("refs/heads/").removeprefix("refs/tags/")
        for refs in (self.branches, self.tags, self._refs):
            if name in refs:
                return self.objects[refs[name]]
        found = [sha for sha in self.objects if len(revision) >= 7 and sha.startswith(revision)]
        if len(found) != 1:
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.objects[found[0]]

    def upload_mode(self, revision: str, path: str, size: int) -> str:
        attributes = self.at(revision).files.get(".gitattributes")
        lines = attributes.data.decode(errors="replace").splitlines() if attributes else []
        patterns = [line.split()[0] for line in lines if "filter=lfs" in line]
        name = path.rpartition("/")[2]
        named = any(fnmatch.fnmatchcase(name, p) or fnmatch.fnmatchcase(path, p) for p in patterns)
        return "lfs" if size and (named or size > REGULAR_LIMIT) else "regular"

    # -- writing

    def commit(
        self, changes: Mapping[str, Blob | None], *, author: str, message: str, revision: str = "main"
    ) -> Commit:
        """Put a commit on a branch or pull request. None deletes a file. Unchanged files make an empty commit."""
        parent = self.at(revision) if revision in self.branches or revision in self._refs else None
        if parent is None and (self.branches or revision != "main"):
            raise RefusalError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = dict(parent.files) if parent else {}
        for path, blob in changes.items():
            if blob is None:
                files.pop(path, None)
            else:
                files[path] = blob
        files = dict(sorted(files.items()))
        time = self._clock()
        who = f"{author} <{author}@users.noreply.hub> {time} +0000"
        lines = [f"tree {tree_sha1({path: blob.oid for path, blob in files.items()})}"]
        lines += [f"parent {parent.sha}"] if parent else []
        text = "\n".join([*lines, f"author {who}", f"committer {who}", "", message])
        made = Commit(git_sha1("commit", text.encode()), parent and parent.sha, message, author, time, files)
        self.objects[made.sha] = made
        refs = self._refs if revision in self._refs else self.branches
        refs[revision] = made.sha
        return made

    def open_pull_request(self, title: str, author: str) -> PullRequest:
        number = len(self.pull_requests) + 1
        request = PullRequest(number, title, author, f"refs/pr/{number}")
        self.pull_requests.append(request)
        self._refs[request.ref] = self.head
        return request

    def pull_request_of(self, revision: str) -> PullRequest | None:
        return next((request for request in self.pull_requests if request.ref == revision), None)
