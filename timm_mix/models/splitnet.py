"""SplitNet: one wide network divided into S narrow ones (Zhao et al., arXiv:2011.14660).

The parts are independent timm models; their predictions are joined to one. Trained together (the co-training task)
each part sees its own view of an image.

>>> import timm, torch, timm_mix
>>> model = timm.create_model("splitnet", backbone="wrn16_2", split=2, depth=10, num_classes=5)
>>> model(torch.zeros(7, 3, 32, 32), return_members=True).shape
torch.Size([7, 2, 5])
"""

from functools import partial
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, get_pretrained_cfg, register_model
from timm.models._input import update_model_args
from torch import nn

from timm_mix.functional.checks import check_count
from timm_mix.models._backbone import backbone_cfg, build_backbone, features_cfg
from timm_mix.models._entrypoints import register_table
from timm_mix.models._members import (
    check_ensemble,
    concat_channels,
    member_output,
    prefix_matcher,
    select_member,
    split_channels,
)
from timm_mix.models.divide import divide as divided_kwargs
from timm_mix.models.divide.cifar import ARCHS as CIFAR_ARCHS
from timm_mix.models.divide.imagenet import NAMES as IMAGENET_ARCHS
from timm_mix.models.parts.concurrent import concurrent_parts
from timm_mix.models.parts.one_part import build_parts

__all__ = ["SplitNet"]


