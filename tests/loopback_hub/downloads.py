"""Routes that give files out: resolve with its redirect to the second port, Xet's read token, the tree."""

import re
from urllib.parse import parse_qs, quote, unquote

from loopback_hub.api import Api, route
from loopback_hub.store import Blob
from loopback_hub.uploads import xet_token
from loopback_hub.wire import RefusalError, Request, Response, as_json

__all__: list[str] = []


@route("GET|HEAD", "/{repo}/resolve/([^/]+)/(.+)")
def resolve(api: Api, request: Request, repo_id: str, revision: str, path: str) -> Response:
    commit = api.readable(request, repo_id).at(revision)
    headers = {"X-Repo-Commit": commit.sha, "Accept-Ranges": "bytes"}
    blob = commit.files.get(path)
    if blob is None:
        raise RefusalError(404, "Entry not found", "EntryNotFound", X_Repo_Commit=commit.sha)
    if blob.sha256 is None:
        return _content(request, blob.data, {**headers, "ETag": f'"{blob.oid}"'})
    headers |= {"X-Linked-ETag": f'"{blob.sha256}"', "X-Linked-Size": str(blob.size), "ETag": f'"{blob.oid}"'}
    file = api.xet.find(blob.sha256)
    if file is not None:
        token = f"{api.url}/api/models/{repo_id}/xet-read-token/{commit.sha}"
        headers |= {"X-Xet-Hash": file.xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    location = f"{api.cdn_url}/files/{quote(repo_id, safe='')}/{blob.sha256}?name={quote(path, safe='')}"
    return Response(302, {**headers, "Location": location})


@route("GET|HEAD", "/cdn/files/([^/]+)/([0-9a-f]{64})")
def cdn(api: Api, request: Request, repo_id: str, sha256: str) -> Response:
    """The second port knows nobody: an address that was handed out is enough, and a token is an error, as at S3."""
    if "authorization" in request.headers:
        raise RefusalError(400, "Only one auth mechanism allowed")
    for commit in api.repos[repo_id].objects.values():
        for blob in commit.files.values():
            if blob.sha256 == sha256:
                return _content(request, blob.data, {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"})
    raise RefusalError(404, "NoSuchKey")


def _content(request: Request, data: bytes, headers: dict[str, str]) -> Response:
    """The bytes, or the part that Range asks for."""
    headers = {"Content-Type": "application/octet-stream", **headers}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(304, headers)
    found = re.fullmatch(r"bytes=(\d*)-(\d*)", request.headers.get("range", ""))
    if request.method == "HEAD" or not found or found.groups() == ("", ""):
        body = b"" if request.method == "HEAD" else data
        return Response(200, {**headers, "Content-Length": str(len(data))} if not body else headers, body)
    first, last = found.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last) + 1, len(data)) if first and last else len(data)
    if start >= len(data):
        raise RefusalError(416, "Range Not Satisfiable", Content_Range=f"bytes */{len(data)}")
    return Response(206, {**headers, "Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}, data[start:end])


@route("GET", "/api/models/{repo}/xet-read-token/([^/]+)")
def read_token(api: Api, request: Request, repo_id: str, revision: str) -> Response:
    api.readable(request, repo_id).at(revision)
    return xet_token(api)


@route("GET", "/api/models/{repo}/tree/([^/]+)(?:/(.+))?")
def tree(api: Api, request: Request, repo_id: str, revision: str, folder: str) -> Response:
    files = api.readable(request, repo_id).at(revision).files
    prefix = f"{folder}/" if folder else ""
    below = {path: blob for path, blob in files.items() if path.startswith(prefix)}
    if folder and not below:
        raise RefusalError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
    recursive = request.query.get("recursive", "").lower() in ("1", "true")
    entries = {path: _entry(api, path, blob) for path, blob in below.items()}
    for path in [] if recursive else below:
        name, slash, _ = path[len(prefix) :].partition("/")
        if slash:
            del entries[path]
            entries[prefix + name] = {"type": "directory", "path": prefix + name, "size": 0, "oid": "0" * 40}
    start = int(request.query.get("cursor", 0))
    shown = list(entries.values())[start : start + api.page]
    query = "&".join(f"{k}={quote(v)}" for k, v in request.query.items() if k != "cursor")
    more = f'<{api.url}{request.path}?{query}&cursor={start + api.page}>; rel="next"'
    return as_json(shown, headers={"Link": more} if start + api.page < len(entries) else {})


@route("POST", "/api/models/{repo}/paths-info/([^/]+)")
def paths_info(api: Api, request: Request, repo_id: str, revision: str) -> Response:
    files = api.readable(request, repo_id).at(revision).files
    paths = parse_qs(request.body.decode()).get("paths", []) if request.body[:1] != b"{" else request.json()["paths"]
    return as_json([_entry(api, path, files[path]) for path in map(unquote, paths) if path in files])


def _entry(api: Api, path: str, blob: Blob) -> dict:
    entry = blob.entry(path)
    file = api.xet.find(blob.sha256) if blob.sha256 else None
    return {**entry, "xetHash": file.xet_hash} if file else entry
