"""ResNeXSt: ResNeSt with grouped convolutions, as SplitNet trains it on ImageNet (Zhao et al., arXiv:2011.14660).

`resnexst<depth>_<groups>x<width>d`: split attention of radix 2 over `groups` groups. Differs from timm's ResNeSt in the
stem pool, which rounds up, in layer2 to layer4, where every block averages over 3 x 3 behind its split attention (in
ResNeSt only the one that shrinks the map), and in the last norms, which start at one. `cardinality` divides it.

>>> import timm, torch, timm_mix
>>> model = timm.create_model("resnexst50_4x16d", layers=(1, 1, 1, 1), cardinality=2, num_classes=5)
>>> model(torch.zeros(2, 3, 64, 64)).shape
torch.Size([2, 5])
"""

from typing import Any, Dict

from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models.resnest import ResNestBottleneck
from timm.models.resnet import ResNet
from torch import nn

from timm_mix.models._entrypoints import register_table
from timm_mix.models._published import imagenet_cfg, init_classifier, use_ceil_pool

__all__ = ["NETS"]

# name -> arguments of timm's ResNet; drop_rate: the published dropout in front of the classifier
NETS: Dict[str, Dict[str, Any]] = {
    "resnexst50_4x16d": {"layers": (3, 4, 6, 3), "cardinality": 4, "base_width": 16},
    "resnexst50_8x16d": {"layers": (3, 4, 6, 3), "cardinality": 8, "base_width": 16},
    "resnexst50_4x32d": {"layers": (3, 4, 6, 3), "cardinality": 4, "base_width": 32},
    "resnexst101_8x32d": {"layers": (3, 4, 23, 3), "cardinality": 8, "base_width": 32, "drop_rate": 0.1},
}
default_cfgs = generate_default_cfgs({name: imagenet_cfg() for name in NETS})


def _build(zero_init_last: bool = False, **kwargs: Any) -> ResNet:
    model = ResNet(
        ResNestBottleneck,
        stem_type="deep",
        avg_down=True,
        zero_init_last=zero_init_last,
        block_args={"radix": 2, "avd": True},
        **kwargs,
    )
    use_ceil_pool(model)
    for block in (*model.layer2, *model.layer3, *model.layer4):
        if block.avd_last is None:
            block.avd_last = nn.AvgPool2d(3, stride=1, padding=1)
    init_classifier(model)
    return model


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ResNet:
    return build_model_with_cfg(_build, variant, pretrained, **{**NETS[variant], **kwargs})


register_table(_create, {name: f"{name}: ResNeSt of radix 2 with grouped convolutions." for name in NETS})
