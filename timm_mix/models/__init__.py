"""timm models: importing this package registers them."""

# the wrappers at the end build on the others
from timm_mix.models import (  # isort: skip
    densenet_cifar,
    efficientnet_published,
    narrow,
    preact_resnet_cifar,
    pyramidnet_cifar,
    resnet_cifar,
    resnet_e,
    resnexst,
    se_resnet,
    shake_shake_cifar,
    wide_resnet_cifar,
)
from timm_mix.models import mixmo, splitnet
from timm_mix.models._pretrained import register_weights

__all__ = [
    "densenet_cifar",
    "efficientnet_published",
    "mixmo",
    "narrow",
    "preact_resnet_cifar",
    "pyramidnet_cifar",
    "resnet_cifar",
    "resnet_e",
    "resnexst",
    "se_resnet",
    "shake_shake_cifar",
    "splitnet",
    "wide_resnet_cifar",
]

register_weights()
