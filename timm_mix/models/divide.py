"""Division rules: (architecture, S) -> the timm keyword arguments of one of S parts (Zhao et al., arXiv:2011.14660).

Plain names divide timm's own architecture: a 7x7 stem keeps its 64 channels, a deep stem narrows with the stages.
"""

import re
from collections.abc import Callable
from typing import Any

from timm_mix.functional.splitnet import STAGE_WIDTHS, divided_widen_factor
from timm_mix.models._backbone import check_count

__all__ = ["divide"]

_DEEP_STEMS = {"c": 32, "d": 32, "t": 32, "tn": 32, "s": 64, "e": 64}  # timm's suffixes and their stem widths


def divide(arch: str, split: int) -> dict[str, Any]:
    """The timm keyword arguments that turn `arch` into one of `split` parts.

    timm.create_model(arch, **divide(arch, split)) is one part. S = 1 is the whole network.

    Args:
        arch: name of a timm model, a pretrained tag is ignored.
        split: S, the number of parts.
    Raises:
        ValueError: a family without a division rule, or an S that the family cannot take.
    Reference: arXiv:2011.14660, sec. 3.1 and its published tables.
    """
    check_count("split", split)
    name = str(arch).split(".")[0]
    for pattern, rule in _RULES:
        match = re.fullmatch(pattern, name)
        if match:
            return rule(name, split, match) if split > 1 else {}
    raise ValueError(
        f"no division rule for {arch!r}: known are timm's resnet*, seresnet*, wide_resnet*, resnext*, seresnext* and "
        "wrn*; divide=False makes an ensemble of whole networks of any kind"
    )


def _stage_width(name: str, split: int) -> int:
    if split not in STAGE_WIDTHS:
        raise ValueError(f"{name} divides into S = 2, 4 or 8 parts, got S = {split}")
    return STAGE_WIDTHS[split]


def _resnet(name: str, split: int, match: re.Match[str]) -> dict[str, Any]:
    """Stage widths i, 2i, 4i, 8i; the stem of the deep variants in proportion."""
    width = _stage_width(name, split)
    kwargs: dict[str, Any] = {"channels": (width, 2 * width, 4 * width, 8 * width)}
    stem = _DEEP_STEMS.get(match["variant"] or "")
    if stem is not None:
        kwargs["stem_width"] = stem * width // 64
    return kwargs


def _wide_resnet(name: str, split: int, match: re.Match[str]) -> dict[str, Any]:
    """Published: wide_resnet50 halves only its bottlenecks for S = 2; otherwise the stages narrow, base width 128."""
    if match["depth"] == "50" and split == 2:
        return {"base_width": 64}
    return _resnet(name, split, match)


def _resnext(name: str, split: int, match: re.Match[str]) -> dict[str, Any]:
    """Only the cardinality is divided."""
    groups = int(match["groups"])
    if groups % split:
        raise ValueError(f"{name} divides its {groups} groups: S must divide {groups}, got S = {split}")
    return {"cardinality": groups // split}


def _wrn(name: str, split: int, match: re.Match[str]) -> dict[str, Any]:
    """k' = int(max(k / sqrt(S) + 0.4, 1)); a part that stays as wide as the whole is no division."""
    k = int(match["k"])
    divided = divided_widen_factor(k, split)
    if divided >= k:
        raise ValueError(f"{name} is too narrow to divide (k = {k}), got S = {split}")
    return {"widen_factor": divided}


_Rule = Callable[[str, int, "re.Match[str]"], dict[str, Any]]
_RULES: tuple[tuple[str, _Rule], ...] = (
    (r"(?:se)?resnet(?:18|26|34|50|101|152|200)(?P<variant>[cdest]|tn)?", _resnet),
    (r"wide_resnet(?P<depth>50|101)_2(?P<variant>)", _wide_resnet),
    (r"(?:se)?resnext\d+d?_(?P<groups>\d+)x\d+d", _resnext),
    (r"wrn\d+_(?P<k>\d+)", _wrn),
)
