"""A smaller set of photographs, for few-shot studies: so many images per class, and what they are measured on.

    python -m timm_mix.lab.subset data/clothing data/clothing_30 --per-class 30
    python -m timm_mix.lab.subset data/tin20 data/tin20_75 --per-class 75 --validation-per-class 15

SOURCE holds train/, val/ and perhaps test/ with a folder per class. DEST gets train/ (so many drawn per class), val/
and test/. A source with three splits gives its val/ and test/ whole; of one with two, test/ is its val/, and the
validation images are drawn from what the training images leave.
"""

import argparse
import random
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from timm_mix.train.errors import UsageError, run_script, user_errors

__all__ = ["draw_subset", "main"]

Files = dict[str, list[Path]]  # by class


def draw_subset(source: Path, per_class: int, validation_per_class: int, seed: int) -> dict[str, Files]:
    """The files of train, val and test, by class.

    Raises:
        UsageError: no such splits, or a class with too few images.

    >>> for place in ("train/cat/0.png", "train/cat/1.png", "val/cat/2.png"):
    ...     Path("pets", place).parent.mkdir(parents=True, exist_ok=True)
    ...     Path("pets", place).touch()
    >>> found = draw_subset(Path("pets"), per_class=1, validation_per_class=1, seed=0)
    >>> {split: [path.name for path in files["cat"]] for split, files in found.items()}
    {'train': ['1.png'], 'val': ['0.png'], 'test': ['2.png']}
    """
    train, validation = _files(source / "train"), _files(source / "val")
    whole = (source / "test").is_dir()
    held_out = _files(source / "test") if whole else validation
    chance = random.Random(seed)
    chosen, rest = {}, {}
    for name, files in train.items():
        wanted = per_class + (0 if whole else validation_per_class)
        if len(files) < wanted:
            raise UsageError(f"{source / 'train' / name} has {len(files)} images, {wanted} are wanted: take fewer")
        shuffled = chance.sample(files, len(files))
        chosen[name], rest[name] = shuffled[:per_class], shuffled[per_class:wanted]
    return {"train": chosen, "val": validation if whole else rest, "test": held_out}


def _files(split: Path) -> Files:
    if not split.is_dir():
        raise UsageError(f"{split.parent} must hold train/ and val/ with a folder per class, {split} is not there")
    return {place.name: sorted(place.iterdir()) for place in sorted(split.iterdir()) if place.is_dir()}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the folder that the command line asks for: whole, or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path)
    parser.add_argument("dest", type=Path)
    parser.add_argument("--per-class", type=int, required=True, metavar="N", help="training images of each class")
    parser.add_argument("--validation-per-class", type=int, default=20, metavar="N", help="where SOURCE has no test/")
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args(argv)
    if wanted.per_class < 1 or wanted.validation_per_class < 1:
        raise UsageError("--per-class and --validation-per-class must be >= 1")
    if wanted.dest.exists():
        raise UsageError(f"{wanted.dest} exists: remove it, or give another folder")
    splits = draw_subset(wanted.source, wanted.per_class, wanted.validation_per_class, wanted.seed)
    with user_errors(f"write {wanted.dest}"):
        wanted.dest.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=wanted.dest.parent) as scratch:
            for split, classes in splits.items():
                for name, files in classes.items():
                    place = Path(scratch) / "set" / split / name
                    place.mkdir(parents=True)
                    for file in files:
                        shutil.copy(file, place)
            (Path(scratch) / "set").rename(wanted.dest)
    print(", ".join(f"{split} {sum(map(len, classes.values()))}" for split, classes in splits.items()))


if __name__ == "__main__":
    run_script(main)