class SplitNet(nn.Module):
    """S parts of one timm network, side by side.

    Args:
        backbone: name of a timm model that `timm_mix.divide` knows (any, with divide=False).
        split: S, the number of parts.
        ensemble: mean of the `logits`, of the `softmax`, or the `max`.
        divide: False makes S whole networks, a deep ensemble.
        only_part: hold this part alone, under its name in the whole and with the weights that it has there; it counts
            as an ensemble of one, loads its share of a whole state dict and has forward() only. Other processes hold
            the other parts (member-parallel training).
        backbone_kwargs: everything else goes to each part (drop_rate, drop_path_rate, global_pool, ...).
    Shapes:
        model(x): [B, C, H, W] -> [B, K], the ensemble, in training and evaluation alike.
        model(x, return_members=True) -> [B, S, K].
        model(views, return_members=True): views [B, S, C, H, W], one view per part.
        forward_features: the parts' features side by side on the channel axis.
    Raises:
        ValueError: unknown backbone or ensemble, an S that the family cannot take, input of another shape.

    >>> model = SplitNet("wrn16_2", split=2, depth=10, num_classes=5).eval()
    >>> views = torch.rand(7, 2, 3, 32, 32)
    >>> members = model(views, return_members=True)
    >>> members.shape, torch.allclose(members[:, 1], model.subnets[1](views[:, 1]), atol=1e-5)
    (torch.Size([7, 2, 5]), True)
    """

    def __init__(
        self,
        backbone: str = "resnet50",
        split: int = 2,
        num_classes: int = 1000,
        in_chans: int = 3,
        ensemble: str = "logits",
        divide: bool = True,
        only_part: Optional[int] = None,
        **backbone_kwargs: Any,
    ):
        super().__init__()
        self.ensemble = check_ensemble(ensemble)
        part = {"num_classes": num_classes, "in_chans": in_chans}
        part |= {**_part_kwargs(backbone, split, divide), **backbone_kwargs}
        name = part.pop("model_name", backbone)  # a division may be told by another model's name
        self.subnets = nn.ModuleList(build_parts(partial(build_backbone, name, **part), split, only_part))
        self.only_part = only_part
        self.backbone = backbone
        self.num_members = split
        self.num_classes = num_classes
        self.in_chans = in_chans
        self._concurrent: Any = None  # set by parallelize
        self.channels_last = getattr(self._own_part(), "output_fmt", "NCHW") == "NHWC"  # of feature maps, not of memory
        self._follow_parts()

    def _own_part(self) -> nn.Module:
        return self.subnets[self.only_part or 0]

    def _follow_parts(self) -> None:
        first = self._own_part()
        self.num_classes = first.num_classes
        self.num_features: int = self.num_members * first.num_features
        self.head_hidden_size: int = self.num_members * getattr(first, "head_hidden_size", first.num_features)
        self.feature_info: List[Dict[str, Any]] = [
            {**info, "num_chs": self.num_members * info["num_chs"], "module": f"subnets.0.{info['module']}"}
            for info in getattr(first, "feature_info", [])
        ]
        if hasattr(first, "output_fmt"):
            self.output_fmt = first.output_fmt
        if self._concurrent is not None:
            self._concurrent.forget()

    @torch.jit.ignore
    def parallelize(
        self, devices: Optional[Sequence[Any]] = None, *, graph: bool = False, enable: bool = True
    ) -> "SplitNet":
        """In evaluation, run the parts at the same time; in training they go on one after the other.

        On the CPU every part has a thread with its share of torch.get_num_threads() cores, on a GPU a stream. Outputs
        equal those of the sequential model to rounding and lie on the first device. The state_dict is what it was;
        copies and pickles are parallel as well. A model in parallel that is traced or compiled runs sequentially.

        Args:
            devices: one per part, in turn if there are fewer; the same one may appear twice. None: where the parts lie.
            graph: with all parts on one GPU and without gradients, capture the launches once per kind of input
                (CUDA graph) and replay them: for small batches, where launching takes longer than computing. Elsewhere
                it changes nothing.
            enable: False undoes it and gathers the parts on the first part's device.
        Raises:
            ValueError: no devices, a GPU that is not there, settings with enable=False, a part without weights.
        """
        self._concurrent = concurrent_parts(self.subnets, devices, graph, enable)
        return self

    @torch.jit.ignore
    def _each(self, method: str, inputs: List[Any], **kwargs: Any) -> List[Any]:
        """[part.method(x, **kwargs) for each part and its x]"""
        if self._concurrent is not None:
            return self._concurrent(self.subnets, method, inputs, **kwargs)
        return [getattr(part, method)(inputs[i], **kwargs) for i, part in enumerate(self.subnets)]

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """timm's parameter groups, alike for all parts."""
        return prefix_matcher(self._own_part().group_matcher(coarse=coarse), r"subnets\.\d+")

    @torch.jit.ignore
    def no_weight_decay(self) -> set:
        return {
            f"subnets.{i}.{name}"
            for i, subnet in enumerate(self.subnets)
            if hasattr(subnet, "no_weight_decay")
            for name in subnet.no_weight_decay()
        }

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for subnet in self.subnets:
            subnet.set_grad_checkpointing(enable)

    @torch.jit.ignore
    def get_classifier(self) -> nn.ModuleList:
        """One head per part; a part that has several (distilled ViTs) gives a list of its own."""
        heads = [subnet.get_classifier() for subnet in self.subnets]
        return nn.ModuleList(nn.ModuleList(head) if isinstance(head, (tuple, list)) else head for head in heads)

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Give every part a new classifier (0 removes them); the pooling stays unless another is named."""
        for subnet in self.subnets:
            subnet.reset_classifier(num_classes, global_pool)
        self._follow_parts()
        if global_pool is not None:
            update_model_args(self, global_pool=global_pool)

    def forward_intermediates(
        self, x: torch.Tensor, **kwargs: Any
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]], Dict[str, Any]]:
        """The parts' intermediate features, side by side on the channel axis; keyword arguments as in timm."""
        images = [select_member(x, i, self.num_members) for i in range(self.num_members)]
        parts = self._each("forward_intermediates", images, **kwargs)
        nchw = kwargs.get("output_fmt", "NCHW") == "NCHW"
        if isinstance(parts[0], dict):  # timm's ViTs, with output_dict=True
            return {key: self._joined([part[key] for part in parts], key, nchw) for key in parts[0]}
        if kwargs.get("intermediates_only"):
            return [_side_by_side(levels, nchw) for levels in zip(*parts, strict=True)]
        final = concat_channels([features for features, _ in parts], self.channels_last)
        return final, [_side_by_side(levels, nchw) for levels in zip(*(levels for _, levels in parts), strict=True)]

    @torch.jit.ignore
    def _joined(self, values: List[Any], key: str, nchw: bool) -> Any:
        """One entry of the parts' dicts: the final features, or a list of levels."""
        if key == "image_features":
            return concat_channels(values, self.channels_last)
        return [_side_by_side(levels, nchw) for levels in zip(*values, strict=True)]

    def prune_intermediate_layers(self, indices: Union[int, List[int]] = 1, **kwargs: Any) -> List[int]:
        """Drop what the chosen features do not need; returns their indices."""
        kept = [subnet.prune_intermediate_layers(indices, **kwargs) for subnet in self.subnets]
        self._follow_parts()
        return kept[0]

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        images = [select_member(x, i, self.num_members) for i in range(self.num_members)]
        return concat_channels(self._each("forward_features", images), self.channels_last)

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False, return_members: bool = False) -> torch.Tensor:
        parts = split_channels(x, self.num_members, self.channels_last)
        outputs = self._each("forward_head", parts, pre_logits=pre_logits)
        if pre_logits or self.num_classes == 0:
            return concat_channels(outputs, self.channels_last)
        return member_output(outputs, return_members, self.ensemble)

    def forward(self, x: torch.Tensor, return_members: bool = False) -> torch.Tensor:
        if self.only_part is not None:  # for TorchScript a constant: it drops this branch
            return self._forward_one(x, return_members)
        outputs: List[torch.Tensor] = []
        if torch.jit.is_scripting():
            for i, subnet in enumerate(self.subnets):
                outputs.append(subnet(select_member(x, i, self.num_members)))
        else:
            outputs = self._each("__call__", [select_member(x, i, self.num_members) for i in range(self.num_members)])
        if self.num_classes == 0:
            return concat_channels(outputs, self.channels_last)
        return member_output(outputs, return_members, self.ensemble)

    def _forward_one(self, x: torch.Tensor, return_members: bool) -> torch.Tensor:
        """The part that is held, as an ensemble of one: [B, K] or [B, 1, K]."""
        logits = self._own_part()(select_member(x, self.only_part or 0, self.num_members))
        return logits[:, None] if return_members and self.num_classes else logits


