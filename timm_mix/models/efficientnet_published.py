"""The EfficientNets of the SplitNet paper (Zhao et al., arXiv:2011.14660), on timm's EfficientNet class.

After Tan & Le, ICML 2019, arXiv:1905.11946, in the three forms of the published code:
- `efficientnetb0` ... `b7`: padding as TensorFlow's "SAME", PyTorch's own initialisation.
- `efficientnetb0_lightnet` ...: symmetric padding, convolutions by fan-out, and whole channels dropped on the residual
  branches, the more the deeper the stage.
- `efficientnetb0_cifar` ...: the same for 32 x 32 images, with strides that end at 8 x 8.
timm's efficientnet_b0 ... have the widths of the undivided nets, but other padding, initialisation or batch norm.

>>> import timm, torch, timm_mix
>>> model = timm.create_model("efficientnetb0_cifar", num_classes=5)
>>> model(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2, 5])
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Dict, List, Optional, Sequence

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import make_divisible
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._efficientnet_builder import decode_arch_def
from timm.models.efficientnet import EfficientNet
from torch import nn

from timm_mix.models._backbone import check_drop_rates
from timm_mix.models._entrypoints import register_table

__all__ = ["ARCHS", "Arch", "Widths", "scaled_widths"]


@dataclass(frozen=True)
class Widths:
    """Channels of the stem, of the seven stages and of the last convolution.

    >>> Widths(stem=32, stages=(16, 24, 40, 80, 112, 192, 320), head=1280).stages[-1]
    320
    """

    stem: int
    stages: Sequence[int]
    head: int


@dataclass(frozen=True)
class Arch:
    """width, depth: coefficients of the scaling; size: side of the image; dropout: before the classifier.

    >>> ARCHS["efficientnetb3"]
    Arch(width=1.2, depth=1.4, size=300, dropout=0.3)
    """

    width: float
    depth: float
    size: int
    dropout: float


# Tan & Le's scaling, as their code and the published SplitNet code list it
ARCHS: Dict[str, Arch] = {
    "efficientnetb0": Arch(1.0, 1.0, 224, 0.2),
    "efficientnetb1": Arch(1.0, 1.1, 240, 0.2),
    "efficientnetb2": Arch(1.1, 1.2, 260, 0.3),
    "efficientnetb3": Arch(1.2, 1.4, 300, 0.3),
    "efficientnetb4": Arch(1.4, 1.8, 380, 0.4),
    "efficientnetb5": Arch(1.6, 2.2, 456, 0.4),
    "efficientnetb6": Arch(1.8, 2.6, 528, 0.5),
    "efficientnetb7": Arch(2.0, 3.1, 600, 0.5),
}
_BASE = Widths(32, (16, 24, 40, 80, 112, 192, 320), 1280)
_STAGES = (  # blocks, kernel, expansion; stride for large images, for small ones
    (1, 3, 1, 1, 1),
    (2, 3, 6, 2, 2),
    (2, 5, 6, 2, 1),
    (3, 3, 6, 2, 2),
    (3, 5, 6, 1, 1),
    (4, 5, 6, 2, 1),
    (1, 3, 6, 1, 1),
)
_BATCH_NORM = {"eps": 1e-3, "momentum": 0.01}


def scaled_widths(base: Widths, coefficient: float, divisor: int) -> Widths:
    """Widths times the coefficient, to multiples of `divisor` that keep nine tenths at least.

    >>> scaled_widths(Widths(32, (16, 24, 40), 1280), 1.2, 8)
    Widths(stem=40, stages=(24, 32, 48), head=1536)
    """

    def scaled(channels: int) -> int:
        return make_divisible(channels * coefficient, divisor)

    return Widths(scaled(base.stem), tuple(scaled(stage) for stage in base.stages), scaled(base.head))


def _build(
    variant: str,
    stem_width: Optional[int] = None,
    channels: Optional[Sequence[int]] = None,
    head_width: Optional[int] = None,
    drop_rate: Optional[float] = None,
    residual_drop_rate: Optional[float] = None,
    num_classes: int = 1000,
    **kwargs: Any,
) -> EfficientNet:
    """timm's EfficientNet with these widths.

    Args:
        stem_width, channels, head_width: default: those of the whole network.
        drop_rate: before the classifier; default: the network's own.
        residual_drop_rate: of whole channels on the last stage's residual branches; default: the network's drop_rate
            with symmetric padding, 0 with TensorFlow's.
    Raises:
        ValueError: channels of another number than the stages.
    """
    name, _, form = variant.partition("_")
    arch = ARCHS[name]
    whole = scaled_widths(_BASE, arch.width, 8)
    channels = whole.stages if channels is None else channels
    if len(channels) != len(_STAGES):
        raise ValueError(f"channels must be {len(_STAGES)} widths, one per stage, got {tuple(channels)}")
    model = EfficientNet(
        decode_arch_def(_stages(channels, form), arch.depth),
        num_classes=num_classes,
        stem_size=whole.stem if stem_width is None else stem_width,
        num_features=whole.head if head_width is None else head_width,
        round_chs_fn=_as_given,
        pad_type="" if form else "same",
        act_layer=kwargs.pop("act_layer", None) or nn.SiLU,
        norm_layer=kwargs.pop("norm_layer", None) or partial(nn.BatchNorm2d, **_BATCH_NORM),
        drop_rate=arch.dropout if drop_rate is None else drop_rate,
        **kwargs,
    )
    if form == "cifar":
        model.conv_stem.stride = (1, 1)
        for info in model.feature_info:
            info["reduction"] //= 2
    _drop_channels(model, (arch.dropout if form else 0.0) if residual_drop_rate is None else residual_drop_rate)
    _initialise(model, by_fan_out=bool(form))
    return model


def _stages(channels: Sequence[int], form: str) -> List[List[str]]:
    """The stages in timm's notation; a squeeze-and-excitation keeps a quarter of the block's input."""
    stages = []
    for width, (blocks, kernel, expansion, large, small) in zip(channels, _STAGES, strict=True):
        kind, stride = "ir" if expansion > 1 else "ds", small if form == "cifar" else large
        stages.append([f"{kind}_r{blocks}_k{kernel}_s{stride}_e{expansion}_c{width}_se0.25"])
    return stages


def _as_given(channels: int, *_: Any, **__: Any) -> int:
    """In the place of timm's rounding: the widths are final."""
    return channels


