"""Case of AutoMix: the training step over the plain one's, in time and memory, exact and at a cheaper setting."""

import argparse
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

import timm_mix
from timm_mix.lab.bench.measure import (
    MemoryRatio,
    Ratio,
    Run,
    batch_sizes,
    compare,
    compare_memory,
    plain_step,
    small_images,
    small_net,
)
from timm_mix.lab.bench.member_twins import training_step
from timm_mix.train.cost import predict_cost
from timm_mix.train.settings.data import DataSettings
from timm_mix.train.settings.model import ModelSettings
from timm_mix.train.settings.task import TaskSettings

__all__ = ["CHEAPER", "bench_automix"]

CHEAPER = {"block_every": 4, "one_hot_prob": 0, "main_head": "mix"}  # the cheaper setting of the method card
REDUCTION = {"wrn28_10": 2, "resnet18_cifar": 4, "wrn16_2": 2}  # of the published runs on networks of their kind
PUBLISHED_BATCH = 100  # on CIFAR


def bench_automix(args: argparse.Namespace, device: torch.device) -> Iterator[Ratio | MemoryRatio]:
    """Training step of AutoMix over the plain network's; `counted` is the ratio that train.py predicts."""
    sizes = batch_sizes(args)
    for label, settings in (("AutoMix", {}), ("AutoMix " + " ".join(f"{k}={v}" for k, v in CHEAPER.items()), CHEAPER)):
        for arch, batch in sizes.items():
            name = f"training step, {label} over plain, {arch}, batch {batch}, {_counted(arch, settings):.3f} counted"
            steps, plain = _steps(arch, settings, batch, device), plain_step(arch, batch, device)
            yield compare(name, steps, plain, args.pairs, device)
        for arch, batch in (("wrn28_10", sizes["wrn28_10"]), ("resnet18_cifar", PUBLISHED_BATCH)):
            name = f"training step, {label} over plain, {arch}, batch {batch}"
            mixed, plain = partial(_steps, arch, settings, batch, device), partial(plain_step, arch, batch, device)
            yield compare_memory(name, mixed, plain, device)


def _steps(arch: str, settings: dict[str, Any], batch: int, device: torch.device) -> list[tuple[float, Run]]:
    """A step of each kind and how often it occurs: in some the Mix Block learns, in others it does not."""
    settings = {"reduction": REDUCTION[arch], "block_kwargs": {"lam_channel": False}, **settings}
    task: Any = timm_mix.create_task("automix", small_net(arch, device), num_classes=100, **settings)
    step = training_step(task, *small_images(batch, device))

    def run(number: int) -> None:
        task.step = number
        step()

    period = [task.passes(number) for number in range(task.block_every)]
    return [(often / len(period), partial(run, period.index(kind))) for kind, often in Counter(period).items()]


def _counted(arch: str, settings: dict[str, Any]) -> float:
    task = TaskSettings(name="automix", mix={"reduction": REDUCTION[arch], **settings})
    counts = {"num_classes": 100, "steps_per_epoch": 1, "epochs": 1}
    return predict_cost(ModelSettings(name=arch), task, DataSettings(), **counts).relative_time
