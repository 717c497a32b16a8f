"""Pre-activation wide ResNets."""

import math

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F


def _count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "parameters"),
    # WRN-28-10: published MixMo code (M = 1). The others: the same layers, counted in _by_hand.
    [
        ("wrn28_10", 36_536_884),
        *((f"wrn16_{k}", None) for k in (2, 4)),
        *((f"wrn28_{k}", None) for k in (2, 3, 4, 5, 6, 7, 8, 12, 14)),
    ],
)
def test_parameters_are_exact(name, parameters):
    model = timm.create_model(name, device="meta")
    depth, k = (int(v) for v in name[3:].split("_"))
    assert _count(model) == (parameters or _by_hand(depth, k, 100)) == _by_hand(depth, k, 100)


def _by_hand(depth, k, classes):
    total, chs = 16 * 27, 16
    for width in (16 * k, 32 * k, 64 * k):
        for block in range((depth - 4) // 6):
            inner = width if block else chs
            total += 2 * inner + inner * width * 9 + 2 * width + width * width * 9
            total += 0 if block or inner == width else inner * width
        chs = width
    return total + 2 * chs + chs * classes + classes


def test_blocks_stride_on_the_second_convolution_padded_right_and_bottom():
    block = timm.create_model("wrn16_2").layer2[0].eval()
    x = torch.randn(2, 32, 8, 8)
    h = F.conv2d(F.relu(block.bn1(x)), block.conv1.weight, padding=1)
    h = F.relu(F.batch_norm(h, block.bn2.running_mean, block.bn2.running_var, block.bn2.weight, block.bn2.bias))
    h = F.conv2d(F.pad(h, (0, 1, 0, 1)), block.conv2.weight, stride=2)
    expected = h + F.conv2d(x, block.shortcut.weight, stride=2)  # the shortcut sees the raw input
    torch.testing.assert_close(block(x), expected)


def test_odd_images_are_accepted():
    assert timm.create_model("wrn16_2", num_classes=7)(torch.randn(2, 3, 33, 31)).shape == (2, 7)


def test_initialisation_is_he_normal_cut_at_two_deviations():
    model = timm.create_model("wrn28_10")
    for weight in (model.layer3[1].conv1.weight, model.fc.weight):
        std = math.sqrt(2 / weight[0].numel())
        assert weight.std().item() == pytest.approx(std, rel=0.02)
        assert weight.abs().max() <= 2 * std / 0.8796 + 1e-6
    assert not model.fc.bias.any()


def test_features_are_those_of_the_stages():
    model = timm.create_model("wrn16_2", features_only=True)
    assert model.feature_info.channels() == [16, 32, 64, 128]
    assert [f.shape[-1] for f in model(torch.randn(1, 3, 32, 32))] == [32, 32, 16, 8]


def test_drop_path_grows_with_depth():
    model = timm.create_model("wrn28_2", drop_path_rate=0.3)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    assert isinstance(model.layer1[0].drop_path, nn.Identity)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [({"depth": 17}, r"depth must be 6n \+ 4 .*got 17"), ({"widen_factor": 0}, "widen_factor must be >= 1, got 0")],
)
def test_wrong_shapes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("wrn16_2", **kwargs)
