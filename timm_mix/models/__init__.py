"""timm models: importing this package registers them.

>>> import timm, torch, timm_mix
>>> model = timm.create_model("mixmo_wrn16_2_m2", num_classes=5)
>>> model(torch.zeros(2, 3, 32, 32), return_members=True).shape
torch.Size([2, 2, 5])
"""

from typing import Any

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
from timm_mix.models._batch_norm import build_with_batch_norm, set_batch_norm
from timm_mix.models._members import flatten_members, prefix_matcher, reduce_members
from timm_mix.models.weights.shipped import hub_id, is_declared, register_weights, shipped_folder

__all__ = [
    "densenet_cifar",
    "efficientnet_published",
    "flatten_members",
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
    "set_batch_norm",
    "shake_shake_cifar",
    "shipped_folder",
    "splitnet",
    "wide_resnet_cifar",
]

# such files import nothing of ours, so that each can be taken to timm: they get bn_momentum and bn_eps here
_PLAIN: Any = (densenet_cifar, efficientnet_published, narrow, preact_resnet_cifar, pyramidnet_cifar, resnet_cifar)
_PLAIN += (resnet_e, resnexst, se_resnet, shake_shake_cifar, wide_resnet_cifar)
for _family in _PLAIN:
    _family.build_model_with_cfg = build_with_batch_norm

register_weights()
mixmo.register_inherited()
splitnet.register_inherited()
