"""Shake-Shake ResNets, and Shake-Shake by its laws."""

import pytest
import timm
import torch
from support.networks import assert_checkpointing_keeps_the_gradients, batch_norm, stirred
from torch import nn
from torch.nn import functional as F

from timm_mix.models.shake_shake_cifar import ShakeBlock, ShakeShake

pytestmark = pytest.mark.slow

MANY = 20_000  # one element per sample: means of U are known to 3 / sqrt(MANY) ~ 2 %


def _shares():
    """Shares of the first branch in the values and in both gradients, read off a one beside a zero."""
    torch.manual_seed(7)
    x1, x2 = torch.ones(MANY, 1, 1, 1, requires_grad=True), torch.zeros(MANY, 1, 1, 1, requires_grad=True)
    out = ShakeShake().train()(x1, x2)
    out.sum().backward()
    return out.detach().flatten(), x1.grad.flatten(), 1 - x2.grad.flatten()


def test_shares_are_uniform_per_sample():
    a, b, b_again = _shares()
    torch.testing.assert_close(b, b_again)
    for share in (a, b):
        assert -1e-6 <= share.min() < 0.01
        assert 0.99 < share.max() <= 1 + 1e-6
        assert share.mean().item() == pytest.approx(1 / 2, abs=0.01)
        assert share.var().item() == pytest.approx(1 / 12, rel=0.03)


def test_values_and_gradients_are_mixed_apart():
    a, b, _ = _shares()
    for other in (b, a.roll(1)):
        assert abs(torch.corrcoef(torch.stack([a, other]))[0, 1]) < 0.03


def test_one_share_serves_all_channels_and_places_of_a_sample():
    x1, x2, weight = (torch.randn(5, 3, 7, 11) for _ in range(3))
    x1.requires_grad_()
    out = ShakeShake().train()(x1, x2)
    (out * weight).sum().backward()
    for ratio in (((out - x2) / (x1 - x2)).detach().flatten(1), (x1.grad / weight).flatten(1)):
        torch.testing.assert_close(ratio, ratio.median(1, keepdim=True).values.expand_as(ratio), rtol=1e-2, atol=1e-2)
        assert len(set(ratio[:, 0].tolist())) == 5


def test_gradients_by_hand_through_two_branches():
    """y = mix(u x, v x): dy/du = b x, dy/dv = (1 - b) x, dy/dx = b u + (1 - b) v; the values carry a."""
    x = torch.tensor([2.0, 3.0, 5.0]).view(3, 1, 1, 1).requires_grad_()
    u, v = torch.tensor(7.0, requires_grad=True), torch.tensor(-11.0, requires_grad=True)
    out = ShakeShake().train()(u * x, v * x)
    out.sum().backward()
    b = (x.grad + 11) / 18
    assert ((b > 0) & (b < 1)).all()
    torch.testing.assert_close(u.grad, (b * x.detach()).sum())
    torch.testing.assert_close(v.grad, ((1 - b) * x.detach()).sum())
    a = ((out / x).detach() + 11) / 18
    assert ((a > 0) & (a < 1)).all()
    assert ((a - b).abs() > 1e-4).all()


def test_equal_branches_pass_unchanged():
    x = torch.randn(5, 3, 7, 11)
    torch.testing.assert_close(ShakeShake().train()(x, x), x)


def test_evaluation_takes_the_mean_of_the_branches():
    x1, x2 = torch.randn(5, 3, 7, 11), torch.randn(5, 3, 7, 11)
    module = ShakeShake().eval()
    torch.testing.assert_close(module(x1, x2), (x1 + x2) / 2)
    huge = torch.full((1, 1, 1, 1), 60_000.0, dtype=torch.float16)
    assert module(huge, huge).isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type(dtype):
    x1, x2 = torch.ones(MANY, 1, 1, 1, dtype=dtype), torch.zeros(MANY, 1, 1, 1, dtype=dtype)
    out = ShakeShake().train()(x1, x2)
    assert out.dtype == ShakeShake().eval()(x1, x2).dtype == dtype
    assert out.float().mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_any_batch_is_accepted(batch):
    block = ShakeBlock(4, 6, 2, nn.ReLU, nn.BatchNorm2d).train()
    out = block(torch.randn(batch, 4, 8, 8)) if batch else block.shake(*torch.randn(2, 0, 6, 4, 4))
    assert out.shape == (batch, 6, 4, 4)


