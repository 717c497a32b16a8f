"""Division rule beyond the paper for timm's RegNets (Radosavovic et al., CVPR 2020, arXiv:2003.13678).

A RegNet's widths follow from three numbers: block j has the width w0 + wa * j, snapped to the nearest power of wm
(times w0), and that to a multiple of 8. A part keeps the depth of every stage and the line's shape, and divides first
width, last width and group width by sqrt(S); where the multiples of 8 are too coarse for that, wm moves as well.

>>> import timm_mix
>>> sorted(timm_mix.divide("regnetx_002", 2))
['group_size', 'stem_width', 'w0', 'wa', 'wm']
"""

import math
import re
from collections.abc import Iterator
from typing import Any, Optional

import numpy as np
from timm.models.regnet import RegNet, RegNetCfg, model_cfgs

from timm_mix.models.divide.fit import as_whole, fit_scale, remembered, rounded
from timm_mix.models.divide.resnet import Rules

__all__ = ["RULES"]

_QUANTUM = 8  # of the widths, by the family's definition


@remembered
def _regnet(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    whole = as_whole(name, RegNet)
    cfg = model_cfgs[name]

    def part(scale: float) -> dict[str, Any]:
        _, kwargs = min(_parts(cfg, scale), key=lambda part: part[0])
        if cfg.num_features:
            kwargs["num_features"] = rounded(cfg.num_features * scale, 8)
        return {**kwargs, "stem_width": rounded(cfg.stem_width * scale, 8)}

    return fit_scale(name, whole, split, part)


def _parts(cfg: RegNetCfg, scale: float) -> Iterator[tuple[float, dict[str, Any]]]:
    """Arguments of parts with the whole network's depths, each with its distance from the exact division."""
    widths, depths = _stages(cfg.w0, cfg.wa, cfg.wm, cfg.depth)
    wanted = [width * scale for width in widths]
    group = rounded(cfg.group_size * scale, 8 if cfg.group_size >= 16 else 4)
    for w0 in {rounded(wanted[0] + _QUANTUM * step, _QUANTUM) for step in (-1, 0, 1)}:
        for wm, wa in _lines(cfg, w0, wanted[-1], depths):
            found, same = _stages(w0, wa, wm, cfg.depth)
            if same == depths:
                off = sum(n * abs(math.log(a / b)) for n, a, b in zip(depths, found, wanted, strict=True))
                yield off, {"w0": w0, "wa": wa, "wm": wm, "group_size": group}


def _lines(cfg: RegNetCfg, w0: int, last: float, depths: list[int]) -> Iterator[tuple[float, float]]:
    """(wm, wa) with the same depths: the line's own shape, and one that ends at the wanted last width."""
    yield cfg.wm, round(cfg.wa * w0 / cfg.w0, 2)
    wm = round((last / w0) ** (1 / (len(depths) - 1)), 3)
    wa = _slope(w0, wm, cfg.depth, depths) if wm > 1 else None
    if wa is not None:
        yield wm, wa


def _slope(w0: int, wm: float, depth: int, depths: list[int]) -> Optional[float]:
    """The slope wa for which the stages have these depths, in the middle of those that serve; None if there is none."""
    slopes = np.geomspace(0.02, 20, 1500)
    powers = np.round(np.log1p(slopes[:, None] * np.arange(depth)) / math.log(wm))
    ends = np.repeat(np.arange(len(depths)), depths)
    serve = slopes[(powers == ends).all(1)]
    return round(float(serve[len(serve) // 2]) * w0, 2) if len(serve) else None


def _stages(w0: int, wa: float, wm: float, depth: int) -> tuple[list[int], list[int]]:
    """Width and depth of every stage."""
    powers = np.round(np.log((w0 + wa * np.arange(depth)) / w0) / math.log(wm))
    widths = np.round(w0 * wm**powers / _QUANTUM) * _QUANTUM
    values, counts = np.unique(widths.astype(int), return_counts=True)
    return values.tolist(), counts.tolist()


RULES: Rules = ((r"regnet[xyzv]_\w+", _regnet),)
