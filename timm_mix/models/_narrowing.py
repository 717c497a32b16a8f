"""Make a built network narrower: every layer keeps its kind and place and gets fewer channels."""

import math
from dataclasses import dataclass
from itertools import chain
from typing import Any, Iterator, Tuple

import torch
from timm.layers import ClassifierHead
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["NarrowingError", "count_narrowed", "narrow_channels", "narrow_layers"]

_MULTIPLE = 4  # of channels, as in the published EfficientNet parts


class NarrowingError(ValueError):
    """A network with weights whose width cannot be changed layer by layer.

    >>> count_narrowed(timm.create_model("test_vit", device="meta"), 0.5, "head")
    Traceback (most recent call last):
        ...
    timm_mix.models._narrowing.NarrowingError: the width of its ...cls_token (VisionTransformer) cannot be changed
    """


@dataclass(frozen=True)
class _Resized:
    """A layer and the sides that it is to have."""

    layer: nn.Module
    inputs: int
    outputs: int
    groups: int = 1

    @property
    def weight_shape(self) -> Tuple[int, ...]:
        if isinstance(self.layer, nn.Conv2d):
            return self.outputs, self.inputs // self.groups, *self.layer.kernel_size
        return (self.outputs, self.inputs) if isinstance(self.layer, nn.Linear) else (self.outputs,)

    @property
    def parameters(self) -> int:
        sizes = {"weight": math.prod(self.weight_shape), "bias": self.outputs}
        return sum(sizes[key] for key, _ in self.layer.named_parameters(recurse=False))


def narrow_channels(channels: int, width: float) -> int:
    """Channels times `width`, to the nearest multiple of 4 and at least 4.

    >>> narrow_channels(64, 0.7), narrow_channels(3, 0.1)
    (44, 4)
    """
    return max(1, math.floor(channels * width / _MULTIPLE + 0.5)) * _MULTIPLE


def narrow_layers(model: nn.Module, width: float, pooled: str, device: Any = None) -> None:
    """Scale the width of all convolutions, batch norms and linear layers in place.

    Equal widths stay equal, so what is added stays addable. The image's channels and the classes stay, depthwise
    convolutions stay depthwise, other groups keep their width. New weights have PyTorch's own initialisation.

    Args:
        model: built on the meta device, so that the whole network costs no memory.
        width: factor of the channels.
        pooled: name of the layer behind the pooling, which may put several kinds of means side by side.
        device: where the new weights live.
    Raises:
        NarrowingError: weights of another kind (attention, mixtures of weights, group norm), or groups that the new
            width cannot hold.

    >>> model = timm.create_model("test_efficientnet", num_classes=5, device="meta")
    >>> narrow_layers(model, 0.5, "classifier", device="cpu")
    >>> model.classifier, model(torch.zeros(2, 3, 64, 64)).shape
    (Linear(in_features=128, out_features=5, bias=True), torch.Size([2, 5]))
    """
    target = torch.device(device) if device is not None else torch.get_default_device()
    resized = list(_resized(model, width, pooled))
    # a layer between the pooling and the classifier has one kind of features again
    copies = _means(model) if pooled in _names(model.pretrained_cfg.get("classifier")) else 1
    for new in resized:
        _resize(new, target)
    _tell_widths(model, width, copies)


def count_narrowed(model: nn.Module, width: float, pooled: str) -> int:
    """Parameters that the network would have after narrow_layers; it stays as it is.

    Raises:
        NarrowingError: as there.

    >>> model = timm.create_model("test_efficientnet", device="meta")
    >>> count_narrowed(model, 1.0, "classifier") == sum(p.numel() for p in model.parameters())
    True
    """
    return sum(new.parameters for new in _resized(model, width, pooled))


def _resized(model: nn.Module, width: float, pooled: str) -> Iterator[_Resized]:
    image = _names(model.pretrained_cfg.get("first_conv"))
    classes = _names(model.pretrained_cfg.get("classifier"))
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.Linear, _BatchNorm)):
            inputs, outputs = _sides(layer)
            if name not in image:
                copies = _means(model) if name == pooled else 1
                inputs = copies * narrow_channels(inputs // copies, width)
            if name not in classes:
                outputs = narrow_channels(outputs, width)
            yield _Resized(layer, inputs, outputs, _groups(layer, name, inputs))
            continue
        for key, _ in chain(layer.named_parameters(recurse=False), layer.named_buffers(recurse=False)):
            raise NarrowingError(f"the width of its {name}.{key} ({type(layer).__name__}) cannot be changed")


def _sides(layer: nn.Module) -> Tuple[int, int]:
    if isinstance(layer, nn.Conv2d):
        return layer.in_channels, layer.out_channels
    if isinstance(layer, nn.Linear):
        return layer.in_features, layer.out_features
    return layer.num_features, layer.num_features


def _groups(layer: nn.Module, name: str, inputs: int) -> int:
    before = getattr(layer, "groups", 1)
    if before == 1:
        return 1
    group_width = layer.in_channels // before
    if inputs % group_width:
        raise NarrowingError(f"its {name} has groups of {group_width} channels, which do not divide {inputs}")
    return inputs // group_width


def _resize(new: _Resized, device: torch.device) -> None:
    """Give the layer its new sides and new values."""
    layer = new.layer
    if isinstance(layer, nn.Conv2d):
        layer.in_channels, layer.out_channels, layer.groups = new.inputs, new.outputs, new.groups
    elif isinstance(layer, nn.Linear):
        layer.in_features, layer.out_features = new.inputs, new.outputs
    else:
        layer.num_features = new.outputs
    for key, old in [*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False)]:
        shape = new.weight_shape if key == "weight" else (new.outputs,) if old.ndim else ()  # () counts batches
        tensor = torch.empty(shape, dtype=old.dtype, device=device)
        setattr(layer, key, nn.Parameter(tensor) if isinstance(old, nn.Parameter) else tensor)
    layer.reset_parameters()


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


def _names(value: Any) -> Tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
