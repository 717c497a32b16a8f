"""The SplitNet paper's EfficientNets: published counts, structure, initialisation, dropout."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from timm.models.efficientnet import EfficientNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timm_mix

pytestmark = pytest.mark.slow

# counted on the published code (the file names it): name -> [S, side of the image, parameters, MACs] of one part
PUBLISHED = json.loads((Path(__file__).parent / "splitnet_efficientnet.json").read_text())["networks"]
CASES = [(name, *row) for name, rows in PUBLISHED.items() for row in rows]


@pytest.mark.parametrize(("name", "split", "size", "parameters", "macs"), CASES, ids=lambda value: str(value))
def test_counts_are_the_published_ones(name, split, size, parameters, macs):
    net = timm.create_model(name, device="meta", **timm_mix.divide(name, split)).eval()
    assert sum(p.numel() for p in net.parameters()) == parameters
    if name.endswith("_cifar"):
        assert net.default_cfg["input_size"] == (3, 32, 32)
        assert net.num_classes == 100
    else:
        assert net.default_cfg["input_size"] == (3, size, size)
    if size <= 224:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            net(torch.empty(1, 3, size, size, device="meta"))
        assert counter.get_total_flops() == 2 * macs


def test_every_published_network_has_its_name():
    assert set(timm.list_models(module="efficientnet_published")) == set(PUBLISHED)
    named = {name for name in timm.list_models(module="splitnet") if "efficientnet" in name}
    archs = (*(f"efficientnetb{n}" for n in range(8)), "efficientnetb0_cifar")
    assert named == {f"splitnet_{arch}_s{split}" for arch in archs for split in (2, 4)}


def _by_hand(table, stem, head, padding, strides, num_classes):
    """B0 with these channels, straight from timm's class."""
    kinds = ("ds_r1_k3_e1", "ir_r2_k3_e6", "ir_r2_k5_e6", "ir_r3_k3_e6", "ir_r3_k5_e6", "ir_r4_k5_e6", "ir_r1_k3_e6")
    blocks = [[f"{kind}_s{s}_c{c}_se0.25"] for kind, s, c in zip(kinds, strides, table, strict=True)]
    net = EfficientNet(
        decode_arch_def(blocks, 1.0),
        num_classes=num_classes,
        num_features=head,
        stem_size=stem,
        round_chs_fn=partial(round_channels, multiplier=1.0, divisor=4),
        act_layer=nn.SiLU,
        norm_layer=partial(nn.BatchNorm2d, eps=1e-3, momentum=0.01),
        pad_type=padding,
    )
    if num_classes == 100:
        net.conv_stem.stride = (1, 1)
    return net


@pytest.mark.parametrize(
    ("name", "padding", "strides", "classes"),
    [
        ("efficientnetb0", "same", (1, 2, 2, 2, 1, 2, 1), 1000),
        ("efficientnetb0_lightnet", "", (1, 2, 2, 2, 1, 2, 1), 1000),
        ("efficientnetb0_cifar", "", (1, 2, 1, 2, 1, 1, 1), 100),
    ],
)
def test_a_part_equals_timms_class_with_the_published_channels(name, padding, strides, classes):
    torch.manual_seed(0)
    part = timm.create_model(name, **timm_mix.divide(name, 2)).eval()
    twin = _by_hand((12, 16, 24, 56, 80, 136, 224), 24, 920, padding, strides, classes)
    x = torch.randn(2, 3, 47, 35)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0  # one step to real statistics: with the initial ones the logits are near 0
    twin.train()(torch.randn(4, 3, 64, 64))
    for ours, theirs in zip(part.state_dict().values(), twin.state_dict().values(), strict=True):
        ours.copy_(theirs)
    expected = twin.eval()(x)
    assert expected.std() > 0.1
    torch.testing.assert_close(part(x), expected, rtol=0, atol=0)
    bn = part.blocks[1][0].bn1
    assert (bn.eps, bn.momentum) == (1e-3, 0.01)


def test_dropout_is_divided_and_the_users_value_wins():
    splitnet = timm.create_model("splitnet_efficientnetb0_s2", device="meta")
    assert [part.drop_rate for part in splitnet.subnets] == [0.2 / math.sqrt(2)] * 2
    assert timm_mix.divide("efficientnetb7", 4)["drop_rate"] == 0.25
    own = timm.create_model("splitnet_efficientnetb0_s2", device="meta", drop_rate=0.3)
    assert [part.drop_rate for part in own.subnets] == [0.3] * 2
    assert timm.create_model("efficientnetb7", device="meta").drop_rate == 0.5


