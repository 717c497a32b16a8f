"""timm models: importing this package registers them."""

from timm_mix.models import wide_resnet_cifar  # isort: skip  (the wrappers below build on it)
from timm_mix.models import mixmo, splitnet

__all__ = ["mixmo", "splitnet", "wide_resnet_cifar"]
