"""Images as training and evaluation read them: each one that a data set lists, or an error that names it.

timm's own data set shows the next image in the place of one that it cannot read.
"""

from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

from PIL import Image, UnidentifiedImageError
from timm.data import ImageDataset
from torch.utils.data import Dataset, default_collate

from timm_mix.train.errors import UsageError

__all__ = [
    "ENDINGS",
    "FaultyBatch",
    "StrictImages",
    "Unreadable",
    "collate",
    "decode",
    "find_fault",
    "read",
    "unreadable",
]

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm"),
)
_OF_SOURCE = ("reader", "classes", "targets", "labels", "samples", "filename")


class StrictImages(Dataset):
    """A map-style data set of timm or torchvision, with every image where it belongs; `transform` may be replaced.

    Args:
        source: gives PIL images and labels; its own `transform` is None.
        mode: PIL mode that every image of a timm reader is converted to.
    Attributes:
        reader, classes, targets, labels, samples, filename: the source's, where it has them.
    Raises:
        UsageError: on access, an image that cannot be read.
    """

    def __init__(self, source: Any, mode: str = "RGB"):
        self.source, self.mode = source, mode
        self.transform: Callable[[Image.Image], Any] | None = None

    def __getattr__(self, name: str) -> Any:
        if name in _OF_SOURCE:
            return getattr(self.source, name)
        raise AttributeError(name)

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        if index >= len(self):
            raise IndexError(index)  # ends a loop over the data set
        try:
            image, target = self._read(index)
        except Exception as error:  # decoders fail in many ways: OSError, SyntaxError, struct.error, ...
            raise UsageError(unreadable(self._name(index), error)) from error
        return (image if self.transform is None else self.transform(image)), target

    def _read(self, index: int) -> tuple[Image.Image, int]:
        if isinstance(self.source, ImageDataset):
            file, target = self.source.reader[index][:2]
            with file:
                image = decode(file, self.mode)
        else:
            image, target = self.source[index]
        return image, -1 if target is None else int(target)

    def _name(self, index: int) -> str:
        try:
            return str(self.source.filename(index, absolute=True))
        except Exception:  # not every reader knows
            samples = getattr(self.source, "samples", None)
            return f"image number {index}" if samples is None else str(samples[index][0])


def decode(file: Path | IO[bytes], mode: str) -> Image.Image:
    """A file's image in this PIL mode.

    Raises:
        ValueError: more than 8 bits per channel. Other errors are Pillow's.
    """
    with Image.open(file) as image:
        _check_depth(image)
        if image.mode == "P" and mode == "RGB" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")  # the same colours, without Pillow's warning
        return image.convert(mode)


def find_fault(path: Path) -> str | None:
    """What is wrong with a file, if it cannot be read."""
    try:
        with Image.open(path) as image:
            _check_depth(image)
            image.draft("RGB", (64, 64))  # a JPEG is read to its end, but decoded at an eighth of its size
            image.load()
    except Exception as error:  # decoders fail in many ways
        return unreadable(path, error)
    return None


def unreadable(name: str | Path, error: Exception) -> str:
    """The one line for an image that cannot be read."""
    unknown = "no image format that Pillow knows"
    reason = unknown if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    reason = reason.replace(repr(str(name)), "it") or type(error).__name__
    return f"{name} is no image that can be read ({reason}): replace or remove it"


class Unreadable(NamedTuple):
    """In the place of an item whose image cannot be read: an exception would leave a worker with its whole traceback.

    stand_in: a black image's item, so that processes that work in step can go on until they hear of the fault.
    """

    fault: str
    stand_in: Any


class FaultyBatch(NamedTuple):
    """In the place of a batch with an unreadable image, which is black in it.

    Shapes: images [B, ...]; target [B].
    """

    images: Any
    target: Any
    fault: str


def read(dataset: Any, index: int) -> Any:
    """dataset[index], or `Unreadable`."""
    try:
        return dataset[index]
    except UsageError as error:
        black = Image.new(dataset.mode, (64, 64))
        return Unreadable(str(error), (black if dataset.transform is None else dataset.transform(black), 0))


def collate(items: list[Any]) -> Any:
    """A batch of items of `read`, or a `FaultyBatch`."""
    faults = [item.fault for item in items if isinstance(item, Unreadable)]
    batch = default_collate([item.stand_in if isinstance(item, Unreadable) else item for item in items])
    return FaultyBatch(batch[0], batch[1], faults[0]) if faults else batch


def _check_depth(image: Image.Image) -> None:
    """Pillow would clip such an image to white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"more than 8 bits per channel, PIL mode {image.mode}")
