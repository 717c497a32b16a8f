"""Division rules of the ImageNet networks that SplitNet's published code divides, and of timm's ResNeSt.

Stages and stem narrow together, or the groups are divided and nothing else. Dropout in front of the classifier is
divided with them: p / sqrt(S) for networks with attention, p / S for the plain ResNet that has any; DropBlock by
sqrt(S). The published tables end at S = 8, those of the wide ResNets at S = 4, of ResNeSt at S = 1: beyond them the
rule is the same.

>>> import timm_mix
>>> timm_mix.divide("resnext101e_64x4d", 4)
{'cardinality': 16}
"""

import math
import re
from typing import Any

from timm_mix.models import resnet_e, resnexst, se_resnet
from timm_mix.models.divide.resnet import Rules, divided_groups, stage_width

__all__ = ["NAMES", "RULES"]

NAMES = (*resnet_e.NETS, *se_resnet.NETS, *resnexst.NETS)


def _narrow(match: re.Match[str], split: int) -> dict[str, Any]:
    """Stage widths i, 2i, 4i, 8i behind a deep stem of i channels (of half as many in the narrow-stem variant d)."""
    name = match[0]
    width = stage_width(name, split)
    stem = width // 2 if match.groupdict().get("variant") == "d" else width
    return {"channels": (width, 2 * width, 4 * width, 8 * width), "stem_width": stem}


def _resnet(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    drop_rate = resnet_e.NETS[name].get("drop_rate", 0.0)
    return {**_narrow(match, split), **({"drop_rate": drop_rate / split} if drop_rate else {})}


def _wide_resnet(match: re.Match[str], split: int) -> dict[str, Any]:
    """Published: two parts of wide_resnet50 keep the stages, and 64 (k - 1) of the base width 64 k."""
    if match["depth"] == "50" and split == 2:
        return {"base_width": 64 * (int(match["k"]) - 1)}
    return _narrow(match, split)


def _groups(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    return {"cardinality": divided_groups(name, int(match["groups"]), split)}


def _se_resnet(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    return {**_narrow(match, split), **_drop(se_resnet.NETS[name], split)}


def _se_groups(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    net = se_resnet.NETS[name]
    return {"cardinality": divided_groups(name, net["cardinality"], split), **_drop(net, split)}


def _senet(match: re.Match[str], split: int) -> dict[str, Any]:
    """timm's own: it has no dropout to divide."""
    name = match[0]
    return {"cardinality": divided_groups(name, 64, split)}


def _resnexst(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    return {**_groups(match, split), **_drop(resnexst.NETS[name], split)}


def _drop(net: dict[str, Any], split: int) -> dict[str, float]:
    rates = {key: net.get(key, 0.0) / math.sqrt(split) for key in ("drop_rate", "drop_block_rate")}
    return {key: rate for key, rate in rates.items() if rate > 0}


RULES: Rules = (
    (r"resnet(?:50|101|152|200)e", _resnet),
    (r"wide_resnet(?P<depth>50|101)_(?P<k>[23])e", _wide_resnet),
    (r"resnext(?:50|101)e_(?P<groups>\d+)x4d", _groups),
    (r"se_resnet(?:50|50_b|101|152)", _se_resnet),
    (r"se_resnext101_64x4d(?:_b)?|senet113|senet154e", _se_groups),
    (r"senet154", _senet),
    (r"resnexst(?:50|101)_(?P<groups>\d+)x\d+d", _resnexst),
    (r"resnest\d+(?P<variant>[de])", _narrow),
    (r"resnest50d_\ds(?P<groups>\d)x\d+d", _groups),
)
