"""Freeze parts of a model: parameters, BatchNorm statistics, dropout."""

from types import MethodType
from typing import Any

from timm.models import group_parameters
from torch import nn

from timm_mix.train.errors import UsageError

__all__ = ["freeze", "hold_in_eval"]


def freeze(model: nn.Module, what: str) -> None:
    """Freeze stages of a model and the BatchNorm statistics in them; in place.

    The stages are timm's coarse parameter groups: the stem (all encoders of a MixMo) is the first one, the heads are
    the last, and the parts of a SplitNet are frozen alike. Frozen BatchNorms stay what they are and are held in
    evaluation mode: timm's FrozenBatchNorm2d lacks a key in its state dict that `fold()` and strict loading want.

    Args:
        what: the number of stages as text, or "backbone" for everything but the heads.
    Raises:
        UsageError: more stages than the model has before its heads.

    >>> model = timm.create_model("test_resnet")
    >>> freeze(model, "backbone")
    >>> [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    ['fc.weight', 'fc.bias']
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
    is_frozen = False
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if own:  # a norm without parameters goes with what is defined before it
            is_frozen = not any(parameter.requires_grad for parameter in own)
        if is_frozen and getattr(module, "running_mean", None) is not None:
            hold_in_eval(module)


def hold_in_eval(module: nn.Module) -> None:
    """Evaluation mode for good: the trainer calls train() on the whole model in every epoch, here it does nothing.

    >>> norm = nn.BatchNorm2d(3)
    >>> hold_in_eval(norm)
    >>> norm.train().training
    False
    """
    module.eval()
    setattr(module, "train", MethodType(_stay, module))  # noqa: B010  (a plain assignment is an error to mypy)


def _heads(model: Any) -> tuple[nn.Module, ...]:
    heads = model.get_classifier()
    return heads if isinstance(heads, tuple) else (heads,)


def _stay(module: nn.Module, mode: bool = True) -> nn.Module:
    return module
