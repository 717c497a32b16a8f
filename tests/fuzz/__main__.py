"""Everything that a user may get wrong, as a table: one line and status 2 for each, or the success that it must be.

    make fuzz        python tests/fuzz [--only AREA ...] [--match WORD] [--patience SECONDS] [--output FILE.csv]

No case may end in a traceback, hang, succeed where it must not, or change what it was given; the exit status is 1 if
one does. Each runs in a fork of this process with a limit on its memory.
"""

import argparse
import contextlib
import csv
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch
from command_cases import command_cases
from harness import try_case
from material import make_material
from object_cases import object_cases


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="AREA", help="areas of the table; default: all")
    parser.add_argument("--match", default="", metavar="WORD", help="cases whose name holds this")
    parser.add_argument("--patience", type=float, default=90, metavar="SECONDS", help="of one case")
    parser.add_argument("--verbose", action="store_true", help="name every case before it is tried")
    parser.add_argument("--output", type=Path, metavar="FILE.csv", help="write every case, its end and its line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    cases = [case for cases in (command_cases(), object_cases()) for case in cases]
    cases = [case for case in cases if args.match in case.name and (args.only is None or case.area in args.only)]
    rows, bad = [], 0
    counts: dict[str, Counter[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        material = Path(folder) / "m"
        material.mkdir()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            make_material(material)
        for case in cases:
            if args.verbose:
                print(f"{case.area}: {case.name}", flush=True)
            outcome = try_case(case, material, args.patience)
            counts.setdefault(case.area, Counter())[outcome.verdict] += 1
            line = outcome.line.replace(folder, "")
            rows.append([case.area, case.name.replace(folder, ""), outcome.verdict, f"{outcome.seconds:.1f}", line])
            if not outcome.good:
                bad += 1
                print(f"{case.area}: {case.name!r}: {outcome.verdict}\n    {line[:300]}", flush=True)
    for area, verdicts in counts.items():
        print(f"{area:16s} {sum(verdicts.values()):4d} cases, {verdicts['as it should']:4d} as they should")
    print(f"{len(rows)} cases, {bad} not as they should")
    if args.output:
        with args.output.open("w", newline="") as stream:
            csv.writer(stream).writerows([["area", "case", "end", "seconds", "line"], *rows])
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
