"""SplitNet: one wide network divided into S narrow ones (Zhao et al., arXiv:2011.14660).

The parts are independent timm models; their predictions are joined to one. Trained together (the co-training task)
each part sees its own view of an image.

>>> import timm, torch, timm_mix
>>> model = timm.create_model("splitnet", backbone="wrn16_2", split=2, depth=10, num_classes=5)
>>> model(torch.zeros(7, 3, 32, 32), return_members=True).shape
torch.Size([7, 2, 5])
"""

import logging
from functools import partial
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import timm
import torch
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    register_model,
    resolve_pretrained_cfg,
)
from timm.models._input import update_model_args
from timm.utils import unwrap_model
from torch import nn

from timm_mix.announced import checked_announcements
from timm_mix.functional.checks import check_choice, check_members
from timm_mix.models._backbone import backbone_cfg, build_backbone, features_cfg
from timm_mix.models._entrypoints import register_table
from timm_mix.models._heads import Heads
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
from timm_mix.models.divide.selection import SELECTIONS, select_part
from timm_mix.models.from_plain import (
    PlainStart,
    check_own,
    is_plain,
    load_started,
    name_and_args,
    plain_from_state,
    plain_layers,
    split_state,
)
from timm_mix.models.parts.concurrent import concurrent_parts
from timm_mix.models.parts.one_part import build_parts
from timm_mix.models.weights.fitted import resampled
from timm_mix.models.weights.inherited import check_tag_is_used, described, inherit_weights, source_cfg, without_tag

__all__ = ["SplitNet", "check_undivided"]

for _leaf in ("select_member", "concat_channels", "split_channels", "member_output"):  # for torch.fx's own tracers
    torch.fx.wrap(_leaf)

_logger = logging.getLogger(__name__)


