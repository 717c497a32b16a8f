"""Which channels the parts of a divided network start from: taken from the whole, aligned, whole groups and heads."""

import pytest
import timm
import torch
from support.networks import fixed_images
from timm.layers.grn import GlobalResponseNorm
from torch import nn

import timm_mix
from timm_mix.models.divide.selection import select_part, spread
from timm_mix.models.pyramidnet_cifar import ShakeDrop
from timm_mix.models.splitnet import SplitNet

K = 7
ARCHS = [
    *("resnet18", "resnet50", "resnet50d", "wide_resnet50_2", "resnext50_32x4d", "seresnet50"),
    *("resnet50e", "wide_resnet50_2e", "resnext50e_32x4d", "se_resnet50", "se_resnext101_64x4d", "senet154"),
    *("resnexst50_4x32d", "resnest14d", "resnest50d_4s2x40d"),
    *("wrn16_4", "resnet110", "se_resnet110", "resnext29_8x64d", "wide_resnet16_8", "wide_resnet40_10"),
    *("densenet190", "pyramidnet164", "shake_resnet26_2x96d"),
    *("efficientnetb0", "efficientnetb0_cifar", "efficientnet_b0", "tf_efficientnet_lite0", "efficientnetv2_rw_t"),
    *("mobilenetv2_100", "mobilenetv3_small_100", "vgg11_bn"),
    *("convnext_atto", "convnextv2_atto", "convnext_large_mlp", "densenet121"),
    *("resnetv2_18", "resnetv2_50", "resnetv2_50d", "resnetv2_50x1_bit"),
    *("regnetx_002", "regnety_016", "regnetz_040", "regnetv_040"),
    *("vit_tiny_patch16_224", "vit_base_patch16_224", "deit3_small_patch16_224", "deit_tiny_distilled_patch16_224"),
    *("vit_base_patch16_siglip_224", "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256"),
]
FEWER_LAYERS = {  # of the large ones
    **{arch: {"layers": (1, 1, 1, 1)} for arch in ("senet154", "se_resnext101_64x4d", "wide_resnet50_2e")},
    **{arch: {"depth": 2} for arch in ("vit_base_patch16_224", "vit_base_patch16_siglip_224")},
    "convnext_large_mlp": {"depths": (1, 1, 1, 1)},
    "densenet190": {"block_config": (3, 3, 3)},
}
# A standardised filter that is zero has no value; six groups of 16 repeat channels of five groups of 24; a part's
# first shortcut projects behind the norm where the whole's hands on what comes before it.
NOT_INSIDE = {"resnetv2_50x1_bit", "regnety_016", "resnetv2_18"}
QUICK = {"resnet18", "wrn16_4", "densenet121", "mobilenetv3_small_100", "convnext_atto", "vit_tiny_patch16_224"}


def _params(archs):
    return [pytest.param(arch, marks=() if arch in QUICK else pytest.mark.slow) for arch in archs]


def whole_and_part(arch, split=2):
    torch.manual_seed(0)
    part = {"model_name": arch, **timm_mix.divide(arch, split)}
    kwargs = {"num_classes": K, **FEWER_LAYERS.get(arch, {})}
    return timm.create_model(arch, **kwargs).eval(), timm.create_model(**part, **kwargs).eval()


@torch.no_grad()
def places(whole, part, number, parts):
    """For every tensor of the part, which element of the whole's tensor each of its elements is."""
    numbered = {
        key: torch.arange(value.numel()).double().view(value.shape) for key, value in whole.state_dict().items()
    }
    whole.double().load_state_dict(numbered)
    taken = select_part(whole, part, number, parts, skip=())
    return {key: value.long() for key, value in taken.items() if key in numbered}


def is_grid(elements, shape):
    """Whether elements (flat numbers in a tensor of `shape`) are all pairings of some indices per dimension."""
    axes = torch.unravel_index(elements, shape)
    lines = [axis.movedim(dim, 0).reshape(axis.shape[dim], -1) for dim, axis in enumerate(axes)]
    return all(torch.equal(line, line[:, :1].expand_as(line)) for line in lines)


def test_indices_are_evenly_spaced_and_segments_agree():
    assert spread(9, 3).tolist() == [0, 3, 6]
    assert [spread(8, 2, number=number, parts=4).tolist() for number in range(4)] == [[0, 4], [1, 5], [2, 6], [3, 7]]
    for number in range(3):
        one = spread(64, 44, number=number, parts=3)
        assert torch.equal(spread(192, 132, number=number, parts=3), torch.cat([one, one + 64, one + 128]))
        assert len(one.unique()) == 44
        assert one.max() < 64


def test_a_part_that_is_wider_is_refused():
    with pytest.raises(ValueError, match="must not be wider than the whole, got 5 channels of 4"):
        spread(4, 5)


