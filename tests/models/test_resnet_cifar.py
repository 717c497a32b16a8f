"""ResNets for small images, activation behind the addition."""

from functools import partial

import pytest
import timm
import torch
from timm.layers import SEModule
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

import timm_mix


def _stir(model):
    """No factor of a residual branch stays zero, no statistics trivial."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "bn" in name or "downsample.2" in name:
                low = -0.2 if name.endswith(("bias", "mean")) else 0.5
                if value.is_floating_point():
                    value.uniform_(low, low + 0.5, generator=generator)
    return model.eval()


def _copy_by_order(source, target):
    values = list(source.state_dict().values())
    names = list(target.state_dict())
    target.load_state_dict(dict(zip(names, values, strict=True)))
    return target.eval()


def _in_timms_parts(block, layers, channels, stem, **kwargs):
    """SplitNet's published network put together from timm's classes."""
    model = ResNet(
        block,
        layers,
        channels=channels,
        stem_type="deep",
        stem_width=stem // 2,
        avg_down=True,
        num_classes=100,
        **kwargs,
    )
    model.conv1 = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
    model.maxpool = nn.Identity()
    model.layer4 = nn.Identity()
    return model


_SE = {"block_args": {"attn_layer": partial(SEModule, rd_ratio=1 / 4, rd_divisor=1)}}


@pytest.mark.parametrize(
    ("arch", "split", "build"),
    [
        ("resnet110", 4, lambda: _in_timms_parts(Bottleneck, (12,) * 3, (8, 16, 32), 8)),
        ("se_resnet110", 4, lambda: _in_timms_parts(Bottleneck, (12,) * 3, (8, 16, 32), 8, **_SE)),
        ("resnext29_8x64d", 4, lambda: _in_timms_parts(Bottleneck, (3,) * 3, (64, 128, 256), 64, cardinality=2)),
        ("wide_resnet16_8", 4, lambda: _in_timms_parts(BasicBlock, (2,) * 3, (64, 128, 256), 16)),
    ],
)
def test_logits_equal_those_of_timms_parts_put_together(arch, split, build):
    model = _stir(timm.create_model(arch, **timm_mix.divide(arch, split)))
    twin = _copy_by_order(model, build())
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(x)
        assert logits.std() > 1e-3
        assert (logits - twin(x)).abs().max() == 0


def test_resnet18_cifar_is_timms_resnet18_behind_another_stem():
    """Its parameters: published RecursiveMix code, 11,271,432 with a region head of 51,300."""
    model = _stir(timm.create_model("resnet18_cifar"))
    assert sum(p.numel() for p in model.parameters()) == 11_271_432 - 51_300
    twin = timm.create_model("resnet18", num_classes=100)
    twin.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    twin.maxpool = nn.Identity()
    twin.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 33, 31, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        logits = model(x)
        assert logits.std() > 1e-2
        assert (logits - twin.eval()(x)).abs().max() == 0


def test_resnet18_cifar_starts_as_published():
    model = timm.create_model("resnet18_cifar")
    assert model.layer4[1].conv1.weight.std().item() == pytest.approx((2 / (512 * 9)) ** 0.5, rel=0.02)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.fc.bias.any()
    assert not model.layer4[1].bn2.weight.any()


def test_four_stages_end_at_an_eighth():
    small = {"channels": (8, 16, 24, 40), "stem_width": 8}
    maps = timm.create_model("resnet18_cifar", features_only=True, **small).eval()
    assert maps.feature_info.channels() == [8, 16, 24, 40]
    assert maps.feature_info.reduction() == [1, 2, 4, 8]
    x = torch.randn(2, 3, 33, 31)
    assert [tuple(f.shape[2:]) for f in maps(x)] == [(33, 31), (17, 16), (9, 8), (5, 4)]
    model = _stir(timm.create_model("resnet18_cifar", **small))
    final, every = model.forward_intermediates(x)
    torch.testing.assert_close(every[3], final)
    torch.testing.assert_close(final, model.forward_features(x))
    expected = model(x)
    assert model.prune_intermediate_layers([3], prune_head=False) == [3]
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("name", ["resnet110", "resnext29_8x64d", "wide_resnet16_8"])
def test_branches_start_at_zero(name):
    model = timm.create_model(name, device="meta").to_empty(device="cpu")
    model.init_weights()
    for block in (*model.layer1, *model.layer3):
        assert not (block.bn2 if name.startswith("wide") else block.bn3).weight.any()


def test_squeezed_branches_do_not_start_at_zero():
    model = timm.create_model("se_resnet110")
    assert all((block.bn3.weight == 1).all() for block in (*model.layer1, *model.layer3))
    assert model.layer2[0].se.fc1.out_channels == 32  # a quarter of the 128 channels of the block


def test_initialisation_is_as_published():
    model = timm.create_model("wide_resnet16_8")
    for weight in (model.layer3[1].conv1.weight, model.conv1.weight):
        fan_out = weight.shape[0] * 9
        assert weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
    assert model.fc.weight.std().item() == pytest.approx(1e-3, rel=0.05)
    assert not model.fc.bias.any()


def test_features_are_those_of_the_stages():
    model = timm.create_model("wide_resnet16_8", features_only=True, channels=(16, 32, 64)).eval()
    assert model.feature_info.channels() == [16, 32, 64]
    assert model.feature_info.reduction() == [1, 2, 4]
    x = torch.randn(2, 3, 33, 31)
    maps = model(x)
    assert [tuple(f.shape[2:]) for f in maps] == [(33, 31), (17, 16), (9, 8)]


@pytest.mark.parametrize("indices", [None, 2, [0, 2], [1]])
def test_intermediates_follow_their_indices(indices):
    model = _stir(timm.create_model("wide_resnet16_8", channels=(16, 32, 64)))
    x = torch.randn(2, 3, 32, 32)
    final, every = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    chosen = {None: [0, 1, 2], 2: [1, 2]}.get(indices if not isinstance(indices, list) else -1, indices)
    some = model.forward_intermediates(x, indices, stop_early=True, intermediates_only=True)
    assert len(some) == len(chosen)
    for i, f in zip(chosen, some, strict=True):
        torch.testing.assert_close(f, every[i])


def test_pruning_to_the_last_stage_keeps_the_head():
    model = timm.create_model("wide_resnet16_8", channels=(16, 32, 64)).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    assert model.prune_intermediate_layers([2], prune_head=False) == [2]
    torch.testing.assert_close(model(x), expected)
    assert model.prune_intermediate_layers([0]) == [0]
    assert model.num_features == 16
    assert model(x).shape == (2, 16, 32, 32)


def test_gradient_checkpointing_changes_no_gradient():
    model = _stir(timm.create_model("wide_resnet16_8", channels=(16, 32, 64)))
    x = torch.randn(2, 3, 32, 32)
    model(x).square().sum().backward()
    expected = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    model.set_grad_checkpointing()
    model(x).square().sum().backward()
    for p, grad in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, grad)


def test_drop_path_grows_with_depth():
    model = timm.create_model("wide_resnet16_8", drop_path_rate=0.3, device="meta")
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (
            {"layers": (2, 2)},
            r"layers and channels must be three or four numbers each, got \(2, 2\) and \(128, 256, 512\)",
        ),
        ({"channels": (8,) * 4}, r"three or four numbers each, got \(2, 2, 2\) and \(8, 8, 8, 8\)"),
        ({"layers": (2,) * 5, "channels": (8,) * 5}, r"three or four numbers each, got \(2, 2, 2, 2, 2\)"),
        ({"stem_width": 15}, "stem_width must be an even number >= 2, got 15"),
        ({"stem_width": 0}, "stem_width must be an even number >= 2, got 0"),
    ],
)
def test_wrong_shapes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("wide_resnet16_8", **kwargs)
