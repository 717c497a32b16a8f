"""Tags: weights that come with the package, registered where they lie and nowhere else."""

import json
import logging
import pickle
import runpy
import shutil

import pytest
import timm
import torch
from support.registry import DIGITS, registered, save_weights

from timm_mix import places
from timm_mix.models import wide_resnet_cifar
from timm_mix.models.weights import shipped

pytestmark = pytest.mark.slow

ARCHS = ["mixmo_wrn16_2_m2", "splitnet_wrn16_4_s2", "wrn16_2"]
MEAN = (0.125, 0.25, 0.5)
NAMES = ["mixmo_wrn16_2_m2.digits", "splitnet_wrn16_4_s2.digits", "wrn16_2.mixmo_m2_digits", "wrn16_2.automix_digits"]
GREY = {"input_size": (1, 24, 24), "mean": (0.5,), "std": (0.25,)}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network is not needed")

    monkeypatch.setattr("socket.socket.connect", refuse)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("weights")
    for name in NAMES:
        save_weights(place, name)
    return place


@pytest.fixture
def digits(folder):
    with registered(folder):
        yield folder


def _cfg(arch):
    return timm.create_model(arch, device="meta").pretrained_cfg


def _generic():
    return timm.create_model("mixmo", backbone="wrn16_2", device="meta").pretrained_cfg


def test_tags_with_weights_are_listed_and_no_others(digits):
    assert timm.list_pretrained(["*wrn16*"]) == NAMES[:2] + sorted(NAMES[2:])
    assert timm.list_pretrained("*mixmo*wrn*") + timm.list_pretrained("wrn*mixmo*") == [NAMES[0], NAMES[2]]
    with pytest.raises(RuntimeError, match=r"Invalid pretrained tag \(recursivemix_digits\) for wrn16_2"):
        timm.create_model("wrn16_2.recursivemix_digits", pretrained=True)


