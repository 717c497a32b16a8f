"""Runs of train.py that are killed, out of disk space or robbed of their newest checkpoint, and resumed until done.

    make chaos        python tests/chaos.py [--only NAME ...] [--seed N] [--kills N] [--kills-only]

Every run has to end with the weights, generator states and figures of the same run left alone, to the bit; the exit
status is 1 if one does not. Each attempt is a fork of this process, so that torch and timm are imported once.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from timm_mix.commands import train
from timm_mix.train import files
from timm_mix.train.checkpoints import content as checkpoint
from timm_mix.train.checkpoints import folder as rotation
from timm_mix.train.errors import run_script
from timm_mix.train.loop.trainer import Trainer

NET = ["--model", "wrn16_2", "--model-kwargs", "depth=10", "widen_factor=1"]
MIXMO = ["--task", "mixmo", "--model", "mixmo", "--model-kwargs", "backbone=wrn16_2", "depth=10", "widen_factor=1"]
SPLIT = ["--task", "cotraining", "--model", "splitnet", "--model-kwargs", "backbone=wrn16_2", "depth=10"]
AUTOMIX = ["--task", "automix", *NET, "--mix", "reduction=2"]
EMA = ["--model-ema", "--model-ema-decay", "0.9"]
TWO = ["--batch-size", "48"]
# name: (processes, flags)
CASES: dict[str, tuple[int, list[str]]] = {
    "mixup": (1, [*NET, "--mixup", "1", "--cutmix", "1", "--workers", "2", *EMA]),
    "mixmo": (1, [*MIXMO, "--batch-repeats", "2", "--workers", "2", *EMA]),
    "cotraining": (1, [*SPLIT, "--grad-accum-steps", "3"]),
    "recursivemix": (1, ["--task", "recursivemix", *NET, *EMA]),
    "automix": (1, [*AUTOMIX, *EMA]),
    "manifoldmixup": (1, ["--task", "manifoldmixup", *NET, "--amp", "--sched", "plateau", "--no-sched-on-updates"]),
    "mixmo, 2 processes": (2, [*MIXMO, *TWO, "--amp", "--workers", "1", *EMA]),
    "recursivemix, 2 processes": (2, ["--task", "recursivemix", *NET, *TWO, *EMA, "--grad-accum-steps", "2"]),
    "automix, 2 processes": (2, [*AUTOMIX, *TWO, *EMA]),
    "a part per process": (2, [*SPLIT, "--member-parallel", *EMA]),
}
SHARED = [
    *("--dataset", "digits", "--img-size", "8", "--aug", "small", "--padding", "1", "--reprob", "0.5", "--cpu"),
    *("--batch-size", "96", "--validation-batch-size", "180", "--epochs", "2", "--workers", "0", "--lr", "0.05"),
    *("--warmup-epochs", "1", "--sched-on-updates", "--clip-grad", "1", "--drop", "0.1"),
    *("--checkpoint-interval", "2", "--export", "best", "--resume", "auto"),
]
UPDATES = 28  # of a run without accumulation
LIMIT = 100_000  # bytes of a file, where the disk is full; a checkpoint is larger, results.json is not
PATIENCE = 600  # seconds for an attempt, on a machine that has other work


@dataclass(frozen=True)
class Fault:
    """What happens to the process of this rank: at an update (after a delay), at a byte or at a new name of a file."""

    kind: str
    rank: int = 0
    count: int = 0
    delay: float = 0.0
    signal: int = signal.SIGKILL

    def __str__(self) -> str:
        who = f" of rank {self.rank}" if self.rank else ""
        name = signal.Signals(self.signal).name
        if self.kind == "full disk":
            return self.kind
        return f"{name} at {self.kind} {self.count}{who}" + (f" + {self.delay:.2f} s" if self.delay else "")


def draw_fault(rng: np.random.Generator, processes: int, kind: str | None = None) -> Fault:
    """A third of the kills hit the writing of a checkpoint, a third its renaming, the others any moment."""
    kind = kind or str(rng.choice(["update", "byte", "name"]))
    if kind == "byte":  # of all that is written to checkpoints; only the main process writes
        return Fault(kind, count=int(rng.integers(1, 2_000_000)))
    if kind == "name":
        return Fault(kind, count=int(rng.integers(1, 25)))
    delay = float(rng.choice([0.0, rng.uniform(0, 0.5)]))
    return Fault(kind, int(rng.integers(processes)), int(rng.integers(1, UPDATES // 2)), delay)


WORKER = "--worker"
ELASTIC = Fault("update", rank=1, count=9)


def arm(fault: Fault) -> None:
    """In the process that it is to happen to."""
    strike = lambda: os.kill(os.getpid(), fault.signal)  # noqa: E731
    left = fault.count
    if fault.kind == "full disk":
        write_whole = rotation.write_checkpoint

        def limited(*args: Any) -> None:  # for these files alone: shared memory of the loader's workers counts, too
            resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT, resource.RLIM_INFINITY))
            try:
                write_whole(*args)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))

        rotation.write_checkpoint = limited
    elif fault.kind == "update":
        update = Trainer._update

        def counted(trainer: Trainer, *args: Any) -> Any:
            nonlocal left
            left -= 1
            if left == 0:
                threading.Timer(fault.delay, strike).start()
            return update(trainer, *args)

        Trainer._update = counted  # type: ignore[method-assign]
    elif fault.kind == "byte":
        write = checkpoint._Watched.write

        def halted(stream: Any, data: Any) -> int:
            nonlocal left
            left -= len(data)
            if left <= 0:
                stream.stream.write(bytes(data)[: len(data) + left])
                stream.stream.flush()
                strike()
            return write(stream, data)

        checkpoint._Watched.write = halted  # type: ignore[method-assign]
    else:
        for name in ("replace", "link"):
            setattr(files.os, name, _counted_name(getattr(os, name), fault, strike))


_names = [0]


def _counted_name(call: Callable, fault: Fault, strike: Callable[[], None]) -> Callable:
    def named(*args: Any) -> None:
        _names[0] += 1
        if _names[0] == fault.count and fault.count % 2:
            strike()
        call(*args)
        if _names[0] == fault.count:
            strike()

    return named


def attempt(processes: int, flags: list[str], folder: Path, fault: Fault | None) -> tuple[list[int], str]:
    """Start the script, wait for its end; exit statuses (a signal as its negative) and what was printed.

    Once a process has failed the others are killed, as torchrun does it.
    """
    argv = [*SHARED, *flags, "--output", str(folder.parent), "--experiment", folder.name]
    log = folder.parent / f"{folder.name}.log"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    pids = []
    sys.stdout.flush()
    for rank in range(processes):
        pid = os.fork()
        if pid == 0:
            _work(rank, processes, port, argv, log, fault)
        pids.append(pid)
    status: dict[int, int] = {}
    deadline = time.monotonic() + PATIENCE
    while len(status) < processes:
        for pid in [pid for pid in pids if pid not in status]:
            done, code = os.waitpid(pid, os.WNOHANG)
            if done:
                status[pid] = os.waitstatus_to_exitcode(code)
        if time.monotonic() > deadline or any(code not in (0, 143) for code in status.values()):
            for pid in [pid for pid in pids if pid not in status]:
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    text = log.read_text()
    log.unlink()
    return [status[pid] for pid in pids], text


def _work(rank: int, processes: int, port: str, argv: list[str], log: Path, fault: Fault | None) -> None:
    """The whole life of a forked process."""
    code = 1
    try:
        handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(handle, 1)
        os.dup2(handle, 2)
        if processes > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.environ.update({"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port})
        if fault is not None and fault.rank == rank:
            arm(fault)
        run_script(lambda: train.main(argv))
        code = 0
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def damage_newest(folder: Path, rng: np.random.Generator) -> str | None:
    """Truncate the newest checkpoint, or flip one of its bits."""
    newest = sorted((folder / "checkpoints").glob("update_*.pt"))[-1:]
    if not newest:
        return None
    content = bytearray(newest[0].read_bytes())
    place = int(rng.integers(len(content)))
    if rng.random() < 0.5:
        newest[0].write_bytes(content[:place])
        return f"{newest[0].name} cut at byte {place}"
    content[place] ^= 1 << int(rng.integers(8))
    newest[0].write_bytes(content)
    return f"bit of byte {place} of {newest[0].name} flipped"


def differences(one: Path, two: Path) -> list[str]:
    """What two finished runs do not share; the clock and the folder's name aside."""
    found = []
    for name in ("last.pt", "best.pt"):
        contents = [torch.load(folder / "checkpoints" / name, weights_only=True) for folder in (one, two)]
        for content in contents:
            content["progress"]["seconds"] = 0
            content["progress"]["history"] = [_figures(row) for row in content["progress"]["history"]]
            del content["config"]
        found += [f"{name} {place}" for place in _unequal(*contents)]
    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    for name in ("last", "best", "steps_per_epoch"):
        found += [f"results.json {name}"] if results[0][name] != results[1][name] else []
    if [_figures(row) for row in results[0]["epochs"]] != [_figures(row) for row in results[1]["epochs"]]:
        found.append("results.json epochs")
    found += [
        f"model {place}" for place in _unequal(*(load_file(f / "model" / "model.safetensors") for f in (one, two)))
    ]
    return found


