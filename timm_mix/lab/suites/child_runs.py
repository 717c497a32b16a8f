"""The runs of a suite as child processes: what is there of each, and the trainer for what is missing.

A run's folder holds what the trainer writes there, `recipe.yaml` (its settings; the trainer runs it by hand, too),
`train.log` (what it printed, all attempts one after the other), and what validate finds on the suite's test split.
"""

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from timm_mix.lab.suites.plan import Run
from timm_mix.train.data.sources import is_stream
from timm_mix.train.errors import Stopped, UsageError, user_errors
from timm_mix.train.files import write_whole
from timm_mix.train.settings.config import Config, load_recipe

__all__ = ["Failure", "Progress", "locked", "measured", "progress_of", "run_all"]

TIMM_MIX = (sys.executable, "-m", "timm_mix")
POLL_SECONDS = 0.1
# change nothing of what comes out (workers: but for a stream)
_FREE = (
    *("output", "experiment", "resume", "pin_mem", "workers", "imports", "check_images"),
    *("checkpoint_interval", "checkpoint_hist", "tracker", "log_interval"),
)


@dataclass(frozen=True)
class Progress:
    """What is there of a run: finished epochs, and the content of results.json (None before the first epoch ends)."""

    epochs: int
    results: dict[str, Any] | None

    @property
    def done(self) -> bool:
        return self.results is not None and self.epochs == self.results.get("total_epochs")


@dataclass(frozen=True)
class Failure:
    """A run that did not end well; `reason` is one line."""

    run: Run
    reason: str


def progress_of(run: Run) -> Progress:
    """Read how far a run has come.

    Raises:
        UsageError: what is there was made with other settings, or results.json is none.
    """
    results = _read_results(run.folder / "results.json")
    if results is not None:
        _check_same(run, results["config"])
        return Progress(len(results["epochs"]), results)
    recipe = run.folder / "recipe.yaml"
    if (run.folder / "checkpoints").exists() and recipe.is_file():
        before = load_recipe(recipe, type(run.config))
        _check_same(run, _plain(replace(run, settings=before).config))
    return Progress(0, None)


def measured(run: Run) -> dict[str, Any] | None:
    """What validate found on the test split of the suite, None where it has not run."""
    path = run.folder / "test" / "results.json"
    if run.test is None or not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        of_these = content["config"]["split"] == run.test and content["config"]["data_dir"] == run.config.data.data_dir
    except (OSError, ValueError, TypeError, KeyError):
        raise UsageError(f"{path} is no results file of validate.py: remove it") from None
    return content if of_these else None


def run_all(
    runs: Sequence[Run],
    *,
    jobs: int = 1,
    threads: int = 1,
    finished: Callable[[Run, Progress | Failure], object] = lambda run, outcome: None,
    started: Callable[[Run], object] = lambda run: None,
    command: Sequence[str] = TIMM_MIX,
) -> list[Failure]:
    """Train and test each, `jobs` at a time, resuming what was cut; returns those that failed.

    SIGINT and SIGTERM are passed on to the children, which save what they have. A run that needs another's model
    waits for it.

    Args:
        threads: of each child. A figure's last bits depend on it.
        finished, started: called with every run that ends or begins.
        command: that of timm-mix; `train --config recipe.yaml --resume auto` and the like are added.
    Raises:
        Stopped: SIGINT or SIGTERM came, and the children have ended.
        UsageError: a run's folder cannot be written.
    """
    waiting, failures = list(runs), list[Failure]()
    running: list[tuple[Run, subprocess.Popen[bytes]]] = []
    with _caught_signals() as caught, _none_left_behind(running):
        passed_on = 0
        while running or (waiting and not caught):
            while len(running) < jobs and not caught and (run := _next_of(waiting, running)) is not None:
                waiting.remove(run)
                running.append((run, _start(run, command, threads)))
                started(run)
            for number in caught[passed_on:]:
                for _, child in running:
                    child.send_signal(number)
                passed_on += 1
            ended = [(run, child) for run, child in running if child.poll() is not None]
            for run, child in ended:
                running.remove((run, child))
                if caught:
                    continue
                outcome = _outcome(run, child.returncode, child.args[len(command)] == "validate")  # type: ignore[index]
                if outcome is None:
                    running.append((run, _start(run, command, threads)))
                    continue
                failures += [outcome] if isinstance(outcome, Failure) else []
                finished(run, outcome)
            if not ended:
                time.sleep(POLL_SECONDS)
    if caught:
        name = signal.Signals(caught[0]).name
        raise Stopped(f"stopped by {name}; the same command goes on where each run was saved", caught[0])
    return failures


