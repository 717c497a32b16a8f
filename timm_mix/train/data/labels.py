"""The labels that a data set lists without an image being read, and what follows from how often each occurs."""

from typing import Any

import numpy as np

from timm_mix.train.errors import UsageError

__all__ = ["balanced_weights", "count_labels", "is_multi_label", "labels_of"]


def labels_of(dataset: Any) -> np.ndarray:
    """As a dataset lists them (torchvision, digits), or its reader (timm); empty where they are not listed.

    Shapes: returns [n] int64, or [n, K] float32 where an image may have any number of labels.

    >>> from timm_mix.train.data.digits import Digits
    >>> labels_of(Digits("validation"))[:5]
    array([5, 9, 2, 4, 6])
    """
    reader = getattr(dataset, "reader", None)
    for holder in (dataset, reader):
        for name in ("targets", "labels"):
            if getattr(holder, name, None) is not None:
                return np.asarray(getattr(holder, name))
    samples = getattr(reader, "samples", None)
    pairs = samples if isinstance(samples, list) and samples and isinstance(samples[0], tuple) else []
    return np.array([pair[1] for pair in pairs])


def is_multi_label(dataset: Any) -> bool:
    """Whether an image may have any number of labels: then its target is [K], 0 or 1 for every class.

    >>> from timm_mix.train.data.image_folder import ImageFiles
    >>> is_multi_label(ImageFiles(["a.png"], np.array([[1.0, 1.0]]), ["sand", "sea"]))
    True
    """
    return labels_of(dataset).ndim == 2


def count_labels(dataset: Any, num_classes: int, what: str) -> np.ndarray:
    """[num_classes] int64: how many images each class has.

    Args:
        what: wants to know, for the error.
    Raises:
        UsageError: a dataset that lists no labels.

    >>> from timm_mix.train.data.digits import Digits
    >>> int(count_labels(Digits("train"), 10, "--balanced-sampling").sum())
    1437
    """
    labels = labels_of(dataset)
    if not len(labels):
        raise UsageError(f"{what} needs data that list their labels (folders, torch/..., digits): drop it")
    return np.bincount(labels, minlength=num_classes) if labels.ndim == 1 else labels.sum(0).astype(np.int64)


def balanced_weights(dataset: Any, num_classes: int) -> np.ndarray:
    """[n] for a sampler that draws every class equally often: 1 / (images of its class).

    Raises:
        UsageError: as `count_labels`, or images of any number of labels.

    >>> from timm_mix.train.data.image_folder import ImageFiles
    >>> balanced_weights(ImageFiles(["a.png", "b.png", "c.png"], np.array([0, 0, 1]), ["cat", "dog"]), 2)
    array([0.5, 0.5, 1. ])
    """
    counts = count_labels(dataset, num_classes, "--balanced-sampling")
    if is_multi_label(dataset):
        raise UsageError(
            "--balanced-sampling is for one label per image, got several: take --class-weights balanced, or drop it"
        )
    return 1 / counts[labels_of(dataset)]
