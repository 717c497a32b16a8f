"""scikit-learn's 1,797 scanned digits as an image dataset: real images that need no download.

The digits are the test part of "Optical Recognition of Handwritten Digits" (Alpaydin and Kaynak, UCI, 1998): 8x8 pixels
of 17 grey levels, 0..16. Each is scaled to 0..255, resized to 32x32 (PIL, bicubic) and given as RGB, so that every
network for CIFAR-sized images trains on it.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from timm_mix.train.errors import UsageError
from timm_mix.train.settings.model import ImageMode

__all__ = ["EVAL_SPLITS", "IMAGE_SIZE", "TRAIN_SPLITS", "Digits", "split_indices"]

IMAGE_SIZE = 32
NUM_VALIDATION = 360  # of 1,797: a fifth; 1,437 are left for training
SPLIT_SEED = 0
TRAIN_SPLITS = ("train", "training")
EVAL_SPLITS = ("val", "valid", "validation", "test", "eval", "evaluation")


class Digits(Dataset):
    """One split of the digits, map-style.

    The split is fixed and stratified: see `split_indices` with 360 validation samples and seed 0.

    Args:
        split: "train" or "training"; "val", "valid", "validation", "test", "eval" or "evaluation" (one split).
        transform: applied to the 32x32 RGB image; None gives the PIL image. May be replaced later.
    Attributes:
        classes: the names of the ten classes, "0" .. "9".
        targets: [n] int64, the label of each sample.
    Raises:
        UsageError: an unknown split, or scikit-learn is missing.

    >>> digits = Digits("validation")
    >>> len(digits), digits[0][0].size, digits.classes[:3]
    (360, (32, 32), ['0', '1', '2'])
    """

    def __init__(self, split: str, transform: Callable[[Image.Image], Any] | None = None, mode: ImageMode = "RGB"):
        wanted = _split_index(split)
        images, targets = _load_scans()
        chosen = split_indices(targets, NUM_VALIDATION, seed=SPLIT_SEED)[wanted]
        self.targets = targets[chosen]
        self._images = np.stack([_enlarge(images[index]) for index in chosen])
        self.classes = [str(digit) for digit in range(10)]
        self.transform = transform
        self.mode = mode

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if isinstance(self.mode, int):
            raise UsageError(f"the digits have 1 or 3 channels, the network takes {self.mode}: give --in-chans 1 or 3")
        image = Image.fromarray(self._images[index]).convert(self.mode)
        return (image if self.transform is None else self.transform(image)), int(self.targets[index])


def split_indices(targets: np.ndarray, num_validation: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split samples into train and validation so that every class keeps its share.

    Class c with n_c of n samples gives n_c * num_validation / n of them to the validation split, rounded by largest
    remainder so that they sum to `num_validation`; `np.random.default_rng(seed)` draws which ones, class by class.

    Shapes: with n = len(targets)
        targets: [n] int.   returns: [n - num_validation] and [num_validation] int64, both ascending.

    >>> targets = np.array([0, 0, 0, 0, 0, 0, 1, 1, 1])
    >>> train, validation = split_indices(targets, 3, seed=0)
    >>> targets[train], targets[validation]
    (array([0, 0, 0, 0, 1, 1]), array([0, 0, 1]))
    """
    classes, counts = np.unique(targets, return_counts=True)
    share = counts * num_validation / len(targets)
    quota = np.floor(share).astype(int)
    quota[np.argsort(quota - share, kind="stable")[: num_validation - quota.sum()]] += 1
    rng = np.random.default_rng(seed)
    picked = [
        rng.permutation(np.flatnonzero(targets == label))[:size] for label, size in zip(classes, quota, strict=True)
    ]
    validation = np.sort(np.concatenate(picked))
    return np.setdiff1d(np.arange(len(targets)), validation), validation


def _split_index(split: str) -> int:
    """0 for the training split, 1 for the validation split."""
    if split in TRAIN_SPLITS:
        return 0
    if split in EVAL_SPLITS:
        return 1
    raise UsageError(
        f"the digits have the splits 'train' and 'validation', got {split!r}: "
        f"use one of {', '.join(TRAIN_SPLITS + EVAL_SPLITS)}"
    )


def _load_scans() -> tuple[np.ndarray, np.ndarray]:
    """Returns: images [1797, 8, 8] float of 0..16, targets [1797] int64."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise UsageError(
            "the dataset 'digits' needs scikit-learn, which is not installed: pip install 'timm_mix[demo]'"
        ) from error
    scans = load_digits()
    return scans.images, scans.target.astype(np.int64)


def _enlarge(scan: np.ndarray) -> np.ndarray:
    """scan: [8, 8] of 0..16.   returns: [32, 32] uint8."""
    levels = np.round(scan * (255 / 16)).astype(np.uint8)
    return np.asarray(Image.fromarray(levels).resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BICUBIC))
