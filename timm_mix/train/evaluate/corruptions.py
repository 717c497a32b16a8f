"""Common corruptions of images: eleven families at five severities, and folders of images corrupted by others.

The families are a subset of those of Hendrycks and Dietterich, ICLR 2019, arXiv:1903.12261 (noise, blur, colour,
compression), written anew: figures compare among models evaluated here, not with those on the published -C sets, whose
severities and code differ. For the published sets give a folder of .npy files (`NpyCorruption`). Weather, glass blur,
elastic and zoom families are left out.

What is drawn for an image depends on (seed, family, severity, index of the image) alone: not on the batch size, the
workers or the processes.
"""

import io
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as v2

from timm_mix.train.errors import UsageError

__all__ = ["FAMILIES", "SEVERITIES", "Corruption", "NpyCorruption", "corrupt", "families_in", "family_names"]

SEVERITIES = (1, 2, 3, 4, 5)
SMALL = 96  # pixels of the longer side; up to here the `small` levels hold

Apply = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


@dataclass(frozen=True)
class Family:
    """apply: (image [H, W, C] float32 in [0, 1], level, rng) -> the same, clipped by the caller.

    small, large: the level of each severity for images of at most SMALL pixels, and for larger ones.
    """

    apply: Apply
    small: tuple[float, ...]
    large: tuple[float, ...]


@dataclass(frozen=True)
class Corruption:
    """One family at one severity, for a whole data set: (image [H, W, C] uint8, index) -> the same.

    >>> noisy, image = Corruption("gaussian_noise", severity=5), np.full((8, 8, 3), 128, np.uint8)
    >>> np.array_equal(noisy(image, 0), noisy(image, 0)), np.array_equal(noisy(image, 0), noisy(image, 1))
    (True, False)
    """

    name: str
    severity: int
    seed: int = 0

    def __call__(self, image: np.ndarray, index: int) -> np.ndarray:
        words = [self.seed, zlib.crc32(self.name.encode()), self.severity, index]
        return corrupt(image, self.name, self.severity, rng=np.random.default_rng(words))


def corrupt(image: np.ndarray, name: str, severity: int, *, rng: np.random.Generator) -> np.ndarray:
    """Corrupt one image.

    Shapes: image [H, W, C] uint8 with C = 1 or 3; returns the same.
    Raises:
        UsageError: an unknown family, or a severity outside 1..5.

    >>> image = np.full((8, 8, 1), 51, np.uint8)
    >>> corrupt(image, "brightness", 5, rng=np.random.default_rng(0)).max().item()  # 0.3 of white brighter
    128
    """
    (name,) = family_names([name])
    if severity not in SEVERITIES:
        raise UsageError(f"severity must be one of 1, 2, 3, 4, 5, got {severity}")
    family = FAMILIES[name]
    levels = family.small if max(image.shape[:2]) <= SMALL else family.large
    corrupted = family.apply(image.astype(np.float32) / 255, levels[severity - 1], rng)
    return np.clip(corrupted * 255, 0, 255).round().astype(np.uint8)


def family_names(given: list[str]) -> list[str]:
    """The families asked for, in the order of FAMILIES; "all" stands for all of them.

    Raises:
        UsageError: an unknown one.

    >>> family_names(["jpeg", "contrast"])
    ['contrast', 'jpeg']
    """
    for name in given:
        if name not in FAMILIES and name != "all":
            raise UsageError(f"a corruption is one of all, {', '.join(FAMILIES)}, got {name!r}; correct the name")
    return [name for name in FAMILIES if name in given or "all" in given]


