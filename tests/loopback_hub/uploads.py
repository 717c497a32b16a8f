"""Routes that take files in: preupload, Xet's write token, LFS, and the commit."""

import base64
import binascii
import fnmatch
import hashlib
import json
import math
from urllib.parse import quote

from loopback_hub.api import Api, route
from loopback_hub.store import Blob, Repo
from loopback_hub.wire import RefusalError, Request, Response, as_json

__all__ = ["xet_token"]

EXPIRES = 4_102_444_800  # unix seconds; tokens of this Hub live until 2100


def _target(api: Api, request: Request, repo_id: str, revision: str) -> Repo:
    """The repository, where the request may write to this revision (or opens a pull request for it)."""
    create_pr = request.query.get("create_pr") == "1"
    repo = api.readable(request, repo_id)
    proposed = repo.pull_request_of(revision)
    own = proposed is not None and proposed.author == api.user(request)
    api.writable(request, repo_id, pull_request=create_pr or own)
    # for a pull request huggingface_hub asks for Xet's token without knowing a revision
    repo.at("main" if create_pr and revision == "None" else revision)
    return repo


@route("POST", "/api/models/{repo}/preupload/([^/]+)")
def preupload(api: Api, request: Request, repo_id: str, revision: str) -> Response:
    repo = _target(api, request, repo_id, revision)
    answer, present = [], repo.at(revision).files
    asked = request.json()
    rules = present[".gitignore"].data.decode() if ".gitignore" in present else ""
    ignored = asked.get("gitIgnore", rules).split()  # what the client sends comes before what lies there
    for file in asked["files"]:
        path = file["path"]
        mode = repo.upload_mode(revision, path, file["size"])
        oid = present[path].etag if path in present else None
        ignore = any(fnmatch.fnmatchcase(path, rule) for rule in ignored)
        answer.append({"path": path, "uploadMode": mode, "shouldIgnore": ignore, "oid": oid})
    return as_json({"files": answer})


def xet_token(api: Api) -> Response:
    """Where the store is, in the headers (read by Python) and in the body (read by hf_xet)."""
    headers = {
        "X-Xet-Cas-Url": api.xet.url,
        "X-Xet-Access-Token": "xet",
        "X-Xet-Token-Expiration": str(EXPIRES),
    }
    return as_json({"accessToken": "xet", "exp": EXPIRES, "casUrl": api.xet.url}, headers=headers)


@route("GET", "/api/models/{repo}/xet-write-token/([^/]+)")
def write_token(api: Api, request: Request, repo_id: str, revision: str) -> Response:
    _target(api, request, repo_id, revision)
    return xet_token(api)


@route("POST", "/{repo}.git/info/lfs/objects/batch")
def lfs_batch(api: Api, request: Request, repo_id: str) -> Response:
    asked = request.json()
    repo = _target(api, request, repo_id, asked.get("ref", {}).get("name", "main"))
    if asked.get("operation") != "upload" or asked.get("hash_algo", "sha256") != "sha256":
        raise RefusalError(422, "this Hub takes uploads with sha256 only")
    objects = []
    for wanted in asked["objects"]:
        entry = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in repo.lfs:
            api.uploads[wanted["oid"]] = repo_id
            entry["actions"] = _lfs_actions(api, repo_id, wanted["oid"], wanted["size"])
        objects.append(entry)
    parts = "multipart" if any(e["size"] > api.lfs_part_size for e in objects) else "basic"
    return as_json({"transfer": parts, "objects": objects})


def _lfs_actions(api: Api, repo_id: str, oid: str, size: int) -> dict:
    place = f"{api.cdn_url}/upload/{quote(oid)}"
    upload: dict = {"href": place, "header": {}}
    if size > api.lfs_part_size:
        count = math.ceil(size / api.lfs_part_size)
        parts = {str(i): f"{place}/{i}" for i in range(1, count + 1)}
        upload = {
            "href": f"{api.url}/api/complete_multipart/{quote(oid)}",
            "header": {"chunk_size": str(api.lfs_part_size), **parts},
        }
    return {"upload": upload, "verify": {"href": f"{api.url}/{repo_id}.git/info/lfs/verify", "header": {}}}