def _figures(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "train_seconds"}


def _unequal(one: Any, two: Any, place: str = "") -> list[str]:
    """Where two nested containers with tensors in them differ by a bit."""
    if type(one) is not type(two):
        return [place]
    if isinstance(one, dict):
        if one.keys() != two.keys():
            return [place]
        return [found for key in one for found in _unequal(one[key], two[key], f"{place}/{key}")]
    if isinstance(one, list | tuple):
        if len(one) != len(two):
            return [place]
        return [found for i, pair in enumerate(zip(one, two, strict=True)) for found in _unequal(*pair, f"{place}/{i}")]
    same = torch.equal(one, two) if isinstance(one, torch.Tensor) else one == two
    return [] if same else [place]


def torture(name: str, folder: Path, rng: np.random.Generator, faults: list[Fault | str]) -> tuple[list[str], str]:
    """One run through all its faults and then to its end: what happened, and what is wrong ("" for nothing)."""
    processes, flags = CASES[name]
    happened = []
    for fault in faults:
        if isinstance(fault, str):
            damage = damage_newest(folder, rng) if folder.exists() else None
            happened.append(damage or "no checkpoint to damage yet")
            continue
        statuses, printed = attempt(processes, flags, folder, fault)
        happened.append(str(fault))
        if "Traceback" in printed and -fault.signal not in statuses:  # a loader's worker tells of its parent's death
            return happened, f"traceback: {printed.splitlines()[-1]}"
        wanted = {"full disk": {2}}.get(fault.kind, {-fault.signal, 128 + fault.signal})
        if not wanted & set(statuses):  # it was done before it could happen, which is no fault either
            happened[-1] += f" (too late, status {statuses})"
            if set(statuses) != {0}:
                return happened, f"status {statuses}: {printed.splitlines()[-1:]}"
        if fault.kind == "full disk" and "File too large" not in printed:
            return happened, "the disk was not full"
    statuses, printed = attempt(processes, flags, folder, None)
    if set(statuses) != {0}:
        return happened, f"status {statuses}: {printed.splitlines()[-1:]}"
    leftovers = [path.name for path in (folder / "checkpoints").iterdir() if path.name.startswith(".")]
    wrong = differences(folder.parent / f"reference of {name}", folder) + leftovers
    return happened, ", ".join(wrong[:3])


