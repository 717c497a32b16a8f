"""Official checkpoints -> our models: those of MixMo (arXiv:2103.06132), its M = 1 baselines included.

The published networks and ours have the same layers, so that converting is renaming:

    published              model with members      plain model (M = 1)
    list_conv1.<i>.        encoders.<i>.           -
    list_fc.<i>.           heads.<i>.              -
    *.shortcut.0.weight    core.*.shortcut.weight  *.shortcut.weight
    everything else        core.*                  the same
"""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from timm.utils import unwrap_model
from torch import nn

__all__ = ["load_official", "official_model"]

# (source, arch) -> our name, and the members that it is registered with
_OFFICIAL: dict[tuple[str, str], tuple[str, tuple[int, ...]]] = {
    ("mixmo", "wideresnet_28_10"): ("wrn28_10", (1,)),
    ("mixmo", "wideresnetmixmo_28_10"): ("mixmo_wrn28_10", (2, 3, 4)),
    ("mixmo", "preactresnet_18_1"): ("preact_resnet18", (1,)),
    ("mixmo", "preactresnet_18_2"): ("preact_resnet18_w2", (1,)),
    ("mixmo", "preactresnet_18_3"): ("preact_resnet18_w3", (1,)),
    ("mixmo", "preactresnetmixmo_18_1"): ("mixmo_preact_resnet18", (2, 3, 4)),
    ("mixmo", "preactresnetmixmo_18_2"): ("mixmo_preact_resnet18_w2", (2, 3, 4)),
    ("mixmo", "preactresnetmixmo_18_3"): ("mixmo_preact_resnet18_w3", (2, 3, 4)),
}
_SHOWN = 3  # names per kind of mismatch in an error


def official_model(source: str, arch: str, members: int = 1) -> str:
    """The registered model name that an official checkpoint loads into.

    Args:
        source: the published code, 'mixmo'.
        arch: its name of the network, such as 'wideresnet_28_10' or 'preactresnetmixmo_18_2'; a suffix '_m<members>'
            is allowed.
        members: M, 1 for the baselines.
    Raises:
        ValueError: a source, arch or number of members that was not published; it lists those that were.
    """
    sources = sorted({known for known, _ in _OFFICIAL})
    if source not in sources:
        raise ValueError(f"source must be one of {', '.join(sources)}, got {source!r}")
    key = (source, str(arch).removesuffix(f"_m{members}"))
    if key not in _OFFICIAL:
        archs = ", ".join(arch for known, arch in _OFFICIAL if known == source)
        raise ValueError(f"arch of source {source!r} must be one of {archs}, got {arch!r} with members={members!r}")
    name, known_members = _OFFICIAL[key]
    if isinstance(members, bool) or members not in known_members:
        known = " or ".join(map(str, known_members))
        raise ValueError(f"members of {arch} must be {known}, got {members!r}")
    return name if members == 1 else f"{name}_m{members}"


def load_official(model: nn.Module, source: str | Path | Mapping[str, Any]) -> nn.Module:
    """Load an official checkpoint: every tensor of the file, and every one of the model; returns the model.

    Args:
        model: as timm.create_model(official_model(...), num_classes=...) makes it; it is unchanged after an error.
        source: path of the file, what torch.load made of it, or the network's state_dict.
    Raises:
        ValueError: not a checkpoint, one that needs more than tensors and plain containers, or one of another network.
    """
    content = source if isinstance(source, Mapping) else _read(source)
    target = unwrap_model(model)
    theirs = _network_state(content)
    own = target.state_dict()
    renamed: dict[str, torch.Tensor] = {}
    official: dict[str, str] = {}
    for key, tensor in theirs.items():
        name = _our_name(key, with_members=hasattr(target, "encoders"))
        if name in renamed:
            raise ValueError(f"the checkpoint holds {name!r} twice, as {official[name]!r} and as {key!r}; remove one")
        renamed[name], official[name] = tensor, key
    _check_match(own, renamed, official)
    target.load_state_dict(renamed, strict=True)
    return model


def _our_name(key: str, with_members: bool) -> str:
    key = key.removeprefix("module.").replace(".shortcut.0.", ".shortcut.")
    if not with_members:
        return key
    for theirs, ours in (("list_conv1.", "encoders."), ("list_fc.", "heads.")):
        if key.startswith(theirs):
            return ours + key.removeprefix(theirs)
    return f"core.{key}"


def _read(source: Any) -> Any:
    if not isinstance(source, (str, Path)) or not Path(source).is_file():
        raise ValueError(f"source must be an existing checkpoint file or a state_dict, got {_short(source)}")
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = re.search(r"GLOBAL (\S+)", str(error))
        raise ValueError(
            f"{source} must load with torch.load(weights_only=True), but needs "
            f"{needs[1] if needs else 'more than tensors'} or is damaged; if you trust it, give its state_dict instead"
        ) from error
    except Exception as error:  # a damaged file ends in RuntimeError, EOFError, KeyError, ...
        raise ValueError(
            f"{source} must be a file that torch.save wrote, got {_short(error)}; fetch it anew"
        ) from error


def _network_state(content: Any) -> Mapping[str, torch.Tensor]:
    """The state_dict in a checkpoint: the entry `<wrapper>_state_dict` that holds tensors, or the whole."""
    if _is_state(content):
        return content
    entries = content.items() if isinstance(content, Mapping) else ()
    found = {key: value for key, value in entries if str(key).endswith("state_dict") and _is_state(value)}
    if len(found) != 1:
        names = ", ".join(map(repr, found)) or f"none in {_short(list(content) if entries else content)}"
        raise ValueError(f"a checkpoint must hold one '<wrapper>_state_dict' of tensors or be one, got {names}")
    return next(iter(found.values()))


def _is_state(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(k, str) and isinstance(v, torch.Tensor) for k, v in value.items())
    )


def _check_match(own: Mapping[str, torch.Tensor], renamed: dict[str, torch.Tensor], official: dict[str, str]) -> None:
    differ = {
        "missing": [name for name in own if name not in renamed],
        "unexpected": [official[name] for name in renamed if name not in own],
        "of another shape": [
            f"{official[name]} (wanted {list(own[name].shape)}, got {list(tensor.shape)})"
            for name, tensor in renamed.items()
            if name in own and own[name].shape != tensor.shape
        ],
    }
    parts = [
        f"{', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''} {kind}"
        for kind, names in differ.items()
        if names
    ]
    if parts:
        raise ValueError(
            f"the checkpoint is of another network: {'; '.join(parts)}; create the model that official_model() names, "
            "with the checkpoint's num_classes"
        )


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return f"{type(value).__name__} {text[:100]!r}"
