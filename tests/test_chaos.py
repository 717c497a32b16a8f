"""The short version of `make chaos`: three killed runs, one of them on two processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


def test_runs_that_were_killed_end_like_uninterrupted_ones():
    cases = ["mixmo", "automix", "recursivemix, 2 processes"]
    command = [sys.executable, "tests/chaos.py", "--kills", "3", "--kills-only", "--only", *cases]
    paths = os.pathsep.join([str(ROOT), str(ROOT / "train_scripts")])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("equal to the bit") == 3
