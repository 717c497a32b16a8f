"""Figures of images that may have any number of labels: mean average precision and F1, by timm's evaluator."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
from timm.task.evaluator import MultiLabelClassificationEvaluator
from torch import Tensor

__all__ = ["LabelMetrics", "LabelScores"]


@dataclass(frozen=True)
class LabelScores:
    """Figures of one predictor over `count` samples; those of precision and F1 in per cent.

    map: mean over the classes of the average precision; a class without a positive image counts as 0 (timm's way).
    micro_f1, macro_f1, sample_f1: F1 at probability 1/2, over all labels, mean over the classes, over the samples.
    bce: binary cross-entropy in nats, mean over samples and classes.

    >>> LabelScores(map=75.0, micro_f1=60.0, macro_f1=58.0, sample_f1=61.0, bce=0.3, count=4).map
    75.0
    """

    map: float
    micro_f1: float
    macro_f1: float
    sample_f1: float
    bce: float
    count: int


class LabelMetrics:
    """Gather the scores of N members and of their ensemble; the counterpart of `MemberMetrics`.

    All logits are kept, on the CPU, since average precision is of their order.

    Shapes: update(members [B, N, K], ensemble [B, K], target [B, K] of 0 and 1).

    >>> members = torch.tensor([[[3.0, -3.0], [3.0, -3.0]], [[-3.0, 3.0], [4.0, 3.0]]])  # of two samples
    >>> metrics = LabelMetrics(2)
    >>> metrics.update(members, members.mean(1), target=torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
    >>> {name: scores.map for name, scores in metrics.compute().items()}
    {'member_0': 100.0, 'member_1': 75.0, 'ensemble': 100.0}
    """

    def __init__(self, num_members: int, device: torch.device | str = "cpu"):
        self.evaluators = {
            name: MultiLabelClassificationEvaluator(device)
            for name in (*(f"member_{i}" for i in range(num_members)), "ensemble")
        }
        self.count = torch.zeros((), dtype=torch.float64, device=device)
        self._distributed = False

    def update(self, members: Tensor, ensemble: Tensor, target: Tensor) -> None:
        """Add a batch.

        Shapes: members [B, N, K] and ensemble [B, K], logits.   target [B, K].
        """
        for evaluator, logits in zip(self.evaluators.values(), (*members.unbind(1), ensemble), strict=True):
            evaluator.update(logits, target)
        self.count += len(target)

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Let `compute`, which all processes then call, be over the samples of all, each of which has its own once."""
        self.count = sum_over_processes(self.count)
        self._distributed = dist.is_initialized() and dist.get_world_size() > 1

    def compute(self) -> dict[str, LabelScores]:
        """Scores of `member_0` ... `member_{N-1}` and `ensemble`.

        Raises:
            ValueError: nothing was evaluated.
        """
        if not self.count:
            raise ValueError("no sample was evaluated; the evaluation set must hold at least one image")
        found = {name: evaluator.compute(self._distributed) for name, evaluator in self.evaluators.items()}
        return {name: LabelScores(bce=row.pop("loss"), **row, count=int(self.count)) for name, row in found.items()}
