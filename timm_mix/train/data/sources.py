"""Datasets by name, with timm's names and one-line errors.

`open_dataset` is timm's `create_dataset` with these differences: the name "digits" gives data that need no download, an
image that cannot be read is an error (`StrictImages`; a stream leaves it out, as its reader does), folders are searched
for all of `ENDINGS`, and a user's mistake is one line.
"""

import importlib.util
import os
import tarfile
from pathlib import Path
from typing import Any

import timm.data
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torch.utils.data import Dataset, IterableDataset

from timm_mix.train.data.digits import EVAL_SPLITS, TRAIN_SPLITS, Digits
from timm_mix.train.data.reading import ENDINGS, StrictImages
from timm_mix.train.errors import UsageError
from timm_mix.train.settings.model import ImageMode

__all__ = ["check_splits", "class_names", "is_stream", "open_dataset"]

FOLDER_NAMES = ("", "folder", "image_folder", "imagefolder", "tar")  # timm reads a folder or a tar for each
PACKAGES = {"hfds": "datasets", "hfids": "datasets", "tfds": "tensorflow_datasets", "wds": "webdataset"}
STREAMS = ("hfids", "tfds", "wds")
TORCH_NAMES = "cifar10, cifar100, mnist, kmnist, fashion_mnist, qmnist, imagenet, places365, inaturalist, image_folder"
TORCH_OWN_SPLITS = ("imagenet", "places365", "inaturalist", "inat")  # torchvision checks the split of these itself
SPLIT_NAMES = TRAIN_SPLITS + EVAL_SPLITS
_FOLDER_EVAL = ("val", "valid", "validation", "eval", "evaluation")  # as timm: "test" is a split of its own here
ADVICE = {
    "folder": "pass a folder with one subfolder of images per class, or a .tar file of such folders",
    "torch": f"the names are torch/ and one of {TORCH_NAMES}; allow the download if the data are not there yet",
}


def open_dataset(
    name: str,
    root: str | os.PathLike | None,
    split: str,
    *,
    class_map: str | dict | None = None,
    download: bool = False,
    batch_size: int = 1,
    seed: int = 42,
    is_training: bool = False,
    input_img_mode: ImageMode = "RGB",
    **kw: Any,
) -> Dataset:
    """Open a dataset by timm's name; its `transform` attribute is None, to be set by the caller.

    Args:
        name: "digits"; "" or "folder" for a folder of class folders or a .tar file; "torch/...", "hfds/...",
            "hfids/...", "tfds/...", "wds/..." as in `timm.data.create_dataset`.
        root: where the data lie, or are downloaded to.
        split: for a folder, the subfolder to use ("train" finds training/, "validation" finds val/, ...). A root
            without any such subfolder is taken as the split itself, and a tar file always is.
        class_map: class name -> index, as a dict or a file, for folders, tars, hfds, hfids, tfds and wds.
        download: for "torch/...", "hfids/..." and "tfds/...".
        batch_size: hint for the iterable datasets.
        seed: shuffle seed of the iterable datasets.
        is_training: lets the iterable datasets shuffle.
        input_img_mode: PIL mode of the images, or their number of channels, which streams do not have.
        **kw: further settings of `timm.data.create_dataset`.
    Raises:
        UsageError: the data cannot be opened; one line that says what was wanted, what was found and what to do.

    >>> len(open_dataset("digits", None, "train")), len(open_dataset("digits", None, "validation"))
    (1437, 360)
    >>> open_dataset("torch/cifar10", "no/such/folder", "train")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: dataset 'torch/cifar10' needs an existing data folder, no/such/folder does not ...
    """
    prefix, target = _parse_name(name)
    if class_map and (prefix == "digits" or target.lower().startswith("torch/")):
        raise UsageError(f"class_map is for folders, tars, hfds, tfds and wds, got it for {name!r}: drop it")
    if prefix == "digits":
        return Digits(split, mode=input_img_mode)
    if isinstance(input_img_mode, int) and is_stream(name):
        raise UsageError(
            f"the stream {name!r} gives 1 or 3 channels, the network takes {input_img_mode}: take a folder"
        )
    if prefix == "folder":
        root = _find_split(_check_root(name, root), split)
    elif prefix == "torch":
        _check_torch_split(name, split)
        _check_root(name, root, exists=not download)
    elif prefix == "wds":
        _check_root(name, root, exists=False)
    settings = {"class_map": class_map, "batch_size": batch_size, "seed": seed}
    settings["input_img_mode"] = "RGB" if isinstance(input_img_mode, int) else input_img_mode  # StrictImages reads them
    settings.update(search_split=False, download=download, is_training=is_training, **kw)
    timms_folder = prefix == "folder" and not target.lower().startswith("torch/") and Path(root or "").is_dir()
    if timms_folder:
        settings.setdefault("input_key", ";".join(ENDINGS))
    try:
        dataset = timm.data.create_dataset(target, root=root and os.fspath(root), split=split, **settings)
    except (AssertionError, ImportError, KeyError, OSError, RuntimeError, ValueError, tarfile.TarError) as error:
        raise UsageError(_describe_failure(prefix, name, root, split, error)) from error
    if class_names(dataset) == [""]:
        raise UsageError(f"{root} must hold one folder per class, it holds the images themselves: sort them by class")
    if timms_folder:
        _check_folders(dataset.reader)
        if is_training and not class_map:
            _check_every_class(os.fspath(root or ""), dataset.reader.samples)
    if isinstance(dataset, IterableDataset):
        dataset.opened_as = input_img_mode  # type: ignore[attr-defined]
        return dataset
    return StrictImages(dataset, input_img_mode)


