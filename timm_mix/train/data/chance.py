"""Chance as a function of a place in the run: what is drawn depends on a key, never on what was drawn before.

torchvision, timm and dropout draw from the global generators of `random`, numpy and torch. Seeding these from a key
such as (seed, epoch, position) before every item and every step makes a run that was cut anywhere go on alike, with
nothing replayed.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from timm_mix.train.errors import UsageError

__all__ = ["deterministic_algorithms", "keep_generators", "seed_generators"]

CUBLAS_WORKSPACE = ":4096:8"  # 8 buffers of 4 MiB: with a fixed workspace cuBLAS repeats its results


def seed_generators(*key: int, device: torch.device | None = None) -> None:
    """Seed the global generators of `random`, numpy and torch (the CPU's and this device's) from integers >= 0.

    Not by torch.manual_seed, which on a machine without a GPU takes ten times as long.

    >>> seed_generators(42, 0, 7)  # say of a run, an epoch and a step
    >>> drawn = torch.rand(2)
    >>> seed_generators(42, 0, 7)
    >>> torch.equal(torch.rand(2), drawn)
    True
    """
    words = np.random.SeedSequence(key).generate_state(5).tolist()
    random.seed(words[0] << 32 | words[1])
    np.random.seed(words[2])
    seed = words[3] << 32 | words[4]
    torch.default_generator.manual_seed(seed)
    if device is not None and device.type != "cpu":
        torch.get_device_module(device).manual_seed(seed)


@contextmanager
def keep_generators() -> Iterator[None]:
    """Leave the global generators of `random`, numpy and torch's CPU as they were.

    >>> with keep_generators():
    ...     drawn = torch.rand(2)
    >>> torch.equal(torch.rand(2), drawn)  # as if nothing had been drawn
    True
    """
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


@contextmanager
def deterministic_algorithms(wanted: bool) -> Iterator[None]:
    """Let torch take only operations that give the same bits every time.

    On the CPU results are the same without. Has to begin before the first use of the GPU.

    Raises:
        UsageError: within it an operation has no such kernel.

    >>> with deterministic_algorithms(True):
    ...     torch.are_deterministic_algorithms_enabled()
    True
    >>> torch.are_deterministic_algorithms_enabled()
    False
    """
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        raise UsageError(f"--deterministic does not go with this recipe: {str(error).partition('. ')[0]}") from error
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
