"""Mixed samples inside MixMo: CutMix or mixup of each member's image in pixels (MixMo, arXiv:2103.06132, sec. 4.2).

Each member's image is mixed with a partner before it is encoded; its label counts only the pixels that the member's
MixMo mask lets through. The partner comes from the batch (the published code draws it from the whole data set).
CutMix: Yun et al., ICCV 2019, arXiv:1905.04899. mixup: Zhang et al., ICLR 2018, arXiv:1710.09412.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from timm_mix.functional.boxes import box_masks, draw_boxes
from timm_mix.functional.checks import check_choice, check_positive, check_probability

__all__ = ["METHODS", "MsdaPlan", "kept_labels", "kept_pixels", "plan_msda"]

METHODS = ("cutmix", "mixup")


@dataclass(frozen=True)
class MsdaPlan:
    """The draws for B samples and M members.

    Shapes:
        partners: [B, M] int64, the row of the batch that is mixed in.
        lam: [B, M] float64, weight of the image itself as drawn; 1 where nothing is mixed.
        boxes: [B * M, 4] int64 (top, bottom, left, right) in pixels, inside which the image itself is kept; None for
            mixup.
        size: (H, W) of the images.

    >>> plan = plan_msda(5, 2, (7, 11), rng=np.random.default_rng(0), prob=0)  # nothing is mixed
    >>> plan.boxes[0].tolist(), plan.lam[0].tolist()
    ([0, 7, 0, 11], [1.0, 1.0])
    """

    partners: np.ndarray
    lam: np.ndarray
    boxes: np.ndarray | None
    size: tuple[int, int]


def plan_msda(
    batch: int,
    members: int,
    size: tuple[int, int],
    *,
    rng: np.random.Generator,
    method: str = "cutmix",
    alpha: float = 1.0,
    prob: float = 0.5,
) -> MsdaPlan:
    """Draw partners, ratios and boxes; every member and sample is mixed with probability `prob`.

    Raises:
        ValueError: an unknown method, alpha <= 0, prob outside [0, 1].

    >>> plan = plan_msda(5, 2, (7, 11), rng=np.random.default_rng(0), prob=1.0)
    >>> plan.partners.shape, plan.lam.shape, plan.boxes.shape
    ((5, 2), (5, 2), (10, 4))
    """
    check_choice("msda", method, METHODS)
    check_positive("msda_alpha", alpha)
    check_probability("msda_prob", prob)
    partners = np.stack([rng.permutation(batch) for _ in range(members)], axis=1)
    mixed = rng.random((batch, members)) < prob
    lam = np.where(mixed, rng.beta(alpha, alpha, (batch, members)), 1.0)
    if method == "mixup":
        return MsdaPlan(partners, lam, None, size)
    boxes = draw_boxes(lam.reshape(-1), size, rng=rng)
    boxes[~mixed.reshape(-1)] = (0, size[0], 0, size[1])
    return MsdaPlan(partners, lam, boxes, size)


def kept_pixels(plan: MsdaPlan, device: torch.device | str = "cpu") -> Tensor:
    """How much of each pixel is the image's own: [B, M, 1, H, W] float32.

    >>> plan = MsdaPlan(np.array([[1], [0]]), np.array([[0.5], [1.0]]), np.array([[0, 2, 0, 1], [0, 2, 0, 2]]), (2, 2))
    >>> kept_pixels(plan).flatten(1).tolist()  # the left half of the first image, the whole of the second
    [[1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]]
    """
    batch, members = plan.lam.shape
    if plan.boxes is None:
        lam = torch.from_numpy(plan.lam).to(device, torch.float32, non_blocking=True)
        return lam[:, :, None, None, None].expand(-1, -1, 1, *plan.size)
    boxes = torch.from_numpy(plan.boxes).to(device, non_blocking=True)
    return box_masks(boxes, plan.size).unflatten(0, (batch, members))


def kept_labels(keep: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """The weight of each member's own label, counted in the pixels that its mask lets through.

    lam = mean(m q) / (mean(q) + 1e-8), m the kept pixels averaged to the stem's output size and q the member's mask.
    Where lam < 1/2 the image and its partner swap roles, so that the larger share is always the image's own. A single
    member has no mask: lam = mean(m), and nothing swaps.

    Shapes: keep [B, M, 1, H, W].   masks [B|1, M, 1|C', h, w].   returns keep [B, M, 1, H, W] after the swap and
        lam [B, M].

    >>> keep = torch.tensor([1.0, 0, 0, 0]).expand(1, 2, 1, 1, 4)  # both members: a quarter of the image is its own
    >>> masks = torch.tensor([[1.0, 1, 0, 0], [0, 0, 1, 1]]).view(1, 2, 1, 1, 4)  # each sees one half
    >>> kept, lam = kept_labels(keep, masks)
    >>> lam.round(decimals=3), kept[0, 1].flatten()  # the second sees none of its own: the roles are swapped
    (tensor([[0.5000, 1.0000]]), tensor([0., 1., 1., 1.]))
    """
    if masks.shape[1] == 1:
        return keep, keep.mean((2, 3, 4))
    m = F.adaptive_avg_pool2d(keep.flatten(0, 1), (masks.shape[-2], masks.shape[-1])).unflatten(0, keep.shape[:2])
    lam = (m * masks).mean((2, 3, 4)) / (masks.mean((2, 3, 4)) + 1e-8)
    swap = lam < 0.5
    return torch.where(swap[:, :, None, None, None], 1 - keep, keep), torch.where(swap, 1 - lam, lam)
