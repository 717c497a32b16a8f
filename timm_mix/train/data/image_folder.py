"""The user's own images: one folder per class, in train/ and val/ or to be split here.

Stricter than timm's reader, which `train.py` uses: a class is a folder of the first level with all images below it,
hidden files are not read, and nothing is left out in silence. Classes are numbered in timm's order: both readers agree.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from timm.utils.misc import natural_key
from torch.utils.data import Dataset

from timm_mix.train.data.digits import EVAL_SPLITS, TRAIN_SPLITS
from timm_mix.train.data.reading import ENDINGS, decode, find_fault, unreadable
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.settings.model import ImageMode

__all__ = ["ImageFiles", "find_unreadable", "open_image_folder"]

VALIDATION_SPLITS = tuple(name for name in EVAL_SPLITS if name != "test")
_SIDECARS = ("thumbs.db", "desktop.ini", "readme.md", "readme.txt", "license", "license.txt")  # no one misses them


class ImageFiles(Dataset):
    """Image files with labels, map-style; `transform` may be replaced later.

    Args:
        files: one path per sample.
        targets: [n] int64, the label of each, or [n, K] float32, 1 for every label that it has.
        classes: the names of the classes by label.
        mode: PIL mode that every image is converted to, or its number of channels.
    Raises:
        UsageError: on access, a file that cannot be read.

    >>> Image.new("L", (7, 5)).save("cat.png")
    >>> images = ImageFiles([Path("cat.png")], np.array([0]), ["cat", "dog"])
    >>> image, label = images[0]
    >>> image.size, image.mode, images.classes[label]
    ((7, 5), 'RGB', 'cat')
    """

    def __init__(self, files: Sequence[Path], targets: np.ndarray, classes: list[str], mode: ImageMode = "RGB"):
        self.files, self.targets, self.classes, self.mode = list(files), targets, classes, mode
        self.transform: Callable[[Image.Image], Any] | None = None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def no_label(self) -> Any:
        """Of an image that cannot be read."""
        return 0 if self.targets.ndim == 1 else np.zeros_like(self.targets[0])

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        try:
            image = decode(self.files[index], self.mode)
        except Exception as error:  # decoders fail in many ways
            raise UsageError(unreadable(self.files[index], error)) from error
        return (image if self.transform is None else self.transform(image)), self._label(index)

    def _label(self, index: int) -> Any:
        return int(self.targets[index]) if self.targets.ndim == 1 else self.targets[index]


@dataclass(frozen=True)
class _Found:
    """The images of one split by class, in timm's order, and the endings of the files that are no images."""

    root: Path
    images: dict[str, list[Path]]
    left_out: Counter[str] = field(default_factory=Counter)


def open_image_folder(
    root: str | Path,
    *,
    train_split: str = "train",
    val_split: str = "validation",
    val_fraction: float | None = None,
    seed: int = 0,
    mode: ImageMode = "RGB",
) -> tuple[ImageFiles, ImageFiles, Counter[str]]:
    """Open training and validation images.

    Args:
        root: holds a training folder and a validation folder (val/, validation/, ... or else test/), each of class
            folders; or a training folder, or the class folders themselves, of which val_fraction is held back.
        train_split, val_split: names of the folders; the usual ones stand for their synonyms.
        val_fraction: share of each class to hold back, at least one image and never all.
        seed: draws which ones.
        mode: "RGB", or "L" for networks of one channel: every image is converted; a number: they must have so many.
    Returns:
        training images, validation images, and the number of files by ending that are no images.
    Raises:
        UsageError: no such folders, no images, fewer than two classes, classes that differ between the splits or have
            no training image, both splits the same folder, a val_fraction that is missing, not wanted or not in (0, 1).

    >>> for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png"):
    ...     Path("pets", name).parent.mkdir(parents=True, exist_ok=True)
    ...     Image.new("RGB", (8, 8)).save(Path("pets", name))
    >>> train, validation, left_out = open_image_folder("pets", val_fraction=0.5)
    >>> train.classes, train.targets, validation.targets
    (['cat', 'dog'], array([0, 1]), array([0, 1, 1]))
    """
    if val_fraction is not None and not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    with user_errors(f"read the images in {root}"):
        train_root, val_root = _find_splits(Path(root), train_split, val_split)
        _check_fraction(Path(root), train_root, val_root, val_fraction)
        train = _find_images(train_root)
        _check_classes(train)
        classes = list(train.images)
        if val_root is not None:
            validation = _find_images(val_root)
            _check_same_classes(train, validation)
            _check_apart(train, validation)
            pairs = [_flat(found.images, classes) for found in (train, validation)]
            left_out = train.left_out + validation.left_out
        else:
            pairs, left_out = _hold_back(*_flat(train.images, classes), val_fraction or 0.0, seed), train.left_out
    one, two = (ImageFiles(files, targets, classes, mode) for files, targets in pairs)
    return one, two, left_out


