"""timm models: importing this package registers them."""

from timm_mix.models import preact_resnet_cifar, wide_resnet_cifar  # isort: skip  (the wrappers below build on them)
from timm_mix.models import densenet_cifar, pyramidnet_cifar, resnet_cifar, shake_shake_cifar  # isort: skip
from timm_mix.models import mixmo, splitnet

__all__ = [
    "densenet_cifar",
    "mixmo",
    "preact_resnet_cifar",
    "pyramidnet_cifar",
    "resnet_cifar",
    "shake_shake_cifar",
    "splitnet",
    "wide_resnet_cifar",
]
