"""ResNets for small images with the activation behind the addition.

Those of SplitNet (arXiv:2011.14660):

3x3 stem without pooling, three stages at full, half and quarter size, shortcuts of average pooling and a 1x1
convolution where the stride is 2. `resnet<depth>` and `se_resnet<depth>` have bottleneck blocks of 16, 32 and 64
channels (times 4 at their ends), `resnext29_<g>x64d` has g groups of 64, 128 and 256, `wide_resnet<depth>_<k>` has
basic blocks of 16k, 32k and 64k. The wide ResNets of the paper that named them, with the activation in front, are
`wrn<depth>_<k>`.

`resnet18_cifar` is the ResNet-18 of RecursiveMix (arXiv:2203.06844) and AutoMix (arXiv:2103.13027): timm's resnet18
behind a 3x3 stem of 64 channels without pooling, four stages at full to eighth size.

>>> import timm, torch, timm_mix
>>> timm.create_model("resnet110", layers=(1, 1, 1), num_classes=5)(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2, 5])
"""

from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch
from timm.layers import SEModule
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

__all__ = ["CifarResNet"]


class CifarResNet(ResNet):
    """timm's ResNet with three or four stages behind a 3x3 stem.

    Args:
        layers: number of blocks in each stage.
        channels: width of each stage; a bottleneck block gives out four times as much.
        stem_width: number of channels of the stem.
        bottleneck: bottleneck blocks, not basic ones.
        squeeze: squeeze-and-excitation behind every block, hidden width a quarter of the block's.
        cardinality: number of groups in the 3x3 convolutions of bottleneck blocks, of `channels` each.
        avg_down: average pooling in the shortcuts of stride 2, not a strided convolution.
        fc_std: standard deviation of the classifier's weights at the start.
        global_pool, drop_rate, drop_path_rate, act_layer, norm_layer, zero_init_last: as in timm's ResNet.
    Shapes: [B, in_chans, H, W] -> [B, num_classes]; features [B, num_features, ceil(H / 4), ceil(W / 4)],
        with four stages of an eighth.
    Raises:
        ValueError: not three or four stages, or an odd stem_width.

    >>> model = CifarResNet(layers=(1, 1, 1), channels=(4, 8, 16), num_classes=5)
    >>> model.forward_features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64, 8, 8])
    """

    def __init__(
        self,
        layers: Tuple[int, ...],
        channels: Tuple[int, ...],
        stem_width: int = 16,
        bottleneck: bool = True,
        squeeze: bool = False,
        cardinality: int = 1,
        avg_down: bool = True,
        fc_std: float = 1e-3,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        zero_init_last: bool = True,
        device=None,
        dtype=None,
    ):
        if len(layers) not in (3, 4) or len(channels) != len(layers):
            raise ValueError(f"layers and channels must be three or four numbers each, got {layers} and {channels}")
        if stem_width < 2 or stem_width % 2:
            raise ValueError(f"stem_width must be an even number >= 2, got {stem_width}")
        self.fc_std = fc_std  # timm's constructor calls init_weights
        super().__init__(
            Bottleneck if bottleneck else BasicBlock,
            tuple(layers),
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            cardinality=cardinality,
            stem_type="deep",  # the one stem of free width; only its width remains
            stem_width=stem_width // 2,
            avg_down=avg_down,
            channels=tuple(channels),
            act_layer=act_layer,
            norm_layer=norm_layer,
            drop_rate=drop_rate,
            drop_path_rate=drop_path_rate,
            zero_init_last=zero_init_last,
            block_args={"attn_layer": _squeeze} if squeeze else None,
            device=device,
            dtype=dtype,
        )
        self.conv1 = nn.Conv2d(in_chans, stem_width, 3, padding=1, bias=False, device=device, dtype=dtype)
        self.maxpool = nn.Identity()
        if len(layers) == 3:
            self.layer4 = nn.Sequential()  # empty: timm's forward passes through
        del self.feature_info[0]  # the stem's: one level per reduction
        for info in self.feature_info:
            info["reduction"] //= 4  # the stem and the pooling that are gone
        self.init_weights(zero_init_last)

    @torch.jit.ignore
    def init_weights(self, zero_init_last: bool = True) -> None:
        """Convolutions He normal over the fan out, as in timm's ResNet; classifier N(0, fc_std^2)."""
        super().init_weights(zero_init_last)
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, std=self.fc_std)
            nn.init.zeros_(self.fc.bias)

    def forward_intermediates(
        self, x: torch.Tensor, indices: Optional[Union[int, List[int]]] = None, **kwargs: Any
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Features of the stages; keyword arguments as in timm's ResNet."""
        take_indices, _ = feature_take_indices(len(self.feature_info), indices)
        return super().forward_intermediates(x, [index + 1 for index in take_indices], **kwargs)

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop what the chosen features do not need; returns their indices."""
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        cut = max_index < len(self.feature_info) - 1
        for index in range(max_index + 1, len(self.feature_info)):
            setattr(self, f"layer{index + 1}", nn.Sequential())
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or cut:
            self.reset_classifier(0, "")
        return take_indices


def _squeeze(channels: int, **kwargs: Any) -> nn.Module:
    return SEModule(channels, rd_ratio=1 / 4, rd_divisor=1, **kwargs)


def _bottleneck(depth: int, **kwargs: Any) -> Dict[str, Any]:
    return {"layers": ((depth - 2) // 9,) * 3, "channels": (16, 32, 64), **kwargs}


def _resnext(groups: int) -> Dict[str, Any]:
    return _bottleneck(29, channels=(64, 128, 256), stem_width=64, cardinality=groups)


def _wide(depth: int, k: int, **kwargs: Any) -> Dict[str, Any]:
    return {"layers": ((depth - 4) // 6,) * 3, "channels": (16 * k, 32 * k, 64 * k), "bottleneck": False, **kwargs}


_SQUEEZE = {"squeeze": True, "zero_init_last": False}  # published: no zeros in the squeezed networks
_NAMED: Dict[str, Dict[str, Any]] = {
    "resnet110": _bottleneck(110),
    "resnet164": _bottleneck(164),
    "se_resnet110": _bottleneck(110, **_SQUEEZE),
    "se_resnet164": _bottleneck(164, **_SQUEEZE),
    "resnext29_8x64d": _resnext(8),
    "resnext29_16x64d": _resnext(16),
    "wide_resnet16_8": _wide(16, 8),
    "wide_resnet16_12": _wide(16, 12),
    "wide_resnet28_10": _wide(28, 10),
    "wide_resnet40_10": _wide(40, 10, drop_rate=0.1),
    "wide_resnet52_8": _wide(52, 8),
    "resnet18_cifar": {
        "layers": (2, 2, 2, 2),
        "channels": (64, 128, 256, 512),
        "stem_width": 64,
        "bottleneck": False,
        "avg_down": False,
        "fc_std": 0.01,  # published AutoMix code
    },
}


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5071, 0.4865, 0.4409),  # CIFAR-100, as published
        "std": (0.2673, 0.2564, 0.2762),
        "first_conv": "conv1",
        "classifier": "fc",
        **kwargs,
    }


_FOUR_STAGES = {"pool_size": (4, 4), "mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}  # as published
default_cfgs = generate_default_cfgs(
    {name: _cfg(**(_FOUR_STAGES if name == "resnet18_cifar" else {})) for name in _NAMED}
)


def _entrypoint(variant: str) -> Callable[..., CifarResNet]:
    def entrypoint(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
        feature_cfg = {"out_indices": tuple(range(len(_NAMED[variant]["layers"])))}
        return build_model_with_cfg(
            CifarResNet, variant, pretrained, feature_cfg=feature_cfg, **{**_NAMED[variant], **kwargs}
        )

    entrypoint.__name__ = entrypoint.__qualname__ = variant
    entrypoint.__doc__ = f"{variant} for 32x32 images, activation behind the addition."
    return entrypoint


for _variant in _NAMED:  # on its own, because this file also serves where nothing but timm is installed
    globals()[_variant] = register_model(_entrypoint(_variant))
