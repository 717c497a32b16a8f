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
from timm_mix.models._members import prefix_matcher, reduce_members
from timm_mix.models._pretrained import hub_id, is_declared, register_weights, shipped_folder

__all__ = [
    "densenet_cifar",
    "efficientnet_published",
    "hub_id",
    "is_declared",
    "mixmo",
    "narrow",
    "preact_resnet_cifar",
    "prefix_matcher",
    "pyramidnet_cifar",
    "reduce_members",
    "resnet_cifar",
    "resnet_e",
    "resnexst",
    "se_resnet",
    "shake_shake_cifar",
    "shipped_folder",
    "splitnet",
    "wide_resnet_cifar",
]

register_weights()
