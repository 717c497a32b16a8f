"""A gradient that was taken early is the one that backward would have found."""

import weakref

import pytest
import torch
from small_nets import K, batch, small_net
from torch import nn

import timm_mix
from timm_mix.tasks._early_gradient import in_float16, take_gradient, with_gradient


def _losses(net):
    """Two passes over the same weights; the last layer is in the first pass only."""
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    return (net(x) ** 2).mean(), torch.tanh(net[:2](x + 1)).sum()


def _net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 7), nn.Tanh(), nn.Linear(7, 11))


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_backward_adds_and_scales_it_as_any_other(scale):
    one, two = _net(), _net()
    (sum(_losses(one)) * scale).backward()
    first, _ = _losses(two)
    taken = take_gradient(first, two.parameters())
    _, second = _losses(two)
    loss = with_gradient(first.detach(), taken) + second
    assert loss.item() == sum(_losses(one)).item()
    (loss * scale).backward()
    for p, wanted in zip(two.parameters(), one.parameters(), strict=True):
        torch.testing.assert_close(p.grad, wanted.grad)


def test_backward_twice_gives_it_twice_where_the_graph_is_kept():
    net = _net()
    loss = with_gradient(torch.zeros(()), take_gradient(_losses(net)[0], net.parameters()))
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in net.parameters()]
    loss.backward()
    for p, gradient in zip(net.parameters(), once, strict=True):
        assert torch.equal(p.grad, 2 * gradient)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


def test_frozen_and_unused_weights_get_none():
    net = _net()
    net[0].weight.requires_grad_(False)
    taken = take_gradient(_losses(net)[1], net.parameters())
    assert [id(p) for p, _ in taken] == [id(net[0].bias)]
    assert with_gradient(torch.ones(()), []).item() == 1


def _task(model=None, criterion=None, **settings):
    return timm_mix.create_task("automix", model or small_net("resnet"), criterion, num_classes=K, **settings)


def test_q_holds_no_graph_of_the_plain_pass_while_it_sees_the_mixed_images():
    task, seen = _task(), []

    def watch(module, inputs, output):
        seen.append((weakref.ref(output.untyped_storage()), [kept() is not None for kept, _ in seen]))

    task.get_trainable_module().two.model.layer3[0].conv1.register_forward_hook(watch)
    task(*batch())
    assert [kept for _, kept in seen] == [[], [False]]


class _Learning(nn.Module):
    """A criterion with a weight of its own, which every pass of q adds once."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, logits, target):
        return self.weight + 0.0 * logits.sum()


def test_a_criterion_that_learns_is_reached_by_both_passes():
    criterion = _Learning()
    _task(criterion=criterion)(*batch())["loss"].backward()
    assert float(criterion.weight.grad) == pytest.approx(2)


def test_in_float16_the_gradient_waits_for_the_loss_scale():
    task = _task()
    assert not task(*batch())["output"].requires_grad
    with torch.autocast("cpu", torch.float16):
        assert in_float16(torch.ones(1))
        result = task(*batch())
    assert result["output"].requires_grad
    assert not in_float16(torch.ones(1))
    assert in_float16(torch.ones(1, dtype=torch.float16))


def test_without_gradients_the_loss_is_a_number():
    with torch.no_grad():
        assert not _task()(*batch())["loss"].requires_grad
