"""Division rules of the SplitNet paper's EfficientNets (arXiv:2011.14660 and its code).

Widths are tables made by hand for S = 2 and 4, scaled like the whole network's but to multiples of 4; depths stay. The
parts' dropout is the whole network's over sqrt(S).

>>> import timm_mix
>>> timm_mix.divide("efficientnetb0", 4)["channels"]
(12, 16, 20, 40, 56, 96, 160)
"""

import math
import re
from typing import Any

from timm_mix.models.divide.resnet import Rules
from timm_mix.models.efficientnet_published import ARCHS, Widths, scaled_widths

__all__ = ["RULES"]

_BASES = {
    2: Widths(24, (12, 16, 24, 56, 80, 136, 224), 920),
    4: Widths(16, (12, 16, 20, 40, 56, 96, 160), 640),
}


def _efficientnet(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    if split not in _BASES:
        raise ValueError(f"{name} divides into S = 2 or 4 parts, as published, got S = {split}")
    arch = ARCHS[match["arch"]]
    widths = scaled_widths(_BASES[split], arch.width, 4)
    dropout = arch.dropout / math.sqrt(split)
    kwargs = {
        "stem_width": widths.stem,
        "channels": widths.stages,
        "head_width": widths.head,
        "drop_rate": dropout,
    }
    return {**kwargs, "residual_drop_rate": dropout} if match["form"] else kwargs


RULES: Rules = ((r"(?P<arch>efficientnetb[0-7])(?P<form>_lightnet|_cifar)?", _efficientnet),)
