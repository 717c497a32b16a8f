"""bn_momentum and bn_eps, the keywords of timm's train.py, for networks whose constructors do not have them."""

from typing import Any, Optional

from timm.models import build_model_with_cfg
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["build_with_batch_norm", "set_batch_norm"]


def set_batch_norm(model: nn.Module, bn_momentum: Optional[float] = None, bn_eps: Optional[float] = None) -> nn.Module:
    """Set momentum and eps of every batch norm, in place; None leaves them.

    Raises:
        ValueError: a momentum outside [0, 1], eps <= 0, a model without batch norm.

    >>> import timm
    >>> set_batch_norm(timm.create_model("test_resnet"), bn_momentum=0.01).bn1.momentum
    0.01
    """
    if bn_momentum is None and bn_eps is None:
        return model
    if bn_momentum is not None and not 0 <= bn_momentum <= 1:
        raise ValueError(f"bn_momentum must be in [0, 1], got {bn_momentum!r}")
    if bn_eps is not None and not bn_eps > 0:
        raise ValueError(f"bn_eps must be > 0, got {bn_eps!r}")
    layers: Any = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    if not layers:
        raise ValueError(f"bn_momentum and bn_eps are for networks with batch norm, {type(model).__name__} has none")
    for layer in layers:
        layer.momentum = layer.momentum if bn_momentum is None else bn_momentum
        layer.eps = layer.eps if bn_eps is None else bn_eps
    return model


def build_with_batch_norm(*args: Any, bn_momentum: Any = None, bn_eps: Any = None, **kwargs: Any) -> Any:
    """timm's build_model_with_cfg for a network of our own, which then has these two keywords.

    >>> import timm
    >>> timm.create_model("wrn16_2", bn_eps=0.001).layer1[0].bn1.eps
    0.001
    """
    return set_batch_norm(build_model_with_cfg(*args, **kwargs), bn_momentum, bn_eps)
