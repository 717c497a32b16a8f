"""Names in openmixup's checkpoints of AutoMix (arXiv:2103.13027) and SAMix (arXiv:2111.15454) -> ours.

A checkpoint holds two copies of the network, q (trained) and k (its momentum average), each with two heads, one
(trained on plain images) and mix (on mixed ones), and the Mix Block. One copy with one of its heads is a plain model:

    backbone_<network>.              nothing: the names of torchvision and timm
    head_<head>_<network>.fc.        fc.
    backbone., head., mix_block. and the other copies      left out; the first two are k and head_one_k again

The wide ResNet has block<n>.layer.<n> -> layer<n>.<n> and convShortcut -> shortcut.
"""

import re
from collections.abc import Iterable

from torch import nn

__all__ = ["CHOICES", "LEFT_OUT", "NETWORKS", "model_name", "recognises", "rename"]

# published name -> ours; all are single networks
NETWORKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "cifar100_resnet18_automix": ("resnet18_cifar", (1,)),
    "cifar100_resnet18_samix": ("resnet18_cifar", (1,)),
    "cifar100_wrn28_8_automix": ("wrn28_8_openmixup", (1,)),
    "imagenet_resnet18_automix": ("resnet18", (1,)),
    "imagenet_resnet50_automix": ("resnet50", (1,)),
}
CHOICES = {"network": ("k", "q"), "head": ("one", "mix")}  # the first of each is the published one
LEFT_OUT = "only backbone_{network} and head_{head}_{network} are loaded"

_LEFT_OUT = re.compile(r"(backbone(_[qk])?|head(_(one|mix)_[qk])?|mix_block)\.")


def model_name(name: str, members: int) -> str:
    """The registered name of one of NETWORKS, which is that name.

    >>> model_name("resnet18_cifar", 1)
    'resnet18_cifar'
    """
    return name


def recognises(keys: Iterable[str]) -> bool:
    """Whether some key is one of a copy, k or q.

    >>> recognises(["backbone_k.conv1.weight", "mix_block.key.weight"]), recognises(["conv1.weight"])
    (True, False)
    """
    return any(re.match(r"backbone_[qk]\.", key.removeprefix("module.")) for key in keys)


def rename(keys: Iterable[str], model: nn.Module, network: str = "k", head: str = "one") -> dict[str, str | None]:
    """Our name of every official key, in any model; None for what is no part of that network with that head.

    >>> rename(["backbone_k.conv1.weight", "head_mix_k.fc.weight"], nn.Identity(), network="k", head="mix")
    {'backbone_k.conv1.weight': 'conv1.weight', 'head_mix_k.fc.weight': 'fc.weight'}
    >>> rename(["backbone_q.conv1.weight"], nn.Identity())
    {'backbone_q.conv1.weight': None}
    """
    return {
        key: _our_name(key.removeprefix("module."), f"backbone_{network}.", f"head_{head}_{network}.") for key in keys
    }


def _our_name(key: str, backbone: str, head: str) -> str | None:
    if key.startswith(head):
        return key.removeprefix(head)
    if key.startswith(backbone):
        key = re.sub(r"^block(\d)\.layer\.", r"layer\1.", key.removeprefix(backbone))
        return key.replace(".convShortcut.", ".shortcut.")
    return None if _LEFT_OUT.match(key) else key
