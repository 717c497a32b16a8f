"""The ImageNet networks of SplitNet's published code: size, cost, arithmetic, regularisation, division."""

import json
import math
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from support.networks import fixed_images
from timm.layers import DropBlock2d, LayerNorm2d, SEModule
from timm.layers.drop import drop_block_2d
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import timm_mix
from timm_mix.models import resnet_e, resnexst, se_resnet
from timm_mix.models.divide import imagenet

pytestmark = pytest.mark.slow

TABLE = json.loads(Path(__file__).with_name("splitnet_imagenet.json").read_text())["nets"]
SIZES = [(arch, int(split), *row) for arch, rows in TABLE.items() for split, row in rows.items()]
TIMM_HAS = {"resnest101e", "resnest200e", "resnest269e"}
# dropout in front of the classifier of the undivided networks, published code of arXiv:2011.14660
DROP_RATES = {
    "resnet101e": 0.1,
    "resnexst101_8x32d": 0.1,
    **dict.fromkeys(("se_resnet50", "se_resnet50_b", "se_resnet101", "se_resnet152", "senet113", "senet154e"), 0.2),
    **dict.fromkeys(("se_resnext101_64x4d", "se_resnext101_64x4d_b"), 0.2),
}
SMALL = {"layers": (1, 1, 2, 1), "num_classes": 13}
NARROW = {**SMALL, "channels": (16, 32, 64, 128), "stem_width": 16}


def _part(arch, split, **kwargs):
    return timm.create_model(arch, **{**timm_mix.divide(arch, split), **kwargs})


@pytest.mark.parametrize(("arch", "split", "params", "macs"), SIZES, ids=lambda v: str(v))
def test_a_part_has_the_published_size_and_cost(arch, split, params, macs):
    part = _part(arch, split, device="meta").eval()
    assert sum(p.numel() for p in part.parameters()) == params
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        part(torch.empty(1, 3, 224, 224, device="meta"))
    assert counter.get_total_flops() == 2 * macs


