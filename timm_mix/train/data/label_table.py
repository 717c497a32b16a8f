"""Images whose labels stand in a table: a CSV file beside the images, with one label per image or any number of them.

    file,labels,split            file,label             file,sea,sand,dog
    a/1.jpg,sea;sand,train       a/1.jpg,sea            a/1.jpg,1,1,0
    a/2.jpg,,validation          a/2.jpg,dog            a/2.jpg,0,0,0

`labels` lists any number of classes, separated by semicolons; `label` names one; without either every column but `file`
and `split` is a class that is on (1) or off (0). `split` is optional. Classes are numbered in timm's order of names,
columns in their own.
"""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from timm.utils.misc import natural_key

from timm_mix.train.data.digits import EVAL_SPLITS, TRAIN_SPLITS
from timm_mix.train.data.image_folder import ImageFiles
from timm_mix.train.data.sources import FOLDER_NAMES
from timm_mix.train.errors import UsageError, user_errors

__all__ = ["LabelTable", "check_table", "open_label_table", "open_labelled", "read_label_table"]

FILE_NAMES = ("file", "file_name")  # the second is that of Hugging Face's image folders
SEVERAL, ONE, SPLIT = "labels", "label", "split"
SEPARATOR = ";"
SAME_SPLIT = (TRAIN_SPLITS, tuple(name for name in EVAL_SPLITS if name != "test"))


@dataclass(frozen=True)
class LabelTable:
    """
    splits: of every row, or None where the table has no such column.

    Shapes: targets [n] int64, or [n, K] float32 of 0 and 1 where an image may have any number of labels.

    >>> LabelTable([Path("1.jpg")], np.ones((1, 2), np.float32), ["sand", "sea"], None).multi_label
    True
    """

    files: list[Path]
    targets: np.ndarray
    classes: list[str]
    splits: list[str] | None

    @property
    def multi_label(self) -> bool:
        return self.targets.ndim == 2

    def rows(self, chosen: Sequence[int] | np.ndarray, mode: str = "RGB") -> ImageFiles:
        """The images of some rows."""
        return ImageFiles([self.files[i] for i in chosen], self.targets[np.asarray(chosen, int)], self.classes, mode)

    def of_split(self, split: str) -> list[int]:
        """The rows of a split, by any of its names."""
        names = next((group for group in SAME_SPLIT if split in group), (split,))
        return [i for i, name in enumerate(self.splits or ()) if name in names]


def read_label_table(path: str | Path, root: str | Path) -> LabelTable:
    """Read a table as the head of this file describes it.

    Args:
        root: the folder that `file` is relative to.
    Raises:
        UsageError: no such file, not UTF-8, other columns, fewer than two classes, a row of another length, a file
            that is missing or stands there twice, cells that are not 0 or 1; with the number of the line.

    >>> Path("1.jpg").touch(); Path("2.jpg").touch()
    >>> written = Path("labels.csv").write_text("file,labels\\n1.jpg,sea;sand\\n2.jpg,\\n")
    >>> table = read_label_table("labels.csv", ".")
    >>> table.classes, table.targets
    (['sand', 'sea'], array([[1., 1.],
           [0., 0.]], dtype=float32))
    """
    if not Path(path).is_file():
        raise UsageError(f"--labels-csv wants a file, {path} is {'none' if Path(path).exists() else 'not there'}")
    try:
        with user_errors(f"read the table {path}"), open(path, encoding="utf-8-sig", newline="") as stream:
            lines = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(lines, [])]
            rows = [(lines.line_num, [cell.strip() for cell in row]) for row in lines if any(row)]
    except csv.Error as error:
        raise UsageError(f"{path} must be a table of values separated by commas: {error}") from error
    file, label = _columns(path, header)
    for number, row in rows:
        if len(row) != len(header):
            raise UsageError(f"{path}, line {number}, must have {len(header)} cells, it has {len(row)}")
    files = _files(path, Path(root), [(number, row[header.index(file)]) for number, row in rows])
    if label is None:
        classes = [name for name in header if name not in (file, SPLIT)]
        targets: Any = _switches(path, header, classes, rows)
    else:
        classes, targets = _named(path, [(number, row[header.index(label)]) for number, row in rows], label)
    if len(classes) < 2:
        raise UsageError(f"{path} must name at least two classes, it names {', '.join(classes) or 'none'}")
    splits = [row[header.index(SPLIT)] for _, row in rows] if SPLIT in header else None
    return LabelTable(files, targets, classes, splits)


