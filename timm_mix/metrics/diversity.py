"""How the members of a network differ."""

from dataclasses import dataclass
from itertools import combinations

from torch import Tensor

from timm_mix.metrics._checks import check_samples

__all__ = ["PairDiversity", "pair_diversity"]


@dataclass(frozen=True)
class PairDiversity:
    """How two members differ.

    disagreement: share of samples on which they predict different classes.
    ratio_error: samples that exactly one of them gets wrong, over samples that both get wrong; None without any of
        the latter.
    kl: (KL(p_i || p_j) + KL(p_j || p_i)) / 2 in nats, mean over the samples.

    >>> PairDiversity(members=(0, 1), disagreement=0.25, ratio_error=2.0, kl=0.1).disagreement
    0.25
    """

    members: tuple[int, int]
    disagreement: float
    ratio_error: float | None
    kl: float


def pair_diversity(members: Tensor, target: Tensor) -> list[PairDiversity]:
    """Diversity of every pair of members.

    Shapes: members [n, N, K] logits; target [n] int64.
    Raises:
        ValueError: no sample.
    Reference: ratio error d_re: Aksela, MCS 2003, as in MixMo, arXiv:2103.06132; it grows with diversity.

    >>> members = torch.tensor([[[3.0, 0.0], [3.0, 0.0]], [[3.0, 0.0], [0.0, 3.0]]])  # they differ on the second sample
    >>> (pair,) = pair_diversity(members, torch.tensor([1, 1]))
    >>> pair.members, pair.disagreement, pair.ratio_error
    ((0, 1), 0.5, 1.0)
    """
    check_samples(len(members), 1, "diversity")
    predicted = members.argmax(-1)
    wrong = predicted != target[:, None]
    pairs = []
    for i, j in combinations(range(members.shape[1]), 2):
        both, one = int((wrong[:, i] & wrong[:, j]).sum()), int((wrong[:, i] ^ wrong[:, j]).sum())
        log_p, log_q = members[:, i].double().log_softmax(-1), members[:, j].double().log_softmax(-1)
        kl = ((log_p.exp() - log_q.exp()) * (log_p - log_q)).sum(-1).mean() / 2
        pairs.append(
            PairDiversity(
                members=(i, j),
                disagreement=float((predicted[:, i] != predicted[:, j]).double().mean()),
                ratio_error=one / both if both else None,
                kl=float(kl),
            )
        )
    return pairs
