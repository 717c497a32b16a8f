"""Co-training of the parts of a SplitNet (Zhao et al., arXiv:2011.14660), as a timm training task."""

import math
from collections.abc import Callable
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.functional.splitnet import cotraining_weight, jensen_shannon
from timm_mix.models._members import reduce_members
from timm_mix.tasks._base import MemberTask
from timm_mix.tasks.member_parallel import check_member_group, gather_members

__all__ = ["CoTrainingTask"]


class CoTrainingTask(MemberTask):
    """Every part learns from the labels, and from the other parts: sum_i CE_i + w JS (paper, eq. 4 and 5).

    Made for SplitNet; any model with members will do.

    Args:
        weight: w of the Jensen-Shannon divergence; 0 trains the parts separately.
        warmup_epochs: over which w grows (published: 40 of 300 epochs on CIFAR); needs steps_per_epoch.
        member_group: the processes that hold one part each (see tasks/member_parallel.py); None: all parts are here.
        kwargs: see MixingTask (criterion, num_classes, seed, total_steps, steps_per_epoch, ...).
    Shapes: task(input, target [B] or [B, K]) with input [B, S, C, H, W], one view per part, or [B, C, H, W], one view
        for all -> dict with
        loss: scalar.   output: [B, K], the ensemble.   ce: sum of the parts' losses, cot: JS; both detached.
    Raises:
        ValueError: weight or warmup_epochs < 0, a warm-up without steps_per_epoch, a model without members, a target
            of another shape.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
        *,
        weight: float = 0.5,
        warmup_epochs: float = 0.0,
        member_group: Any = None,
        **kwargs: Any,
    ):
        super().__init__(model, criterion, **kwargs)
        if member_group is not None:
            check_member_group(unwrap_model(model), member_group)
        self.member_group = member_group
        for name, value in (("weight", weight), ("warmup_epochs", warmup_epochs)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ValueError(f"{name} must be >= 0 and finite, got {value!r}")
        if warmup_epochs and self.steps_per_epoch is None:
            raise ValueError(f"warmup_epochs={warmup_epochs} needs steps_per_epoch, the number of batches in an epoch")
        self.weight = weight
        self.warmup_epochs = warmup_epochs

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        target = self._checked_target(input, target)
        logits = self.trainable_module(input, return_members=True)
        if self.member_group is not None:
            logits = gather_members(logits, self.member_group)
        ce = torch.stack([self.criterion(part.float(), target) for part in logits.unbind(1)]).sum()
        cot = jensen_shannon(logits)
        loss = ce + cotraining_weight(self.epoch, self.weight, self.warmup_epochs) * cot
        self.step += 1
        ensemble = unwrap_model(self.trainable_module).ensemble
        return {"loss": loss, "output": reduce_members(logits, ensemble), "ce": ce.detach(), "cot": cot.detach()}
