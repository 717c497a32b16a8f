"""Names in MixMo's official checkpoints (arXiv:2103.06132) -> ours.

published              model with members      plain model (M = 1)
list_conv1.<i>.        encoders.<i>.           -
list_fc.<i>.           heads.<i>.              -
*.shortcut.0.weight    core.*.shortcut.weight  *.shortcut.weight
everything else        core.*                  the same
"""

from collections.abc import Iterable

from torch import nn

__all__ = ["NETWORKS", "model_name", "recognises", "rename"]

# published name -> ours, and the members that it is registered with
NETWORKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "wideresnet_28_10": ("wrn28_10", (1,)),
    "wideresnetmixmo_28_10": ("mixmo_wrn28_10", (2, 3, 4)),
    "preactresnet_18_1": ("preact_resnet18", (1,)),
    "preactresnet_18_2": ("preact_resnet18_w2", (1,)),
    "preactresnet_18_3": ("preact_resnet18_w3", (1,)),
    "preactresnetmixmo_18_1": ("mixmo_preact_resnet18", (2, 3, 4)),
    "preactresnetmixmo_18_2": ("mixmo_preact_resnet18_w2", (2, 3, 4)),
    "preactresnetmixmo_18_3": ("mixmo_preact_resnet18_w3", (2, 3, 4)),
}


def model_name(name: str, members: int) -> str:
    """The registered name of one of NETWORKS with that number of members.

    >>> model_name("mixmo_wrn28_10", 2), model_name("wrn28_10", 1)
    ('mixmo_wrn28_10_m2', 'wrn28_10')
    """
    return name if members == 1 else f"{name}_m{members}"


def recognises(keys: Iterable[str]) -> bool:
    """Whether keys may be of this source: the M = 1 baselines have no sign of their own, so all may be.

    >>> recognises(["list_conv1.0.weight", "fc.weight"])
    True
    """
    return True


def rename(keys: Iterable[str], model: nn.Module) -> dict[str, str | None]:
    """Our name of every official key, in the given model.

    >>> rename(["list_conv1.0.weight", "layer1.0.shortcut.0.weight"], timm.create_model("mixmo_wrn16_2_m2"))
    {'list_conv1.0.weight': 'encoders.0.weight', 'layer1.0.shortcut.0.weight': 'core.layer1.0.shortcut.weight'}
    """
    return {key: _our_name(key, with_members=hasattr(model, "encoders")) for key in keys}


def _our_name(key: str, with_members: bool) -> str:
    key = key.removeprefix("module.").replace(".shortcut.0.", ".shortcut.")
    if not with_members:
        return key
    for theirs, ours in (("list_conv1.", "encoders."), ("list_fc.", "heads.")):
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return f"core.{key}"
