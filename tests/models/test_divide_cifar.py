"""Division of the networks for small images: every figure of the published tables."""

import json
from math import sqrt
from pathlib import Path

import pytest
import timm
import torch
from torch.utils.flop_counter import FlopCounterMode

import timm_mix
from timm_mix.models.divide.cifar import ARCHS

TABLE = json.loads(Path(__file__).with_name("splitnet_cifar.json").read_text())["networks"]


def _dead_shortcuts(part):
    """Parameters of shortcuts that the published Shake-Shake builds in every block of equal width, and never runs."""
    width = part.get("base_width", 96)
    return 3 * sum(w**2 + 2 * w for w in (width, 2 * width, 4 * width))


def _multiply_adds(function, *args):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        out = function(*args)
    assert counter.get_total_flops() % 2 == 0
    return counter.get_total_flops() // 2, out


def test_the_table_holds_every_architecture():
    assert set(TABLE) == set(ARCHS)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ARCHS)
def test_parts_have_the_published_size_and_cost(arch):
    for split in TABLE[arch]["100"]:
        part = timm_mix.divide(arch, int(split))
        model = timm.create_model(arch, device="meta", **part).eval()
        body, features = _multiply_adds(model.forward_features, torch.zeros(1, 3, 32, 32, device="meta"))
        for classes in (100, 10):
            model.reset_classifier(classes)
            head, _ = _multiply_adds(model.forward_head, features)
            parameters = sum(p.numel() for p in model.parameters())
            if arch.startswith("shake"):
                parameters += _dead_shortcuts(part)
            assert [parameters, body + head] == TABLE[arch][str(classes)][split], (split, classes)


@pytest.mark.parametrize(
    ("arch", "split", "kwargs"),
    [
        ("resnet110", 2, {"stem_width": 12, "channels": (12, 24, 48)}),
        ("resnet164", 16, {"stem_width": 4, "channels": (4, 8, 16)}),
        ("se_resnet164", 4, {"stem_width": 8, "channels": (8, 16, 32)}),
        ("resnext29_16x64d", 4, {"cardinality": 4}),
        ("wide_resnet28_10", 2, {"channels": (112, 224, 448)}),
        ("wide_resnet16_12", 8, {"channels": (64, 128, 256)}),
        ("wide_resnet52_8", 2, {"channels": (96, 192, 384)}),
        ("densenet190", 2, {"growth_rate": 28}),
        ("shake_resnet26_2x96d", 16, {"base_width": 24}),
        ("pyramidnet272", 4, {"alpha": 100.0, "shakedrop_rate": 0.25}),
        ("pyramidnet164", 1, {}),
    ],
)
def test_division_follows_the_published_rules(arch, split, kwargs):
    assert timm_mix.divide(arch, split) == kwargs


@pytest.mark.parametrize(
    ("arch", "split", "message"),
    [
        ("resnet110", 3, "resnet110 divides into S = 2, 4, 8 or 16 parts, got S = 3"),
        ("se_resnet110", 8, "se_resnet110 divides into S = 2 or 4 parts, got S = 8"),
        ("shake_resnet26_2x96d", 6, "shake_resnet26_2x96d divides into S = 2, 4, 8 or 16 parts, got S = 6"),
        ("resnext29_8x64d", 3, "resnext29_8x64d divides its 8 groups: S must divide 8, got S = 3"),
        ("densenet190", 1601, "densenet190 divides into at most 1600 parts, got S = 1601"),
        ("wide_resnet22_10", 2, "no division rule for 'wide_resnet22_10'"),
    ],
)
def test_what_cannot_be_divided_is_refused(arch, split, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.divide(arch, split)


@pytest.mark.parametrize("split", [2, 4, 8])
def test_dropout_before_the_classifier_is_divided_by_the_number_of_parts(split):
    assert timm.create_model("wide_resnet40_10", device="meta").drop_rate == 0.1
    assert timm_mix.divide("wide_resnet40_10", split)["drop_rate"] == 0.1 / split


@pytest.mark.parametrize("split", [2, 4, 8])
def test_shakedrop_is_divided_by_the_root_of_the_number_of_parts(split):
    part = timm_mix.divide("pyramidnet164", split)
    assert part["shakedrop_rate"] == pytest.approx(0.5 / sqrt(split))
    model = timm.create_model("pyramidnet164", device="meta", **part)
    assert model.layer3[-1].shakedrop.p == pytest.approx(0.5 / sqrt(split))


def test_a_value_of_the_user_wins():
    model = timm.create_model("splitnet_wide_resnet40_10_s2", drop_rate=0.3, device="meta")
    assert [part.drop_rate for part in model.subnets] == [0.3, 0.3]
    model = timm.create_model("splitnet_pyramidnet164_s2", shakedrop_rate=0.0, device="meta")
    assert not any(type(m).__name__ == "ShakeDrop" for m in model.modules())


@pytest.mark.parametrize("arch", ARCHS)
def test_named_splitnets_come_in_two_and_four_parts(arch):
    assert [timm.is_model(f"splitnet_{arch}_s{split}") for split in (2, 4)] == [True, True]


def test_eight_parts_are_reached_through_the_generic_name():
    model = timm.create_model("splitnet", backbone="resnet110", split=8, num_classes=100, device="meta")
    assert sum(p.numel() for p in model.parameters()) == 8 * TABLE["resnet110"]["100"]["8"][0]