@pytest.mark.parametrize("arch", _params(ARCHS))
def test_every_tensor_is_a_sub_tensor_and_the_parts_differ(arch):
    whole, part = whole_and_part(arch)
    grouped = {
        f"{name}.weight": module.groups
        for name, module in part.named_modules()
        if isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels
    }
    shapes = {key: value.shape for key, value in whole.state_dict().items()}
    taken = [places(whole, part, number, 2) for number in range(2)]
    for key, elements in taken[0].items():
        groups = elements.unflatten(0, (grouped[key], -1)) if key in grouped else [elements]
        assert all(is_grid(group, shapes[key]) for group in groups if group.ndim), key
    shared = sum((one == other).sum().item() for one, other in zip(*(t.values() for t in taken), strict=True))
    assert shared < 0.9 * sum(elements.numel() for elements in taken[0].values())


@pytest.mark.parametrize("arch", _params(arch for arch in ARCHS if arch not in NOT_INSIDE))
@torch.no_grad()
def test_a_whole_that_is_nothing_but_a_part_computes_what_the_part_computes(arch):
    """Zero in all channels that the part does not take: that holds only where all layers agree on the channels."""
    whole, part = whole_and_part(arch)
    for model in (whole, part):
        _without_what_sees_all_channels(model)
    _stir(part)
    part.double()
    empty = {key: torch.zeros_like(value) for key, value in whole.state_dict().items()}
    own = part.state_dict()
    for key, elements in places(whole, part, 1, 2).items():
        if "running_var" in key:
            empty[key] += 1
        if key.endswith(("index", "coords_table")):  # Swin's constants
            elements, own[key] = torch.arange(empty[key].numel()), whole.state_dict()[key]
        empty[key] = empty[key].double()
        empty[key].view(-1)[elements.flatten()] = own[key].flatten().double()
    whole.load_state_dict(empty)
    own |= {key: value for key, value in select_part(whole, part, 1, 2, skip=()).items() if key not in empty}
    part.load_state_dict(own)
    cfg = whole.pretrained_cfg
    side = cfg["input_size"][-1] if cfg.get("fixed_input_size") else min(cfg["input_size"][-1], 64)
    x = fixed_images(2, 3, side, side).double()
    wanted = part(x)
    assert wanted.std(0).max() > 0
    assert (whole(x) - wanted).abs().max() <= 1e-8 * wanted.abs().max()


def _without_what_sees_all_channels(model):
    """Norms over channels, and ShakeDrop, whose factor is weaker in a part."""
    for name, module in list(model.named_modules()):
        if isinstance(module, (nn.LayerNorm, nn.GroupNorm, GlobalResponseNorm, ShakeDrop)):
            model.set_submodule(name, nn.Identity())


def _stir(model):
    generator = torch.Generator().manual_seed(0)
    for value in model.parameters():
        if value.ndim < 2 or not value.any():
            value += 0.1 * torch.randn(value.shape, generator=generator)
    for module in model.modules():
        if getattr(module, "running_mean", None) is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)


@pytest.mark.parametrize("arch", ["resnext50_32x4d", "resnest50d_4s2x40d", "regnetv_040", "regnetx_002"])
def test_groups_stay_whole(arch):
    whole, part = whole_and_part(arch)
    ours = dict(whole.named_modules())
    taken = places(whole, part, 1, 2)
    seen = 0
    for name, module in part.named_modules():
        if isinstance(module, nn.Conv2d) and 1 < module.groups < module.in_channels:
            shape = ours[name].weight.shape
            rows = torch.unravel_index(taken[f"{name}.weight"], shape)[0][:, 0, 0, 0]
            owners = (rows // (shape[0] // ours[name].groups)).view(module.groups, -1)
            assert torch.equal(owners, owners[:, :1].expand_as(owners)), name
            seen += 1
    assert seen > 3


@pytest.mark.parametrize("arch", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_heads_stay_whole_in_queries_keys_and_values(arch):
    whole, part = whole_and_part(arch)
    ours = dict(whole.named_modules())
    taken = places(whole, part, 1, 2)
    seen = 0
    for name, module in part.named_modules():
        if name.endswith(".attn"):
            rows = taken[f"{name}.qkv.bias"].view(3, module.num_heads, -1)
            dim = ours[name].qkv.out_features // 3
            heads = rows % dim // (dim // ours[name].num_heads)
            assert torch.equal(heads, heads[:1, :, :1].expand_as(heads)), name
            assert torch.equal(rows // dim, torch.arange(3)[:, None, None].expand_as(rows))
            inputs = torch.unravel_index(taken[f"{name}.proj.weight"], ours[name].proj.weight.shape)[1][0]
            assert torch.equal(inputs, rows[0].flatten())
            seen += 1
    assert seen >= 12


@pytest.mark.parametrize("arch", _params(["resnet18", "efficientnet_b0", "vit_tiny_patch16_224", "densenet121"]))
@torch.no_grad()
def test_parts_of_a_network_evaluate_and_differ(arch):
    plain, _ = whole_and_part(arch)
    model = SplitNet.from_plain(plain, 2)
    side = 224 if plain.pretrained_cfg.get("fixed_input_size") else 64
    members = model(fixed_images(2, 3, side, side), return_members=True)
    assert members.shape == (2, 2, K)
    assert torch.isfinite(members).all()
    assert not torch.allclose(*(part.forward_features(fixed_images(2, 3, side, side)) for part in model.subnets))
