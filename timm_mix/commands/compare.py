"""Run every method of a suite with every seed, and write one table of them.

    timm-mix compare --suite digits_smoke [--output DIR] [--jobs N] [--seeds 0 1 2] [--dry-run]
    timm-mix compare --suite my_suite.yaml --set epochs=4 data_dir=path/to/images

A suite is a yaml list of recipes x seeds: timm-mix has some (train_scripts/suites/),
timm_mix/lab/suites/plan.py says what one may hold.
Each run is train.py (or finetune.py, where the suite says so) in a process of its own with --resume auto: what is done
is left alone, what was cut goes on, what is missing is run; a run that was made with other settings is an error. A
suite with a test split has validate.py measure every finished run there. DIR (default: output/compare/<suite>) gets

    table.md, table.csv     accuracy: mean and standard deviation over the seeds, differences to the baseline
    costs.md, costs.csv     parameters, predicted FLOPs, measured seconds
    table.png               the picture of the table
    test.md, test.csv       with a test split: accuracy, calibration, time and inference there
    <method>/seed<seed>/    the folder of the run, with recipe.yaml and train.log

On the CPU a run with --threads 1 (the default) gives the same figures every time on the same type of machine, so
table.md comes out the same to the byte. The exit status is 1 if a run failed: the table says which.
"""

import argparse
import importlib.util
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

from timm_mix.lab.pictures.plots import plot_comparison
from timm_mix.lab.suites.child_runs import Failure, Progress, locked, measured, progress_of, run_all
from timm_mix.lab.suites.comparison import Results, rows
from timm_mix.lab.suites.held_out import measure
from timm_mix.lab.suites.plan import Run, Suite, find_suite, load_suite
from timm_mix.lab.suites.tables import (
    costs_csv,
    costs_markdown,
    held_out_csv,
    held_out_markdown,
    table_csv,
    table_markdown,
)
from timm_mix.train.cost import predict_cost, steps_per_epoch
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.files import write_whole
from timm_mix.train.settings.text import Parser, parse_pairs


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, write the tables; SystemExit(1) if a run failed."""
    args = _parser().parse_args(argv)
    for name in ("jobs", "threads"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name} must be >= 1, got {getattr(args, name)}")
    suite = load_suite(find_suite(args.suite), seeds=args.seeds, settings=parse_pairs("--set", args.set))
    output = args.output or Path("output") / "compare" / suite.name
    runs = suite.runs(output)
    if args.dry_run:
        print(_plan(suite, runs))
        return
    _check_libraries()
    with locked(output):
        missing = [run for run in runs if _is_missing(run)]  # a changed setting is an error before anything runs
        failures = [] if args.no_runs else _run(missing, args)
        results = _results(runs)
        with user_errors(f"write the tables to {output}"):
            _write(output, suite, results, failures, args)
    if failures:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--suite", required=True, metavar="NAME|FILE", help="one of train_scripts/suites/, or a file")
    parser.add_argument("--output", type=Path, metavar="DIR", help="default: output/compare/<suite>")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at a time (they share one GPU)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of each run on the CPU (OMP_NUM_THREADS)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="S", help="instead of the suite's")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of every run, over the files'"
    )
    parser.add_argument("--no-runs", action="store_true", help="only the tables, of what is there")
    parser.add_argument("--dry-run", action="store_true", help="say what would be run and what it costs")
    return parser


def _is_missing(run: Run) -> bool:
    return not progress_of(run).done or (run.test is not None and measured(run) is None)


def _check_libraries() -> None:
    """What the tables need is missed before the runs, not after."""
    for name in ("matplotlib", "scipy"):
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"compare needs {name}, which is not installed: pip install 'timm_mix[plots]'")


def _run(runs: Sequence[Run], args: argparse.Namespace) -> list[Failure]:
    """Run them, with one bar over all and one line for each."""
    names: list[str] = []
    with tqdm(total=len(runs), desc=args.suite, unit="run", disable=None) as bar:

        def started(run: Run) -> None:
            names.append(str(run))
            bar.set_postfix_str(", ".join(names))

        def finished(run: Run, outcome: Progress | Failure) -> None:
            names.remove(str(run))
            bar.update()
            bar.set_postfix_str(", ".join(names))
            tqdm.write(f"{run}: {_told(outcome)}")

        return run_all(runs, jobs=args.jobs, threads=args.threads, started=started, finished=finished)


def _told(outcome: Progress | Failure) -> str:
    if isinstance(outcome, Failure):
        return f"failed, {outcome.reason}"
    assert outcome.results is not None
    scores = outcome.results[outcome.results["config"]["export"]]["ensemble"]
    return f"top-1 {scores['top1']:.2f} %  NLL {scores['nll']:.4f}"


def _results(runs: Sequence[Run]) -> Results:
    found = [(run, progress_of(run)) for run in runs]
    return {(run.method, run.seed): got.results for run, got in found if got.done and got.results is not None}


def _write(output: Path, suite: Suite, results: Results, failures: Sequence[Failure], args: argparse.Namespace) -> None:
    command = _command(args)
    table = table_markdown(command, suite, results, [f"{failure.run}: {failure.reason}" for failure in failures])
    texts = {
        **{"table.md": table, "table.csv": table_csv(suite, results)},
        **{"costs.md": costs_markdown(command, suite, results), "costs.csv": costs_csv(suite, results)},
    }
    if suite.test is not None:
        found = measure(suite, results, output)
        texts |= {"test.md": held_out_markdown(command, suite, results, found), "test.csv": held_out_csv(suite, found)}
    for name, text in texts.items():
        write_whole(output / name, lambda stream, text=text: stream.write(text.encode()))  # type: ignore[misc]
    plot_comparison(output / "table.png", suite.name, rows(suite, results))
    print(texts.get("test.md", table))
    print(f"written to {output}: {', '.join(texts)}, table.png")


def _command(args: argparse.Namespace) -> str:
    """What makes the same figures again."""
    words = ["python", "train_scripts/compare.py", "--suite", args.suite]
    if args.seeds:
        words += ["--seeds", *map(str, args.seeds)]
    if args.set:
        words += ["--set", *args.set]
    if args.threads != 1:
        words += ["--threads", str(args.threads)]
    return shlex.join(words)


def _plan(suite: Suite, runs: Sequence[Run]) -> str:
    """A line per run: what is there of it, and its predicted cost where the suite says what the data are."""
    lines, total = [], 0.0
    for run in runs:
        progress = progress_of(run)
        config = run.config
        state = "done" if progress.done else f"goes on after epoch {progress.epochs}" if progress.epochs else "to run"
        cost = ""
        if suite.images and suite.classes:
            steps = steps_per_epoch(config.data, suite.images)
            counts = {"num_classes": suite.classes, "steps_per_epoch": steps, "epochs": config.optimise.epochs}
            predicted = predict_cost(config.model, config.task, config.data, **counts)
            cost = f", {predicted}, {predicted.flops:.3g} FLOPs"
            total += predicted.flops
        lines.append(f"{run}: {state}{cost}")
    in_all = f", {total:.3g} FLOPs in all" if total else ""
    return "\n".join([*lines, f"{len(runs)} runs{in_all}"])
