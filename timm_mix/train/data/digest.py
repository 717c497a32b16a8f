"""Which images a run learns: a digest of their names and labels, so that another set of them is noticed."""

import hashlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["digest_of"]


def digest_of(dataset: Any) -> str | None:
    """Of the files' names below the folder that holds them all, their labels and the classes' names; not of the pixels.

    The folder may be moved, a file or class may not be renamed, added, or sorted into another class. None where a data
    set does not list its files (streams, digits, torchvision's arrays).

    >>> from pathlib import Path
    >>> from timm_mix.train.data.image_folder import ImageFiles
    >>> one, two = (ImageFiles([Path(root, "cat/0.png"), Path(root, "dog/0.png")], [0, 1], names)
    ...             for root, names in (("here", ["cat", "dog"]), ("there", ["cat", "dog"])))
    >>> digest_of(one) == digest_of(two), digest_of(ImageFiles(one.files, [0, 0], ["cat", "dog"])) == digest_of(one)
    (True, False)
    """
    samples = list(_samples(dataset))
    if not samples:
        return None
    names = [os.fspath(path) for path, _ in samples]
    root = os.path.commonpath(os.path.dirname(name) for name in names)
    digest = hashlib.sha256()
    for name in getattr(dataset, "classes", None) or ():
        digest.update(f"{name}\0".encode(errors="surrogateescape"))
    for name, (_, label) in zip(names, samples, strict=True):
        digest.update(f"{os.path.relpath(name, root)}\0{label}\0".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _samples(dataset: Any) -> Iterator[tuple[Any, Any]]:
    """Paths and labels, of ours and of timm's reader of folders."""
    files = getattr(dataset, "files", None)
    if files is not None:
        yield from ((path, _listed(label)) for path, label in zip(files, dataset.targets, strict=True))
        return
    samples = getattr(getattr(dataset, "reader", None), "samples", None)
    if isinstance(samples, list) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in samples):
        yield from (pair for pair in samples if isinstance(pair[0], str | os.PathLike))


def _listed(label: Any) -> Any:
    """One label, or those that are on."""
    return int(label) if np.ndim(label) == 0 else np.flatnonzero(label).tolist()