@route("PUT", r"/cdn/upload/([0-9a-f]{64})(?:/(\d+))?")
def lfs_put(api: Api, request: Request, oid: str, part: str) -> Response:
    _demand_announced(api, oid)
    if "authorization" in request.headers:
        raise RefusalError(400, "Only one auth mechanism allowed")
    if part:
        api.parts[oid, int(part)] = request.body
        return Response(200, {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})
    _keep(api, oid, request.body)
    return Response(200, {"ETag": f'"{oid}"'})


@route("POST", "/api/complete_multipart/([0-9a-f]{64})")
def lfs_complete(api: Api, request: Request, oid: str) -> Response:
    _demand_announced(api, oid)
    pieces = []
    for part in request.json()["parts"]:
        piece = api.parts.get((oid, part["partNumber"]))
        if piece is None or part["etag"].strip('"') != hashlib.md5(piece).hexdigest():
            raise RefusalError(400, f"part {part['partNumber']} did not arrive")
        pieces.append(piece)
    _keep(api, oid, b"".join(pieces))
    return as_json({"success": True})


def _demand_announced(api: Api, oid: str) -> None:
    if oid not in api.uploads:
        raise RefusalError(403, "Request has expired")


def _keep(api: Api, oid: str, data: bytes) -> None:
    if hashlib.sha256(data).hexdigest() != oid:
        raise RefusalError(400, "The provided 'x-amz-content-sha256' header does not match what was computed.")
    api.repos[api.uploads[oid]].lfs[oid] = data


@route("POST", "/{repo}.git/info/lfs/verify")
def lfs_verify(api: Api, request: Request, repo_id: str) -> Response:
    repo, asked = api.readable(request, repo_id), request.json()
    api.user(request)
    if len(repo.lfs.get(asked["oid"], b"")) != asked["size"]:
        raise RefusalError(404, f"LFS object {asked['oid']} is not here")
    return as_json({})


@route("POST", "/api/models/{repo}/commit/([^/]+)")
def commit(api: Api, request: Request, repo_id: str, revision: str) -> Response:
    repo = _target(api, request, repo_id, revision)
    header, changes = _read_commit(api, repo, revision, request.body)
    author = api.user(request)
    parent = header.get("parentCommit")
    if parent and not repo.at(revision).sha.startswith(parent):
        raise RefusalError(412, "A commit has happened since. Please refresh and try again.")
    message = "\n\n".join(text for text in (header.get("summary"), header.get("description")) if text)
    answer: dict = {"success": True, "hookOutput": ""}
    if request.query.get("create_pr") == "1":
        opened = repo.open_pull_request(header["summary"], author)
        revision = opened.ref
        answer["pullRequestUrl"] = f"{api.url}/{repo_id}/discussions/{opened.number}"
    made = repo.commit(changes, author=author, message=message, revision=revision)
    return as_json({**answer, "commitOid": made.sha, "commitUrl": f"{api.url}/{repo_id}/commit/{made.sha}"})


def _read_commit(api: Api, repo: Repo, revision: str, body: bytes) -> tuple[dict, dict[str, Blob | None]]:
    header: dict = {}
    changes: dict[str, Blob | None] = {}
    present = repo.at(revision).files
    for line in body.splitlines():
        try:
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                header = value
            elif key == "file":
                changes[_path(value)] = Blob.regular(base64.b64decode(value["content"], validate=True))
            elif key == "lfsFile":
                changes[_path(value)] = api.lfs_blob(repo, value["oid"], value["size"])
            elif key == "deletedFile":
                if _path(value) not in present:
                    raise RefusalError(404, f"A file to delete does not exist: {value['path']}", "EntryNotFound")
                changes[value["path"]] = None
            elif key == "deletedFolder":
                folder = value["path"].rstrip("/") + "/"
                changes |= {path: None for path in present if path.startswith(folder)}
            else:
                raise RefusalError(400, f"this Hub does not know the operation {key!r}")
        except (ValueError, KeyError, TypeError, binascii.Error):
            raise RefusalError(400, f"a line of the commit cannot be read: {line[:80]!r}") from None
    if not header.get("summary"):
        raise RefusalError(400, "the commit has no summary")
    return header, changes


def _path(value: dict) -> str:
    path: str = value["path"]
    if not path or path.startswith("/") or "\\" in path or {"", ".", "..", ".git"} & set(path.split("/")):
        raise RefusalError(400, f"Invalid path: {path!r}")
    return path
