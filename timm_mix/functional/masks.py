"""Mixing blocks: masks over the members of a mixed input (MixMo; Rame et al., ICCV 2021, arXiv:2103.06132, sec. 3.2).

A family draws the region that role 0 cuts out: 1 where a place is role 0's, 0 where it is not, between where it is
shared. Boxes and intervals are drawn on the CPU (boxes.py), a few numbers per sample; regions made of noise are
generated on the device by a generator whose seed belongs to the plan. Nothing here loops over samples.

Shapes, in every family: kappa [B] on the device; shape = (B, C', h, w); returns float32, or bool if it is binary,
    [B, 1 or C', h, w], or [B, C', 1, 1] where all places of a channel are alike.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "channel",
    "check_masks",
    "check_shares",
    "cow",
    "fmix",
    "linear_masks",
    "noise",
    "patchup_hard",
    "patchup_hard_2d",
    "patchup_soft",
]

PATCH = 7  # side of PatchUp's blocks
COW_TAPS = 97  # taps of CowMask's Gaussian
FMIX_DECAY = 3.0

Shape = tuple[int, int, int, int]


def linear_masks(ratios: Tensor, size: tuple[int, int]) -> Tensor:
    """Constant masks: every place is shared in the same proportion (Linear-MixMo; mixup for two members).

    Shapes: ratios [B, M], sums to 1.   returns [B, M, 1, h, w], a view that must not be written to.

    >>> masks = linear_masks(torch.tensor([[0.25, 0.75]]), (4, 6))
    >>> masks.shape, masks[0, :, 0, 0, 0].tolist()
    (torch.Size([1, 2, 1, 4, 6]), [0.25, 0.75])
    """
    return ratios[:, :, None, None, None].expand(-1, -1, 1, *size)


def channel(kappa: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    """Bernoulli(kappa) per channel: whole feature maps change hands.

    >>> region = channel(torch.tensor([0.0, 1.0]), (2, 3, 4, 4), torch.Generator().manual_seed(0))
    >>> region.shape, region.flatten(1).tolist()  # kappa 0 keeps no channel, kappa 1 all
    (torch.Size([2, 3, 1, 1]), [[False, False, False], [True, True, True]])
    """
    drawn = torch.rand(shape[0], shape[1], 1, 1, generator=generator, device=kappa.device)
    return drawn < kappa[:, None, None, None]


def noise(kappa: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    """Uniform noise per channel and place, squeezed towards kappa; its mean is .25 + .5 kappa, as published.

    >>> region = noise(torch.tensor([0.5]), (1, 3, 32, 32), torch.Generator().manual_seed(0))
    >>> region.shape, round(float(region.mean()), 1)
    (torch.Size([1, 3, 32, 32]), 0.5)
    """
    u = torch.rand(shape, generator=generator, device=kappa.device).sub_(0.5)
    k = kappa[:, None, None, None]
    return u.addcmul_(u.abs(), 1 - 2 * k).add_(k)  # 2 k min(u, 0) + 2 (1 - k) max(u, 0) + k


def patchup_hard(kappa: Tensor, shape: Shape, generator: torch.Generator, channels: int | None = None) -> Tensor:
    """Blocks of 7x7 around Bernoulli centres (Faramarzi et al., arXiv:2006.07794), drawn per channel and place.

    >>> region = patchup_hard(torch.tensor([0.5]), (1, 3, 16, 16), torch.Generator().manual_seed(0))
    >>> region.shape, region.dtype
    (torch.Size([1, 3, 16, 16]), torch.bool)
    """
    width = shape[3]
    rarity = width**2 / (PATCH**2 * max(width - PATCH + 1, 1) ** 2)
    size = (shape[0], channels or shape[1], *shape[2:])
    centres = _rare_places(kappa * rarity, rarity, size, generator)
    return _grow(_grow(centres, 2), 3)


def patchup_hard_2d(kappa: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    """PatchUp's blocks, drawn once for all channels.

    >>> patchup_hard_2d(torch.tensor([0.5]), (1, 3, 16, 16), torch.Generator().manual_seed(0)).shape
    torch.Size([1, 1, 16, 16])
    """
    return patchup_hard(kappa, shape, generator, channels=1)


def patchup_soft(kappa: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    """Ones in PatchUp's blocks, kappa elsewhere.

    >>> region = patchup_soft(torch.tensor([0.25]), (1, 3, 16, 16), torch.Generator().manual_seed(0))
    >>> region.unique().tolist()
    [0.25, 1.0]
    """
    return torch.maximum(patchup_hard(kappa, shape, generator), kappa[:, None, None, None])


def cow(kappa: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    """Smooth random blobs (French et al., arXiv:2003.12022): blurred normal noise below a quantile; ignores kappa.

    p ~ U(.2, .8) is the share below the threshold, sigma is log-uniform in [4, 16], the blur pads with zeros and has
    97 taps. One mask for all channels.

    >>> region = cow(torch.tensor([0.5, 0.5]), (2, 3, 16, 24), torch.Generator().manual_seed(0))
    >>> region.shape, region.dtype
    (torch.Size([2, 1, 16, 24]), torch.bool)
    """
    batch, _, height, width = shape
    drawn = torch.rand(2, batch, 1, 1, generator=generator, device=kappa.device)
    p, sigma = 0.2 + 0.6 * drawn[0], torch.exp(math.log(4) + drawn[1] * math.log(16 / 4))
    field = torch.randn(batch, height, width, generator=generator, device=kappa.device)
    with torch.autocast(kappa.device.type, enabled=False):  # products of matrices would be taken in half
        field = _blur_matrix(height, sigma) @ field
        field = field @ _blur_matrix(width, sigma).mT
    std, mean = torch.std_mean(field, (1, 2), keepdim=True)
    return (field <= mean + math.sqrt(2) * torch.erfinv(2 * p - 1) * std)[:, None]


def fmix(kappa: Tensor, shape: Shape, generator: torch.Generator) -> Tensor:
    """Low-frequency Fourier noise, the largest kappa of it (Harris et al., arXiv:2002.12047; decay 3).

    >>> region = fmix(torch.tensor([0.0, 0.25]), (2, 3, 8, 8), torch.Generator().manual_seed(0))
    >>> region.shape, region.sum((1, 2, 3)).tolist()  # of 64 places
    (torch.Size([2, 1, 8, 8]), [0, 16])
    """
    batch, _, height, width = shape
    rows = torch.fft.fftfreq(height, device=kappa.device)[:, None]
    cols = torch.fft.rfftfreq(width, device=kappa.device)[None]
    frequency = torch.sqrt(rows**2 + cols**2).clamp(min=1 / max(height, width))
    drawn = torch.randn(batch, *frequency.shape, 2, generator=generator, device=kappa.device)
    spectrum = torch.view_as_complex(drawn).mul_(frequency**-FMIX_DECAY)
    field = torch.fft.irfft2(spectrum, s=(height, width)).flatten(1)
    places = height * width
    kept = (kappa * places).round().long().clamp(max=places)
    smallest = _sort_rows(field).gather(1, (places - kept[:, None]).clamp(max=places - 1))[:, 0]
    threshold = torch.where(kept > 0, smallest, math.inf)
    return (field >= threshold[:, None]).view(batch, 1, height, width)


def _rare_places(gamma: Tensor, most: float, size: Shape, generator: torch.Generator) -> Tensor:
    """Bernoulli(gamma) per place, for places that are rarely true; gamma [B], at most `most`; returns bool `size`.

    A Poisson number of places, each drawn uniformly and with replacement, hits every place independently with
    probability 1 - exp(-number / places). So few numbers are drawn where `most` is small; their count is fixed by
    `most` (6 standard deviations above the mean), because reading the real one would make the device wait.
    """
    if most > 0.1:  # small maps
        return torch.rand(size, generator=generator, device=gamma.device) < gamma[:, None, None, None]
    places = math.prod(size[1:])
    mean = -math.log1p(-most) * places
    drawn = torch.poisson(-torch.log1p(-gamma) * places, generator=generator)
    spots = torch.randint(
        places, (size[0], int(mean + 6 * math.sqrt(mean)) + 6), generator=generator, device=gamma.device
    )
    spots.masked_fill_(torch.arange(spots.shape[1], device=gamma.device) >= drawn[:, None], places)
    hit = torch.zeros(size[0], places + 1, dtype=torch.bool, device=gamma.device)  # the last takes what is too much
    return hit.scatter_(1, spots, True)[:, :-1].view(size)


def _sort_rows(values: Tensor) -> Tensor:
    """Rows in ascending order; on the CPU by NumPy, whose sort uses the vector unit and is ten times faster."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sort(values.numpy(), axis=1))
    return values.sort(dim=1).values


