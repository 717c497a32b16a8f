"""Repositories made to do harm: nothing of them is executed, everything ends at once, in one clear line."""

import io
import json
import os
import pickle
import re
import struct

import pytest
import timm
import torch
from hub_clients import Client
from loopback_hub import LoopbackHub

from timm_mix.hub import save_pretrained

CONFIG, WEIGHTS = "config.json", "model.safetensors"
LOADERS = {
    "timm": "import timm; timm.create_model('hf-hub:' + name, pretrained=True, cache_dir=cache)",
    "ours": "from timm_mix.hub import load_pretrained; result = type(load_pretrained(name, cache_dir=cache)).__name__",
}
MEMORY = 32 << 30  # bytes of address space; torch alone takes a few


class Payload:
    """Unpickled, it would make the file that says so."""

    def __init__(self, mark):
        self.mark = str(mark)

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


def header(tensors, data=b"", length=None):
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(start, end, shape=(2,)):
    return {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}


def repositories(good, mark):
    """name -> (files, what load_pretrained says; None where the harmless part of it loads)."""
    config = json.loads(good[CONFIG])
    weights = good[WEIGHTS]
    zipped = io.BytesIO()
    torch.save({"weight": Payload(mark)}, zipped)
    poison, raw_poison = zipped.getvalue(), pickle.dumps({"weight": Payload(mark)})
    no_weights = r"cannot get model\.safetensors of .*: there is none; pickled weights are never read"
    unknown = r"names the architecture .*, which is not registered here"
    damaged = r"its model\.safetensors is damaged or no such file"

    def configured(**changes):
        return {**good, CONFIG: json.dumps({**config, **changes}).encode()}

    def with_args(**args):
        return configured(model_args={**config["model_args"], **args})

    def with_cfg(**values):
        return configured(pretrained_cfg={**config["pretrained_cfg"], **values})

    return {
        "pickle-only": ({CONFIG: good[CONFIG], "pytorch_model.bin": poison}, no_weights),
        "raw-pickle-only": ({CONFIG: good[CONFIG], "pytorch_model.bin": raw_poison}, no_weights),
        "pickle-named-pth": ({CONFIG: good[CONFIG], "model.pth": poison}, no_weights),
        "pickle-named-safetensors": ({**good, WEIGHTS: poison}, damaged),
        "pickle-beside": ({**good, "pytorch_model.bin": poison, "model.pth": poison}, None),
        "pickle-by-name": ({**with_cfg(hf_hub_filename="evil.bin"), "evil.bin": poison}, None),
        "pickle-by-custom-load": (
            {**with_cfg(custom_load="hf", hf_hub_filename="evil.bin"), "evil.bin": poison},
            None,
        ),
        "file-of-the-reader": (with_cfg(file="/etc/passwd"), None),
        "address-elsewhere": (with_cfg(url="http://192.0.2.1/evil.pth", hf_hub_id="evil/other"), None),
        "checkpoint-of-the-reader": (with_args(checkpoint_path="/etc/passwd"), "may not name .*checkpoint_path"),
        "cache-of-the-reader": (with_args(cache_dir="/etc"), "may not name cache_dir"),
        "unknown-architecture": (configured(architecture="evilnet"), unknown),
        "path-as-architecture": (configured(architecture="../../etc/passwd"), unknown),
        "source-as-architecture": (configured(architecture="local-dir:/etc"), unknown),
        "number-as-architecture": (configured(architecture=3), unknown),
        "source-as-backbone": (with_args(backbone="hf-hub:evil/other"), "cannot load .*hf-hub:evil/other"),
        "no-architecture": ({**good, CONFIG: b"{}"}, r"its config\.json is not a model's config"),
        "list-as-config": ({**good, CONFIG: b"[]"}, r"its config\.json is not a model's config"),
        "bytes-as-config": ({**good, CONFIG: b"\xff\xfe\0"}, r"its config\.json is not a model's config"),
        "deep-config": ({**good, CONFIG: b"[" * 100_000}, r"its config\.json is not a model's config"),
        "huge-config": ({**good, CONFIG: b" " * (1 << 24) + good[CONFIG]}, r"has 16777\d+ bytes, wanted at most"),
        "arguments-as-list": (configured(model_args=[1, 2]), "cannot load"),
        "unknown-argument": (with_args(evil=1), "cannot load .*unexpected keyword argument 'evil'"),
        "absurd-classes": (with_args(num_classes=10**12), r"wants num_classes=1000000000000, but .* holds"),
        "infinite-classes": (with_args(num_classes=float("inf")), "wants num_classes=inf"),
        "not-a-number-of-classes": (with_args(num_classes=float("nan")), "wants num_classes=nan"),
        "many-classes": (with_args(num_classes=300_000), r"builds a .*network"),
        "many-members": (with_args(members=50_000), "builds a far larger network"),
        "giant-backbone": (with_args(backbone="vit_giant_patch14_dinov2"), "builds a .*network"),
        "huge-header": ({**good, WEIGHTS: header({}, length=1 << 30)}, damaged),
        "endless-header": ({**good, WEIGHTS: header({}, length=(1 << 64) - 1)}, damaged),
        "overlapping-tensors": (
            {**good, WEIGHTS: header({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12))},
            damaged,
        ),
        "tensor-behind-the-end": ({**good, WEIGHTS: header({"a": tensor(0, 1 << 40, (1 << 38,))}, bytes(8))}, damaged),
        "shape-overflow": ({**good, WEIGHTS: header({"a": tensor(0, 8, (1 << 62, 1 << 62))}, bytes(8))}, damaged),
        "header-no-json": ({**good, WEIGHTS: header(b"{" * 1000)}, damaged),
        "truncated": ({**good, WEIGHTS: weights[:-100]}, damaged),
        "longer": ({**good, WEIGHTS: weights + bytes(8)}, damaged),
        "five-bytes": ({**good, WEIGHTS: weights[:5]}, damaged),
        "empty": ({**good, WEIGHTS: b""}, damaged),
        "other-tensors": ({**good, WEIGHTS: header({"a": tensor(0, 8)}, bytes(8))}, "builds a network of .* holds 2"),
        "renamed-tensors": (
            {**good, WEIGHTS: weights.replace(b'"heads.0.weight"', b'"heads.9.weight"')},
            r"cannot load .*heads\.0\.weight",
        ),
        "paths-in-the-tree": ({**good, "../../x": b"evil", "/abs": b"evil", "a\\..\\..\\x": b"evil"}, None),
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """(hub, client, cases, mark): every repository above, and the file that no one may make."""
    folder = tmp_path_factory.mktemp("malicious")
    model = timm.create_model("mixmo", backbone="test_resnet", members=2, num_classes=3)
    good = {path.name: path.read_bytes() for path in save_pretrained(model, folder / "good").iterdir()}
    cases = repositories(good, folder / "executed")
    imports = (
        f"import resource, timm, torch, timm_mix.hub\nresource.setrlimit(resource.RLIMIT_AS, ({MEMORY}, {MEMORY}))"
    )
    with LoopbackHub(folder / "hub") as hub, Client(hub, home=folder / "home", imports=imports) as client:
        for name, (files, _) in cases.items():
            hub.commit(f"evil/{name}", files)
        yield hub, client, cases, folder / "executed"


def test_the_payload_would_be_seen(tmp_path):
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


NAMES = list(repositories({CONFIG: b'{"model_args": {}, "pretrained_cfg": {}}', WEIGHTS: b""}, "x"))
ONE_AFTER_ANOTHER = """
import os, time
from timm_mix.hub import load_pretrained
result = {}
for name in names:
    begin = time.monotonic()
    try:
        line = type(load_pretrained("evil/" + name, cache_dir=os.path.join(cache, name))).__name__
    except Exception as error:
        line = type(error).__name__ + ": " + str(error)
    result[name] = [line, time.monotonic() - begin, os.path.exists(mark)]
"""


@pytest.fixture(scope="module")
def outcomes(world, tmp_path_factory):
    """name -> (what load_pretrained said or made, in how many seconds, whether something has been executed by then)."""
    _, client, _, mark = world
    cache = tmp_path_factory.mktemp("cache")
    return client.run(ONE_AFTER_ANOTHER, names=NAMES, cache=str(cache), mark=str(mark), timeout=200).ok().value


@pytest.mark.parametrize("name", NAMES)
def test_it_is_one_line_at_once_and_nothing_is_executed(world, outcomes, name):
    said, seconds, executed = outcomes[name]
    message = world[2][name][1]
    assert re.search("^MixMo$" if message is None else f"^HubError: .*{message}", said), said
    assert len(said.splitlines()) == 1
    assert seconds < 60  # a network of that size would take hours
    assert not executed


# those that could make timm itself run or open something
TEMPTING = [name for name in NAMES if name.startswith(("pickle", "raw", "file", "source", "path"))]


@pytest.mark.parametrize("name", TEMPTING)
def test_timm_alone_executes_nothing_either(world, tmp_path, name):
    hub, client, _, mark = world
    before = len(hub.requests)
    reply = client.run(LOADERS["timm"], name=f"evil/{name}", cache=str(tmp_path / "cache"), timeout=30)
    assert not reply.killed
    assert not mark.exists()
    assert not any("evil/other" in record.path for record in hub.requests[before:])


def test_weights_come_from_no_other_place_than_the_repository(world, tmp_path):
    hub, client, *_ = world
    before = len(hub.requests)
    client.run(LOADERS["ours"], name="evil/address-elsewhere", cache=str(tmp_path / "cache")).ok()
    paths = [record.path for record in hub.requests[before:]]
    assert paths
    assert all("address-elsewhere" in path for path in paths)


def test_names_in_the_tree_lead_nowhere_outside_the_cache(world, tmp_path):
    """load_pretrained asks for two names only; a whole snapshot is huggingface_hub's to refuse."""
    _, client, *_ = world
    cache = tmp_path / "a" / "b" / "cache"
    snapshot = "from huggingface_hub import snapshot_download; snapshot_download(name, cache_dir=cache)"
    for code in (LOADERS["ours"], snapshot):
        client.run(code, name="evil/paths-in-the-tree", cache=str(cache))
    assert [path for path in tmp_path.rglob("*") if path.is_file() and cache not in path.parents] == []


def test_a_script_says_it_in_one_line_and_exits_with_2(world, tmp_path):
    _, client, *_ = world
    settings = ("--model", "hf-hub:evil/pickle-only", "--dataset", "digits", "--output", tmp_path / "out")
    reply = client.script("train_scripts/validate.py", *settings, timeout=60)
    assert reply.status == 2, reply.stderr
    assert "pickled weights are never read" in reply.stderr
    assert len(reply.stderr.strip().splitlines()) == 1