def test_channels_drop_on_the_residual_branches_the_deeper_the_more():
    part = timm.create_model("efficientnetb0_cifar", device="meta", **timm_mix.divide("efficientnetb0_cifar", 4))
    for stage, blocks in enumerate(part.blocks):
        for block in blocks:
            rates = [module.p for module in block.modules() if isinstance(module, nn.Dropout2d)]
            assert rates == ([pytest.approx(0.1 * (stage + 1) / 7)] if block.has_skip else [])
    plain = timm.create_model("efficientnetb0", device="meta")
    assert not any(isinstance(module, nn.Dropout2d) for module in plain.modules())
    both = timm.create_model("efficientnetb0", device="meta", residual_drop_rate=0.7, drop_path_rate=0.1)
    assert [type(module).__name__ for module in both.blocks[1][1].drop_path] == ["Dropout2d", "DropPath"]


def test_channels_drop_whole_and_only_in_training():
    torch.manual_seed(0)
    net = timm.create_model("efficientnetb0_cifar", residual_drop_rate=0.9)
    drop = net.blocks[5][1].drop_path
    kept = drop(torch.ones(3, 500, 2, 2)) != 0
    assert torch.equal(kept.all((2, 3)), kept.any((2, 3)))
    assert kept[..., 0, 0].float().mean() == pytest.approx(1 - 0.9 * 6 / 7, abs=0.05)  # six standard deviations
    assert torch.equal(drop.eval()(torch.ones(1, 5, 2, 2)), torch.ones(1, 5, 2, 2))


@pytest.mark.parametrize(("name", "by_fan_out"), [("efficientnetb0", False), ("efficientnetb0_lightnet", True)])
def test_initialisation_is_the_published_one(name, by_fan_out):
    torch.manual_seed(0)
    net = timm.create_model(name)
    conv, classifier = net.conv_head, net.classifier
    # PyTorch's own is uniform up to 1 / sqrt(fan_in)
    std = math.sqrt(2 / conv.out_channels) if by_fan_out else 1 / math.sqrt(3 * conv.in_channels)
    bound = 1 / math.sqrt(classifier.out_features if by_fan_out else classifier.in_features)
    assert conv.weight.std().item() == pytest.approx(std, rel=0.02)
    assert classifier.weight.abs().max().item() == pytest.approx(bound, rel=0.01)
    assert classifier.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.01)
    assert bool(classifier.bias.abs().sum() == 0) is by_fan_out


def test_features_of_the_small_image_nets_say_their_reduction():
    net = timm.create_model("efficientnetb0_cifar", features_only=True)
    shapes = [tuple(level.shape[1:]) for level in net(torch.zeros(1, 3, 32, 32))]
    assert shapes == [(16, 32, 32), (40, 16, 16), (320, 8, 8)]
    assert net.feature_info.reduction() == [1, 2, 4]
    assert net.feature_info.channels() == [16, 40, 320]


@pytest.mark.parametrize("split", [3, 8])
def test_other_numbers_of_parts_are_refused(split):
    with pytest.raises(
        ValueError, match=f"efficientnetb0 divides into S = 2 or 4 parts, as published, got S = {split}"
    ):
        timm_mix.divide("efficientnetb0", split)


def test_another_number_of_stages_is_refused():
    with pytest.raises(ValueError, match=r"channels must be 7 widths, one per stage, got \(8, 16\)"):
        timm.create_model("efficientnetb0", channels=(8, 16), device="meta")


@pytest.mark.parametrize("arch", ["efficientnetb0", "efficientnetb1_cifar", "splitnet_efficientnetb0_s2"])
@pytest.mark.parametrize(
    ("name", "rate"), [("drop_rate", 1.0), ("drop_path_rate", -0.2), ("residual_drop_rate", 1.5), ("drop_rate", "0.2")]
)
def test_a_rate_that_drops_everything_or_less_than_nothing_is_refused(arch, name, rate):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), got {rate!r}"):
        timm.create_model(arch, device="meta", **{name: rate})
