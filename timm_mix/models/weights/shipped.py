"""Weights that come with the package: a table of tags, registered where their files lie.

A checkout holds them in model_cards/weights/<arch>.<tag>/, a wheel in timm_mix/_weights/. config.json says what they
were trained for, model.safetensors are the weights; a tag without them is not registered.
"""

import json
import logging
import os
import sys
import warnings
from collections import deque
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Set

from timm.models import DefaultCfg, PretrainedCfg, get_pretrained_cfg, model_entrypoint, register_model
from torch import nn

from timm_mix.places import shipped

__all__ = [
    "ORGANISATION",
    "TAGS",
    "hub_id",
    "is_declared",
    "register_tags",
    "register_weights",
    "shipped_folder",
    "untrained_cfg",
]

_logger = logging.getLogger(__name__)

ORGANISATION = os.environ.get("TIMM_MIX_HUB_ORG") or "timm-mix"
PUBLISHED = False  # True once all of them are on the Hub: then a tag needs its config.json here and nothing more

# arch -> its tags. The first with its own classes and image size is what pretrained=True takes without a tag.
TAGS: Dict[str, List[str]] = {
    "mixmo_wrn16_2_m2": ["cifar100", "digits"],
    "splitnet_wrn16_2_s2": ["cifar100", "digits"],
    "splitnet_wrn16_4_s2": ["cifar100", "digits"],
    "wrn16_2": [
        *("mixmo_m2_cifar100", "recursivemix_cifar100", "automix_cifar100"),
        *("mixmo_m2_digits", "recursivemix_digits", "automix_digits"),
    ],
}

_TAGGED: Set[str] = set()  # architectures whose tags are registered
_FIELDS = {field.name for field in fields(PretrainedCfg)}


def shipped_folder() -> Path:
    """Where the weights lie: in the checkout, else in the installed package.

    >>> (shipped_folder() / "README.md").is_file()
    True
    """
    return shipped("model_cards/weights", "_weights")


def is_declared(name: str) -> bool:
    """Whether `arch.tag` is one of TAGS, whether or not its weights are there.

    >>> is_declared("wrn16_2.mixmo_m2_digits"), is_declared("wrn16_2")
    (True, False)
    """
    arch, _, tag = name.partition(".")
    return tag in TAGS.get(arch, ())


def hub_id(name: str) -> str:
    """The repository of `arch.tag` on the Hub.

    >>> hub_id("wrn16_2.mixmo_m2_digits")
    '.../wrn16_2.mixmo_m2_digits'
    """
    return f"{ORGANISATION}/{name}"


def untrained_cfg(name: str) -> Optional[PretrainedCfg]:
    """timm's cfg of a name; of an architecture with weights of ours and no tag, the one that it has without them.

    >>> untrained_cfg("wrn16_2").num_classes, get_pretrained_cfg("wrn16_2.mixmo_m2_digits").num_classes
    (100, 10)
    """
    if name in TAGS or name in _TAGGED:
        return replace(_untagged(name), architecture=name)
    return get_pretrained_cfg(name)


def register_weights(folder: Optional[Path] = None) -> None:
    """Register every tag of TAGS whose weights are there.

    A model that is created without weights stays what it is without them, mean and standard deviation included; the
    default tag counts where pretrained=True stands without a tag, and for what timm says of the name.

    From outside the families' files, because those of the backbones also serve where nothing but timm is installed.

    >>> register_weights(Path("no_weights_here"))  # registers nothing; those that ship were registered by the import
    >>> timm.list_pretrained("wrn16_2.recursivemix_*")
    ['wrn16_2.recursivemix_cifar100', 'wrn16_2.recursivemix_digits']
    """
    folder = shipped_folder() if folder is None else folder
    for arch, tags in TAGS.items():
        found = {tag: _cfg(folder, arch, tag) for tag in tags}
        there = {tag: cfg for tag, cfg in found.items() if cfg is not None}
        plain = _untagged(arch)
        register_tags(arch, there, next((tag for tag, cfg in there.items() if _same_task(cfg, plain)), None))


def register_tags(arch: str, tagged: Dict[str, PretrainedCfg], default: Optional[str]) -> None:
    """Give an architecture of ours pretrained tags, behind those that it has; the others keep their order.

    A model that is created without weights stays what it is without them.

    Args:
        arch: a registered architecture without tags of timm's.
        tagged: tag -> cfg.
        default: the tag that pretrained=True takes without one, unless there is a default already.

    >>> register_tags("wrn16_2", {}, None)  # none: nothing changes
    >>> timm.get_pretrained_cfg("wrn16_2").tag
    'mixmo_m2_cifar100'
    """
    if not tagged:
        return
    module = _module(arch)
    known: DefaultCfg = module.default_cfgs[arch]
    cfgs = {"": _untagged(arch), **tagged, **known.cfgs}
    first = known.tags[0] or default or ""
    tags = deque([first, *(tag for tag in (*filter(None, known.tags), *tagged) if tag != first)])
    module.default_cfgs[arch] = DefaultCfg(tags=deque(dict.fromkeys(tags)), cfgs=cfgs, is_pretrained=True)
    create = model_entrypoint(arch)
    create = getattr(create, "__wrapped__", create)
    entrypoint = _untrained_as_before(create) if first else create
    setattr(module, arch, entrypoint)
    _TAGGED.add(arch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the registration is overwritten on purpose
        register_model(entrypoint)


def _untrained_as_before(create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    @wraps(create)
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> nn.Module:
        if not pretrained and not kwargs.get("pretrained_cfg"):
            kwargs["pretrained_cfg"] = untrained_cfg(create.__name__)
        return create(pretrained, **kwargs)

    return entrypoint


def _module(arch: str) -> Any:
    return sys.modules[model_entrypoint(arch).__module__]


def _untagged(arch: str) -> PretrainedCfg:
    return _module(arch).default_cfgs[arch].cfgs[""]


def _cfg(folder: Path, arch: str, tag: str) -> Optional[PretrainedCfg]:
    """What config.json says, with the place of the weights; None where they are not."""
    place = folder / f"{arch}.{tag}"
    weights = place / "model.safetensors"
    if not (place / "config.json").is_file() or not (PUBLISHED or weights.is_file()):
        return None
    try:
        config = json.loads((place / "config.json").read_text(encoding="utf-8"))
        values = {**config["pretrained_cfg"], "num_classes": config["num_classes"]}
    except (ValueError, KeyError, TypeError) as error:
        _logger.warning("%s is damaged (%s), its weights are not registered; fetch it anew", place, error)
        return None
    values["label_names"] = config.get("label_names")
    known = {key: _tuples(value) for key, value in values.items() if key in _FIELDS}
    cfg = PretrainedCfg(**known)
    return replace(cfg, file=str(weights) if weights.is_file() else None, hf_hub_id=hub_id(f"{arch}.{tag}"))


def _tuples(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _same_task(one: PretrainedCfg, other: PretrainedCfg) -> bool:
    return (one.num_classes, one.input_size) == (other.num_classes, other.input_size)
