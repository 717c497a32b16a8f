"""Networks with members fetch the plain weights of their backbone from the Hub, and convert them."""

import pytest
import timm
import torch
from loopback_hub import LoopbackHub
from support.hub_clients import Client

from timm_mix.hub import save_pretrained

pytestmark = pytest.mark.slow

IMAGES = "torch.linspace(-1, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64)"
LOAD = f"""
import timm, torch, timm_mix
torch.manual_seed(0)
model = timm.create_model(name, pretrained=True, cache_dir=cache, **more).eval()
with torch.no_grad():
    features = model.forward_features({IMAGES})
    result = [model.num_classes, model({IMAGES}).tolist(), features.flatten(1).tolist()]
"""


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    return timm.create_model("resnet18").eval()


@pytest.fixture(scope="module")
def hub(plain, tmp_path_factory):
    folder = save_pretrained(plain, tmp_path_factory.mktemp("plain") / "resnet18")
    with LoopbackHub(tmp_path_factory.mktemp("hub")) as hub:
        for tag in ("a1_in1k", "tv_in1k"):
            hub.commit(f"timm/resnet18.{tag}", {path.name: path.read_bytes() for path in folder.iterdir()})
        yield hub


@pytest.fixture
def load(hub, tmp_path):
    with Client(hub, home=tmp_path / "home", xet=False, imports="import timm, torch, timm_mix") as client:
        yield lambda name, **more: client.run(LOAD, name=name, cache=str(tmp_path / "cache"), more=more)


def asked(hub, before):
    return {
        record.path.split("/resolve")[0].strip("/") for record in hub.requests[before:] if "/resolve/" in record.path
    }


@pytest.mark.parametrize(
    ("name", "more", "tag"),
    [
        ("mixmo_resnet18_m2", {}, "a1_in1k"),
        ("mixmo_resnet18_m3.tv_in1k", {}, "tv_in1k"),
        ("mixmo", {"backbone": "resnet18.tv_in1k", "members": 3}, "tv_in1k"),
        ("mixmo", {"backbone": "resnet18"}, "a1_in1k"),
    ],
)
@torch.no_grad()
def test_a_pretrained_mixmo_is_the_plain_networks_classifier(name, more, tag, hub, load, plain):
    before = len(hub.requests)
    classes, logits, _ = load(name, **more).ok().value
    assert asked(hub, before) == {f"timm/resnet18.{tag}"}
    assert classes == 1000
    wanted = plain(eval(IMAGES))
    assert (torch.tensor(logits) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@torch.no_grad()
def test_at_another_number_of_classes_the_features_are_the_plain_networks(load, plain):
    classes, logits, features = load("mixmo_resnet18_m2", num_classes=37).ok().value
    assert (classes, len(logits[0])) == (37, 37)
    wanted = plain.forward_features(eval(IMAGES)).flatten(1)
    assert (torch.tensor(features) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("splitnet_resnet18_s2", {}),
        ("splitnet_resnet18_s2.a1_in1k", {}),
        ("splitnet", {"backbone": "resnet18.a1_in1k"}),
    ],
)
def test_the_parts_of_a_pretrained_splitnet_start_from_the_plain_network(name, more, hub, load, plain):
    before = len(hub.requests)
    classes, features, _ = load(name, **more).ok().value
    assert asked(hub, before) == {"timm/resnet18.a1_in1k"}
    assert (classes, len(features[0])) == (0, 2 * 352)
    assert load(name, num_classes=37, **more).ok().value[0] == 37


@torch.no_grad()
def test_whole_parts_are_the_plain_network_head_included(load, plain):
    more = {"backbone": "resnet18.a1_in1k", "divide": False}
    for name, kwargs in (("splitnet", more), ("splitnet_resnet18_s2", {"divide": False})):
        classes, logits, _ = load(name, **kwargs).ok().value
        wanted = plain(eval(IMAGES))
        assert classes == 1000
        assert (torch.tensor(logits) - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_a_tag_that_is_not_there_is_one_line(load):
    error = load("mixmo_resnet18_m2.no_such_tag").error
    assert error == "RuntimeError: Invalid pretrained tag (no_such_tag) for mixmo_resnet18_m2."
    error = load("mixmo", backbone="resnet18.no_such_tag").error
    assert error.startswith("ValueError: backbone must be a model name that timm knows")