@pytest.mark.parametrize("name", NAMES)
def test_a_tag_gives_its_weights_and_what_they_were_trained_for(digits, name):
    model = timm.create_model(name, pretrained=True)
    saved = timm.create_model(f"local-dir:{digits / name}", pretrained=True).state_dict()
    assert model.state_dict().keys() == saved.keys()
    assert all(torch.equal(tensor, saved[key]) for key, tensor in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32
    cfg = model.pretrained_cfg
    assert (model.num_classes, cfg["label_names"]) == (10, tuple(DIGITS))
    assert (cfg["architecture"], cfg["tag"]) == tuple(name.split("."))
    assert cfg["hf_hub_id"] == f"timm-mix/{name}"


@pytest.mark.parametrize("name", NAMES[:3])
def test_pretrained_weights_take_other_heads_channels_and_features(digits, name):
    full = timm.create_model(name, pretrained=True).state_dict()
    other = timm.create_model(name, pretrained=True, num_classes=7)
    heads = {key for key, tensor in other.state_dict().items() if tensor.shape != full[key].shape}
    classifier = other.pretrained_cfg["classifier"]
    classifier = (classifier,) if isinstance(classifier, str) else classifier
    assert heads == {f"{layer}.{part}" for layer in classifier for part in ("weight", "bias")}
    assert all(torch.equal(tensor, full[key]) for key, tensor in other.state_dict().items() if key not in heads)
    grey = timm.create_model(name, pretrained=True, in_chans=1).state_dict()
    changed = [key for key in full if grey[key].shape != full[key].shape]
    convs = other.pretrained_cfg["first_conv"]
    assert changed == [f"{conv}.weight" for conv in ((convs,) if isinstance(convs, str) else convs)]
    for key in changed:  # timm's way to grey, in the precision of the file
        assert torch.equal(grey[key], full[key].sum(1, keepdim=True).half().float())


@pytest.mark.parametrize("name", NAMES[:3])
def test_pretrained_features_are_those_of_the_whole_model(digits, name):
    whole = timm.create_model(name, pretrained=True).eval()
    extractor = timm.create_model(name, pretrained=True, features_only=True).eval()
    x = torch.randn(1, 3, 32, 32)
    maps = whole.forward_intermediates(x, intermediates_only=True)
    assert len(maps) == 3
    for own, extracted in zip(maps, extractor(x), strict=True):
        torch.testing.assert_close(extracted, own)


@pytest.mark.parametrize("arch", ARCHS)
def test_weights_for_other_data_leave_the_untagged_architecture_as_it_is(folder, tmp_path, arch):
    with registered(tmp_path):
        without = _cfg(arch)
    with registered(folder):
        assert _cfg(arch) == without
        assert timm.create_model(arch, device="meta").num_classes == 100
        assert not timm.models.is_model_pretrained(arch)
        with pytest.raises(RuntimeError, match=f"No pretrained weights exist for {arch}"):
            timm.create_model(arch, pretrained=True)


def test_weights_for_the_architectures_own_data_are_what_pretrained_means(tmp_path):
    with registered(tmp_path):
        before, of_mixmo = _cfg("wrn16_2"), _generic()
    second = save_weights(tmp_path, "wrn16_2.recursivemix_cifar100", seed=2, num_classes=100, mean=MEAN)
    save_weights(tmp_path, "wrn16_2.automix_cifar100", seed=3, num_classes=100)
    save_weights(tmp_path, "wrn16_2.mixmo_m2_digits")
    with registered(tmp_path):
        model = timm.create_model("wrn16_2", pretrained=True)
        assert model.pretrained_cfg["tag"] == "recursivemix_cifar100"  # the first in TAGS that is there
        assert model.pretrained_cfg["mean"] == MEAN
        assert torch.equal(model.conv1.weight, second["conv1.weight"].float())
        assert timm.models.is_model_pretrained("wrn16_2")
        assert (_cfg("wrn16_2"), _generic()) == (before, of_mixmo)  # without weights all is as before
        assert timm.list_pretrained("wrn16_2*") == [
            f"wrn16_2.{tag}" for tag in ("automix_cifar100", "mixmo_m2_digits", "recursivemix_cifar100")
        ]


def test_an_entrypoint_with_weights_looks_as_it_did(tmp_path):
    save_weights(tmp_path, "wrn16_2.automix_cifar100", num_classes=100)
    with registered(tmp_path):
        create = timm.models.model_entrypoint("wrn16_2")
        assert create is wide_resnet_cifar.wrn16_2
        assert (create.__name__, create.__module__) == ("wrn16_2", wide_resnet_cifar.__name__)
        assert pickle.loads(pickle.dumps(create)) is create
        assert create.__wrapped__.__doc__ == create.__doc__
        shipped.register_weights(tmp_path)
        assert not hasattr(timm.models.model_entrypoint("wrn16_2").__wrapped__, "__wrapped__")  # not twice


def test_grey_weights_make_a_grey_model(tmp_path):
    save_weights(tmp_path, "wrn16_2.automix_digits")
    config = json.loads((tmp_path / "wrn16_2.automix_digits" / "config.json").read_text())
    config["pretrained_cfg"] |= GREY
    (tmp_path / "wrn16_2.automix_digits" / "config.json").write_text(json.dumps(config))
    with registered(tmp_path):
        cfg = timm.get_pretrained_cfg("wrn16_2.automix_digits")
        assert {key: getattr(cfg, key) for key in GREY} == GREY
        assert timm.create_model("wrn16_2.automix_digits").in_chans == 1


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_folder_that_is_not_whole_is_not_registered(folder, tmp_path, missing):
    shutil.copytree(folder / NAMES[0], tmp_path / NAMES[0])
    (tmp_path / NAMES[0] / missing).unlink()
    with registered(tmp_path):
        assert timm.list_pretrained("*mixmo_wrn*") == []


def test_once_published_a_tag_needs_its_config_only(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "PUBLISHED", True)
    shutil.copytree(folder / NAMES[0], tmp_path / NAMES[0])
    (tmp_path / NAMES[0] / "model.safetensors").unlink()
    with registered(tmp_path):
        cfg = timm.get_pretrained_cfg(NAMES[0])
        assert (cfg.file, cfg.hf_hub_id) == (None, f"timm-mix/{NAMES[0]}")
        assert timm.list_pretrained("*mixmo_wrn*") == [NAMES[0]]


@pytest.mark.parametrize("text", ["{", "[]", '{"num_classes": 10}'])
def test_a_damaged_config_is_named_and_left_out(folder, tmp_path, caplog, text):
    shutil.copytree(folder / NAMES[0], tmp_path / NAMES[0])
    (tmp_path / NAMES[0] / "config.json").write_text(text)
    with caplog.at_level(logging.WARNING), registered(tmp_path):
        assert timm.list_pretrained("*mixmo_wrn*") == []
    [line] = caplog.messages
    assert f"{NAMES[0]} is damaged" in line
    assert "fetch it anew" in line


def test_the_organisation_is_the_environments(monkeypatch):
    assert shipped.ORGANISATION == "timm-mix"
    monkeypatch.setenv("TIMM_MIX_HUB_ORG", "somebody")
    assert runpy.run_path(shipped.__file__)["hub_id"]("wrn16_2.x") == "somebody/wrn16_2.x"
    monkeypatch.setenv("TIMM_MIX_HUB_ORG", "")
    assert runpy.run_path(shipped.__file__)["ORGANISATION"] == "timm-mix"


def test_an_installed_package_has_its_weights_inside(tmp_path, monkeypatch):
    monkeypatch.setattr(places, "PACKAGE", tmp_path / "timm_mix")
    (tmp_path / "model_cards").mkdir()  # of somebody else's project
    assert shipped.shipped_folder() == tmp_path / "timm_mix" / "_weights"
    (tmp_path / "train_scripts").mkdir()
    assert shipped.shipped_folder() == tmp_path / "model_cards" / "weights"


def test_a_folded_network_has_the_ensembles_classes_and_no_weights_of_the_backbone(tmp_path):
    save_weights(tmp_path, "wrn16_2.recursivemix_cifar100", num_classes=100)
    save_weights(tmp_path, NAMES[0])
    with registered(tmp_path):
        ensemble = timm.create_model(NAMES[0], pretrained=True)
        cfg = ensemble.fold().pretrained_cfg
        assert cfg["label_names"] == tuple(DIGITS)
        assert not {"tag", "file", "hf_hub_id"} & set(cfg)
        ensemble.reset_classifier(5)
        assert "label_names" not in ensemble.fold().pretrained_cfg


def test_every_declared_name_is_an_architecture_with_a_tag_of_its_own():
    for arch, tags in shipped.TAGS.items():
        assert timm.is_model(arch)
        assert len(set(tags)) == len(tags)
        assert all(shipped.is_declared(f"{arch}.{tag}") for tag in tags)
    assert not shipped.is_declared("wrn16_2")
    assert not shipped.is_declared("resnet18.a1_in1k")
