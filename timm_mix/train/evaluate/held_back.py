"""Which images a run held back for validation (`finetune.py --val-fraction`): its evaluation must see no others."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_mix.train.data.digits import TRAIN_SPLITS
from timm_mix.train.data.image_folder import ImageFiles, open_image_folder
from timm_mix.train.data.label_table import open_labelled
from timm_mix.train.data.sources import FOLDER_NAMES, SPLIT_NAMES
from timm_mix.train.errors import UsageError
from timm_mix.train.evaluate.settings import Evaluated, ImagesOf
from timm_mix.train.settings.run import RunSettings

__all__ = ["HeldBack", "held_back", "open_held_back"]


@dataclass(frozen=True)
class HeldBack:
    """fraction: share of each class.   seed: of the run, draws which.   train_split: name of the folder.

    >>> HeldBack(0.2, seed=7)
    HeldBack(fraction=0.2, seed=7, train_split='train')
    """

    fraction: float
    seed: int
    train_split: str = "train"


def held_back(images: ImagesOf, model: Evaluated) -> HeldBack | None:
    """What the flags say; else what the run did whose model it is, if the images are those of the run.

    Raises:
        UsageError: a fraction of data that are no folder.

    >>> held_back(ImagesOf(data_dir="pets", val_fraction=0.2), Evaluated(name="resnet18"))
    HeldBack(fraction=0.2, seed=42, train_split='train')
    """
    run = _run_of(model)
    seed = run.get("seed", RunSettings().seed) if images.val_seed is None else images.val_seed
    theirs = run.get("val_fraction") if _same_images(images, run) else None
    fraction = theirs if images.val_fraction is None else images.val_fraction
    if fraction is None:
        return None
    if images.labels_csv is None and run.get("labels_csv") and theirs is not None:
        raise UsageError(f"the run held back a share of the table {run['labels_csv']}: give it as --labels-csv, too")
    if images.dataset.lower() not in FOLDER_NAMES or images.data_dir is None or images.class_map:
        given = images.dataset or images.class_map or images.data_dir
        raise UsageError(f"val_fraction is for a folder of images, got {given}: drop it")
    return HeldBack(fraction, seed, run.get("train_split", "train"))


def open_held_back(images: ImagesOf, wanted: HeldBack) -> ImageFiles:
    """The images that were held back; with --split train the others.

    Raises:
        UsageError: what open_image_folder raises, or an unknown split.

    >>> from PIL import Image
    >>> for name in ("cat/0.png", "cat/1.png", "dog/0.png", "dog/1.png", "dog/2.png"):
    ...     Path("pets", name).parent.mkdir(parents=True, exist_ok=True)
    ...     Image.new("RGB", (8, 8)).save(Path("pets", name))
    >>> open_held_back(ImagesOf(data_dir="pets"), HeldBack(0.5, seed=42)).targets
    array([0, 1, 1])
    """
    if images.split not in SPLIT_NAMES:
        raise UsageError(f"split must be one of {', '.join(SPLIT_NAMES)}, got {images.split!r}")
    if images.labels_csv is not None:
        train, validation = open_labelled(
            images.labels_csv, images.data_dir, val_fraction=wanted.fraction, seed=wanted.seed
        )
        return train if images.split in TRAIN_SPLITS else validation
    train, validation, _ = open_image_folder(
        images.data_dir or "", train_split=wanted.train_split, val_fraction=wanted.fraction, seed=wanted.seed
    )
    return train if images.split in TRAIN_SPLITS else validation


def _same_images(images: ImagesOf, run: dict[str, Any]) -> bool:
    theirs, ours = run.get("data_dir"), images.data_dir
    return bool(theirs and ours) and Path(theirs or "").resolve() == Path(ours or "").resolve()


def _run_of(model: Evaluated) -> dict[str, Any]:
    """The settings of the run that made the model, from the results.json beside it; empty where there is none."""
    own = Path(model.checkpoint or model.name.removeprefix("local-dir:"))
    if not own.exists():  # a name
        return {}
    folder = own.resolve().parent  # of model/, or checkpoints/
    path = (folder.parent if model.checkpoint else folder) / "results.json"
    try:
        run = json.loads(path.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return run if isinstance(run, dict) else {}
