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
from loopback_hub import LoopbackHub
from support.hub_clients import Client

from timm_mix.hub import save_pretrained

pytestmark = pytest.mark.slow

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


# what load_pretrained says
NO_WEIGHTS = r"cannot get model\.safetensors of .*: there is none; pickled weights are never read"
NO_CONFIG = r"its config\.json is not a model's config"
UNKNOWN = r"names the architecture .*, which is not registered here"
DAMAGED = r"its model\.safetensors is damaged or no such file"
CONTRADICTION = r"its config\.json contradicts itself: num_classes is 9, the network has 3 classes"


class Harmless:
    """Files of a model that loads, and what is made of them. Every kind below is name -> (files, what is said of them;
    None where the harmless part loads)."""

    def __init__(self, files):
        self.files, self.config, self.weights = files, json.loads(files[CONFIG]), files[WEIGHTS]

    def with_file(self, name, data):
        return {**self.files, name: data}

    def configured(self, **changes):
        return self.with_file(CONFIG, json.dumps({**self.config, **changes}).encode())

    def with_args(self, **args):
        return self.configured(model_args={**self.config["model_args"], **args})

    def with_cfg(self, **values):
        return self.configured(pretrained_cfg={**self.config["pretrained_cfg"], **values})


def pickles(good, mark):
    zipped = io.BytesIO()
    torch.save({"weight": Payload(mark)}, zipped)
    poison, raw_poison = zipped.getvalue(), pickle.dumps({"weight": Payload(mark)})
    config = {CONFIG: good.files[CONFIG]}
    by_custom_load = good.with_cfg(custom_load="hf", hf_hub_filename="evil.bin")
    return {
        "pickle-only": ({**config, "pytorch_model.bin": poison}, NO_WEIGHTS),
        "raw-pickle-only": ({**config, "pytorch_model.bin": raw_poison}, NO_WEIGHTS),
        "pickle-named-pth": ({**config, "model.pth": poison}, NO_WEIGHTS),
        "pickle-named-safetensors": (good.with_file(WEIGHTS, poison), DAMAGED),
        "pickle-beside": ({**good.files, "pytorch_model.bin": poison, "model.pth": poison}, None),
        "pickle-by-name": ({**good.with_cfg(hf_hub_filename="evil.bin"), "evil.bin": poison}, None),
        "pickle-by-custom-load": ({**by_custom_load, "evil.bin": poison}, None),
    }


def addresses(good):
    """They name a file or a repository that is not theirs to name."""
    elsewhere = good.with_cfg(url="http://192.0.2.1/evil.pth", hf_hub_id="evil/other", source="timm")
    tree = {**good.files, "../../x": b"evil", "/abs": b"evil", "a\\..\\..\\x": b"evil"}
    return {
        "file-of-the-reader": (good.with_cfg(file="/etc/passwd"), None),
        "address-elsewhere": (elsewhere, None),
        "checkpoint-of-the-reader": (good.with_args(checkpoint_path="/etc/passwd"), "may not name .*checkpoint_path"),
        "cache-of-the-reader": (good.with_args(cache_dir="/etc"), "may not name cache_dir"),
        "device-of-the-reader": (good.with_args(device="meta"), "may not name .*device"),
        "unknown-architecture": (good.configured(architecture="evilnet"), UNKNOWN),
        "path-as-architecture": (good.configured(architecture="../../etc/passwd"), UNKNOWN),
        "source-as-architecture": (good.configured(architecture="local-dir:/etc"), UNKNOWN),
        "number-as-architecture": (good.configured(architecture=3), UNKNOWN),
        "source-as-backbone": (good.with_args(backbone="hf-hub:evil/other"), "cannot load .*hf-hub:evil/other"),
        "folder-as-backbone": (good.with_args(backbone="local-dir:/etc"), "cannot load .*local-dir:/etc"),
        "paths-in-the-tree": (tree, None),
    }


