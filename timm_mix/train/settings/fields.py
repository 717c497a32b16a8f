"""One setting: its default, what it is for, and what it may be, said once where it is declared."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from timm_mix.train.errors import UsageError

__all__ = [
    "AT_LEAST_0",
    "AT_LEAST_1",
    "BELOW_1",
    "FINITE",
    "NOT_NEGATIVE",
    "POSITIVE",
    "PROCESSES",
    "SEED",
    "SHARE",
    "Range",
    "check_fields",
    "like",
    "setting",
]


@dataclass(frozen=True)
class Range:
    """What a number must be; of a tuple every entry, and nothing is asked of None.

    pair: the value is two numbers, the smaller first.

    >>> even = Range("be even", lambda value: value % 2 == 0)
    >>> even.holds(4), even.holds(5), even.of_a_pair.pair
    (True, False, True)
    """

    wanted: str
    holds: Callable[[float], bool]
    pair: bool = False

    @property
    def of_a_pair(self) -> "Range":
        return dataclasses.replace(self, pair=True)


AT_LEAST_1 = Range("be >= 1", lambda value: value >= 1)
AT_LEAST_0 = Range("be >= 0", lambda value: value >= 0)
PROCESSES = Range("lie in 0..1024", lambda value: 0 <= value <= 1024)
SEED = Range("lie in [0, 2**63)", lambda value: 0 <= value < 2**63)
LARGEST = 3.4e38  # that a float32 can hold, which is what the devices compute with
NOT_NEGATIVE = Range("be >= 0 and finite in float32", lambda value: 0 <= value <= LARGEST)
POSITIVE = Range("be > 0 and finite in float32", lambda value: 0 < value <= LARGEST)
BELOW_1 = Range("lie in [0, 1)", lambda value: 0 <= value < 1)
SHARE = Range("lie in [0, 1]", lambda value: 0 <= value <= 1)
FINITE = Range("be finite in float32", lambda value: abs(value) <= LARGEST)

Choices = Sequence[Any] | Callable[[], Sequence[Any]]


def setting(
    default: Any,
    why: str,
    range: Range | None = None,
    *,
    choices: Choices | None = None,
    name: str | None = None,
    flag: str | None = None,
) -> Any:
    """A field of a part of the settings.

    Args:
        default: a dict stands for a new one each time.
        why: what the setting is for; the help shows it with the default.
        choices: the values that it may have; a function where they are known later only (a registry).
        name: under which recipes and results know it, where that is not the field's.
        flag: of the command line, where that is not the name.

    >>> @dataclass(frozen=True)
    ... class Batches:
    ...     size: int = setting(64, "images per step", AT_LEAST_1)
    >>> Batches().size, dataclasses.fields(Batches)[0].metadata["why"]
    (64, 'images per step')
    """
    about = {"why": why, "range": range, "choices": choices, "name": name, "flag": flag}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=default.copy, metadata=about)
    return dataclasses.field(default=default, metadata=about)


def like(part: type[Any], field: str, **changes: Any) -> Any:
    """The setting of another part, with its help and range; `changes` are keywords of `setting`.

    >>> from timm_mix.train.settings.data import DataSettings
    >>> size = like(DataSettings, "batch_size", default=256)
    >>> size.default, size.metadata["why"], size.metadata["range"].wanted
    (256, 'per process', 'be >= 1')
    """
    spec = next(spec for spec in dataclasses.fields(part) if spec.name == field)
    default = spec.default_factory() if spec.default_factory is not dataclasses.MISSING else spec.default
    return setting(**{"default": default, **spec.metadata, **changes})


def check_fields(part: Any) -> None:
    """Look at every field of a part that is text, or has a range or choices.

    Raises:
        UsageError: a value outside of them.

    >>> @dataclass(frozen=True)
    ... class Batches:
    ...     size: int = setting(64, "images per step", AT_LEAST_1)
    >>> check_fields(Batches(size=0))
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: size must be >= 1, got 0
    """
    for spec in dataclasses.fields(part):
        flag = (spec.metadata.get("flag") or "").lstrip("-")
        name, value = flag or spec.metadata.get("name") or spec.name, getattr(part, spec.name)
        if any(
            "\0" in text for text in (value if isinstance(value, tuple | list) else (value,)) if isinstance(text, str)
        ):
            raise UsageError(f"{name} must not hold the character 0, got {value!r}")
        if spec.metadata.get("range") is not None and value is not None:
            _check_range(name, value, spec.metadata["range"])
        choices = spec.metadata.get("choices")
        known = choices() if callable(choices) else choices
        if known is not None and value not in known:
            raise UsageError(f"{name} must be one of {', '.join(filter(None, known))}, got {value!r}")


def _check_range(name: str, value: Any, range: Range) -> None:
    entries = value if isinstance(value, tuple | list) else (value,)  # a list out of results.json
    given = ", ".join(map(str, entries))
    if not all(range.holds(entry) for entry in entries):
        raise UsageError(f"{name} must {range.wanted}, got {given}")
    if range.pair and not (len(entries) == 2 and entries[0] <= entries[1]):
        raise UsageError(f"{name} must be two numbers, the smaller first, got {given}")
