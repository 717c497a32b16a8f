"""Official checkpoints -> our models.

Those of MixMo (arXiv:2103.06132), SplitNet (arXiv:2011.14660), RecursiveMix (arXiv:2203.06844), and AutoMix
(arXiv:2103.13027) and SAMix (arXiv:2111.15454) as openmixup saves them. The published networks and ours have the same
layers, so that converting is renaming. The names of each source and their places in our models are in a file of
its own.
"""

import logging
import pickle
import re
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import timm
import torch
from timm.utils import unwrap_model
from torch import nn

from timm_mix.convert import mixmo, openmixup, recursivemix, splitnet

__all__ = ["load_official", "official_classes", "official_model", "official_network", "read_official"]

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Source:
    """What one published code calls its networks and their tensors."""

    networks: Mapping[str, tuple[str, tuple[int, ...]]]  # published name -> ours, and its numbers of members
    model_name: Callable[[str, int], str]  # (our name, members) -> the registered name
    recognises: Callable[[Iterable[str]], bool]  # are these the keys of its state_dict?
    rename: Callable[..., dict[str, str | None]]  # (keys, model, **choices): key -> ours in it; None: left out
    left_out: str = ""  # why, with the choices as fields
    choices: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # argument -> what it may be, default first


def _source(module: Any) -> _Source:
    left_out, choices = getattr(module, "LEFT_OUT", ""), getattr(module, "CHOICES", {})
    return _Source(module.NETWORKS, module.model_name, module.recognises, module.rename, left_out, choices)


_SOURCES = {  # the first that recognises a checkpoint takes it
    "splitnet": _source(splitnet),
    "recursivemix": _source(recursivemix),
    "openmixup": _source(openmixup),
    "mixmo": _source(mixmo),  # takes all that is left
}
_SHOWN = 3  # names per kind of mismatch in an error
_RELEASED = "model_best.pth.tar"  # the checkpoint in a released zip


def official_model(source: str, arch: str, members: int = 1) -> str:
    """The registered model name that an official checkpoint loads into.

    Args:
        source: the published code, 'mixmo', 'splitnet', 'recursivemix' or 'openmixup' (AutoMix and SAMix).
        arch: its name of the network, such as 'wideresnet_28_10', 'resnet50', 'efficientnetb0@cifar' (the variant
            for small images, '@lightnet' the one with symmetric padding), 'cifar_resnet18' or
            'cifar100_resnet18_automix'; MixMo's may end in '_m<members>'.
        members: M or S, 1 for the baselines and for all of RecursiveMix, AutoMix and SAMix.
    Raises:
        ValueError: a source, arch or number of members that was not published; it lists those that were. Or parts
            that have no registered name; see official_network.

    >>> official_model("mixmo", "wideresnetmixmo_28_10", members=2), official_model("recursivemix", "cifar_resnet18")
    ('mixmo_wrn28_10_m2', 'resnet18_cifar')
    """
    name, members = _published(source, arch, members)
    return _SOURCES[source].model_name(name, members)


def official_network(source: str, arch: str, members: int = 1) -> tuple[str, dict[str, Any]]:
    """The name and the keywords by which timm.create_model makes what an official checkpoint loads into.

    Every published network has them, the parts without a registered name of their own, too.

    Args: those of official_model.
    Raises:
        ValueError: a source, arch or number of members that was not published.

    >>> official_network("splitnet", "resnet110", 16)
    ('splitnet', {'backbone': 'resnet110', 'split': 16})
    >>> official_network("mixmo", "wideresnetmixmo_28_10", 2)
    ('mixmo_wrn28_10_m2', {})
    """
    name, members = _published(source, arch, members)
    registered = f"splitnet_{name}_s{members}"
    if source == "splitnet" and members > 1 and not timm.is_model(registered):
        return "splitnet", {"backbone": name, "split": members}
    return _SOURCES[source].model_name(name, members), {}


def _published(source: str, arch: str, members: int) -> tuple[str, int]:
    """Our name of the plain network, and the members."""
    sources = sorted(_SOURCES)
    if source not in sources:
        raise ValueError(f"source must be one of {', '.join(sources)}, got {source!r}")
    networks = _SOURCES[source].networks
    key = str(arch).removesuffix(f"_m{members}")
    if key not in networks:
        raise ValueError(
            f"arch of source {source!r} must be one of {', '.join(networks)}, got {arch!r} with members={members!r}"
        )
    name, known_members = networks[key]
    if isinstance(members, bool) or members not in known_members:
        known = " or ".join(map(str, known_members))
        raise ValueError(f"members of {arch} must be {known}, got {members!r}")
    return name, members


