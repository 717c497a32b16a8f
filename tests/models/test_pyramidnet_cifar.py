"""PyramidNets, and ShakeDrop by its laws."""

import pytest
import timm
import torch
from support.networks import assert_checkpointing_keeps_the_gradients, batch_norm, stirred
from torch import nn
from torch.nn import functional as F

from timm_mix.models.pyramidnet_cifar import PyramidBlock, ShakeDrop

pytestmark = pytest.mark.slow

MANY = 20_000  # one element per sample: means of U are known to 3 / sqrt(MANY) ~ 2 %


def _factors(p, batch, draws=1):
    """Factors of the values and of the gradients, [draws, batch] each, read off ones."""
    torch.manual_seed(7)
    module = ShakeDrop(p).train()
    alphas, betas = [], []
    for _ in range(draws):
        x = torch.ones(batch, 1, 1, 1, requires_grad=True)
        out = module(x)
        out.sum().backward()
        alphas.append(out.detach().flatten())
        betas.append(x.grad.flatten())
    return torch.stack(alphas), torch.stack(betas)


def test_shut_gate_scales_values_by_alpha_and_gradients_by_beta():
    alpha, beta = (f[0] for f in _factors(1.0, MANY))
    assert -1 - 1e-6 <= alpha.min() < -0.99
    assert 0.99 < alpha.max() <= 1 + 1e-6
    assert 0 <= beta.min() < 0.01
    assert 0.99 < beta.max() <= 1
    assert alpha.mean().item() == pytest.approx(0, abs=0.02)
    assert alpha.var().item() == pytest.approx(1 / 3, rel=0.03)
    assert beta.mean().item() == pytest.approx(1 / 2, abs=0.01)
    assert beta.var().item() == pytest.approx(1 / 12, rel=0.03)


def test_alpha_and_beta_are_drawn_apart():
    alpha, beta = (f[0] for f in _factors(1.0, MANY))
    for other in (beta, alpha.roll(1)):
        assert abs(torch.corrcoef(torch.stack([alpha, other]))[0, 1]) < 0.03


def test_gate_is_one_for_the_batch_and_shut_as_often_as_p():
    draws, p = 2000, 0.3
    alpha, beta = _factors(p, 5, draws)
    whole = (alpha == 1).all(1)
    assert torch.equal(whole, (alpha == 1).any(1))
    assert torch.equal(whole, (beta == 1).all(1))
    assert 1 - whole.float().mean().item() == pytest.approx(p, abs=4 * (p * (1 - p) / draws) ** 0.5)


def test_evaluation_takes_the_mean_factor():
    draws, p = 4000, 0.4
    alpha, _ = _factors(p, 5, draws)
    assert alpha.mean().item() == pytest.approx(1 - p, abs=0.05)
    x = torch.randn(5, 3, 7, 11)
    module = ShakeDrop(p).eval()
    torch.testing.assert_close(module(x), 0.6 * x)
    assert torch.equal(module(x), module(x))


def test_one_factor_serves_all_channels_and_places_of_a_sample():
    x = torch.randn(5, 3, 7, 11, requires_grad=True)
    weight = torch.randn(5, 3, 7, 11)
    out = ShakeDrop(1.0).train()(x)
    (out * weight).sum().backward()
    for ratio in ((out / x).detach().flatten(1), (x.grad / weight).flatten(1)):
        torch.testing.assert_close(ratio, ratio.median(1, keepdim=True).values.expand_as(ratio), rtol=1e-3, atol=1e-3)
        assert len(set(ratio[:, 0].tolist())) == 5


def test_gradients_by_hand_through_a_residual_branch():
    """y = x + shakedrop(w x): the values carry alpha, dy/dw = beta x and dy/dx = 1 + beta w."""
    x = torch.tensor([2.0, 3.0, 5.0]).view(3, 1, 1, 1).requires_grad_()
    w = torch.tensor(7.0, requires_grad=True)
    out = x + ShakeDrop(1.0).train()(w * x)
    out.sum().backward()
    beta = (x.grad - 1) / w.detach()
    assert ((beta > 0) & (beta < 1)).all()
    torch.testing.assert_close(w.grad, (beta * x.detach()).sum())
    alpha = ((out - x) / (w * x)).detach()
    assert (alpha.abs() < 1).all()
    assert ((alpha - beta).abs() > 1e-4).all()


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_open_gate_passes_everything_in_any_batch(batch):
    x = torch.randn(batch, 3, 7, 11, requires_grad=True)
    out = ShakeDrop(0.0).train()(x)
    out.sum().backward()
    assert torch.equal(out, x)
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_its_type(dtype):
    x = torch.ones(MANY, 1, 1, 1, dtype=dtype)
    for module in (ShakeDrop(1.0).train(), ShakeDrop(1.0).eval()):
        assert module(x).dtype == dtype
    assert ShakeDrop(1.0).train()(x).float().mean().item() == pytest.approx(0, abs=0.02)


def test_shakedrop_under_compile_draws_anew_each_time():
    module = ShakeDrop(1.0).train()
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    x = torch.ones(64, 1, 1, 1, requires_grad=True)
    first, second = compiled(x), compiled(x)
    first.sum().backward()
    assert not torch.equal(first, second)
    assert (first.abs() < 1).all()
    assert ((x.grad > 0) & (x.grad < 1)).all()