def open_label_table(
    path: str | Path, root: str | Path | None, split: str, *, mode: str = "RGB", whole: bool = True
) -> ImageFiles:
    """The images of a split; all of them where the table has no splits and the whole table will do.

    Raises:
        UsageError: what `read_label_table` raises, no folder, no such split.

    >>> Path("1.jpg").touch(); Path("2.jpg").touch()
    >>> written = Path("labels.csv").write_text("file,label,split\\n1.jpg,sea,train\\n2.jpg,sand,val\\n")
    >>> images = open_label_table("labels.csv", ".", "validation")
    >>> images.files, images.targets, images.classes
    ([PosixPath('2.jpg')], array([0]), ['sand', 'sea'])
    """
    table = read_label_table(path, _folder(root))
    if table.splits is None and whole:
        return table.rows(range(len(table.files)), mode)
    return table.rows(_found(path, table, split), mode)


def open_labelled(
    path: str | Path,
    root: str | Path | None,
    *,
    train_split: str = "train",
    val_split: str = "validation",
    val_fraction: float | None = None,
    seed: int = 0,
    mode: str = "RGB",
) -> tuple[ImageFiles, ImageFiles]:
    """Training and validation images, by the table's splits or by a share that is held back.

    A share is drawn class by class; an image of several labels counts for its rarest one, and every class keeps an
    image for training.

    Raises:
        UsageError: what `read_label_table` raises; no split of that name, a fraction that is missing, not wanted or not
            in (0, 1), a class without a training image.

    >>> for i in range(4):
    ...     Path(f"{i}.jpg").touch()
    >>> written = Path("labels.csv").write_text("file,label\\n0.jpg,sea\\n1.jpg,sand\\n2.jpg,sea\\n3.jpg,sand\\n")
    >>> train, validation = open_labelled("labels.csv", ".", val_fraction=0.5)
    >>> train.targets, validation.targets
    (array([1, 0]), array([1, 0]))
    """
    table = read_label_table(path, _folder(root))
    if val_fraction is None and table.splits is None:
        raise UsageError(f"{path} has no column {SPLIT}: add one (train, validation), or hold back --val-fraction 0.2")
    chosen: Any
    if val_fraction is None:
        chosen = _found(path, table, train_split), _found(path, table, val_split)
    elif table.splits is not None:
        raise UsageError(f"{path} has a column {SPLIT}, got --val-fraction {val_fraction} as well: drop it")
    elif not 0 < val_fraction < 1:
        raise UsageError(f"val_fraction must lie between 0 and 1, got {val_fraction}")
    else:
        chosen = _hold_back(table, val_fraction, seed)
    train, validation = (table.rows(rows, mode) for rows in chosen)
    _check_every_class(path, table, train)
    return train, validation


def check_table(images: Any) -> None:
    """The settings of the images have nothing that does not go with a table of labels.

    Raises:
        UsageError: a data set by name, or a class map.

    >>> from timm_mix.train.settings.data import DataSettings
    >>> check_table(DataSettings(dataset="digits", labels_csv="labels.csv"))
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: labels_csv is for a folder of images, got dataset digits: drop one of the two
    """
    for name, other in (("dataset", images.dataset), ("class_map", images.class_map)):
        if other and not (name == "dataset" and other in FOLDER_NAMES):
            raise UsageError(f"labels_csv is for a folder of images, got {name} {other}: drop one of the two")


def _folder(root: str | Path | None) -> Path:
    if root is None:
        raise UsageError("--data-dir is missing: the folder that the files of --labels-csv lie in")
    if not Path(root).is_dir():
        raise UsageError(
            f"--data-dir wants a folder of images, {root} is {'a file' if Path(root).exists() else 'none'}"
        )
    return Path(root)