def find_unreadable(files: Sequence[Path], threads: int = 1, mode: ImageMode = "RGB") -> list[str]:
    """Decode every file; one line for each that cannot be used.

    >>> Image.new("RGB", (8, 8)).save("whole.png")
    >>> written = Path("torn.png").write_text("half an image")
    >>> find_unreadable([Path("whole.png"), Path("torn.png")])
    ['torn.png is no image that can be read (no image format that Pillow knows): replace or remove it']
    """
    with ThreadPoolExecutor(max(1, threads)) as pool:
        return [fault for fault in pool.map(partial(find_fault, mode=mode), files) if fault is not None]


def _find_splits(root: Path, train_split: str, val_split: str) -> tuple[Path, Path | None]:
    """Folders of the training and of the validation images; without the latter, the former is to be split."""
    if not root.is_dir():
        raise UsageError(
            f"--data-dir wants a folder of images, {root} {'is a file' if root.exists() else 'is not there'}"
        )
    folders = {folder.name: folder for folder in _folders(root)}
    flat = [name for name in folders if name.lower() in (*TRAIN_SPLITS, *EVAL_SPLITS)]
    if flat and len(flat) == len(folders) and not any(next(_folders(folder), None) for folder in folders.values()):
        raise UsageError(
            f"{_listed(flat)} in {root} must hold one folder of images per class: sort the images by class"
        )
    # a class may be called "train" (CIFAR-100 has one): it holds images, a split holds folders
    splits = {name.lower(): folder for name, folder in folders.items() if next(_folders(folder), None) is not None}
    train_names = (train_split.lower(), *(TRAIN_SPLITS if train_split in TRAIN_SPLITS else ()))
    val_names = (val_split.lower(), *((*VALIDATION_SPLITS, "test") if val_split in VALIDATION_SPLITS else ()))
    train = next((splits[name] for name in train_names if name in splits), None)
    validation = next((splits[name] for name in val_names if name in splits), None)
    if train is not None and validation is not None and train.resolve() == validation.resolve():
        raise UsageError(f"training and validation must be different images, both are {train}")
    if train is not None:
        return train, validation
    if validation is not None or train_split not in TRAIN_SPLITS:
        raise UsageError(f"{root} must hold a folder {train_split!r} of class folders, it holds {_listed(folders)}")
    return root, None


def _check_fraction(root: Path, train: Path, validation: Path | None, fraction: float | None) -> None:
    if validation is None and fraction is None:
        missing = "train/ and val/ of class folders" if train == root else "folder of validation images"
        raise UsageError(
            f"{root} has no {missing}: make it, or give --val-fraction 0.2 to hold back a fifth of each class"
        )
    if validation is not None and fraction is not None:
        raise UsageError(f"{validation} holds the validation images, got --val-fraction {fraction} as well: drop it")


