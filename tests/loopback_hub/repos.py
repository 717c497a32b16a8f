"""Routes about accounts, repositories, references and discussions."""

import time

from loopback_hub.api import REPO_NAME, Api, route
from loopback_hub.front_matter import check_card, read_front_matter
from loopback_hub.store import Commit, PullRequest, Repo
from loopback_hub.wire import RefusalError, Request, Response, as_json

__all__: list[str] = []


def _date(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(seconds))


@route("GET", "/api/whoami-v2")
def whoami(api: Api, request: Request) -> Response:
    name = api.user(request)
    rights = api.rights(request) or {}
    role = "write" if "write" in rights.values() else "read"
    orgs = [{"type": "org", "id": org, "name": org, "fullname": org} for org in list(rights)[1:]]
    auth = {"type": "access_token", "accessToken": {"displayName": "test", "role": role}}
    return as_json({"type": "user", "id": name, "name": name, "fullname": name, "orgs": orgs, "auth": auth})


@route("GET", "/api/agent-harnesses")
def agent_harnesses(api: Api, request: Request) -> Response:
    """Asked once per new home by huggingface_hub 2.4."""
    return as_json({"standardEnvVars": [], "harnesses": {}})


@route("POST", "/api/repos/create")
def create(api: Api, request: Request) -> Response:
    asked = request.json()
    user = api.user(request)
    namespace, name = asked.get("organization") or user, asked.get("name", "")
    if asked.get("type", "model") != "model":
        raise RefusalError(400, "this Hub holds models only")
    if not REPO_NAME.fullmatch(name) or name[0] in ".-" or name[-1] in ".-" or ".." in name or "--" in name:
        raise RefusalError(400, f"Invalid repo name: {name}")
    api.demand_write(api.rights(request) or {}, namespace)
    repo_id = f"{namespace}/{name}"
    answer = {"url": f"{api.url}/{repo_id}", "name": repo_id}
    if repo_id in api.repos:
        message = "You already created this model repo"
        raise RefusalError(409, message, body={"error": message, **answer})
    private = asked.get("private") is True or asked.get("visibility") == "private"
    api.create(repo_id, user, private=private)
    return as_json(answer)


@route("DELETE", "/api/repos/delete")
def delete(api: Api, request: Request) -> Response:
    asked = request.json()
    repo_id = f"{asked.get('organization') or api.user(request)}/{asked['name']}"
    api.writable(request, repo_id)
    del api.repos[repo_id]
    return as_json({})


@route("PUT", "/api/models/{repo}/settings")
def settings(api: Api, request: Request, repo_id: str) -> Response:
    repo, asked = api.writable(request, repo_id), request.json()
    if "visibility" in asked or "private" in asked:
        repo.private = asked.get("visibility") == "private" or asked.get("private") is True
    return as_json({"private": repo.private})


@route("POST", "/api/validate-yaml")
def validate_yaml(api: Api, request: Request) -> Response:
    errors, warnings = check_card(request.json()["content"])
    answer = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
    return as_json(answer, status=400 if errors else 200)


@route("GET", "/api/models/{repo}(?:/revision/([^/]+))?")
def info(api: Api, request: Request, repo_id: str, revision: str) -> Response:
    repo = api.readable(request, repo_id)
    commit = repo.at(revision or "main")
    card = _card(commit)
    tags = [*_many(card.get("tags")), *(f"license:{name}" for name in _many(card.get("license")))]
    answer = {
        "id": repo.id,
        "modelId": repo.id,
        "sha": commit.sha,
        "author": repo.id.split("/")[0],
        "private": repo.private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": [*([card["library_name"]] if "library_name" in card else []), *tags],
        "cardData": card,
        "createdAt": _date(repo.commits[0].time),
        "lastModified": _date(commit.time),
        "siblings": [_sibling(path, blob.entry(path), "blobs" in request.query) for path, blob in commit.files.items()],
    }
    answer |= {key: card[key] for key in ("library_name", "pipeline_tag") if key in card}
    return as_json(answer)


def _card(commit: Commit) -> dict:
    readme = commit.files.get("README.md")
    try:
        return read_front_matter(readme.data.decode()) if readme else {}
    except ValueError:
        return {}


def _many(value: object) -> list:
    return value if isinstance(value, list) else [] if value is None else [value]


