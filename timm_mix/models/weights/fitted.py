"""Weights brought to another image size or to other channels, as timm does it for pretrained ones.

timm's pretrained weights pass its families' filters, which resample position embeddings, and have their first
convolution adapted; weights of a file, and those of a network with members, come here for the same.
"""

import sys
from typing import Any, Dict, Optional, Sequence, Tuple, Union

import torch
from timm.models import adapt_input_conv
from torch import nn

__all__ = ["fits", "resampled", "with_channels"]

State = Dict[str, torch.Tensor]


def resampled(network: nn.Module, state: State, source: Optional[Sequence[int]] = None) -> State:
    """A plain network's own state dict at the network's image size, by the filter of its family.

    What fits is handed back as it is, and what no filter knows, for torch to name.

    Args:
        source: (H, W) of the images that the weights were trained on; None: what the network says of its source, or
            else a square.

    >>> import timm
    >>> state = timm.create_model("test_vit", img_size=(32, 64), num_classes=5).state_dict()  # patches of 16: 2 x 4
    >>> network = timm.create_model("test_vit", img_size=(64, 48), num_classes=5)  # 4 x 3
    >>> network.load_state_dict(resampled(network, state, source=(32, 64)))
    <All keys matched successfully>
    """
    adapt = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if adapt is None or fits(network, state, source):
        return state
    before = getattr(network, "pretrained_model_args", {})
    network.pretrained_model_args = {**before, "img_size": tuple(source)} if source else before
    try:
        return adapt(dict(state), network)
    finally:
        network.pretrained_model_args = before


def fits(network: nn.Module, state: State, source: Optional[Sequence[int]] = None) -> bool:
    """Whether a state dict has the network's shapes, heads and first convolution aside, and its image size.

    As many tokens may lie on another grid: 2 x 8 of them are no 4 x 4.

    >>> import timm
    >>> network = timm.create_model("test_vit", img_size=64)
    >>> [fits(network, network.state_dict(), source) for source in (None, (64, 64), (32, 128))]
    [True, True, False]
    """
    source = source or getattr(network, "pretrained_model_args", {}).get("img_size")
    size = getattr(network, "_traits", {}).get("img_size")
    if source is not None and size is not None and _sides(source) != _sides(size):
        return False
    own, layers = network.state_dict(), _layers(network, "classifier") + _layers(network, "first_conv")
    names = {key for key in own if key.rpartition(".")[0] not in layers}
    return all(own[key].shape == state[key].shape for key in names & set(state))


def with_channels(network: nn.Module, state: State) -> State:
    """The state dict with first convolutions for the network's number of channels: repeated or summed, and scaled.

    >>> import timm
    >>> state = timm.create_model("test_resnet", num_classes=5).state_dict()
    >>> network = timm.create_model("test_resnet", num_classes=5, in_chans=4)
    >>> network.load_state_dict(with_channels(network, state))
    <All keys matched successfully>
    >>> bool((network.conv1[0].weight[:, 3] == network.conv1[0].weight[:, 0]).all())
    True
    """
    changed: State = {}
    for name in _layers(network, "first_conv"):
        layer: Any = network.get_submodule(name)
        weight = state.get(f"{name}.weight")
        of_image = isinstance(layer, nn.Conv2d) and layer.in_channels == getattr(network, "in_chans", 0)
        if not of_image or layer.groups != 1 or weight is None or weight.ndim != 4:
            continue
        if weight.shape[1] != layer.in_channels:
            changed[f"{name}.weight"] = adapt_input_conv(layer.in_channels, weight, base_chans=weight.shape[1])
    return {**state, **changed}


def _sides(size: Any) -> Tuple[int, ...]:
    return (size, size) if isinstance(size, int) else tuple(size)


def _layers(network: nn.Module, kind: str) -> Tuple[str, ...]:
    cfg: Any = getattr(network, "pretrained_cfg", None) or {}
    names: Union[str, Sequence[str], None] = cfg.get(kind)
    return (names,) if isinstance(names, str) else tuple(names or ())
