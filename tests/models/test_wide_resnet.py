"""Pre-activation wide ResNets."""

import math

import pytest
import timm
import torch
from support.networks import count_parameters
from torch import nn
from torch.nn import functional as F


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
    assert count_parameters(model) == (parameters or _by_hand(depth, k, 100)) == _by_hand(depth, k, 100)


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


@pytest.mark.parametrize("style", ["mixmo", "openmixup"])
def test_odd_images_are_accepted(style):
    assert timm.create_model("wrn16_2", num_classes=7, style=style)(torch.randn(2, 3, 33, 31)).shape == (2, 7)


def _leaky(norm, x):
    return F.leaky_relu(F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-3), 0.1)


def _stirred(model):
    """No bias zero, no statistics trivial."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("bias"):
                tensor.normal_()
            elif "running" in name or ("bn" in name and name.endswith("weight")):
                tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize(("stage", "activated"), [(1, True), (2, False), (3, False)])
def test_openmixups_first_shortcut_alone_sees_the_activated_input(stage, activated):
    """And the stride lies on the first convolution, which pads both sides."""
    model = _stirred(timm.create_model("wrn28_8_openmixup", depth=10, widen_factor=2))
    block, stride = model.get_submodule(f"layer{stage}")[0], 1 if stage == 1 else 2
    x = torch.randn(2, block.conv1.in_channels, 9, 9)
    act = _leaky(block.bn1, x)
    h = F.conv2d(act, block.conv1.weight, block.conv1.bias, stride, padding=1)
    h = F.conv2d(_leaky(block.bn2, h), block.conv2.weight, block.conv2.bias, padding=1)
    shortcut = F.conv2d(act if activated else x, block.shortcut.weight, block.shortcut.bias, stride)
    torch.testing.assert_close(block(x), h + shortcut)


def test_openmixups_wrn28_8_has_the_published_parameters_and_batch_norms():
    """Published AutoMix code: 46,953,937 for two networks of two heads each and a Mix Block of 33,153."""
    model = timm.create_model("wrn28_8_openmixup", device="meta")
    assert 2 * (count_parameters(model) + count_parameters(model.fc)) + 33_153 == 46_953_937
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(norms) == 25
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 1e-3)}
    assert {m.act.negative_slope for m in norms} == {0.1}


def test_openmixups_initialisation_is_he_normal_over_the_fan_out():
    model = timm.create_model("wrn28_8_openmixup", depth=10)
    assert model.layer3[0].conv2.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not any(p.any() for name, p in model.named_parameters() if "bn" not in name and name.endswith("bias"))


def test_initialisation_is_he_normal_cut_at_two_deviations():
    model = timm.create_model("wrn28_10")
    for weight in (model.layer3[1].conv1.weight, model.fc.weight):
        std = math.sqrt(2 / weight[0].numel())
        assert weight.std().item() == pytest.approx(std, rel=0.02)
        assert weight.abs().max() <= 2 * std / 0.8796 + 1e-6
    assert not model.fc.bias.any()


def test_features_are_those_of_the_stages():
    model = timm.create_model("wrn16_2", features_only=True)
    assert model.feature_info.channels() == [32, 64, 128]
    assert model.feature_info.reduction() == [1, 2, 4]
    assert [f.shape[-1] for f in model(torch.randn(1, 3, 32, 32))] == [32, 16, 8]


def test_drop_path_grows_with_depth():
    model = timm.create_model("wrn28_2", drop_path_rate=0.3)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    assert isinstance(model.layer1[0].drop_path, nn.Identity)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 17}, r"depth must be 6n \+ 4 .*got 17"),
        ({"widen_factor": 0}, "widen_factor must be >= 1, got 0"),
        ({"style": "torch"}, "style must be 'mixmo' or 'openmixup', got 'torch'"),
    ],
)
def test_wrong_shapes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("wrn16_2", **kwargs)
