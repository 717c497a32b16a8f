"""Pre-activation wide ResNets for small images (Zagoruyko & Komodakis, BMVC 2016, arXiv:1605.07146).

As MixMo trains them: 3x3 stem to 16 channels with nothing behind it, blocks BN-ReLU-conv3x3-BN-ReLU-conv3x3 with the
stride on the second convolution (padded at the right and the bottom), a 1x1 shortcut on the raw input where the shape
changes, BN-ReLU before the pooling. `wrn<depth>_<k>` has (depth - 4) / 6 blocks in each of three stages of 16k, 32k
and 64k channels. `wrn28_8_openmixup` is the other form in which this network is published, by the AutoMix code
(arXiv:2103.13027): see `style`.

>>> import timm, torch, timm_mix
>>> timm.create_model("wrn16_2", depth=10, num_classes=5)(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2, 5])
"""

import math
from functools import partial
from typing import Any, Callable, Dict, List, Optional, Tuple, Union

import torch
from timm.layers import (
    DropPath,
    calculate_drop_path_rates,
    create_classifier,
    create_conv2d,
    get_act_layer,
    get_device_dtype,
    get_norm_act_layer,
)
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

__all__ = ["PreActBlock", "WideResNet"]


class PreActBlock(nn.Module):
    """BN-ReLU-conv3x3-BN-ReLU-conv3x3 around a shortcut on the raw input.

    Openmixup's has biases and strides on the first convolution; `activated_shortcut`: BN-ReLU is before the shortcut.

    Shapes: [B, in_chs, H, W] -> [B, out_chs, ceil(H / stride), ceil(W / stride)].

    >>> from timm.layers import BatchNormAct2d
    >>> PreActBlock(3, 5, stride=2, norm_act=BatchNormAct2d)(torch.zeros(2, 3, 7, 11)).shape
    torch.Size([2, 5, 4, 6])
    """

    def __init__(
        self,
        in_chs: int,
        out_chs: int,
        stride: int,
        norm_act,
        drop_path: float = 0.0,
        openmixup: bool = False,
        activated_shortcut: bool = False,
        **dd,
    ):
        super().__init__()
        conv = partial(create_conv2d, bias=openmixup, **dd)
        self.bn1 = norm_act(in_chs, **dd)
        self.conv1 = conv(in_chs, out_chs, 3, stride=stride if openmixup else 1)
        self.bn2 = norm_act(out_chs, **dd)
        if openmixup or stride == 1:
            self.conv2 = conv(out_chs, out_chs, 3)
        else:
            # 'same' pads an even map at the right and the bottom only, as published, and takes odd maps as well
            self.conv2 = conv(out_chs, out_chs, 3, stride=stride, padding="same")
        self.activated_shortcut = activated_shortcut
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_chs != out_chs:
            self.shortcut = conv(in_chs, out_chs, 1, stride=stride)
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn1(x)
        if self.activated_shortcut:
            x = out
        out = self.conv1(out)
        out = self.conv2(self.bn2(out))
        return self.shortcut(x) + self.drop_path(out)


