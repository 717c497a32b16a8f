"""The mixing blocks of MixMo by name (arXiv:2103.06132, sec. 3.2): one line each, what they do is in masks.py."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from torch import Generator, Tensor

from timm_mix.functional.boxes import box_masks, draw_boxes, draw_intervals, interval_masks
from timm_mix.functional.masks import (
    channel,
    cow,
    fmix,
    noise,
    patchup_hard,
    patchup_hard_2d,
    patchup_soft,
)
from timm_mix.registry import Registry, check_takes

__all__ = ["BLOCKS", "LINEAR", "Block"]

LINEAR = "linear"  # the block without a region, which every other one gives way to with 1 - prob

Shape = tuple[int, int, int, int]


@dataclass(frozen=True)
class Block:
    """How the region that role 0 cuts out is made.

    Args:
        fill: (kappa [B] on the device, (B, C', h, w), generator on that device) -> the region, float32 or bool
            [B, 1 or C', h, w], or [B, C', 1, 1]; 1 where a place is role 0's. None: there is no region, all is shared.
        draw: (kappa [B], (C', h, w), rng=) -> the numbers per sample, drawn on the CPU, that `fill` takes in the place
            of kappa. None: the region is noise, drawn on the device.
        binary: every place is one member's alone.

    >>> def left(kappa, shape, generator):
    ...     # role 0 takes the left half
    ...     return (torch.arange(shape[3]) < shape[3] // 2).expand(shape[0], 1, *shape[2:])
    >>> BLOCKS.register("left", Block(left, binary=True)).binary
    True
    """

    fill: Callable[[Tensor, Shape, Generator], Tensor] | None = None
    draw: Callable[..., np.ndarray] | None = None
    binary: bool = False


def _check(name: str, block: object) -> None:
    if not isinstance(block, Block):
        raise ValueError(f"block {name!r} must be a functional.blocks.Block, got {block!r}")
    if block.fill is not None:
        check_takes(f"block {name!r}", block.fill, "(kappa, shape, generator)", None, None, None)
    if block.draw is not None:
        check_takes(f"draw of block {name!r}", block.draw, "(kappa, shape, rng=)", None, None, rng=None)


def _draw_box(kappa: np.ndarray, shape: tuple[int, int, int], *, rng: np.random.Generator) -> np.ndarray:
    return draw_boxes(kappa, shape[1:], rng=rng)


def _fill_box(boxes: Tensor, shape: Shape, generator: Generator) -> Tensor:
    return box_masks(boxes, shape[2:])


def _intervals(axis: int) -> Block:
    """An axis of [B, C', h, w] is cut in two."""

    def draw(kappa: np.ndarray, shape: tuple[int, int, int], *, rng: np.random.Generator) -> np.ndarray:
        return draw_intervals(kappa, shape[axis - 1], rng=rng)

    def fill(intervals: Tensor, shape: Shape, generator: Generator) -> Tensor:
        view = [shape[0], 1, 1, 1]
        view[axis] = shape[axis]
        region = interval_masks(intervals, shape[axis]).view(view)
        return region if axis == 1 else region.expand(-1, -1, *shape[2:])

    return Block(fill, draw, binary=True)


BLOCKS: Registry[Block] = Registry("block", _check)
BLOCKS.register(LINEAR, Block())
BLOCKS.register("cut", Block(_fill_box, _draw_box, binary=True))
BLOCKS.register("channel_concat", _intervals(axis=1))
BLOCKS.register("horizontal", _intervals(axis=2))
BLOCKS.register("vertical", _intervals(axis=3))
BLOCKS.register("channel", Block(channel, binary=True))
BLOCKS.register("noise", Block(noise))
BLOCKS.register("patchup_hard", Block(patchup_hard, binary=True))
BLOCKS.register("patchup_hard_2d", Block(patchup_hard_2d, binary=True))
BLOCKS.register("patchup_soft", Block(patchup_soft))
BLOCKS.register("cow", Block(cow, binary=True))
BLOCKS.register("fmix", Block(fmix, binary=True))
