"""How benchmark.py measures: times pair by pair, and the memory at the peak of a step."""

import argparse
import gc
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from timm.task import ClassificationTask
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function
from tqdm import tqdm

from timm_mix.lab.bench.member_twins import training_step

__all__ = [
    "MemoryRatio",
    "Ratio",
    "Run",
    "batch_sizes",
    "compare",
    "compare_memory",
    "peak_bytes",
    "plain_step",
    "small_images",
    "small_net",
    "time_of",
]

Run = Callable[[], object]
Shares = Sequence[tuple[float, Run]]  # runs of several kinds, and how often each of them occurs
Build = Callable[[], Run | Shares]
LEAST_SECONDS = 0.2
MIB = 2**20


@dataclass(frozen=True)
class Ratio:
    """Time of A over time of B: median, least and largest over the pairs; seconds are medians."""

    name: str
    ratio: float
    least: float
    largest: float
    seconds_a: float
    seconds_b: float
    pairs: int

    def __str__(self) -> str:
        return (
            f"{self.ratio:7.3f}  [{self.least:.3f} .. {self.largest:.3f}]  {self.name}  "
            f"({1e3 * self.seconds_a:.2f} / {1e3 * self.seconds_b:.2f} ms, {self.pairs} pairs)"
        )


@dataclass(frozen=True)
class MemoryRatio:
    """Bytes of tensors at the peak of A over those of B, `peak_bytes` of either."""

    name: str
    ratio: float
    bytes_a: int
    bytes_b: int

    def __str__(self) -> str:
        return f"{self.ratio:7.3f}  [memory]  {self.name}  ({self.bytes_a / MIB:.1f} / {self.bytes_b / MIB:.1f} MiB)"


def compare(name: str, a: Run | Shares, b: Run, pairs: int, device: torch.device) -> Ratio:
    """Time A and B in turn, one warm-up pair first; an A of several kinds takes the mean over their shares."""
    times: list[tuple[float, float]] = []
    shares = _shares(a)
    for _ in tqdm(range(pairs + 1), desc=name, leave=False, disable=None):
        first = sum(share * time_of(run, device) for share, run in shares)
        times.append((first, time_of(b, device)))
    ratios = [first / second for first, second in times[1:]]
    medians = [statistics.median(column) for column in zip(*times[1:], strict=True)]
    return Ratio(name, statistics.median(ratios), min(ratios), max(ratios), medians[0], medians[1], pairs)


def compare_memory(name: str, a: Build, b: Build, device: torch.device) -> MemoryRatio:
    """Peaks of A and B, each built by its function; see peak_bytes."""
    first, second = peak_bytes(a, device), peak_bytes(b, device)
    return MemoryRatio(name, first / second, first, second)


def time_of(run: Run, device: torch.device) -> float:
    """Mean time of a run, over as many as fill LEAST_SECONDS."""
    _wait(device)
    begun, runs = time.perf_counter(), 0
    while True:
        run()
        _wait(device)
        runs += 1
        elapsed = time.perf_counter() - begun
        if elapsed >= LEAST_SECONDS:
            return elapsed / runs


def peak_bytes(build: Build, device: torch.device) -> int:
    """Bytes that torch's allocator has handed out at the peak of a run, for what `build` made and the run makes.

    `build` makes everything (networks, optimizers, data) and returns the run, or several with their shares; each goes
    once unmeasured, so that optimizers have their state, and once measured. Weights, gradients, optimizer state,
    activations and the scratch space that kernels ask torch for are in it. On CUDA this is
    torch.cuda.max_memory_allocated; on the CPU the same is counted from every allocation that the profiler sees, whose
    trace names address and size.
    """
    gc.collect()
    return _peak_on_gpu(build, device) if device.type == "cuda" else _peak_on_cpu(build)


def _peak_on_gpu(build: Build, device: torch.device) -> int:
    before = torch.cuda.memory_allocated(device)
    runs = [run for _, run in _shares(build())]
    for run in runs:
        run()
    torch.cuda.reset_peak_memory_stats(device)
    for run in runs:
        run()
    return torch.cuda.max_memory_allocated(device) - before


def _peak_on_cpu(build: Build) -> int:
    # acc_events: torch 2.11 warns without it
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as watched:
        runs = [run for _, run in _shares(build())]
        for run in runs:
            run()
        with record_function("measured"):
            for run in runs:
                run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        watched.export_chrome_trace(str(path))
        return _peak_of_trace(json.loads(path.read_text())["traceEvents"])


def _peak_of_trace(events: list[dict[str, Any]]) -> int:
    """The largest sum of live allocations within the event `measured`, without those from before the trace."""
    (measured,) = (event for event in events if event.get("name") == "measured" and event.get("ph") == "X")
    live: dict[int, int] = {}
    total = peak = 0
    for event in sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"]):
        size, address = event["args"]["Bytes"], event["args"]["Addr"]
        if size > 0:
            live[address] = size
            total += size
        else:
            total -= live.pop(address, 0)
        if measured["ts"] <= event["ts"] <= measured["ts"] + measured["dur"]:
            peak = max(peak, total)
    return peak


def _shares(what: Run | Shares) -> Shares:
    return [(1.0, what)] if callable(what) else what


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def small_images(batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Images of 32 x 32 pixels and labels of 100 classes."""
    return torch.randn(batch, 3, 32, 32, device=device), torch.randint(100, (batch,), device=device)


def small_net(arch: str, device: torch.device) -> nn.Module:
    """The network for such images."""
    return timm.create_model(arch, num_classes=100).to(device)


def plain_step(arch: str, batch: int, device: torch.device) -> Run:
    """Training step of the plain network under timm's own task."""
    task = ClassificationTask(small_net(arch, device), nn.CrossEntropyLoss(), device=device, verbose=False)
    return training_step(task, *small_images(batch, device))


def batch_sizes(args: argparse.Namespace) -> dict[str, int]:
    """Networks of three sizes, each with a batch that keeps a step short on the CPU."""
    return {"wrn28_10": max(2, args.batch // 8), "resnet18_cifar": max(2, args.batch // 2), "wrn16_2": args.batch}
