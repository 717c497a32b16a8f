"""timm models: importing this package registers them."""

from timm_mix.models import preact_resnet_cifar, wide_resnet_cifar  # isort: skip  (the wrappers below build on them)
from timm_mix.models import resnet_e, resnexst, se_resnet  # isort: skip
from timm_mix.models import mixmo, splitnet

__all__ = ["mixmo", "preact_resnet_cifar", "resnet_e", "resnexst", "se_resnet", "splitnet", "wide_resnet_cifar"]
