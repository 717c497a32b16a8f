"""Headers that name paths: refused before a file is named after them, in one line, and the cache stays clean."""

import re

import pytest
import timm
from huggingface_hub import file_download
from loopback_hub import LoopbackHub
from loopback_hub.faults import Fault
from support.hub_clients import Client

from timm_mix.announced import AnnouncementError, checked_announcements
from timm_mix.hub import save_pretrained

CONFIG, WEIGHTS = "config.json", "model.safetensors"
NAME, ADDRESS = "wanted a plain name of 1 to 128 letters and digits", r"wanted an http\(s\) address"
PLAIN = "timm/test_resnet.r160_in1k"  # where timm gets the weights of the backbone
OURS = "from timm_mix.hub import load_pretrained; result = type(load_pretrained(name, cache_dir=cache)).__name__"
TIMMS = """
import timm, timm_mix
made = timm.create_model("mixmo", backbone="test_resnet", pretrained=True, cache_dir=cache)
result = type(made).__name__
"""
PATHS = {
    "up": '"../../../../evil"',
    "weak": 'W/"../../evil"',
    "absolute": '"{root}/evil"',
    "below": '"a/b"',
    "backslashes": r'"..\..\evil"',
    "drive": '"C:evil"',
    "device": '"nul"',
    "device with an ending": '"COM1.txt"',
    "dots": '".."',
    "dot at the end": '"evil."',
    "home": '"~evil"',
    "long": f'"{"a" * 5000}"',
    "percent": '"%2e%2e%2fevil"',
    "tab": '"a\tb"',
    "letters of another alphabet": '"\xe4\xf6"',
}
NOT_ADDRESSES = {
    "file": "file:///etc/passwd",
    "path of a file": "C:\\evil",
    "no host": "http:///x",
    "no port": "http://localhost:evil/x",
    "other scheme": "ftp://localhost/x",
    "host of brackets": "http://[::1/x",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("announced")
    model = timm.create_model("mixmo", backbone="test_resnet", members=2, num_classes=3)
    plain = timm.create_model("test_resnet", num_classes=1000)
    with LoopbackHub(folder / "hub") as hub:
        for name, net in {"evil/x": model, PLAIN: plain}.items():
            saved = save_pretrained(net, folder / name.replace("/", "_"))
            hub.commit(name, {path.name: path.read_bytes() for path in saved.iterdir()})
        hub.commit("evil/pickle", {CONFIG: hub.repo("evil/x").at("main").files[CONFIG].data})
        with Client(hub, home=folder / "home", imports="import timm, timm_mix.hub") as client:
            yield hub, client


@pytest.fixture
def told(world, tmp_path):
    """What came of a download of which one header is replaced; nothing may have been written but the cache's own."""
    hub, client = world
    cache = tmp_path / "1" / "2" / "3" / "4" / "cache"

    def download(file, headers, *, code=OURS, name="evil/x"):
        headers = {key: value.replace("{root}", str(tmp_path)) for key, value in headers.items()}
        hub.faults = [Fault(path=f"/resolve/.*{file}", when="always", headers=headers)]
        reply = client.run(code, name=name, cache=str(cache), timeout=50)
        hub.faults = []
        files = [path for path in tmp_path.rglob("*") if not path.is_dir() or path.is_symlink()]
        assert [path for path in files if cache not in path.parents] == []
        return reply, sorted(path.name for path in files if ".locks" not in path.parts)

    return download


def refused(reply, kind, line):
    assert re.search(f"^{kind}: .*{line}", reply.error or f"no error, {reply.value}"), reply.error or reply.value
    assert len(reply.error.splitlines()) == 1
    assert len(reply.error) < 400


@pytest.mark.slow
def test_without_a_fault_all_load(told):
    assert told(CONFIG, {})[0].ok().value == "MixMo"
    assert told(CONFIG, {}, code=TIMMS)[0].ok().value == "MixMo"


@pytest.mark.slow
@pytest.mark.parametrize("value", PATHS.values(), ids=PATHS)
def test_an_etag_that_names_a_path_is_refused(value, told):
    reply, files = told(CONFIG, {"ETag": value})
    refused(reply, "HubError", f"cannot get config.json of evil/x: .* gives config.json the ETag .*{NAME}")
    assert files == []


@pytest.mark.slow
@pytest.mark.parametrize("value", PATHS.values(), ids=PATHS)
def test_so_is_the_etag_of_a_large_file(value, told):
    reply, files = told(WEIGHTS, {"X-Linked-ETag": value})
    refused(reply, "HubError", f"cannot get model.safetensors of evil/x: .* the ETag .*{NAME}")
    assert WEIGHTS not in files
    assert not any(name.endswith(".incomplete") for name in files)


@pytest.mark.slow
@pytest.mark.parametrize("value", PATHS.values(), ids=PATHS)
def test_so_is_a_commit(value, told):
    reply, files = told(CONFIG, {"X-Repo-Commit": value.strip('"')})
    refused(reply, "HubError", f"gives config.json the X-Repo-Commit .*{NAME}")
    assert files == []


@pytest.mark.slow
def test_so_is_the_commit_of_a_file_that_is_not_there(told):
    """huggingface_hub makes a file, named after the commit, to remember that."""
    reply, files = told(WEIGHTS, {"X-Repo-Commit": "../../../evil"}, name="evil/pickle")
    refused(reply, "HubError", f"gives model.safetensors the X-Repo-Commit '../../../evil', {NAME}")
    assert "evil" not in files
    reply, _ = told(WEIGHTS, {}, name="evil/pickle")
    refused(reply, "HubError", "there is none; pickled weights are never read")


@pytest.mark.slow
@pytest.mark.parametrize("value", NOT_ADDRESSES.values(), ids=NOT_ADDRESSES)
def test_so_is_a_location_that_is_no_address(value, told):
    reply, files = told(WEIGHTS, {"Location": value})
    said = f"gives model.safetensors the Location .*{ADDRESS}|gives model.safetensors an address that cannot be read"
    if value != "http:///x":  # which huggingface_hub takes for a path on the same host, that has none
        refused(reply, "HubError", f"cannot get model.safetensors of evil/x: .*({said})")
    refused(reply, "HubError", "cannot get model.safetensors of evil/x: ")
    assert WEIGHTS not in files


@pytest.mark.slow
@pytest.mark.parametrize("value", ["many", "-5", "1e3", "9" * 6000, "", "0x10"])
def test_a_size_that_is_no_number_of_bytes_is_one_line_or_no_matter(value, told):
    """The digest of what comes is compared anyway."""
    reply, files = told(WEIGHTS, {"X-Linked-Size": value})
    if reply.error is None:
        assert reply.ok().value == "MixMo"
    else:
        refused(reply, "HubError", "cannot get model.safetensors of evil/x: ")
        assert WEIGHTS not in files
    assert not any(name.endswith(".incomplete") for name in files)


@pytest.mark.slow
def test_bytes_that_no_header_may_have_are_one_line(told):
    reply, files = told(CONFIG, {"ETag": '"a\0b"'})
    refused(reply, "HubError", "cannot get config.json of evil/x: ")
    assert files == []


@pytest.mark.slow
@pytest.mark.parametrize("header", ["X-Linked-ETag", "X-Repo-Commit"])
def test_weights_that_timm_fetches_for_a_model_of_ours_are_looked_at_as_well(header, told):
    reply, files = told(WEIGHTS, {header: "../../../../evil"}, code=TIMMS)
    refused(reply, "AnnouncementError", f"gives model.safetensors the .* '../../../../evil', {NAME}")
    assert files == []


@pytest.mark.slow
def test_a_script_says_it_in_one_line_and_exits_with_2(world, tmp_path):
    hub, client = world
    hub.faults = [Fault(path=f"/resolve/.*{CONFIG}", when="always", headers={"ETag": '"../../evil"'})]
    where = {"HF_HUB_CACHE": str(tmp_path / "a" / "cache")}
    settings = ("--model", "hf-hub:evil/x", "--dataset", "digits", "--output", tmp_path / "out")
    reply = client.script("train_scripts/validate.py", *settings, env=where, timeout=60)
    hub.faults = []
    assert reply.status == 2, reply.stderr
    assert "gives config.json the ETag '../../evil', wanted a plain name" in reply.stderr
    assert len(reply.stderr.strip().splitlines()) == 1


def test_what_others_download_in_this_process_is_theirs(monkeypatch):
    """The check is behind huggingface_hub's function for good, and acts where it was asked for alone."""
    given = file_download.HfFileMetadata(
        commit_hash="3f2a", etag="a/b", location="http://localhost/x", size=1, xet_file_data=None
    )
    monkeypatch.setattr(file_download, "get_hf_file_metadata", lambda url: given)
    with checked_announcements():
        pass
    assert file_download.get_hf_file_metadata("http://localhost/x") is given
    with checked_announcements(), pytest.raises(AnnouncementError, match="localhost gives x the ETag 'a/b'"):
        file_download.get_hf_file_metadata("http://localhost/x")
    assert file_download.get_hf_file_metadata("http://localhost/x") is given