def _grow(centres: Tensor, axis: int) -> Tensor:
    """Every true place spreads over the PATCH places around it along an axis; [B, C, h, w] bool.

    A running "or" of length 7 in steps of 1, 2, 3 places to the left, on bytes: max_pool2d does the same on floats.
    """
    reach, length = PATCH // 2, centres.shape[axis]
    pads = [0, 0, reach, reach] if axis == 2 else [reach, reach, 0, 0]
    spread = F.pad(centres, pads)
    for step in (1, 2, 3):
        kept = spread.shape[axis] - step
        spread = spread.narrow(axis, 0, kept) | spread.narrow(axis, step, kept)
    return spread.narrow(axis, 0, length)


def _blur_matrix(length: int, sigma: Tensor) -> Tensor:
    """Zero-padded Gaussian blur along an axis as a matrix; sigma [B, 1, 1] -> [B, length, length]."""
    place = torch.arange(length, device=sigma.device)
    distance = (place[:, None] - place[None]).abs()
    reach = COW_TAPS // 2
    taps = torch.arange(-reach, reach + 1, device=sigma.device)
    weight = torch.exp(-((distance / sigma) ** 2) / 2) * (distance <= reach)
    return weight / torch.exp(-((taps / sigma) ** 2) / 2).sum(-1, keepdim=True)


