"""One law for losses: where nothing is mixed a task costs criterion(output, target), whatever the criterion is.

Mixed batches divide by what the criterion would divide by: with class weights by the sum of target times weight, and
without ignored labels. timm's and torch's criteria differ in the targets that they take; LabelLoss takes all for each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.loss import BinaryCrossEntropy, PolyCrossEntropy
from torch import Tensor, nn

from timm_mix.functional.probabilities import wide
from timm_mix.tasks._criteria import (
    WEIGHED,
    apart,
    cross_entropies,
    inspected,
    is_sigmoid,
    sums_classes,
    without_smoothing,
)

__all__ = ["LabelLoss", "Labels"]

SIGNED = (nn.SoftMarginLoss, nn.HingeEmbeddingLoss)  # their targets are -1 and 1
SMOOTHING = (BinaryCrossEntropy, PolyCrossEntropy)  # class indices only; rows count as softened already


class Labels(NamedTuple):
    """Soft labels on their way into a criterion.

    rows: [B, K]; 0 for ignored samples.
    counted: made from class indices, so that a criterion with class weights divides by those of the labels.

    >>> Labels(torch.tensor([[0.75, 0.25]]), counted=True).rows.shape
    torch.Size([1, 2])
    """

    rows: Tensor
    counted: bool


class LabelLoss:
    """A criterion that takes class indices, soft or multi-label rows, and mixtures of either.

    One that takes rows alone gets one-hot ones. One that takes indices alone (margins, timm's single-label asymmetric
    loss) costs its expectation over a soft label, in K times the memory.

    Args:
        criterion: (logits [B, K], target) -> the mean or the sum over a batch. It is tried on a few numbers.
        num_classes: K.
        each: the losses of single samples are wanted as well.
    Raises:
        ValueError: a criterion that takes neither kind of target, returns more than one number or, with `each`, is
            neither mean nor sum of its samples' losses; class indices for a criterion of targets -1 and 1.

    >>> loss = LabelLoss(nn.CrossEntropyLoss(torch.tensor([1.0, 3.0])), num_classes=2)
    >>> z, target = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
    >>> loss(z, loss.labels(target)).allclose(loss.criterion(z, target))  # nothing is mixed
    True
    """

    def __init__(self, criterion: Callable[[Tensor, Tensor], Tensor], num_classes: int, *, each: bool = False):
        self.criterion = criterion
        self.num_classes = num_classes
        self.sigmoid = is_sigmoid(criterion)
        self.takes_indices, self.takes_rows, self.adds = inspected(criterion, num_classes, each)
        self._weighed = type(criterion) in WEIGHED
        self._ignored: int | None = getattr(criterion, "ignore_index", None) if self._weighed else None

    def check(self, target: Tensor) -> None:
        """Class indices are in range; asked of a CPU tensor only, a device would have to be waited for.

        >>> LabelLoss(nn.CrossEntropyLoss(), num_classes=3).check(torch.tensor([0, -100, 3]))
        Traceback (most recent call last):
        ValueError: class indices must be in 0 .. 2, got 3
        """
        if target.device.type != "cpu" or target.is_floating_point():
            return
        wrong = (target < 0) | (target >= self.num_classes)
        if self._ignored is not None:
            wrong &= target != self._ignored
        if wrong.any():
            found = int(target[wrong][0])
            raise ValueError(f"class indices must be in 0 .. {self.num_classes - 1}, got {found}")

    def labels(self, target: Tensor) -> Labels:
        """The target as rows: one-hot, and 0 for an ignored sample.

        Shapes: target [...] int64 or [..., K] floating point.

        >>> LabelLoss(nn.CrossEntropyLoss(), num_classes=3).labels(torch.tensor([2, -100])).rows
        tensor([[0., 0., 1.],
                [0., 0., 0.]])
        """
        if target.is_floating_point():
            return Labels(target, counted=False)
        if isinstance(self.criterion, SIGNED):
            name = type(self.criterion).__name__
            raise ValueError(f"{name} wants -1 or 1 for every class, [B, {self.num_classes}], got class indices")
        if self._ignored is None:
            return Labels(F.one_hot(target, self.num_classes).float(), counted=True)
        counts = target != self._ignored
        rows = F.one_hot(torch.where(counts, target, 0), self.num_classes) * counts[..., None]
        return Labels(rows.float(), counted=True)

    def __call__(self, logits: Tensor, target: Tensor | Labels) -> Tensor:
        """The loss of a batch, computed in float32 at least.

        Shapes: logits [B, K].   target [B] int64, [B, K] floating point, or Labels.   returns a scalar.
        """
        z = wide(logits)
        if isinstance(target, Tensor):
            if self._takes(target):
                return self.criterion(z, target)
            target = self.labels(target)
        if self._sums_itself(target):
            criterion, rows = self._of_rows(target)
            return criterion(z, rows)
        losses = self._losses(z, target)
        return losses.sum() if self.adds else losses.mean()

    def each(self, logits: Tensor, target: Tensor | Labels) -> Tensor:
        """The losses of all members and samples: their mean is the criterion's, of the members, of all samples.

        Where the criterion is a sum, they are B times as large.

        Shapes: logits [B, N, K].   target [B, N] int64, [B, N, K] floating point, or Labels.   returns [B, N].

        >>> loss = LabelLoss(nn.CrossEntropyLoss(), num_classes=5, each=True)
        >>> loss.each(torch.zeros(4, 2, 5), torch.zeros(4, 2, dtype=torch.long)).shape
        torch.Size([4, 2])
        """
        z = wide(logits).flatten(0, 1)
        if isinstance(target, Tensor) and self._takes(target) and not self._weighed:
            losses = apart(self.criterion, z, target.flatten(0, 1))
        else:
            labels = target if isinstance(target, Labels) else self.labels(target)
            losses = self._losses(z, labels._replace(rows=labels.rows.flatten(0, 1)))
        losses = losses.unflatten(0, logits.shape[:2])
        return losses * len(losses) if self.adds else losses

    def beside(self, term: Tensor, batch: int) -> Tensor:
        """Another term of the task's loss, a mean over the batch, on the criterion's scale: the sum where that sums.

        So over the classes, where every class is a question of its own.
        """
        over_classes = self.sigmoid and sums_classes(self.criterion)
        return term * (batch if self.adds else 1) * (self.num_classes if over_classes else 1)

    def _takes(self, target: Tensor) -> bool:
        return self.takes_rows if target.is_floating_point() else self.takes_indices

    def _sums_itself(self, labels: Labels) -> bool:
        """Whether the criterion of these rows is what is wanted; torch's divides weighted rows by their number."""
        return self.takes_rows and not (self._weighed and labels.counted)

    def _losses(self, z: Tensor, labels: Labels) -> Tensor:
        """Of single samples, [B]: their mean is the loss, their sum where the criterion is a sum."""
        if self._weighed:
            return cross_entropies(self.criterion, z, labels.rows, labels.counted)
        if self.takes_rows:
            criterion, rows = self._of_rows(labels)
            return apart(criterion, z, rows)
        classes = torch.arange(self.num_classes, device=z.device).repeat(len(z))
        losses = apart(self.criterion, z.repeat_interleave(self.num_classes, 0), classes)
        return (labels.rows * losses.view(-1, self.num_classes)).sum(1)

    def _of_rows(self, labels: Labels) -> tuple[Any, Tensor]:
        """The criterion and its rows; of class indices they come smoothed."""
        if not (labels.counted and isinstance(self.criterion, SMOOTHING)):
            return self.criterion, labels.rows
        smoothing: Any = self.criterion.smoothing
        return without_smoothing(self.criterion), labels.rows * (1 - smoothing) + smoothing / self.num_classes
