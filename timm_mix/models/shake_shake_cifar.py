"""Shake-Shake ResNets for small images, as SplitNet trains them (arXiv:2011.14660).

Shake-Shake (Gastaldi, arXiv:1705.07485): every block has two branches that are mixed in shares drawn per sample, other
shares for the gradients than for the values. `shake_resnet26_2x<w>d` has three stages of four blocks with w, 2w and 4w
channels.

>>> import timm, torch, timm_mix
>>> timm.create_model("shake_resnet26_2x96d", depth=8, base_width=4, num_classes=5)(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2, 5])
"""

from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from timm.layers import (
    DropPath,
    calculate_drop_path_rates,
    create_classifier,
    get_act_layer,
    get_device_dtype,
    get_norm_layer,
)
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

__all__ = ["ShakeBlock", "ShakeResNet", "ShakeShake"]


class ShakeShake(nn.Module):
    """Mix two branches: a * x1 + (1 - a) * x2, with gradients b to x1 and 1 - b to x2.

    Training: a and b ~ U(0, 1), each on its own, per sample. Evaluation: a = 1/2.

    Shapes: x1, x2 [B, C, H, W] -> the same.
    Reference: Gastaldi, arXiv:1705.07485 ("Shake-Shake-Image").

    >>> ShakeShake().eval()(torch.full((1, 1, 1, 2), 3.0), torch.full((1, 1, 1, 2), 5.0))
    tensor([[[[4., 4.]]]])
    """

    def forward(self, x1: torch.Tensor, x2: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return 0.5 * x1 + 0.5 * x2
        per_sample = x1[:, :1, :1, :1]
        a = torch.rand_like(per_sample, dtype=torch.float32)
        b = torch.rand_like(per_sample, dtype=torch.float32)
        # worth a * x1 + (1 - a) * x2, but only the shares b have a gradient
        shared = b.to(x1.dtype) * x1 + (1 - b).to(x2.dtype) * x2
        return shared + (a - b).to(x1.dtype) * (x1.detach() - x2.detach())


class ShiftedShortcut(nn.Module):
    """ReLU, then two 1x1 convolutions, each to half of the channels: of the map, and of the map moved by one pixel.

    Shapes: [B, in_chs, H, W] -> [B, out_chs, ceil(H / stride), ceil(W / stride)].
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, act_layer, norm_layer, **dd):
        super().__init__()
        self.act = act_layer()
        self.conv1 = nn.Conv2d(in_chs, out_chs // 2, 1, stride=stride, bias=False, **dd)
        self.conv2 = nn.Conv2d(in_chs, out_chs // 2, 1, stride=stride, bias=False, **dd)
        self.bn = norm_layer(out_chs, **dd)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.act(x)
        moved = nn.functional.pad(x, [-1, 1, -1, 1])
        return self.bn(torch.cat([self.conv1(x), self.conv2(moved)], dim=1))


class ShakeBlock(nn.Module):
    """Two branches ReLU-conv3x3-BN-ReLU-conv3x3-BN, shaken, beside a shortcut.

    Shapes: [B, in_chs, H, W] -> [B, out_chs, ceil(H / stride), ceil(W / stride)].

    >>> block = ShakeBlock(3, 6, stride=2, act_layer=nn.ReLU, norm_layer=nn.BatchNorm2d)
    >>> block(torch.zeros(2, 3, 7, 11)).shape
    torch.Size([2, 6, 4, 6])
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int, act_layer, norm_layer, drop_path: float = 0.0, **dd):
        super().__init__()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_chs != out_chs:
            self.shortcut = ShiftedShortcut(in_chs, out_chs, stride, act_layer, norm_layer, **dd)
        self.branch1 = _branch(in_chs, out_chs, stride, act_layer, norm_layer, **dd)
        self.branch2 = _branch(in_chs, out_chs, stride, act_layer, norm_layer, **dd)
        self.shake = ShakeShake()
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path > 0 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.shake(self.branch1(x), self.branch2(x))
        return self.drop_path(out) + self.shortcut(x)


