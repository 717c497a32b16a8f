"""Every number of a run's settings has a range, and a number outside it is one line."""

import dataclasses
import typing

import pytest

from timm_mix.train.errors import UsageError
from timm_mix.train.settings.config import Config
from timm_mix.train.settings.ranges import _RANGES

BAD = {
    "be >= 1": (0, -1),
    "be >= 0": (-1,),
    "lie in [0, 2**63)": (-1, 2**63),
    "be >= 0 and finite": (-0.1, float("nan"), float("inf")),
    "be > 0 and finite": (0.0, -1.0, float("nan"), float("inf")),
    "lie in [0, 1)": (-0.1, 1.0, float("nan")),
    "lie in [0, 1]": (-0.1, 1.1, float("nan")),
    "be finite": (float("nan"), float("inf")),
}
# checked by their task, their schedule or their loader
ELSEWHERE = {"block_lr", "block_min_lr", "block_momentum", "decay_milestones", "workers"}
TYPES = typing.get_type_hints(Config)
CASES = [(name, wanted, bad) for wanted, _, names in _RANGES for name in names for bad in BAD[wanted]]


def _is_number(kind):
    kinds = set(typing.get_args(kind)) or {kind}
    return bool(kinds & {int, float} or any(_is_number(inner) for inner in kinds if typing.get_args(inner)))


def test_every_number_has_a_range():
    ranged = {name for _, _, names in _RANGES for name in names}
    numbers = {spec.name for spec in dataclasses.fields(Config) if _is_number(TYPES[spec.name])}
    assert numbers - ELSEWHERE == ranged


@pytest.mark.parametrize(("name", "wanted", "bad"), CASES)
def test_a_number_outside_its_range_is_one_line(name, wanted, bad):
    is_list = "tuple" in str(TYPES[name])
    with pytest.raises(UsageError) as caught:
        Config(**{name: (bad, bad) if is_list else bad})
    assert str(caught.value) == f"{name} must {wanted}, got {', '.join([str(bad)] * (1 + is_list))}"


@pytest.mark.parametrize("name", ["scale", "ratio", "rescale", "reratio"])
@pytest.mark.parametrize("pair", [(0.5,), (0.5, 0.2), (0.1, 0.2, 0.3)])
def test_a_range_is_two_numbers_the_smaller_first(name, pair):
    with pytest.raises(UsageError, match=f"{name} must be two numbers, the smaller first, got {pair[0]}"):
        Config(**{name: pair})