def _sibling(path: str, entry: dict, blobs: bool) -> dict:
    if not blobs:
        return {"rfilename": path}
    more = {"lfs": {**entry["lfs"], "sha256": entry["lfs"]["oid"]}} if "lfs" in entry else {}
    return {"rfilename": path, "size": entry["size"], "blobId": entry["oid"], **more}


@route("GET", "/api/models/{repo}/refs")
def refs(api: Api, request: Request, repo_id: str) -> Response:
    repo = api.readable(request, repo_id)

    def listed(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": prefix + name, "targetCommit": sha} for name, sha in names.items()]

    answer = {"branches": listed(repo.branches, "refs/heads/"), "tags": listed(repo.tags, "refs/tags/"), "converts": []}
    if "include_prs" in request.query:
        proposed = {str(pr.number): repo.at(pr.ref).sha for pr in repo.pull_requests}
        answer["pullRequests"] = listed(proposed, "refs/pr/")
    return as_json(answer)


@route("GET", "/api/models/{repo}/commits/([^/]+)")
def commits(api: Api, request: Request, repo_id: str, revision: str) -> Response:
    newest_first = api.readable(request, repo_id).history(revision)[::-1]
    page = int(request.query.get("p", 0))
    shown = newest_first[page * api.page : (page + 1) * api.page]
    answer = []
    for commit in shown:
        title, _, rest = commit.message.partition("\n")
        who = [{"user": commit.author}]
        answer.append(
            {"id": commit.sha, "title": title, "message": rest.strip(), "authors": who, "date": _date(commit.time)}
        )
    more = f'<{api.url}{request.path}?p={page + 1}>; rel="next"'
    return as_json(answer, headers={"Link": more} if len(newest_first) > (page + 1) * api.page else {})


@route("POST|DELETE", "/api/models/{repo}/branch/([^/]+)")
def branch(api: Api, request: Request, repo_id: str, name: str) -> Response:
    repo = api.writable(request, repo_id)
    start = request.json().get("startingPoint", "main") if request.method == "POST" and request.body else "main"
    return _reference(request, repo, repo.branches, name, start)


@route("POST|DELETE", "/api/models/{repo}/tag/([^/]+)")
def tag(api: Api, request: Request, repo_id: str, revision: str) -> Response:
    repo = api.writable(request, repo_id)
    name = request.json()["tag"] if request.method == "POST" else revision
    return _reference(request, repo, repo.tags, name, revision)


def _reference(request: Request, repo: Repo, names: dict[str, str], name: str, start: str) -> Response:
    if request.method == "DELETE":
        if name not in names or name == "main":
            raise RefusalError(404, f"Invalid rev id: {name}", "RevisionNotFound")
        del names[name]
    elif name in names:
        raise RefusalError(409, f"Reference already exists: {name}")
    else:
        names[name] = repo.at(start).sha
    return as_json({})


@route("POST", "/api/models/{repo}/discussions")
def open_discussion(api: Api, request: Request, repo_id: str) -> Response:
    asked = request.json()
    if not asked.get("pullRequest"):
        raise RefusalError(400, "this Hub knows pull requests only")
    repo = api.writable(request, repo_id, pull_request=True)
    opened = repo.open_pull_request(asked["title"], api.user(request))
    return as_json({"num": opened.number, "url": f"{api.url}/{repo_id}/discussions/{opened.number}"})


@route("GET", "/api/models/{repo}/discussions")
def discussions(api: Api, request: Request, repo_id: str) -> Response:
    """All of them are pull requests, on one page, the newest first."""
    repo = api.readable(request, repo_id)
    found = [_discussion(repo, pr) for pr in reversed(repo.pull_requests)]
    return as_json({"discussions": found, "count": len(found), "start": 0})


@route("GET", r"/api/models/{repo}/discussions/(\d+)")
def discussion(api: Api, request: Request, repo_id: str, number: str) -> Response:
    repo = api.readable(request, repo_id)
    found = repo.pull_request_of(f"refs/pr/{number}")
    if found is None:
        raise RefusalError(404, f"no discussion {number}")
    return as_json(_discussion(repo, found))


def _discussion(repo: Repo, found: PullRequest) -> dict:
    return {
        "num": found.number,
        "title": found.title,
        "author": {"name": found.author},
        "createdAt": _date(repo.commits[0].time),
        "status": "draft",
        "isPullRequest": True,
        "changes": {"base": "refs/heads/main"},
        "filesWithConflicts": [],
        "repo": {"name": repo.id, "type": "model"},
        "events": [],
    }