def _columns(path: Any, header: list[str]) -> tuple[str, str | None]:
    """The names of the columns of files and of labels; the latter None where every class has a column."""
    wanted = f"{path} wants a column file and one of {SEVERAL}, {ONE} or a column per class, separated by commas"
    file = next((name for name in FILE_NAMES if name in header), None)
    twice = next((name for name in header if header.count(name) > 1), None)
    if file is None or len(header) < 2 or "" in header:
        raise UsageError(f"{wanted}; its first line is {', '.join(map(repr, header[:8])) or 'empty'}")
    if twice is not None or (SEVERAL in header and ONE in header):
        raise UsageError(f"{wanted}; it has {f'{twice} twice' if twice is not None else f'{SEVERAL} and {ONE}'}")
    return file, next((name for name in (SEVERAL, ONE) if name in header), None)


def _files(path: Any, root: Path, cells: list[tuple[int, str]]) -> list[Path]:
    seen: dict[str, int] = {}
    for number, name in cells:
        if name in seen:
            raise UsageError(f"{path} names {name!r} in lines {seen[name]} and {number}: keep one")
        seen[name] = number
        if not name or not (root / name).is_file():
            raise UsageError(f"{path}, line {number}: {name!r} is no file in {root}; correct it or --data-dir")
    if not cells:
        raise UsageError(f"{path} names no image: add a line for each")
    return [root / name for _, name in cells]


def _switches(path: Any, header: list[str], classes: list[str], rows: list[tuple[int, list[str]]]) -> np.ndarray:
    places = [header.index(name) for name in classes]
    targets = np.zeros((len(rows), len(classes)), np.float32)
    for i, (number, row) in enumerate(rows):
        for k, place in enumerate(places):
            if row[place] not in ("0", "1"):
                raise UsageError(f"{path}, line {number}: {classes[k]} must be 0 or 1, got {row[place]!r}")
            targets[i, k] = int(row[place])
    return targets


def _named(path: Any, cells: list[tuple[int, str]], column: str) -> tuple[list[str], np.ndarray]:
    several = column == SEVERAL
    listed = [[name.strip() for name in cell.split(SEPARATOR)] if several else [cell] for _, cell in cells]
    listed = [[name for name in names if name] for names in listed]
    for (number, cell), names in zip(cells, listed, strict=True):
        if not several and not names:
            raise UsageError(f"{path}, line {number}: the label is missing; several or none go into a column {SEVERAL}")
        if len(set(names)) < len(names):
            raise UsageError(f"{path}, line {number}: {cell!r} names a class twice")
    classes = sorted({name for names in listed for name in names}, key=natural_key)
    index = {name: k for k, name in enumerate(classes)}
    if not several:
        return classes, np.array([index[names[0]] for names in listed], np.int64)
    targets = np.zeros((len(cells), len(classes)), np.float32)
    for row, names in zip(targets, listed, strict=True):
        row[[index[name] for name in names]] = 1
    return classes, targets


def _found(path: Any, table: LabelTable, split: str) -> list[int]:
    rows = table.of_split(split)
    if not rows:
        there = ", ".join(map(repr, sorted(set(table.splits or ()))[:5])) or "no splits"
        raise UsageError(f"{path} must have the split {split!r}, it has {there}: name one of these")
    return rows


def _hold_back(table: LabelTable, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for validation."""
    hot = table.targets if table.multi_label else np.eye(len(table.classes))[table.targets]
    counts = hot.sum(0)
    rarest = np.where(hot > 0, counts, np.inf).argmin(1)
    rarest[hot.sum(1) == 0] = len(table.classes)  # images of no class are drawn among themselves
    rng, held = np.random.default_rng(seed), np.zeros(len(hot), bool)
    for key in np.unique(rarest):
        rows = np.flatnonzero(rarest == key)
        held[rng.permutation(rows)[: min(max(round(fraction * len(rows)), 1), len(rows) - 1)]] = True
    for k in np.flatnonzero((hot[~held].sum(0) == 0) & (counts > 0)):
        held[np.flatnonzero(hot[:, k])[0]] = False
    return np.flatnonzero(~held), np.flatnonzero(held)


def _check_every_class(path: Any, table: LabelTable, train: ImageFiles) -> None:
    used: Any = train.targets.any(0) if table.multi_label else np.isin(np.arange(len(table.classes)), train.targets)
    missing = [name for name, there in zip(table.classes, used, strict=True) if not there]
    if missing:
        raise UsageError(f"every class needs training images, {', '.join(map(repr, missing[:5]))} in {path} has none")
