"""SplitNet: divide one wide network into S narrow ones and co-train them (Zhao et al., arXiv:2011.14660).

Widths scale by about 1 / sqrt(S), so that the S parts together cost about what the whole did. The parts learn from the
labels, each from its own view, and from each other through the Jensen-Shannon divergence of their predictions (eq. 5).
"""

import dataclasses
import math

import numpy as np
from torch import Tensor

from timm_mix.functional.plan import MixPlan, plan_mixup
from timm_mix.functional.probabilities import log_probabilities

__all__ = [
    "DIVERGENCES",
    "STAGE_WIDTHS",
    "cotraining_weight",
    "divided_dropout",
    "divided_weight_decay",
    "divided_widen_factor",
    "jensen_shannon",
    "pairwise_kl",
    "plan_shared_mixup",
]

# First-stage width of the ImageNet ResNets, 64 for the whole network (published table; 64 / sqrt(S), rounded to 4).
STAGE_WIDTHS = {1: 64, 2: 44, 4: 32, 8: 24}
FLOOR = 0.005  # the published warm-up starts here rather than at 0


def plan_shared_mixup(batch: int, alpha: float, *, rng: np.random.Generator) -> MixPlan:
    """Draw one lam ~ Beta(alpha, alpha) and one pairing for a batch (mixup: Zhang et al., arXiv:1710.09412).

    Every part mixes its own views by this plan, so that all parts predict the same mixed label (published: alpha .2).

    Raises:
        ValueError: alpha <= 0.

    >>> plan = plan_shared_mixup(5, 0.2, rng=np.random.default_rng(0))
    >>> sorted(plan.partner.tolist()), len(set(plan.lam.tolist()))
    ([0, 1, 2, 3, 4], 1)
    """
    plan = plan_mixup(batch, rng=rng, alpha=alpha)
    return dataclasses.replace(plan, partner=rng.permutation(batch))


def divided_widen_factor(k: int, split: int) -> int:
    """Widening factor of one part of a CIFAR wide ResNet: int(max(k / sqrt(S) + 0.4, 1)).

    >>> [divided_widen_factor(10, split) for split in (1, 2, 4, 8)]
    [10, 7, 5, 3]
    """
    return int(max(k / math.sqrt(split) + 0.4, 1))


def divided_weight_decay(weight_decay: float, split: int) -> float:
    """Weight decay of the parts: wd * exp(1 / S - 1), .6065, .4724, .4169 of it for S = 2, 4, 8.

    Narrow parts overfit less. Optional: the published code switches it on for all CIFAR-10 results, for WRN-40-10 at
    1800 epochs on CIFAR-100 and for the wide ResNets on ImageNet.

    >>> [round(divided_weight_decay(1e-4, split), 7) for split in (1, 2, 4)]
    [0.0001, 6.07e-05, 4.72e-05]
    """
    return weight_decay * math.exp(1 / split - 1)


def divided_dropout(p: float, split: int, *, linear: bool = False) -> float:
    """Dropout of the parts: p / sqrt(S), or p / S with `linear`.

    From the published code: sqrt for the dropout before the classifier of the SE, EfficientNet and ResNeXSt networks,
    for ShakeDrop and DropBlock; linear for ResNet-101 and WRN-40-10.

    >>> divided_dropout(0.5, 4), divided_dropout(0.5, 4, linear=True)
    (0.25, 0.125)
    """
    return p / (split if linear else math.sqrt(split))


def jensen_shannon(logits: Tensor, *, sigmoid: bool = False) -> Tensor:
    """JS = H(mean_i p_i) - mean_i H(p_i), natural logarithm, mean over the batch (eq. 5).

    Gradients flow through every p_i. Computed from log-probabilities, in float32 at least, so that it stays
    finite for confident members.

    Shapes: logits [B, S, K].   returns a scalar in [0, ln S].
    Args:
        sigmoid: each class is a question of its own (multi-label); mean over the classes.

    >>> import torch
    >>> sure = torch.tensor([[[30.0, 0.0], [0.0, 30.0]]])  # two members, certain of different classes: ln 2
    >>> round(float(jensen_shannon(sure)), 4)
    0.6931
    """
    log_p = log_probabilities(logits, sigmoid=sigmoid)  # [B, S, questions, answers]
    log_mean = log_p.logsumexp(1) - math.log(logits.shape[1])
    entropy_of_mean = -(log_mean.exp() * log_mean).sum(-1)
    mean_of_entropies = -(log_p.exp() * log_p).sum(-1).mean(1)
    return (entropy_of_mean - mean_of_entropies).mean()


def pairwise_kl(logits: Tensor, *, sigmoid: bool = False) -> Tensor:
    """Sum over ordered pairs of KL(p_j || p_i) / (S - 1), mean over the batch: the published alternative to JS.

    In each pair p_j is the teacher, through which no gradient flows. A single member has no pair: 0.

    Shapes: logits [B, S, K].   returns a scalar >= 0, up to rounding.
    Args:
        sigmoid: each class is a question of its own (multi-label); mean over the classes.

    >>> import torch
    >>> logits = torch.tensor([[[1.0, 0.0], [0.0, 1.0]]])
    >>> round(float(pairwise_kl(logits)), 4)  # KL from either member to the other, added up
    0.9242
    """
    log_p = log_probabilities(logits, sigmoid=sigmoid)  # [B, S, questions, answers]
    log_teacher = log_p.detach()
    teacher = log_teacher.exp()
    members = logits.shape[1]
    # all S^2 pairs at once: a member's divergence from itself is 0, and so is its gradient
    negative_entropies = members * (teacher * log_teacher).sum((1, 3))
    cross = (teacher.sum(1) * log_p.sum(1)).sum(-1)
    return (negative_entropies - cross).mean() / max(members - 1, 1)


DIVERGENCES = {"js": jensen_shannon, "kl": pairwise_kl}


def cotraining_weight(epoch: int, weight: float, warmup_epochs: float) -> float:
    """Weight of the divergence: max(weight * epoch / warmup, .005) while epoch (from 0) < warmup, then `weight`.

    The floor never exceeds `weight`, so that weight = 0 trains the parts separately.

    >>> [cotraining_weight(epoch, 0.5, warmup_epochs=40) for epoch in (0, 20, 40, 300)]
    [0.005, 0.25, 0.5, 0.5]
    """
    if epoch >= warmup_epochs:
        return weight
    return min(weight, max(weight * epoch / warmup_epochs, FLOOR))
