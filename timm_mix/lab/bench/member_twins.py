"""Member-parallel steps on the CPU and a model of their time: what benchmark.py measures."""

import multiprocessing
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from timm.task import TrainingTask
from torch import Tensor

import timm_mix
from timm_mix.tasks.member_parallel import gather_members

__all__ = ["MemberProcesses", "StepModel", "training_step"]

K = 100


@dataclass(frozen=True)
class StepModel:
    """Predicted time of a step where every part owns a device: the slowest part's own step and one all-gather.

    On one such device the parts take the sum. Both are calibrated on cores for devices: part_seconds is measured one
    part at a time on a core of its own, gather_seconds between idle processes, sequential_seconds on one core;
    measured_seconds is the step with all parts at once, a core each, which the prediction can be held against.
    """

    name: str
    part_seconds: tuple[float, ...]
    gather_seconds: float
    sequential_seconds: float
    measured_seconds: float

    @property
    def predicted_seconds(self) -> float:
        return max(self.part_seconds) + self.gather_seconds

    def __str__(self) -> str:
        parts = ", ".join(f"{1e3 * seconds:.2f}" for seconds in self.part_seconds)
        return (
            f"{self.predicted_seconds / self.sequential_seconds:7.3f}  [model]  step with a device per part over all "
            f"parts on one, {self.name}  (max({parts}) + all-gather {1e3 * self.gather_seconds:.2f} = "
            f"{1e3 * self.predicted_seconds:.2f} over {1e3 * self.sequential_seconds:.2f} ms; with a core per part "
            f"measured {1e3 * self.measured_seconds:.2f})"
        )


def training_step(task: TrainingTask, images: Tensor, target: Tensor) -> Callable[[], None]:
    """A whole training step: forward, backward, update, and the models that follow it."""
    model = task.get_trainable_module()
    assert model is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)

    def run() -> None:
        task(images, target)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema()

    return run


class MemberProcesses:
    """A process per part, which takes steps on command; a context manager that ends them.

    Args:
        model: name and keywords of a splitnet with `parts` parts.
        shape: of the images of one part, [B, C, H, W].
        threads: per process.
    """

    def __init__(self, model: dict[str, Any], parts: int, shape: tuple[int, ...], threads: int = 1):
        context = multiprocessing.get_context("spawn")
        self._folder = tempfile.TemporaryDirectory()
        meeting = (Path(self._folder.name) / "meeting").as_uri()
        self._processes, self._pipes = [], []
        for part in range(parts):
            here, there = context.Pipe()
            process = context.Process(
                target=_serve, args=(there, model, part, parts, shape, threads, meeting), daemon=True
            )
            process.start()
            there.close()  # so that the end of a process is the end of its pipe
            self._processes.append(process)
            self._pipes.append(here)

    def __enter__(self) -> "MemberProcesses":
        return self

    def __exit__(self, *error: object) -> None:
        for pipe in self._pipes:
            pipe.close()
        for process in self._processes:
            process.join()
        self._folder.cleanup()

    def run(self, what: str = "step", *, times: int = 1, parts: list[int] | None = None) -> list[float]:
        """Let the parts (default: all at once) do something so often; their seconds per time.

        Args:
            what: `step` (member-parallel), `alone` (the part's own step, without the others) or `gather`.
        """
        pipes = self._pipes if parts is None else [self._pipes[part] for part in parts]
        for pipe in pipes:
            pipe.send((what, times))
        return [pipe.recv() for pipe in pipes]


def _serve(
    pipe: Connection, model: dict[str, Any], part: int, parts: int, shape: tuple[int, ...], threads: int, meeting: str
) -> None:
    """What one process does, until the other end of the pipe is closed."""
    torch.set_num_threads(threads)
    dist.init_process_group("gloo", init_method=meeting, rank=part, world_size=parts)
    torch.manual_seed(0)
    net = timm.create_model(**model, num_classes=K, only_part=part)
    group: Any = dist.group.WORLD
    images, target = torch.randn(shape), torch.randint(K, shape[:1])
    logits = torch.randn(shape[0], 1, K)
    together = timm_mix.create_task("cotraining", net, num_classes=K, member_group=group, verbose=False)
    alone = timm_mix.create_task("cotraining", net, num_classes=K, verbose=False)
    runs = {
        "step": training_step(together, images, target),
        "alone": training_step(alone, images, target),
        "gather": lambda: gather_members(logits, group),
    }
    try:
        while True:
            what, times = pipe.recv()
            begun = time.perf_counter()
            for _ in range(times):
                runs[what]()
            pipe.send((time.perf_counter() - begun) / times)
    except (EOFError, ConnectionError, KeyboardInterrupt):
        dist.destroy_process_group()
