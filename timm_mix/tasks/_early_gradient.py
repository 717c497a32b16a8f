"""Take the gradient of a loss before the step's other passes run, and hand it out when backward comes by.

A loss that is a sum of passes over the same weights holds the activations of all of them until backward. Taken early,
the gradient of one pass needs the size of the weights instead, and its activations are free for the next pass.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["in_float16", "take_gradient", "with_gradient"]

PARTS = 8  # backward scales what was taken part by part, so that it is never held twice
Taken = list[tuple[nn.Parameter, Tensor]]


def take_gradient(loss: Tensor, parameters: Iterable[nn.Parameter]) -> Taken:
    """The parameters that the loss depends on, with its gradient; the loss' graph is gone afterwards.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> ((parameter, gradient),) = take_gradient(layer(torch.tensor([[3.0, 5.0]])).sum(), layer.parameters())
    >>> parameter is layer.weight, gradient.tolist(), layer.weight.grad  # nothing is handed out yet
    (True, [[3.0, 5.0]], None)
    """
    trained = [p for p in parameters if p.requires_grad]
    gradients = torch.autograd.grad(loss, trained, allow_unused=True)
    return [(p, gradient) for p, gradient in zip(trained, gradients, strict=True) if gradient is not None]


def with_gradient(value: Tensor, taken: Taken) -> Tensor:
    """A loss of this value whose gradient is the one that was taken; backward scales it as it would any other.

    Called after the other passes, its gradients come first in backward: those of the weights are then complete layer
    by layer in the other passes' backward, where DistributedDataParallel sends them off.

    >>> layer = nn.Linear(2, 1, bias=False)
    >>> loss = layer(torch.tensor([[3.0, 5.0]])).sum()
    >>> taken = take_gradient(loss, layer.parameters())
    >>> (2 * with_gradient(loss.detach(), taken)).backward()
    >>> layer.weight.grad.tolist()
    [[6.0, 10.0]]
    """
    size, part = sum(gradient.numel() for _, gradient in taken) / PARTS, []
    for place, pair in enumerate(taken, 1):
        part.append(pair)
        if sum(gradient.numel() for _, gradient in part) >= size or place == len(taken):
            parameters, gradients = zip(*part, strict=True)
            value, part = _Handed.apply(value, len(part), *gradients, *parameters), []
    return value


def in_float16(tensor: Tensor) -> bool:
    """Whether the network that made this computes in float16: gradients may underflow there unless they are scaled.

    >>> in_float16(torch.zeros(1, dtype=torch.float16)), in_float16(torch.zeros(1, dtype=torch.bfloat16))
    (True, False)
    """
    kind = tensor.device.type
    by_autocast = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind) is torch.float16
    return tensor.dtype is torch.float16 or by_autocast


class _Handed(torch.autograd.Function):
    """(value, count, count gradients, count parameters) -> value; its gradient is what it was given."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, count: int, *gradients_and_parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients_and_parameters[:count])
        return value.clone()

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> Any:
        gradients = torch._foreach_mul(ctx.saved_tensors, scale)
        return scale, None, *([None] * len(gradients)), *gradients
