"""Models come from the Hub: as they were pushed, through faults, and without leaving anything wrong in the cache."""

import hashlib
import importlib.util
import json
import subprocess
import sys
from dataclasses import dataclass

import pytest
import timm
import torch
from loopback_hub import Fault, LoopbackHub
from support.hub_clients import Client, client_environment

from timm_mix.hub import HubError, save_pretrained
from timm_mix.hub.client import KEEPS_PARTS, REPEATS_DOWNLOADS, can_push

pytestmark = pytest.mark.slow

IMAGES = "torch.linspace(-1, 1, 2 * 3 * 32 * 32).reshape(2, 3, 32, 32)"
LOADERS = {
    "timm": "timm.create_model('hf-hub:' + name, pretrained=True, cache_dir=cache, **more)",
    "ours": "load_pretrained(name, cache_dir=cache, **more)",
}
LOAD = f"""
import timm, torch
from huggingface_hub import constants, file_download
from timm_mix.hub import load_pretrained
constants.HF_HUB_DISABLE_XET, constants.HF_HUB_OFFLINE, constants.HF_HUB_DISABLE_SYMLINKS = not xet, offline, not links
if not links:  # huggingface_hub before 1.0 has no setting for it
    file_download.are_symlinks_supported = lambda *folders: False
if limit:
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
with torch.no_grad():
    model = eval(loader).eval()
    result = [part.tolist() for part in model({IMAGES}[:, : model.in_chans if 'in_chans' in more else 3])]
"""


@dataclass(frozen=True)
class Published:
    files: dict[str, bytes]
    logits: list

    @classmethod
    def of(cls, model, folder):
        with torch.no_grad():
            logits = model.eval()(eval(IMAGES)).tolist()
        return cls({path.name: path.read_bytes() for path in save_pretrained(model, folder).iterdir()}, logits)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    torch.manual_seed(0)
    members = timm.create_model("mixmo", backbone="test_resnet", members=2, num_classes=3)
    other = timm.create_model("mixmo", backbone="test_resnet", members=2, num_classes=3)
    models = {"members": members, "folded": members.fold(), "other": other}
    return {name: Published.of(model, folder / name) for name, model in models.items()}


@pytest.fixture(scope="module")
def hub(tmp_path_factory, published):
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        hub.commit("alice/members", published["other"].files, message="first try")
        hub.repo("alice/members").tags["v1"] = hub.repo("alice/members").head
        hub.commit("alice/members", published["members"].files, message="better")
        hub.commit("alice/folded", published["folded"].files)
        hub.commit("alice/secret", published["folded"].files, private=True)
        yield hub


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    imports = "import timm, torch, timm_mix.hub; torch.set_num_threads(1)"
    with Client(hub, home=tmp_path_factory.mktemp("home"), xet=True, imports=imports) as client:
        hub.on_kill = client.kill
        yield client


@pytest.fixture
def load(hub, client, tmp_path):
    """load(name, ...) -> Reply with the logits, through one cache; faults are gone afterwards."""

    def load(name, *, faults=(), loader="ours", xet=False, offline=False, links=True, limit=0, env=None, **more):
        hub.faults = faults
        try:
            cache = str(tmp_path / "cache")
            settings = {"xet": xet, "offline": offline, "links": links, "limit": limit, "loader": LOADERS[loader]}
            return client.run(LOAD, name=name, cache=cache, more=more, env=env, **settings)
        finally:
            hub.faults = []

    return load


def asked(hub, before):
    """What was asked since, without the addresses of contents."""
    return [f"{record.method} {record.path.split('/')[-1].split('?')[0]}" for record in hub.requests[before:]]


# -- as it was pushed


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("name", ["members", "folded"])
def test_a_model_gives_the_logits_it_was_pushed_with(load, published, name, loader):
    assert load(f"alice/{name}", loader=loader).ok().value == published[name].logits


# old clients choose xet once, when they are imported, or have it as an option
NEEDS_XET = pytest.mark.skipif(
    not can_push() or not importlib.util.find_spec("hf_xet"), reason="no hf_xet, or an old client"
)


