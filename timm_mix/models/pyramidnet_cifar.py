"""PyramidNets for small images, as SplitNet (arXiv:2011.14660) and RecursiveMix (arXiv:2203.06844) train them.

PyramidNet (Han et al., CVPR 2017, arXiv:1610.02915): 3x3 stem of 16 channels, every block a little wider than the one
before, shortcuts without weights (average pooling where the stride is 2, zeros for the channels that are new).
ShakeDrop (Yamada et al., arXiv:1802.02375): the branch of block j of L is disturbed with probability p_j = p j / L.
`pyramidnet<depth>` is SplitNet's, with ShakeDrop; `pyramidnet_<depth>_<alpha>` is RecursiveMix's, without.

>>> import timm, torch, timm_mix
>>> timm.create_model("pyramidnet164", depth=11, alpha=6, num_classes=5)(torch.zeros(2, 3, 32, 32)).shape
torch.Size([2, 5])
"""

import math
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
    get_norm_layer,
)
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import nn

__all__ = ["PyramidBlock", "PyramidNet", "ShakeDrop"]


class ShakeDrop(nn.Module):
    """Scale a branch at random, differently in the forward and in the backward pass.

    Training: one gate for the whole batch. Open (probability 1 - p) the branch passes as it is; shut, each sample is
    multiplied by alpha ~ U(-1, 1), and its gradient by beta ~ U(0, 1). Evaluation: the mean factor, 1 - p.

    Args:
        p: probability of the shut gate, in [0, 1].
    Shapes: [B, C, H, W] -> the same.
    Raises:
        ValueError: p outside [0, 1].
    Reference: Yamada et al., arXiv:1802.02375; one gate per batch, alpha and beta per sample as in SplitNet's code.

    >>> ShakeDrop(0.25).eval()(torch.ones(1, 1, 1, 2))
    tensor([[[[0.7500, 0.7500]]]])
    """

    def __init__(self, p: float = 0.5):
        super().__init__()
        if not 0 <= p <= 1:
            raise ValueError(f"p must lie in [0, 1], got {p}")
        self.p = float(p)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return x * (1 - self.p)
        per_sample = x[:, :1, :1, :1]
        shut = torch.rand_like(per_sample[:1], dtype=torch.float32) < self.p
        alpha = torch.where(shut, torch.rand_like(per_sample, dtype=torch.float32) * 2 - 1, 1.0)
        beta = torch.where(shut, torch.rand_like(per_sample, dtype=torch.float32), 1.0)
        # worth alpha * x, but only the first term has a gradient; exactly x where the gate is open
        return x * beta.to(x.dtype) + x.detach() * (alpha - beta).to(x.dtype)

    def extra_repr(self) -> str:
        return f"p={self.p:.4g}"


class PyramidBlock(nn.Module):
    """BN-conv1x1-BN-ReLU-conv3x3-BN-ReLU-conv1x1-BN beside a shortcut without weights.

    Shapes: [B, in_chs, H, W] -> [B, 4 * width, ceil(H / stride), ceil(W / stride)].

    >>> from timm.layers import BatchNormAct2d
    >>> block = PyramidBlock(3, 5, stride=2, norm_act=BatchNormAct2d, norm=nn.BatchNorm2d)
    >>> block(torch.zeros(2, 3, 7, 11)).shape
    torch.Size([2, 20, 4, 6])
    """

    def __init__(
        self,
        in_chs: int,
        width: int,
        stride: int,
        norm_act,
        norm,
        shakedrop: float = 0.0,
        drop_path: float = 0.0,
        **dd,
    ):
        super().__init__()
        self.bn1 = norm(in_chs, **dd)
        self.conv1 = create_conv2d(in_chs, width, 1, **dd)
        self.bn2 = norm_act(width, **dd)
        self.conv2 = create_conv2d(width, width, 3, stride=stride, **dd)
        self.bn3 = norm_act(width, **dd)
        self.conv3 = create_conv2d(width, 4 * width, 1, **dd)
        self.bn4 = norm(4 * width, **dd)
        self.shakedrop: nn.Module = ShakeDrop(shakedrop) if shakedrop > 0 else nn.Identity()
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.pool: nn.Module = nn.AvgPool2d(2, 2, ceil_mode=True) if stride > 1 else nn.Identity()
        self.new_chs = 4 * width - in_chs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.bn2(self.conv1(self.bn1(x)))
        out = self.bn3(self.conv2(out))
        out = self.drop_path(self.shakedrop(self.bn4(self.conv3(out))))
        return out + nn.functional.pad(self.pool(x), [0, 0, 0, 0, 0, self.new_chs])


