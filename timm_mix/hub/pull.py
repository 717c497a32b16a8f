"""Get a model from the Hub with nothing taken on trust.

timm's own 'hf-hub:' names do not compare what came with what the Hub announced, and where model.safetensors cannot be
had they take a pickle (read with weights_only=True). Here both files come from one commit, and their digests are those
that the Hub announces (what is not is removed from the cache and fetched again); pickles are never looked at; and
config.json may not ask for more than the weights are.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
)
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from timm_mix.announced import checked_announcements
from timm_mix.hub.client import KEEPS_PARTS, REPEATS_DOWNLOADS, EntryNotFound, status_of
from timm_mix.hub.errors import HubError, hub_errors, with_retries
from timm_mix.version import __version__

__all__ = ["fetch", "load_pretrained", "local_name"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_SOURCES = ("hf-hub:", "hf_hub:")
_LARGEST_CONFIG = 1 << 24  # bytes; the names and descriptions of 22,000 classes take about two million
# arguments of timm.create_model that no repository may choose for its reader: files, other weights, the device, and
# what lets weights that do not fit pass in silence
_NOT_FROM_A_CONFIG = (
    *("cache_dir", "checkpoint_path", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "device"),
    *("pretrained_strict", "kwargs_filter"),
)
_SMALLEST_BOUND = 1 << 16  # sizes that any network may ask for, however small its weights are
_COPIES = 64  # a model may build its network so many times on the way (MixMo does, once per member)


def load_pretrained(
    source: str | Path, *, token: str | None = None, cache_dir: str | Path | None = None, **kwargs: Any
) -> nn.Module:
    """A model with its weights from `org/name`, `org/name@revision`, or a folder that save_pretrained wrote.

    Args:
        kwargs: what timm.create_model takes (num_classes, in_chans, features_only, ...).
    Raises:
        HubError: one line; see `fetch`. The weights do not fit the network.

    >>> from timm_mix.hub import save_pretrained
    >>> folder = save_pretrained(timm.create_model("test_resnet", num_classes=5), "my_model")
    >>> load_pretrained(folder)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 5])
    """
    folder = fetch(source, token=token, cache_dir=cache_dir)
    with _one_line(f"load {source}"):
        return timm.create_model(f"local-dir:{folder}", pretrained=True, **kwargs)


def local_name(model_name: str) -> str:
    """A name for timm.create_model that needs no network: 'hf-hub:' ids are fetched, other names stay as they are.

    A 'local-dir:' folder that holds what `fetch` checks is checked.

    Raises:
        HubError: as `fetch`.

    >>> local_name("resnet18")
    'resnet18'
    """
    if model_name.lower().startswith(_SOURCES):
        return f"local-dir:{fetch(model_name)}"
    source, _, folder = model_name.partition(":")
    if source.lower() == "local-dir" and all((Path(folder) / name).is_file() for name in (CONFIG, WEIGHTS)):
        fetch(Path(folder))
    return model_name


def fetch(source: str | Path, *, token: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Download (or find in the cache) and check config.json and model.safetensors; the folder that holds both.

    The digests are compared on every call, which reads the weights once more than timm does. Where the cache holds no
    links (Windows without the right to make them), sizes are compared and digests are not.

    Raises:
        HubError: one line: the Hub or the disk said no, bytes that are not the announced ones twice in a row, no
            safetensors, a config of an unknown architecture, or of a network larger than the weights.

    >>> from timm_mix.hub import save_pretrained
    >>> folder = save_pretrained(timm.create_model("test_resnet", num_classes=5), "my_model")
    >>> sorted(path.name for path in fetch(folder).iterdir())
    ['config.json', 'model.safetensors']
    """
    name = str(source)
    if not name.lower().startswith(_SOURCES) and Path(name.removeprefix("local-dir:")).is_dir():
        folder = Path(name.removeprefix("local-dir:"))
        if not (folder / CONFIG).is_file():
            raise HubError(
                f"cannot load {source}: the folder {folder} has no {CONFIG}; give one that save_pretrained wrote, or "
                "hf-hub:org/name for a model on the Hub"
            )
    else:
        repo_id, _, revision = name.removeprefix(name[:7] if name.lower().startswith(_SOURCES) else "").partition("@")
        where = {"repo_id": repo_id, "token": token, "cache_dir": cache_dir}
        # the weights of the commit that the config is from, whatever is pushed meanwhile
        folder = _download(CONFIG, {**where, "revision": revision or None}).parent
        _download(WEIGHTS, {**where, "revision": folder.name})
    with _one_line(f"load {source}"):
        _check(folder)
    return folder