class NpyCorruption(Dataset):
    """One severity of a ready set: <name>.npy [5 n, H, W, C] uint8, the severities one after the other, and labels.npy.

    labels.npy holds 5 n labels, or n that hold for every severity. The arrays are mapped, not read whole.

    Raises:
        UsageError: an array of another kind or length, or one that cannot be read.

    >>> np.save("jpeg.npy", np.zeros((10, 8, 8, 3), np.uint8))  # five severities of two images
    >>> np.save("labels.npy", np.array([7, 9]))
    >>> images = NpyCorruption(Path("."), "jpeg", severity=3)
    >>> len(images), images[1][1], images.filename(0)
    (2, 9, '0 of jpeg.npy')
    """

    def __init__(self, folder: Path, name: str, severity: int):
        self.path = folder / f"{name}.npy"
        images, labels = _load_array(self.path), _load_array(folder / "labels.npy")
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
            raise UsageError(f"{self.path} must be uint8 [5 n, H, W, C], got {images.dtype} {list(images.shape)}")
        size = len(images) // len(SEVERITIES)
        if size * len(SEVERITIES) != len(images) or size == 0:
            raise UsageError(f"{self.path} must hold five severities of equal size, got {len(images)} images")
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) not in (size, len(images)):
            raise UsageError(
                f"{folder / 'labels.npy'} must hold {size} or {len(images)} whole numbers for {self.path.name}, "
                f"got {labels.dtype} {list(labels.shape)}"
            )
        first = size * SEVERITIES.index(severity)
        self.images = images[first : first + size]
        self.labels = labels[first : first + size] if len(labels) == len(images) else labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        pixels = np.asarray(self.images[index])
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels), int(self.labels[index])

    def filename(self, index: int) -> str:
        return f"{index} of {self.path}"


def families_in(folder: Path) -> list[str]:
    """Names of the families in a folder of .npy files.

    Raises:
        UsageError: no such folder, no labels.npy, or nothing beside it.

    >>> Path("made").mkdir()
    >>> for name in ("labels", "jpeg", "snow"):
    ...     np.save(f"made/{name}.npy", np.zeros(5))
    >>> families_in(Path("made"))
    ['jpeg', 'snow']
    """
    names = sorted(path.stem for path in folder.glob("*.npy")) if folder.is_dir() else []
    if "labels" not in names or len(names) < 2:
        found = f"it holds {', '.join(names)}" if names else "it holds no .npy file" if folder.is_dir() else "no folder"
        raise UsageError(f"--corruptions-dir wants a folder with labels.npy and <family>.npy, {folder}: {found}")
    return [name for name in names if name != "labels"]


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UsageError(f"cannot read {path}: {' '.join(str(error).split())}; it must be a plain .npy file") from error


def _gaussian_noise(x: np.ndarray, std: float, rng: np.random.Generator) -> np.ndarray:
    return x + rng.normal(0, std, x.shape).astype(np.float32)


