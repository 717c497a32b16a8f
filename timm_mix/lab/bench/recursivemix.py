"""Case of RecursiveMix: the training step over the plain one's, in time and memory."""

import argparse
from collections.abc import Iterator
from functools import partial

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

__all__ = ["bench_recursivemix"]


def bench_recursivemix(args: argparse.Namespace, device: torch.device) -> Iterator[Ratio | MemoryRatio]:
    """Training step of RecursiveMix over the plain network's."""
    for arch, batch in batch_sizes(args).items():
        mixed, plain = (partial(make, arch, batch, device) for make in (_step, plain_step))
        name = f"training step, RecursiveMix over plain, {arch}, batch {batch}"
        yield compare(name, mixed(), plain(), args.pairs, device)
        yield compare_memory(name, mixed, plain, device)


def _step(arch: str, batch: int, device: torch.device) -> Run:
    task = timm_mix.create_task("recursivemix", small_net(arch, device), num_classes=100)
    return training_step(task, *small_images(batch, device))