class WideResNet(nn.Module):
    """Pre-activation wide ResNet.

    Args:
        depth: number of layers, 6n + 4.
        widen_factor: k, the widening of the three stages.
        style: 'mixmo', or 'openmixup': biases in all convolutions, the stride on the first one of a block, the first
            block's shortcut behind its BN-ReLU, another initialisation.
        global_pool, drop_rate, drop_path_rate, act_layer, norm_layer: as in timm's ResNet.
    Shapes: [B, in_chans, H, W] -> [B, num_classes]; features [B, 64k, ceil(H / 4), ceil(W / 4)].
    Raises:
        ValueError: a depth that is not 6n + 4, a widen_factor below 1, or another style.

    >>> model = WideResNet(depth=10, widen_factor=1, num_classes=5)
    >>> model.forward_features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 64, 8, 8])
    """

    def __init__(
        self,
        depth: int = 28,
        widen_factor: int = 10,
        style: str = "mixmo",
        num_classes: int = 100,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: Any = nn.ReLU,
        norm_layer: Any = nn.BatchNorm2d,
        device=None,
        dtype=None,
    ):
        super().__init__()
        if not 10 <= depth <= 10_000 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 (10, 16, 22, 28, ..., 9994), got {depth}")
        if widen_factor < 1:
            raise ValueError(f"widen_factor must be >= 1, got {widen_factor}")
        if style not in ("mixmo", "openmixup"):
            raise ValueError(f"style must be 'mixmo' or 'openmixup', got {style!r}")
        dd = {"device": device, "dtype": dtype}
        self.openmixup = style == "openmixup"
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        norm_act = get_norm_act_layer(norm_layer, act_layer=get_act_layer(act_layer))

        self.conv1 = create_conv2d(in_chans, 16, 3, bias=self.openmixup, **dd)
        self.feature_info: List[Dict[str, Any]] = []  # one level per reduction, so none of the stem
        blocks = (depth - 4) // 6
        rates = calculate_drop_path_rates(drop_path_rate, [blocks] * 3, stagewise=True)
        chs, reduction = 16, 1
        for i, stride in enumerate((1, 2, 2)):
            out_chs = 16 * widen_factor * 2**i
            stage = [
                PreActBlock(
                    out_chs if j else chs,
                    out_chs,
                    1 if j else stride,
                    norm_act,
                    rates[i][j],
                    openmixup=self.openmixup,
                    activated_shortcut=self.openmixup and i == j == 0 and chs != out_chs,
                    **dd,
                )
                for j in range(blocks)
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            chs, reduction = out_chs, reduction * stride
            self.feature_info.append({"num_chs": chs, "reduction": reduction, "module": f"layer{i + 1}"})

        self.num_features = chs
        self.bn1: nn.Module = norm_act(chs, **dd)
        self.global_pool, self.fc = create_classifier(chs, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = chs * self.global_pool.feat_mult()
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Normal cut at two standard deviations, std sqrt(2 / fan_in) after the cut, for convolutions and classifier.

        Source: published MixMo code; .8796 is the standard deviation of the cut unit normal. Published AutoMix code:
        He normal over the fan out, classifier N(0, .01^2).
        """
        if self.openmixup:
            self._init_openmixup()
            return
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                std = math.sqrt(2 / module.weight[0].numel()) / 0.8796
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def _init_openmixup(self) -> None:
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                if isinstance(module, nn.Conv2d):
                    nn.init.kaiming_normal_(module.weight, mode="fan_out")
                else:
                    nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Regular expressions that group the parameters by depth (layer-wise learning rates)."""
        return {
            "stem": r"^conv1",
            "blocks": [
                (r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)", None),
                (r"^bn1", (99999,)),
            ],
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> Union[str, nn.Module]:
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Replace the classifier (0 removes it); the pooling stays unless another is named."""
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(
            self.num_features,
            num_classes,
            pool_type=self.global_pool.pool_type if global_pool is None else global_pool,
            **get_device_dtype(self),
        )
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.global_pool.train(self.training)
        self.fc.train(self.training)

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: Optional[Union[int, List[int]]] = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """Features of the three stages, as timm's models return them.

        Args:
            indices: which; the last n for an int, all for None.
            norm: apply the final BN-ReLU to the last stage's features.
            stop_early: run no further than the last one asked for.
            output_fmt: 'NCHW' only.
            intermediates_only: leave out the final features.
        """
        assert output_fmt in ("NCHW",), "Output shape must be NCHW."
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        last = len(self.feature_info) - 1
        end = max_index if stop_early else last
        x = self.conv1(x)
        for index in range(end + 1):
            x = self._run(getattr(self, f"layer{index + 1}"), x)
            if index in take_indices:
                intermediates.append(self.bn1(x) if norm and index == last else x)
        if intermediates_only:
            return intermediates
        return (self.bn1(x) if end == last else x), intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop what the chosen features do not need; returns their indices."""
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        cut = max_index < len(self.feature_info) - 1
        for index in range(max_index + 1, len(self.feature_info)):
            setattr(self, f"layer{index + 1}", nn.Identity())
        if prune_norm or cut:
            self.bn1 = nn.Identity()  # made for the last stage's width
        if cut:
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or cut:
            self.reset_classifier(0, "")
        return take_indices

    def _run(self, stage: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting() and isinstance(stage, nn.Sequential):
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self._run(self.layer1, x)
            x = self._run(self.layer2, x)
            x = self._run(self.layer3, x)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
        return self.bn1(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = nn.functional.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        "num_classes": 100,
        "input_size": (3, 32, 32),
        "pool_size": (8, 8),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.49137, 0.48235, 0.44667),  # CIFAR statistics that the published MixMo runs use
        "std": (0.2023, 0.1994, 0.2010),
        "first_conv": "conv1",
        "classifier": "fc",
        **kwargs,
    }


_OPENMIXUP: Dict[str, Any] = {
    "style": "openmixup",
    "act_layer": partial(nn.LeakyReLU, negative_slope=0.1),
    "norm_layer": partial(nn.BatchNorm2d, eps=1e-3, momentum=1e-3),
}
# name: (depth, widen factor); WRN-28-10 is the network of the MixMo paper's CIFAR tables, the others of its figures
_NAMED: Dict[str, Tuple[int, int]] = {
    **{f"wrn16_{k}": (16, k) for k in (2, 4)},
    **{f"wrn28_{k}": (28, k) for k in (2, 3, 4, 5, 6, 7, 8, 10, 12, 14)},
    "wrn28_8_openmixup": (28, 8),
}
_AUTOMIX = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}
default_cfgs = generate_default_cfgs(
    {name: _cfg(**(_AUTOMIX if name.endswith("openmixup") else {})) for name in _NAMED}
)


def _entrypoint(variant: str) -> Callable[..., WideResNet]:
    depth, widen_factor = _NAMED[variant]
    style = _OPENMIXUP if variant.endswith("openmixup") else {}

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> WideResNet:
        return build_model_with_cfg(
            WideResNet,
            variant,
            pretrained,
            feature_cfg={"out_indices": (0, 1, 2)},
            **{"depth": depth, "widen_factor": widen_factor, **style, **kwargs},
        )

    entrypoint.__name__ = entrypoint.__qualname__ = variant
    entrypoint.__doc__ = f"Pre-activation WRN-{depth}-{widen_factor}{', as published with AutoMix' if style else ''}."
    return entrypoint


for _variant in _NAMED:  # on its own, because this file also serves where nothing but timm is installed
    globals()[_variant] = register_model(_entrypoint(_variant))
