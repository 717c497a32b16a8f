"""What a script does when nobody reads its output any more."""

import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[2] / "train_scripts"


def test_a_reader_that_leaves_ends_the_script_in_silence():
    code = "from timm_mix.train.errors import run_script; run_script(lambda: [print(i) for i in range(100_000)])"
    environment = {**os.environ, "PYTHONPATH": str(SCRIPTS)}
    command = [sys.executable, "-c", code]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as script:
        assert script.stdout.readline() == "0\n"
        script.stdout.close()
        assert (script.stderr.read(), script.wait(timeout=60)) == ("", 141)
