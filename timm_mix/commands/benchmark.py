"""Compare times pairwise: A B A B ..., the ratio taken pair by pair, so that a drifting machine cancels out.

    timm-mix benchmark [--cases mixmo masks blocks members ...] [--pairs 9] [--output FILE]

A time is the mean over as many runs as fill a fifth of a second. Prints the median ratio with its range over the pairs,
and writes all figures with hardware and versions to a json file; [memory] lines compare bytes at the peak of a step.
The cases are in timm_mix/lab/bench. On the CPU the steps of wrn28_10 and resnet18_cifar are compute-bound: convolutions
take nearly all of their time; in wrn16_2 the layers between them count as well. The case member_parallel compares
processes with threads on the same cores, whatever --device says; what a device per part gives is its [model] line, a
prediction.
"""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # torch reads it when imported: the profiler should not chatter

import argparse
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from timm_mix.lab.bench.automix import bench_automix
from timm_mix.lab.bench.loading import bench_loading, bench_trainer
from timm_mix.lab.bench.measure import MemoryRatio, Ratio
from timm_mix.lab.bench.member_twins import StepModel
from timm_mix.lab.bench.mixmo import bench_blocks, bench_masks, bench_members, bench_mixmo
from timm_mix.lab.bench.recursivemix import bench_recursivemix
from timm_mix.lab.bench.splitnet import bench_concurrent, bench_member_parallel, bench_splitnet
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.files import check_folder, write_json
from timm_mix.train.loop.results import describe_machine
from timm_mix.train.settings.text import Parser

Row = Ratio | MemoryRatio | StepModel

CASES: dict[str, Callable[[argparse.Namespace, torch.device], Iterable[Row]]] = {
    "mixmo": bench_mixmo,
    "masks": bench_masks,
    "blocks": bench_blocks,
    "members": bench_members,
    "splitnet": bench_splitnet,
    "member_parallel": bench_member_parallel,
    "concurrent": bench_concurrent,
    "recursivemix": bench_recursivemix,
    "automix": bench_automix,
    "loading": bench_loading,
    "trainer": bench_trainer,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--pairs", type=int, default=9, help="counted pairs per figure")
    parser.add_argument("--batch", type=int, default=64, help="batch of the small networks")
    parser.add_argument("--data-dir", help="images of 32 pixels for the case loading, train/ with a folder per class")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark.json"))
    args = parser.parse_args(argv)
    if args.pairs < 1 or args.batch < 2:
        raise UsageError(f"--pairs must be >= 1 and --batch >= 2, got {args.pairs} and {args.batch}")
    check_folder(args.output.parent)
    with user_errors(f"use --device {args.device}"):
        device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but torch sees no GPU; take --device cpu")
    torch.manual_seed(0)
    rows: list[Row] = []
    for case in args.cases:
        for row in CASES[case](args, device):
            print(row, flush=True)
            rows.append(row)
    ratios, memory = ([asdict(row) for row in rows if isinstance(row, kind)] for kind in (Ratio, MemoryRatio))
    models = [{**asdict(row), "predicted_seconds": row.predicted_seconds} for row in rows if isinstance(row, StepModel)]
    write_json(
        args.output, {**describe_machine(device), "ratios": ratios, "memory_ratios": memory, "step_models": models}
    )
    print(f"written to {args.output}")
