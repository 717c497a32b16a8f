"""The Hub's state and its front door: who asks, may they, and which route answers."""

import hashlib
import re
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import unquote, urlencode

from loopback_hub.store import Blob, Commit, Repo
from loopback_hub.wire import RefusalError, Request, Response, as_json
from loopback_hub.xet import XetStore

__all__ = ["Api", "route"]

TOKENS = {
    "token-alice": {"alice": "write", "timm-mix": "write"},
    "token-bob": {"bob": "write"},
    "token-reader": {"alice": "read", "timm-mix": "read"},
}
REPO_NAME = re.compile(r"[\w.-]{1,96}", re.ASCII)
ROUTES: list[tuple[str, re.Pattern[str], Callable[..., Response]]] = []


def route(method: str, pattern: str) -> Callable:
    """Register a function (api, request, *groups); groups are the pattern's, percent-decoded. {repo} is one group."""

    def register(function: Callable[..., Response]) -> Callable[..., Response]:
        path = re.compile(pattern.replace("{repo}", "([^/]+/[^/]+)"))
        ROUTES.extend((name, path, function) for name in method.split("|"))
        return function

    return register


class Api:
    """State of the Hub. Its methods are called under one lock."""

    def __init__(
        self, xet_folder: Path, tokens: Mapping[str, Mapping[str, str]] | None, *, lfs_part_size: int, page: int
    ):
        self.url = self.cdn_url = ""
        self.tokens = {token: dict(rights) for token, rights in (tokens or TOKENS).items()}
        self.repos: dict[str, Repo] = {}
        self.renamed: dict[str, str] = {}  # old id -> new id
        self.xet = XetStore(xet_folder)
        self.lfs_part_size, self.page = lfs_part_size, page
        self.parts: dict[tuple[str, int], bytes] = {}  # of LFS uploads under way
        self.uploads: dict[str, str] = {}  # sha256 of an announced LFS upload -> repo id
        self.crashes: list[str] = []
        self._time = 1_767_225_600  # 2026-01-01; the clock ticks with every commit

    def clock(self) -> int:
        self._time += 1
        return self._time

    def answer(self, request: Request) -> Response:
        try:
            if request.port == "hub":
                self.rights(request)  # an unknown token is refused everywhere
                if moved := self._moved(request):
                    return moved
            prefix = "/cdn" if request.port == "cdn" else ""
            for method, path, function in ROUTES:
                found = path.fullmatch(prefix + request.path)
                if found and method == request.method:
                    return function(self, request, *(unquote(group or "") for group in found.groups()))
            raise RefusalError(404, f"no such endpoint: {request.method} {request.path}")
        except RefusalError as refusal:
            return refusal.response()
        except Exception:  # a fault of this server, which the test must see
            self.crashes.append(traceback.format_exc())
            return as_json({"error": self.crashes[-1]}, status=500)

    def _moved(self, request: Request) -> Response | None:
        """The Hub leads from a repository's old name to its new one, whatever is asked."""
        for old, new in self.renamed.items():
            place, count = re.subn(rf"^(/api/models)?/{re.escape(old)}(?=[/.]|$)", rf"\1/{new}", request.path)
            if count:
                query = f"?{urlencode(request.query)}" if request.query else ""
                return Response(307, {"Location": self.url + place + query})
        return None

    # -- who may what

    def rights(self, request: Request) -> dict[str, str] | None:
        """{namespace: 'read' or 'write'} of the token, None without one."""
        header = request.headers.get("authorization")
        if header is None:
            return None
        rights = self.tokens.get(header.removeprefix("Bearer "))
        if rights is None:
            raise RefusalError(401, "Invalid credentials in Authorization header")
        return rights

    def user(self, request: Request) -> str:
        rights = self.rights(request)
        if rights is None:
            raise RefusalError(401, "Invalid username or password.")
        return next(iter(rights))

    def readable(self, request: Request, repo_id: str) -> Repo:
        repo, rights = self.repos.get(repo_id), self.rights(request)
        if repo is None or (repo.private and repo_id.split("/")[0] not in (rights or {})):
            if rights is None:
                raise RefusalError(401, "Invalid username or password.", "RepoNotFound")
            raise RefusalError(404, "Repository not found", "RepoNotFound")
        return repo

    def writable(self, request: Request, repo_id: str, *, pull_request: bool = False) -> Repo:
        """pull_request: any user who may write somewhere may propose a change."""
        repo = self.readable(request, repo_id)
        self.user(request)
        rights = self.rights(request) or {}
        if pull_request and "write" in rights.values():
            return repo
        self.demand_write(rights, repo_id.split("/")[0])
        return repo

    def demand_write(self, rights: Mapping[str, str], namespace: str) -> None:
        if "write" not in rights.values():
            raise RefusalError(403, "Forbidden: you must use a write token to upload to a repository.")
        if rights.get(namespace) != "write":
            raise RefusalError(403, f"Forbidden: you don't have the rights to write under the namespace {namespace!r}.")

    # -- making things

    def create(self, repo_id: str, author: str, *, private: bool) -> Repo:
        self.repos[repo_id] = Repo(repo_id, author, self.clock, private=private)
        return self.repos[repo_id]

    def plant(
        self, repo_id: str, files: Mapping[str, bytes | None], *, message: str, revision: str, private: bool
    ) -> Commit:
        author = repo_id.split("/")[0]
        repo = self.repos.get(repo_id) or self.create(repo_id, author, private=private)
        if revision not in repo.branches and not revision.startswith("refs/"):
            repo.branches[revision] = repo.head
        changes: dict[str, Blob | None] = {}
        for path, data in files.items():
            if data is None:
                changes[path] = None
            elif repo.upload_mode(revision, path, len(data)) == "regular":
                changes[path] = Blob.regular(data)
            else:
                sha256 = hashlib.sha256(data).hexdigest()
                repo.lfs[sha256] = data
                changes[path] = self.lfs_blob(repo, sha256, len(data))
        return repo.commit(changes, author=author, message=message, revision=revision)

    def lfs_blob(self, repo: Repo, sha256: str, size: int) -> Blob:
        """A file whose bytes are here already, by LFS or by Xet; else the commit is refused, as the Hub does."""
        if sha256 in repo.lfs:
            data = repo.lfs[sha256]
            if len(data) != size:
                raise RefusalError(400, f"LFS object {sha256} has {len(data)} bytes, not {size}")
            return Blob.lfs(sha256, size, lambda: data)
        file = self.xet.find(sha256)
        if file is None:
            raise RefusalError(422, f"LFS pointer pointed to a file that does not exist: {sha256}")
        if file.size != size:
            raise RefusalError(400, f"Xet object {sha256} has {file.size} bytes, not {size}")
        return Blob.lfs(sha256, size, lambda: self.xet.read(file))