class ShakeResNet(nn.Module):
    """ResNet with two shaken branches per block.

    Args:
        depth: number of layers, 6n + 2; n blocks in each of the three stages.
        base_width: w, even; the stages have w, 2w and 4w channels behind a stem of 16.
        global_pool, drop_rate, drop_path_rate, act_layer, norm_layer: as in timm's ResNet.
    Shapes: [B, in_chans, H, W] -> [B, num_classes]; features [B, 4w, ceil(H / 4), ceil(W / 4)].
    Raises:
        ValueError: a depth that is not 6n + 2, or an odd base_width.

    >>> model = ShakeResNet(depth=8, base_width=4, num_classes=5)
    >>> model.forward_features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(
        self,
        depth: int = 26,
        base_width: int = 96,
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
        if not 8 <= depth <= 10_000 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (8, 14, 20, 26, ..., 9998), got {depth}")
        if base_width < 2 or base_width % 2:
            raise ValueError(f"base_width must be an even number >= 2, got {base_width}")
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        act_layer, norm_layer = get_act_layer(act_layer), get_norm_layer(norm_layer)

        self.conv1 = nn.Conv2d(in_chans, 16, 3, padding=1, **dd)  # with a bias, as published
        self.bn1 = norm_layer(16, **dd)
        self.feature_info: List[Dict[str, Any]] = []  # one level per reduction, so none of the stem
        blocks = (depth - 2) // 6
        rates = calculate_drop_path_rates(drop_path_rate, [blocks] * 3, stagewise=True)
        chs, reduction = 16, 1
        for i, stride in enumerate((1, 2, 2)):
            out_chs = base_width * 2**i
            stage = [
                ShakeBlock(out_chs if j else chs, out_chs, 1 if j else stride, act_layer, norm_layer, rates[i][j], **dd)
                for j in range(blocks)
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            chs, reduction = out_chs, reduction * stride
            self.feature_info.append({"num_chs": chs, "reduction": reduction, "module": f"layer{i + 1}"})

        self.act: nn.Module = act_layer()
        self.num_features = chs
        self.global_pool, self.fc = create_classifier(chs, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = chs * self.global_pool.feat_mult()
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Convolutions He normal over the fan out, classifier N(0, .001^2) (published code)."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if isinstance(self.fc, nn.Linear):
            nn.init.normal_(self.fc.weight, std=1e-3)
            nn.init.zeros_(self.fc.bias)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Regular expressions that group the parameters by depth (layer-wise learning rates)."""
        return {"stem": r"^conv1|^bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

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
            norm: changes nothing, there is no final norm.
            stop_early: run no further than the last one asked for.
            output_fmt: 'NCHW' only.
            intermediates_only: leave out the final features.
        """
        assert output_fmt in ("NCHW",), "Output shape must be NCHW."
        intermediates = []
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        last = len(self.feature_info) - 1
        end = max_index if stop_early else last
        x = self.bn1(self.conv1(x))
        for index in range(end + 1):
            x = self._run(getattr(self, f"layer{index + 1}"), x)
            if index in take_indices:
                intermediates.append(x)
        if intermediates_only:
            return intermediates
        return (self.act(x) if end == last else x), intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop what the chosen features do not need; returns their indices."""
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        cut = max_index < len(self.feature_info) - 1
        for index in range(max_index + 1, len(self.feature_info)):
            setattr(self, f"layer{index + 1}", nn.Identity())
        if cut:
            self.act = nn.Identity()  # stands behind the last stage
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
        if prune_head or cut:
            self.reset_classifier(0, "")
        return take_indices

    def _run(self, stage: nn.Module, x: torch.Tensor) -> torch.Tensor:
        if self.grad_checkpointing and not torch.jit.is_scripting() and isinstance(stage, nn.Sequential):
            return checkpoint_seq(stage, x)
        return stage(x)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self._run(self.layer1, x)
            x = self._run(self.layer2, x)
            x = self._run(self.layer3, x)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
        return self.act(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = nn.functional.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _branch(in_chs: int, out_chs: int, stride: int, act_layer, norm_layer, **dd) -> nn.Sequential:
    return nn.Sequential(
        act_layer(),  # not in place: the other branch and the shortcut read the same map
        nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd),
        norm_layer(out_chs, **dd),
        act_layer(inplace=True),
        nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False, **dd),
        norm_layer(out_chs, **dd),
    )


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


default_cfgs = generate_default_cfgs({"shake_resnet26_2x96d": _cfg()})


@register_model
def shake_resnet26_2x96d(pretrained: bool = False, **kwargs: Any) -> ShakeResNet:
    """Shake-Shake ResNet-26 2x96d: 26.2 M parameters."""
    feature_cfg = {"out_indices": (0, 1, 2)}
    return build_model_with_cfg(ShakeResNet, "shake_resnet26_2x96d", pretrained, feature_cfg=feature_cfg, **kwargs)
