"""Make a built network narrower: every layer keeps its kind and place and gets fewer channels."""

import math
from collections.abc import Iterable
from itertools import chain
from typing import Any, Optional

import torch
from timm.layers import ClassifierHead
from torch import Tensor, nn

__all__ = ["narrow_channels", "narrow_layers"]

_MULTIPLE = 4  # of channels, as in the published EfficientNet parts


def narrow_channels(channels: int, width: float) -> int:
    """Channels times `width`, to the nearest multiple of 4 and at least 4."""
    return max(1, math.floor(channels * width / _MULTIPLE + 0.5)) * _MULTIPLE


def narrow_layers(model: nn.Module, width: float, pooled: str, device: Any = None) -> None:
    """Scale the width of all convolutions, batch norms and linear layers in place.

    Equal widths stay equal, so what is added stays addable. The image's channels and the classes stay, depthwise
    convolutions stay depthwise, other groups keep their width. New weights have PyTorch's initialisation.

    Args:
        model: built on the meta device, so that the whole network costs no memory.
        width: factor of the channels.
        pooled: name of the layer behind the pooling, which may put several kinds of means side by side.
        device: where the new weights live.
    Raises:
        ValueError: weights of a kind that has no width here (attention, weight mixtures, group norm), or groups
            that the new width cannot hold.
    """
    cfg = model.pretrained_cfg
    image = _names(cfg.get("first_conv"))
    classes = _names(cfg.get("classifier"))
    known: set[int] = set()
    for name, layer in model.named_modules():
        if not isinstance(layer, (nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.Linear)):
            continue
        inputs, outputs = _sides(layer)
        if name not in image:
            copies = _means(model) if name == pooled else 1
            inputs = copies * narrow_channels(inputs // copies, width)
        if name not in classes:
            outputs = narrow_channels(outputs, width)
        _resize(layer, name, inputs, outputs, torch.device(device) if device is not None else None)
        known |= {id(tensor) for tensor in _tensors(layer)}
    unknown = next((key for key, tensor in _named_tensors(model) if id(tensor) not in known), None)
    if unknown:
        raise ValueError(f"cannot change the width of {type(model).__name__}'s {unknown!r}; choose another network")
    _tell_widths(model, width, _means(model) if pooled in classes else 1)


def _sides(layer: nn.Module) -> tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.num_features, layer.num_features


def _resize(layer: nn.Module, name: str, inputs: int, outputs: int, device: Optional[torch.device]) -> None:
    weight_shape: tuple[int, ...] = (outputs,)
    if isinstance(layer, nn.Conv2d):
        layer.groups = _groups(layer, name, inputs)
        layer.in_channels, layer.out_channels = inputs, outputs
        weight_shape = (outputs, inputs // layer.groups, *layer.kernel_size)
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = inputs, outputs
        weight_shape = (outputs, inputs)
    else:
        layer.num_features = outputs
    for key, old in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        shape = weight_shape if key == "weight" else (outputs,) if old.ndim else ()  # () counts the batches
        new = torch.empty(shape, dtype=old.dtype, device=device or torch.get_default_device())
        setattr(layer, key, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    layer.reset_parameters()


def _groups(conv: nn.Conv2d, name: str, inputs: int) -> int:
    if conv.groups in (1, conv.in_channels):
        return 1 if conv.groups == 1 else inputs
    group_width = conv.in_channels // conv.groups
    if inputs % group_width:
        raise ValueError(f"{name} has groups of {group_width} channels, which do not divide the new width {inputs}")
    return inputs // group_width


def _tell_widths(model: nn.Module, width: float, copies: int) -> None:
    """What the network and its head say about their widths; `copies` of a width reach the classifier."""
    model.num_features = narrow_channels(model.num_features, width)
    model.head_hidden_size = copies * narrow_channels(model.head_hidden_size // copies, width)
    for info in model.feature_info:
        info["num_chs"] = narrow_channels(info["num_chs"], width)
    for head in model.modules():
        if isinstance(head, ClassifierHead):
            head.in_features = narrow_channels(head.in_features, width)
            head.num_features = copies * head.in_features


def _means(model: nn.Module) -> int:
    pool = model.head.global_pool if hasattr(model, "head") else model.global_pool
    return pool.feat_mult()


def _names(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _tensors(module: nn.Module) -> Iterable[Tensor]:
    return chain(module.parameters(recurse=False), module.buffers(recurse=False))


def _named_tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    return chain(module.named_parameters(), module.named_buffers())
