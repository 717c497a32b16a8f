"""Division rules: (architecture, S) -> the timm keyword arguments of one of S parts (Zhao et al., arXiv:2011.14660).

The rules lie with their families: imagenet.py, cifar.py and efficientnet.py (the paper's networks), resnet.py (timm's
ResNets), convolutional.py, regnet.py and transformer.py (beyond the paper).
"""

import difflib
import re
from typing import Any, Optional

import timm

from timm_mix.functional.checks import check_count
from timm_mix.models.divide import cifar, convolutional, efficientnet, imagenet, resnet
from timm_mix.models.divide.resnet import Rule
from timm_mix.registry import Registry, check_takes

__all__ = ["DIVISIONS", "divide", "register_division"]

# the first pattern that matches decides
_RULES = (
    *imagenet.RULES,
    *cifar.RULES,
    *resnet.RULES,
    *efficientnet.RULES,
    *convolutional.RULES,
)


def _check(pattern: str, rule: Any) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"division {pattern!r} must be a regular expression: {error}") from error
    check_takes(f"division {pattern!r}", rule, "(match, split)", None, 2)


DIVISIONS: Registry[Rule] = Registry("division", _check)  # by pattern; the one registered last is asked first
for _pattern, _rule in reversed(_RULES):
    DIVISIONS.register(_pattern, _rule)


def register_division(pattern: str, rule: Optional[Rule] = None) -> Any:
    """Let `divide`, and so every splitnet, know a rule of your own.

    As a function, register_division("mynet[0-9]+", rule), or as a decorator, @register_division("mynet[0-9]+"). The
    rule registered last is asked first, so that yours goes before ours.

    Args:
        pattern: a regular expression for the whole name of an architecture, without a pretrained tag.
        rule: (match of the pattern, S >= 2) -> timm keyword arguments of one part; match[0] is the name. The dict may
            name another model as `model_name`. It raises ValueError for an S that the architecture cannot take.
    Raises:
        ValueError: a pattern that is registered already or does not compile, a rule that cannot be called so.

    >>> with DIVISIONS.scoped():  # forget it afterwards
    ...     rule = register_division("test_resnet", lambda match, split: {"channels": (32 // split,) * 4})
    ...     divide("test_resnet", 2)
    {'channels': (16, 16, 16, 16)}
    """
    return DIVISIONS.register(pattern, rule)


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

    >>> divide("resnet50", 2), divide("wrn28_10", 4)
    ({'channels': (44, 88, 176, 352)}, {'widen_factor': 5})
    >>> part = timm.create_model("wrn16_4", num_classes=5, **divide("wrn16_4", 2))
    >>> part(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 5])
    """
    check_count("split", split)
    name = str(arch).split(".")[0]
    for pattern in reversed(DIVISIONS):
        match = re.fullmatch(pattern, name)
        if match:
            return DIVISIONS[pattern](match, split) if split > 1 else {}
    own = [pattern for pattern in DIVISIONS if pattern not in dict(_RULES)]
    raise ValueError(
        f"no division rule for {arch!r}: known are resnet*, seresnet*, wide_resnet*, resnext*, seresnext*, resnest*, "
        "senet*, resnetv2*, regnet*, densenet*, vgg*, convnext*, mobilenetv3*, efficientnet*, vit*, deit*, swin* and "
        "SplitNet's and MixMo's own networks (se_resnet*, resnexst*, pyramidnet*, shake_resnet*, wrn*, ...)"
        f"{', and what was registered: ' if own else ''}{', '.join(own)}{_near_miss(name)}; "
        "divide=False makes an ensemble of whole networks of any kind"
    )


def _near_miss(name: str) -> str:
    """Of a name that timm does not know, the one that was meant."""
    near = [] if timm.is_model(name) else difflib.get_close_matches(name, timm.list_models(), n=1)
    return f"; did you mean {near[0]}?" if near else ""
