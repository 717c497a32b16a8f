"""AutoMix (Liu et al., ECCV 2022, arXiv:2103.13027) and SAMix (Li et al., arXiv:2111.15454): learned mixing masks.

A Mix Block looks at the features of two images and at the ratio lam, and says for every place which of the two is
shown. It learns from the classification of what it mixed, through a momentum copy of the network. Here are the draws,
the masks from query, key and value maps, their losses, and the schedules; lam is the weight of the sample itself.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from timm_mix.functional.checks import check_positive, check_probability

__all__ = [
    "AutoMixPlan",
    "adjust_masks",
    "attention_masks",
    "checked_mode",
    "constant_masks",
    "embedded_lam",
    "mask_loss",
    "mask_loss_weight",
    "mix_pairs",
    "momentum_at",
    "plan_automix",
]

MARGIN = 0.1  # the kept area may miss lam by this much without a loss
LEAST_LAM = 0.08  # below it, and above 1 - it, the backbone sees a constant mask


@dataclass(frozen=True)
class AutoMixPlan:
    """All chance of one step, for the pass that trains the Mix Block (mb) and for the backbone's own (bb).

    lam_mb, lam_bb: the ratios, one per batch.
    partners_mb, partners_bb: [B] int64, rows of the batch.
    adjust: whether the backbone's masks are rescaled towards lam_bb.
    switched_off: whether the Mix Block's classification loss is constant in this step.

    >>> AutoMixPlan(0.3, 0.6, np.array([1, 0]), np.array([0, 1]), adjust=False, switched_off=False).lam_bb
    0.6
    """

    lam_mb: float
    lam_bb: float
    partners_mb: np.ndarray
    partners_bb: np.ndarray
    adjust: bool
    switched_off: bool


def plan_automix(
    batch: int,
    *,
    rng: np.random.Generator,
    alpha: float = 2.0,
    mask_adjust: float = 0.0,
    switch_off: float = 0.0,
) -> AutoMixPlan:
    """Draw lam ~ Beta(alpha, alpha) and a permutation for either pass.

    Args:
        mask_adjust: probability that the backbone's masks are rescaled towards lam.
        switch_off: probability that the Mix Block learns from the mask loss alone.
    Raises:
        ValueError: alpha <= 0, a probability outside [0, 1].

    >>> plan = plan_automix(5, rng=np.random.default_rng(0), mask_adjust=1.0)
    >>> sorted(plan.partners_mb.tolist()), plan.adjust, plan.switched_off
    ([0, 1, 2, 3, 4], True, False)
    """
    check_positive("alpha", alpha)
    check_probability("mask_adjust", mask_adjust)
    check_probability("switch_off", switch_off)
    lam_mb, lam_bb = rng.beta(alpha, alpha, size=2).tolist()
    partners = rng.permutation(batch), rng.permutation(batch)
    adjust, switched_off = (rng.random(2) < (mask_adjust, switch_off)).tolist()
    return AutoMixPlan(lam_mb, lam_bb, *partners, adjust, switched_off)


def checked_mode(mode: str) -> str:
    """The mode of upsampling. Raises: ValueError: another than 'nearest' or 'bilinear'.

    >>> checked_mode("bilinear")
    'bilinear'
    """
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"upsampling must be nearest or bilinear, got {mode!r}")
    return mode


def attention_masks(query: Tensor, key: Tensor, value: Tensor, size: tuple[int, int], mode: str = "nearest") -> Tensor:
    """Masks of a pair from cross attention, in float32 under autocast too (AutoMix, eq. 6 and 7).

    P = softmax(Q K^T / sqrt(C)) over the partner's places, mask_1 = sigmoid(upsample(P V)), mask_0 = 1 - mask_1.

    Shapes: query [B, C, h, w], of the sample.   key [B, C, h, w] and value [B, 1, h, w], of the partner.
        size: (H, W) of the images.   returns [B, 2, 1, H, W], of the sample and its partner; sums to 1 over dim 1.
    Raises:
        ValueError: a mode other than 'nearest' or 'bilinear'.

    >>> maps = torch.zeros(5, 3, 2, 4)
    >>> masks = attention_masks(maps, maps, maps[:, :1], size=(8, 16))  # a value of 0 shows half of either image
    >>> masks.shape, masks.unique().tolist()
    (torch.Size([5, 2, 1, 8, 16]), [0.5])
    """
    checked_mode(mode)
    height, width = query.shape[2:]
    with torch.autocast(query.device.type, enabled=False):
        q, k, v = (_wide(x).flatten(2).mT for x in (query, key, value))
        # torch's fused attention has no kernel for values of one channel, and what it falls back on costs more
        places = F.softmax((q / math.sqrt(q.shape[2])) @ k.mT, dim=2)
        drawn = (places @ v).mT.unflatten(2, (height, width))
        mask = torch.sigmoid(F.interpolate(drawn, size=size, mode=mode))
    return torch.stack([1 - mask, mask], dim=1)


def constant_masks(lam: float, like: Tensor) -> Tensor:
    """Masks that share every place as lam and 1 - lam: mixup. Shapes: as `like`, [B, 2, 1, H, W].

    >>> constant_masks(0.75, torch.zeros(1, 2, 1, 8, 8))[0, :, 0, 0, 0]
    tensor([0.7500, 0.2500])
    """
    ratios = torch.tensor([lam, 1 - lam]).to(like, non_blocking=True)
    return ratios.view(1, 2, 1, 1, 1).expand_as(like)


def adjust_masks(masks: Tensor, lam: float) -> Tensor:
    """Rescale the masks of each sample towards lam (SAMix's mask_adjust).

    Where the sample's mask is larger than lam on average it shrinks to lam, else its partner's shrinks to 1 - lam; the
    other one takes what is left. The published code takes the ratio of the Mix Block's pass here.

    Shapes: masks [B, 2, 1, H, W].   returns the same.

    >>> masks = torch.tensor([0.8, 0.2]).view(1, 2, 1, 1, 1)
    >>> adjust_masks(masks, 0.5).flatten(), adjust_masks(masks, 0.9).flatten()
    (tensor([0.5000, 0.5000]), tensor([0.9000, 0.1000]))
    """
    mean = masks.mean((2, 3, 4), keepdim=True)
    lams = torch.tensor([lam, 1 - lam]).to(masks, non_blocking=True).view(1, 2, 1, 1, 1)
    shrunk = masks * (lams / mean)
    own = torch.stack([shrunk[:, 0], 1 - shrunk[:, 0]], dim=1)
    partner = torch.stack([1 - shrunk[:, 1], shrunk[:, 1]], dim=1)
    return torch.where(mean[:, :1] > lam, own, partner)


def mix_pairs(images: Tensor, partners: Tensor, masks: Tensor) -> Tensor:
    """x mask_0 + x[partners] mask_1.

    Shapes: images [B, C, H, W].   partners [B] int64.   masks [B, 2, 1, H, W].   returns [B, C, H, W].

    >>> images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1)
    >>> masks = torch.tensor([0.75, 0.25]).view(1, 2, 1, 1, 1).expand(2, -1, -1, -1, -1)
    >>> mix_pairs(images, torch.tensor([1, 0]), masks).flatten()
    tensor([0.2500, 0.7500])
    """
    return images * masks[:, 0] + images[partners] * masks[:, 1]


def mask_loss(masks: Tensor, lam: float, variance: bool = False) -> Tensor:
    """How far the area kept in the batch misses lam: max(|mean(mask_0) - lam| - .1, 0) (AutoMix, eq. 9).

    Args:
        variance: also rewards masks that decide: - 2 mean((mask_1 - mean)^2) over the whole batch (SAMix).
    Shapes: masks [B, 2, 1, H, W].   returns a scalar.

    >>> masks = torch.tensor([0.5, 0.5]).view(1, 2, 1, 1, 1).expand(3, -1, -1, 8, 8)
    >>> [round(float(mask_loss(masks, lam)), 4) for lam in (0.5, 0.6, 0.9)]  # up to 0.1 is free
    [0.0, 0.0, 0.3]
    """
    shown = masks[:, 1]
    loss = ((1 - shown.mean() - lam).abs() - MARGIN).clamp(min=0)
    return loss - 2 * shown.var(correction=0) if variance else loss


def embedded_lam(lam: float, k: float) -> float:
    """SAMix's lam' = (4/3 lam^3 - 2 lam^2 + K lam) / (K - 2/3) with K = k + 1; k = -1 leaves lam as it is.

    Raises:
        ValueError: k = -1/3, where the formula divides by zero.

    >>> [round(embedded_lam(lam, 0.25), 4) for lam in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.3571, 0.5, 1.0]
    """
    if k == -1:
        return lam
    if math.isclose(k, -1 / 3):
        raise ValueError(f"k must not be -1/3, got {k!r}; published: .25, or -1 for lam itself")
    K = k + 1
    return (4 / 3 * lam**3 - 2 * lam**2 + K * lam) / (K - 2 / 3)


def momentum_at(progress: float, base: float = 0.999, end: float = 0.999999, warmup: float = 0.1) -> float:
    """Momentum of the copy: `base` for the first `warmup` of the training, then a cosine towards `end`.

    m = end - (end - base) (cos(pi progress) + 1) / 2, with progress = iteration / iterations.

    >>> momentum_at(0.05), round(momentum_at(0.5), 4), momentum_at(1.0)
    (0.999, 0.9995, 0.999999)
    """
    if progress < warmup:
        return base
    return end - (end - base) * (math.cos(math.pi * progress) + 1) / 2


def mask_loss_weight(progress: float, weight: float = 0.1, decay: bool = False) -> float:
    """Weight of the mask loss: constant, or with `decay` a half cosine to 0 over the training.

    >>> mask_loss_weight(0.5), mask_loss_weight(0.5, decay=True), mask_loss_weight(1.0, decay=True)
    (0.1, 0.05, 0.0)
    """
    return weight * (math.cos(math.pi * progress) + 1) / 2 if decay else weight


def _wide(x: Tensor) -> Tensor:
    return x.float() if x.element_size() < 4 else x