def is_stream(name: str) -> bool:
    """Whether a data set is read from its beginning to its end: then its workers deal out and shuffle the samples.

    Of any other the number of workers changes nothing that is drawn, see `timm_mix.train.data.loaders`.

    >>> is_stream("wds/imagenet"), is_stream("torch/cifar10")
    (True, False)
    """
    return name.partition("/")[0].lower() in STREAMS


def class_names(dataset: Dataset) -> list[str] | None:
    """The name of each class by its index; None where the dataset has none, or not exactly one per index.

    >>> class_names(Digits("validation"))[:3]
    ['0', '1', '2']
    """
    listed = getattr(dataset, "classes", None)
    if listed is not None:
        return [name if isinstance(name, str) else ", ".join(name) for name in listed]
    reader = getattr(dataset, "reader", None)
    index = getattr(reader, "class_to_idx", None) or getattr(reader, "class_name_to_idx", None) or {}
    if not index or sorted(index.values()) != list(range(len(index))):
        return None
    return [str(name) for name in sorted(index, key=index.__getitem__)]


def check_splits(train: Dataset, validation: Dataset) -> None:
    """Refuse two splits that number their classes differently, or that have files in common.

    timm numbers the classes of each folder by itself: a class that is missing in one split shifts all later labels.

    Raises:
        UsageError: the class names differ, or both splits read one folder (by whatever names and links) or tar.

    >>> from types import SimpleNamespace as Split
    >>> check_splits(Split(classes=["cat", "dog"]), Split(classes=["dog"]))
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: training and validation must have the same classes, 2 and 1 were found, they ...
    """
    names, others = class_names(train), class_names(validation)
    if names is not None and others is not None and names != others:
        alone = sorted(set(names) ^ set(others)) or names
        raise UsageError(
            f"training and validation must have the same classes, {len(names)} and {len(others)} were found, "
            f"they differ in {', '.join(map(repr, alone[:5]))}: add the missing folders' images or pass a class map"
        )
    readers = [getattr(split, "reader", None) for split in (train, validation)]
    if all(isinstance(reader, ReaderImageFolder) for reader in readers):
        shared = set.intersection(*(set(_real_folders(reader)) for reader in readers))
    else:
        roots = [os.path.realpath(reader.root) for reader in readers if isinstance(reader, ReaderImageInTar)]
        shared = set(roots) if len(roots) == 2 and roots[0] == roots[1] else set()
    if shared:
        raise UsageError(f"training and validation must be different images, both have {min(shared)}: split the data")


def _parse_name(name: str) -> tuple[str, str]:
    """Returns: the kind ("digits", "folder", "torch", "hfds", ...), and the name for timm."""
    prefix, slash, rest = name.partition("/")
    prefix = prefix.lower()
    if not slash and prefix == "digits":
        return "digits", ""
    if not slash and prefix in FOLDER_NAMES:
        return "folder", ""
    if slash and prefix == "torch":
        return ("folder" if rest.lower() in ("folder", "image_folder") else "torch"), name
    if not slash or prefix not in PACKAGES:
        raise UsageError(
            f"a dataset is named digits, folder, torch/NAME, {', '.join(f'{known}/NAME' for known in PACKAGES)}, "
            f"got {name!r}: correct the name"
        )
    if importlib.util.find_spec(PACKAGES[prefix]) is None:
        package = PACKAGES[prefix].replace("_", "-")
        raise UsageError(f"dataset {name!r} needs the package {package}, not installed: pip install {package}")
    return prefix, name