def test_shake_shake_under_compile_draws_anew_each_time():
    compiled = torch.compile(ShakeShake().train(), backend="aot_eager", fullgraph=True)
    x1, x2 = torch.ones(64, 1, 1, 1, requires_grad=True), torch.zeros(64, 1, 1, 1)
    first, second = compiled(x1, x2), compiled(x1, x2)
    first.sum().backward()
    assert not torch.equal(first, second)
    assert ((x1.grad > 0) & (x1.grad < 1)).all()


def _branch_by_hand(branch, x, stride):
    _, conv1, bn1, _, conv2, bn2 = branch
    h = batch_norm(bn1, F.conv2d(F.relu(x), conv1.weight, stride=stride, padding=1))
    return batch_norm(bn2, F.conv2d(F.relu(h), conv2.weight, padding=1))


@pytest.mark.parametrize(("chs", "stride", "size"), [((4, 6), 2, 8), ((4, 6), 2, 7), ((4, 6), 1, 8), ((6, 6), 1, 7)])
def test_blocks_equal_their_description(chs, stride, size):
    block = stirred(ShakeBlock(*chs, stride, nn.ReLU, nn.BatchNorm2d))
    x = torch.randn(2, chs[0], size, size)
    shortcut = x
    if chs[0] != chs[1]:
        h = F.relu(x)
        moved = torch.zeros_like(h)
        moved[:, :, :-1, :-1] = h[:, :, 1:, 1:]  # up and to the left by one pixel
        parts = [
            F.conv2d(h[:, :, ::stride, ::stride], block.shortcut.conv1.weight),
            F.conv2d(moved[:, :, ::stride, ::stride], block.shortcut.conv2.weight),
        ]
        shortcut = batch_norm(block.shortcut.bn, torch.cat(parts, 1))
    branches = [_branch_by_hand(branch, x, stride) for branch in (block.branch1, block.branch2)]
    torch.testing.assert_close(block(x), sum(branches) / 2 + shortcut)


def test_stem_and_tail_equal_their_description():
    model = stirred(timm.create_model("shake_resnet26_2x96d", depth=8, base_width=4, num_classes=7))
    nn.init.normal_(model.conv1.bias)
    x = torch.randn(2, 3, 16, 16)
    h = batch_norm(model.bn1, F.conv2d(x, model.conv1.weight, model.conv1.bias, padding=1))  # no ReLU
    for stage in (model.layer1, model.layer2, model.layer3):
        h = stage(h)
    assert (h < 0).any()
    torch.testing.assert_close(model(x), F.linear(F.relu(h).mean((2, 3)), model.fc.weight, model.fc.bias))


def test_features_are_those_of_the_stages():
    model = timm.create_model("shake_resnet26_2x96d", depth=8, base_width=4, features_only=True)
    assert model.feature_info.channels() == [4, 8, 16]
    assert model.feature_info.reduction() == [1, 2, 4]
    assert [f.shape[-1] for f in model(torch.randn(1, 3, 33, 33))] == [33, 17, 9]


def test_intermediates_end_with_the_features():
    model = timm.create_model("shake_resnet26_2x96d", depth=8, base_width=4).eval()
    x = torch.randn(2, 3, 16, 16)
    final, levels = model.forward_intermediates(x)
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(F.relu(levels[-1]), final)


def test_initialisation_is_as_published():
    model = timm.create_model("shake_resnet26_2x96d", depth=14, base_width=48)
    weight = model.layer3[1].branch2[4].weight
    assert weight.std().item() == pytest.approx((2 / (weight.shape[0] * 9)) ** 0.5, rel=0.05)
    assert model.fc.weight.std().item() == pytest.approx(1e-3, rel=0.05)
    assert not model.fc.bias.any()


def test_gradient_checkpointing_draws_the_same_shares_again():
    model = timm.create_model("shake_resnet26_2x96d", depth=8, base_width=4).train()
    x = torch.randn(5, 3, 16, 16)
    assert_checkpointing_keeps_the_gradients(model, x)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 25}, r"depth must be 6n \+ 2 .*got 25"),
        ({"base_width": 95}, "base_width must be an even number >= 2, got 95"),
    ],
)
def test_wrong_shapes_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("shake_resnet26_2x96d", device="meta", **kwargs)
