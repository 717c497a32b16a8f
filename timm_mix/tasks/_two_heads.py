"""A timm model with a second classifier, and the features of one of its stages."""

from typing import Any

from timm.utils import unwrap_model
from torch import Tensor, nn

__all__ = ["TwoHeads", "stage_of_reduction"]


class TwoHeads(nn.Module):
    """A plain model and one more linear classifier on the same features.

    Shapes: (images [B, C, H, W], second=False) -> logits [B, K] of the model's own head, or of the second one.
    Raises:
        ValueError: a model whose classifier is not one linear layer; a 1x1 convolution of the pooled features is one.
    """

    def __init__(self, model: nn.Module, num_classes: int):
        super().__init__()
        plain: Any = unwrap_model(model)
        classifier = plain.get_classifier()
        weight = getattr(classifier, "weight", None)
        pointwise = isinstance(classifier, nn.Conv2d) and classifier.kernel_size == (1, 1) and classifier.groups == 1
        if weight is None or not (isinstance(classifier, nn.Linear) or pointwise):
            raise ValueError(
                f"the second head copies a linear classifier, but {type(plain).__name__} has "
                f"{_named(classifier)}; choose another model"
            )
        self.model = model
        self.second = nn.Linear(weight.shape[1], num_classes, device=weight.device, dtype=weight.dtype)

    def forward(self, images: Tensor, second: bool = False) -> Tensor:
        features = self.model.forward_features(images)
        if second:
            return self.second(self.model.forward_head(features, pre_logits=True).flatten(1))
        return self.model.forward_head(features)


def _named(classifier: Any) -> str:
    kinds = [type(head).__name__ for head in classifier] if isinstance(classifier, tuple) else []
    return f"{len(kinds)} of them ({', '.join(kinds)})" if kinds else type(classifier).__name__


def stage_of_reduction(model: nn.Module, reduction: int) -> tuple[int, int]:
    """The stage whose features are `reduction` times smaller than the image: its index and its channels.

    Of several the last one; of a network that has one resolution throughout (ViT) the middle one.

    Raises:
        ValueError: no such stage, a model without features.
    """
    info = getattr(unwrap_model(model), "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise ValueError(f"masks need a timm model with forward_intermediates, got {type(model).__name__}")
    levels = [(i, level["reduction"], level["num_chs"]) for i, level in enumerate(info)]
    found = [(i, channels) for i, level, channels in levels if level == reduction]
    if not found:
        known = ", ".join(str(level) for level in sorted({level for _, level, _ in levels}))
        raise ValueError(f"reduction must be one of {known} for {type(model).__name__}, got {reduction!r}")
    return found[len(found) // 2] if len(found) == len(levels) else found[-1]
