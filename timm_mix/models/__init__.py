"""timm models: importing this package registers them."""

from timm_mix.models import efficientnet_published, preact_resnet_cifar, wide_resnet_cifar  # isort: skip  (the wrappers below build on them)
from timm_mix.models import mixmo, narrow, splitnet

__all__ = ["efficientnet_published", "mixmo", "narrow", "preact_resnet_cifar", "splitnet", "wide_resnet_cifar"]