def configs(good):
    three = {**good.config["model_args"], "num_classes": 3}  # beside num_classes, as timm itself writes it
    twice = b'{"architecture": "resnet18", ' + good.files[CONFIG].lstrip()[1:]
    huge = b" " * (1 << 24) + good.files[CONFIG]
    return {
        "no-architecture": (good.with_file(CONFIG, b"{}"), NO_CONFIG),
        "list-as-config": (good.with_file(CONFIG, b"[]"), NO_CONFIG),
        "bytes-as-config": (good.with_file(CONFIG, b"\xff\xfe\0"), NO_CONFIG),
        "deep-config": (good.with_file(CONFIG, b"[" * 100_000), NO_CONFIG),
        "architecture-twice": (good.with_file(CONFIG, twice), None),  # the last one counts, for timm and for us
        "huge-config": (good.with_file(CONFIG, huge), r"has 16777\d+ bytes, wanted at most"),
        "arguments-as-list": (good.configured(model_args=[1, 2]), "cannot load"),
        "unknown-argument": (good.with_args(evil=1), "cannot load .*unexpected keyword argument 'evil'"),
        "unknown-field": (good.with_cfg(evil=1), "cannot load .*unexpected keyword argument 'evil'"),
        "weights-in-the-config": (good.with_cfg(state_dict={"heads.0.bias": [7, 7, 7]}, source="timm"), None),
        "unchecked-weights": (good.with_args(pretrained_strict=False), "may not name .*pretrained_strict"),
        "arguments-left-out": (good.with_args(kwargs_filter=["num_classes"]), "may not name .*kwargs_filter"),
        "other-classes": (good.configured(num_classes=9), "cannot load .*size mismatch"),
        "other-classes-than-the-arguments": (good.configured(num_classes=9, model_args=three), CONTRADICTION),
        "other-classes-and-layers": (
            good.configured(num_classes=9, model_args=three, pretrained_cfg={"classifier": "core"}),
            CONTRADICTION,
        ),
    }


def sizes(good):
    without_args = {"architecture": "mixmo", "pretrained_cfg": good.config["pretrained_cfg"], "num_classes": 10**12}
    return {
        "absurd-classes": (good.with_args(num_classes=10**12), r"wants num_classes=1000000000000, but .* holds"),
        "absurd-classes-beside": (good.with_file(CONFIG, json.dumps(without_args).encode()), "a far larger network"),
        "infinite-classes": (good.with_args(num_classes=float("inf")), "wants num_classes=inf"),
        "not-a-number-of-classes": (good.with_args(num_classes=float("nan")), "wants num_classes=nan"),
        "many-classes": (good.with_args(num_classes=300_000), r"builds a .*network"),
        "many-members": (good.with_args(members=50_000), r"members must be an integer in 1\.\.1024, got 50000"),
        "more-members-than-weights": (good.with_args(members=900), "builds a far larger network"),
        "giant-backbone": (good.with_args(backbone="vit_giant_patch14_dinov2"), "builds a .*network"),
    }


def damaged_weights(good):
    overlapping = header({"a": tensor(0, 8), "b": tensor(4, 12)}, bytes(12))
    contents = {
        "huge-header": header({}, length=1 << 30),
        "endless-header": header({}, length=(1 << 64) - 1),
        "overlapping-tensors": overlapping,
        "tensor-behind-the-end": header({"a": tensor(0, 1 << 40, (1 << 38,))}, bytes(8)),
        "shape-overflow": header({"a": tensor(0, 8, (1 << 62, 1 << 62))}, bytes(8)),
        "header-no-json": header(b"{" * 1000),
        "truncated": good.weights[:-100],
        "longer": good.weights + bytes(8),
        "five-bytes": good.weights[:5],
        "empty": b"",
    }
    return {name: (good.with_file(WEIGHTS, data), DAMAGED) for name, data in contents.items()}


def other_weights(good):
    other = header({"a": tensor(0, 8)}, bytes(8))
    renamed = good.weights.replace(b'"heads.0.weight"', b'"heads.9.weight"')
    return {
        "other-tensors": (good.with_file(WEIGHTS, other), "builds a network of .* holds 2"),
        "renamed-tensors": (good.with_file(WEIGHTS, renamed), r"cannot load .*heads\.0\.weight"),
    }


def repositories(files, mark):
    """name -> (files, what load_pretrained says; None where the harmless part of it loads)."""
    good = Harmless(files)
    kinds = [pickles(good, mark)] + [make(good) for make in (addresses, configs, sizes, damaged_weights, other_weights)]
    return {name: case for kind in kinds for name, case in kind.items()}


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
TEMPTING = [name for name in NAMES if name.startswith(("pickle", "raw", "file", "folder", "source", "path"))]


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
