"""timm's EfficientNet, MobileNetV3 and VGG in other widths, which their own entrypoints fix.

`timm.create_model('narrow_efficientnet', backbone='efficientnet_b2', width=0.7)`: all channels times 0.7, rounded to
4; everything else as timm builds it, the initialisation included. The division rules make their parts of these.

>>> import timm, timm_mix
>>> model = timm.create_model("narrow_efficientnet", backbone="test_efficientnet", width=0.5, num_classes=5)
>>> model.num_features, timm.create_model("test_efficientnet").num_features
(128, 256)
"""

from dataclasses import dataclass
from typing import Any, Callable, Dict

import timm
from timm.models import build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg
from timm.models._efficientnet_builder import efficientnet_init_weights
from timm.models.efficientnet import EfficientNet
from timm.models.mobilenetv3 import MobileNetV3
from timm.models.vgg import VGG
from torch import nn

from timm_mix.models._backbone import backbone_cfg, features_cfg
from timm_mix.models._entrypoints import register_table
from timm_mix.models._narrowing import count_narrowed, narrow_layers

__all__ = ["FAMILIES", "Family", "count_narrow"]


@dataclass(frozen=True)
class Family:
    """kind: timm's class; backbone: the default; pooled: its layer behind the pooling; init: its initialisation.

    >>> FAMILIES["narrow_vgg"].backbone, FAMILIES["narrow_vgg"].pooled
    ('vgg11', 'head.fc')
    """

    kind: type
    backbone: str
    pooled: str
    init: Callable[[Any], None]


FAMILIES: Dict[str, Family] = {
    "narrow_efficientnet": Family(EfficientNet, "efficientnet_b0", "classifier", efficientnet_init_weights),
    "narrow_mobilenetv3": Family(MobileNetV3, "mobilenetv3_large_100", "conv_head", efficientnet_init_weights),
    "narrow_vgg": Family(VGG, "vgg11", "head.fc", lambda model: model._initialize_weights()),
}
_WIDTH = 0.7071  # one of two parts


def count_narrow(variant: str, whole: nn.Module, width: float) -> int:
    """Parameters that `variant` has at this width, `whole` being its backbone.

    Raises:
        NarrowingError: a backbone with weights whose width cannot be changed.

    >>> whole = timm.create_model("test_efficientnet", device="meta")
    >>> part = timm.create_model("narrow_efficientnet", backbone="test_efficientnet", width=0.5)
    >>> count_narrow("narrow_efficientnet", whole, 0.5) == sum(p.numel() for p in part.parameters())
    True
    """
    return count_narrowed(whole, width, FAMILIES[variant].pooled)


def _build(variant: str, backbone: str, width: float, device: Any = None, **kwargs: Any) -> nn.Module:
    family = FAMILIES[variant]
    if isinstance(width, bool) or not isinstance(width, (int, float)) or not 0 < width <= 1:
        raise ValueError(f"width must be > 0 and <= 1, got {width!r}")
    model = timm.create_model(backbone, pretrained=False, device="meta", **kwargs)
    if not isinstance(model, family.kind):
        raise ValueError(
            f"{variant} narrows timm's {family.kind.__name__}, but {backbone!r} is a {type(model).__name__}; "
            f"choose another backbone, such as {family.backbone!r}"
        )
    narrow_layers(model, width, family.pooled, device)
    family.init(model)
    return model


def _cfg(backbone: str) -> Dict[str, Any]:
    shared = backbone_cfg(backbone, "", "")  # raises for a name that timm does not know
    plain = get_pretrained_cfg(backbone)
    return {**shared, "first_conv": plain.first_conv, "classifier": plain.classifier}


default_cfgs = generate_default_cfgs({name: _cfg(family.backbone) for name, family in FAMILIES.items()})


def _create_narrow(variant: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    backbone = kwargs.pop("backbone", FAMILIES[variant].backbone)
    width = kwargs.pop("width", _WIDTH)
    kwargs["pretrained_cfg"] = kwargs.get("pretrained_cfg") or {**_cfg(backbone), "architecture": variant}
    return build_model_with_cfg(
        lambda **rest: _build(variant, backbone, width, **rest),
        variant,
        pretrained,
        feature_cfg=features_cfg(backbone, kwargs),
        **kwargs,
    )


register_table(
    _create_narrow,
    {
        name: f"timm's {family.kind.__name__} `backbone` ({family.backbone}) with its channels times `width`."
        for name, family in FAMILIES.items()
    },
)
