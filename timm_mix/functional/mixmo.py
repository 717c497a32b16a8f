"""MixMo: mixing multiple inputs for multiple outputs (Rame, Sun, Cord, ICCV 2021, arXiv:2103.06132).

M encoders see one image each, a block mixes their features with masks, a shared core and M heads predict one label
per image. Here are the draws (which image, which ratio kappa, which region), the masks that follow from them, the loss
weights w_r (eq. 5) and the schedule of the binary block. MIMO (Havasi et al., ICLR 2021, arXiv:2010.06610) is the
setting with equal ratios and weights.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from timm_mix.functional.blocks import BLOCKS, LINEAR
from timm_mix.functional.checks import check_positive, check_probability, is_number
from timm_mix.functional.masks import linear_masks

__all__ = [
    "MixMoPlan",
    "binary_probability",
    "member_masks",
    "member_weights",
    "plan_mixmo",
    "repetition_share",
]

BINARY_UNTIL = 11 / 12  # the published runs fade the binary block out over the last twelfth of training


@dataclass(frozen=True)
class MixMoPlan:
    """All chance of one training step.

    Shapes: with B samples, M members, R regions (0 for the linear block, 1, or M - 1 for a partition)
        images: [B, M] int64, the row of the batch that member i sees at position b.
        kappa: [B, M] float64, the ratios as drawn, by role.
        roles: [M] int64, the role that each member plays; role 0 owns the first region.
        family: the mixing block that this batch takes.
        regions: R arrays of [B, 4] (boxes: top, bottom, left, right) or [B, 2] (intervals), half-open, in places of the
            map; empty for the families that are noise.
        areas: [B, R] float64, the area that each region aims at, of what the regions before it left.
        seed: of the generator that draws the noise on the device.
        shape: (C', h, w), the stem's output, where masks live.

    >>> plan = plan_mixmo(5, 2, (3, 7, 11), rng=np.random.default_rng(0))
    >>> plan.family, plan.images.shape, plan.regions[0].shape
    ('cut', (5, 2), (5, 4))
    """

    images: np.ndarray
    kappa: np.ndarray
    roles: np.ndarray
    family: str
    regions: tuple[np.ndarray, ...]
    areas: np.ndarray
    seed: int
    shape: tuple[int, int, int]


def plan_mixmo(
    batch: int,
    members: int,
    shape: tuple[int, int, int],
    *,
    rng: np.random.Generator,
    block: str = "cut",
    prob: float = 1.0,
    alpha: float = 2.0,
    repetition: float = 0.0,
    equal: bool = False,
    partition: bool = False,
    same_ratio: bool = False,
) -> MixMoPlan:
    """Draw one MixMo step (paper, sec. 3 and 4.1).

    Args:
        shape: (C', h, w) of the stem's output.
        block: a name of functional.blocks; `linear` or one of the others, of which the batch takes `linear` with
            1 - prob.
        prob: probability that the batch takes `block` rather than the linear one.
        alpha: kappa ~ Dirichlet(alpha, ..., alpha) per sample; for two members Beta(alpha, alpha).
        repetition: rho; the first int(rho * B) positions show the same image to all members (MIMO's input repetition).
        equal: ratios 1 / M instead of drawn ones (MIMO).
        partition: with more than two members, every place belongs to exactly one of them; otherwise role 0's region is
            cut out and the others share the rest in proportion to their kappa, as published for `cut`.
        same_ratio: one draw of kappa for the whole batch.
    Raises:
        ValueError: members < 1, an unknown block, alpha <= 0, prob or repetition outside [0, 1], a partition by a block
            that is not binary.
    Reference: arXiv:2103.06132; batch of roles shuffled as in its published code.
    Departs from it: every family takes any number of members.

    >>> plan = plan_mixmo(5, 2, (3, 7, 11), rng=np.random.default_rng(0), block="linear", equal=True)  # MIMO
    >>> plan.kappa[0], sorted(plan.images[:, 1].tolist())
    (array([0.5, 0.5]), [0, 1, 2, 3, 4])
    """
    _check_settings(members, block, prob, alpha, repetition, partition)
    family = block if block != LINEAR and rng.random() < prob else LINEAR
    images = _draw_images(batch, members, repetition, rng)
    kappa = rng.dirichlet([alpha] * members, size=1 if same_ratio else batch)
    kappa = np.full((batch, members), 1 / members) if equal else np.broadcast_to(kappa, (batch, members))
    roles = rng.permutation(members)
    taken = BLOCKS[family]
    count = 0 if taken.fill is None or members == 1 else members - 1 if partition else 1
    areas = _areas(kappa, count)
    regions: tuple[np.ndarray, ...] = ()
    if taken.draw is not None:
        regions = tuple(taken.draw(areas[:, j], shape, rng=rng) for j in range(count))
    seed = int(rng.integers(2**63)) if taken.draw is None and taken.fill is not None else 0
    return MixMoPlan(images, kappa, roles, family, regions, areas, seed, shape)


def member_masks(plan: MixMoPlan, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Fill in the masks of a plan.

    Shapes: returns masks [B, M, 1 or C', h, w] float32, by member, summing to 1 over the members; and ratios [B, M]
        float32, the share that each member really gets, the mean of its mask.

    >>> masks, ratios = member_masks(plan_mixmo(5, 2, (3, 7, 11), rng=np.random.default_rng(0)))
    >>> masks.shape, ratios.shape, bool((masks.sum(1) == 1).all())
    (torch.Size([5, 2, 1, 7, 11]), torch.Size([5, 2]), True)
    """
    batch, members = plan.kappa.shape
    count = plan.areas.shape[1]
    rest = _rest(plan.kappa, count)
    shares = torch.from_numpy(rest if count else rest[:, plan.roles]).to(device, torch.float32, non_blocking=True)
    if count == 0:
        return linear_masks(shares, plan.shape[1:]), shares
    areas = torch.from_numpy(plan.areas).to(device, torch.float32, non_blocking=True)
    generator = torch.Generator(device).manual_seed(plan.seed)
    member_of = np.argsort(plan.roles).tolist()  # role -> member
    masks, ratios, left = None, torch.empty(batch, members, device=device), torch.ones((), device=device)
    for j in range(count):
        region = _fill(plan, j, areas[:, j], generator, (batch, *plan.shape))
        if masks is None:
            masks = torch.empty(batch, members, *region.shape[1:], device=device)
        owned = masks[:, member_of[j]]
        torch.mul(left, region, out=owned)
        ratios[:, member_of[j]] = owned.mean((1, 2, 3))
        left = torch.sub(left, owned, out=masks[:, member_of[j + 1]] if j + 2 == members else None)
    assert masks is not None
    unclaimed = left.mean((1, 2, 3))
    for k in range(count, members):
        if members - count > 1:  # a single one already holds what is left
            torch.mul(left, shares[:, k, None, None, None], out=masks[:, member_of[k]])
        ratios[:, member_of[k]] = unclaimed * shares[:, k]
    return masks.expand(-1, -1, -1, *plan.shape[1:]), ratios


def member_weights(ratios: Tensor, r: float) -> Tensor:
    """Weights of the member losses, w_i = M kappa_i^(1/r) / sum_j kappa_j^(1/r) (eq. 5, for any number of members).

    r = 1 weights by the ratio, r -> infinity (math.inf) weights all alike; the weights of a sample sum to M.

    Shapes: ratios [B, M].   returns [B, M].
    Raises:
        ValueError: r < 1.

    >>> ratios = torch.tensor([[0.2, 0.8]])
    >>> [[round(w, 3) for w in member_weights(ratios, r)[0].tolist()] for r in (1, 3, float("inf"))]
    [[0.4, 1.6], [0.773, 1.227], [1.0, 1.0]]
    """
    if not is_number(r) or not r >= 1:
        raise ValueError(f"r must be >= 1 (or math.inf), got {r!r}")
    root = ratios ** (1 / r)
    return ratios.shape[1] * root / root.sum(1, keepdim=True)


def repetition_share(progress: float, start: float, end: float | None = None, until: float = 1.0) -> float:
    """rho of a step: from `start` to `end` in a straight line over the first `until` of training, constant after.

    Args:
        progress: steps done over all steps, in [0, 1].
        end: None keeps `start` throughout.

    >>> [round(repetition_share(progress, 1.0, 0.4, until=0.5), 2) for progress in (0.0, 0.25, 0.5, 1.0)]
    [1.0, 0.7, 0.4, 0.4]
    """
    if end is None:
        return start
    return start + (end - start) * min(1.0, progress / until)


def binary_probability(progress: float, prob: float, until: float = BINARY_UNTIL) -> float:
    """Probability of the binary block at `progress` in [0, 1]: `prob`, then linear to 0 over the last twelfth.

    Reference: published code of arXiv:2103.06132, where progress is epoch / epochs, counted from 1.

    >>> [round(binary_probability(progress, 0.5), 2) for progress in (0.0, 0.9, 23 / 24, 1.0)]
    [0.5, 0.5, 0.25, 0.0]
    """
    if progress < until:
        return prob
    return prob * max(0.0, 1 - progress) / (1 - until)


def _check_settings(members: int, block: str, prob: float, alpha: float, repetition: float, partition: bool) -> None:
    if members < 1:
        raise ValueError(f"members must be >= 1, got {members}")
    if not BLOCKS.find(block).binary and partition:
        binary = ", ".join(name for name, known in BLOCKS.items() if known.binary)
        raise ValueError(f"partition needs a binary block ({binary}), got {block!r}")
    check_positive("alpha", alpha)
    check_probability("prob", prob)
    check_probability("repetition", repetition)


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


def _areas(kappa: np.ndarray, count: int) -> np.ndarray:
    """Area that each of `count` regions aims at, relative to what the ones before it left; [B, count]."""
    left = 1 - np.cumsum(kappa, axis=1) + kappa
    return np.clip(kappa[:, :count] / np.maximum(left[:, :count], 1e-12), 0, 1)


def _rest(kappa: np.ndarray, count: int) -> np.ndarray:
    """How the roles from `count` on share what the regions leave; [B, M], zero for the roles before."""
    shares = kappa.copy()
    shares[:, :count] = 0
    total = shares.sum(1, keepdims=True)
    even = (np.arange(kappa.shape[1]) >= count) / (kappa.shape[1] - count)  # a tiny alpha can leave nothing to share
    return np.where(total > 0, shares / np.where(total > 0, total, 1), even)


def _fill(
    plan: MixMoPlan, j: int, area: Tensor, generator: torch.Generator, shape: tuple[int, int, int, int]
) -> Tensor:
    """Region j of a plan: [B, 1 or C', h, w], or [B, C', 1, 1]."""
    block = BLOCKS[plan.family]
    assert block.fill is not None
    if block.draw is None:
        return block.fill(area, shape, generator)
    return block.fill(torch.from_numpy(plan.regions[j]).to(area.device, non_blocking=True), shape, generator)
