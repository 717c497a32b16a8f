"""Compare times pairwise: A B A B ..., the ratio taken pair by pair, so that a drifting machine cancels out.

    python train_scripts/benchmark.py [--cases mixmo masks blocks members ...] [--pairs 9] [--output FILE]

A time is the mean over as many runs as fill a fifth of a second. Prints the median ratio with its range over the pairs,
and writes all figures with hardware and versions to a json file. The case member_parallel compares processes with
threads on the same cores, whatever --device says; what a device per part gives is its [model] line, a prediction.
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from timm.task import ClassificationTask
from torch import nn
from tqdm import tqdm

import timm_mix
from timm_mix.functional.mixmo import BLOCKS, member_masks, plan_mixmo
from trainkit.errors import UsageError, run_script
from trainkit.files import write_json
from trainkit.mask_twins import masks_one_by_one
from trainkit.member_twins import MemberProcesses, StepModel, training_step
from trainkit.results import describe_machine
from trainkit.ways import ways

Run = Callable[[], object]
LEAST_SECONDS = 0.2


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


def compare(name: str, a: Run, b: Run, pairs: int, device: torch.device) -> Ratio:
    """Time A and B in turn, one warm-up pair first."""
    times: list[tuple[float, float]] = []
    for _ in tqdm(range(pairs + 1), desc=name, leave=False, disable=None):
        times.append((_seconds(a, device), _seconds(b, device)))
    ratios = [first / second for first, second in times[1:]]
    medians = [statistics.median(column) for column in zip(*times[1:], strict=True)]
    return Ratio(name, statistics.median(ratios), min(ratios), max(ratios), medians[0], medians[1], pairs)


def _seconds(run: Run, device: torch.device) -> float:
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


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _small_images(batch: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 3, 32, 32, device=device), torch.randint(100, (batch,), device=device)


def bench_mixmo(args: argparse.Namespace, device: torch.device) -> list[Ratio]:
    """Training step of MixMo with two members over the plain backbone's."""
    ratios = []
    for arch, batch in (("wrn16_2", args.batch), ("wrn28_10", max(2, args.batch // 8))):
        images, target = _small_images(batch, device)
        plain = timm.create_model(arch, num_classes=100).to(device)
        mixed = timm.create_model(f"mixmo_{arch}_m2", num_classes=100).to(device)
        a = training_step(timm_mix.create_task("mixmo", mixed, None, num_classes=100), images, target)
        b = training_step(
            ClassificationTask(plain, nn.CrossEntropyLoss(), device=device, verbose=False), images, target
        )
        name = f"training step, mixmo_{arch}_m2 over {arch}, batch {batch}"
        ratios.append(compare(name, a, b, args.pairs, device))
    return ratios


def bench_masks(args: argparse.Namespace, device: torch.device) -> list[Ratio]:
    """Drawing and filling the masks, as a share of the whole training step."""
    ratios = []
    for arch, batch in (("wrn16_2", args.batch), ("wrn28_10", max(2, args.batch // 8))):
        images, target = _small_images(batch, device)
        model = timm.create_model(f"mixmo_{arch}_m2", num_classes=100).to(device)
        task: Any = timm_mix.create_task("mixmo", model, None, num_classes=100, block="cut", prob=1.0)
        step = training_step(task, images, target)
        name = f"masks over training step, mixmo_{arch}_m2, cut, batch {batch}"
        ratios.append(compare(name, _masks(task, images), step, args.pairs, device))
    return ratios


def bench_blocks(args: argparse.Namespace, device: torch.device) -> list[Ratio]:
    """A loop over samples over the vectorised drawing and filling of a whole batch of masks, for every mixing block."""
    ratios = []
    for shape in ((16, 32, 32), (16, 112, 112)):
        for block in BLOCKS:
            rng = np.random.default_rng(0)
            kappa = rng.dirichlet([2.0, 2.0], size=256)[:, 0]
            twin = partial(masks_one_by_one, block, kappa, shape, rng)
            name = f"masks one by one over vectorised, {block}, B=256, C'={shape[0]}, {shape[1]}x{shape[2]}"
            ratios.append(compare(name, twin, partial(_draw_and_fill, block, shape, rng, device), args.pairs, device))
    return ratios


def _draw_and_fill(block: str, shape: tuple[int, int, int], rng: np.random.Generator, device: torch.device) -> object:
    return member_masks(plan_mixmo(256, 2, shape, rng=rng, block=block), device)


def bench_members(args: argparse.Namespace, device: torch.device) -> list[Ratio]:
    """Training step of MixMo with M members over two members."""
    ratios = []
    images, target = _small_images(max(2, args.batch // 8), device)
    for members in (3, 4, 8):
        models = [
            timm.create_model("mixmo", backbone="wrn28_10", members=m, num_classes=100).to(device) for m in (members, 2)
        ]
        a, b = (training_step(timm_mix.create_task("mixmo", m, None, num_classes=100), images, target) for m in models)
        name = f"training step, {members} members over 2, wrn28_10, batch {len(images)}"
        ratios.append(compare(name, a, b, args.pairs, device))
    return ratios


def _masks(task: Any, images: torch.Tensor) -> Run:
    return lambda: member_masks(task.draw(images), images.device)


def bench_splitnet(args: argparse.Namespace, device: torch.device) -> list[Ratio]:
    """Inference of SplitNet's parts, one after the other, over the undivided network."""
    ratios = []
    for name, whole in (("splitnet_resnet50_s2", "resnet50"), ("splitnet_wrn28_10_s2", "wrn28_10")):
        parts, plain = (timm.create_model(n, num_classes=100).to(device).eval() for n in (name, whole))
        for batch in (1, 8):
            images = torch.randn(batch, *plain.pretrained_cfg["input_size"], device=device)
            label = f"inference, {name} over {whole}, batch {batch}"
            ratios.append(compare(label, _inference(parts, images), _inference(plain, images), args.pairs, device))
    return ratios


def bench_concurrent(args: argparse.Namespace, device: torch.device) -> list[Ratio]:
    """Inference of SplitNet's parts in every way that trainkit/ways.py knows; on a GPU in bf16, channels_last."""
    gpu = device.type == "cuda"
    pairs = [("splitnet_resnet50_s2", "resnet50"), ("splitnet_wrn28_10_s2", "wrn28_10")]
    formats: list[Any] = [{"memory_format": torch.contiguous_format}, {"memory_format": torch.channels_last}]
    if gpu:
        pairs[1:] = [("splitnet_resnet50_s4", "resnet50"), ("splitnet_wrn28_10_s4", "wrn28_10")]
        formats = [{"memory_format": torch.channels_last, "dtype": torch.bfloat16}]
    ratios = []
    for (name, whole), form in product(pairs, formats):
        parts, plain = (timm.create_model(n, num_classes=100).eval().to(device, **form) for n in (name, whole))
        known = ways(parts, plain)
        for batch in (1, 8, 128) if gpu else (1, 8):
            images = torch.randn(batch, *plain.pretrained_cfg["input_size"]).to(device, **form)
            runs = {way: _inference(call, images) for way, call in known.items()}
            for a, b in [("concurrent", "sequential"), *((way, "undivided") for way in runs if way != "undivided")]:
                label = f"inference, {name}, {a} over {b}, {str(form['memory_format'])[6:]}, batch {batch}"
                ratios.append(compare(label, runs[a], runs[b], args.pairs, device))
    return ratios


def _inference(model: Callable[[torch.Tensor], object], images: torch.Tensor) -> Run:
    def run() -> None:
        with torch.inference_mode():
            model(images)

    return run


def bench_member_parallel(args: argparse.Namespace, device: torch.device) -> Iterator[Ratio | StepModel]:
    """Co-training step with a process per part over one process with as many cores; and with a device per part.

    The same cores do the same work either way: the ratio shows what processes and the exchange of logits cost or save
    against threads, not what another device saves. That is predicted from the times of a part and of an all-gather.
    """
    threads = max(1, (os.cpu_count() or 1) // 2)
    for arch, batch in (("wrn16_4", args.batch), ("wrn28_10", max(2, args.batch // 8))):
        model = {"model_name": "splitnet", "backbone": arch, "split": 2}
        views, target = torch.randn(batch, 2, 3, 32, 32), torch.randint(100, (batch,))
        task = timm_mix.create_task("cotraining", timm.create_model(**model, num_classes=100), num_classes=100)
        sequential, name = training_step(task, views, target), f"splitnet of {arch} in 2, batch {batch}, CPU"
        label = f"training step, 2 processes x {threads} over 1 process x {2 * threads} threads, {name}"
        with MemberProcesses(model, 2, (batch, 3, 32, 32), threads) as processes, _threads(2 * threads):
            yield compare(label, processes.run, sequential, args.pairs, torch.device("cpu"))
            yield _step_model(name, processes, sequential, args.pairs, threads)


def _step_model(name: str, processes: MemberProcesses, sequential: Run, pairs: int, threads: int) -> StepModel:
    """Calibrate the model, its four times in turn, one warm-up round first."""
    rounds = []
    with _threads(threads):
        for _ in tqdm(range(pairs + 1), desc=f"model, {name}", leave=False, disable=None):
            alone = [processes.run("alone", parts=[part], times=3)[0] for part in range(2)]
            gather, together = max(processes.run("gather", times=100)), max(processes.run("step", times=3))
            rounds.append((*alone, gather, _seconds(sequential, torch.device("cpu")), together))
    first, second, gather, whole, together = (statistics.median(column) for column in zip(*rounds[1:], strict=True))
    return StepModel(name, (first, second), gather, whole, together)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


CASES: dict[str, Callable[[argparse.Namespace, torch.device], Iterable[Ratio | StepModel]]] = {
    "mixmo": bench_mixmo,
    "masks": bench_masks,
    "blocks": bench_blocks,
    "members": bench_members,
    "splitnet": bench_splitnet,
    "member_parallel": bench_member_parallel,
    "concurrent": bench_concurrent,
}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--pairs", type=int, default=9, help="counted pairs per figure")
    parser.add_argument("--batch", type=int, default=64, help="batch of the small networks")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, default=Path("output/benchmark.json"))
    args = parser.parse_args(argv)
    if args.pairs < 1 or args.batch < 2:
        raise UsageError(f"--pairs must be >= 1 and --batch >= 2, got {args.pairs} and {args.batch}")
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda, but torch sees no GPU; take --device cpu")
    torch.manual_seed(0)
    rows: list[Ratio | StepModel] = []
    for case in args.cases:
        for row in CASES[case](args, device):
            print(row, flush=True)
            rows.append(row)
    ratios = [asdict(row) for row in rows if isinstance(row, Ratio)]
    models = [{**asdict(row), "predicted_seconds": row.predicted_seconds} for row in rows if isinstance(row, StepModel)]
    write_json(args.output, {**describe_machine(device), "ratios": ratios, "step_models": models})
    print(f"written to {args.output}")


if __name__ == "__main__":
    run_script(main)
