"""Crops, flips, normalisation and random erasing of a whole batch at once, on the device that holds the images.

The augmentation of `small_image_transform` for images that lie in memory: `plan_views` draws everything in numpy, a few
calls per batch, `cut_views` and `erase` touch the pixels. There is no loop over samples and no wait for the device.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from timm_mix.train.data.transforms import PAD_MODES
from timm_mix.train.errors import UsageError

__all__ = ["NO_AUGMENTATION", "Augmentation", "ViewPlan", "cut_views", "erase", "plan_views", "to_device"]

ERASE_MODES = ("const", "rand", "pixel")
ERASE_ATTEMPTS = 10  # timm's and torchvision's: a box that does not fit is drawn anew that often, then left out


@dataclass(frozen=True)
class Augmentation:
    """What is drawn for every view; the defaults are those of `small_image_transform`.

    Args:
        padding: pixels added on each side before the crop.
        pad_mode: "constant" (zeros), "edge", "reflect" or "symmetric".
        hflip: probability of the horizontal flip. vflip: of the vertical one.
        re_prob: probability of random erasing (Zhong et al., arXiv:1708.04896).
        re_mode: what fills a box, after normalising: "const" 0, "rand" one normal draw per channel, "pixel" one per
            pixel and channel.
        re_count: an image gets 1 .. re_count boxes, which share the area.
        re_scale: area of all boxes together as a share of the image. re_ratio: height over width of each.
    Raises:
        UsageError: a value out of range.

    >>> Augmentation(padding=2, pad_mode="wrap")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: pad_mode must be one of constant, edge, reflect, symmetric, got 'wrap': correct it
    """

    padding: int = 4
    pad_mode: str = "constant"
    hflip: float = 0.5
    vflip: float = 0.0
    re_prob: float = 0.0
    re_mode: str = "const"
    re_count: int = 1
    re_scale: tuple[float, float] = (0.0625, 0.1)
    re_ratio: tuple[float, float] = (0.99, 1.0)

    def __post_init__(self) -> None:
        for name, choices in (("pad_mode", PAD_MODES), ("re_mode", ERASE_MODES)):
            if getattr(self, name) not in choices:
                raise UsageError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}: correct it")
        for name in ("hflip", "vflip", "re_prob"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} must lie in [0, 1], got {getattr(self, name)}: it is a probability")
        for name, smallest in (("padding", 0), ("re_count", 1)):
            if getattr(self, name) < smallest:
                raise UsageError(f"{name} must be at least {smallest}, got {getattr(self, name)}: raise it")
        if not 0 <= self.re_scale[0] <= self.re_scale[1] <= 1:
            raise UsageError(f"re_scale must be two shares in [0, 1], the smaller first, got {self.re_scale}")
        if not 0 < self.re_ratio[0] <= self.re_ratio[1]:
            raise UsageError(f"re_ratio must be two numbers > 0, the smaller first, got {self.re_ratio}")


NO_AUGMENTATION = Augmentation(padding=0, hflip=0.0)


@dataclass(frozen=True)
class ViewPlan:
    """What was drawn for n views.

    Shapes:
        top, left: [n] int64, the crop's corner in the padded image.
        hflip, vflip: [n] bool, done after the crop.
        boxes: [n, re_count, 4] int64 (top, bottom, left, right), half-open, in pixels of the view; an empty
            one erases nothing.
        colours: [n, re_count, C] float32, what fills each box ("rand"), else None.
        noise_seed: seed of the device's generator of what fills the boxes ("pixel"), else None.

    >>> one, yes, no = np.array([1]), np.array([True]), np.array([False])
    >>> plan = ViewPlan(top=one, left=one, hflip=yes, vflip=no, boxes=np.zeros((1, 1, 4), int))
    >>> pixels = torch.tensor([[0], [1], [2], [3], [4]]).byte()  # a black one, and an image of 2 x 2
    >>> cut_views(pixels, (2, 2), np.array([0]), plan, Augmentation(padding=1))
    tensor([[[[2, 1],
              [4, 3]]]], dtype=torch.uint8)
    """

    top: np.ndarray
    left: np.ndarray
    hflip: np.ndarray
    vflip: np.ndarray
    boxes: np.ndarray
    colours: np.ndarray | None = None
    noise_seed: int | None = None


def plan_views(
    count: int, shape: tuple[int, int, int], settings: Augmentation, *, rng: np.random.Generator
) -> ViewPlan:
    """Draw the crops, flips and erased boxes of `count` views of images [C, H, W] = shape.

    >>> plan = plan_views(1000, (3, 32, 32), Augmentation(padding=4), rng=np.random.default_rng(0))
    >>> plan.top.min().item(), plan.top.max().item(), plan.boxes.shape
    (0, 8, (1000, 1, 4))
    """
    top, left = rng.integers(2 * settings.padding + 1, size=(2, count))
    vflip, hflip = rng.random((2, count)) < [[settings.vflip], [settings.hflip]]
    boxes = _draw_boxes(count, shape[1:], settings, rng)
    colours = noise_seed = None
    if settings.re_prob and settings.re_mode == "rand":
        colours = rng.standard_normal((count, settings.re_count, shape[0]), dtype=np.float32)
    if settings.re_prob and settings.re_mode == "pixel":
        noise_seed = int(rng.integers(2**63))
    return ViewPlan(top, left, hflip, vflip, boxes, colours, noise_seed)


def cut_views(
    pixels: Tensor, size: tuple[int, int], index: np.ndarray, plan: ViewPlan, settings: Augmentation
) -> Tensor:
    """Crop view i from image index[i], padded as the settings say, and flip it.

    Shapes: with H, W = size, n = len(index)
        pixels: [1 + N * H * W, C] uint8 on the device: a black pixel, then those of N images row by row.
        index: [n] int64.   returns: [n, C, H, W] uint8, channels last in memory.

    >>> pixels = torch.tensor([[0], [1], [2], [3], [4]]).byte()  # a black one, and an image of 2 x 2
    >>> plan = plan_views(1, (1, 2, 2), NO_AUGMENTATION, rng=np.random.default_rng(0))
    >>> cut_views(pixels, (2, 2), np.array([0]), plan, NO_AUGMENTATION)
    tensor([[[[1, 2],
              [3, 4]]]], dtype=torch.uint8)
    """
    height, width = size
    rows = _source_lines(plan.top, plan.vflip, height, settings)
    columns = _source_lines(plan.left, plan.hflip, width, settings)
    outside = -len(pixels)  # too low for any sum of the two to be a place
    starts = np.where(rows < 0, outside, 1 + (index[:, None] * height + rows) * width)
    columns = np.where(columns < 0, outside, columns)
    places = to_device(starts, pixels.device)[:, :, None] + to_device(columns, pixels.device)[:, None, :]
    chosen = pixels.index_select(0, places.clamp_(min=0).flatten())  # all that lies outside is the black pixel
    return chosen.view(len(index), height, width, -1).permute(0, 3, 1, 2)


def erase(views: Tensor, plan: ViewPlan) -> Tensor:
    """Fill the boxes of a plan, in place; where boxes overlap the last one counts.

    Shapes:
        views: [n, C, H, W] float, normalised.   returns: views.

    >>> settings = Augmentation(re_prob=1.0, re_scale=(0.25, 0.25))
    >>> plan = plan_views(1, (1, 4, 4), settings, rng=np.random.default_rng(0))
    >>> int((erase(torch.ones(1, 1, 4, 4), plan) == 0).sum())  # a quarter of the pixels
    4
    """
    if not plan.boxes.any():
        return views
    top, bottom, left, right = to_device(plan.boxes, views.device)[..., None].unbind(2)  # [n, re_count, 1] each
    row, column = (torch.arange(length, device=views.device) for length in views.shape[2:])
    inside = ((top <= row) & (row < bottom))[..., None] & ((left <= column) & (column < right))[:, :, None]
    if plan.colours is not None:
        colours = to_device(plan.colours, views.device)
        for k in range(inside.shape[1]):
            torch.where(inside[:, k, None], colours[:, k, :, None, None], views, out=views)
        return views
    erased = inside.any(1)[:, None]
    if plan.noise_seed is None:
        return views.masked_fill_(erased, 0.0)
    generator = torch.Generator(views.device).manual_seed(plan.noise_seed)
    noise = torch.randn(views.shape, generator=generator, device=views.device)
    return torch.where(erased, noise, views, out=views)


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """Copy to the device without waiting for what the device still has to do.

    >>> to_device(np.arange(3), torch.device("cpu"))
    tensor([0, 1, 2])
    """
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def _source_lines(offset: np.ndarray, flip: np.ndarray, length: int, settings: Augmentation) -> np.ndarray:
    """The image's row (or column) behind each row of each view; -1 where it is black.

    Shapes:
        offset: [n] int64, flip: [n] bool.   returns: [n, length] int64.
    """
    fill: dict[str, Any] = {"constant_values": -1} if settings.pad_mode == "constant" else {}
    table = np.pad(np.arange(length), settings.padding, mode=settings.pad_mode, **fill)  # type: ignore[call-overload]
    lines = table[offset[:, None] + np.arange(length)]
    return np.where(flip[:, None], lines[:, ::-1], lines)


def _draw_boxes(count: int, size: tuple[int, int], settings: Augmentation, rng: np.random.Generator) -> np.ndarray:
    """Boxes as timm's RandomErasing draws them, for all views at once.

    A box has a uniform area, a log-uniform ratio and a uniform place; one that is as high or as wide as the image is
    drawn anew.

    Shapes:
        returns: [count, re_count, 4] int64 (top, bottom, left, right).
    """
    boxes = np.zeros((count, settings.re_count, 4), np.int64)
    if not settings.re_prob:
        return boxes
    boxes_of = rng.integers(1, settings.re_count + 1, count)
    wanted = (rng.random(count) < settings.re_prob)[:, None] & (np.arange(settings.re_count) < boxes_of[:, None])
    view, place = np.nonzero(wanted)
    low, high = (math.log(ratio) for ratio in settings.re_ratio)
    for _ in range(ERASE_ATTEMPTS):
        area = rng.uniform(*settings.re_scale, len(view)) * math.prod(size) / boxes_of[view]
        ratio = np.exp(rng.uniform(low, high, len(view)))
        rows, columns = (np.rint(np.sqrt(part)).astype(np.int64) for part in (area * ratio, area / ratio))
        fits = (rows < size[0]) & (columns < size[1])
        top, left = (rng.integers(np.maximum(n - box, 0) + 1) for n, box in zip(size, (rows, columns), strict=True))
        drawn = np.stack([top, top + rows, left, left + columns], 1)
        boxes[view[fits], place[fits]] = drawn[fits]
        view, place = view[~fits], place[~fits]
        if not len(view):
            break
    return boxes
