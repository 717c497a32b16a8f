"""ResNet, wide ResNet and ResNeXt as SplitNet trains them on ImageNet (Zhao et al., arXiv:2011.14660).

timm's variant "e": a deep stem of 64, 64 and 128 channels, shortcuts with average pooling where the map shrinks. All
widths of a part are timm's keyword arguments: `channels`, `stem_width`, `base_width`, `cardinality`.

>>> import timm, torch, timm_mix
>>> model = timm.create_model("resnet50e", layers=(1, 1, 1, 1), channels=(8, 16, 32, 64), num_classes=5)
>>> model(torch.zeros(2, 3, 64, 64)).shape
torch.Size([2, 5])
"""

from typing import Any, Dict

from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnet import Bottleneck, ResNet

from timm_mix.models._entrypoints import register_table
from timm_mix.models._published import imagenet_cfg, init_classifier

__all__ = ["NETS"]

_LAYERS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}

# name -> arguments of timm's ResNet; drop_rate: the published dropout in front of the classifier
NETS: Dict[str, Dict[str, Any]] = {
    "resnet50e": {"layers": _LAYERS[50]},
    "resnet101e": {"layers": _LAYERS[101], "drop_rate": 0.1},
    "resnet152e": {"layers": _LAYERS[152]},
    "resnet200e": {"layers": _LAYERS[200]},
    "wide_resnet50_2e": {"layers": _LAYERS[50], "base_width": 128},
    "wide_resnet50_3e": {"layers": _LAYERS[50], "base_width": 192},
    "wide_resnet101_2e": {"layers": _LAYERS[101], "base_width": 128},
    "resnext50e_32x4d": {"layers": _LAYERS[50], "cardinality": 32, "base_width": 4},
    "resnext101e_32x4d": {"layers": _LAYERS[101], "cardinality": 32, "base_width": 4},
    "resnext101e_64x4d": {"layers": _LAYERS[101], "cardinality": 64, "base_width": 4},
}
default_cfgs = generate_default_cfgs({name: imagenet_cfg() for name in NETS})


def _build(**kwargs: Any) -> ResNet:
    model = ResNet(Bottleneck, stem_type="deep", avg_down=True, **kwargs)
    init_classifier(model)
    return model


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ResNet:
    return build_model_with_cfg(_build, variant, pretrained, **{**NETS[variant], **kwargs})


register_table(_create, {name: f"{name}: deep stem 64, 64, 128 and average-pool shortcuts." for name in NETS})
