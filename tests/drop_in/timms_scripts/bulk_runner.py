"""Stands for timm's bulk_runner.py: another script, in a process of its own, for every name that a pattern finds."""

import argparse
import csv
import json
import os
import subprocess
import sys

from timm.models import list_models


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model-list", default="")
    parser.add_argument("--results-file")
    parser.add_argument("-m", "--module", action="store_true")
    parser.add_argument("script")
    parser.add_argument("script_args", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    command = [os.getenv("PYTHON_EXEC", sys.executable), "-u", *(["-m"] if args.module else []), args.script]
    rows = []
    for name in list_models(args.model_list):
        printed = subprocess.check_output([*command, *args.script_args, "--model", name]).decode()
        rows.append(json.loads(printed.split("--result")[-1]))
    with open(args.results_file, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