def _check_root(name: str, root: str | os.PathLike | None, *, exists: bool = True) -> Path:
    if not root:
        raise UsageError(f"dataset {name!r} needs a data folder, got none: pass the folder that holds it")
    if exists and not Path(root).exists():
        raise UsageError(f"dataset {name!r} needs an existing data folder, {root} does not exist: correct the path")
    return Path(root)


def _find_split(root: Path, split: str) -> Path:
    """The folder or tar file of a split: root/split, a synonym of it, or the root itself if that holds no splits."""
    if root.is_file():
        if root.suffix == ".tar":
            return root
        raise UsageError(f"the data must be a folder or a .tar file, got the file {root}: {ADVICE['folder']}")
    if not root.is_dir():
        raise UsageError(f"the data must be a folder or a .tar file, {root} is a device or a pipe: {ADVICE['folder']}")
    wanted = split.partition("[")[0]
    group = next((names for names in (TRAIN_SPLITS, _FOLDER_EVAL) if wanted in names), ())
    for candidate in (wanted, *group):
        if wanted and (root / candidate).exists():
            return _find_split(root / candidate, "") if (root / candidate).is_file() else root / candidate
    present = _split_folders(root)
    if present:
        raise UsageError(f"{root} must hold the split {split!r}, it holds {', '.join(present)}: name one of these")
    if wanted not in SPLIT_NAMES:
        raise UsageError(f"{root} must hold the split {split!r}, it has no splits: use one of {', '.join(SPLIT_NAMES)}")
    return root


def _split_folders(root: Path) -> list[str]:
    """The subfolders that are splits. A class may be called "train" (CIFAR-100 has one): it holds no folders."""
    folders = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    splits = [name for name in folders if name in SPLIT_NAMES]
    if len(splits) == len(folders):
        return splits
    return [name for name in splits if any(entry.is_dir() for entry in (root / name).iterdir())]


def _real_folders(reader: Any) -> dict[str, list[str]]:
    """The folders that images lie in, each with all the names under which a walk through the links comes upon it."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(os.path.dirname(path) for path, _ in reader.samples):
        found.setdefault(os.path.realpath(name), []).append(name)
    return found


def _check_folders(reader: Any) -> None:
    """timm follows every link, and makes a class of a hidden folder."""
    for names in _real_folders(reader).values():
        if len(names) > 1:
            raise UsageError(f"{names[0]} and {names[1]} are one folder, whose images would count twice: remove a link")
    hidden = next((name for name in reader.class_to_idx if name.startswith(".")), None)
    if hidden is not None:
        raise UsageError(f"a class must not be hidden, {reader.root} has images in a folder {hidden!r}: remove it")


def _check_every_class(root: str, samples: list[tuple[str, int]]) -> None:
    """timm has no class for a folder without images."""
    first = len(os.path.join(root, ""))
    used = {path[first:].partition(os.sep)[0] for path, _ in samples}
    empty = [entry.name for entry in Path(root).iterdir() if entry.is_dir() and entry.name[0] != "."]
    empty = sorted(name for name in empty if name not in used)
    if empty:
        raise UsageError(
            f"every class needs training images, {', '.join(map(repr, empty[:5]))} in {root} has none: add some or "
            "remove the folder"
        )


def _check_torch_split(name: str, split: str) -> None:
    """timm takes the test set of the small torchvision datasets for every split that it does not know."""
    if name.partition("/")[2].lower() not in TORCH_OWN_SPLITS and split not in SPLIT_NAMES:
        raise UsageError(f"dataset {name!r} has no split {split!r}: use one of {', '.join(SPLIT_NAMES)}")


def _describe_failure(kind: str, name: str, root: Any, split: str, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    if kind == "folder":  # timm names its own, fewer formats
        reason = reason.partition(". Supported image extensions")[0]
    if isinstance(error, ValueError) and str(root).endswith(".tar"):
        reason = "it holds no image of a known class"  # timm: "not enough values to unpack"
    advice = ADVICE.get(kind, "check the name, the split and the network")
    return f"dataset {name!r} with root {root} and split {split!r} cannot be opened: {reason.rstrip('.')}; {advice}"