@pytest.mark.parametrize(
    ("name", "size", "macs"),
    [
        ("splitnet_se_resnext101_64x4d_s2", 416, 60_691_169_280),
        ("splitnet_se_resnext101_64x4d_b_s2", 320, 38_119_489_536),
    ],
)
def test_the_released_networks_cost_the_same_at_their_own_resolution(name, size, macs):
    """Multiply-accumulates of both parts, from the same source as the table."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        timm.create_model(name, device="meta").eval()(torch.empty(1, 3, size, size, device="meta"))
    assert counter.get_total_flops() == 2 * macs


def test_every_published_network_is_registered_whole_and_in_2_and_4_parts():
    names = set(TABLE) - TIMM_HAS
    assert set(imagenet.NAMES) == names
    for name in names:
        assert timm.get_pretrained_cfg(name).first_conv == "conv1.0"
        for split in (2, 4):
            first = tuple(f"subnets.{i}.conv1.0" for i in range(split))
            assert timm.get_pretrained_cfg(f"splitnet_{name}_s{split}").first_conv == first


# --- the arithmetic, against the construction from timm's classes

STAGES = {1: (64, 128, 256, 512), 2: (44, 88, 176, 352)}
SE = {"attn_layer": partial(SEModule, rd_ratio=1 / 16, rd_divisor=1)}
DEEP = {"stem_type": "deep", "num_classes": 13}


def _ceil_pool(model):
    model.maxpool = nn.MaxPool2d(3, 2, ceil_mode=True)
    return model


def _flat_stem(model, width, inner):
    model.conv1[6] = nn.Conv2d(width, width, 3, 1, 1, bias=False)
    model.bn1 = nn.BatchNorm2d(width)
    model.layer1[0].conv1 = nn.Conv2d(width, inner, 1, bias=False)
    model.layer1[0].downsample[1] = nn.Conv2d(width, model.layer1[0].conv3.out_channels, 1, bias=False)
    return _ceil_pool(model)


def _resnexst_part(groups):
    model = ResNet(
        ResNestBottleneck,
        (3, 4, 6, 3),
        avg_down=True,
        cardinality=groups,
        base_width=16,
        block_args={"radix": 2, "avd": True},
        **DEEP,
    )
    for stage in (model.layer2, model.layer3, model.layer4):
        for block in stage[1:]:
            block.avd_last = nn.AvgPool2d(3, 1, padding=1)
    return _ceil_pool(model)


L50, L101 = (3, 4, 6, 3), (3, 4, 23, 3)
GROUPED = {"avg_down": True, "cardinality": 32, "base_width": 4}
IN_TWO = {
    "resnet50e": lambda: ResNet(Bottleneck, L50, stem_width=44, channels=STAGES[2], avg_down=True, **DEEP),
    "wide_resnet50_2e": lambda: ResNet(Bottleneck, L50, base_width=64, avg_down=True, **DEEP),
    "resnext50e_32x4d": lambda: ResNet(Bottleneck, L50, **{**GROUPED, "cardinality": 16}, **DEEP),
    "se_resnet50": lambda: _flat_stem(
        ResNet(Bottleneck, L50, stem_width=44, channels=STAGES[2], avg_down=True, block_args=SE, **DEEP), 44, 44
    ),
    "se_resnext101_64x4d": lambda: _flat_stem(ResNet(Bottleneck, L101, block_args=SE, **GROUPED, **DEEP), 64, 128),
    "se_resnext101_64x4d_b": lambda: _ceil_pool(ResNet(Bottleneck, L101, block_args=SE, **GROUPED, **DEEP)),
    "senet113": lambda: _ceil_pool(
        ResNet(Bottleneck, (3, 8, 23, 3), block_reduce_first=2, block_args=SE, **GROUPED, **DEEP)
    ),
    "senet154e": lambda: _ceil_pool(
        ResNet(
            *(Bottleneck, (3, 8, 36, 3)),
            **{"block_reduce_first": 2, "down_kernel_size": 3, "block_args": SE, "cardinality": 32, "base_width": 4},
            **DEEP,
        )
    ),
    "resnexst50_4x16d": lambda: _resnexst_part(2),
}


def _scramble(model):
    """Norms as after training: no zero-initialised branch may hide a difference."""
    rng = torch.Generator().manual_seed(2)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                *((module.weight.data, 0.5, 1.0), (module.bias.data, -0.2, 0.2)),
                *((module.running_mean, -0.2, 0.2), (module.running_var, 0.5, 1.5)),
            ):
                tensor.uniform_(low, high, generator=rng)
    return model.eval()


@pytest.mark.parametrize("arch", IN_TWO)
@torch.no_grad()
def test_a_part_computes_what_timms_classes_compute(arch):
    part = _scramble(_part(arch, 2, num_classes=13))
    reference = IN_TWO[arch]()
    state = zip(reference.state_dict(), part.state_dict().values(), strict=True)
    reference.load_state_dict(dict(state))
    x = fixed_images(1, 3, 64, 64)
    out = part(x)
    assert out.std() > 1e-4
    torch.testing.assert_close(out, reference.eval()(x), rtol=0, atol=0)


def test_se_resnet50_b_is_se_resnet50_in_evaluation():
    b, plain = timm.create_model("se_resnet50_b", **NARROW), timm.create_model("se_resnet50", **NARROW)
    plain.load_state_dict(_scramble(b).state_dict(), strict=True)
    x = fixed_images(2, 3, 64, 64)
    torch.testing.assert_close(b(x), plain.eval()(x), rtol=0, atol=0)


# --- initialisation and regularisation


@pytest.mark.parametrize(("arch", "weight"), [("resnext50e_32x4d", 0.0), ("senet113", 1.0), ("resnexst50_4x16d", 1.0)])
def test_only_the_plain_networks_start_with_silent_branches(arch, weight):
    model = timm.create_model(arch, **SMALL)
    assert all((block.bn3.weight == weight).all() for block in (*model.layer1, *model.layer4))
    assert all((block.bn2.weight == 1).all() for block in model.layer1 if hasattr(block.bn2, "weight"))


@pytest.mark.parametrize("arch", ["resnet50e", "se_resnet50", "resnexst50_4x16d"])
def test_weights_start_as_published(arch):
    model = timm.create_model(arch, layers=(1, 1, 1, 1))
    assert model.fc.weight.std().item() == pytest.approx(1e-3, rel=0.01)  # N(0, 1e-3), half a million draws or more
    assert not model.fc.bias.any()
    last = model.conv1[6].weight
    assert last.std().item() == pytest.approx(math.sqrt(2 / (9 * last.shape[0])), rel=0.02)  # fan out


@pytest.mark.parametrize("arch", sorted(set(TABLE) - TIMM_HAS))
def test_dropout_is_divided_as_published(arch):
    whole = timm.create_model(arch, device="meta")
    assert whole.drop_rate == DROP_RATES.get(arch, 0.0)
    for split in (2, 4):
        kwargs = timm_mix.divide(arch, split)
        if arch not in DROP_RATES:
            assert "drop_rate" not in kwargs
            continue
        share = split if arch == "resnet101e" else math.sqrt(split)
        assert kwargs["drop_rate"] == pytest.approx(DROP_RATES[arch] / share)


def test_the_parts_of_a_splitnet_drop_as_published_unless_told_otherwise():
    model = timm.create_model("splitnet_senet113_s4", layers=SMALL["layers"], device="meta")
    assert [part.drop_rate for part in model.subnets] == [0.1] * 4
    model = timm.create_model("splitnet_se_resnet50_b_s2", drop_rate=0.0, drop_block_rate=0.0, device="meta")
    assert [part.drop_rate for part in model.subnets] == [0.0, 0.0]
    assert not any(isinstance(module, DropBlock2d) for module in model.modules())


def test_drop_block_lies_behind_every_norm_of_the_last_two_stages():
    whole = timm.create_model("se_resnet50_b", device="meta")
    parts = timm.create_model("splitnet_se_resnet50_b_s4", device="meta")
    for model, rate in ((whole, 0.1), (parts.subnets[3], 0.1 / 2)):
        blocks = {name: m for name, m in model.named_modules() if isinstance(m, DropBlock2d)}
        assert set(blocks) == {
            f"layer{i}.{j}.{place}"
            for i, count in ((3, 6), (4, 3))
            for j in range(count)
            for place in ("act1.0", "drop_block", "se.drop")
        }
        assert all((m.drop_prob, m.block_size) == (pytest.approx(rate), 3) for m in blocks.values())


def test_a_training_block_drops_behind_bn1_bn2_and_bn3():
    rate = 0.3
    block = timm.create_model("se_resnet50_b", drop_block_rate=rate, **NARROW).layer3[1].train()
    x = fixed_images(5, 256, 11, 7).relu()
    torch.manual_seed(3)
    out = block(x.clone())
    torch.manual_seed(3)
    drop = partial(drop_block_2d, drop_prob=rate, block_size=3)
    h = F.relu(drop(block.bn1(block.conv1(x))))
    h = F.relu(drop(block.bn2(block.conv2(h))))
    h = drop(block.bn3(block.conv3(h)))
    gate = block.se.fc2(F.relu(block.se.fc1(h.mean((2, 3), keepdim=True)))).sigmoid()
    torch.testing.assert_close(out, F.relu(h * gate + x), rtol=0, atol=0)


def test_drop_block_trains_in_one_graph():
    model = timm.create_model("se_resnet50_b", **NARROW)
    x = fixed_images(2, 3, 64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        torch.compile(model, backend="eager", fullgraph=True)(
            x.contiguous(memory_format=torch.channels_last)
        ).sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


# --- as timm models


@pytest.mark.parametrize("arch", ["wide_resnet50_2e", "se_resnet50_b", "senet113", "resnexst50_4x16d"])
@pytest.mark.parametrize("output_stride", [32, 8])
@torch.no_grad()
def test_features_are_what_feature_info_says(arch, output_stride):
    kwargs = {"layers": SMALL["layers"], "output_stride": output_stride}
    model = timm.create_model(arch, num_classes=13, **kwargs).eval()
    x = fixed_images(1, 3, 64, 64)
    final, levels = model.forward_intermediates(x)
    listed = timm.create_model(arch, features_only=True, **kwargs).eval()
    listed.load_state_dict({key: value for key, value in model.state_dict().items() if not key.startswith("fc.")})
    for info, level, same in zip(model.feature_info, levels, listed(x), strict=True):
        assert tuple(level.shape[1:]) == (info["num_chs"], 64 // info["reduction"], 64 // info["reduction"])
        torch.testing.assert_close(same, level)
    torch.testing.assert_close(model.forward_head(final), model(x))
    model.reset_classifier(7, "max")
    assert model(x).shape == (1, 7)


@pytest.mark.parametrize("arch", ["resnet50e", "se_resnet50_b", "resnexst50_4x16d"])
def test_the_parameters_are_grouped_from_the_stem_to_the_classifier(arch):
    model = timm.create_model(arch, **SMALL)
    layers = timm.models.group_parameters(model, model.group_matcher(), reverse=True)
    assert layers["conv1.0.weight"] == layers["bn1.weight"] == 0
    assert layers["fc.weight"] == max(layers.values())
    assert layers["layer1.0.conv1.weight"] < layers["layer3.0.conv1.weight"] < layers["layer3.1.conv1.weight"]


def test_a_part_takes_the_arguments_of_timms_resnet():
    kwargs = {
        "in_chans": 1,
        "norm_layer": "layernorm2d",
        "act_layer": "silu",
        "dtype": torch.float64,
        "drop_path_rate": 0.1,
    }
    model = timm.create_model("se_resnet50", **kwargs, **NARROW)
    assert isinstance(model.conv1[4], LayerNorm2d)
    assert isinstance(model.conv1[5], nn.SiLU)
    assert model(fixed_images(1, 1, 64, 64).double()).dtype == torch.float64
    assert isinstance(timm.create_model("senet113", replace_stem_pool=True, **SMALL).maxpool, nn.Sequential)
    with pytest.raises(TypeError, match="unknown"):
        timm.create_model("resnet50e", unknown=1)


def test_a_divided_network_reloads_from_its_config(tmp_path):
    model = timm.create_model("splitnet_resnexst50_4x16d_s4", **SMALL).eval()
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    x = fixed_images(1, 3, 64, 64)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)


def test_images_are_fed_as_published():
    for name in imagenet.NAMES:
        cfg = timm.get_pretrained_cfg(name)
        assert (cfg.input_size, cfg.interpolation, cfg.num_classes) == ((3, 224, 224), "bicubic", 1000)
        assert not cfg.has_weights
        assert math.floor(224 / cfg.crop_pct) == int(1.15 * 224)


# --- division


@torch.no_grad()
@pytest.mark.parametrize(
    ("arch", "split", "kwargs"),
    [
        ("resnet50e", 8, {"channels": (24, 48, 96, 192), "stem_width": 24}),
        ("resnet101e", 2, {"channels": (44, 88, 176, 352), "stem_width": 44, "drop_rate": 0.05}),
        ("wide_resnet50_3e", 2, {"base_width": 128}),
        ("wide_resnet50_3e", 4, {"channels": (32, 64, 128, 256), "stem_width": 32}),
        ("resnext101e_64x4d", 8, {"cardinality": 8}),
        ("senet154e", 4, {"cardinality": 16, "drop_rate": 0.1}),
        ("senet154", 4, {"cardinality": 16}),
        ("resnexst50_8x16d", 8, {"cardinality": 1}),
        ("resnest50d", 2, {"channels": (44, 88, 176, 352), "stem_width": 22}),
        ("resnest101e.in1k", 4, {"channels": (32, 64, 128, 256), "stem_width": 32}),
        ("resnest50d_1s4x24d", 4, {"cardinality": 1}),
        ("resnest50d_4s2x40d", 2, {"cardinality": 1}),
        ("resnet101e", 1, {}),
    ],
)
def test_division_follows_the_published_rules(arch, split, kwargs):
    assert timm_mix.divide(arch, split) == kwargs
    part = timm.create_model(arch.split(".")[0], device="meta", **kwargs)
    assert part(torch.empty(2, 3, 64, 64, device="meta")).shape == (2, 1000)


@pytest.mark.parametrize("arch", ["resnest14d", "resnest101e"])
def test_parts_of_resnest_together_are_about_as_large_as_the_whole(arch):
    sizes = [sum(p.numel() for p in _part(arch, split, device="meta").parameters()) for split in (1, 2, 4)]
    assert 2 * sizes[1] == pytest.approx(sizes[0], rel=0.12)
    assert 4 * sizes[2] == pytest.approx(sizes[0], rel=0.2)


@pytest.mark.parametrize(
    ("arch", "split", "message"),
    [
        ("resnet50e", 3, "resnet50e divides into S = 2, 4 or 8 parts, got S = 3"),
        ("wide_resnet101_2e", 16, "wide_resnet101_2e divides into S = 2, 4 or 8 parts, got S = 16"),
        ("resnext50e_32x4d", 64, "S must divide 32, got S = 64"),
        ("se_resnet152", 5, "se_resnet152 divides into S = 2, 4 or 8 parts, got S = 5"),
        ("senet113", 3, "senet113 divides its 64 groups: S must divide 64, got S = 3"),
        ("resnexst50_4x32d", 8, "resnexst50_4x32d divides its 4 groups: S must divide 4, got S = 8"),
        ("resnest269e", 6, "resnest269e divides into S = 2, 4 or 8 parts, got S = 6"),
        ("resnest50d_4s2x40d", 4, "S must divide 2, got S = 4"),
    ],
)
def test_what_cannot_be_divided_is_refused(arch, split, message):
    with pytest.raises(ValueError, match=message):
        timm_mix.divide(arch, split)


def test_a_flat_stem_needs_an_even_width():
    with pytest.raises(ValueError, match="stem_width must be even, got 33"):
        timm.create_model("se_resnet50", stem_width=33)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5, "high", True, math.nan])
@pytest.mark.parametrize("name", ["drop_rate", "drop_path_rate", "drop_block_rate"])
def test_a_rate_that_drops_everything_or_less_than_nothing_is_refused(name, rate):
    with pytest.raises(ValueError, match=rf"{name} must be in \[0, 1\), got {rate!r}"):
        timm.create_model("se_resnet50_b", device="meta", **{name: rate})


def test_each_family_is_listed_by_its_file():
    for module in (resnet_e, se_resnet, resnexst):
        assert set(timm.list_models(module=module.__name__.rpartition(".")[2])) == set(module.NETS)