def _find_images(root: Path) -> _Found:
    images: dict[str, list[Path]] = {}
    left_out: Counter[str] = Counter()
    for folder in _folders(root):
        images[folder.name] = []
        for file in _files_below(folder):
            if file.suffix.lower() in ENDINGS:
                images[folder.name].append(file)
            elif file.name.lower() not in _SIDECARS:
                left_out[file.suffix.lower() or file.name] += 1
    _check_once(images)
    found = _Found(root, images, left_out)
    if not any(images.values()):
        there = "the images themselves" if _has_images(root) else f"{_listed(left_out) or 'nothing'} instead"
        raise UsageError(f"{root} must hold one folder of images per class (.jpg, .png, .webp, ...), it holds {there}")
    return found


def _check_once(images: dict[str, list[Path]]) -> None:
    """No folder is come upon twice through links: its images would count twice, or for two classes."""
    seen: dict[Path, Path] = {}
    for folder in dict.fromkeys(file.parent for files in images.values() for file in files):
        first = seen.setdefault(folder.resolve(), folder)
        if first != folder:
            raise UsageError(f"{first} and {folder} are one folder, whose images would count twice: remove a link")


def _has_images(root: Path) -> bool:
    return any(path.suffix.lower() in ENDINGS for path in root.iterdir() if path.is_file())


def _folders(root: Path) -> Iterator[Path]:
    """Its visible folders, links to folders included, in timm's order of classes."""
    for path in sorted(root.iterdir(), key=lambda path: natural_key(path.name)):
        if path.is_dir() and not path.name.startswith("."):
            yield path


def _files_below(folder: Path, above: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """All visible files, broken links included; a link back to a folder above is not followed."""
    here = folder.resolve()
    if here in above:
        return
    for path in sorted(folder.iterdir(), key=lambda path: natural_key(path.name)):
        if path.name.startswith("."):
            continue
        if path.is_dir():
            yield from _files_below(path, above | {here})
        else:
            yield path


def _check_classes(train: _Found) -> None:
    if len(train.images) < 2:
        raise UsageError(f"{train.root} must hold at least two classes, it holds {_listed(train.images)} alone")
    empty = [name for name, files in train.images.items() if not files]
    if empty:
        raise UsageError(
            f"every class needs training images, {_listed(empty)} in {train.root} has none"
            f"{f' (only {_listed(train.left_out)} files)' if train.left_out else ''}: add some or remove the folder"
        )


def _check_same_classes(train: _Found, validation: _Found) -> None:
    alone = {
        found.root: [name for name in found.images if name not in other.images]
        for found, other in ((train, validation), (validation, train))
    }
    where = [f"{_listed(names)} only in {root}" for root, names in alone.items() if names]
    if where:
        raise UsageError(f"training and validation must have the same class folders, got {' and '.join(where)}: rename")


def _check_apart(train: _Found, validation: _Found) -> None:
    """The splits have no folder in common, by whatever links."""
    splits = (train.images, validation.images)
    shared = set.intersection(*({file.parent.resolve() for files in x.values() for file in files} for x in splits))
    if shared:
        raise UsageError(f"training and validation must be different images, both have {min(shared)}: split the data")


def _flat(images: dict[str, list[Path]], classes: list[str]) -> tuple[list[Path], np.ndarray]:
    """One list of files and their labels."""
    targets = [np.full(len(images[name]), label) for label, name in enumerate(classes)]
    return [file for name in classes for file in images[name]], np.concatenate(targets).astype(np.int64)


def _hold_back(
    files: list[Path], targets: np.ndarray, fraction: float, seed: int
) -> list[tuple[list[Path], np.ndarray]]:
    """Split class by class; a class of one image keeps it for training."""
    rng = np.random.default_rng(seed)
    held = np.zeros(len(targets), dtype=bool)
    for label in np.unique(targets):
        members = np.flatnonzero(targets == label)
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        held[rng.permutation(members)[:count]] = True
    return [([files[i] for i in np.flatnonzero(chosen)], targets[chosen]) for chosen in (~held, held)]


def _listed(names: Any) -> str:
    """The first five, quoted."""
    names = list(names)
    return ", ".join(map(repr, names[:5])) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