def _download(filename: str, where: dict[str, Any]) -> Path:
    with hub_errors(f"get {filename} of {where['repo_id']}", reading=True):
        for attempt in range(2):
            # an old library goes on with the part that it has kept, whatever is wrong with it
            anew = {"force_download": True} if attempt and KEEPS_PARTS else {}
            path = _try_download(filename, {**where, **anew})
            if path is not None and _is_as_announced(path):
                return path
            if path is not None:
                _remove(path)
    raise HubError(
        f"cannot get {filename} of {where['repo_id']}: what comes is not what the Hub announces, twice; nothing of it "
        "is kept; try again later, and look for a proxy in between"
    )


def _remove(path: Path) -> None:
    """Take a damaged file out of the cache, where it can be had again."""
    damaged = f"the copy in the cache is damaged ({path})"
    if constants.HF_HUB_OFFLINE:
        raise HubError(f"cannot use {path.name}: {damaged}; unset HF_HUB_OFFLINE once, it is then fetched again")
    try:
        path.resolve().unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    except OSError as error:
        raise HubError(
            f"cannot use {path.name}: {damaged} and cannot be removed ({error.strerror}); give another cache_dir"
        ) from error


def _try_download(filename: str, where: dict[str, Any]) -> Path | None:
    """The file in the cache, None where another size came than was announced."""

    def call() -> str | None:
        try:
            with checked_announcements():
                return hf_hub_download(filename=filename, library_name="timm_mix", library_version=__version__, **where)
        except LocalEntryNotFoundError as error:
            if REPEATS_DOWNLOADS:
                raise
            raise error.__cause__ or error from None  # what really happened may be temporary
        except HfHubHTTPError as error:
            if REPEATS_DOWNLOADS and status_of(error) in (408, 429):  # the library has waited for these already
                with hub_errors(f"get {filename} of {where['repo_id']}", reading=True):
                    raise
            if KEEPS_PARTS and status_of(error) == 416:  # the kept part is as long as the file, or longer
                return None
            raise

    try:
        path = with_retries(call)
        return None if path is None else Path(path)
    except LocalEntryNotFoundError as error:  # a long text around what really happened
        raise error.__cause__ or error from None
    except EntryNotFound:
        kinds = "; pickled weights are never read" if filename == WEIGHTS else ""
        raise HubError(
            f"cannot get {filename} of {where['repo_id']}: there is none{kinds}; ask its owner for a model saved by "
            "timm_mix.hub.save_pretrained, or look at the name and the revision"
        ) from None
    except HFValidationError:
        raise HubError(
            f"wanted org/name or org/name@revision, or a folder that exists, got {where['repo_id']!r}"
        ) from None
    except OSError as error:
        # huggingface_hub raises a bare OSError for a wrong size only
        if type(error) is OSError and error.errno is None:
            return None
        raise


def _is_as_announced(path: Path) -> bool:
    """Whether the bytes have the digest that names them in the cache: sha256 of large files, git's sha1 of others."""
    if not path.is_symlink():
        return True
    announced = Path(os.readlink(path)).name
    digests = {64: [hashlib.sha256()], 40: [hashlib.sha1(f"blob {path.stat().st_size}\0".encode()), hashlib.sha1()]}
    candidates = digests.get(len(announced), [])  # a mirror may have a plain sha1, or tags that say nothing
    with path.open("rb") as file:
        while candidates and (block := file.read(1 << 20)):
            for digest in candidates:
                digest.update(block)
    return not candidates or announced in [digest.hexdigest() for digest in candidates]