def test_rates_grow_linearly_with_the_number_of_the_block():
    model = timm.create_model("pyramidnet164", device="meta", depth=29, shakedrop_rate=0.5)
    rates = [m.p for m in model.modules() if isinstance(m, ShakeDrop)]
    assert rates == pytest.approx([0.5 * j / 9 for j in range(1, 10)])


def test_without_shakedrop_training_is_deterministic():
    model = timm.create_model("pyramidnet164", depth=11, alpha=6, shakedrop_rate=0.0).train()
    assert not any(isinstance(m, ShakeDrop) for m in model.modules())
    x = torch.randn(5, 3, 16, 16)
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(("stride", "size"), [(1, 7), (2, 8), (2, 7)])
def test_blocks_equal_their_description(stride, size):
    block = stirred(PyramidBlock(5, 3, stride, timm.layers.BatchNormAct2d, nn.BatchNorm2d, shakedrop=0.25))
    x = torch.randn(2, 5, size, size)
    h = F.conv2d(batch_norm(block.bn1, x), block.conv1.weight)  # no ReLU behind the first BN
    h = F.conv2d(F.relu(batch_norm(block.bn2, h)), block.conv2.weight, stride=stride, padding=1)
    h = 0.75 * batch_norm(block.bn4, F.conv2d(F.relu(batch_norm(block.bn3, h)), block.conv3.weight))
    shortcut = F.avg_pool2d(x, 2, ceil_mode=True) if stride == 2 else x
    expected = h.clone()
    expected[:, :5] += shortcut  # the new channels, 5 to 11, get nothing
    torch.testing.assert_close(block(x), expected)


def test_stem_and_tail_equal_their_description():
    model = stirred(timm.create_model("pyramidnet164", depth=11, alpha=6, num_classes=7))
    x = torch.randn(2, 3, 16, 16)
    h = batch_norm(model.bn1, F.conv2d(x, model.conv1.weight, padding=1))  # no ReLU
    for stage in (model.layer1, model.layer2, model.layer3):
        h = stage(h)
    h = F.relu(batch_norm(model.bn_final, h)).mean((2, 3))
    torch.testing.assert_close(model(x), F.linear(h, model.fc.weight, model.fc.bias))


@pytest.mark.parametrize(
    ("name", "classes", "parameters"),
    [  # counted in the networks of the published RecursiveMix code (arXiv:2203.06844), without its region head
        ("pyramidnet_200_240", 10, 26_752_702),
        ("pyramidnet_164_270", 100, 27_319_071),
    ],
)
def test_the_pyramids_of_recursivemix_are_the_published_ones_without_shakedrop(name, classes, parameters):
    model = timm.create_model(name, device="meta", num_classes=classes)
    assert not any(isinstance(m, ShakeDrop) for m in model.modules())
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_widths_are_rounded_from_a_steady_growth():
    model = timm.create_model("pyramidnet164", device="meta", alpha=270 / 2**0.5)
    widths = [block.conv1.out_channels for stage in (model.layer1, model.layer2, model.layer3) for block in stage]
    # published: 16 + 3.5355 j, rounded
    assert widths[:5] == [20, 23, 27, 30, 34]
    assert widths[-1] == 207
    assert model.num_features == 4 * 207


def test_features_are_those_of_the_stages():
    model = timm.create_model("pyramidnet164", depth=11, alpha=6, features_only=True)
    assert model.feature_info.channels() == [72, 80, 88]
    assert model.feature_info.reduction() == [1, 2, 4]
    assert [f.shape[-1] for f in model(torch.randn(1, 3, 33, 33))] == [33, 17, 9]


def test_intermediates_end_with_the_features():
    model = timm.create_model("pyramidnet164", depth=11, alpha=6).eval()
    x = torch.randn(2, 3, 16, 16)
    final, levels = model.forward_intermediates(x, norm=True)
    torch.testing.assert_close(final, model.forward_features(x))
    torch.testing.assert_close(levels[-1], final)
    raw = model.forward_intermediates(x, [2], intermediates_only=True)[0]
    torch.testing.assert_close(model.bn_final(raw), final)


def test_initialisation_is_as_published():
    model = timm.create_model("pyramidnet164", depth=20)
    for conv in (model.layer3[1].conv2, model.layer3[1].conv3):
        fan_out = conv.weight.shape[0] * conv.weight[0, 0].numel()
        assert conv.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)


def test_gradient_checkpointing_draws_the_same_factors_again():
    model = timm.create_model("pyramidnet164", depth=11, alpha=6, shakedrop_rate=1.0).train()
    x = torch.randn(5, 3, 16, 16)
    assert_checkpointing_keeps_the_gradients(model, x)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"depth": 163}, r"depth must be 9n \+ 2 .*got 163"),
        ({"depth": 2}, r"depth must be 9n \+ 2 .*got 2"),
        ({"alpha": -1}, "alpha must be >= 0, got -1"),
        ({"shakedrop_rate": 1.5}, r"shakedrop_rate must lie in \[0, 1\], got 1.5"),
    ],
)
def test_wrong_settings_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        timm.create_model("pyramidnet164", device="meta", **kwargs)


def test_a_probability_outside_the_unit_interval_is_refused():
    with pytest.raises(ValueError, match=r"p must lie in \[0, 1\], got -0.1"):
        ShakeDrop(-0.1)