@pytest.mark.parametrize("xet", [pytest.param(True, marks=NEEDS_XET), False], ids=["xet", "http"])
def test_what_came_by_xet_loads_by_xet_and_without(hub, client, load, published, tmp_path, xet):
    for name, data in published["members"].files.items():
        (tmp_path / name).write_bytes(data)
    upload = "from huggingface_hub import HfApi; HfApi().create_repo(to, exist_ok=True)\n"
    upload += "HfApi().upload_folder(repo_id=to, folder_path=folder, allow_patterns=['*.json', '*.safetensors'])"
    client.run(upload, to="alice/by-xet", folder=str(tmp_path)).ok()
    before = len(hub.requests)
    for loader in LOADERS:
        assert load("alice/by-xet", xet=xet, loader=loader).ok().value == published["members"].logits
    assert any("xet-read-token" in record.path for record in hub.requests[before:]) == xet
    assert any(record.port == "cdn" for record in hub.requests[before:]) != xet


@pytest.mark.parametrize("loader", LOADERS)
def test_another_head_grey_images_and_features_are_a_keyword_away(load, published, loader):
    for name in ("members", "folded"):
        grey = load(f"alice/{name}", loader=loader, num_classes=7, in_chans=1).ok().value
        assert [len(row) for row in grey] == [7, 7]
        assert len(load(f"alice/{name}", loader=loader, features_only=True).ok().value) == 5


@pytest.mark.parametrize("loader", LOADERS)
def test_a_revision_is_a_tag_a_branch_or_a_commit(hub, load, published, loader):
    first = hub.repo("alice/members").commits[1].sha
    for revision, name in (("v1", "other"), (first, "other"), ("main", "members")):
        assert load(f"alice/members@{revision}", loader=loader).ok().value == published[name].logits


@pytest.mark.parametrize(("loader", "questions"), [("timm", 2), ("ours", 1)])
def test_a_second_load_asks_for_heads_only_and_offline_for_nothing(hub, load, published, loader, questions):
    load("alice/members", loader=loader).ok()
    before = len(hub.requests)
    assert load("alice/members", loader=loader).ok().value == published["members"].logits
    assert [line.split()[0] for line in asked(hub, before)] == ["HEAD"] * questions
    before = len(hub.requests)
    assert load("alice/members", loader=loader, offline=True).ok().value == published["members"].logits
    assert asked(hub, before) == []


def test_offline_without_a_download_is_one_line(load):
    error = load("alice/members", offline=True).error
    assert error == "HubError: cannot get config.json of alice/members: offline mode is on; unset HF_HUB_OFFLINE"