def restart_by_torchrun(name: str, folder: Path) -> tuple[list[str], str]:
    """torchrun starts all processes again after one of them was killed; they go on by themselves."""
    processes, flags = CASES[name]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    argv = [*SHARED, *flags, "--output", str(folder.parent), "--experiment", folder.name]
    command = [*launch, "--max-restarts", "2", __file__, WORKER, *argv]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    happened = [f"{ELASTIC} in the first start"]
    if done.returncode:
        return happened, f"status {done.returncode}: {done.stderr.splitlines()[-1:]}"
    return happened, ", ".join(differences(folder.parent / f"reference of {name}", folder)[:3])


def work_for_torchrun() -> None:
    if int(os.environ["TORCHELASTIC_RESTART_COUNT"]) == 0 and int(os.environ["RANK"]) == ELASTIC.rank:
        arm(ELASTIC)
    run_script(lambda: train.main(sys.argv[2:]))


def plan(
    names: list[str], kills: int, rng: np.random.Generator, *, kills_only: bool
) -> list[tuple[str, str, list[Fault | str]]]:
    """(case, kind of trouble, faults) of every run; torchrun has its own fault."""
    runs: list[tuple[str, str, list[Fault | str]]] = []
    for number in range(kills):
        name = names[number % len(names)]
        runs.append((name, "killed", [draw_fault(rng, CASES[name][0]) for _ in range(1 + number % 2)]))
    if kills_only:
        return runs
    for number, name in enumerate(names):
        first = draw_fault(rng, CASES[name][0], "update")
        if number % 3 == 0:
            runs.append((name, "full disk", [first, Fault("full disk")]))
        elif number % 3 == 1:
            runs.append((name, "damaged", [first, "damage"]))
        else:
            stop = Fault("update", first.rank, first.count, 0.0, signal.SIGTERM)
            runs.append((name, "stopped", [stop]))
    return runs + [(name, "torchrun", []) for name in names if CASES[name][0] > 1][:1]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20, help="runs that are killed; others get other trouble")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="these cases alone")
    parser.add_argument("--kills-only", action="store_true", help="no full disks, damage, SIGTERM or torchrun")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(args.seed)
    begun, failed = time.monotonic(), 0
    with tempfile.TemporaryDirectory() as out:
        for name in args.only:
            processes, flags = CASES[name]
            statuses, printed = attempt(processes, flags, Path(out) / f"reference of {name}", None)
            if set(statuses) != {0}:
                print(f"{name} does not run by itself, status {statuses}:\n{printed}")
                return 1
        runs = plan(args.only, args.kills, rng, kills_only=args.kills_only)
        for number, (name, trouble, faults) in enumerate(runs):
            folder = Path(out) / f"run {number}"
            happened, wrong = torture(name, folder, rng, faults) if faults else restart_by_torchrun(name, folder)
            failed += bool(wrong)
            verdict = f"DIFFERS: {wrong}" if wrong else "equal to the bit"
            print(f"{number + 1:3} {name:26} {trouble:10} {'; '.join(happened):75} {verdict}", flush=True)
            shutil.rmtree(folder, ignore_errors=True)
    print(f"{len(runs) - failed} of {len(runs)} equal, {time.monotonic() - begun:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(work_for_torchrun() if sys.argv[1:2] == [WORKER] else main())
