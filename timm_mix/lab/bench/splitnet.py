"""Cases of SplitNet: inference of the parts one after the other and at the same time, a process per part."""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from typing import Any

import timm
import torch
from tqdm import tqdm

import timm_mix
from timm_mix.lab.bench.measure import Ratio, Run, compare, time_of
from timm_mix.lab.bench.member_twins import MemberProcesses, StepModel, training_step
from timm_mix.lab.bench.ways import ways

__all__ = ["bench_concurrent", "bench_member_parallel", "bench_splitnet"]


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
    """Inference of SplitNet's parts in every way that ways.py knows; on a GPU in bf16, channels_last."""
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
            rounds.append((*alone, gather, time_of(sequential, torch.device("cpu")), together))
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
