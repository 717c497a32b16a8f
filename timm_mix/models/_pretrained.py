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
from pathlib import Path
from typing import Any, Dict, List, Optional

from timm.models import DefaultCfg, PretrainedCfg, model_entrypoint, register_model

__all__ = ["ORGANISATION", "TAGS", "hub_id", "is_declared", "register_weights", "shipped_folder"]

_logger = logging.getLogger(__name__)

ORGANISATION = os.environ.get("TIMM_MIX_HUB_ORG") or "timm-mix"
PUBLISHED = False  # True once all of them are on the Hub: then a tag needs its config.json here and nothing more

# arch -> its tags. The first whose data settings are the architecture's own is what pretrained=True means without tag.
TAGS: Dict[str, List[str]] = {
    "mixmo_wrn16_2_m2": ["cifar100", "digits"],
    "splitnet_wrn16_4_s2": ["cifar100", "digits"],
    "wrn16_2": [
        *("mixmo_m2_cifar100", "recursivemix_cifar100", "automix_cifar100"),
        *("mixmo_m2_digits", "recursivemix_digits", "automix_digits"),
    ],
}

_PACKAGE = Path(__file__).resolve().parents[1]
_FIELDS = {field.name for field in fields(PretrainedCfg)}
# what a model without weights takes from its default cfg, so that it stays as it is whatever weights there are
_DATA = ("num_classes", "input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode")


def shipped_folder() -> Path:
    """Where the weights lie: in the checkout, else in the installed package."""
    checkout = _PACKAGE.parent / "model_cards" / "weights"
    return checkout if checkout.is_dir() else _PACKAGE / "_weights"


def is_declared(name: str) -> bool:
    """Whether `arch.tag` is one of TAGS, whether or not its weights are there."""
    arch, _, tag = name.partition(".")
    return tag in TAGS.get(arch, ())


def hub_id(name: str) -> str:
    """The repository of `arch.tag` on the Hub."""
    return f"{ORGANISATION}/{name}"


def register_weights(folder: Optional[Path] = None) -> None:
    """Register every tag of TAGS whose weights are there.

    From outside the families' files, because those of the backbones also serve where nothing but timm is installed.
    """
    folder = shipped_folder() if folder is None else folder
    for arch, tags in TAGS.items():
        found = {tag: _cfg(folder, arch, tag) for tag in tags}
        _register(arch, {tag: cfg for tag, cfg in found.items() if cfg is not None})


def _register(arch: str, tagged: Dict[str, PretrainedCfg]) -> None:
    if not tagged:
        return
    entrypoint = model_entrypoint(arch)
    module: Any = sys.modules[entrypoint.__module__]
    plain = module.default_cfgs[arch].cfgs[""]
    tags = deque(tagged)
    default = next((tag for tag, cfg in tagged.items() if _same_data(cfg, plain)), None)
    if default is None:
        tags.appendleft("")
    else:
        tags.remove(default)
        tags.appendleft(default)
    module.default_cfgs[arch] = DefaultCfg(tags=tags, cfgs={"": plain, **tagged}, is_pretrained=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # the registration is overwritten on purpose
        register_model(entrypoint)


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


def _same_data(one: PretrainedCfg, other: PretrainedCfg) -> bool:
    return all(getattr(one, key) == getattr(other, key) for key in _DATA)