def _drop_channels(model: EfficientNet, rate: float) -> None:
    """Dropout of whole channels on the residual branches, growing linearly over the stages up to `rate`."""
    for stage, blocks in enumerate(model.blocks):
        for block in blocks:
            if rate > 0 and block.has_skip:
                dropout = nn.Dropout2d(rate * (stage + 1) / len(_STAGES))
                paths = [] if isinstance(block.drop_path, nn.Identity) else [block.drop_path]
                block.drop_path = nn.Sequential(dropout, *paths)


def _initialise(model: EfficientNet, by_fan_out: bool) -> None:
    """PyTorch's own initialisation; with symmetric padding convolutions by fan-out and a uniform classifier."""
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            module.reset_parameters()
        if by_fan_out and isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif by_fan_out and isinstance(module, nn.Linear):
            bound = 1 / math.sqrt(module.out_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


def _cfg(size: int) -> Dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, size, size),
        "pool_size": (-(-size // 32),) * 2,
        "crop_pct": 1 / 1.15,  # the published test resizes to 1.15 times the crop
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "conv_stem",
        "classifier": "classifier",
    }


_CIFAR = {
    **_cfg(32),
    "num_classes": 100,
    "pool_size": (8, 8),
    "crop_pct": 1.0,
    "mean": (0.5071, 0.4865, 0.4409),  # CIFAR-100 statistics of the published runs
    "std": (0.2673, 0.2564, 0.2762),
}
# the published B7 was trained and tested at 320 pixels: timm's --img-size 320
default_cfgs = generate_default_cfgs(
    {
        **{name + form: _cfg(arch.size) for form in ("", "_lightnet") for name, arch in ARCHS.items()},
        **{f"{name}_cifar": _CIFAR for name in ARCHS},
    }
)


def _create_efficientnet(variant: str, pretrained: bool, **kwargs: Any) -> EfficientNet:
    check_drop_rates(kwargs)
    cifar = variant.endswith("_cifar")
    return build_model_with_cfg(
        partial(_build, variant),
        variant,
        pretrained,
        feature_cfg={"feature_cls": "getter", "out_indices": (0, 1, 2) if cifar else (0, 1, 2, 3, 4)},
        **kwargs,
    )


_FORMS = {"": "with TensorFlow's padding", "lightnet": "with symmetric padding", "cifar": "for 32 x 32 images"}
register_table(
    _create_efficientnet,
    {name: f"SplitNet's EfficientNet {name[12:14].upper()} {_FORMS[name[15:]]}." for name in default_cfgs},
)