def _next_of(waiting: Sequence[Run], running: Sequence[tuple[Run, object]]) -> Run | None:
    """The first run whose needed model nobody is still to make."""
    unfinished = {run.folder for run in waiting} | {run.folder for run, _ in running}
    return next((run for run in waiting if run.after not in unfinished), None)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder, also while a child that outlived its parent still writes there.

    Raises:
        UsageError: somebody is in there, or it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stream = (folder / ".lock").open("wb")
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror}): give another --output") from None
    with stream:
        os.set_inheritable(stream.fileno(), True)  # the lock is let go when the last process that holds it ends
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"{folder} is in use by another compare.py, or by a run that one left behind: wait for it to end"
            ) from None
        yield


def _start(run: Run, command: Sequence[str], threads: int) -> "subprocess.Popen[bytes]":
    """The next step of a run: to train it, or to test what is trained."""
    with user_errors(f"write to {run.folder}"):
        words = _test_words(run) if progress_of(run).done else [run.command, "--config", str(_written(run))]
        words += [] if words[0] == "validate" else ["--resume", "auto"]
        log = open(run.folder / "train.log", "ab")  # noqa: SIM115
    with log:
        return subprocess.Popen(
            [*command, *words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
            close_fds=False,  # it inherits the lock of the folder
            start_new_session=True,  # Ctrl-C reaches it once, from here
        )


def _written(run: Run) -> Path:
    """The recipe of a run, as a file."""
    recipe = run.folder / "recipe.yaml"
    header = f"# {run}, written by compare.py\n# command: python train_scripts/{run.command}.py --config {recipe}\n"
    settings = json.loads(json.dumps(run.settings))  # yaml knows no tuples
    text = header + yaml.safe_dump(settings, sort_keys=False, default_flow_style=None)
    write_whole(recipe, lambda stream: stream.write(text.encode()))
    return recipe


def _test_words(run: Run) -> list[str]:
    """validate on the test split, with the logits that an average needs."""
    data, model = run.config.data, run.folder / "model"
    words = ["validate", "--model", f"local-dir:{model}", "--split", str(run.test), "--save-predictions"]
    words += ["--output", str(run.folder / "test"), "--workers", str(data.workers)]
    given = {"--dataset": data.dataset, "--data-dir": data.data_dir, "--class-map": data.class_map}
    words += [word for flag, value in given.items() if value for word in (flag, value)]
    told = json.loads((model / "config.json").read_text(encoding="utf-8"))
    words += ["--fold"] if told["architecture"].startswith("mixmo") else []
    return words + ["--cpu"] * run.config.run.cpu


def _outcome(run: Run, status: int, was_tested: bool) -> Progress | Failure | None:
    """What came of a step, None where the run has another one."""
    log = run.folder / "train.log"
    if status:
        told = log.read_text(errors="replace") if log.is_file() else ""  # somebody may have removed the folder
        lines = [line.strip() for line in told.splitlines() if line.strip()]
        last = f": {lines[-1][-200:]}" if lines else ""
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        return Failure(run, f"{how}{last}; see {log}")
    try:
        progress, open_test = progress_of(run), run.test is not None and measured(run) is None
    except UsageError as error:
        return Failure(run, str(error))
    if not progress.done:
        return Failure(run, f"ended after {progress.epochs} epochs; see {log}")
    if open_test and was_tested:
        return Failure(run, f"validate has written no results; see {log}")
    return None if open_test else progress


@contextlib.contextmanager
def _caught_signals() -> Iterator[list[int]]:
    """The signals that arrive meanwhile, in a list: the loop that reads it stops where nothing is half done."""
    caught: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in before:
        signal.signal(number, lambda number, frame: caught.append(number))
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _none_left_behind(running: "list[tuple[Run, subprocess.Popen[bytes]]]") -> Iterator[None]:
    """End the children when an error ends the loop over them."""
    try:
        yield
    except BaseException:
        for _, child in running:
            child.terminate()
        for _, child in running:
            child.wait()
        raise


def _read_results(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        assert {"config", "epochs", "data", "model"} <= set(results)
    except (OSError, ValueError, TypeError, AssertionError):
        raise UsageError(f"{path} is no results file of train.py: remove it, or give another --output") from None
    return results


def _check_same(run: Run, made_with: dict[str, Any]) -> None:
    """A setting that the file lacks is younger than the run, which had its default."""
    wanted = _plain(run.config)
    default = {name: setting.default for name, setting in type(run.config).settings().items()}
    default = json.loads(json.dumps(default))
    for name, value in wanted.items():
        before = made_with.get(name, default[name])
        free = name in _FREE and not (name == "workers" and is_stream(run.config.data.dataset))
        if not free and before != value:
            raise UsageError(
                f"{run.folder} was made with {name}={before}, the suite wants {value}: "
                "remove that folder, or give another --output"
            )


def _plain(config: Config) -> dict[str, Any]:
    """As json has it: lists for tuples."""
    return json.loads(json.dumps(config.flat()))
