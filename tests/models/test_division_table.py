"""Every division beyond the paper against a table: a saved model is rebuilt through its rule, so no width may move.

The table (division_beyond_the_paper.json) holds what the rules of the first release say, null where S is refused. A
failure here means that models which users have saved no longer load: keep the old numbers, or give the new ones a name.
"""

import json
import re
from pathlib import Path

import pytest
import timm

import timm_mix
from timm_mix.models.divide import convolutional, resnet

pytestmark = pytest.mark.slow

TABLE = json.loads((Path(__file__).parent / "division_beyond_the_paper.json").read_text())
ARGUMENTS, NARROW = TABLE["arguments"], TABLE["narrow"]


@pytest.mark.parametrize("arch", ARGUMENTS)
def test_a_division_is_what_saved_models_were_built_with(arch):
    assert set(ARGUMENTS[arch]) == {"2", "4", "8"}
    for split, wanted in ARGUMENTS[arch].items():
        if wanted is None:
            with pytest.raises(ValueError, match=f"{arch} does not divide into S = {split} parts"):
                timm_mix.divide(arch, int(split))
        else:
            given = timm_mix.divide(arch, int(split))
            assert json.loads(json.dumps(given)) == wanted  # tuples are lists there


@pytest.mark.parametrize("arch", NARROW)
def test_a_narrow_model_is_as_wide_as_the_saved_ones(arch):
    """The division gives a factor only: the widths are rounded where the model is built."""
    for split, wanted in NARROW[arch].items():
        model = timm.create_model(**ARGUMENTS[arch][split], device="meta")
        assert [info["num_chs"] for info in model.feature_info] == wanted["widths"]
        assert sum(parameter.numel() for parameter in model.parameters()) == wanted["parameters"]


@pytest.mark.parametrize("pattern", [pattern for pattern, _ in (*resnet.RULES, *convolutional.RULES)])
def test_every_rule_stands_in_the_table(pattern):
    known = [arch for arch in ARGUMENTS if re.fullmatch(pattern, arch)]
    assert len(known) >= 2, f"add networks that {pattern} matches to the table"


def test_every_division_by_a_factor_has_its_widths_in_the_table():
    by_factor = {
        arch for arch, splits in ARGUMENTS.items() if any("model_name" in (row or {}) for row in splits.values())
    }
    assert set(NARROW) == by_factor
