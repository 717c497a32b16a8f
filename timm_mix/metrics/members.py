"""Accuracy and negative log-likelihood of members and ensemble, exact over batches and processes."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from timm_mix.metrics.labels import LabelMetrics
from timm_mix.models import reduce_members

__all__ = ["MemberMetrics", "Scores", "evaluate_members"]


@dataclass(frozen=True)
class Scores:
    """Figures of one predictor: top-1 and top-5 in per cent, NLL in nats per sample, over `count` samples.

    >>> Scores(top1=75.0, top5=100.0, nll=0.7, count=4)
    Scores(top1=75.0, top5=100.0, nll=0.7, count=4)
    """

    top1: float
    top5: float
    nll: float
    count: int


class MemberMetrics:
    """Accumulate the scores of N members and of their ensemble.

    Shapes: update(members [B, N, K], ensemble [B, K], target [B] int64).

    >>> members = torch.tensor([[[3.0, 0.0], [0.0, 3.0]], [[0.0, 3.0], [0.0, 3.0]]])  # of two samples, by two members
    >>> metrics = MemberMetrics(2)
    >>> metrics.update(members, members.mean(1), target=torch.tensor([0, 1]))
    >>> {name: scores.top1 for name, scores in metrics.compute().items()}
    {'member_0': 100.0, 'member_1': 50.0, 'ensemble': 100.0}
    """

    def __init__(self, num_members: int, device: torch.device | str = "cpu"):
        self.num_members = num_members
        # one row per predictor (members, then the ensemble): correct in 1, correct in 5, sum of NLL
        self.sums = torch.zeros(num_members + 1, 3, dtype=torch.float64, device=device)
        self.count = torch.zeros((), dtype=torch.float64, device=device)

    @torch.no_grad()
    def update(self, members: Tensor, ensemble: Tensor, target: Tensor) -> None:
        """Add a batch.

        Shapes: members [B, N, K] and ensemble [B, K], logits.   target [B] int64.
        """
        logits = torch.cat([members, ensemble[:, None]], dim=1).float()  # [B, N + 1, K]
        labels = target[:, None, None].expand(-1, logits.shape[1], 1)
        nll = -F.log_softmax(logits, dim=-1).gather(2, labels)[..., 0]
        hits = logits.topk(min(5, logits.shape[2]), dim=-1).indices == labels
        batch = torch.stack([hits[..., 0].double(), hits.any(-1).double(), nll.double()], dim=-1)
        self.sums += batch.sum(0).to(self.sums.device)
        self.count += len(target)

    def reduce(self, sum_over_processes: Callable[[Tensor], Tensor]) -> None:
        """Add up the processes' sums, each of which holds its own samples once."""
        self.sums, self.count = sum_over_processes(self.sums), sum_over_processes(self.count)

    def compute(self) -> dict[str, Scores]:
        """Scores of `member_0` ... `member_{N-1}` and `ensemble`.

        Raises:
            ValueError: nothing was evaluated.
        """
        count = int(self.count)
        if count == 0:
            raise ValueError("no sample was evaluated; the evaluation set must hold at least one image")
        names = [*(f"member_{i}" for i in range(self.num_members)), "ensemble"]
        rows = (self.sums / self.count).tolist()
        return {
            name: Scores(top1=100 * top1, top5=100 * top5, nll=nll, count=count)
            for name, (top1, top5, nll) in zip(names, rows, strict=True)
        }


@torch.no_grad()
def evaluate_members(
    model: Any, batches: Iterable, device: torch.device | str = "cpu", *, multi_label: bool = False
) -> MemberMetrics | LabelMetrics:
    """Evaluate a model over batches of (images, targets); a model without members counts as one member.

    Args:
        batches: of images [B, C, H, W] and target [B] int64, as a DataLoader gives them.
        multi_label: the targets are [B, K] of 0 and 1, any number of labels per image.

    >>> import timm
    >>> model = timm.create_model("mixmo_wrn16_2_m2", num_classes=5, depth=10)
    >>> batches = [(torch.zeros(4, 3, 16, 16), torch.arange(4))]
    >>> list(evaluate_members(model, batches).compute())
    ['member_0', 'member_1', 'ensemble']
    """
    members = getattr(model, "num_members", None)
    metrics = (LabelMetrics if multi_label else MemberMetrics)(members or 1, device)
    model.eval()
    for images, target in batches:
        images, target = images.to(device, non_blocking=True), target.to(device, non_blocking=True)
        if members is None:
            ensemble = model(images)
            logits = ensemble[:, None]
        else:
            logits = model(images, return_members=True)
            ensemble = reduce_members(logits, model.ensemble)
        metrics.update(logits, ensemble, target)
    return metrics