class SplitNet(PlainStart):
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
        self.divided = divide
        self.backbone = backbone
        placed = ("device", "dtype")
        self.backbone_kwargs = {k: v for k, v in backbone_kwargs.items() if k not in placed}
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
    def get_classifier(self, name_only: bool = False) -> Union[Tuple[str, ...], nn.ModuleList]:
        """One head per part, or their names; a part that has several (distilled ViTs) gives a list of its own."""
        if name_only:
            return tuple(self.pretrained_cfg["classifier"])
        heads = [subnet.get_classifier() for subnet in self.subnets]
        return Heads(nn.ModuleList(head) if isinstance(head, (tuple, list)) else head for head in heads)

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

    @torch.jit.ignore
    def convert_plain(self, state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        """The plain backbone's weights as those that the parts start from; a log line says so of selected ones."""
        kwargs = self.backbone_kwargs
        if self.divided:  # what the division sets is of the parts
            check_undivided(self.backbone, self.num_members, kwargs)
            kwargs = {k: v for k, v in kwargs.items() if k not in divided_kwargs(self.backbone, self.num_members)}
            _logger.warning(
                "%d parts start from selected channels of %s, with new heads: train them before use",
                self.num_members,
                self.backbone,
            )
        return _started(plain_from_state(self.backbone, state, self, kwargs), self)

    @torch.jit.ignore
    def resampled(
        self, state: Dict[str, torch.Tensor], source: Optional[Tuple[int, int]] = None
    ) -> Dict[str, torch.Tensor]:
        """Weights of this network at its image size; `source` is the (H, W) that they were trained on."""
        rest = dict(state)
        parts: Dict[str, torch.Tensor] = {}
        for i, part in enumerate(self.subnets):
            prefix = f"subnets.{i}."
            own = {key[len(prefix) :]: rest.pop(key) for key in state if key.startswith(prefix)}
            if own:  # with only_part the others are elsewhere
                part.pretrained_model_args = getattr(self, "pretrained_model_args", {})
                parts |= {f"{prefix}{key}": value for key, value in resampled(part, own, source).items()}
        return {**rest, **parts}

    @classmethod
    def from_plain(
        cls,
        model: nn.Module,
        split: int = 2,
        *,
        selection: str = "uniform",
        divide: bool = True,
        ensemble: str = "logits",
    ) -> "SplitNet":
        """S parts that start from a plain network's weights: an initialisation, to be trained before use.

        Each part takes evenly spaced channels, another set than the other parts (Xu et al., ICLR 2024,
        arXiv:2311.18823; see models/divide/selection.py), and a fresh head. Batch norms keep the statistics of the
        whole network, which no longer fit: `torch.optim.swa_utils.update_bn` over a few hundred images measures them.

        Args:
            model: a network of timm.create_model, with its weights; it stays as it is.
            split: S, the number of parts.
            selection: `uniform`, the one there is.
            divide: False starts every part from the whole network, its head included.
        Raises:
            ValueError: a network that timm did not create or `timm_mix.divide` cannot divide, another selection.

        >>> plain = timm.create_model("wrn16_2", depth=10, num_classes=5)
        >>> model = SplitNet.from_plain(plain, split=2)
        >>> [tuple(part.layer1[0].conv1.weight.shape) for part in (plain, *model.subnets)]
        [(32, 16, 3, 3), (16, 16, 3, 3), (16, 16, 3, 3)]
        """
        check_choice("selection", selection, SELECTIONS)
        model = unwrap_model(model)
        name, kwargs = name_and_args(model)
        if divide:
            check_undivided(name, split, kwargs)
        cfg = {**_cfg(name, split), **described(model), "architecture": "splitnet"}
        splitnet = timm.create_model(
            "splitnet", backbone=name, split=split, divide=divide, ensemble=ensemble, pretrained_cfg=cfg, **kwargs
        )
        weight = next(model.parameters())
        splitnet.to(device=weight.device, dtype=weight.dtype)
        load_started(splitnet, _started(model, splitnet))
        return splitnet.train(model.training)


def checkpoint_filter_fn(state_dict: Dict[str, torch.Tensor], model: SplitNet) -> Dict[str, torch.Tensor]:
    """Weights of the plain backbone become those of its parts; of our own, each part adapts to another image size."""
    if is_plain(state_dict, model):
        return model.convert_plain(state_dict)
    check_own(state_dict, model)
    return model.resampled(state_dict)


def _started(whole: nn.Module, model: SplitNet) -> Dict[str, torch.Tensor]:
    """The state dict of parts that start from the whole network."""
    if not model.divided:
        return split_state(whole.state_dict() for _ in model.subnets)
    heads = model.num_classes and plain_layers(model.backbone)[1]
    return split_state(
        select_part(whole, part, i, model.num_members, skip=heads or ()) for i, part in enumerate(model.subnets)
    )


def check_undivided(backbone: str, split: int, kwargs: Dict[str, Any]) -> None:
    """A whole network of other widths than its name has is none that the rule for the name divides.

    Raises:
        ValueError: a keyword that the division sets itself; drop rates are the user's.

    >>> check_undivided("resnet18", 2, {"channels": (32, 64, 128, 256)})
    Traceback (most recent call last):
        ...
    ValueError: resnet18 is divided by its channels, from a plain network without channels of its own; ...
    """
    own = sorted(key for key in divided_kwargs(backbone, split) if key in kwargs and not key.endswith("_rate"))
    if own:
        raise ValueError(
            f"{backbone} is divided by its {own[0]}, from a plain network without {own[0]} of its own; take "
            "divide=False, or a network of the widths that its name has"
        )


def _part_kwargs(backbone: str, split: int, divide: bool) -> Dict[str, Any]:
    check_members("split", split)
    return divided_kwargs(backbone, split) if divide else {}


def _side_by_side(levels: Any, nchw: bool) -> Any:
    """One level of all parts: maps and tokens on their channel axis, tuples (with prefix tokens) item by item."""
    if isinstance(levels[0], (tuple, list)):
        return tuple(_side_by_side(items, nchw) for items in zip(*levels, strict=True))
    return torch.cat(levels, dim=1 if nchw and levels[0].ndim == 4 else -1)


def _cfg(backbone: str, split: int) -> Dict[str, Any]:
    return backbone_cfg(backbone, **_layers(backbone, split))


def _layers(backbone: str, split: int) -> Dict[str, Tuple[str, ...]]:
    check_members("split", split)
    backbone_cfg(backbone, (), ())  # raises for a name that timm does not know
    plain = get_pretrained_cfg(backbone)
    names = {"first_conv": plain.first_conv if plain else None, "classifier": plain.classifier if plain else None}
    return {key: _of_parts(value, split) for key, value in names.items()}


def _source_cfg(backbone: str, split: int, divide: bool) -> Dict[str, Any]:
    """Selected channels know no classes: as timm's own cfgs of features, this one has none."""
    source = source_cfg(backbone)
    if source is None:
        return {}
    if divide:
        source = {**source, "num_classes": 0}
        for key in ("label_names", "label_descriptions", "label_offset"):
            source.pop(key, None)
    return {**source, **_layers(backbone, split)}


def _of_parts(name: Any, split: int) -> Tuple[str, ...]:
    layers = (name,) if isinstance(name, str) else tuple(name or ())
    return tuple(f"subnets.{i}.{layer}" for i in range(split) for layer in layers)


def _create_splitnet(variant: str, pretrained: bool, backbone: str, split: int, **kwargs: Any) -> SplitNet:
    if kwargs.get("features_only") and kwargs.get("only_part") is not None:
        raise ValueError(
            f"only_part={kwargs['only_part']!r} has forward() only: drop features_only, or take the whole model"
        )
    feature_cfg = features_cfg(backbone, kwargs)
    with checked_announcements():
        return build_model_with_cfg(
            SplitNet,
            variant,
            pretrained,
            feature_cfg=feature_cfg,
            pretrained_filter_fn=checkpoint_filter_fn,
            backbone=backbone,
            split=split,
            **kwargs,
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
    tag = kwargs.get("pretrained_cfg")
    if pretrained and kwargs.get("divide") is False and (tag is None or isinstance(tag, str)):
        cfg = resolve_pretrained_cfg(variant, tag)
        if cfg.num_classes == 0:  # inherited, for parts with selected channels; whole networks have their heads
            whole = _source_cfg(f"{backbone}.{cfg.tag}", split, divide=False)
            kwargs["pretrained_cfg"] = {**whole, "architecture": variant, "tag": cfg.tag}
    return _create_splitnet(variant, pretrained, backbone, split, **kwargs)


def register_inherited() -> None:
    """Register the backbones' weights for the named models; behind their own, if these are registered before.

    >>> cfg = timm.get_pretrained_cfg("splitnet_resnet50_s2.a1_in1k")
    >>> cfg.hf_hub_id, cfg.num_classes
    ('timm/resnet50.a1_in1k', 0)
    """
    inherit_weights(
        {name: backbone for name, (backbone, _) in _NAMED.items()},
        lambda name, backbone: _source_cfg(backbone, _NAMED[name][1], divide=True),
    )


@register_model
def splitnet(pretrained: bool = False, backbone: str = "resnet50", split: int = 2, **kwargs: Any) -> SplitNet:
    """SplitNet of any divisible timm backbone: timm.create_model('splitnet', backbone='resnet50', split=4)."""
    check_members("split", split)
    if not kwargs.get("pretrained_cfg"):
        cfg = _cfg(backbone, split)
        check_tag_is_used(backbone, pretrained)
        source = _source_cfg(backbone, split, kwargs.get("divide", True)) if pretrained else {}
        kwargs["pretrained_cfg"] = {**cfg, **source, "architecture": "splitnet"}
    backbone = without_tag(backbone)
    return _create_splitnet("splitnet", pretrained, backbone, split, **kwargs)


register_table(
    _create_named,
    {name: f"SplitNet: {backbone} divided into {split} parts." for name, (backbone, split) in _NAMED.items()},
)
