"""DenseNet-BC for small images (Huang et al., arXiv:1608.06993).

timm's DenseNet behind a 3x3 stem of 2k channels without pooling; every layer adds k channels, the transitions halve
channels and size. `densenet190` is SplitNet's (arXiv:2011.14660), with three blocks of (depth - 4) / 6 layers;
`densenet161_cifar` is RecursiveMix's (arXiv:2203.06844), with the four blocks of the ImageNet network, nothing between
the stem and the first block, and no activation in the transitions.

>>> import timm, torch, timm_mix
>>> timm.create_model("densenet190", growth_rate=4, block_config=(1, 1, 1))(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2, 100])
"""

from typing import Any, Callable, Dict, Tuple

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.densenet import DenseNet
from torch import nn

__all__ = ["CifarDenseNet"]


class CifarDenseNet(DenseNet):
    """timm's DenseNet with a 3x3 stem.

    Args:
        growth_rate: k, the number of channels that each layer adds; the stem has 2k.
        block_config: number of layers in each block.
        bare: no batch norm and activation behind the stem, no activation in the transitions.
        everything else: as in timm's DenseNet, except its stems and antialiasing.
    Shapes: [B, in_chans, H, W] -> [B, num_classes]; features [B, num_features, H // 4, W // 4] with three blocks,
        H // 8 and W // 8 with four.
    Raises:
        ValueError: growth_rate below 1.

    >>> model = CifarDenseNet(growth_rate=4, block_config=(2, 2, 2), num_classes=5)
    >>> model.forward_features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        growth_rate: int = 40,
        block_config: Tuple[int, ...] = (31, 31, 31),
        bare: bool = False,
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        bn_size: int = 4,
        act_layer: Any = "relu",
        norm_layer: Any = "batchnorm2d",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        memory_efficient: bool = False,
        device=None,
        dtype=None,
    ):
        if growth_rate < 1:
            raise ValueError(f"growth_rate must be >= 1, got {growth_rate}")
        super().__init__(
            growth_rate=growth_rate,
            block_config=tuple(block_config),
            num_classes=num_classes,
            in_chans=in_chans,
            global_pool=global_pool,
            bn_size=bn_size,
            act_layer=act_layer,
            norm_layer=norm_layer,
            drop_rate=drop_rate,
            proj_drop_rate=proj_drop_rate,
            memory_efficient=memory_efficient,
            device=device,
            dtype=dtype,
        )
        conv0 = nn.Conv2d(in_chans, 2 * growth_rate, 3, padding=1, bias=False, device=device, dtype=dtype)
        nn.init.kaiming_normal_(conv0.weight)  # fan in, as timm's DenseNet and the published code
        self.features.conv0 = conv0
        self.features.pool0 = nn.Identity()
        if bare:
            self.features.norm0 = nn.Identity()
            for i in range(1, len(block_config)):
                getattr(self.features, f"transition{i}").norm.act = nn.Identity()
        del self.feature_info[0], self.feature_ends[0]  # the stem's: one level per reduction
        for info in self.feature_info:
            info["reduction"] //= 4  # the stem and the pooling that are gone


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5071, 0.4865, 0.4409),  # CIFAR-100, as published
        "std": (0.2673, 0.2564, 0.2762),
        "first_conv": "features.conv0",
        "classifier": "classifier",
        **kwargs,
    }


_NAMED: Dict[str, Dict[str, Any]] = {
    "densenet190": {"growth_rate": 40, "block_config": (31, 31, 31)},
    "densenet161_cifar": {"growth_rate": 48, "block_config": (6, 12, 36, 24), "bare": True},
}
default_cfgs = generate_default_cfgs(
    {
        "densenet190": _cfg(),
        "densenet161_cifar": _cfg(
            pool_size=(4, 4),
            mean=(0.4914, 0.4822, 0.4465),  # CIFAR-10's, which RecursiveMix takes for both
            std=(0.2023, 0.1994, 0.2010),
        ),
    }
)


def _entrypoint(variant: str) -> Callable[..., CifarDenseNet]:
    settings = _NAMED[variant]

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> CifarDenseNet:
        out_indices = tuple(range(len(settings["block_config"])))
        feature_cfg = {"out_indices": out_indices, "flatten_sequential": True}
        return build_model_with_cfg(
            CifarDenseNet, variant, pretrained, feature_cfg=feature_cfg, **{**settings, **kwargs}
        )

    entrypoint.__name__ = entrypoint.__qualname__ = variant
    entrypoint.__doc__ = f"{variant} for 32x32 images, k = {settings['growth_rate']}."
    return entrypoint


for _variant in _NAMED:  # on its own, because this file also serves where nothing but timm is installed
    globals()[_variant] = register_model(_entrypoint(_variant))
