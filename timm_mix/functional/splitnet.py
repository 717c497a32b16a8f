"""SplitNet: divide one wide network into S narrow ones and co-train them (Zhao et al., arXiv:2011.14660).

Widths scale by about 1 / sqrt(S), so that the S parts together cost about what the whole did. The parts learn from the
labels, each from its own view, and from each other through the Jensen-Shannon divergence of their predictions (eq. 5).
"""

import math

import torch.nn.functional as F
from torch import Tensor

__all__ = ["STAGE_WIDTHS", "cotraining_weight", "divided_widen_factor", "jensen_shannon"]

# First-stage width of the ImageNet ResNets, 64 for the whole network (published table; 64 / sqrt(S), rounded to 4).
STAGE_WIDTHS = {1: 64, 2: 44, 4: 32, 8: 24}
FLOOR = 0.005  # the published warm-up starts here rather than at 0


def divided_widen_factor(k: int, split: int) -> int:
    """Widening factor of one part of a CIFAR wide ResNet: int(max(k / sqrt(S) + 0.4, 1))."""
    return int(max(k / math.sqrt(split) + 0.4, 1))


def jensen_shannon(logits: Tensor) -> Tensor:
    """JS = H(mean_i p_i) - mean_i H(p_i), natural logarithm, mean over the batch (eq. 5).

    Gradients flow through every p_i. Computed from log-probabilities, in float32 at least, so that it stays
    finite for confident members.

    Shapes: logits [B, S, K].   returns a scalar in [0, ln S].
    """
    wide = logits.float() if logits.element_size() < 4 else logits
    log_p = F.log_softmax(wide, dim=-1)
    log_mean = log_p.logsumexp(1) - math.log(logits.shape[1])  # [B, K]
    entropy_of_mean = -(log_mean.exp() * log_mean).sum(-1)
    mean_of_entropies = -(log_p.exp() * log_p).sum(-1).mean(1)
    return (entropy_of_mean - mean_of_entropies).mean()


def cotraining_weight(epoch: int, weight: float, warmup_epochs: float) -> float:
    """Weight of the divergence: max(weight * epoch / warmup, .005) while epoch (from 0) < warmup, then `weight`.

    The floor never exceeds `weight`, so that weight = 0 trains the parts separately.
    """
    if epoch >= warmup_epochs:
        return weight
    return min(weight, max(weight * epoch / warmup_epochs, FLOOR))
