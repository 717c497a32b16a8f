"""What a criterion is: the targets that it takes, what it returns, and its loss of single samples."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.loss import (
    AsymmetricLossMultiLabel,
    BinaryCrossEntropy,
    DistributionBalancedLoss,
    LabelSmoothingCrossEntropy,
    PolyBinaryCrossEntropy,
    SoftTargetCrossEntropy,
    ZlprLoss,
)
from torch import Tensor, nn

__all__ = ["WEIGHED", "apart", "cross_entropies", "inspected", "is_sigmoid", "sums_classes", "without_smoothing"]

Criterion = Callable[[Tensor, Tensor], Tensor]

# linear in the labels' logarithmic probabilities; torch's two divide by the weights of the labels
WEIGHED = (nn.CrossEntropyLoss, nn.NLLLoss, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy)
SIGMOID: tuple[type, ...] = (nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss, BinaryCrossEntropy)
SIGMOID += (PolyBinaryCrossEntropy, AsymmetricLossMultiLabel, DistributionBalancedLoss, ZlprLoss)


def is_sigmoid(criterion: Criterion) -> bool:
    """Whether each class is a question of its own: the probabilities are sigmoids, which need not sum to 1.

    >>> is_sigmoid(nn.BCEWithLogitsLoss()), is_sigmoid(nn.CrossEntropyLoss())
    (True, False)
    """
    return isinstance(criterion, SIGMOID)


def sums_classes(criterion: Any) -> bool:
    """Whether a sigmoid's criterion adds up the classes of a sample, where others average over them.

    >>> sums_classes(BinaryCrossEntropy(sum_classes=True)), sums_classes(nn.BCEWithLogitsLoss())
    (True, False)
    """
    return getattr(criterion, "sum_classes", False) or getattr(criterion, "reduction", "") in ("sum", "batchmean")


def cross_entropies(criterion: Any, z: Tensor, rows: Tensor, counted: bool) -> Tensor:
    """Of single samples, for the criteria of WEIGHED: sum_k rows_k w_k (-log p_k), smoothed.

    Rows that were class indices are brought to the mean weight sum_ik rows_ik w_k / B, unless the criterion is a sum,
    and smoothed as far as they are there: a row of 0, an ignored sample, costs nothing and weighs nothing.

    Shapes: z [B, K].   rows [B, K].   returns [B].

    >>> weighted = nn.CrossEntropyLoss(torch.tensor([1.0, 3.0]))
    >>> cross_entropies(weighted, torch.zeros(2, 2), torch.eye(2), counted=True)  # ln 2 / 2 and 3 ln 2 / 2
    tensor([0.3466, 1.0397])
    """
    log_p = z if isinstance(criterion, nn.NLLLoss) else F.log_softmax(z, dim=1)
    weight = getattr(criterion, "weight", None)
    costs = -log_p if weight is None else -log_p * weight
    smoothing = getattr(criterion, "label_smoothing", getattr(criterion, "smoothing", 0.0))
    losses = (rows * costs).sum(1)
    if smoothing:
        there = rows.sum(1) if counted else 1.0
        losses = (1 - smoothing) * losses + smoothing / z.shape[1] * there * costs.sum(1)
    if counted and getattr(criterion, "reduction", "mean") == "mean":
        losses = losses * (len(losses) / (rows if weight is None else rows * weight).sum())
    return losses


def without_smoothing(criterion: Any) -> Any:
    """A shallow copy, whose buffers are the original's.

    >>> without_smoothing(BinaryCrossEntropy(0.1)).smoothing
    0.0
    """
    plain = copy.copy(criterion)
    plain.smoothing = 0.0
    return plain


def apart(criterion: Any, z: Tensor, target: Tensor) -> Tensor:
    """The criterion of every sample on its own.

    Shapes: z [B, K].   target [B] or [B, K].   returns [B].

    >>> apart(nn.CrossEntropyLoss(), torch.zeros(2, 2), torch.tensor([0, 1]))
    tensor([0.6931, 0.6931])
    """
    if getattr(criterion, "reduction", None) in ("mean", "sum"):
        single = copy.copy(criterion)
        single.reduction = "none"
        losses = single(z, target)
        if losses.shape == z.shape[:1]:
            return losses
    if isinstance(criterion, BinaryCrossEntropy) and target.ndim == 1:  # its scatter cannot be vectorised
        smoothing = criterion.smoothing
        target = F.one_hot(target, z.shape[1]) * (1 - smoothing) + smoothing / z.shape[1]
        criterion = without_smoothing(criterion)
    return torch.func.vmap(lambda one, label: criterion(one[None], label[None]))(z, target)


def inspected(criterion: Criterion, num_classes: int, each: bool) -> tuple[bool, bool, bool]:
    """Whether a criterion takes class indices, whether it takes rows, whether it adds up a batch; by trying it.

    Raises:
        ValueError: neither; more than one number; with `each`, or without rows, no mean or sum of samples' losses.

    >>> inspected(nn.BCEWithLogitsLoss(reduction="sum"), num_classes=5, each=False)
    (False, True, True)
    """
    name = getattr(criterion, "__name__", type(criterion).__name__)
    taken, failures = {}, []
    for kind, (z, target) in zip(("indices", "rows"), _samples(criterion, num_classes), strict=True):
        try:
            taken[kind] = (z, target, *_values(criterion, z, target))
        except Exception as error:  # whatever a criterion of somebody else's raises
            failures.append(" ".join(str(error).split()) or type(error).__name__)
    if not taken:
        raise ValueError(f"criterion {name} takes neither class indices [B] nor labels [B, K]: {failures[0]}")
    z, target, once, twice = taken["rows"] if "rows" in taken else taken["indices"]
    if once.ndim:
        raise ValueError(
            f"criterion {name} must return one number for a batch, got {list(once.shape)}; take reduction='mean'"
        )
    adds = bool((twice - 2 * once).abs() < (twice - once).abs())
    if type(criterion) not in WEIGHED and (each or "rows" not in taken):
        for kind in taken:
            _check_apart(criterion, name, *taken[kind][:3], adds)
    indices = "indices" in taken and not (num_classes == 1 and "rows" in taken)  # [B] against [B, 1] broadcasts
    return indices, "rows" in taken, adds


def _samples(criterion: Criterion, num_classes: int) -> list[tuple[Tensor, Tensor]]:
    """A few logits where the criterion's own tensors are, with class indices and with rows."""
    own = [*criterion.buffers(), *criterion.parameters()] if isinstance(criterion, nn.Module) else []
    like = next((value for value in own if value.is_floating_point()), torch.zeros(()))
    batch = 3 if num_classes != 3 else 4  # another number, so that nothing broadcasts unseen
    z = torch.arange(batch * num_classes, device=like.device, dtype=like.dtype).sin().view(batch, num_classes)
    indices = torch.arange(batch, device=like.device) % num_classes
    return [(z, indices), (z, F.one_hot(indices, num_classes).to(like.dtype))]


@torch.no_grad()
def _values(criterion: Criterion, z: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of the samples, and of the samples twice."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Using a target size")  # torch broadcasts what does not fit
        return criterion(z, target), criterion(torch.cat([z, z]), torch.cat([target, target]))


@torch.no_grad()
def _check_apart(criterion: Criterion, name: str, z: Tensor, target: Tensor, value: Tensor, adds: bool) -> None:
    """That the losses of single samples add up to the criterion's."""
    try:
        losses = apart(criterion, z, target)
        found = losses.sum() if adds else losses.mean()
        fits = losses.shape == z.shape[:1] and torch.allclose(found, value, rtol=1e-3, atol=1e-5)
    except Exception:  # of vmap, or of the criterion
        fits = False
    if not fits:
        raise ValueError(
            f"criterion {name} is neither the mean nor the sum of its samples' losses, which are wanted here"
        )
