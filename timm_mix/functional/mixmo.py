"""MixMo: mixing multiple inputs for multiple outputs (Rame, Sun, Cord, ICCV 2021, arXiv:2103.06132).

M encoders see one image each, a block mixes their features with masks, a shared core and M heads predict one label
per image. Here are the draws (which image, which ratio kappa, which region), the masks that follow from them, the loss
weights w_r (eq. 5) and the schedule of the binary block. MIMO (Havasi et al., ICLR 2021, arXiv:2010.06610) is the
setting with equal ratios and weights.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timm_mix.functional.masks import box_masks, draw_boxes, linear_masks

__all__ = ["BLOCKS", "MixMoPlan", "binary_probability", "member_masks", "member_weights", "plan_mixmo"]

BLOCKS = ("linear", "cut")
BINARY_UNTIL = 11 / 12  # the published runs fade the binary block out over the last twelfth of training


@dataclass(frozen=True)
class MixMoPlan:
    """All chance of one training step.

    Shapes: with B samples and M members
        images: [B, M] int64, the row of the batch that member i sees at position b.
        kappa: [B, M] float64, the ratios as drawn, by role.
        ratios: [B, M] float64, the share that each member really gets, by member; sums to 1.
        roles: [M] int64, the role that each member plays; role 0 owns the box.
        boxes: [B, 4] int64 (top, bottom, left, right) at stem-output size, or None for the linear block.
        size: (h, w) of the masks.
    """

    images: np.ndarray
    kappa: np.ndarray
    ratios: np.ndarray
    roles: np.ndarray
    boxes: np.ndarray | None
    size: tuple[int, int]


def plan_mixmo(
    batch: int,
    members: int,
    size: tuple[int, int],
    *,
    rng: np.random.Generator,
    block: str = "cut",
    prob: float = 1.0,
    alpha: float = 2.0,
    repetition: float = 0.0,
    equal: bool = False,
) -> MixMoPlan:
    """Draw one MixMo step (paper, sec. 3 and 4.1).

    Args:
        size: (h, w) of the stem's output, where the masks live.
        block: `linear`, or the binary block `cut`.
        prob: probability that the batch takes the binary block rather than the linear one.
        alpha: kappa ~ Dirichlet(alpha, ..., alpha) per sample; for two members Beta(alpha, alpha).
        repetition: rho; the first int(rho * B) positions show the same image to all members (MIMO's input repetition).
        equal: ratios 1 / M instead of drawn ones (MIMO).
    Raises:
        ValueError: members < 1, an unknown block, alpha <= 0, prob or repetition outside [0, 1].
    Reference: arXiv:2103.06132; batch of roles shuffled as in its published code.
    Departs from it: more than two members for the cut block, as the published code does: the others share the rest.
    """
    _check_settings(members, block, prob, alpha, repetition)
    binary = block != "linear" and rng.random() < prob
    images = _draw_images(batch, members, repetition, rng)
    kappa = np.full((batch, members), 1 / members) if equal else rng.dirichlet([alpha] * members, size=batch)
    roles = rng.permutation(members)
    boxes = draw_boxes(kappa[:, 0], size, rng=rng) if binary else None
    inside, outside = _shares(kappa, binary)
    area = _area(boxes, size) if boxes is not None else np.zeros(batch)
    ratios = (outside + area[:, None] * (inside - outside))[:, roles]
    return MixMoPlan(images, kappa, ratios, roles, boxes, size)


def member_masks(plan: MixMoPlan, device: torch.device | str = "cpu") -> Tensor:
    """Fill in the masks of a plan: [B, M, 1, h, w] float32, by member, summing to 1 over the members."""
    inside, outside = (_to(shares[:, plan.roles], device) for shares in _shares(plan.kappa, plan.boxes is not None))
    if plan.boxes is None:
        return linear_masks(outside, plan.size)
    box = box_masks(torch.from_numpy(plan.boxes).to(device, non_blocking=True), plan.size)
    return box * inside[:, :, None, None, None] + (1 - box) * outside[:, :, None, None, None]


def member_weights(ratios: Tensor, r: float) -> Tensor:
    """Weights of the member losses, w_i = M kappa_i^(1/r) / sum_j kappa_j^(1/r) (eq. 5, for any number of members).

    r = 1 weights by the ratio, r -> infinity (math.inf) weights all alike; the weights of a sample sum to M.

    Shapes: ratios [B, M].   returns [B, M].
    Raises:
        ValueError: r < 1.
    """
    if not _is_number(r) or not r >= 1:
        raise ValueError(f"r must be >= 1 (or math.inf), got {r!r}")
    root = ratios ** (1 / r)
    return ratios.shape[1] * root / root.sum(1, keepdim=True)


def binary_probability(progress: float, prob: float, until: float = BINARY_UNTIL) -> float:
    """Probability of the binary block at `progress` in [0, 1]: `prob`, then linear to 0 over the last twelfth.

    Reference: published code of arXiv:2103.06132, where progress is epoch / epochs, counted from 1.
    """
    if progress < until:
        return prob
    return prob * max(0.0, 1 - progress) / (1 - until)


def _check_settings(members: int, block: str, prob: float, alpha: float, repetition: float) -> None:
    if members < 1:
        raise ValueError(f"members must be >= 1, got {members}")
    if block not in BLOCKS:
        raise ValueError(f"block must be one of {', '.join(BLOCKS)}, got {block!r}")
    if not _is_number(alpha) or not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be > 0 and finite, got {alpha!r}")
    for name, value in (("prob", prob), ("repetition", repetition)):
        if not _is_number(value) or not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _draw_images(batch: int, members: int, repetition: float, rng: np.random.Generator) -> np.ndarray:
    """Member 0 takes a permutation of the batch, member i an independent permutation of that; [B, M]."""
    first = rng.permutation(batch)
    repeated = int(repetition * batch)
    columns = [first]
    for _ in range(members - 1):
        order = np.arange(batch)
        order[repeated:] = repeated + rng.permutation(batch - repeated)
        columns.append(first[order])
    return np.stack(columns, axis=1)


def _shares(kappa: np.ndarray, binary: bool) -> tuple[np.ndarray, np.ndarray]:
    """What each role gets inside and outside the region of role 0; both [B, M], sums 1."""
    if not binary:
        return kappa, kappa
    inside = np.zeros_like(kappa)
    inside[:, 0] = 1
    if kappa.shape[1] == 1:
        return inside, inside
    outside = kappa.copy()
    outside[:, 0] = 0
    rest = outside.sum(1, keepdims=True)
    even = (1 - inside) / (kappa.shape[1] - 1)  # a tiny alpha can draw kappa_0 = 1: then the others share evenly
    return inside, np.where(rest > 0, outside / np.where(rest > 0, rest, 1), even)


def _area(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Share of the map inside each box; [B]."""
    return (boxes[:, 1] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 2]) / (size[0] * size[1])


def _to(array: np.ndarray, device: torch.device | str) -> Tensor:
    return torch.from_numpy(array.astype(np.float32)).to(device, non_blocking=True)