class PyramidNet(nn.Module):
    """PyramidNet of bottleneck blocks.

    Args:
        depth: number of layers, 9n + 2.
        alpha: widening; block j of 3n has inner width round(16 + j * alpha / 3n) and gives out four times as much.
        shakedrop_rate: p of the last block, the others in proportion to their number; 0 for none.
        global_pool, drop_rate, drop_path_rate, act_layer, norm_layer: as in timm's ResNet.
    Shapes: [B, in_chans, H, W] -> [B, num_classes]; features [B, num_features, ceil(H / 4), ceil(W / 4)].
    Raises:
        ValueError: a depth that is not 9n + 2, a negative alpha, or a shakedrop_rate outside [0, 1].

    >>> model = PyramidNet(depth=11, alpha=6, num_classes=5)  # one block per stage, 18, 20 and 22 wide inside
    >>> model.forward_features(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 88, 8, 8])
    """

    def __init__(
        self,
        depth: int = 164,
        alpha: float = 270,
        shakedrop_rate: float = 0.5,
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
        if not 11 <= depth <= 10_000 or (depth - 2) % 9:
            raise ValueError(f"depth must be 9n + 2 (11, 20, 29, ..., 164, ..., 9992), got {depth}")
        if alpha < 0:
            raise ValueError(f"alpha must be >= 0, got {alpha}")
        if not 0 <= shakedrop_rate <= 1:
            raise ValueError(f"shakedrop_rate must lie in [0, 1], got {shakedrop_rate}")
        dd = {"device": device, "dtype": dtype}
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        norm_act = get_norm_act_layer(norm_layer, act_layer=get_act_layer(act_layer))
        norm = get_norm_layer(norm_layer)

        self.conv1 = create_conv2d(in_chans, 16, 3, **dd)
        self.bn1 = norm(16, **dd)
        self.feature_info: List[Dict[str, Any]] = []  # one level per reduction, so none of the stem
        blocks = (depth - 2) // 9
        rates = calculate_drop_path_rates(drop_path_rate, [blocks] * 3, stagewise=True)
        widths = _widths(alpha, 3 * blocks)
        chs, reduction = 16, 1
        for i, stride in enumerate((1, 2, 2)):
            stage = []
            for j in range(blocks):
                number = i * blocks + j + 1  # of 3n
                shakedrop = shakedrop_rate * number / (3 * blocks)
                width = widths[number - 1]
                stage.append(PyramidBlock(chs, width, 1 if j else stride, norm_act, norm, shakedrop, rates[i][j], **dd))
                chs = 4 * width
            setattr(self, f"layer{i + 1}", nn.Sequential(*stage))
            reduction *= stride
            self.feature_info.append({"num_chs": chs, "reduction": reduction, "module": f"layer{i + 1}"})

        self.num_features = chs
        self.bn_final: nn.Module = norm_act(chs, **dd)
        self.global_pool, self.fc = create_classifier(chs, num_classes, pool_type=global_pool, **dd)
        self.head_hidden_size = chs * self.global_pool.feat_mult()
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """Convolutions N(0, 2 / (k * k * out)) (published code); the classifier keeps PyTorch's own."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """Regular expressions that group the parameters by depth (layer-wise learning rates)."""
        return {
            "stem": r"^conv1|^bn1",
            "blocks": [
                (r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)", None),
                (r"^bn_final", (99999,)),
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
        x = self.bn1(self.conv1(x))
        for index in range(end + 1):
            x = self._run(getattr(self, f"layer{index + 1}"), x)
            if index in take_indices:
                intermediates.append(self.bn_final(x) if norm and index == last else x)
        if intermediates_only:
            return intermediates
        return (self.bn_final(x) if end == last else x), intermediates

    def prune_intermediate_layers(
        self, indices: Union[int, List[int]] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> List[int]:
        """Drop what the chosen features do not need; returns their indices."""
        take_indices, max_index = feature_take_indices(len(self.feature_info), indices)
        cut = max_index < len(self.feature_info) - 1
        for index in range(max_index + 1, len(self.feature_info)):
            setattr(self, f"layer{index + 1}", nn.Identity())
        if prune_norm or cut:
            self.bn_final = nn.Identity()  # made for the last stage's width
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
        x = self.bn1(self.conv1(x))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = self._run(self.layer1, x)
            x = self._run(self.layer2, x)
            x = self._run(self.layer3, x)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
        return self.bn_final(x)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = nn.functional.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))


def _widths(alpha: float, blocks: int) -> List[int]:
    """Inner widths of all blocks; summed up step by step, because published widths are rounded from such sums."""
    widths: List[int] = []
    width = 16.0
    for _ in range(blocks):
        width += alpha / blocks
        widths.append(round(width))
    return widths


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


# name: (depth, alpha, ShakeDrop)
_NAMED: Dict[str, Tuple[int, int, float]] = {
    "pyramidnet164": (164, 270, 0.5),
    "pyramidnet272": (272, 200, 0.5),
    "pyramidnet_164_270": (164, 270, 0.0),
    "pyramidnet_200_240": (200, 240, 0.0),
}
_CIFAR10 = {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}  # what RecursiveMix takes for both
default_cfgs = generate_default_cfgs({name: _cfg(**({} if row[2] else _CIFAR10)) for name, row in _NAMED.items()})


def _entrypoint(variant: str) -> Callable[..., PyramidNet]:
    depth, alpha, shakedrop_rate = _NAMED[variant]
    settings = {"depth": depth, "alpha": alpha, "shakedrop_rate": shakedrop_rate}

    def entrypoint(pretrained: bool = False, **kwargs: Any) -> PyramidNet:
        feature_cfg = {"out_indices": (0, 1, 2)}
        return build_model_with_cfg(PyramidNet, variant, pretrained, feature_cfg=feature_cfg, **{**settings, **kwargs})

    entrypoint.__name__ = entrypoint.__qualname__ = variant
    entrypoint.__doc__ = f"PyramidNet-{depth}, alpha {alpha}, with{'' if shakedrop_rate else 'out'} ShakeDrop."
    return entrypoint


for _variant in _NAMED:  # on its own, because this file also serves where nothing but timm is installed
    globals()[_variant] = register_model(_entrypoint(_variant))
