"""Division rules beyond the paper, for convolutional families of timm.

Every width times 1 / sqrt(S), rounded as the family needs, and nudged where that leaves 0.9 to 1.1 of the whole
network's parameters (see _fit). Depths, kernels, strides and stages stay. Where timm's entrypoint fixes the widths, a
part is one of our `narrow_*` models over the same architecture.

>>> import timm_mix
>>> timm_mix.divide("mobilenetv3_small_050", 2)
{'model_name': 'narrow_mobilenetv3', 'backbone': 'mobilenetv3_small_050', 'width': ...}
"""

import re
from typing import Any

from timm.layers import EvoNorm2dS0
from timm.models.convnext import ConvNeXt
from timm.models.densenet import DenseNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

from timm_mix.models._narrowing import NarrowingError
from timm_mix.models.divide import regnet, transformer
from timm_mix.models.divide.fit import as_whole, fit_scale, no_rule, remembered, rounded
from timm_mix.models.divide.resnet import Rule, Rules
from timm_mix.models.narrow import FAMILIES, count_narrow

__all__ = ["RULES"]


@remembered
def _convnext(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    whole = as_whole(name, ConvNeXt)
    widths = [info["num_chs"] for info in whole.feature_info]
    mlp_head = hasattr(getattr(whole.head, "pre_logits", None), "fc")
    hidden = whole.head_hidden_size if mlp_head else 0

    def part(scale: float) -> dict[str, Any]:
        dims = {"dims": tuple(rounded(width * scale, 8) for width in widths)}
        return {**dims, "head_hidden_size": rounded(hidden * scale, 8)} if hidden else dims

    return fit_scale(name, whole, split, part)


@remembered
def _densenet(match: re.Match[str], split: int) -> dict[str, Any]:
    """The growth rate, on which every other width depends."""
    name = match[0]
    whole = as_whole(name, DenseNet)
    growth = whole.features.denseblock1.denselayer1.conv2.out_channels
    return fit_scale(name, whole, split, lambda scale: {"growth_rate": rounded(growth * scale, 1)})


@remembered
def _resnetv2(match: re.Match[str], split: int) -> dict[str, Any]:
    """Stage widths; a 7x7 stem keeps its width and a deep stem narrows, as in timm's other ResNets."""
    name = match[0]
    whole = as_whole(name, ResNetV2)
    stem, *widths = [info["num_chs"] for info in whole.feature_info]
    factor = int(match["factor"] or 1)  # BiT's names carry a factor, which timm applies to the channels it is given
    # group norms of 32 groups stand behind every stage and every bottleneck, a quarter as wide
    grouped = any(isinstance(module, (nn.GroupNorm, EvoNorm2dS0)) for module in whole.modules())
    deep = not isinstance(whole.stem, nn.Conv2d) and hasattr(whole.stem, "conv1") and not grouped

    def part(scale: float) -> dict[str, Any]:
        channels = tuple(rounded(width * scale, 128 if grouped else 8) for width in widths)
        kwargs: dict[str, Any] = {"channels": channels if factor == 1 else tuple(c / factor for c in channels)}
        return {**kwargs, "stem_chs": rounded(stem * scale, 8)} if deep else kwargs

    return fit_scale(name, whole, split, part)


def _narrow(model_name: str) -> Rule:
    """A rule for a family whose entrypoints fix the widths."""

    @remembered
    def rule(match: re.Match[str], split: int) -> dict[str, Any]:
        name = match[0]
        whole = as_whole(name, FAMILIES[model_name].kind)

        def part(scale: float) -> dict[str, Any]:
            return {"model_name": model_name, "backbone": name, "width": round(scale, 4)}

        try:
            return fit_scale(name, whole, split, part, lambda kwargs: count_narrow(model_name, whole, kwargs["width"]))
        except NarrowingError as error:
            raise no_rule(name, str(error)) from error

    return rule


RULES: Rules = (
    (r"convnext(?:v2)?_\w+", _convnext),
    (r"densenet\w+", _densenet),
    (r"resnetv2_\d+(?:x(?P<factor>\d))?\w*", _resnetv2),
    (r"(?:tf_)?efficientnet(?:v2)?_\w+|mobilenetv2_\w+", _narrow("narrow_efficientnet")),
    (r"(?:tf_)?mobilenetv3_\w+", _narrow("narrow_mobilenetv3")),
    (r"vgg\d+(?:_bn)?", _narrow("narrow_vgg")),
    *regnet.RULES,
    *transformer.RULES,
)
