"""Pre-activation ResNets with their 3x3 stem."""

import pytest
import timm
import torch
from support.networks import batch_norm, stirred
from timm.layers import BatchNormAct2d
from torch.nn import functional as F

from timm_mix.models.preact_resnet_cifar import PreActBasicBlock


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # counted in the published MixMo networks, 200 classes
        ("preact_resnet18", 11_268_616),
        ("preact_resnet18_w2", 44_784_648),
        ("preact_resnet18_w3", 100_537_864),
        ("mixmo_preact_resnet18_m2", 11_372_944),
        ("mixmo_preact_resnet18_w2_m2", 44_991_376),
        ("mixmo_preact_resnet18_w3_m2", 100_846_992),
    ],
)
def test_parameters_equal_the_published_networks(name, parameters):
    model = timm.create_model(name, device="meta")
    assert model.num_classes == 200
    assert sum(p.numel() for p in model.parameters()) == parameters


def _relu_bn(bn, x):
    return F.relu(batch_norm(bn, x))


@pytest.mark.parametrize(("chs", "stride", "size"), [((5, 11), 2, 8), ((5, 11), 2, 7), ((5, 11), 1, 8), ((5, 5), 2, 7)])
def test_blocks_that_change_the_shape_shortcut_the_activated_input(chs, stride, size):
    block = stirred(PreActBasicBlock(*chs, stride, BatchNormAct2d))
    x = torch.randn(2, chs[0], size, size)
    activated = _relu_bn(block.bn1, x)
    out = F.conv2d(activated, block.conv1.weight, stride=stride, padding=1)
    out = F.conv2d(_relu_bn(block.bn2, out), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), out + F.conv2d(activated, block.shortcut.weight, stride=stride))


def test_other_blocks_shortcut_the_raw_input():
    block = stirred(PreActBasicBlock(5, 5, 1, BatchNormAct2d))
    x = torch.randn(2, 5, 7, 7)
    out = F.conv2d(_relu_bn(block.bn1, x), block.conv1.weight, padding=1)
    out = F.conv2d(_relu_bn(block.bn2, out), block.conv2.weight, padding=1)
    assert block.shortcut is None
    torch.testing.assert_close(block(x), x + out)


def test_strides_and_shortcuts_lie_at_the_head_of_the_stages():
    model = timm.create_model("preact_resnet18_w2", device="meta")
    stages = [model.layer1, model.layer2, model.layer3, model.layer4]
    assert [[block.conv1.stride[0] for block in stage] for stage in stages] == [[1, 1], [2, 1], [2, 1], [2, 1]]
    assert [[block.shortcut is not None for block in stage] for stage in stages] == [[True, False]] * 4
    assert timm.create_model("preact_resnet18", device="meta").layer1[0].shortcut is None


def test_nothing_stands_between_the_last_block_and_the_mean():
    model = stirred(timm.create_model("preact_resnet18", num_classes=3))
    image = torch.randn(2, 3, 64, 64)
    x = F.conv2d(image, model.conv1.weight, stride=2, padding=1)
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        x = stage(x)
    assert x.shape == (2, 512, 4, 4)
    assert (x < 0).any()
    torch.testing.assert_close(model(image), F.linear(x.mean((2, 3)), model.fc.weight, model.fc.bias))


def test_initialisation_is_as_published():
    model = timm.create_model("preact_resnet18")
    weight = model.layer3[1].conv1.weight
    std = (2 / weight[0].numel()) ** 0.5
    assert weight.std().item() == pytest.approx(std, rel=0.02)
    assert weight.abs().max() <= 2 * std / 0.8796 + 1e-6
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert model.fc.weight.abs().max() > 0.03  # not cut
    assert not model.fc.bias.any()


def test_odd_images_are_accepted():
    assert timm.create_model("preact_resnet18", num_classes=7)(torch.randn(2, 3, 33, 31)).shape == (2, 7)


def test_features_are_those_of_the_stages():
    model = timm.create_model("preact_resnet18", features_only=True)
    assert model.feature_info.channels() == [64, 128, 256, 512]
    assert model.feature_info.reduction() == [2, 4, 8, 16]
    assert [f.shape[-1] for f in model(torch.randn(1, 3, 64, 64))] == [32, 16, 8, 4]


def test_drop_path_grows_with_depth():
    model = timm.create_model("preact_resnet18", drop_path_rate=0.3)
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"layers": (2, 2, 2)}, r"layers must be four numbers of blocks >= 1, got \(2, 2, 2\)"),
        ({"layers": (2, 2, 2, 0)}, r"layers must be four numbers of blocks >= 1, got \(2, 2, 2, 0\)"),
        ({"widen_factor": 0}, "widen_factor must be >= 1, got 0"),
    ],
)
def test_wrong_shapes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("preact_resnet18", **kwargs)
