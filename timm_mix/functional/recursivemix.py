"""RecursiveMix (Yang et al., NeurIPS 2022, arXiv:2203.06844): the last step's mixed images come back, smaller.

A box of every image shows the resized input of the step before, whose target comes with it; the features under the
box must predict what the whole image predicted then. The history is what the step before really saw and said: its
MIXED images, its MIXED targets and its logits.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from timm_mix.functional.boxes import draw_boxes, lam_of
from timm_mix.functional.checks import check_choice, check_share
from timm_mix.functional.probabilities import log_probabilities

__all__ = ["MODES", "RecursiveMixPlan", "paste_history", "plan_recursivemix", "recursive_targets", "region_consistency"]

MODES = ("nearest", "bilinear")


@dataclass(frozen=True)
class RecursiveMixPlan:
    """All chance of one step; one box for the whole batch.

    box: (top, bottom, left, right), half-open, in pixels; what lies inside comes from the history.
    lam: weight of the sample itself, 1 - area of the box / area of the image; 1 where the box is empty.

    >>> RecursiveMixPlan((0, 4, 0, 4), lam=0.75)  # a quarter of an image of 8 x 8
    RecursiveMixPlan(box=(0, 4, 0, 4), lam=0.75)
    """

    box: tuple[int, int, int, int]
    lam: float


def plan_recursivemix(size: tuple[int, int], alpha: float = 0.5, *, rng: np.random.Generator) -> RecursiveMixPlan:
    """Draw the box (paper, sec. 3.1): sides sqrt(U(0, alpha)) of the image's, a uniform centre, clipped at the border.

    Args:
        size: (H, W) of the images.
        alpha: largest share of the area that the box aims at.
    Raises:
        ValueError: alpha outside (0, 1], an image without area.

    >>> plan = plan_recursivemix((32, 48), rng=np.random.default_rng(0))
    >>> top, bottom, left, right = plan.box
    >>> plan.lam == 1 - (bottom - top) * (right - left) / (32 * 48), plan.lam >= 0.5
    (True, True)
    """
    check_share("alpha", alpha)
    if len(size) != 2 or min(size) < 1:
        raise ValueError(f"size must be (H, W), both >= 1, got {tuple(size)}")
    boxes = draw_boxes(rng.uniform(0, alpha, size=1), size, rng=rng)
    top, bottom, left, right = boxes[0].tolist()
    return RecursiveMixPlan((top, bottom, left, right), float(lam_of(boxes, size)[0]))


def paste_history(images: Tensor, old: Tensor, plan: RecursiveMixPlan, mode: str = "nearest") -> Tensor:
    """Put the resized image i of the history into the box of image i.

    An old batch that is larger is cut; of a smaller one the last images stay as they are.

    Shapes: images [B, C, H, W].   old [B', C, H', W'].   returns [B, C, H, W], a copy.
    Raises:
        ValueError: a mode other than 'nearest' or 'bilinear'; a history of other channels.

    >>> plan = RecursiveMixPlan((0, 1, 0, 2), lam=0.75)
    >>> paste_history(torch.zeros(1, 1, 2, 4), torch.ones(1, 1, 2, 4), plan)[0, 0]
    tensor([[1., 1., 0., 0.],
            [0., 0., 0., 0.]])
    """
    check_choice("resize", mode, MODES)
    if old.shape[1] != images.shape[1]:
        raise ValueError(f"the history must have the images' {images.shape[1]} channels, got {old.shape[1]}")
    top, bottom, left, right = plan.box
    mixed = images.clone()
    if plan.lam < 1:
        count = min(len(images), len(old))
        corners = True if mode == "bilinear" else None
        small = F.interpolate(old[:count], size=(bottom - top, right - left), mode=mode, align_corners=corners)
        mixed[:count, :, top:bottom, left:right] = small.to(mixed.dtype)
    return mixed


def recursive_targets(targets: Tensor, old: Tensor, plan: RecursiveMixPlan) -> Tensor:
    """y = lam y + (1 - lam) y_old, row by row; rows without history keep theirs.

    Shapes: targets [B, K], soft.   old [B', K].   returns [B, K].

    >>> plan = RecursiveMixPlan((0, 4, 0, 4), lam=0.75)
    >>> recursive_targets(torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), plan)
    tensor([[0.7500, 0.2500],
            [1.0000, 0.0000]])
    """
    count = min(len(targets), len(old))
    mixed = plan.lam * targets[:count] + (1 - plan.lam) * old[:count].to(targets.dtype)
    return torch.cat([mixed, targets[count:]])


def region_consistency(
    region: Tensor, old: Tensor, plan: RecursiveMixPlan, batch: int, *, sigmoid: bool = False
) -> Tensor:
    """(1 - lam) soft-CE(region's logits, softmax(old logits)), mean over the batch (paper, sec. 3.2; without omega).

    The paper writes KL to the old prediction, its code the cross-entropy: the same gradient.

    Shapes: region [B', K], logits of the features under the box.   old [B', K], detached.   batch: B, which the mean
        is over; rows without history count as 0.   returns a scalar.
    Args:
        sigmoid: each class is a question of its own (multi-label); mean over the classes.

    >>> plan = RecursiveMixPlan((0, 4, 0, 4), lam=0.75)
    >>> alike = torch.zeros(5, 4)  # (1 - lam) ln 4
    >>> round(float(region_consistency(alike, alike, plan, batch=5)), 4)
    0.3466
    """
    told = log_probabilities(region, sigmoid=sigmoid)  # [B', questions, answers]
    teacher = log_probabilities(old.to(told.dtype), sigmoid=sigmoid).exp()
    return (1 - plan.lam) * -(teacher * told).sum() / (batch * told.shape[1])
