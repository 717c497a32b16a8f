"""The loss of a recipe: timm's criteria, with weights of the classes."""

from typing import Any

import torch
from timm.loss import compute_class_weights, create_classification_loss, load_class_weights
from torch import Tensor, nn

from timm_mix.tasks.losses import LabelLoss, Labels
from timm_mix.train.data.labels import count_labels, is_multi_label
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.settings.task import TaskSettings

__all__ = ["build_criterion"]

BALANCED = "balanced"


def build_criterion(wanted: TaskSettings, num_classes: int, train: Any = None) -> nn.Module:
    """Cross-entropy, or timm's binary one with --bce-loss and for several labels per image; smoothed unless timm's
    mixup smooths.

    Args:
        train: the training images, whose labels `class_weights: balanced` counts. Where they have any number of
            labels, it weighs the positive term of each class by its negatives over its positives.
    Raises:
        UsageError: weights that cannot be read, of another number, or for data that list no labels.

    >>> build_criterion(TaskSettings(smoothing=0.1), num_classes=5)
    LabelSmoothingCrossEntropy()
    >>> build_criterion(TaskSettings(class_weights="1,2,5"), num_classes=3).weight
    tensor([1., 2., 5.])
    """
    multi_label = is_multi_label(train)
    kind, weights = "class_weight", None
    if wanted.class_weights is not None:
        kind, weights = _weights(wanted.class_weights, num_classes, train, multi_label)
    with user_errors("create the loss"):
        if wanted.bce_loss or multi_label:
            return create_classification_loss(
                "bce",
                multi_label=multi_label,
                smoothing=wanted.smoothing,
                soft_targets=wanted.mixes_samples,
                bce_target_thresh=wanted.bce_target_thresh,
                bce_sum=wanted.bce_sum,
                **{kind: weights},
            )
        if weights is None:
            return create_classification_loss(smoothing=wanted.smoothing, soft_targets=wanted.mixes_samples)
        if wanted.mixes_samples:
            return _OfMixed(nn.CrossEntropyLoss(weights), num_classes)
        return nn.CrossEntropyLoss(weights, label_smoothing=wanted.smoothing)


def _weights(given: str, num_classes: int, train: Any, multi_label: bool) -> tuple[str, Tensor]:
    """The criterion's keyword and [K] float32."""
    if given == BALANCED:
        counts = count_labels(train, num_classes, "--class-weights balanced")
        method, images = ("neg_pos", len(train)) if multi_label else ("inv_freq", int(counts.sum()))
        return compute_class_weights(counts.tolist(), images, method=method)
    with user_errors(f"read --class-weights {given}, balanced or a file with {num_classes} numbers"):
        weights = torch.as_tensor(load_class_weights(given))
    if weights.shape != (num_classes,) or not weights.any():
        found = "none above 0" if weights.shape == (num_classes,) else weights.numel()
        raise UsageError(f"--class-weights wants {num_classes} numbers >= 0, one per class, got {found}")
    return "class_weight", weights


class _OfMixed(nn.Module):
    """Soft labels that were class indices before timm's mixup: they divide by the weights of the classes."""

    def __init__(self, criterion: nn.CrossEntropyLoss, num_classes: int):
        super().__init__()
        self.criterion = criterion
        self.loss = LabelLoss(criterion, num_classes)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        return self.loss(logits, Labels(target, counted=True) if target.ndim == 2 else target)
