"""Division rules: (architecture, S) -> the timm keyword arguments of one of S parts (Zhao et al., arXiv:2011.14660).

The rules lie with their families: imagenet.py, cifar.py and efficientnet.py (the paper's networks), resnet.py (timm's
ResNets), convolutional.py, regnet.py and transformer.py (beyond the paper).
"""

import re
from typing import Any

from timm_mix.functional.checks import check_count
from timm_mix.models.divide import cifar, convolutional, efficientnet, imagenet, resnet

__all__ = ["divide"]

# the first pattern that matches decides
_RULES = (
    *imagenet.RULES,
    *cifar.RULES,
    *resnet.RULES,
    *efficientnet.RULES,
    *convolutional.RULES,
)


def divide(arch: str, split: int) -> dict[str, Any]:
    """The timm keyword arguments that turn `arch` into one of `split` parts.

    timm.create_model(**{"model_name": arch, **divide(arch, split)}) is one part, which for most families is
    timm.create_model(arch, **divide(arch, split)). Where timm's entrypoint fixes the widths (EfficientNet,
    MobileNetV3, VGG) the dict names another model, one of our `narrow_*`. S = 1 is the whole network.

    Args:
        arch: name of a timm model, a pretrained tag is ignored.
        split: S, the number of parts.
    Raises:
        ValueError: a family without a division rule, or an S that the family cannot take.
    Reference: arXiv:2011.14660, sec. 3.1 and its published tables. Beyond the paper (ConvNeXt, RegNet, MobileNetV3,
    EfficientNet, DenseNet, ResNetV2, VGG, ViT, DeiT, Swin): widths by 1 / sqrt(S), so that the parts hold 0.9 to 1.1
    of the whole network's parameters in all.
    """
    check_count("split", split)
    name = str(arch).split(".")[0]
    for pattern, rule in _RULES:
        match = re.fullmatch(pattern, name)
        if match:
            return rule(name, split, match) if split > 1 else {}
    raise ValueError(
        f"no division rule for {arch!r}: known are resnet*, seresnet*, wide_resnet*, resnext*, seresnext*, resnest*, "
        "senet*, resnetv2*, regnet*, densenet*, vgg*, convnext*, mobilenetv3*, efficientnet*, vit*, deit*, swin* and "
        "SplitNet's and MixMo's own networks (se_resnet*, resnexst*, pyramidnet*, shake_resnet*, wrn*, ...); "
        "divide=False makes an ensemble of whole networks of any kind"
    )
