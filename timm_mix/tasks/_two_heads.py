"""AutoMix's networks: a timm model with a second classifier, the Mix Block beside it, the features of a stage."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.functional.automix import LEAST_LAM, AutoMixPlan, adjust_masks, constant_masks, mix_pairs
from timm_mix.models import prefix_matcher
from timm_mix.tasks._base import names_without_decay
from timm_mix.tasks._early_gradient import Taken, with_gradient
from timm_mix.tasks._region import image_shape

__all__ = ["OnlineNet", "TwoHeads", "stage_of_reduction"]

USUAL_REDUCTION = 16  # published for ImageNet
LEAST_PLACES = 8  # on the smaller side of a map, as published for CIFAR

Learn = Callable[[Tensor], tuple[Tensor, Tensor]]
Judge = Callable[[Tensor], tuple[Tensor, Taken]]


class TwoHeads(nn.Module):
    """A plain model and one more linear classifier on the same features.

    Shapes: (images [B, C, H, W], second=False) -> logits [B, K] of the model's own head, or of the second one.
    Raises:
        ValueError: a model whose classifier is not one linear layer; a 1x1 convolution of the pooled features is one.

    >>> import timm
    >>> two = TwoHeads(timm.create_model("test_resnet", num_classes=5), num_classes=5)
    >>> two(torch.rand(4, 3, 32, 32), second=True).shape
    torch.Size([4, 5])
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


class OnlineNet(nn.Module):
    """q with both heads, and the Mix Block: everything that is trained, in one forward, as DDP wants it.

    Shapes: (images, k's features, plan, whether the block learns, what k makes of mixed images, number of images that
        q sees plain, the loss of their logits) -> logits of the plain images (empty without), their loss, logits of the
        mixed ones, masks [B, 2, 1, H, W] of the Mix Block's own pass (empty unless it learns), k's mixup loss, whose
        gradient reaches the Mix Block. Of images alone: logits of the model's own head, and 0 of all that is not asked.

    >>> import timm
    >>> two = TwoHeads(timm.create_model("test_resnet", num_classes=5), num_classes=5)
    >>> [type(head).__name__ for head in OnlineNet(two, nn.Identity(), second_mixes=True).get_classifier()]
    ['Linear', 'Linear']
    """

    def __init__(self, two: TwoHeads, block: nn.Module, second_mixes: bool):
        super().__init__()
        self.two = two
        self.block = block
        self.second_mixes = second_mixes  # the second head is that of the mixed images

    def get_classifier(self) -> tuple[nn.Module, ...]:
        model: Any = unwrap_model(self.two.model)
        return (model.get_classifier(), self.two.second)

    def no_weight_decay(self) -> set[str]:
        return names_without_decay(self.two.model, "two.model")

    def group_matcher(self, coarse: bool = False) -> Any:
        model: Any = unwrap_model(self.two.model)
        return prefix_matcher(model.group_matcher(coarse=coarse), r"two\.model")

    def forward(
        self,
        images: Tensor,
        features: Tensor | None = None,
        plan: AutoMixPlan | None = None,
        learns: bool = False,
        learn: Learn | None = None,
        plain: int = 0,
        judge: Judge | None = None,
    ) -> tuple[Tensor, ...]:
        if features is None:
            logits = self.two(images)
            return logits, self._nothing_of([*self.block.parameters(), *self.two.second.parameters()], logits)
        assert plan is not None
        assert judge is not None
        size = (images.shape[-2], images.shape[-1])
        masks, block = images.new_empty(0), images.new_zeros(())
        if learns:
            partners = torch.from_numpy(plan.partners_mb).to(images.device, non_blocking=True)
            masks = self.block(features, partners, plan.lam_mb, size)
            if learn is not None:
                mixed = mix_pairs(images, partners, masks).to(images.dtype)
                value, gradient = learn(mixed)
                reaching = (mixed * gradient).sum()
                block = value + (reaching - reaching.detach())
        with torch.no_grad():
            partners = torch.from_numpy(plan.partners_bb).to(images.device, non_blocking=True)
            mixed = mix_pairs(images, partners, self._seen(features, partners, plan, size)).to(images.dtype)
        one, ce = images.new_empty(0), images.new_zeros(())
        taken: Taken = []
        if plain:
            one = self.two(images[:plain], second=not self.second_mixes)
            ce, taken = judge(one)
            one = one.detach() if taken else one  # and its graph is gone
        logits = self.two(mixed, second=self.second_mixes)
        untouched = [] if learns else list(self.block.parameters())
        untouched += [] if plain else list(self.get_classifier()[not self.second_mixes].parameters())
        block = block + self._nothing_of(untouched, logits)
        return one, with_gradient(ce, taken), logits, masks, block

    @staticmethod
    def _nothing_of(untouched: list[nn.Parameter], like: Tensor) -> Tensor:
        """0, a function of these: DDP wants a gradient of everything in every step."""
        nothing = like.new_zeros(())
        for parameter in untouched:
            nothing = nothing + 0.0 * parameter.sum()
        return nothing

    def _seen(self, features: Tensor, partners: Tensor, plan: AutoMixPlan, size: tuple[int, int]) -> Tensor:
        """The masks that q sees, without gradient."""
        masks = self.block(features, partners, plan.lam_bb, size)
        if not LEAST_LAM < plan.lam_bb < 1 - LEAST_LAM:
            return constant_masks(plan.lam_bb, masks)
        return adjust_masks(masks, plan.lam_bb) if plan.adjust else masks


