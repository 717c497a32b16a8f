"""A mistake in the flags of any script is one line."""

import importlib

import pytest
from script_runs import SCRIPT

from trainkit.errors import UsageError

SCRIPTS = sorted(
    path.stem for path in SCRIPT.parent.glob("*.py") if "Parser" in path.read_text() or "parse_" in path.read_text()
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_an_unknown_flag_is_one_line(script):
    with pytest.raises(UsageError, match=r"(unrecognized arguments: --nonsense|required: ).*; see .* --help") as caught:
        importlib.import_module(script).main(["--nonsense"])
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
        importlib.import_module("benchmark").main(["--cases", "masks", *flags])
