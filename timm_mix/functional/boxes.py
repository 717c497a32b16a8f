"""Regions of a few numbers per sample, boxes and intervals: drawn on the CPU, filled in on the device.

A box is (top, bottom, left, right), an interval (first, last); both are half-open, in places of the map or in pixels.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["box_masks", "boxes_at", "draw_boxes", "draw_intervals", "interval_masks", "lam_of"]


def draw_boxes(kappa: np.ndarray, size: tuple[int, int], *, rng: np.random.Generator) -> np.ndarray:
    """Draw one CutMix box per sample that aims at the area `kappa` (Yun et al., ICCV 2019, arXiv:1905.04899).

    The side is int(side of the map * sqrt(kappa)), the centre is uniform over the places, and the box
    [c - side // 2, c + side // 2) is clipped at the border, so that the area really kept is at most kappa.

    Shapes: kappa [B].   returns [B, 4] int64: (top, bottom, left, right), half-open, in places of the map.

    >>> boxes = draw_boxes(np.array([0.0, 0.25]), (8, 8), rng=np.random.default_rng(0))
    >>> boxes.shape, float(lam_of(boxes, (8, 8))[0])  # kappa 0 asks for no area
    ((2, 4), 1.0)
    """
    return boxes_at([rng.integers(length, size=len(kappa)) for length in size], kappa, size)


def boxes_at(centres: Sequence[np.ndarray], kappa: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The boxes of `draw_boxes` around given centres.

    Shapes: centres: rows [B] and columns [B].   kappa [B].   returns [B, 4] int64.

    >>> centres = np.array([4, 0]), np.array([4, 4])  # one in the middle, one on the upper border
    >>> boxes_at(centres, np.array([0.25, 0.25]), (8, 8))
    array([[2, 6, 2, 6],
           [0, 2, 2, 6]])
    """
    edges = []
    for centre, length in zip(centres, size, strict=True):
        half = (length * np.sqrt(kappa)).astype(np.int64) // 2
        edges += [np.clip(centre - half, 0, length), np.clip(centre + half, 0, length)]
    return np.stack(edges, axis=1)


def lam_of(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The weight of the sample whose boxes show another one: the share of its pixels that is left to it.

    Shapes: boxes [B, 4].   returns [B] float64.

    >>> lam_of(np.array([[2, 6, 2, 6], [0, 2, 2, 6]]), (8, 8))
    array([0.75 , 0.875])
    """
    area = (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2])
    return 1 - area / (size[0] * size[1])


def draw_intervals(kappa: np.ndarray, length: int, *, rng: np.random.Generator) -> np.ndarray:
    """Draw one interval per sample: the first int(kappa n), or with probability 1/2 the LAST int((1 - kappa) n).

    The published code keeps 1 - kappa in the second case; the ratio that counts is the area really kept.

    Shapes: kappa [B].   returns [B, 2] int64, half-open.

    >>> intervals = draw_intervals(np.full(32, 0.25), 8, rng=np.random.default_rng(0))
    >>> np.unique(intervals, axis=0).tolist()  # the first quarter, or the last three
    [[0, 2], [2, 8]]
    """
    first = np.stack([np.zeros(len(kappa)), np.floor(kappa * length)], axis=1)
    last = np.stack([length - np.floor((1 - kappa) * length), np.full(len(kappa), length)], axis=1)
    return np.where(rng.random((len(kappa), 1)) < 0.5, first, last).astype(np.int64)


def interval_masks(intervals: Tensor, length: int) -> Tensor:
    """Fill half-open intervals: [B, 2] int64 -> [B, length] float32, 1 inside.

    >>> interval_masks(torch.tensor([[0, 2], [3, 5]]), 5)
    tensor([[1., 1., 0., 0., 0.],
            [0., 0., 0., 1., 1.]])
    """
    place = torch.arange(length, device=intervals.device)
    return ((place >= intervals[:, :1]) & (place < intervals[:, 1:])).float()


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Fill boxes: [B, 4] int64 (top, bottom, left, right) -> [B, 1, h, w] float32, 1 inside.

    >>> box_masks(torch.tensor([[0, 1, 2, 4]]), (2, 5))
    tensor([[[[0., 0., 1., 1., 0.],
              [0., 0., 0., 0., 0.]]]])
    """
    rows, cols = interval_masks(boxes[:, :2], size[0]), interval_masks(boxes[:, 2:], size[1])
    return (rows[:, :, None] * cols[:, None, :])[:, None]