def _named(classifier: Any) -> str:
    kinds = [type(head).__name__ for head in classifier] if isinstance(classifier, tuple) else []
    return f"{len(kinds)} of them ({', '.join(kinds)})" if kinds else type(classifier).__name__


def stage_of_reduction(model: nn.Module, reduction: int | None = None) -> tuple[int, int]:
    """The stage whose features are `reduction` times smaller than the image: its index and its channels.

    Of several the last one; of a network that has one resolution throughout (ViT) the middle one. None chooses: 16
    where the network has it; else the largest below that leaves at least 8 places to the smaller side of the image that
    the network names (published: 14 x 14 places on ImageNet, 8 x 8 on CIFAR); else the nearest to 16.

    Raises:
        ValueError: no such stage, a model without features.

    >>> import timm
    >>> stage_of_reduction(timm.create_model("test_resnet"), 16)
    (3, 192)
    >>> stage_of_reduction(timm.create_model("resnet18_cifar"))  # of 1, 2, 4 and 8 it is 4: 8 x 8 of 32 x 32 pixels
    (2, 256)
    """
    info = getattr(unwrap_model(model), "feature_info", None)
    if not info or not hasattr(model, "forward_intermediates"):
        raise ValueError(f"masks need a timm model with forward_intermediates, got {type(model).__name__}")
    levels = [(i, level["reduction"], level["num_chs"]) for i, level in enumerate(info)]
    if reduction is None:
        reduction = _fitting(sorted({level for _, level, _ in levels}), min(image_shape(model)[1:]))
    found = [(i, channels) for i, level, channels in levels if level == reduction]
    if not found:
        known = ", ".join(str(level) for level in sorted({level for _, level, _ in levels}))
        raise ValueError(f"reduction must be one of {known} for {type(model).__name__}, got {reduction!r}")
    return found[len(found) // 2] if len(found) == len(levels) else found[-1]


def _fitting(known: Sequence[int], side: int) -> int:
    """The reduction among these that suits masks over an image of `side` pixels."""
    if USUAL_REDUCTION in known:
        return USUAL_REDUCTION
    roomy = [level for level in known if level < USUAL_REDUCTION and side >= LEAST_PLACES * level]
    return max(roomy) if roomy else min(known, key=lambda level: abs(math.log(level / USUAL_REDUCTION)))
