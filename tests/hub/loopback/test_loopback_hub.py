"""The loopback Hub is held to what huggingface_hub sends and expects, with huggingface_hub itself as its client."""

import hashlib
import json
import socket
import threading
from urllib.parse import urlsplit

import pytest
from loopback_helpers import CARD, NOISE, UPLOAD, WEIGHTS, ask, commit_lines
from loopback_hub import Fault, LoopbackHub
from loopback_hub.store import Blob, git_sha1, tree_sha1
from loopback_hub.wire import RefusalError
from support.hub_clients import Client
from support.pushing import NEEDS_PUSH

pytestmark = NEEDS_PUSH

# -- uploads


def test_a_folder_lands_byte_for_byte_and_a_second_time_makes_no_commit(hub, client, folder):
    first = client.run(UPLOAD, repo="alice/m", folder=folder, more={}).ok().value
    files = hub.repo("alice/m").files()
    assert {name: len(data) for name, data in files.items() if name != ".gitattributes"} == {
        **{"README.md": len(CARD), "config.json": 2, "model.safetensors": len(WEIGHTS)}
    }
    assert files["model.safetensors"] == WEIGHTS
    assert client.run(UPLOAD, repo="alice/m", folder=folder, more={}).ok().value == first == hub.repo("alice/m").head
    assert len(hub.repo("alice/m").commits) == 2
    paths = " ".join(record.path for record in hub.requests)
    assert ("xet-write-token" in paths) == client.xet
    assert ("info/lfs" in paths) != client.xet


def test_a_snapshot_is_what_was_uploaded_and_comes_over_the_second_port_or_xet(hub, client, folder, tmp_path):
    client.run(UPLOAD, repo="alice/m", folder=folder, more={}).ok()
    code = "from huggingface_hub import snapshot_download; result = snapshot_download('alice/m', local_dir=to)"
    client.run(code, to=str(tmp_path / "copy")).ok()
    assert (tmp_path / "copy" / "model.safetensors").read_bytes() == WEIGHTS
    assert any("xet-read-token" in record.path for record in hub.requests) == client.xet
    outside = [record for record in hub.requests if record.port == "cdn" and record.method == "GET"]
    assert len(outside) == (not client.xet)
    assert all(record.authorization is None for record in outside)


def test_a_pull_request_leaves_main_alone(hub, client, folder):
    client.run(UPLOAD, repo="alice/m", folder=folder, more={"create_pr": True}).ok()
    repo = hub.repo("alice/m")
    assert list(repo.files()) == [".gitattributes"]
    assert repo.files("refs/pr/1")["model.safetensors"] == WEIGHTS
    assert [request.number for request in repo.pull_requests] == [1]


