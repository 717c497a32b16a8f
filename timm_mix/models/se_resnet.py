"""SE-ResNet, SE-ResNeXt and SENet as SplitNet trains them on ImageNet (Zhao et al., arXiv:2011.14660).

timm's ResNet with a deep stem, squeeze and excitation by 1/16 (never rounded to a multiple of 8), a stem pool that
rounds up, no zero initialisation of the last norm, and dropout of 0.2 in front of the classifier. `se_resnet*` and
`se_resnext101_64x4d` have a flat stem (64, 64, 64), the others one of 64, 64 and 128 channels.

Widths of a part are timm's keyword arguments `channels`, `stem_width` and `cardinality`. `drop_block_rate` is the
published DropBlock: all blocks of layer3 and layer4, behind each of the three norms, blocks of 3 x 3. timm's own
argument of this name would mean another one: behind the second norm only, 5 x 5 in layer3. Seeds and rescaling are
those of timm's DropBlock2d: one mask for all channels, seeds as dense as arXiv:1810.12890 has them in the interior
(the published code may seed otherwise).

>>> import timm, torch, timm_mix
>>> model = timm.create_model("se_resnet50", layers=(1, 1, 1, 1), channels=(16, 16, 16, 16), num_classes=5)
>>> model(torch.zeros(2, 3, 64, 64)).shape
torch.Size([2, 5])
"""

from functools import partial
from typing import Any, Dict

import torch
from timm.layers import DropBlock2d, SEModule, get_act_layer, get_norm_layer
from timm.models import build_model_with_cfg, generate_default_cfgs
from timm.models._features_fx import register_notrace_module
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from timm_mix.models._backbone import check_drop_rates
from timm_mix.models._entrypoints import register_table
from timm_mix.models._published import imagenet_cfg, init_classifier, use_ceil_pool

__all__ = ["NETS"]

register_notrace_module(DropBlock2d)  # compares the block with the map: a leaf for torch.fx

_RESNET: Dict[str, Any] = {"avg_down": True, "flat_stem": True}
_RESNEXT: Dict[str, Any] = {"avg_down": True, "cardinality": 64, "base_width": 4}
_SENET: Dict[str, Any] = {"block_reduce_first": 2, "cardinality": 64, "base_width": 4}

# name -> arguments of _build, and through it of timm's ResNet
NETS: Dict[str, Dict[str, Any]] = {
    "se_resnet50": {**_RESNET, "layers": (3, 4, 6, 3)},
    "se_resnet50_b": {**_RESNET, "layers": (3, 4, 6, 3), "drop_block_rate": 0.1},
    "se_resnet101": {**_RESNET, "layers": (3, 4, 23, 3)},
    "se_resnet152": {**_RESNET, "layers": (3, 8, 36, 3)},
    "se_resnext101_64x4d": {**_RESNEXT, "layers": (3, 4, 23, 3), "flat_stem": True},
    "se_resnext101_64x4d_b": {**_RESNEXT, "layers": (3, 4, 23, 3)},
    "senet113": {**_SENET, "layers": (3, 8, 23, 3), "avg_down": True},
    "senet154e": {**_SENET, "layers": (3, 8, 36, 3), "down_kernel_size": 3},
}
NETS = {name: {"drop_rate": 0.2, "zero_init_last": False, **kwargs} for name, kwargs in NETS.items()}
default_cfgs = generate_default_cfgs({name: imagenet_cfg() for name in NETS})


class DropBlockSE(nn.Module):
    """DropBlock, then squeeze and excitation; its weights have the names of the plain module's.

    Shapes: [B, C, H, W] -> the same.
    """

    def __init__(self, drop: DropBlock2d, se: SEModule):
        super().__init__()
        self.drop = drop
        self.fc1, self.act, self.fc2, self.gate = se.fc1, se.act, se.fc2, se.gate

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.drop(x)
        squeezed = self.act(self.fc1(x.mean((2, 3), keepdim=True)))
        return x * self.gate(self.fc2(squeezed))


def _build(flat_stem: bool = False, stem_width: int = 64, drop_block_rate: float = 0.0, **kwargs: Any) -> ResNet:
    if flat_stem and stem_width % 2:
        raise ValueError(f"stem_width must be even, got {stem_width}")
    model = ResNet(
        Bottleneck,
        stem_type="deep",
        stem_width=stem_width // 2 if flat_stem else stem_width,  # timm's third convolution doubles the width
        block_args={"attn_layer": partial(SEModule, rd_ratio=1 / 16, rd_divisor=1)},
        **kwargs,
    )
    if flat_stem:
        model.conv1 = _flat_stem(stem_width, **kwargs)
    use_ceil_pool(model)
    if drop_block_rate > 0:
        for block in (*model.layer3, *model.layer4):
            _add_drop_block(block, partial(DropBlock2d, drop_prob=drop_block_rate, block_size=3))
    init_classifier(model)
    return model


def _flat_stem(
    width: int,
    in_chans: int = 3,
    act_layer: Any = nn.ReLU,
    norm_layer: Any = nn.BatchNorm2d,
    device: Any = None,
    dtype: Any = None,
    **_: Any,
) -> nn.Sequential:
    """Three convolutions of the same width; the last one's norm and activation are the network's bn1 and act1."""
    norm, act, dd = get_norm_layer(norm_layer), get_act_layer(act_layer), {"device": device, "dtype": dtype}
    layers = []
    for chs, stride in ((in_chans, 2), (width, 1), (width, 1)):
        conv = nn.Conv2d(chs, width, 3, stride=stride, padding=1, bias=False, **dd)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        layers += [conv, norm(width, **dd), act(inplace=True)]
    return nn.Sequential(*layers[:-2])


def _add_drop_block(block: Bottleneck, drop: Any) -> None:
    block.act1 = nn.Sequential(drop(), block.act1)  # in front of the activation is behind bn1; no weight is renamed
    block.drop_block = drop()
    block.se = DropBlockSE(drop(), block.se)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ResNet:
    check_drop_rates(kwargs)
    return build_model_with_cfg(_build, variant, pretrained, **{**NETS[variant], **kwargs})


register_table(
    _create,
    {
        name: f"{name}: {'flat' if kwargs.get('flat_stem') else 'deep'} stem"
        f"{', DropBlock in layer3 and layer4' if kwargs.get('drop_block_rate') else ''}, squeeze and excitation."
        for name, kwargs in NETS.items()
    },
)
