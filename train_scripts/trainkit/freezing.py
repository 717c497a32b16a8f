"""Freeze parts of a model: parameters, BatchNorm statistics, dropout."""

from collections.abc import Iterator
from types import MethodType
from typing import Any

from timm.models import group_parameters
from torch import nn

from trainkit.errors import UsageError

__all__ = ["freeze", "hold_features"]


def freeze(model: nn.Module, what: str) -> None:
    """Freeze stages of a model and the BatchNorm statistics in them; in place.

    The stages are timm's coarse parameter groups: the stem (all encoders of a MixMo) is the first one, the heads are
    the last, and the parts of a SplitNet are frozen alike. Frozen BatchNorms stay what they are and are held in
    evaluation mode: timm's FrozenBatchNorm2d lacks a key in its state dict that `fold()` and strict loading want.

    Args:
        what: the number of stages as text, or "backbone" for everything but the heads.
    Raises:
        UsageError: more stages than the model has before its heads.
    """
    if what == "backbone":
        heads = {id(p) for head in _heads(model) for p in head.parameters()}
        frozen = [p for p in model.parameters() if id(p) not in heads]
    else:
        stage_of = group_parameters(model, model.group_matcher(coarse=True), reverse=True)  # type: ignore[operator]
        last = max(stage_of.values())
        if int(what) > last:
            raise UsageError(f"freeze takes 1 to {last} stages of this model or backbone, got {what}")
        frozen = [p for name, p in model.named_parameters() if stage_of[name] < int(what)]
    for parameter in frozen:
        parameter.requires_grad = False
    for parent in model.modules():
        for child in parent.children():
            if hasattr(child, "running_mean") and _is_frozen(child, parent):
                _hold_in_eval(child)


def _is_frozen(norm: nn.Module, parent: nn.Module) -> bool:
    """A norm without parameters goes with what stands beside it."""
    parameters = list(norm.parameters()) or list(parent.parameters())
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _heads(model: Any) -> tuple[nn.Module, ...]:
    heads = model.get_classifier()
    return heads if isinstance(heads, tuple) else (heads,)


def hold_features(model: nn.Module) -> None:
    """Everything but the heads in evaluation mode for good."""
    heads = {id(module) for head in _heads(model) for module in head.modules()}
    for module in _maximal_without(model, heads):
        _hold_in_eval(module)


def _maximal_without(module: nn.Module, heads: set[int]) -> Iterator[nn.Module]:
    """The largest submodules that hold no head."""
    for child in module.children():
        if id(child) in heads:
            continue
        if heads.isdisjoint(map(id, child.modules())):
            yield child
        else:
            yield from _maximal_without(child, heads)


def _hold_in_eval(module: nn.Module) -> None:
    """The trainer calls train() on the whole model in every epoch: here it does nothing."""
    module.eval()
    setattr(module, "train", MethodType(_stay, module))  # noqa: B010  (a plain assignment is an error to mypy)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