def _part_kwargs(backbone: str, split: int, divide: bool) -> Dict[str, Any]:
    check_count("split", split)
    return divided_kwargs(backbone, split) if divide else {}


def _side_by_side(levels: Any, nchw: bool) -> Any:
    """One level of all parts: maps and tokens on their channel axis, tuples (with prefix tokens) item by item."""
    if isinstance(levels[0], (tuple, list)):
        return tuple(_side_by_side(items, nchw) for items in zip(*levels, strict=True))
    return torch.cat(levels, dim=1 if nchw and levels[0].ndim == 4 else -1)


def _cfg(backbone: str, split: int) -> Dict[str, Any]:
    backbone_cfg(backbone, (), ())  # raises for a name that timm does not know
    plain = get_pretrained_cfg(backbone)
    names = {"first_conv": plain.first_conv if plain else None, "classifier": plain.classifier if plain else None}
    return backbone_cfg(backbone, **{key: _of_parts(value, split) for key, value in names.items()})


def _of_parts(name: Any, split: int) -> Tuple[str, ...]:
    layers = (name,) if isinstance(name, str) else tuple(name or ())
    return tuple(f"subnets.{i}.{layer}" for i in range(split) for layer in layers)


def _create_splitnet(variant: str, pretrained: bool, backbone: str, split: int, **kwargs: Any) -> SplitNet:
    if kwargs.get("features_only") and kwargs.get("only_part") is not None:
        raise ValueError(
            f"only_part={kwargs['only_part']!r} has forward() only: drop features_only, or take the whole model"
        )
    feature_cfg = features_cfg(backbone, kwargs)
    return build_model_with_cfg(
        SplitNet, variant, pretrained, feature_cfg=feature_cfg, backbone=backbone, split=split, **kwargs
    )


_NAMED: Dict[str, Tuple[str, int]] = {
    f"splitnet_{arch}_s{split}": (arch, split)
    for arch in (
        *("resnet18", "resnet50", "resnet101", "wide_resnet50_2", "wide_resnet101_2"),
        *("resnext50_32x4d", "resnext101_64x4d", "seresnet50", "wrn28_10"),
    )
    for split in (2, 4, 8)
}
_PUBLISHED = (*IMAGENET_ARCHS, *CIFAR_ARCHS, *(f"efficientnetb{n}" for n in range(8)), "efficientnetb0_cifar")
_NAMED |= {f"splitnet_{arch}_s{split}": (arch, split) for arch in _PUBLISHED for split in (2, 4)}
_NAMED |= {f"splitnet_{arch}_s2": (arch, 2) for arch in ("wrn16_2", "wrn16_4")}  # small: they come with weights
default_cfgs = generate_default_cfgs(
    {"splitnet": _cfg("resnet50", 2), **{name: _cfg(*variant) for name, variant in _NAMED.items()}}
)


def _create_named(variant: str, pretrained: bool, **kwargs: Any) -> SplitNet:
    backbone, split = _NAMED[variant]
    for name in {"backbone", "split"} & set(kwargs):
        raise ValueError(f"{variant} has a fixed {name}; use timm.create_model('splitnet', backbone=..., split=...)")
    return _create_splitnet(variant, pretrained, backbone, split, **kwargs)


@register_model
def splitnet(pretrained: bool = False, backbone: str = "resnet50", split: int = 2, **kwargs: Any) -> SplitNet:
    """SplitNet of any divisible timm backbone: timm.create_model('splitnet', backbone='resnet50', split=4)."""
    check_count("split", split)
    kwargs["pretrained_cfg"] = kwargs.get("pretrained_cfg") or {**_cfg(backbone, split), "architecture": "splitnet"}
    return _create_splitnet("splitnet", pretrained, backbone, split, **kwargs)


register_table(
    _create_named,
    {name: f"SplitNet: {backbone} divided into {split} parts." for name, (backbone, split) in _NAMED.items()},
)
