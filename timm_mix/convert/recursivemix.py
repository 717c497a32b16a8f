"""Names in RecursiveMix's official checkpoints (arXiv:2203.06844) -> ours.

All are plain networks behind a region head, fc_roi or linear_roi, which only the training loss reads: it is left out.

    ResNet-18      conv1.<n> -> conv1, bn1; conv<n>_x -> layer<n - 1>; residual_function.<n> -> conv1, bn1, conv2, bn2;
                   shortcut -> downsample
    DenseNet       conv1 -> features.conv0; dense_block_layer_<n> and the last one, dense_block<n> -> denseblock<n + 1>;
                   bottle_neck_layer_<n>.bottle_neck.<n> -> denselayer<n + 1>.norm1, conv1, norm2, conv2;
                   transition_layer_<n>.down_sample.<n> -> transition<n + 1>.norm, conv; bn -> norm5;
                   linear -> classifier
    PyramidNet, ResNet-50      the same names
"""

import re
from collections.abc import Iterable

from torch import nn

__all__ = ["LEFT_OUT", "NETWORKS", "model_name", "recognises", "rename"]

# published name -> ours; all are single networks
NETWORKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "cifar_resnet18": ("resnet18_cifar", (1,)),
    "cifar_pyramidnet_200_240": ("pyramidnet_200_240", (1,)),
    "cifar_pyramidnet_164_270": ("pyramidnet_164_270", (1,)),
    "cifar_densenet161": ("densenet161_cifar", (1,)),
    "imagenet_resnet50": ("resnet50", (1,)),
}
LEFT_OUT = "the region head serves in training only"

_REGION_HEAD = re.compile(r"(fc|linear)_roi\.")
_OWN = re.compile(r"(fc|linear)_roi\.|conv\d_x\.\d+\.residual_function\.|features\.dense_block")
_RESNET18 = {
    "conv1.0": "conv1",
    "conv1.1": "bn1",
    "residual_function.0": "conv1",
    "residual_function.1": "bn1",
    "residual_function.3": "conv2",
    "residual_function.4": "bn2",
    "shortcut": "downsample",
}
_DENSENET = {
    "conv1": "features.conv0",
    "bottle_neck.0": "norm1",
    "bottle_neck.2": "conv1",
    "bottle_neck.3": "norm2",
    "bottle_neck.5": "conv2",
    "down_sample.0": "norm",
    "down_sample.1": "conv",
    "features.bn": "features.norm5",
    "linear": "classifier",
}
# names with a number: ours counts from another one
_NUMBERED = (
    (re.compile(r"^conv(\d)_x\."), "layer", -1),
    (re.compile(r"\bdense_block(?:_layer_)?(\d+)\."), "denseblock", 1),
    (re.compile(r"\bbottle_neck_layer_(\d+)\."), "denselayer", 1),
    (re.compile(r"\btransition_layer_(\d+)\."), "transition", 1),
)


def model_name(name: str, members: int) -> str:
    """The registered name of one of NETWORKS, which is that name.

    >>> model_name("pyramidnet_200_240", 1)
    'pyramidnet_200_240'
    """
    return name


def recognises(keys: Iterable[str]) -> bool:
    """Whether some key is a region head's, or has a name that only these networks give.

    >>> recognises(["conv2_x.0.residual_function.0.weight"]), recognises(["layer1.0.conv1.weight"])
    (True, False)
    """
    return any(_OWN.match(key.removeprefix("module.")) for key in keys)


def rename(keys: Iterable[str], model: nn.Module) -> dict[str, str | None]:
    """Our name of every official key, in any model; None for the region head.

    >>> rename(["conv2_x.0.residual_function.0.weight", "fc_roi.weight"], nn.Identity())
    {'conv2_x.0.residual_function.0.weight': 'layer1.0.conv1.weight', 'fc_roi.weight': None}
    """
    keys = list(keys)
    dense = any(key.removeprefix("module.").startswith("features.dense_block") for key in keys)
    return {key: _our_name(key.removeprefix("module."), _DENSENET if dense else _RESNET18) for key in keys}


def _our_name(key: str, layers: dict[str, str]) -> str | None:
    if _REGION_HEAD.match(key):
        return None
    for theirs, ours in layers.items():
        found = re.search(rf"(?:^|(?<=\.)){re.escape(theirs)}\.", key)
        if found:
            key = f"{key[: found.start()]}{ours}.{key[found.end() :]}"
            break
    for pattern, ours, shift in _NUMBERED:
        found = pattern.search(key)
        if found:
            key = f"{key[: found.start()]}{ours}{int(found[1]) + shift}.{key[found.end() :]}"
    return key
