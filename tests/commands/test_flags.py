"""A mistake in the flags of any command or script is one line."""

import importlib

import pytest

from timm_mix.commands import COMMANDS, benchmark, main_of
from timm_mix.train.errors import UsageError

SCRIPTS = ("demo", "draw_automix", "draw_masks", "draw_recursivemix")
MAINS = {**{name: main_of(name) for name in COMMANDS}, **{name: importlib.import_module(name).main for name in SCRIPTS}}


@pytest.mark.parametrize("name", MAINS)
def test_an_unknown_flag_is_one_line(name):
    with pytest.raises(UsageError, match=r"(unrecognized arguments: --nonsense|required: ).*; see .* --help") as caught:
        MAINS[name](["--nonsense"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--device", "gpu"], "cannot use --device gpu: "),
        (["--output", "/dev/null/x/benchmark.json"], "the folder /dev/null/x cannot be made, /dev/null is a file"),
        (["--pairs", "0"], "--pairs must be >= 1"),
    ],
)
def test_a_benchmark_that_cannot_run_or_be_written_is_not_begun(flags, line):
    with pytest.raises(UsageError, match=line):
        benchmark.main(["--cases", "masks", *flags])
