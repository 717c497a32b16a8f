"""Images of any number of channels: arrays in .npy files, TIFFs of several bands, or what Pillow knows.

They become float32 tensors in [0, 1]: 8 bits are divided by 255, 16 by 65535, floating point numbers stay as they are.
"""

from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

__all__ = ["is_array", "read_array", "read_bands", "to_bands"]

NUMPY = b"\x93NUMPY"  # how such a file begins
TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")  # the last two: BigTIFF
BITS_PER_SAMPLE, SAMPLES_PER_PIXEL = 258, 277  # tags of TIFF
LARGEST = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535}


def read_bands(file: Path | IO[bytes], channels: int) -> Tensor:
    """The image of a file with so many channels: [C, H, W] float32.

    Raises:
        ValueError: another number of channels; whole numbers of other than 8 or 16 bits without sign; values that are
            no numbers; a TIFF that Pillow does not read whole, without tifffile. Others are the readers'.

    >>> np.save("field.npy", np.full((5, 7, 13), 65535, np.uint16))
    >>> read_bands(Path("field.npy"), 13).shape, read_bands(Path("field.npy"), 13).unique()
    (torch.Size([13, 5, 7]), tensor([1.]))
    """
    if is_array(file):
        return to_bands(read_array(file), channels)
    if _begins(file, TIFF):
        return to_bands(_read_tiff(file, channels), channels)
    with Image.open(file) as image:
        return to_bands(np.asarray(image), channels)


def to_bands(array: np.ndarray, channels: int) -> Tensor:
    """[H, W, C], [C, H, W] or [H, W] -> [C, H, W] float32; where both ends have C entries the channels come last.

    Raises:
        ValueError: as `read_bands`.

    >>> to_bands(np.zeros((5, 7, 4), np.uint8), 2)
    Traceback (most recent call last):
        ...
    ValueError: it has the shape 5 x 7 x 4, the network takes 2 channels, first or last: give another --in-chans
    """
    shape = array.shape
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or channels not in (array.shape[0], array.shape[2]):
        given = " x ".join(map(str, shape))
        raise ValueError(
            f"it has the shape {given}, the network takes {channels} channels, first or last: give another --in-chans"
        )
    if array.shape[2] == channels:
        array = array.transpose(2, 0, 1)
    if not np.issubdtype(array.dtype, np.floating) and array.dtype.newbyteorder("=") not in LARGEST:
        raise ValueError(f"it holds {array.dtype}, wanted uint8, uint16 or floating point numbers")
    bands = torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))
    if not bands.isfinite().all():
        raise ValueError("it holds values that are no numbers")
    return bands / LARGEST.get(array.dtype.newbyteorder("="), 1)


def is_array(file: Path | IO[bytes]) -> bool:
    """Whether the file is what numpy.save writes.

    >>> np.save("one.npy", np.zeros(3))
    >>> is_array(Path("one.npy"))
    True
    """
    return _begins(file, (NUMPY,))


def read_array(file: Path | IO[bytes]) -> np.ndarray:
    """An array without pickled objects.

    >>> np.save("one.npy", np.zeros(3))
    >>> read_array(Path("one.npy"))
    array([0., 0., 0.])
    """
    return np.load(file, allow_pickle=False)


def _begins(file: Path | IO[bytes], words: tuple[bytes, ...]) -> bool:
    if isinstance(file, Path):
        with file.open("rb") as stream:
            return stream.read(8).startswith(words)
    place = file.tell()
    begins = file.read(8).startswith(words)
    file.seek(place)
    return begins


def _read_tiff(file: Path | IO[bytes], channels: int) -> np.ndarray:
    """By Pillow where that gives all bits of all samples, or one page for each channel; else by tifffile."""
    try:
        with Image.open(file) as image:
            samples = int(image.tag_v2.get(SAMPLES_PER_PIXEL, 1))
            pages = getattr(image, "n_frames", 1)
            if samples == 1 and pages == channels:
                return np.stack([_page(image, i) for i in range(pages)])
            array = np.asarray(image)
            if samples == len(image.getbands()) and pages == 1 and 8 * array.itemsize >= max(_bits(image)):
                return array
    except (OSError, SyntaxError):  # "unknown pixel mode", as more than four samples are
        pass
    try:
        import tifffile
    except ImportError:
        raise ValueError(
            f"Pillow does not read {channels} bands of it: pip install tifffile, or save the images as .npy"
        ) from None
    if not isinstance(file, Path):
        file.seek(0)
    return tifffile.imread(file)


def _bits(image: Any) -> tuple[int, ...]:
    """Pillow gives 8 bits of colours that have 16."""
    return tuple(image.tag_v2.get(BITS_PER_SAMPLE, (1,)))


def _page(image: Any, index: int) -> np.ndarray:
    image.seek(index)
    return np.array(image)
