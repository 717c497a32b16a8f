"""The Mix Block of AutoMix (arXiv:2103.13027) and of SAMix (arXiv:2111.15454): features and lam in, masks out."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from timm_mix.functional.automix import attention_masks, checked_mode, embedded_lam
from timm_mix.registry import Registry, check_takes

__all__ = ["MIX_BLOCKS", "MixBlock", "SAMixBlock", "make_mix_block"]


def _check(name: str, block: Any) -> None:
    if not isinstance(block, type) or not issubclass(block, nn.Module):
        raise ValueError(f"Mix Block {name!r} must be a subclass of torch.nn.Module, got {block!r}")
    check_takes(f"Mix Block {name!r}", block, "(channels, *, settings)", 1)
    what = f"forward of Mix Block {name!r}"
    check_takes(what, block.forward, "(features, partners, lam, size)", None, None, None, None, None)


MIX_BLOCKS: Registry[type[nn.Module]] = Registry("block", _check)


@MIX_BLOCKS.register("automix")
class MixBlock(nn.Module):
    """AutoMix's: one query projection for both images, a linear value of the partner.

    Args:
        channels: C of the features.
        lam_channel: feed the ratio as one more channel (published: on ImageNet; on CIFAR not at all).
        mode: upsampling of the map, 'nearest' or 'bilinear'.
    Shapes: features [B, C, h, w], partners [B] int64, size (H, W) of the images -> masks [B, 2, 1, H, W], float32.

    >>> block = MixBlock(8, lam_channel=False)
    >>> masks = block(torch.rand(4, 8, 4, 6), torch.tensor([3, 2, 1, 0]), 0.75, size=(16, 24))
    >>> masks.shape, bool(masks.sum(1).allclose(torch.ones(4, 1, 16, 24)))
    (torch.Size([4, 2, 1, 16, 24]), True)
    """

    def __init__(self, channels: int, *, lam_channel: bool = True, mode: str = "nearest"):
        super().__init__()
        width = channels + 1 if lam_channel else channels
        self.lam_channel = lam_channel
        self.mode = checked_mode(mode)  # a wrong one is refused here, not in the first step
        self.query = nn.Conv2d(width, channels // 2, 1)
        self.value = nn.Conv2d(width, 1, 1)
        _init(self)

    def forward(self, features: Tensor, partners: Tensor, lam: float, size: tuple[int, int]) -> Tensor:
        own, partner = features, features[partners]
        if self.lam_channel:
            own, partner = _with_channel(own, lam), _with_channel(partner, 1 - lam)
        return attention_masks(self.query(own), self.query(partner), self.value(partner), size, self.mode)


@MIX_BLOCKS.register("samix")
class SAMixBlock(nn.Module):
    """SAMix's: query and key see both images, the value is learned by two layers, lam scales the features.

    Args:
        channels: C of the features.
        k: of the embedded lam (published: .25 on CIFAR; -1 takes lam itself).
        drop: dropout of the value map (published: .1 on ImageNet).
        mode: upsampling of the map.
    Shapes: as MixBlock.

    >>> block = SAMixBlock(8, k=-1)
    >>> block(torch.rand(4, 8, 4, 6), torch.tensor([3, 2, 1, 0]), 0.75, size=(16, 24)).shape
    torch.Size([4, 2, 1, 16, 24])
    """

    def __init__(self, channels: int, *, k: float = 0.25, drop: float = 0.0, mode: str = "bilinear"):
        super().__init__()
        embedded_lam(0.5, k)  # an impossible k is refused here, not in the first step
        self.k = k
        self.mode = checked_mode(mode)
        hidden = channels // 2
        self.query = nn.Conv2d(2 * channels, hidden, 1)
        self.key = nn.Conv2d(2 * channels, hidden, 1)
        self.value = nn.Sequential(
            nn.Conv2d(channels, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ELU(),
            nn.Conv2d(hidden, 1, 1, bias=False),
            nn.Dropout(drop),
        )
        _init(self)

    def forward(self, features: Tensor, partners: Tensor, lam: float, size: tuple[int, int]) -> Tensor:
        shift = embedded_lam(lam, self.k)
        own, partner = features * (1 + shift), features[partners] * (2 - shift)
        both = torch.cat([own, partner], dim=1)
        return attention_masks(self.query(both), self.key(both), self.value(partner), size, self.mode)


def make_mix_block(name: str, channels: int, settings: dict[str, Any]) -> nn.Module:
    """A Mix Block by its name, for features with `channels` channels.

    Raises:
        ValueError: an unknown name or setting.

    >>> make_mix_block("samix", 8, {"drop": 0.1}).mode
    'bilinear'
    >>> make_mix_block("automix", 8, {"drop": 0.1})
    Traceback (most recent call last):
    ValueError: block automix has no setting 'drop'; it has lam_channel, mode
    """
    known = [p.name for p in inspect.signature(MIX_BLOCKS.find(name)).parameters.values() if p.kind is p.KEYWORD_ONLY]
    for setting in settings:
        if setting not in known:
            raise ValueError(f"block {name} has no setting {setting!r}; it has {', '.join(sorted(known))}")
    return MIX_BLOCKS.find(name)(channels, **settings)


def _with_channel(features: Tensor, value: float) -> Tensor:
    return torch.cat([features, features.new_full((), value).expand_as(features[:, :1])], dim=1)


def _init(block: nn.Module) -> None:
    """N(0, .01), biases 0, as published."""
    for layer in block.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.01)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
