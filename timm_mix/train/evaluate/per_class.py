"""The figures of every class: which ones a model confuses or misses."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_average_precision

from timm_mix.train.evaluate.scoring import confusion
from timm_mix.train.files import write_whole

__all__ = ["per_class", "write_classes"]


def per_class(logits: Tensor, target: Tensor, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row per class: its images, precision, recall and F1 in per cent, of several labels the average precision, too.

    Of one label per image recall is the top-1 accuracy of the class. What has no images to be over is None.

    Shapes: logits [n, K]; target [n] int64, or [n, K] of 0 and 1, where probabilities >= 1/2 count as on.

    >>> rows = per_class(torch.eye(2)[torch.tensor([0, 1, 1, 1])], torch.tensor([0, 0, 1, 1]), ["cat", "dog"])
    >>> rows[0]
    {'class': 'cat', 'images': 2, 'precision': 100.0, 'recall': 50.0, 'f1': 66.66666666666667}
    """
    if target.ndim == 1:
        table = confusion(logits, target).double()
        hits, there, found = table.diagonal(), table.sum(1), table.sum(0)
    else:
        on, wanted = logits >= 0, target > 0
        hits, there, found = (x.sum(0).double() for x in (on & wanted, wanted, on))
    columns = {"precision": _share(hits, found), "recall": _share(hits, there), "f1": _share(2 * hits, there + found)}
    if target.ndim == 2:
        columns = {"ap": _average_precision(logits, target, there), **columns}
    return [
        {"class": name, "images": int(there[k]), **{key: values[k] for key, values in columns.items()}}
        for k, name in enumerate(names)
    ]


def write_classes(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """One line per class.

    >>> write_classes(Path("classes.csv"), [{"class": "cat", "images": 2, "f1": None}])
    >>> Path("classes.csv").read_text().split()
    ['class,images,f1', 'cat,2,']
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, lambda file: file.write(stream.getvalue().encode(errors="surrogateescape")))


def _share(part: Tensor, whole: Tensor) -> list[float | None]:
    """In per cent."""
    return [100 * p / w if w else None for p, w in zip(part.tolist(), whole.tolist(), strict=True)]


def _average_precision(logits: Tensor, target: Tensor, there: Tensor) -> list[float | None]:
    """Over the places of the logits in their order: torchmetrics takes probabilities, which saturate."""
    places = torch.stack([column.unique(return_inverse=True)[1] for column in logits.unbind(1)], 1)
    scores = places.double() / len(logits)
    found = multilabel_average_precision(scores, target.long(), logits.shape[1], average="none")
    return [100 * float(value) if n else None for value, n in zip(found, there, strict=True)]
