"""Sizes that no machine has: an estimate of the least that they take, before any of it is tried."""

import math
import os
from collections.abc import Sequence
from typing import Any

from torch import nn

from timm_mix.train.errors import UsageError

__all__ = ["check_images", "check_network", "machine_memory"]

_FLOAT = 4  # bytes


def machine_memory() -> int:
    """Bytes of main memory for this process; the processes of a machine share it.

    >>> machine_memory() > 2**20
    True
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // processes


def check_images(count: int, size: Sequence[int], advice: str, *, padding: int = 0) -> None:
    """A batch of images fits the memory.

    Args:
        count: images, all views counted.
        size: C, H, W of one.
        padding: pixels around it before it is cropped, one byte per channel.
    Raises:
        UsageError: it does not.

    >>> check_images(10**9, (3, 224, 224), "lower --batch-size")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: 1,000,000,000 images of 3x224x224 take 560,760 GiB, this machine has ...
    """
    channels, height, width = size
    padded = channels * (height + 2 * padding) * (width + 2 * padding)
    shown = "x".join(map(str, size)) + (f" with {padding} pixels of padding" if padding else "")
    _check(f"{count:,} images of {shown}", max(count * math.prod(size) * _FLOAT, padded), advice)


def check_network(model: nn.Module, name: str, *, training: bool = False) -> None:
    """The weights of a network on the meta device would fit the memory, with their gradients where it learns.

    Raises:
        UsageError: they do not.

    >>> with torch.device("meta"):
    ...     check_network(nn.Linear(2**20, 2**20), "my_net")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: the weights of my_net take 4,096 GiB, this machine has ...
    """
    tensors: list[Any] = [*model.parameters(), *model.buffers()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    _check(f"the weights of {name}", size * (1 + training), "take a smaller network")


def _check(what: str, size: int, advice: str) -> None:
    memory = machine_memory()
    if size > memory:
        raise UsageError(f"{what} take {size / 2**30:,.0f} GiB, this machine has {memory / 2**30:,.0f} GiB: {advice}")
