"""Entrypoints that a table makes."""

import inspect
import pickle

import pytest
import timm

from timm_mix.models import (
    densenet_cifar,
    efficientnet_published,
    mixmo,
    narrow,
    preact_resnet_cifar,
    pyramidnet_cifar,
    resnet_cifar,
    resnet_e,
    resnexst,
    se_resnet,
    shake_shake_cifar,
    splitnet,
    wide_resnet_cifar,
)
from timm_mix.models.weights.shipped import untrained_cfg

MODULES = [mixmo, splitnet, wide_resnet_cifar, preact_resnet_cifar]
MODULES += [densenet_cifar, pyramidnet_cifar, resnet_cifar, shake_shake_cifar]
MODULES += [resnet_e, se_resnet, resnexst, efficientnet_published, narrow]
SIZES = (2, 3, 4, 5, 6, 7, 8, 10, 12, 14)
BACKBONES = [
    *("wrn16_2", *(f"wrn28_{k}" for k in SIZES), "preact_resnet18", "preact_resnet18_w2", "preact_resnet18_w3"),
    *("resnet18", "resnet50", "resnext50_32x4d", "efficientnet_b0", "convnext_tiny", "swin_tiny_patch4_window7_224"),
]


def test_every_network_of_the_papers_figures_has_its_name():
    wide = {"wrn16_2", "wrn16_4", *(f"wrn28_{k}" for k in SIZES), "wrn28_8_openmixup"}
    assert set(timm.list_models(module="wide_resnet_cifar")) == wide
    expected = {f"mixmo_{backbone}_m{members}" for backbone in BACKBONES for members in (2, 3, 4)}
    assert set(timm.list_models(module="mixmo")) == {"mixmo", *expected}


@pytest.mark.parametrize("module", MODULES, ids=lambda m: m.__name__.rpartition(".")[2])
def test_entrypoints_look_as_if_written_by_hand(module):
    names = timm.list_models(module=module.__name__.rpartition(".")[2])
    assert set(names) == set(module.default_cfgs)
    for name in names:
        entrypoint = timm.models.model_entrypoint(name)
        assert entrypoint is getattr(module, name)
        assert (entrypoint.__name__, entrypoint.__qualname__, entrypoint.__module__) == (name, name, module.__name__)
        assert entrypoint.__doc__
        assert "pretrained" in inspect.signature(entrypoint).parameters
        assert name in module.__all__
        assert timm.get_pretrained_cfg(name).architecture == name
    assert pickle.loads(pickle.dumps(entrypoint)) is entrypoint


@pytest.mark.parametrize("backbone", BACKBONES)
def test_each_name_builds_what_it_says(backbone):
    plain = untrained_cfg(backbone)
    for members in (2, 3, 4):
        name = f"mixmo_{backbone}_m{members}"
        cfg = untrained_cfg(name)
        assert (cfg.input_size, cfg.mean, cfg.num_classes) == (plain.input_size, plain.mean, plain.num_classes)
        assert cfg.first_conv == tuple(f"encoders.{i}" for i in range(members))
    model = timm.create_model(f"mixmo_{backbone}_m3", device="meta")
    assert (model.backbone, model.num_members, len(model.encoders), len(model.heads)) == (backbone, 3, 3, 3)


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES[2:], ids=lambda m: m.__name__.rpartition(".")[2])
def test_every_plain_network_takes_the_number_of_classes_of_its_cfg(module):
    """As a saved folder says it; timm leaves the head out where they differ, and says so to nobody."""
    names = [name for name in timm.list_models() if timm.model_entrypoint(name).__module__ == module.__name__]
    assert names
    for name in names:
        model = timm.create_model(name, device="meta", pretrained_cfg_overlay={"num_classes": 5})
        assert model.num_classes == 5, name