def test_large_lfs_files_go_in_parts(plain, hub, folder):
    hub.api.lfs_part_size = 100_000
    plain.run(UPLOAD, repo="alice/m", folder=folder, more={}).ok()
    assert hub.repo("alice/m").files()["model.safetensors"] == WEIGHTS
    parts = [record for record in hub.requests if record.method == "PUT"]
    assert len(parts) == -(-len(WEIGHTS) // 100_000)


def test_weights_that_never_came_are_refused(hub):
    hub.commit("alice/m", {})
    pointer = {"key": "lfsFile", "value": {"path": "a.bin", "algo": "sha256", "oid": "0" * 64, "size": 3}}
    status, headers, _ = ask(hub, "POST", "/api/models/alice/m/commit/main", commit_lines(pointer))
    assert (status, "does not exist" in headers["X-Error-Message"]) == (422, True)
    assert len(hub.repo("alice/m").commits) == 2


def test_an_lfs_upload_of_other_bytes_is_refused(hub):
    hub.commit("alice/m", {})
    oid = hashlib.sha256(b"right").hexdigest()
    batch = {"operation": "upload", "objects": [{"oid": oid, "size": 5}], "hash_algo": "sha256"}
    _, _, body = ask(hub, "POST", "/alice/m.git/info/lfs/objects/batch", batch)
    place = urlsplit(json.loads(body)["objects"][0]["actions"]["upload"]["href"]).path
    assert ask(hub, "PUT", place, b"wrong", token=None, url=hub.cdn_url)[0] == 400
    assert ask(hub, "PUT", place, b"right", url=hub.cdn_url)[0] == 400  # a token does not belong there
    assert ask(hub, "POST", "/alice/m.git/info/lfs/verify", {"oid": oid, "size": 5})[0] == 404
    assert ask(hub, "PUT", place, b"right", token=None, url=hub.cdn_url)[0] == 200
    assert ask(hub, "POST", "/alice/m.git/info/lfs/verify", {"oid": oid, "size": 5})[0] == 200


def test_a_commit_on_an_old_parent_is_refused_and_one_of_the_same_files_is_made(hub):
    old = hub.commit("alice/m", {"a": b"1"}).sha
    same = {"key": "file", "value": {"path": "a", "content": "Mg==", "encoding": "base64"}}
    for parent in (old, None, None):
        lines = commit_lines(same, **({"parentCommit": parent} if parent else {}))
        assert ask(hub, "POST", "/api/models/alice/m/commit/main", lines)[0] == 200
    assert ask(hub, "POST", "/api/models/alice/m/commit/main", commit_lines(same, parentCommit=old))[0] == 412
    *_, before, last = hub.repo("alice/m").commits
    assert before.files == last.files
    assert last.parent == before.sha != last.sha


@pytest.mark.parametrize("path", ["../x", "/x", "a//b", ".git/config", "a\\b", ""])
def test_a_commit_of_a_bad_path_is_refused(hub, path):
    hub.commit("alice/m", {})
    bad = {"key": "file", "value": {"path": path, "content": "", "encoding": "base64"}}
    assert ask(hub, "POST", "/api/models/alice/m/commit/main", commit_lines(bad))[0] == 400


def test_files_and_folders_are_deleted(plain, hub):
    hub.commit("alice/m", {"a": b"1", "d/b": b"2", "d/c": b"3"})
    plain.run(
        "from huggingface_hub import HfApi as A; A().delete_file('a', 'alice/m'); A().delete_folder('d', 'alice/m')"
    ).ok()
    assert list(hub.repo("alice/m").files()) == [".gitattributes"]


# -- downloads


def test_a_broken_download_goes_on_where_it_stopped(plain, hub, tmp_path):
    data = NOISE * 130  # more than two of the client's chunks of 10 MiB
    hub.commit("alice/m", {"model.safetensors": data})
    hub.faults = [Fault("GET", "^/cdn/", cut_after=22 << 20)]
    code = "from huggingface_hub import hf_hub_download as d; result = d('alice/m', 'model.safetensors', local_dir=to)"
    reply = plain.run(code, to=str(tmp_path)).ok()
    assert (tmp_path / "model.safetensors").read_bytes() == data
    assert [record.range for record in hub.requests if record.port == "cdn"] == [None, f"bytes={20 << 20}-"]
    assert reply.sleeps == [1]


@pytest.mark.parametrize(
    ("asked", "status", "body"),
    [("bytes=2-", 206, b"cdef"), ("bytes=1-2", 206, b"bc"), ("bytes=-2", 206, b"ef"), ("bytes=6-", 416, None)],
)
def test_ranges(hub, asked, status, body):
    hub.commit("alice/m", {"a": b"abcdef"})
    answer = ask(hub, "GET", "/alice/m/resolve/main/a", Range=asked)
    assert answer[0] == status
    assert body in (None, answer[2])
    assert answer[1]["Content-Range"].endswith("/6")


def test_etags_name_the_content_and_spare_a_second_answer(hub):
    commit = hub.commit("alice/m", {"a": b"abc", "b.bin": b"large"})
    status, headers, body = ask(hub, "HEAD", "/alice/m/resolve/main/a")
    assert (status, body, headers["Content-Length"]) == (200, b"", "3")
    assert headers["X-Repo-Commit"] == commit.sha
    assert headers["ETag"].strip('"') == git_sha1("blob", b"abc")
    assert ask(hub, "GET", "/alice/m/resolve/main/a", **{"If-None-Match": headers["ETag"]})[0] == 304
    status, headers, _ = ask(hub, "HEAD", "/alice/m/resolve/main/b.bin")
    assert (status, headers["X-Linked-Size"]) == (302, "5")
    assert headers["X-Linked-ETag"].strip('"') == hashlib.sha256(b"large").hexdigest()
    assert headers["Location"].startswith(hub.cdn_url)
    place = headers["Location"].removeprefix(hub.cdn_url)
    assert ask(hub, "GET", place, token=None, url=hub.cdn_url)[::2] == (200, b"large")
    assert ask(hub, "GET", place, url=hub.cdn_url)[0] == 400  # whoever sends a token there gives it away


def test_a_tree_of_many_pages_is_listed_whole(plain, hub):
    hub.api.page = 3
    hub.commit("alice/m", {f"{name}/{i}.txt": b"x" for name in "ab" for i in range(4)})
    code = """
from huggingface_hub import HfApi
ways = ({"recursive": True}, {}, {"path_in_repo": "b"})
result = [[entry.path for entry in HfApi().list_repo_tree("alice/m", **way)] for way in ways]
"""
    whole, top, part = plain.run(code).ok().value
    assert whole == [".gitattributes", *(f"{name}/{i}.txt" for name in "ab" for i in range(4))]
    assert top == [".gitattributes", "a", "b"]
    assert part == [f"b/{i}.txt" for i in range(4)]


def test_branches_tags_and_hashes_name_revisions(plain, hub):
    old = hub.commit("alice/m", {"a": b"1"}).sha
    code = """
from huggingface_hub import HfApi
api = HfApi()
api.create_tag("alice/m", tag="v1")
api.create_branch("alice/m", branch="dev/x")
api.upload_file(path_or_fileobj=b"2", path_in_repo="a", repo_id="alice/m", revision="dev/x")
refs = api.list_repo_refs("alice/m")
result = [[ref.name for ref in refs.branches], [ref.name for ref in refs.tags]]
result.append([c.title for c in api.list_repo_commits("alice/m", revision="dev/x")])
result.append([open(api.hf_hub_download("alice/m", "a", revision=r)).read() for r in ("v1", "dev/x", old, "main")])
"""
    branches, tags, titles, contents = plain.run(code, old=old).ok().value
    assert (branches, tags, contents) == (["main", "dev/x"], ["v1"], ["1", "2", "1", "1"])
    assert titles == ["Upload a with huggingface_hub", "planted", "initial commit"]


# -- who may what, and what is missing


@pytest.mark.parametrize(
    ("code", "token", "error"),
    [
        ("api.whoami()", "nobody", "HfHubHTTPError.*Invalid user token"),
        ("api.model_info('alice/m')", "nobody", "HfHubHTTPError.*Invalid credentials"),
        ("api.model_info('alice/m')", None, None),
        ("api.model_info('alice/secret')", None, "RepositoryNotFoundError"),
        ("api.model_info('alice/secret')", "token-bob", "RepositoryNotFoundError"),
        ("api.model_info('alice/secret')", "token-reader", None),
        ("api.model_info('alice/nothing')", "token-alice", "RepositoryNotFoundError"),
        ("api.model_info('alice/m', revision='v9')", "token-alice", "RevisionNotFoundError"),
        ("api.hf_hub_download('alice/m', 'b')", "token-alice", "RemoteEntryNotFoundError"),
        ("assert not api.file_exists('alice/m', 'b')", "token-alice", None),
        ("assert not api.repo_exists('alice/nothing')", "token-alice", None),
        ("api.create_repo('alice/new')", "token-reader", "HfHubHTTPError.*write token"),
        ("api.create_repo('alice/new')", "token-bob", "HfHubHTTPError.*rights"),
        ("api.create_repo('timm-mix/new', private=True)", "token-alice", None),
        ("api.create_repo('alice/m')", "token-alice", "HfHubHTTPError.*already created"),
        ("assert api.create_repo('alice/m', exist_ok=True).repo_id == 'alice/m'", "token-alice", None),
        ("api.upload_file(path_or_fileobj=b'1', path_in_repo='b', repo_id='alice/m')", "token-alice", None),
        (
            "api.upload_file(path_or_fileobj=b'1', path_in_repo='b', repo_id='alice/m')",
            "token-bob",
            "HTTPError.*rights",
        ),
        ("api.delete_repo('alice/m')", "token-bob", "HfHubHTTPError.*rights"),
    ],
)
def test_rights(rights_client, code, token, error):
    hub = rights_client.hub
    hub.repos.clear()
    hub.commit("alice/m", {"a": b"1"})
    hub.commit("alice/secret", {"a": b"1"}, private=True)
    env = {"HF_TOKEN": token} if token else {}
    reply = rights_client.run(f"from huggingface_hub import HfApi\napi = HfApi()\n{code}", env=env)
    if error is None:
        reply.ok()
    else:
        assert reply.error is not None
        with pytest.raises(AssertionError, match=f"(?s){error}"):
            reply.ok()


@pytest.fixture(scope="module")
def rights_client(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rights")
    with LoopbackHub(folder / "hub") as hub, Client(hub, token=None, home=folder / "home") as client:
        client.hub = hub
        yield client


def test_another_user_may_propose_but_not_write(hub):
    hub.commit("alice/m", {"a": b"1"})
    lines = commit_lines({"key": "file", "value": {"path": "a", "content": "Mg==", "encoding": "base64"}})
    path = "/api/models/alice/m/commit/"
    assert ask(hub, "POST", path + "main", lines, token="token-bob")[0] == 403
    assert ask(hub, "POST", path + "main?create_pr=1", lines, token="token-reader")[0] == 403
    assert ask(hub, "POST", path + "main?create_pr=1", lines, token="token-bob")[0] == 200
    assert ask(hub, "POST", path + "refs%2Fpr%2F1", lines, token="token-bob")[0] == 200
    assert hub.repo("alice/m").files()["a"] == b"1"


# -- metadata


def test_what_a_model_is_stands_in_its_card(plain, hub):
    hub.commit("alice/m", {"README.md": CARD, "model.safetensors": b"123"})
    code = """
from huggingface_hub import model_info
info = model_info("alice/m", files_metadata=True)
files = [(file.rfilename, file.size) for file in info.siblings]
result = [info.library_name, info.pipeline_tag, info.tags, info.card_data.to_dict(), files]
"""
    library, task, tags, card, files = plain.run(code).ok().value
    assert (library, task) == ("timm", "image-classification")
    assert set(tags) == {"timm", "mixmo", "license:mit"}
    assert card["license"] == "mit"
    assert ["model.safetensors", 3] in files


# -- hashes are git's


def test_hashes_are_those_of_git():
    """By `echo hello > FILE` for each of the names, `git add -A; git hash-object a0; git write-tree`."""
    assert git_sha1("blob", b"") == "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    hello = Blob.regular(b"hello\n").oid
    assert hello == "ce013625030ba8dba906f756967f9e9ca394464a"
    tree = dict.fromkeys(("a/b", "a.txt", "a0", "d/e/f"), hello)
    assert tree_sha1(tree) == "dc1335af6f3147828daab3476eeadc5b79b67330"


# -- the end


def test_nothing_is_left_when_the_context_ends(tmp_path):
    before = threading.active_count()
    with LoopbackHub(tmp_path) as hub:
        idle = socket.create_connection(urlsplit(hub.url).netloc.split(":"))
        ask(hub, "GET", "/api/whoami-v2")
    assert idle.recv(1) == b""
    idle.close()
    for url in (hub.url, hub.cdn_url):
        with pytest.raises(ConnectionRefusedError, match="refused"):
            ask(hub, "GET", "/", url=url)
    deadline = threading.Event()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        deadline.wait(0.02)
    assert threading.active_count() <= before


def test_xet_hands_out_no_bytes_that_are_not_those_of_the_hash(hub, tmp_path, folder):
    with Client(hub, home=tmp_path / "home", xet=True) as client:
        client.run(UPLOAD, repo="alice/m", folder=folder, more={}).ok()
    (xorb,) = (path for path in (tmp_path / "hub").rglob("default.*") if path.suffix != ".tagset")
    data = xorb.read_bytes()
    xorb.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    with pytest.raises((RefusalError, IndexError), match=r"of the Xet store|Xet store does not|out of range"):
        hub.repo("alice/m").files()
