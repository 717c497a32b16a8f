"""Choose one of S parts so that all S together have about as many parameters as the whole network.

Networks are built without weights (on the meta device), to be counted.
"""

import functools
import math
from collections.abc import Callable, Iterable
from typing import Any, Optional

import timm
from torch import nn

from timm_mix.models.divide.resnet import Rule

__all__ = ["as_whole", "count_parameters", "fit_first", "fit_scale", "no_rule", "remembered", "rounded"]

LEAST, MOST = 0.9, 1.1  # parameters of all parts over those of the whole
_STEPS = 10  # of the search, which needs one to three unless the widths are coarse

Kwargs = dict[str, Any]


def fit_scale(
    name: str,
    whole: nn.Module,
    split: int,
    part: Callable[[float], Kwargs],
    count: Optional[Callable[[Kwargs], int]] = None,
) -> Kwargs:
    """Arguments of one part whose widths are scaled by 1 / sqrt(S), or, where that misses, by the scale that fits.

    It misses where a classifier or an embedding, which one width only scales, holds much of the network, and where
    the rounding of narrow layers adds up.

    Args:
        name: the architecture.
        whole: its network.
        part: scale -> arguments of a part.
        count: parameters of a part; default: it is built and counted.
    Raises:
        ValueError: no scale fits.

    >>> whole = timm.create_model("test_resnet", device="meta")  # stages of 32, 48, 48 and 96 channels
    >>> def part(scale):
    ...     return {"channels": tuple(rounded(width * scale, 8) for width in (32, 48, 48, 96))}
    >>> fit_scale("test_resnet", whole, 2, part)
    {'channels': (24, 32, 32, 64)}
    """
    scale, too_small, too_large = 1 / math.sqrt(split), 0.0, math.inf
    misses: list[float] = []
    for _ in range(_STEPS):
        kwargs = part(scale)
        ratio = split * (count or functools.partial(_count_part, name))(kwargs) / count_parameters(whole)
        if LEAST <= ratio <= MOST:
            return kwargs
        misses.append(ratio)
        if ratio < 1:
            too_small = scale
        else:
            too_large = scale
        scale /= math.sqrt(ratio)  # parameters grow with the square of the width, nearly
        if not too_small < scale < too_large:  # they did not, because of the rounding
            scale = (too_small + too_large) / 2
    raise _misfit(name, split, misses)


def fit_first(name: str, whole: nn.Module, split: int, parts: Iterable[Kwargs]) -> Kwargs:
    """The first of the given parts that fits; `name` and `whole` as above.

    Raises:
        ValueError: none fits.

    >>> whole = timm.create_model("test_resnet", device="meta")
    >>> fit_first("test_resnet", whole, 2, [{"channels": (width, width, width, width)} for width in (16, 40, 64)])
    {'channels': (40, 40, 40, 40)}
    """
    misses: list[float] = []
    for kwargs in parts:
        ratio = split * _count_part(name, kwargs) / count_parameters(whole)
        if LEAST <= ratio <= MOST:
            return kwargs
        misses.append(ratio)
    raise _misfit(name, split, misses)


def count_parameters(model: nn.Module) -> int:
    """How many numbers a network learns; those on the meta device count as well.

    >>> count_parameters(nn.Linear(3, 5))
    20
    """
    return sum(p.numel() for p in model.parameters())


def as_whole(name: str, kind: type) -> Any:
    """The undivided network, without weights.

    Raises:
        ValueError: an unknown name, or a network of another class than the rule knows.

    >>> from timm.models.vision_transformer import VisionTransformer
    >>> as_whole("test_vit", VisionTransformer).embed_dim
    64
    """
    whole = timm.create_model(name, device="meta") if timm.is_model(name) else None
    if not isinstance(whole, kind):
        found = "timm does not know it" if whole is None else f"this is a {type(whole).__name__}"
        raise no_rule(name, f"the rule for such names divides timm's {kind.__name__}, but {found}")
    return whole


def no_rule(name: str, reason: str) -> ValueError:
    """The error that a rule raises for an architecture which it cannot divide, for this reason.

    >>> print(no_rule("mynet", "its widths are fixed"))
    no division rule for 'mynet': its widths are fixed; divide=False makes an ensemble of whole networks of any kind
    """
    return ValueError(
        f"no division rule for {name!r}: {reason}; divide=False makes an ensemble of whole networks of any kind"
    )


def rounded(width: float, multiple: int) -> int:
    """The nearest multiple, at least one.

    >>> rounded(45.3, 8), rounded(1, 8)
    (48, 8)
    """
    return max(1, math.floor(width / multiple + 0.5)) * multiple


def remembered(rule: Rule) -> Rule:
    """The rule, searching once only for each (architecture, S); every caller gets a dict of its own.

    >>> import re
    >>> @remembered
    ... def rule(match, split):
    ...     print("searching")
    ...     return {"width": 64 // split}
    >>> match = re.fullmatch("mynet", "mynet")
    >>> rule(match, 2), rule(match, 2)
    searching
    ({'width': 32}, {'width': 32})
    """
    found: dict[tuple[str, int], Kwargs] = {}

    @functools.wraps(rule)
    def look_up(match: Any, split: int) -> Kwargs:
        name = match[0]
        if (name, split) not in found:
            found[name, split] = rule(match, split)
        return dict(found[name, split])

    return look_up


def _count_part(name: str, kwargs: Kwargs) -> int:
    try:
        return count_parameters(timm.create_model(**{"model_name": name, "device": "meta", **kwargs}))
    except (AssertionError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:90] or type(error).__name__
        raise no_rule(name, f"timm cannot build it with {kwargs} ({reason})") from error


def _misfit(name: str, split: int, ratios: list[float]) -> ValueError:
    nearest = f"{min(ratios, key=lambda ratio: abs(math.log(ratio))):.2f}" if ratios else "none"
    return ValueError(
        f"{name} does not divide into S = {split} parts of {LEAST} to {MOST} of its parameters in all (nearest: "
        f"{nearest}); take another S, or divide=False"
    )