def test_a_folded_network_loads_offline_where_timm_mix_is_not_installed(hub, client, published, tmp_path):
    download = "import timm; timm.create_model('hf-hub:alice/folded', pretrained=True, cache_dir=cache)"
    client.run(download, cache=str(tmp_path / "hub")).ok()
    code = f"""
import json, sys
sys.modules['timm_mix'] = None  # an import of it fails
import timm, torch
model = timm.create_model('hf-hub:alice/folded', pretrained=True).eval()
with torch.no_grad():
    print(json.dumps(model({IMAGES}).tolist()))
"""
    environment = client_environment(hub, token=None, xet=False, home=tmp_path, env={"HF_HUB_OFFLINE": "1"})
    printed = subprocess.run(
        [sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True, timeout=60
    ).stdout
    assert json.loads(printed) == published["folded"].logits


def test_a_private_model_needs_a_token_that_may_read_it(load, published):
    assert load("alice/secret", env={"HF_TOKEN": "token-reader"}).ok().value == published["folded"].logits


@pytest.mark.parametrize(
    ("name", "token", "message"),
    [
        (
            "alice/secret",
            "token-bob",
            "cannot get config.json of alice/secret: the Hub says 404 .*Repository not found",
        ),
        ("alice/members", "wrong", "cannot get config.json of alice/members: the Hub says 401 .*hf auth login"),
        ("alice/nothing", "", "cannot get config.json of alice/nothing: the Hub says 401 .*look at the name"),
        ("alice/nothing", "token-alice", "cannot get config.json of alice/nothing: the Hub says 404 .*name"),
        ("alice/members@v9", "token-alice", "cannot get config.json of alice/members: the Hub says 404 .*revision"),
        ("alice/a/b", "token-alice", "wanted org/name or org/name@revision, or a folder that exists, got 'alice/a/b'"),
    ],
)
def test_a_wrong_name_or_token_is_one_line(load, name, token, message):
    check_error(load(name, env={"HF_TOKEN": token}), message)


def check_error(reply, message):
    assert reply.error is not None, reply.value
    with pytest.raises(HubError, match=message):
        raise (
            HubError(reply.error.removeprefix("HubError: "))
            if reply.error.startswith("HubError: ")
            else AssertionError(reply.traceback)
        )
    assert len(reply.error.splitlines()) == 1


# -- through faults

WEIGHTS_HEAD = {"method": "HEAD", "path": r"resolve/.*/model\.safetensors"}
WEIGHTS_GET = {"method": "GET", "path": "^/cdn/"}
CONFIG_HEAD = {"method": "HEAD", "path": r"config\.json"}
CONFIG_GET = {"method": "GET", "path": r"config\.json"}
NOT_AS_ANNOUNCED = "what comes is not what the Hub announces, twice; nothing of it is kept"
# name: (fault, None where the load works, else what load_pretrained says)
FAULTS = {
    "HEAD 429 once": (Fault(**WEIGHTS_HEAD, status=429), None),
    "HEAD 429 with a limit": (
        Fault(**WEIGHTS_HEAD, when="first 2", status=429, headers={"ratelimit": '"api";r=0;t=55'}),
        None,
    ),
    "HEAD 429 always": (Fault(**WEIGHTS_HEAD, when="always", status=429), "429 Too Many Requests; .*wait"),
    "HEAD 500 once": (Fault(**CONFIG_HEAD, status=500), None),
    "HEAD 503 always": (Fault(**WEIGHTS_HEAD, when="always", status=503), "503 Service Unavailable; .*later"),
    "HEAD 401": (Fault(**WEIGHTS_HEAD, status=401), "401 Unauthorized; .*token"),
    "HEAD 403 gated": (
        Fault(**CONFIG_HEAD, status=403, error_code="GatedRepo", error_message="Access is restricted"),
        "403 Forbidden: Access is restricted; .*ask for access",
    ),
    "HEAD 404 without a code": (Fault(**WEIGHTS_HEAD, status=404), "404 Not Found"),
    "HEAD lost": (Fault(**WEIGHTS_HEAD, lose_response=True), None),
    "HEAD lost always": (Fault(**WEIGHTS_HEAD, when="always", lose_response=True), "the connection failed .*again$"),
    "HEAD without X-Repo-Commit": (
        Fault(**WEIGHTS_HEAD, when="always", drop_headers=("X-Repo-Commit",)),
        "missing the 'X-Repo-Commit' header",
    ),
    "config HEAD without X-Repo-Commit": (
        Fault(**CONFIG_HEAD, when="always", drop_headers=("X-Repo-Commit",)),
        "missing the 'X-Repo-Commit' header",
    ),
    "HEAD without ETag": (
        Fault(**WEIGHTS_HEAD, when="always", drop_headers=("ETag", "X-Linked-ETag")),
        "does not have an ETag",
    ),
    "HEAD wrong size": (Fault(**WEIGHTS_HEAD, when="always", wrong_size=True), NOT_AS_ANNOUNCED),
    "HEAD wrong size once": (Fault(**WEIGHTS_HEAD, wrong_size=True), None),
    "GET 429 once": (Fault(**WEIGHTS_GET, status=429, headers={"Retry-After": "7"}), None),
    "GET 429 always": (Fault(**WEIGHTS_GET, when="always", status=429), "429 Too Many Requests"),
    "GET 500 twice": (Fault(**WEIGHTS_GET, when="first 2", status=500), None),
    "GET 503 always": (Fault(**WEIGHTS_GET, when="always", status=503), "503 Service Unavailable"),
    "GET 403 expired": (Fault(**WEIGHTS_GET, status=403, error_message="Request has expired"), "Request has expired"),
    "GET 416": (Fault(**WEIGHTS_GET, status=416), "416"),
    "GET cut before the first byte": (Fault(**WEIGHTS_GET, cut_after=0), None),
    "GET cut in the header": (Fault(**WEIGHTS_GET, cut_after=100), None),
    "GET cut in the tensors": (Fault(**WEIGHTS_GET, when="first 3", cut_after=1_000_000), None),
    "GET cut always": (Fault(**WEIGHTS_GET, when="always", cut_after=1_000_000), "the connection failed"),
    "GET reset": (Fault(**WEIGHTS_GET, cut_after=1_000_000, abrupt=True), None),
    "GET reset always": (Fault(**WEIGHTS_GET, when="always", cut_after=9, abrupt=True), "the connection failed"),
    "GET lost": (Fault(**WEIGHTS_GET, lose_response=True), None),
    "GET one byte short": (Fault(**WEIGHTS_GET, wrong_size=True), None),
    "GET one byte short always": (Fault(**WEIGHTS_GET, when="always", wrong_size=True), NOT_AS_ANNOUNCED),
    "GET wrong bytes": (Fault(**WEIGHTS_GET, wrong_bytes=True), None),
    "GET wrong bytes always": (Fault(**WEIGHTS_GET, when="always", wrong_bytes=True), NOT_AS_ANNOUNCED),
    "GET another page": (
        Fault(**WEIGHTS_GET, when="always", body="<html>log in to this network</html>"),
        NOT_AS_ANNOUNCED,
    ),
    "config GET 502 once": (Fault(**CONFIG_GET, status=502), None),
    "config cut": (Fault(**CONFIG_GET, cut_after=10), None),
    "config wrong bytes": (Fault(**CONFIG_GET, wrong_bytes=True), None),
    "config wrong bytes always": (Fault(**CONFIG_GET, when="always", wrong_bytes=True), NOT_AS_ANNOUNCED),
    "config one byte short always": (Fault(**CONFIG_GET, when="always", wrong_size=True), NOT_AS_ANNOUNCED),
}
UNSEEN_BY_TIMM = ("wrong bytes",)  # timm and huggingface_hub compare sizes, not digests
if KEEPS_PARTS:  # what came of a page that is too short is kept, and the weights' own end put behind it
    UNSEEN_BY_TIMM += ("another page",)
# what differs from another one in its number or in the file only
SLOW = (
    *("HEAD 429 with a limit", "HEAD 500 once", "HEAD lost", "HEAD wrong size once", "HEAD 404 without a code"),
    *("GET 429 always", "GET 503 always", "GET cut before the first byte", "GET cut in the header", "GET reset always"),
    *("config HEAD without X-Repo-Commit", "config GET 502 once", "config cut", "config one byte short always"),
    *("GET lost", "GET one byte short", "GET wrong bytes always", "config wrong bytes"),
)
if KEEPS_PARTS:  # an old huggingface_hub; what it kept is what is wrong, to all appearances, after a 416
    NO_COMMIT = "does not seem to be on huggingface.co|missing the 'X-Repo-Commit' header"
    FAULTS |= {name: (fault, NO_COMMIT) for name, (fault, _) in FAULTS.items() if name.endswith("X-Repo-Commit")}
    FAULTS["GET 416"] = (FAULTS["GET 416"][0], None)
CASES = [pytest.param(name, marks=[pytest.mark.hub_matrix] if name in SLOW else []) for name in FAULTS]


@pytest.mark.parametrize("name", CASES)
def test_a_fault_ends_in_the_model_or_in_one_line_and_the_next_load_in_the_model(load, published, name):
    fault, message = FAULTS[name]
    reply = load("alice/members", faults=[fault])
    if message is None:
        assert reply.ok().value == published["members"].logits
    else:
        check_error(reply, message)
    assert load("alice/members").ok().value == published["members"].logits


@pytest.mark.hub_matrix
@pytest.mark.parametrize("name", [name for name in FAULTS if not any(part in name for part in UNSEEN_BY_TIMM)])
def test_a_fault_leaves_nothing_that_timm_takes_for_whole(load, published, name):
    reply = load("alice/members", faults=[FAULTS[name][0]], loader="timm")
    assert reply.error is not None or reply.value == published["members"].logits
    assert load("alice/members", loader="timm").ok().value == published["members"].logits


def test_waits_follow_what_the_hub_asks_for(load):
    allowed = ([8],) if can_push() else ([8], [1])  # clients from 1.0 on wait by themselves, first as they like
    assert load("alice/members", faults=[FAULTS["GET 429 once"][0]]).ok().sleeps in allowed
    # both refusals reach us, or the library's own wait takes the second one
    expected = [56] if REPEATS_DOWNLOADS else [56, 56]
    assert load("alice/folded", faults=[FAULTS["HEAD 429 with a limit"][0]]).ok().sleeps == expected


def test_a_full_disk_is_one_line_and_leaves_no_part(load, published, tmp_path):
    check_error(load("alice/members", limit=100_000), "cannot get model.safetensors of alice/members: .*too large")
    left = [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.stat().st_size > 10_000]
    # an old huggingface_hub keeps the part, under a name that nobody takes for the file, and goes on with it
    assert [path for path in left if not KEEPS_PARTS or path.suffix != ".incomplete"] == []
    assert load("alice/members").ok().value == published["members"].logits


def test_a_download_that_is_killed_leaves_nothing_that_is_taken_for_whole(load, published):
    assert load("alice/members", faults=[Fault(**WEIGHTS_GET, kill=True)]).killed
    assert load("alice/members").ok().value == published["members"].logits


def test_wrong_bytes_that_are_in_the_cache_already_are_fetched_again(load, published, tmp_path):
    load("alice/members").ok()
    (weights,) = (path for path in (tmp_path / "cache").rglob("blobs/*") if path.stat().st_size > 10_000)
    data = weights.read_bytes()
    weights.write_bytes(data[: len(data) // 2].ljust(len(data), b"\0"))
    assert load("alice/members", loader="timm").ok().value != published["members"].logits
    assert load("alice/members").ok().value == published["members"].logits
    assert load("alice/members", loader="timm").ok().value == published["members"].logits


def _spoil_weights(cache):
    (weights,) = (path for path in cache.rglob("blobs/*") if path.stat().st_size > 10_000)
    weights.write_bytes(weights.read_bytes()[:-9].ljust(weights.stat().st_size, b"\1"))
    return weights


def test_wrong_bytes_in_the_cache_are_not_thrown_away_offline(load, published, tmp_path):
    load("alice/members").ok()
    weights = _spoil_weights(tmp_path / "cache")
    message = r"cannot use model.safetensors: the copy in the cache is damaged \(.*\); unset HF_HUB_OFFLINE once"
    check_error(load("alice/members", offline=True), message)
    assert weights.exists()
    assert load("alice/members").ok().value == published["members"].logits


def test_a_mirror_may_have_its_own_tags(hub, load, published):
    files = published["members"].files
    sha1 = hashlib.sha1(files["config.json"]).hexdigest()
    for tag in (sha1, "v1-of-this-mirror"):
        hub.commit("alice/mirror", {**files, "note": tag.encode()})  # a new commit is not in the cache yet
        mirror = Fault(**CONFIG_HEAD, when="always", headers={"ETag": f'"{tag}"'})
        assert load("alice/mirror", faults=[mirror]).ok().value == published["members"].logits
    lie = Fault(**CONFIG_HEAD, when="always", headers={"ETag": f'"{sha1[::-1]}"'})
    hub.commit("alice/mirror", {**files, "note": b"another"})
    check_error(load("alice/mirror", faults=[lie]), NOT_AS_ANNOUNCED)


def test_a_cache_without_links_works_as_well(load, published, tmp_path):
    for _ in range(2):
        assert load("alice/members", links=False).ok().value == published["members"].logits
    assert not any(path.is_symlink() for path in (tmp_path / "cache").rglob("*"))


def test_config_and_weights_are_of_one_commit_whatever_is_pushed_in_between(hub, client, load, published):
    hub.commit("alice/busy", published["members"].files)
    grown = {"config.json": published["members"].files["config.json"].replace(b'"members": 2', b'"members": 3')}
    hub.on_kill = lambda: hub.commit("alice/busy", {**published["other"].files, **grown})
    try:
        reply = load("alice/busy", faults=[Fault(**WEIGHTS_HEAD, kill=True)])
    finally:
        hub.on_kill = client.kill
    assert len(hub.repo("alice/busy").commits) == 3
    assert reply.ok().value == published["members"].logits


# -- names and folders


@pytest.mark.hub_matrix
def test_the_scripts_build_a_checked_model_from_a_hub_id(hub, client, published):
    code = f"""
import torch
from timm_mix.train.loop.build import build_model
from timm_mix.train.settings.model import ModelSettings
settings = ModelSettings(name="hf-hub:alice/folded", pretrained=True)
assert list(build_model(settings, None, device="meta").state_dict()) == list(build_model(settings, None).state_dict())
with torch.no_grad():
    result = build_model(settings, None).eval()({IMAGES}).tolist()
"""
    hub.faults = [Fault(**WEIGHTS_GET, wrong_bytes=True)]  # which timm would not see
    try:
        assert client.run(code).ok().value == published["folded"].logits
    finally:
        hub.faults = []