def load_official(
    model: nn.Module,
    source: str | Path | Mapping[str, Any],
    *,
    network: str | None = None,
    head: str | None = None,
) -> nn.Module:
    """Load an official checkpoint: every tensor of the file, and every one of the model; returns the model.

    What has no place is left out with a line in the log: the shortcuts that the published Shake-Shake builds in blocks
    of one width and never runs, RecursiveMix's region head, and all but one network and head of AutoMix and SAMix.

    Args:
        model: as timm.create_model(official_model(...), num_classes=...) makes it; it is unchanged after an error.
        source: path of the file or of the released zip that holds it, what torch.load made of it, or the network's
            state_dict.
        network: AutoMix and SAMix only: 'k' (the momentum copy; default, as published) or 'q' (the trained one).
        head: AutoMix and SAMix only: 'one' (trained on plain images; default, as published) or 'mix' (on mixed ones).
    Raises:
        ValueError: not a checkpoint, one that needs more than tensors and plain containers, one of another network, or
            a network or head that the checkpoint does not offer.

    >>> theirs = timm.create_model("wrn16_2", depth=10, num_classes=5).state_dict()
    >>> checkpoint = {"classifier_state_dict": {f"module.{key}": value for key, value in theirs.items()}, "epoch": 300}
    >>> model = load_official(timm.create_model("wrn16_2", depth=10, num_classes=5), checkpoint)
    >>> torch.equal(model.fc.weight, theirs["fc.weight"])
    True
    """
    content = source if isinstance(source, Mapping) else _read(source)
    target = unwrap_model(model)
    theirs = _network_state(content)
    origin = next(name for name, known in _SOURCES.items() if known.recognises(theirs))
    published = _SOURCES[origin]
    choices = _choices(origin, {"network": network, "head": head})
    names = published.rename(theirs, target, **choices)
    renamed: dict[str, torch.Tensor] = {}
    official: dict[str, str] = {}
    for key, tensor in theirs.items():
        name = names[key]
        if name is None:
            continue
        if name in renamed:
            raise ValueError(f"the checkpoint holds {name!r} twice, as {official[name]!r} and as {key!r}; remove one")
        renamed[name], official[name] = tensor, key
    _check_match(target.state_dict(), renamed, official)
    target.load_state_dict(renamed, strict=True)
    unused = [key for key in theirs if names[key] is None]
    if unused:
        _logger.warning("left out, because %s: %s", published.left_out.format(**choices), _some(unused))
    return model


def read_official(source: str | Path) -> Mapping[str, torch.Tensor]:
    """The state_dict in an official checkpoint, as load_official takes it.

    Raises:
        ValueError: not a checkpoint, or one that needs more than tensors and plain containers.

    >>> torch.save({"epoch": 300, "classifier_state_dict": {"module.list_fc.0.bias": torch.zeros(5)}}, "last.ckpt")
    >>> read_official("last.ckpt")
    {'module.list_fc.0.bias': tensor([0., 0., 0., 0., 0.])}
    """
    return _network_state(_read(source))


def official_classes(model: nn.Module, state: Mapping[str, torch.Tensor]) -> int:
    """How many classes an official state_dict of the network `model` (with whatever number of them) is for.

    Raises:
        ValueError: the classifier of `model` is not in it.

    >>> state = {"list_fc.0.weight": torch.zeros(10, 128), "list_fc.1.weight": torch.zeros(10, 128)}
    >>> official_classes(timm.create_model("mixmo_wrn16_2_m2"), state)
    10
    """
    target: Any = unwrap_model(model)
    published = next(known for known in _SOURCES.values() if known.recognises(state))
    names = published.rename(state, target)
    heads = target.pretrained_cfg["classifier"]
    wanted = f"{heads if isinstance(heads, str) else heads[0]}.weight"
    found = [tensor for key, tensor in state.items() if names[key] == wanted and tensor.ndim]
    if not found:
        raise ValueError(
            f"the checkpoint is of another network: it has nothing for {wanted}; correct the source, arch or members"
        )
    return len(found[0])


def _choices(origin: str, given: Mapping[str, str | None]) -> dict[str, str]:
    """What the source lets one choose, as given or its default."""
    known = _SOURCES[origin].choices
    for name, value in given.items():
        if value is not None and name not in known:
            raise ValueError(
                f"{name} must be left out for a checkpoint of source {origin!r}, which holds one network, got {value!r}"
            )
        if value is not None and value not in known[name]:
            raise ValueError(f"{name} must be {' or '.join(map(repr, known[name]))}, got {value!r}")
    return {name: given[name] or values[0] for name, values in known.items()}


def _read(source: Any) -> Any:
    if not isinstance(source, (str, Path)) or not Path(source).is_file():
        raise ValueError(f"source must be an existing checkpoint file or a state_dict, got {_short(source)}")
    inner = _checkpoint_in_zip(source)
    try:
        if inner is None:
            return torch.load(source, map_location="cpu", weights_only=True)
        with _unpacked(source, inner) as file:
            return torch.load(file, map_location="cpu", weights_only=True)
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


def _checkpoint_in_zip(source: str | Path) -> str | None:
    """The checkpoint's name in an ordinary zip; None for a file of torch.save, which may be a zip of its own kind."""
    try:
        with zipfile.ZipFile(source) as archive:
            names = archive.namelist()
    except zipfile.BadZipFile:
        return None
    if any(name.endswith("/data.pkl") and f"{name.removesuffix('data.pkl')}version" in names for name in names):
        return None
    found = [name for name in names if name.split("/")[-1] == _RELEASED]
    if len(found) != 1:
        held = f"{len(found)} of them, {_some(found)}" if found else _some(names) if names else "an empty zip"
        raise ValueError(f"{source} must hold one {_RELEASED}, got {held}; unpack it and give the checkpoint's path")
    return found[0]


@contextmanager
def _unpacked(source: str | Path, name: str) -> Iterator[IO[bytes]]:
    """A file of a zip as a temporary file: torch.load jumps about, which is slow in a compressed stream."""
    with tempfile.TemporaryFile() as file:
        with zipfile.ZipFile(source) as archive, archive.open(name) as packed:
            shutil.copyfileobj(packed, file)
        file.seek(0)
        yield file


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
    parts = [f"{_some(names)} {kind}" for kind, names in differ.items() if names]
    if parts:
        raise ValueError(
            f"the checkpoint is of another network: {'; '.join(parts)}; create the model that official_model() names, "
            "with the checkpoint's num_classes"
        )


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:_SHOWN])}{f' and {len(names) - _SHOWN} more' if len(names) > _SHOWN else ''}"


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return f"{type(value).__name__} {text[:100]!r}"
