"""Guards for settings: each is one line that says what was wanted and what was given.

A bool is no number here: True as a probability or a count is a slip.

Raises:
    ValueError: in every guard, a value outside of what its name says, or of another type.
"""

import math
from collections.abc import Iterable
from typing import Any

__all__ = [
    "check_choice",
    "check_count",
    "check_not_negative",
    "check_positive",
    "check_probability",
    "check_share",
    "is_number",
]


def is_number(value: Any) -> bool:
    """Whether it is a Python int or float, NaN and infinity included."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_positive(name: str, value: Any) -> None:
    """0 < value < infinity."""
    _check(is_number(value) and 0 < value < math.inf, name, value, "> 0 and finite")


def check_not_negative(name: str, value: Any) -> None:
    """0 <= value < infinity."""
    _check(is_number(value) and 0 <= value < math.inf, name, value, ">= 0 and finite")


def check_probability(name: str, value: Any) -> None:
    """0 <= value <= 1."""
    _check(is_number(value) and 0 <= value <= 1, name, value, "in [0, 1]")


def check_share(name: str, value: Any) -> None:
    """0 < value <= 1."""
    _check(is_number(value) and 0 < value <= 1, name, value, "in (0, 1]")


def check_count(name: str, value: Any, least: int = 1, *, optional: bool = False) -> None:
    """An integer >= least; with `optional` None is one, too."""
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least
    wanted = f"an integer >= {least}" + " (or None)" * optional
    _check(good or (optional and value is None), name, value, wanted)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """One of the names; of a mapping, one of its keys."""
    names = list(choices)
    _check(value in names, name, value, f"one of {', '.join(names)}")


def _check(good: bool, name: str, value: Any, wanted: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
