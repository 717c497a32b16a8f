"""Images as training and evaluation read them: each one that a data set lists, or an error that names it.

timm's own data set shows the next image in the place of one that it cannot read. A mode is PIL's, "RGB" or "L", to
which every image is converted; or a number of channels, which the images must have, and that gives tensors (see
`timm_mix.train.data.bands`).
"""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from timm.data import ImageDataset
from timm.data.readers.reader_image_folder import ReaderImageFolder
from torch.utils.data import Dataset, default_collate

from timm_mix.train.data.bands import is_array, read_array, read_bands, to_bands
from timm_mix.train.errors import UsageError
from timm_mix.train.settings.model import ImageMode

__all__ = [
    "ENDINGS",
    "FaultyBatch",
    "StrictImages",
    "Unreadable",
    "as_mode",
    "check_regular",
    "collate",
    "decode",
    "find_fault",
    "read",
    "unreadable",
]

ENDINGS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".avif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".npy"),
)
_OF_SOURCE = ("reader", "classes", "targets", "labels", "samples", "filename")


class StrictImages(Dataset):
    """A map-style data set of timm or torchvision, with every image where it belongs; `transform` may be replaced.

    Args:
        source: gives PIL images and labels; its own `transform` is None.
        mode: PIL mode that every image is converted to, or its number of channels.
    Attributes:
        reader, classes, targets, labels, samples, filename: the source's, where it has them.
    Raises:
        UsageError: on access, an image that cannot be read.

    >>> Path("shots/cat").mkdir(parents=True)
    >>> written = Path("shots/cat/0.png").write_text("half an image")
    >>> StrictImages(ImageDataset("shots"))[0]
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: shots/cat/0.png is no image that can be read (no image format that Pillow ...
    """

    def __init__(self, source: Any, mode: ImageMode = "RGB"):
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

    def _read(self, index: int) -> tuple[Any, int]:
        if isinstance(self.source, ImageDataset):
            if isinstance(self.source.reader, ReaderImageFolder):
                check_regular(self.source.reader.samples[index][0])
            file, target = self.source.reader[index][:2]
            with file:
                image = decode(file, self.mode)
        else:
            image, target = self.source[index]
            image = as_mode(image, self.mode)
        return image, -1 if target is None else int(target)

    def _name(self, index: int) -> str:
        try:
            return str(self.source.filename(index, absolute=True))
        except Exception:  # not every reader knows
            samples = getattr(self.source, "samples", None)
            return f"image number {index}" if samples is None else str(samples[index][0])


def decode(file: Path | IO[bytes], mode: ImageMode) -> Any:
    """A file's image in this mode: of PIL, or [C, H, W] float32.

    Raises:
        ValueError: more than 8 bits per channel for a mode of PIL; what `read_bands` raises. Other errors are Pillow's.

    >>> Image.new("L", (7, 5), 128).save("grey.png")
    >>> decode(Path("grey.png"), "RGB").getpixel((0, 0))
    (128, 128, 128)
    """
    if isinstance(file, str | Path):
        check_regular(file)
    if isinstance(mode, int):
        return read_bands(file, mode)
    if is_array(file):
        return _picture(read_array(file)).convert(mode)
    with Image.open(file) as image:
        _check_depth(image)
        return as_mode(image, mode)


def check_regular(path: str | Path) -> None:
    """Whoever opens a pipe waits until someone writes into it.

    Raises:
        OSError: a pipe, a socket, a device or a folder.

    >>> check_regular("/dev/null")
    Traceback (most recent call last):
        ...
    OSError: it is no regular file
    """
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError("it is no regular file")


def as_mode(image: Any, mode: ImageMode) -> Any:
    """An image of PIL in this mode; what is a tensor stays one.

    >>> as_mode(Image.new("RGBA", (7, 5)), 4).shape
    torch.Size([4, 5, 7])
    """
    if not isinstance(image, Image.Image):
        return image
    if isinstance(mode, int):
        return to_bands(np.asarray(image), mode)
    if image.mode == "P" and mode == "RGB" and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")  # the same colours, without Pillow's warning
    return image.convert(mode)