def check_masks(masks: Tensor, members: int, encoded: Tensor) -> None:
    """Check type, device and shape of masks against the encoders' output; costs nothing on any device.

    Shapes: masks [B|1, M, 1|C', h, w].   encoded [B, C', h, w].
    Raises:
        ValueError: no floating-point tensor, another device, another shape.

    >>> encoded = torch.zeros(5, 3, 4, 6)
    >>> check_masks(torch.full((5, 2, 1, 4, 6), 0.5), 2, encoded)
    >>> check_masks(torch.full((5, 2, 1, 6, 4), 0.5), 2, encoded)
    Traceback (most recent call last):
    ValueError: masks must be [5 or 1, 2, 1 or 3, 4, 6] (batch, members, ...), got [5, 2, 1, 6, 4]; ...
    """
    if not isinstance(masks, Tensor) or not masks.is_floating_point():
        given = masks.dtype if isinstance(masks, Tensor) else type(masks).__name__
        raise ValueError(f"masks must be a floating-point tensor, got {given}; call .float() on it")
    if masks.device != encoded.device:
        raise ValueError(f"masks must be on {encoded.device}, where the images are, got {masks.device}")
    batch, channels, height, width = encoded.shape
    ok = masks.ndim == 5 and masks.shape[0] in (1, batch) and masks.shape[2] in (1, channels)
    if not ok or masks.shape[1] != members or tuple(masks.shape[3:]) != (height, width):
        raise ValueError(
            f"masks must be [{batch} or 1, {members}, 1 or {channels}, {height}, {width}] (batch, members, channels "
            f"and places of the stem's output), got {list(masks.shape)}; see model.stem_shape((H, W))"
        )


def check_shares(masks: Tensor) -> None:
    """Check that masks on the CPU are shares: none negative, and sums of 1 over the members.

    On an accelerator they are taken as they are: reading them would make the training step wait for the device.

    Raises:
        ValueError: a negative share, or a place whose shares do not sum to 1.

    >>> check_shares(torch.full((5, 2, 1, 4, 6), 0.5))
    >>> check_shares(torch.full((5, 2, 1, 4, 6), 0.75))
    Traceback (most recent call last):
    ValueError: masks must sum to 1 over the members (dim 1) at every place, got a sum 0.5 off
    """
    if masks.device.type != "cpu" or masks.numel() == 0:
        return
    least = float(masks.detach().min())
    if least < 0:
        raise ValueError(f"masks must be >= 0 at every place, got {least:.3g}")
    tolerance = 1e-4 if torch.finfo(masks.dtype).bits >= 32 else 2e-2
    error = float((masks.detach().sum(1) - 1).abs().max())
    if not error <= tolerance:
        raise ValueError(f"masks must sum to 1 over the members (dim 1) at every place, got a sum {error:.3g} off")
