"""Run the line that every results.json under model_cards/weights quotes, and compare its top-1 (make weights-check).

    python tests/weights_check.py --data DIR     DIR: the images of the weights that were trained on a folder

Each line runs in a process of its own, exactly as quoted but for its --output. Ends with 1 if one differs.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WEIGHTS = ROOT / "model_cards" / "weights"


def main(argv=None):
    parser = argparse.ArgumentParser(description="Check the quoted top-1 of every weight that ships.")
    parser.add_argument("--data", help="stands for DATA in the quoted lines")
    data = parser.parse_args(argv).data
    folders = sorted(path.parent for path in WEIGHTS.glob("*/results.json"))
    outcomes = [check(folder, data) for folder in folders]
    size = sum(path.stat().st_size for folder in folders for path in folder.iterdir())
    print(f"{len(folders)} weights, {size / 1e6:.1f} MB in all; {sum(outcomes)} give the quoted top-1")
    return 0 if folders and all(outcomes) else 1


def check(folder, data):
    """Whether the quoted line gives the quoted top-1; one printed line."""
    quoted = json.loads((folder / "results.json").read_text())["reproduce"]
    words = shlex.split(quoted["command"])
    if "DATA" in words and not data:
        print(f"{folder.name}: needs --data", flush=True)
        return False
    with tempfile.TemporaryDirectory() as scratch:
        words[words.index("--output") + 1] = scratch
        command = [sys.executable, *(data if word == "DATA" else word for word in words[1:])]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            print(f"{folder.name}: {done.stderr.strip().splitlines()[-1]}", flush=True)
            return False
        measured = json.loads((Path(scratch) / "results.json").read_text())["figures"][quoted["prediction"]]["top1"]
    same = measured == quoted["top1"]
    print(
        f"{folder.name}: quoted {quoted['top1']:.4f}, measured {measured:.4f}{'' if same else ' DIFFERS'}", flush=True
    )
    return same


if __name__ == "__main__":
    sys.exit(main())
