"""Division rules of SplitNet's networks for small images (arXiv:2011.14660 and its published code).

resnext29 divides its groups like every ResNeXt, by the rule in resnet.py. Dropout and ShakeDrop weaken with the
parts: p / S and p / sqrt(S).

>>> import timm_mix
>>> timm_mix.divide("wide_resnet40_10", 4)
{'channels': (80, 160, 320), 'drop_rate': 0.025}
"""

import math
import re
from collections.abc import Mapping
from typing import Any

from timm_mix.functional.splitnet import divided_widen_factor
from timm_mix.models.divide.resnet import Rules

__all__ = ["ARCHS", "RULES"]

ARCHS = (
    *("resnet110", "resnet164", "se_resnet110", "se_resnet164", "resnext29_8x64d", "resnext29_16x64d"),
    *("wide_resnet16_8", "wide_resnet16_12", "wide_resnet28_10", "wide_resnet40_10", "wide_resnet52_8"),
    *("densenet190", "pyramidnet164", "pyramidnet272", "shake_resnet26_2x96d"),
)
_STEMS = {2: 12, 4: 8, 8: 6, 16: 4}  # of the whole: 16
_SQUEEZED_STEMS = {2: 12, 4: 8}
_SHAKE_WIDTHS = {2: 64, 4: 48, 8: 32, 16: 24}  # of the whole: 96
_DROPOUT = 0.1  # of the whole wide_resnet40_10
_SHAKEDROP = 0.5  # of the whole PyramidNets
_ALPHA = {"pyramidnet164": 270, "pyramidnet272": 200}
_GROWTH_RATE = 40  # of the whole densenet190


def _width(name: str, split: int, table: Mapping[int, int]) -> int:
    if split not in table:
        *few, last = table
        raise ValueError(f"{name} divides into S = {', '.join(map(str, few))} or {last} parts, got S = {split}")
    return table[split]


def _resnet(match: re.Match[str], split: int) -> dict[str, Any]:
    """Stem i and stages of i, 2i, 4i."""
    name = match[0]
    i = _width(name, split, _SQUEEZED_STEMS if match["se"] else _STEMS)
    return {"stem_width": i, "channels": (i, 2 * i, 4 * i)}


def _wide_resnet(match: re.Match[str], split: int) -> dict[str, Any]:
    """k' = int(max(k / sqrt(S) + 0.4, 1)); the stem keeps its 16 channels."""
    name = match[0]
    k = divided_widen_factor(int(name.rpartition("_")[2]), split)
    dropout = {"drop_rate": _DROPOUT / split} if name == "wide_resnet40_10" else {}
    return {"channels": (16 * k, 32 * k, 64 * k), **dropout}


def _densenet(match: re.Match[str], split: int) -> dict[str, Any]:
    """k = int(40 / sqrt(S) * 2) // 2."""
    name = match[0]
    growth_rate = int(_GROWTH_RATE / math.sqrt(split) * 2) // 2
    if growth_rate < 1:
        raise ValueError(f"{name} divides into at most {_GROWTH_RATE**2} parts, got S = {split}")
    return {"growth_rate": growth_rate}


def _pyramidnet(match: re.Match[str], split: int) -> dict[str, Any]:
    """Widening and ShakeDrop over sqrt(S); the stem keeps its 16 channels."""
    name = match[0]
    return {"alpha": _ALPHA[name] / math.sqrt(split), "shakedrop_rate": _SHAKEDROP / math.sqrt(split)}


def _shake_resnet(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    return {"base_width": _width(name, split, _SHAKE_WIDTHS)}


RULES: Rules = (
    (r"(?P<se>se_)?resnet(?:110|164)", _resnet),
    (r"wide_resnet(?:16_8|16_12|28_10|40_10|52_8)", _wide_resnet),
    (r"densenet190", _densenet),
    (r"pyramidnet(?:164|272)", _pyramidnet),
    (r"shake_resnet26_2x96d", _shake_resnet),
)
