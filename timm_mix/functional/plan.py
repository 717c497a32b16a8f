"""The vocabulary of sample mixing: draw a MixPlan, apply it to images, mix the targets by it.

lam is always the weight of the sample itself. Sources: mixup (Zhang et al., ICLR 2018, arXiv:1710.09412), CutMix (Yun
et al., ICCV 2019, arXiv:1905.04899), ResizeMix (Qin et al., 2020, arXiv:2012.11101).
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from timm_mix.functional.boxes import box_masks, boxes_at, lam_of
from timm_mix.functional.checks import check_choice, check_labels, check_positive, check_probability

__all__ = ["MODES", "MixPlan", "apply_mix", "mix_targets", "plan_cutmix", "plan_mixup", "plan_resizemix"]

MODES = ("batch", "pair", "elem")


@dataclass(frozen=True)
class MixPlan:
    """How each of B samples is mixed with a partner.

    Shapes:
        partner: [B] int64, a row of the batch.
        lam: [B] float64, the weight of the sample itself; with boxes the area really left to it.
        boxes: [B, 4] int64 (top, bottom, left, right), half-open, in pixels, where the partner shows; None shares every
            pixel as lam and 1 - lam.
        resized: the whole partner, resized, fills the box; otherwise what the partner has at that place.

    >>> MixPlan(partner=np.array([1, 0]), lam=np.array([0.75, 0.75]))  # three quarters of every pixel are its own
    MixPlan(partner=array([1, 0]), lam=array([0.75, 0.75]), boxes=None, resized=False)
    """

    partner: np.ndarray
    lam: np.ndarray
    boxes: np.ndarray | None = None
    resized: bool = False


def plan_mixup(
    batch: int, *, rng: np.random.Generator, alpha: float = 0.8, prob: float = 1.0, mode: str = "batch"
) -> MixPlan:
    """Draw lam ~ Beta(alpha, alpha); sample i is mixed with B - 1 - i, as in timm.

    Args:
        prob: probability of being mixed at all; else lam is 1.
        mode: one draw per `batch`, per `pair` (i, B - 1 - i) or per `elem`, a sample.
    Raises:
        ValueError: alpha <= 0, prob outside [0, 1], an unknown mode.

    >>> plan = plan_mixup(5, rng=np.random.default_rng(0), mode="elem")
    >>> plan.partner, plan.lam.shape
    (array([4, 3, 2, 1, 0]), (5,))
    """
    return MixPlan(_partners(batch), _draw_lam(batch, alpha, prob, mode, rng))


def plan_cutmix(
    batch: int,
    size: tuple[int, int],
    *,
    rng: np.random.Generator,
    alpha: float = 1.0,
    prob: float = 1.0,
    mode: str = "batch",
) -> MixPlan:
    """Draw CutMix boxes of the area 1 - lam; clipped at the border, lam is the area really left.

    A box has the sides int(side * sqrt(1 - lam)), and its centre is uniform over the pixels.

    Args:
        size: (H, W) of the images. The others as in plan_mixup.
    Raises:
        ValueError: as plan_mixup does.

    >>> plan = plan_cutmix(5, (32, 48), rng=np.random.default_rng(0))
    >>> top, bottom, left, right = plan.boxes[0]
    >>> bool(plan.lam[0] == 1 - (bottom - top) * (right - left) / (32 * 48))
    True
    """
    drawn = _draw_lam(batch, alpha, prob, mode, rng)
    boxes = boxes_at([_per(mode, rng.integers(n, size=batch)) for n in size], 1 - drawn, size)
    return MixPlan(_partners(batch), lam_of(boxes, size), boxes)


def plan_resizemix(
    batch: int,
    size: tuple[int, int],
    *,
    rng: np.random.Generator,
    scope: tuple[float, float] = (0.1, 0.8),
    prob: float = 1.0,
    mode: str = "batch",
) -> MixPlan:
    """Draw boxes that the whole resized partner fills: sides tau H and tau W with tau ~ U(scope), anywhere inside.

    Args:
        scope: of tau (paper: .1 to .8). The others as in plan_cutmix.
    Raises:
        ValueError: a scope that is not 0 < low <= high <= 1, and what plan_mixup raises.

    >>> plan = plan_resizemix(5, (32, 48), rng=np.random.default_rng(0), scope=(0.5, 0.5))
    >>> plan.lam.tolist(), plan.resized
    ([0.75, 0.75, 0.75, 0.75, 0.75], True)
    """
    low, high = scope
    if not 0 < low <= high <= 1:
        raise ValueError(f"scope must be 0 < low <= high <= 1, got {tuple(scope)}")
    mixed = _draw_lam(batch, 1.0, prob, mode, rng) < 1
    tau = np.where(mixed, _per(mode, rng.uniform(low, high, size=batch)), 0.0)
    sides = [np.where(mixed, np.maximum(np.round(tau * n).astype(np.int64), 1), 0) for n in size]
    starts = [
        np.floor(_per(mode, rng.random(batch)) * (n - s + 1)).astype(np.int64) for n, s in zip(size, sides, strict=True)
    ]
    edges = [edge for start, side in zip(starts, sides, strict=True) for edge in (start, start + side)]
    boxes = np.stack(edges, axis=1)
    return MixPlan(_partners(batch), lam_of(boxes, size), boxes, resized=True)


def apply_mix(images: Tensor, plan: MixPlan) -> Tensor:
    """Mix a batch as planned; resizing takes the nearest pixel.

    Shapes: images [B, C, H, W], floating point.   returns the same, a new tensor.
    Raises:
        ValueError: another batch size than the plan's.

    >>> plan = MixPlan(np.array([1, 0]), np.array([0.75, 0.75]))
    >>> apply_mix(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), plan).flatten()
    tensor([0.2500, 0.7500])
    """
    if len(images) != len(plan.partner):
        raise ValueError(f"the plan is for {len(plan.partner)} images, got {len(images)}; draw one for each batch")
    partner = torch.from_numpy(plan.partner).to(images.device, non_blocking=True)
    other = images[partner]
    if plan.boxes is None:
        lam = torch.from_numpy(plan.lam).to(images.device, images.dtype, non_blocking=True)
        return torch.lerp(other, images, lam[:, None, None, None])
    boxes = torch.from_numpy(plan.boxes).to(images.device, non_blocking=True)
    size = (images.shape[-2], images.shape[-1])
    if plan.resized:
        rows, cols = (_sources(boxes[:, i : i + 2], n) for i, n in ((0, size[0]), (2, size[1])))
        each = torch.arange(len(images), device=images.device)[:, None, None, None]
        channel = torch.arange(images.shape[1], device=images.device)[None, :, None, None]
        other = other[each, channel, rows[:, None, :, None], cols[:, None, None, :]]
    return torch.where(box_masks(boxes, size) > 0, other, images)


def mix_targets(targets: Tensor, plan: MixPlan, num_classes: int, label_smoothing: float = 0.0) -> Tensor:
    """y = lam y + (1 - lam) y_partner, as soft labels.

    Shapes: targets [B] int64 or [B, K].   returns [B, K] float32; rows sum to 1 if the given ones do.
    Raises:
        ValueError: targets of another shape, class indices outside 0 .. K - 1.

    >>> plan = MixPlan(np.array([1, 0]), np.array([0.75, 0.75]))
    >>> mix_targets(torch.tensor([0, 2]), plan, num_classes=3)
    tensor([[0.7500, 0.0000, 0.2500],
            [0.2500, 0.0000, 0.7500]])
    """
    soft = targets.ndim == 2 and targets.shape[1] == num_classes
    if len(targets) != len(plan.partner) or not (soft or (targets.ndim == 1 and not targets.is_floating_point())):
        raise ValueError(
            f"targets must be [{len(plan.partner)}] class indices or [{len(plan.partner)}, {num_classes}] soft labels, "
            f"got {list(targets.shape)} {str(targets.dtype).removeprefix('torch.')}"
        )
    if not soft:
        check_labels(targets, num_classes)
    labels = targets.float() if soft else F.one_hot(targets.long(), num_classes).float()
    labels = labels * (1 - label_smoothing) + label_smoothing / num_classes
    partner = torch.from_numpy(plan.partner).to(labels.device, non_blocking=True)
    lam = torch.from_numpy(plan.lam).to(labels.device, torch.float32, non_blocking=True)
    return torch.lerp(labels[partner], labels, lam[:, None])


def _partners(batch: int) -> np.ndarray:
    return np.arange(batch)[::-1].copy()


def _draw_lam(batch: int, alpha: float, prob: float, mode: str, rng: np.random.Generator) -> np.ndarray:
    """lam of every sample, 1 where it is not mixed; [B]."""
    check_choice("mode", mode, MODES)
    check_positive("alpha", alpha)
    check_probability("prob", prob)
    lam = _per(mode, rng.beta(alpha, alpha, size=batch))
    mixed = _per(mode, rng.random(batch)) < prob
    return np.where(mixed, lam, 1.0)


def _per(mode: str, drawn: np.ndarray) -> np.ndarray:
    """One draw for the batch, one for each pair (i, B - 1 - i), or one for each sample."""
    if mode == "elem":
        return drawn
    if mode == "batch":
        return np.broadcast_to(drawn[:1], drawn.shape)
    first = np.arange(len(drawn))
    return drawn[np.minimum(first, first[::-1])]


def _sources(edges: Tensor, length: int) -> Tensor:
    """The row (column) of the partner that each row (column) of the image shows; outside the box any. [B, length]."""
    place = torch.arange(length, device=edges.device)
    inside = (place - edges[:, :1]).clamp(min=0)
    side = (edges[:, 1:] - edges[:, :1]).clamp(min=1)
    return (inside * length).div(side, rounding_mode="floor").clamp(max=length - 1)
