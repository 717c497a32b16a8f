"""Division rules of timm's own ResNets and of the pre-activation wide ResNets.

Plain names divide timm's own architecture: a 7x7 stem keeps its 64 channels, a deep stem narrows with the stages.

>>> import timm_mix
>>> timm_mix.divide("resnet50d", 4)
{'channels': (32, 64, 128, 256), 'stem_width': 16}
"""

import re
from collections.abc import Callable
from typing import Any

from timm_mix.functional.splitnet import STAGE_WIDTHS, divided_widen_factor

__all__ = ["RULES", "Rule", "Rules", "divided_groups", "stage_width"]

_DEEP_STEMS = {"c": 32, "d": 32, "t": 32, "tn": 32, "s": 64, "e": 64}  # timm's suffixes and their stem widths


Rule = Callable[["re.Match[str]", int], dict[str, Any]]  # (match of the whole architecture, S > 1) -> arguments
Rules = tuple[tuple[str, Rule], ...]


def stage_width(name: str, split: int) -> int:
    """Width of a part's first stage, 64 in the whole; the others are 2, 4 and 8 times that.

    Raises:
        ValueError: S is not in the published table, the message names those that are.

    >>> [stage_width("resnet50", split) for split in (2, 4, 8)]
    [44, 32, 24]
    """
    if split not in STAGE_WIDTHS:
        raise ValueError(f"{name} divides into S = 2, 4 or 8 parts, got S = {split}")
    return STAGE_WIDTHS[split]


def divided_groups(name: str, groups: int, split: int) -> int:
    """Groups of a part's convolutions.

    Raises:
        ValueError: S does not divide the groups.

    >>> divided_groups("resnext50_32x4d", groups=32, split=4)
    8
    """
    if groups % split:
        raise ValueError(f"{name} divides its {groups} groups: S must divide {groups}, got S = {split}")
    return groups // split


def _resnet(match: re.Match[str], split: int) -> dict[str, Any]:
    """Stage widths i, 2i, 4i, 8i; the stem of the deep variants in proportion."""
    name = match[0]
    width = stage_width(name, split)
    kwargs: dict[str, Any] = {"channels": (width, 2 * width, 4 * width, 8 * width)}
    stem = _DEEP_STEMS.get(match["variant"] or "")
    if stem is not None:
        kwargs["stem_width"] = stem * width // 64
    return kwargs


def _wide_resnet(match: re.Match[str], split: int) -> dict[str, Any]:
    """Published: wide_resnet50 halves only its bottlenecks for S = 2; otherwise the stages narrow, base width 128."""
    if match["depth"] == "50" and split == 2:
        return {"base_width": 64}
    return _resnet(match, split)


def _resnext(match: re.Match[str], split: int) -> dict[str, Any]:
    """Only the cardinality is divided."""
    name = match[0]
    return {"cardinality": divided_groups(name, int(match["groups"]), split)}


def _wrn(match: re.Match[str], split: int) -> dict[str, Any]:
    """k' = int(max(k / sqrt(S) + 0.4, 1)); a part that stays as wide as the whole is no division."""
    name = match[0]
    k = int(match["k"])
    divided = divided_widen_factor(k, split)
    if divided >= k:
        raise ValueError(f"{name} is too narrow to divide (k = {k}), got S = {split}")
    return {"widen_factor": divided}


RULES: Rules = (
    (r"(?:se)?resnet(?:18|26|34|50|101|152|200)(?P<variant>[cdest]|tn)?", _resnet),
    (r"wide_resnet(?P<depth>50|101)_2(?P<variant>)", _wide_resnet),
    (r"(?:se)?resnext\d+d?_(?P<groups>\d+)x\d+d", _resnext),
    (r"wrn\d+_(?P<k>\d+)", _wrn),
)
