"""Every number of the settings has a range, and every setting says what it is for."""

import dataclasses
import typing

import pytest

from timm_mix.train.errors import UsageError
from timm_mix.train.evaluate.settings import ValidateConfig
from timm_mix.train.finetune.settings import FinetuneConfig
from timm_mix.train.settings.config import Config

BAD = {
    "be >= 1": (0, -1),
    "be >= 0": (-1,),
    "lie in 0..1024": (-1, 1025),
    "lie in [0, 2**63)": (-1, 2**63),
    "be >= 0 and finite in float32": (-0.1, float("nan"), float("inf"), 1e39),
    "be > 0 and finite in float32": (0.0, -1.0, float("nan"), float("inf"), 1e39),
    "lie in [0, 1)": (-0.1, 1.0, float("nan")),
    "lie in [0, 1]": (-0.1, 1.1, float("nan")),
    "lie in [0, 255]": (-1.0, 256.0, float("nan")),
    "be finite in float32": (float("nan"), float("inf"), -1e39),
}
ELSEWHERE = {"val_fraction"}  # checked by who divides the images
CONFIGS = {"train": Config, "finetune": FinetuneConfig, "validate": ValidateConfig}
# what a configuration cannot do without
GIVEN = {"train": {}, "finetune": {"model": "m"}, "validate": {"model": "m", "output": "out"}}


def specs(kind):
    """Flat name -> (dataclass field, type)."""
    found = {}
    for part in kind.parts().values():
        types = typing.get_type_hints(part)
        found |= {spec.metadata.get("name") or spec.name: (spec, types[spec.name]) for spec in dataclasses.fields(part)}
    return found


CASES = [
    (command, name, spec.metadata["range"].wanted, bad)
    for command, kind in CONFIGS.items()
    for name, (spec, _) in specs(kind).items()
    if spec.metadata["range"] is not None
    for bad in BAD[spec.metadata["range"].wanted]
]


def _is_number(kind):
    kinds = set(typing.get_args(kind)) or {kind}
    return bool(kinds & {int, float} or any(_is_number(inner) for inner in kinds if typing.get_args(inner)))


@pytest.mark.parametrize("command", CONFIGS)
def test_every_number_has_a_range(command):
    numbers = {name: spec for name, (spec, kind) in specs(CONFIGS[command]).items() if _is_number(kind)}
    assert {name for name, spec in numbers.items() if spec.metadata["range"] is None} <= ELSEWHERE


@pytest.mark.parametrize("command", CONFIGS)
def test_every_setting_says_what_it_is_for(command):
    for setting in CONFIGS[command].settings().values():
        assert len(setting.why) >= 10, setting.name


@pytest.mark.parametrize(("command", "name", "wanted", "bad"), CASES)
def test_a_number_outside_its_range_is_one_line(command, name, wanted, bad):
    spec, kind = specs(CONFIGS[command])[name]
    is_list = "tuple" in str(kind)
    with pytest.raises(UsageError, match=" must ") as caught:
        CONFIGS[command].of(**GIVEN[command], **{name: (bad, bad) if is_list else bad})
    name = (spec.metadata["flag"] or name).lstrip("-")
    assert str(caught.value) == f"{name} must {wanted}, got {', '.join([str(bad)] * (1 + is_list))}"


@pytest.mark.parametrize("name", ["scale", "ratio", "rescale", "reratio"])
@pytest.mark.parametrize("pair", [(0.5,), (0.5, 0.2), (0.1, 0.2, 0.3)])
def test_a_range_is_two_numbers_the_smaller_first(name, pair):
    with pytest.raises(UsageError, match=f"{name} must be two numbers, the smaller first, got {pair[0]}"):
        Config.of(**{name: pair})