def _check(folder: Path) -> None:
    config = _read_config(folder / CONFIG)
    shapes = _read_shapes(folder / WEIGHTS)
    elements = sum(torch.Size(shape).numel() for shape in shapes.values())
    args = config.get("model_args") or {}
    if not isinstance(args, dict) or any(name in args for name in _NOT_FROM_A_CONFIG):
        raise ValueError(f"model_args of its {CONFIG} may not name {', '.join(_NOT_FROM_A_CONFIG)}; do not use it")
    bound = max(elements, _SMALLEST_BOUND)
    absurd = [(name, value) for name in args for value in _numbers(args[name]) if not abs(value) <= bound]
    if absurd:
        name, value = absurd[0]
        raise ValueError(
            f"its {CONFIG} wants {name}={value}, but {WEIGHTS} holds {elements} numbers in all; do not use it"
        )
    with torch.device("meta"), _bounded(_COPIES * max(len(shapes), 16), _COPIES * bound):
        model = timm.create_model(f"local-dir:{folder}", pretrained=False)
    own = model.state_dict()
    wanted = sum(tensor.numel() for tensor in own.values())
    if wanted > 2 * bound:
        raise ValueError(
            f"its {CONFIG} builds a network of {wanted} numbers, but {WEIGHTS} holds {elements}; do not use it"
        )
    # where these differ timm leaves the classifier out and says so to nobody
    said, classes = model.pretrained_cfg.get("num_classes"), getattr(model, "num_classes", None)
    if said != classes:
        raise ValueError(
            f"its {CONFIG} contradicts itself: num_classes is {said}, the network has {classes} classes; save it again"
        )
    if shapes != {name: list(tensor.shape) for name, tensor in own.items()}:
        _check_loads(folder)


def _check_loads(folder: Path) -> None:
    """Weights may have older names, which timm changes. With other classes than its own it looks at no key any more."""
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # nothing is copied on that device
            timm.create_model(f"local-dir:{folder}", pretrained=True)
    except RuntimeError as error:
        faults = [" ".join(line.split()) for line in str(error).splitlines()]
        fault = (faults[1:] or faults)[0].rstrip(".")[:300]
        raise ValueError(f"its {WEIGHTS} does not fit its {CONFIG}: {fault}; save it again") from error


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > _LARGEST_CONFIG:
        raise ValueError(
            f"its {CONFIG} has {path.stat().st_size} bytes, wanted at most {_LARGEST_CONFIG}; do not use it"
        )
    try:
        config = json.loads(path.read_bytes())
        architecture = config["architecture"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"its {CONFIG} is not a model's config ({type(error).__name__}: {error})") from None
    if not isinstance(architecture, str) or not timm.is_model(architecture):
        raise ValueError(
            f"its {CONFIG} names the architecture {architecture!r}, which is not registered here; import the package "
            "that has it, or update timm and timm_mix"
        )
    return config


def _read_shapes(path: Path) -> dict[str, list[int]]:
    try:
        with safe_open(path, "pt") as file:
            return {key: list(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118 - no mapping
    except SafetensorError as error:
        raise ValueError(f"its {WEIGHTS} is damaged or no such file ({error})") from None


def _numbers(value: Any) -> Iterator[int | float]:
    if isinstance(value, (int, float)):
        yield value
    elif isinstance(value, (list, tuple, dict)):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _numbers(part)


@contextmanager
def _bounded(tensors: int, elements: int) -> Iterator[None]:
    """Stop a network that registers more parameters than that, before it takes the day to build."""
    left = [tensors, elements]

    def count(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        left[0] -= 1
        left[1] -= 0 if parameter is None else parameter.numel()
        if min(left) < 0:
            raise ValueError(f"its {CONFIG} builds a far larger network than {WEIGHTS} is for; do not use it")

    handle = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _one_line(wanted: str) -> Iterator[None]:
    """Turn what a constructor or torch makes of a foreign config into a HubError."""
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise HubError(f"cannot {wanted}: {reason}") from error
