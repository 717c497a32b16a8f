"""Mixing blocks sample by sample: what benchmark.py compares the vectorised ones to.

Each function makes the mask of role 0 for ONE sample, [C', h, w], as a loader that mixes sample by sample would.
"""

import math
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["masks_one_by_one"]

Shape = tuple[int, int, int]


def masks_one_by_one(family: str, kappa: np.ndarray, shape: Shape, rng: np.random.Generator) -> Tensor:
    """Masks of two members for a batch, one sample after the other: [B, 2, C', h, w]."""
    masks = []
    for k in kappa:
        mask = _ONE[family](float(k), shape, rng)
        masks.append(torch.stack([mask, 1 - mask]))
    return torch.stack(masks)


def _linear(kappa: float, shape: Shape, rng: np.random.Generator) -> Tensor:
    return torch.full(shape, kappa)


def _cut(kappa: float, shape: Shape, rng: np.random.Generator) -> Tensor:
    mask = torch.zeros(shape)
    half_h, half_w = (int(n * math.sqrt(kappa)) // 2 for n in shape[1:])
    y, x = int(rng.integers(shape[1])), int(rng.integers(shape[2]))
    mask[:, max(y - half_h, 0) : y + half_h, max(x - half_w, 0) : x + half_w] = 1
    return mask


def _interval(axis: int) -> Callable[[float, Shape, np.random.Generator], Tensor]:
    def one(kappa: float, shape: Shape, rng: np.random.Generator) -> Tensor:
        n, mask = shape[axis], torch.zeros(shape)
        if rng.random() < 0.5:
            mask.narrow(axis, 0, int(kappa * n)).fill_(1)
        else:
            kept = int((1 - kappa) * n)
            mask.narrow(axis, n - kept, kept).fill_(1)
        return mask

    return one


def _channel(kappa: float, shape: Shape, rng: np.random.Generator) -> Tensor:
    return (torch.rand(shape[0], 1, 1) < kappa).float().expand(shape)


def _noise(kappa: float, shape: Shape, rng: np.random.Generator) -> Tensor:
    u = torch.rand(shape) - 0.5
    return 2 * (kappa * u.clamp(max=0) + (1 - kappa) * u.clamp(min=0)) + kappa


def _patchup(channels: bool, soft: bool = False) -> Callable[[float, Shape, np.random.Generator], Tensor]:
    def one(kappa: float, shape: Shape, rng: np.random.Generator) -> Tensor:
        gamma = kappa * shape[2] ** 2 / (49 * (shape[2] - 6) ** 2)
        centres = (torch.rand((shape[0] if channels else 1, *shape[1:])) < gamma).float()
        mask = F.max_pool2d(centres[None], 7, stride=1, padding=3)[0].expand(shape)
        return mask + (1 - mask) * kappa if soft else mask

    return one


def _cow(kappa: float, shape: Shape, rng: np.random.Generator) -> Tensor:
    p, sigma = rng.uniform(0.2, 0.8), math.exp(rng.uniform(math.log(4), math.log(16)))
    taps = torch.exp(-((torch.arange(-48.0, 49.0) / sigma) ** 2) / 2)
    taps = taps / taps.sum()
    field = torch.randn(1, 1, *shape[1:])
    field = F.conv2d(F.conv2d(field, taps.view(1, 1, 97, 1), padding=(48, 0)), taps.view(1, 1, 1, 97), padding=(0, 48))
    threshold = field.mean() + math.sqrt(2) * torch.erfinv(torch.tensor(2 * p - 1)) * field.std()
    return (field[0] <= threshold).float().expand(shape)


def _fmix(kappa: float, shape: Shape, rng: np.random.Generator) -> Tensor:
    height, width = shape[1:]
    frequency = np.sqrt(np.fft.fftfreq(height)[:, None] ** 2 + np.fft.rfftfreq(width)[None] ** 2)
    scale = 1 / np.maximum(frequency, 1 / max(height, width)) ** 3
    spectrum = (rng.normal(size=scale.shape) + 1j * rng.normal(size=scale.shape)) * scale
    field = np.fft.irfft2(spectrum, (height, width)).ravel()
    mask = np.zeros(field.size, dtype=np.float32)
    mask[np.argsort(-field)[: round(kappa * field.size)]] = 1
    return torch.from_numpy(mask).view(1, height, width).expand(shape)


_ONE: dict[str, Callable[[float, Shape, np.random.Generator], Tensor]] = {
    "linear": _linear,
    "cut": _cut,
    "channel_concat": _interval(0),
    "horizontal": _interval(1),
    "vertical": _interval(2),
    "channel": _channel,
    "noise": _noise,
    "patchup_hard": _patchup(channels=True),
    "patchup_hard_2d": _patchup(channels=False),
    "patchup_soft": _patchup(channels=True, soft=True),
    "cow": _cow,
    "fmix": _fmix,
}
