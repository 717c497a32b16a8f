"""Pre-activation ResNets for small images (He et al., ECCV 2016, arXiv:1603.05027).

As MixMo trains them on Tiny-ImageNet: 3x3 stem with stride 2 to 64 channels and nothing behind it, blocks
BN-ReLU-conv3x3-BN-ReLU-conv3x3 with the stride on the first convolution, a 1x1 shortcut on the activated input where
the shape changes and the raw input elsewhere, neither BN nor ReLU before the pooling. `preact_resnet18_w<k>` has stages
of 64k, 128k, 256k and 512k channels behind the same stem.

>>> import timm, torch, timm_mix
>>> model = timm.create_model("preact_resnet18", num_classes=5, device="meta")  # shapes without weights
>>> model(torch.zeros(2, 3, 32, 32, device="meta")).shape
torch.Size([2, 5])
"""

import math
from typing import Any, Dict, List, Optional, Tuple, Union

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

__all__ = ["PreActBasicBlock", "PreActResNet"]


class PreActBasicBlock(nn.Module):
    """BN-ReLU-conv3x3-BN-ReLU-conv3x3; the shortcut is the raw input, or a 1x1 convolution of the activated one.

    Shapes: [B, in_chs, H, W] -> [B, out_chs, ceil(H / stride), ceil(W / stride)].

    >>> from timm.layers import BatchNormAct2d
    >>> PreActBasicBlock(3, 5, stride=2, norm_act=BatchNormAct2d)(torch.zeros(2, 3, 7, 11)).shape
    torch.Size([2, 5, 4, 6])
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, norm_act, drop_path: float = 0.0, **dd):
        super().__init__()
        self.bn1 = norm_act(in_chs, **dd)
        self.conv1 = create_conv2d(in_chs, out_chs, 3, stride=stride, **dd)
        self.bn2 = norm_act(out_chs, **dd)
        self.conv2 = create_conv2d(out_chs, out_chs, 3, **dd)
        self.shortcut: Optional[nn.Module] = None
        if stride > 1 or in_chs != out_chs:
            self.shortcut = create_conv2d(in_chs, out_chs, 1, stride=stride, **dd)
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.bn1(x)
        out = self.conv2(self.bn2(self.conv1(activated)))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        return shortcut + self.drop_path(out)


class PreActResNet(nn.Module):
    """Pre-activation ResNet of basic blocks.

    Args:
        layers: number of blocks in each of the four stages.
        widen_factor: k, the widening of the stages; the stem keeps its 64 channels.
        global_pool, drop_rate, drop_path_rate, act_layer, norm_layer: as in timm's ResNet.
    Shapes: [B, in_chans, H, W] -> [B, num_classes]; features [B, 512k, ceil(H / 16), ceil(W / 16)].
    Raises:
        ValueError: not four stages of at least one block, or a widen_factor below 1.

    >>> model = PreActResNet(layers=(1, 1, 1, 1), num_classes=5, device="meta")
    >>> model.forward_features(torch.zeros(2, 3, 32, 32, device="meta")).shape
    torch.Size([2, 512, 2, 2])
    """

    def __init__(
        self,
        layers: Tuple[int, ...] = (2, 2, 2, 2),
        widen_factor: int = 1,
        num_classes: int = 200,
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
        if len(layers) != 4 or min(layers) < 1:
            raise ValueError(f"layers must be four numbers of blocks >= 1, got {tuple(layers)}")
        if widen_factor < 1:
            raise ValueError(f"widen_factor must be >= 1, got {widen_factor}")
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        norm_act = get_norm_act_layer(norm_layer, act_layer=get_act_layer(act_layer))

        self.conv1 = create_conv2d(in_chans, 64, 3, stride=2, **dd)
        self.feature_info: List[Dict[str, Any]] = []  # one level per reduction, so none of the stem
        rates = calculate_drop_path_rates(drop_path_rate, list(layers), stagewise=True)
        chs, reduction = 64, 2
        for i, stride in enumerate((1, 2, 2, 2)):
            out_chs = 64 * widen_factor * 2**i
            stage = [
                PreActBasicBlock(out_chs if j else chs, out_chs, 1 if j else stride, norm_act, rates[i][j], **dd)
                for j in range(layers[i])
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            chs, reduction = out_chs, reduction * stride
            self.feature_info.append({"num_chs": chs, "reduction": reduction, "module": f"layer{i + 1}"})

        self.num_features = chs
        self.global_pool, self.fc = create_classifier(chs, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = chs * self.global_pool.feat_mult()
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Convolutions: normal cut at two deviations, std sqrt(2 / fan_in) after the cut. Classifier: N(0, .01^2).

        Source: published MixMo code; .8796 is the standard deviation of the cut unit normal.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                std = math.sqrt(2 / module.weight[0].numel()) / 0.8796
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Regular expressions that group the parameters by depth (layer-wise learning rates)."""
        return {"stem": r"^conv1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

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
        """Features of the four stages, as timm's models return them.

        Args:
            indices: which; the last n for an int, all for None.
            norm: changes nothing, there is no final norm.
            stop_early: run no further than the last one asked for.
            output_fmt: 'NCHW' only.
            intermediates_only: leave out the final features.
        """
        assert output_fmt in ("NCHW",), "Output shape must be NCHW."
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        x = self.conv1(x)
        for index in range((max_index if stop_early else len(self.feature_info) - 1) + 1):
            x = self._run(getattr(self, f"layer{index + 1}"), x)
            if index in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return x, intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop what the chosen features do not need; returns their indices."""
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        cut = max_index < len(self.feature_info) - 1
        for index in range(max_index + 1, len(self.feature_info)):
            setattr(self, f"layer{index + 1}", nn.Identity())
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
            x = self._run(self.layer4, x)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
            x = self.layer4(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = nn.functional.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _cfg(**kwargs: Any) -> Dict[str, Any]:
    return {
        "num_classes": 200,
        "input_size": (3, 64, 64),
        "pool_size": (4, 4),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),  # as the published MixMo runs feed Tiny-ImageNet
        "std": (0.5, 0.5, 0.5),
        "first_conv": "conv1",
        "classifier": "fc",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {name: _cfg() for name in ("preact_resnet18", "preact_resnet18_w2", "preact_resnet18_w3")}
)


def _create_preact(variant: str, pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    feature_cfg = {"out_indices": (0, 1, 2, 3)}
    return build_model_with_cfg(PreActResNet, variant, pretrained, feature_cfg=feature_cfg, **kwargs)


@register_model
def preact_resnet18(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """Pre-activation ResNet-18, 11.3 M parameters: the network of the MixMo paper's Tiny-ImageNet table."""
    return _create_preact("preact_resnet18", pretrained, **kwargs)


@register_model
def preact_resnet18_w2(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """Pre-activation ResNet-18 with stages twice as wide, 44.8 M parameters."""
    return _create_preact("preact_resnet18_w2", pretrained, **{"widen_factor": 2, **kwargs})


@register_model
def preact_resnet18_w3(pretrained: bool = False, **kwargs: Any) -> PreActResNet:
    """Pre-activation ResNet-18 with stages three times as wide, 100.5 M parameters."""
    return _create_preact("preact_resnet18_w3", pretrained, **{"widen_factor": 3, **kwargs})