def _shot_noise(x: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Photon counting: white is `photons` on average."""
    return (rng.poisson(x * photons) / photons).astype(np.float32)


def _impulse_noise(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """This share of all values becomes black or white, half each."""
    drawn = rng.random(x.shape)
    return np.where(drawn < share / 2, np.float32(0), np.where(drawn < share, np.float32(1), x))


def _gaussian_blur(x: np.ndarray, sigma: float, rng: np.random.Generator) -> np.ndarray:
    reach = min(int(np.ceil(3 * sigma)), min(x.shape[:2]) - 1)  # reflection needs a larger image than the reach
    size = [2 * reach + 1] * 2
    return _to_array(v2.gaussian_blur(_to_tensor(x), kernel_size=size, sigma=[sigma, sigma]))


def _defocus_blur(x: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    return _convolve(x, _disk(radius))


def _motion_blur(x: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    return _convolve(x, _line(length, rng.uniform(0, np.pi)))


def _brightness(x: np.ndarray, more: float, rng: np.random.Generator) -> np.ndarray:
    """HSV's value raised by `more`, hue and saturation kept: all channels scaled alike."""
    value = x.max(-1, keepdims=True)
    raised = np.minimum(value + more, 1)
    return np.where(value > 0, x * (raised / np.maximum(value, 1e-6)), raised)


def _contrast(x: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    mean = x.mean((0, 1), keepdims=True)
    return mean + factor * (x - mean)


def _saturate(x: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """HSV's saturation times `factor`, at most 1; grey stays grey."""
    value = x.max(-1, keepdims=True)
    saturation = (value - x.min(-1, keepdims=True)) / np.maximum(value, 1e-6)
    change = np.minimum(factor * saturation, 1) / np.maximum(saturation, 1e-6)
    return value - (value - x) * change


def _pixelate(x: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Averaged down to `factor` of the side, and back in blocks."""
    height, width = x.shape[:2]
    small = (max(1, round(width * factor)), max(1, round(height * factor)))
    shrunk = _to_image(x).resize(small, Image.Resampling.BOX)
    return _from_image(shrunk.resize((width, height), Image.Resampling.NEAREST))


def _jpeg(x: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    file = io.BytesIO()
    _to_image(x).save(file, "JPEG", quality=int(quality))
    with Image.open(file) as image:
        return _from_image(image)


def _to_image(x: np.ndarray) -> Image.Image:
    pixels = (x * 255).round().astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if x.shape[-1] == 1 else pixels)


def _from_image(image: Image.Image) -> np.ndarray:
    pixels = np.asarray(image, dtype=np.float32) / 255
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _to_tensor(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1)))


def _to_array(x: torch.Tensor) -> np.ndarray:
    return x.permute(1, 2, 0).numpy()


def _convolve(x: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Each channel with the same kernel of odd side, the image's edge repeated."""
    reach = kernel.shape[0] // 2
    padded = F.pad(_to_tensor(x)[:, None], [reach] * 4, mode="replicate")  # channels take the place of the batch
    return _to_array(F.conv2d(padded, torch.from_numpy(kernel)[None, None])[:, 0])


@cache
def _disk(radius: float) -> np.ndarray:
    """The share of every pixel that a disk covers, on a grid of 16 x 16 points per pixel; sums to 1."""
    points = _points(int(np.ceil(radius - 0.5)))
    inside = points[:, None] ** 2 + points[None, :] ** 2 <= radius**2
    return _per_pixel(inside)


def _line(length: float, angle: float) -> np.ndarray:
    """A line one pixel wide through the centre; sums to 1."""
    points = _points(int(np.ceil(length / 2)))
    y, x = points[:, None], points[None, :]
    along, across = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return _per_pixel((abs(along) <= length / 2) & (abs(across) <= 0.5))


def _points(reach: int, per_pixel: int = 16) -> np.ndarray:
    """Places within the pixels -reach .. reach, in pixels from the centre."""
    return (np.arange((2 * reach + 1) * per_pixel) + 0.5) / per_pixel - reach - 0.5


def _per_pixel(inside: np.ndarray, per_pixel: int = 16) -> np.ndarray:
    side = len(inside) // per_pixel
    kernel = inside.reshape(side, per_pixel, side, per_pixel).mean((1, 3))
    return (kernel / kernel.sum()).astype(np.float32)


FAMILIES: dict[str, Family] = {
    # standard deviation; white in photons; share of the values
    "gaussian_noise": Family(_gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": Family(_shot_noise, (500, 250, 100, 75, 50), (60, 25, 12, 5, 3)),
    "impulse_noise": Family(_impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27)),
    # pixels: standard deviation, radius, length
    "gaussian_blur": Family(_gaussian_blur, (0.4, 0.6, 0.7, 0.8, 1.0), (1, 2, 3, 4, 6)),
    "defocus_blur": Family(_defocus_blur, (0.8, 1.0, 1.3, 1.6, 2.0), (3, 4, 6, 8, 10)),
    "motion_blur": Family(_motion_blur, (2, 3, 4, 5, 7), (10, 15, 20, 25, 30)),
    # added value; factor; factor
    "brightness": Family(_brightness, (0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5)),
    "contrast": Family(_contrast, (0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05)),
    "saturate": Family(_saturate, (0.7, 0.5, 0.3, 0.1, 0.0), (0.7, 0.5, 0.3, 0.1, 0.0)),
    # share of the side that is left; quality
    "pixelate": Family(_pixelate, (0.9, 0.8, 0.7, 0.6, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": Family(_jpeg, (80, 65, 58, 50, 40), (25, 18, 15, 10, 7)),
}
