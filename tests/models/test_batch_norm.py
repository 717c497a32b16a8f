"""bn_momentum and bn_eps: of our own networks and of every network with members, and remembered in what is saved."""

import pytest
import timm
import torch
from torch import nn

import timm_mix
from timm_mix.hub import save_pretrained

NETS = {
    **{name: {} for name in ("wrn16_2", "preact_resnet18", "pyramidnet164", "resnet18_cifar", "densenet161_cifar")},
    **{name: {} for name in ("shake_resnet26_2x96d", "resnet50e", "se_resnet50", "resnexst50_4x16d", "efficientnetb0")},
    "mixmo": {"backbone": "resnet18"},
    "splitnet": {"backbone": "wrn16_2"},
    "mixmo_efficientnet_b0_m2": {},
}


def batch_norms(model):
    return {(layer.momentum, layer.eps) for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)}


@pytest.mark.parametrize(("name", "settings"), NETS.items())
def test_every_batch_norm_has_them(name, settings):
    model = timm.create_model(name, **settings, bn_momentum=0.03, bn_eps=0.007, device="meta")
    assert batch_norms(model) == {(0.03, 0.007)}


@pytest.mark.parametrize("name", ["wrn16_2", "mixmo", "splitnet"])
def test_a_saved_folder_remembers_them(name, tmp_path):
    settings = {"depth": 10, "num_classes": 5, **({} if name == "wrn16_2" else {"backbone": "wrn16_2"})}
    model = timm.create_model(name, **settings, bn_momentum=0.03, bn_eps=0.5).eval()
    folder = save_pretrained(model, tmp_path / "model")
    again = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = torch.rand(2, 3, 32, 32)
    assert batch_norms(again) == {(0.03, 0.5)}
    assert torch.equal(again(images), model(images))
    if name == "mixmo":
        assert batch_norms(model.fold()) == {(0.03, 0.5)}


def test_without_them_a_network_keeps_its_own():
    assert batch_norms(timm.create_model("wrn16_2", device="meta")) == {(0.1, 1e-5)}


@pytest.mark.parametrize(
    ("name", "settings", "line"),
    [
        ("wrn16_2", {"bn_momentum": 1.5}, r"bn_momentum must be in \[0, 1\], got 1.5"),
        ("wrn16_2", {"bn_eps": 0.0}, "bn_eps must be > 0, got 0.0"),
        (
            "mixmo",
            {"backbone": "test_vit", "bn_eps": 1e-3},
            "networks with batch norm, VisionTransformer has none",
        ),
    ],
)
def test_values_that_no_batch_norm_can_have_are_refused(name, settings, line):
    with pytest.raises(ValueError, match=line):
        timm.create_model(name, **settings)


def test_the_public_name():
    assert timm_mix.models.set_batch_norm(timm.create_model("test_resnet"), bn_eps=0.5).bn1.eps == 0.5
