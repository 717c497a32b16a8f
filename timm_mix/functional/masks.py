"""Masks over the members of a mixed input (MixMo's mixing blocks; Rame et al., ICCV 2021, arXiv:2103.06132, sec. 3.2).

A mask says how much of each place belongs to which member. Role 0 owns the region that the block cuts out; the other
roles share the rest in proportion to their ratios. Scalars are drawn on the CPU, pixels are filled on the device.
"""

import numpy as np
import torch
from torch import Tensor

__all__ = ["box_masks", "check_masks", "check_shares", "draw_boxes", "linear_masks"]


def linear_masks(ratios: Tensor, size: tuple[int, int]) -> Tensor:
    """Constant masks: every place is shared in the same proportion (Linear-MixMo; mixup for two members).

    Shapes: ratios [B, M], sums to 1.   returns [B, M, 1, h, w], a view that must not be written to.
    """
    return ratios[:, :, None, None, None].expand(-1, -1, 1, *size)


def draw_boxes(kappa: np.ndarray, size: tuple[int, int], *, rng: np.random.Generator) -> np.ndarray:
    """Draw one CutMix box per sample that aims at the area `kappa` (Yun et al., ICCV 2019, arXiv:1905.04899).

    The side is int(side of the map * sqrt(kappa)), the centre is uniform over the places, and the box
    [c - side // 2, c + side // 2) is clipped at the border, so that the area really kept is at most kappa.

    Shapes: kappa [B].   returns [B, 4] int64: (top, bottom, left, right), half-open, in places of the map.
    """
    edges = []
    for length in size:
        half = (length * np.sqrt(kappa)).astype(np.int64) // 2
        centre = rng.integers(length, size=kappa.shape[0])
        edges += [np.clip(centre - half, 0, length), np.clip(centre + half, 0, length)]
    return np.stack(edges, axis=1)


def box_masks(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Fill boxes with ones.

    Shapes: boxes [B, 4] int64 (top, bottom, left, right).   returns [B, 1, 1, h, w] float32, 1 inside.
    """
    top, bottom, left, right = boxes[:, :, None].unbind(1)
    rows = torch.arange(size[0], device=boxes.device)
    cols = torch.arange(size[1], device=boxes.device)
    inside_rows = (rows >= top) & (rows < bottom)
    inside_cols = (cols >= left) & (cols < right)
    return (inside_rows[:, :, None] & inside_cols[:, None, :]).float()[:, None, None]


def check_masks(masks: Tensor, members: int, encoded: Tensor) -> None:
    """Check type, device and shape of masks against the encoders' output; costs nothing on any device.

    Shapes: masks [B|1, M, 1|C', h, w].   encoded [B, C', h, w].
    Raises:
        ValueError: no floating-point tensor, another device, another shape.
    """
    if not isinstance(masks, Tensor) or not masks.is_floating_point():
        given = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise ValueError(f"masks must be a floating-point tensor, got {given}; call .float() on it")
    if masks.device != encoded.device:
        raise ValueError(f"masks must be on {encoded.device}, where the images are, got {masks.device}")
    batch, channels, height, width = encoded.shape
    ok = masks.ndim == 5 and masks.shape[0] in (1, batch) and masks.shape[2] in (1, channels)
    if not ok or masks.shape[1] != members or tuple(masks.shape[3:]) != (height, width):
        raise ValueError(
            f"masks must be [{batch} or 1, {members}, 1 or {channels}, {height}, {width}] (batch, members, channels "
            f"and places of the stem's output), got {list(masks.shape)}; see model.stem_shape((H, W))"
        )


def check_shares(masks: Tensor) -> None:
    """Check that masks on the CPU are shares: none negative, and sums of 1 over the members.

    On an accelerator they are taken as they are: reading them would make the training step wait for the device.

    Raises:
        ValueError: a negative share, or a place whose shares do not sum to 1.
    """
    if masks.device.type != "cpu" or masks.numel() == 0:
        return
    if float(masks.detach().min()) < 0:
        raise ValueError(f"masks must be >= 0 at every place, got {float(masks.detach().min()):.3g}")
    tolerance = 1e-4 if torch.finfo(masks.dtype).bits >= 32 else 2e-2
    error = float((masks.detach().sum(1) - 1).abs().max())
    if not error <= tolerance:
        raise ValueError(
            f"masks must sum to 1 over the members (dim 1) at every place, got a sum that is off by {error:.3g}"
        )
