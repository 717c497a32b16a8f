"""Ways to run the parts of a SplitNet on one device: what benchmark.py compares `SplitNet.parallelize` to.

    undivided    the whole network that was divided
    sequential   one part after the other, as the paper does on one device
    concurrent   SplitNet.parallelize(): threads on the CPU, streams on a GPU
    graph        SplitNet.parallelize(graph=True), GPU only; and the undivided network from a graph, to be fair to it
    grouped      one network of grouped convolutions, all parts in the same operators (plain convolutional nets only)
    vmap         torch.func.vmap over the stacked weights: any network

All but `undivided` return the same member logits.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

from timm_mix.models.parts.graph import GraphCache
from timm_mix.models.splitnet import SplitNet

__all__ = ["grouped", "ways"]

Way = Callable[[Tensor], Tensor]


def ways(model: SplitNet, whole: nn.Module) -> dict[str, Way]:
    """Every way that the model's device has; their weights are copies where they cannot be shared."""
    found: dict[str, Way] = {
        "undivided": whole,
        "sequential": lambda x: model(x, return_members=True),
        "concurrent": _parallel(model, graph=False),
        "grouped": grouped(model),
        "vmap": _vmapped(model),
    }
    if next(model.parameters()).device.type == "cuda":
        graphs = GraphCache()
        found["graph"] = _parallel(model, graph=True)
        found["undivided graph"] = lambda x: graphs.replay("whole", [whole], [x], lambda xs: [whole(xs[0])])[0]
    return found


def grouped(model: SplitNet) -> nn.Module:
    """The parts as one network, channels part by part: [B, C, H, W] -> [B, S, K].

    Every layer of the first part takes over the weights of all; what has no weights works on any number of channels.
    """
    whole: Any = copy.deepcopy(model.subnets[0])
    stem = whole.get_submodule(whole.pretrained_cfg["first_conv"])  # all parts read the same image
    for name, layer in list(whole.named_modules()):
        same = [part.get_submodule(name) for part in model.subnets]
        if isinstance(layer, nn.Conv2d):
            if layer is not stem:
                layer.groups *= len(same)
                layer.in_channels *= len(same)
            layer.out_channels *= len(same)
            _join(layer, same, ("weight", "bias"))
        elif isinstance(layer, nn.BatchNorm2d):
            _join(layer, same, ("weight", "bias", "running_mean", "running_var"))
        elif isinstance(layer, nn.Linear):
            whole.set_submodule(name, _GroupedLinear(same))
        elif list(layer.parameters(recurse=False)):
            raise ValueError(f"grouped knows convolutions, batch norm and linear layers, got {type(layer).__name__}")
    return whole


class _GroupedLinear(nn.Module):
    def __init__(self, layers: list[Any]):
        super().__init__()
        self.weight = nn.Parameter(torch.stack([layer.weight.detach().t() for layer in layers]))
        self.bias = nn.Parameter(torch.stack([layer.bias.detach()[None] for layer in layers]))

    def forward(self, x: Tensor) -> Tensor:
        parts = x.unflatten(1, (len(self.weight), -1)).transpose(0, 1)
        return torch.baddbmm(self.bias, parts, self.weight).transpose(0, 1)


def _join(layer: nn.Module, same: list[nn.Module], names: tuple[str, ...]) -> None:
    for name in names:
        tensor = getattr(layer, name)
        if tensor is not None:
            joined = torch.cat([getattr(other, name).detach() for other in same])
            setattr(layer, name, nn.Parameter(joined) if isinstance(tensor, nn.Parameter) else joined)


def _parallel(model: SplitNet, graph: bool) -> Way:
    parallel: Any = copy.deepcopy(model)
    parallel.parallelize(graph=graph)
    return lambda x: parallel(x, return_members=True)


def _vmapped(model: SplitNet) -> Way:
    one = copy.deepcopy(model.subnets[0])
    weights, buffers = stack_module_state(list(model.subnets))
    mapped = vmap(lambda w, b, x: functional_call(one, (w, b), (x,)), in_dims=(0, 0, None), out_dims=1)
    return lambda x: mapped(weights, buffers, x)
