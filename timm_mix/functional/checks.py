"""Guards for settings: each is one line that says what was wanted and what was given.

A bool is no number here: True as a probability or a count is a slip.

Raises:
    ValueError: in every guard, a value outside of what its name says, or of another type.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch

__all__ = [
    "check_choice",
    "check_count",
    "check_images",
    "check_labels",
    "check_members",
    "check_not_negative",
    "check_positive",
    "check_probability",
    "check_share",
    "is_number",
]


def is_number(value: Any) -> bool:
    """Whether it is a Python int or float, NaN and infinity included.

    >>> [is_number(value) for value in (3, 0.5, True, "3", None)]
    [True, True, False, False, False]
    """
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_positive(name: str, value: Any) -> None:
    """0 < value < infinity.

    >>> check_positive("alpha", 0.2)
    >>> check_positive("alpha", 0)
    Traceback (most recent call last):
    ValueError: alpha must be > 0 and finite, got 0
    """
    _check(is_number(value) and 0 < value < math.inf, name, value, "> 0 and finite")


def check_not_negative(name: str, value: Any) -> None:
    """0 <= value < infinity.

    >>> check_not_negative("weight", 0)
    >>> check_not_negative("weight", -0.5)
    Traceback (most recent call last):
    ValueError: weight must be >= 0 and finite, got -0.5
    """
    _check(is_number(value) and 0 <= value < math.inf, name, value, ">= 0 and finite")


def check_probability(name: str, value: Any) -> None:
    """0 <= value <= 1.

    >>> check_probability("prob", 1)
    >>> check_probability("prob", True)
    Traceback (most recent call last):
    ValueError: prob must be in [0, 1], got True
    """
    _check(is_number(value) and 0 <= value <= 1, name, value, "in [0, 1]")


def check_share(name: str, value: Any) -> None:
    """0 < value <= 1.

    >>> check_share("share", 1)
    >>> check_share("share", 0.0)
    Traceback (most recent call last):
    ValueError: share must be in (0, 1], got 0.0
    """
    _check(is_number(value) and 0 < value <= 1, name, value, "in (0, 1]")


def check_count(name: str, value: Any, least: int = 1, most: int | None = None, *, optional: bool = False) -> None:
    """An integer >= least, and <= most where that is given; with `optional` None is one, too.

    >>> check_count("epochs", None, optional=True)
    >>> check_count("epochs", 2.5)
    Traceback (most recent call last):
    ValueError: epochs must be an integer >= 1, got 2.5
    """
    good = isinstance(value, int) and not isinstance(value, bool) and value >= least and (most is None or value <= most)
    wanted = (f"an integer >= {least}" if most is None else f"an integer in {least}..{most}") + " (or None)" * optional
    _check(good or (optional and value is None), name, value, wanted)


def check_members(name: str, value: Any) -> None:
    """Of a network: an integer in 1..1024. More would not be built within hours.

    >>> check_members("members", 10**6)
    Traceback (most recent call last):
    ValueError: members must be an integer in 1..1024, got 1000000
    """
    check_count(name, value, most=1024)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """One of the names; of a mapping, one of its keys.

    >>> check_choice("mode", "pair", ("batch", "pair"))
    >>> check_choice("mode", "row", ("batch", "pair"))
    Traceback (most recent call last):
    ValueError: mode must be one of batch, pair, got 'row'
    """
    names = list(choices)
    _check(value in names, name, value, f"one of {', '.join(names)}")


def check_images(images: Any, dims: Iterable[int] = (4,), channels: int | None = None) -> None:
    """A batch of normalised images, [B, C, H, W], or of one view or image per member, [B, M, C, H, W], if 5 is in dims.

    >>> check_images(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    Traceback (most recent call last):
    ValueError: images must be floating point, got uint8: bring them to [0, 1] and normalise them
    >>> check_images(torch.zeros(3, 8, 8))
    Traceback (most recent call last):
    ValueError: images must be [B, C, H, W], got [3, 8, 8]
    """
    if not isinstance(images, torch.Tensor):
        raise ValueError(f"images must be a torch.Tensor, got {type(images).__name__}")
    dims = tuple(dims)
    if images.ndim not in dims:
        shapes = {4: "[B, C, H, W]", 5: "[B, M, C, H, W]"}
        raise ValueError(f"images must be {' or '.join(shapes[n] for n in dims)}, got {list(images.shape)}")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise ValueError(f"images must be floating point, got {kind}: bring them to [0, 1] and normalise them")
    if channels is not None and images.shape[-3] != channels:
        raise ValueError(f"images must have the {channels} channels of the model, got {images.shape[-3]}")


def check_labels(labels: Any, num_classes: int) -> None:
    """Class indices in 0 .. K - 1; looked at on the CPU only, a device would have to be waited for.

    >>> check_labels(torch.tensor([0, 3]), num_classes=3)
    Traceback (most recent call last):
    ValueError: class indices must be in 0 .. 2, got 3
    """
    if labels.is_floating_point() or labels.ndim != 1 or labels.device.type != "cpu":
        return
    wrong = labels[(labels < 0) | (labels >= num_classes)]
    if len(wrong):
        raise ValueError(f"class indices must be in 0 .. {num_classes - 1}, got {int(wrong[0])}")


def _check(good: bool, name: str, value: Any, wanted: str) -> None:
    if not good:
        raise ValueError(f"{name} must be {wanted}, got {value!r}")