def _picture(array: np.ndarray) -> Image.Image:
    """An array of 8 bits, in grey or colour, channels first or last."""
    if array.dtype != np.uint8:
        raise ValueError(f"an array of {array.dtype}, wanted uint8 for 1 or 3 channels")
    if array.ndim == 3 and array.shape[2] not in (1, 3) and array.shape[0] in (1, 3):
        array = array.transpose(1, 2, 0)
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3)):
        raise ValueError(f"an array of the shape {' x '.join(map(str, array.shape))}, wanted 1 or 3 channels")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.ndim == 3 and array.shape[2] == 1 else array))


def find_fault(path: Path, mode: ImageMode = "RGB") -> str | None:
    """What is wrong with a file, if it cannot be read.

    >>> written = Path("torn.png").write_text("half an image")
    >>> find_fault(Path("torn.png"))
    'torn.png is no image that can be read (no image format that Pillow knows): replace or remove it'
    """
    try:
        check_regular(path)
        if isinstance(mode, int) or is_array(path):
            decode(path, mode)
            return None
        with Image.open(path) as image:
            _check_depth(image)
            image.draft("RGB", (64, 64))  # a JPEG is read to its end, but decoded at an eighth of its size
            image.load()
    except Exception as error:  # decoders fail in many ways
        return unreadable(path, error)
    return None


def unreadable(name: str | Path, error: Exception) -> str:
    """The one line for an image that cannot be read.

    >>> unreadable("cat.png", OSError("image file is truncated"))
    'cat.png is no image that can be read (image file is truncated): replace or remove it'
    """
    unknown = "no image format that Pillow knows"
    reason = unknown if isinstance(error, UnidentifiedImageError) else " ".join(str(error).split())
    reason = reason.replace(repr(str(name)), "it") or type(error).__name__
    return f"{name} is no image that can be read ({reason}): replace or remove it"


class Unreadable(NamedTuple):
    """In the place of an item whose image cannot be read: an exception would leave a worker with its whole traceback.

    stand_in: a black image's item, so that processes that work in step can go on until they hear of the fault.

    >>> item = Unreadable("cat.png is torn", stand_in=(torch.zeros(3, 4, 4), 0))
    >>> item.fault
    'cat.png is torn'
    """

    fault: str
    stand_in: Any


class FaultyBatch(NamedTuple):
    """In the place of a batch with an unreadable image, which is black in it.

    Shapes: images [B, ...]; target [B].

    >>> batch = FaultyBatch(torch.zeros(2, 3, 4, 4), torch.tensor([4, 0]), "cat.png is torn")
    >>> batch.fault
    'cat.png is torn'
    """

    images: Any
    target: Any
    fault: str


def read(dataset: Any, index: int) -> Any:
    """dataset[index], or `Unreadable`.

    >>> from timm_mix.train.data.image_folder import ImageFiles
    >>> read(ImageFiles([Path("lost.png")], np.array([0]), ["cat"]), 0).fault
    'lost.png is no image that can be read ([Errno 2] No such file or directory: it): replace or remove it'
    """
    try:
        return dataset[index]
    except UsageError as error:
        mode = dataset.mode
        black = torch.zeros(mode, 64, 64) if isinstance(mode, int) else Image.new(mode, (64, 64))
        stand_in = black if dataset.transform is None else dataset.transform(black)
        return Unreadable(str(error), (stand_in, getattr(dataset, "no_label", 0)))


def collate(items: list[Any]) -> Any:
    """A batch of items of `read`, or a `FaultyBatch`.

    >>> items = [(torch.ones(1, 2, 2), 4), Unreadable("cat.png is torn", stand_in=(torch.zeros(1, 2, 2), 0))]
    >>> batch = collate(items)
    >>> batch.images.sum((1, 2, 3)), batch.fault
    (tensor([4., 0.]), 'cat.png is torn')
    """
    faults = [item.fault for item in items if isinstance(item, Unreadable)]
    batch = default_collate([item.stand_in if isinstance(item, Unreadable) else item for item in items])
    return FaultyBatch(batch[0], batch[1], faults[0]) if faults else batch


def _check_depth(image: Image.Image) -> None:
    """Pillow would clip such an image to white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        raise ValueError(f"more than 8 bits per channel, PIL mode {image.mode}")
