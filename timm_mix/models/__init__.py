"""timm models: importing this package registers them."""

from timm_mix.models import preact_resnet_cifar, wide_resnet_cifar  # isort: skip  (the wrappers below build on them)
from timm_mix.models import efficientnet_published, narrow  # isort: skip
from timm_mix.models import mixmo, splitnet

__all__ = ["efficientnet_published", "mixmo", "narrow", "preact_resnet_cifar", "splitnet", "wide_resnet_cifar"]
