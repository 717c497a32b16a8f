"""MixMo over any timm backbone (Rame, Sun, Cord, ICCV 2021, arXiv:2103.06132).

M copies of the first convolution encode one image each, a mixing block joins their features with masks, one shared
core and M linear heads give one prediction per member. Convolution and linear layers are linear, so the ensemble of
all members on one image equals ONE plain backbone with the encoders summed and the heads averaged: `fold()`.

>>> import timm, torch, timm_mix
>>> model = timm.create_model("mixmo", backbone="wrn16_2", members=3, depth=10, num_classes=5).eval()
>>> x = torch.rand(2, 3, 32, 32)
>>> torch.allclose(model(x), model.fold()(x), atol=1e-4)
True
"""

from typing import Any, Dict, List, Optional, Tuple, Union

import timm
import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models._input import update_model_args
from timm.utils import unwrap_model
from torch import nn

from timm_mix.announced import checked_announcements
from timm_mix.functional.checks import check_members, check_not_negative
from timm_mix.models._backbone import (
    backbone_cfg,
    build_backbone,
    features_cfg,
    first_conv_name,
    is_linear_conv,
    take_apart,
)
from timm_mix.models._entrypoints import register_table
from timm_mix.models._heads import Heads
from timm_mix.models._members import check_ensemble, member_output, mix_members, prefix_matcher, select_member
from timm_mix.models.from_plain import (
    PlainStart,
    check_own,
    draw_tags,
    is_plain,
    load_started,
    mixmo_state,
    name_and_args,
    plain_from_state,
)
from timm_mix.models.weights.fitted import fits, resampled
from timm_mix.models.weights.inherited import check_tag_is_used, described, inherit_weights, source_cfg, without_tag

__all__ = ["MixMo"]

for _leaf in ("select_member", "mix_members", "member_output"):  # for torch.fx's own tracers; timm's know them already
    torch.fx.wrap(_leaf)


class MixMo(PlainStart):
    """M encoders -> mixing block -> one shared timm core -> M heads.

    Args:
        backbone: name of a timm model with one first convolution and one linear classifier.
        members: M, the number of inputs and of outputs.
        ensemble: how `forward` joins the members: mean of the `logits`, of the `softmax`, or the `max`.
        tags: standard deviation of what is added to a member's places, per channel and over the norm of the encoder's
            filter; learnt from there, and always zero summed over the members, so that the core can tell whose place
            it sees while the ensemble of one image and fold() are as without. 0 has none.
        backbone_kwargs: everything else goes to the backbone (drop_rate, drop_path_rate, img_size, act_layer, ...).
    Shapes:
        model(x): [B, C, H, W] -> [B, K], the ensemble, in training and evaluation alike.
        model(x, return_members=True) -> [B, M, K].
        model(xs, masks=masks, return_members=True): xs [B, M, C, H, W], one image per encoder;
            masks [B|1, M, 1|C', h, w] with (C', h, w) = model.stem_shape((H, W)), summing to 1 over M.
    Raises:
        ValueError: unknown backbone or ensemble, members < 1, input or masks of another shape, masks whose
            sum over the members is not 1.

    >>> model = MixMo("wrn16_2", members=2, num_classes=5)
    >>> model.stem_shape((32, 32))
    (16, 32, 32)
    >>> masks = torch.full((1, 2, 1, 32, 32), 0.5)  # half of each image
    >>> model(torch.zeros(7, 2, 3, 32, 32), masks=masks, return_members=True).shape
    torch.Size([7, 2, 5])
    """

    def __init__(
        self,
        backbone: str = "resnet18",
        members: int = 2,
        num_classes: int = 1000,
        in_chans: int = 3,
        ensemble: str = "logits",
        tags: float = 0.0,
        **backbone_kwargs: Any,
    ):
        super().__init__()
        check_not_negative("tags", tags)
        self.ensemble = check_ensemble(ensemble)
        parts = take_apart(backbone, members, num_classes, in_chans=in_chans, **backbone_kwargs)
        self.backbone = backbone
        self.backbone_kwargs = {k: v for k, v in backbone_kwargs.items() if k not in ("device", "dtype")}
        self.reset_pool: Optional[str] = None  # the pooling that reset_classifier asked for
        self.num_members = members
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.encoders = parts.encoders
        self.core = parts.core
        self.heads = Heads(parts.heads)
        self.tags = nn.Parameter(draw_tags(self.encoders[0].weight, members, tags)) if tags else None
        self._follow_core()

    def _follow_core(self) -> None:
        self.num_features: int = self.core.num_features
        self.head_hidden_size: int = getattr(self.core, "head_hidden_size", self.num_features)
        self.feature_info: List[Dict[str, Any]] = [
            {**info, "module": f"core.{info['module']}"} for info in getattr(self.core, "feature_info", [])
        ]
        if hasattr(self.core, "output_fmt"):
            self.output_fmt = self.core.output_fmt

    @torch.jit.ignore
    def stem_shape(self, size: Tuple[int, int]) -> Tuple[int, int, int]:
        """(C', h, w), the shape of an encoder's output for images of `size` = (H, W): where masks live."""
        conv = self.encoders[0]
        on_meta = {name: p.to("meta") for name, p in conv.named_parameters()}
        image = torch.empty((1, self.in_chans, *size), device="meta", dtype=conv.weight.dtype)
        with torch.no_grad():
            shape = torch.func.functional_call(conv, on_meta, (image,)).shape
        return int(shape[1]), int(shape[2]), int(shape[3])

    @torch.jit.ignore
    def fold(self) -> nn.Module:
        """The same ensemble as ONE plain timm model: encoders summed, heads averaged; nothing of timm_mix in it.

        Raises:
            ValueError: the ensemble is not the mean of logits, or the encoders are not linear in their weights.
        """
        if self.ensemble != "logits":
            raise ValueError(
                f"fold() needs ensemble='logits' (a mean of logits is linear in the heads), got {self.ensemble!r}"
            )
        if not all(is_linear_conv(conv) for conv in self.encoders):
            raise ValueError(
                f"fold() needs encoders that are linear in their weights, got {type(self.encoders[0]).__name__} "
                f"in {self.backbone}; publish the members instead"
            )
        plain = self._plain_backbone()
        state = self.core.state_dict()
        conv = first_conv_name(plain)
        state.update(_joined(self.encoders, conv, lambda tensors: tensors.sum(0)))
        if self.num_classes > 0:
            classifier = plain.pretrained_cfg["classifier"]
            state.update(_joined(self.heads, classifier, lambda tensors: tensors.mean(0)))
            shape = plain.get_submodule(classifier).weight.shape
            state[f"{classifier}.weight"] = state[f"{classifier}.weight"].view(shape)
        plain.load_state_dict(state, strict=True)
        return plain.train(self.training)

    def _plain_backbone(self) -> nn.Module:
        weight = self.encoders[0].weight
        cfg = {key: value for key, value in self.pretrained_cfg.items() if key in ("mean", "std", "input_size")}
        cfg.update({key: self.pretrained_cfg.get(key) for key in ("interpolation", "crop_pct", "crop_mode")})
        # whatever weights the backbone may have of its own, the folded ones are others
        cfg.update(dict.fromkeys(("file", "hf_hub_id", "url", "tag", "label_descriptions", "label_names")))
        if self.num_classes == self.pretrained_cfg.get("num_classes"):
            # with their number: timm saves no names beside another one
            cfg.update(num_classes=self.num_classes, label_names=self.pretrained_cfg.get("label_names"))
        plain = build_backbone(
            self.backbone,
            num_classes=self.num_classes,
            in_chans=self.in_chans,
            pretrained_cfg_overlay=cfg,
            **self.backbone_kwargs,
        )
        if self.reset_pool is not None:
            plain.reset_classifier(self.num_classes, self.reset_pool)
        return plain.to(device=weight.device, dtype=weight.dtype)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> Dict[str, Any]:
        """timm's parameter groups of the core; the encoders belong to its stem, the heads come last."""
        inner = prefix_matcher(self.core.group_matcher(coarse=coarse), "core")
        if callable(inner):
            return lambda name: -1 if name.startswith(("encoders.", "tags")) else inner(name)
        stem, spec = next(iter(inner.items()))
        patterns = spec if isinstance(spec, list) else [(spec, None)]
        return {**inner, stem: [(r"^encoders\.|^tags$", None), *patterns]}

    @torch.jit.ignore
    def no_weight_decay(self) -> set:
        inner = self.core.no_weight_decay() if hasattr(self.core, "no_weight_decay") else set()
        return {"tags", *(f"core.{name}" for name in inner)}

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.core.set_grad_checkpointing(enable)

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> Union[str, nn.Module]:
        return "heads" if name_only else self.heads

    def reset_classifier(self, num_classes: int, global_pool: Optional[str] = None) -> None:
        """Give every member a new head (0 removes them); the pooling stays unless another is named."""
        if num_classes > 0 and global_pool == "":
            raise ValueError("MixMo's heads need pooled features, got global_pool=''; take 'avg', or num_classes=0")
        weight = self.encoders[0].weight
        self.core.reset_classifier(0, global_pool)
        self._follow_core()
        self.num_classes = num_classes
        if global_pool is not None:
            self.reset_pool = global_pool
            update_model_args(self, global_pool=global_pool)
        kwargs = {"device": weight.device, "dtype": weight.dtype}
        if len(self.heads) > 0:
            kwargs["bias"] = self.heads[0].bias is not None
        members = self.num_members if num_classes > 0 else 0
        self.heads = Heads(nn.Linear(self.head_hidden_size, num_classes, **kwargs) for _ in range(members))
        self.heads.train(self.training)

    def forward_intermediates(
        self, x: torch.Tensor, masks: Optional[torch.Tensor] = None, **kwargs: Any
    ) -> Union[List[torch.Tensor], Tuple[torch.Tensor, List[torch.Tensor]]]:
        """The core's intermediate features of the mixed input; keyword arguments as in timm."""
        return self.core.forward_intermediates(self.encode(x, masks), **kwargs)

    def prune_intermediate_layers(self, indices: Union[int, List[int]] = 1, **kwargs: Any) -> List[int]:
        """Drop what the chosen features do not need; returns their indices."""
        kept = self.core.prune_intermediate_layers(indices, **kwargs)
        if kwargs.get("prune_head", True) or self.core.num_features != self.num_features:
            self.num_classes = 0
            self.heads = Heads()
        self._follow_core()
        return kept

    def encode(self, x: torch.Tensor, masks: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Encoders and mixing block: [B, C, H, W] or [B, M, C, H, W] -> [B, C', h, w]."""
        encoded: List[torch.Tensor] = []
        for i, encoder in enumerate(self.encoders):
            encoded.append(encoder(select_member(x, i, self.num_members)))
        tags = self.tags
        if tags is not None and masks is not None:  # without masks they add up to nothing
            centred = tags - tags.mean(0)
            for i in range(self.num_members):
                encoded[i] = encoded[i] + centred[i][:, None, None]
        return mix_members(encoded, masks)

    def forward_features(self, x: torch.Tensor, masks: Optional[torch.Tensor] = None) -> torch.Tensor:
        return self.core.forward_features(self.encode(x, masks))

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False, return_members: bool = False) -> torch.Tensor:
        x = self.core.forward_head(x, pre_logits=True)
        return x if pre_logits else self._predict(x, return_members)

    def _predict(self, x: torch.Tensor, return_members: bool = False) -> torch.Tensor:
        if self.num_classes == 0:
            return x
        logits: List[torch.Tensor] = []
        for head in self.heads:
            logits.append(head(x))
        return member_output(logits, return_members, self.ensemble)

    def forward(
        self, x: torch.Tensor, masks: Optional[torch.Tensor] = None, return_members: bool = False
    ) -> torch.Tensor:
        return self._predict(self.core(self.encode(x, masks)), return_members)

    @torch.jit.ignore
    def convert_plain(self, state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        """The plain backbone's weights as those of a MixMo that equals it; the tags stay."""
        plain = plain_from_state(self.backbone, state, self, self.backbone_kwargs)
        converted = mixmo_state(plain, self.num_members)
        if self.tags is not None:  # as large beside the new filters as they are beside the old ones
            old, new = (w.flatten(1).norm(dim=1) for w in (self.encoders[0].weight, converted["encoders.0.weight"]))
            converted["tags"] = self.tags.detach() * (new.to(old) / old).detach()
        return converted

    @torch.jit.ignore
    def resampled(
        self, state: Dict[str, torch.Tensor], source: Optional[Tuple[int, int]] = None
    ) -> Dict[str, torch.Tensor]:
        """Weights of this network at its image size; `source` is the (H, W) that they were trained on.

        The plain backbone's filter does it, which wants the patch embedding that the core has not.
        """
        if fits(self, state, source):
            return state
        plain = self._plain_backbone()
        plain.pretrained_model_args = getattr(self, "pretrained_model_args", {})
        conv = first_conv_name(plain)
        first = {f"{conv}.{name}": value for name, value in _of(state, "encoders.0.").items()}
        core = resampled(plain, {**_of(state, "core."), **first}, source)
        rest = {key: value for key, value in state.items() if not key.startswith("core.")}
        return {**rest, **{f"core.{key}": value for key, value in core.items() if key not in first}}

    @classmethod
    def from_plain(
        cls,
        model: nn.Module,
        members: int = 2,
        *,
        noise: float = 0.0,
        tags: float = 0.0,
        ensemble: str = "logits",
        seed: int = 0,
    ) -> "MixMo":
        """A MixMo whose ensemble, and whose fold(), is this plain network: fold()'s inverse.

        Args:
            model: a network of timm.create_model, with its weights; it stays as it is.
            noise: how far the encoders lie apart, as a share of their weights' standard deviation; sums to zero.
            tags: see MixMo.
            seed: of noise and tags.
        Raises:
            ValueError: a network that timm did not create, or without one linear first convolution and classifier.

        >>> plain = timm.create_model("wrn16_2", depth=10, num_classes=5).eval()
        >>> model = MixMo.from_plain(plain, members=3, noise=0.3)
        >>> x = torch.rand(2, 3, 32, 32)
        >>> torch.allclose(model(x), plain(x), atol=1e-5), torch.allclose(model.fold()(x), plain(x), atol=1e-5)
        (True, True)
        """
        model = unwrap_model(model)
        name, kwargs = name_and_args(model)
        cfg = {**_cfg(name, members), **described(model), "architecture": "mixmo"}
        mixmo = timm.create_model(
            "mixmo", backbone=name, members=members, ensemble=ensemble, tags=tags, pretrained_cfg=cfg, **kwargs
        )
        weight = model.get_submodule(first_conv_name(model)).weight
        generator = torch.Generator().manual_seed(seed)
        state = mixmo_state(model, members, noise=noise, generator=generator)
        if tags:
            state["tags"] = draw_tags(state["encoders.0.weight"], members, tags, generator)
        load_started(mixmo.to(device=weight.device, dtype=weight.dtype), state)
        return mixmo.train(model.training)


def checkpoint_filter_fn(state_dict: Dict[str, torch.Tensor], model: MixMo) -> Dict[str, torch.Tensor]:
    """Weights of the plain backbone become those of a MixMo; of our own, the core adapts to another image size."""
    if is_plain(state_dict, model):
        return model.convert_plain(state_dict)
    check_own(state_dict, model)
    return model.resampled(state_dict)


def _of(state: Dict[str, torch.Tensor], prefix: str) -> Dict[str, torch.Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _joined(layers: nn.ModuleList, name: str, join) -> Dict[str, torch.Tensor]:
    """Join the copies of a layer parameter by parameter."""
    names = [n for n, _ in layers[0].named_parameters()]
    return {f"{name}.{n}": join(torch.stack([layer.get_parameter(n).detach() for layer in layers])) for n in names}


def _layers(members: int) -> Dict[str, Tuple[str, ...]]:
    check_members("members", members)
    return {
        "first_conv": tuple(f"encoders.{i}" for i in range(members)),
        "classifier": tuple(f"heads.{i}" for i in range(members)),
    }


def _cfg(backbone: str, members: int) -> Dict[str, Any]:
    return backbone_cfg(backbone, **_layers(members))


def register_inherited() -> None:
    """Register the backbones' weights for the named models; behind their own, if these are registered before.

    >>> timm.get_pretrained_cfg("mixmo_resnet50_m2.a1_in1k").hf_hub_id
    'timm/resnet50.a1_in1k'
    """
    inherit_weights(
        {name: backbone for name, (backbone, _) in _NAMED.items()},
        lambda name, backbone: {**(source_cfg(backbone) or {}), **_layers(_NAMED[name][1])},
    )


def _create_mixmo(variant: str, pretrained: bool, backbone: str, members: int, **kwargs: Any) -> MixMo:
    feature_cfg = features_cfg(backbone, kwargs)
    with checked_announcements():
        return build_model_with_cfg(
            MixMo,
            variant,
            pretrained,
            feature_cfg=feature_cfg,
            pretrained_filter_fn=checkpoint_filter_fn,
            backbone=backbone,
            members=members,
            **kwargs,
        )


_BACKBONES = (
    "wrn16_2",
    *(f"wrn28_{k}" for k in (2, 3, 4, 5, 6, 7, 8, 10, 12, 14)),
    *("preact_resnet18", "preact_resnet18_w2", "preact_resnet18_w3"),
    *("resnet18", "resnet50", "resnext50_32x4d", "efficientnet_b0", "convnext_tiny"),
    # No ViT: timm's tests exempt only names that begin with vit_ from having feature maps, and tokens are not maps.
    "swin_tiny_patch4_window7_224",
)
_NAMED: Dict[str, Tuple[str, int]] = {
    f"mixmo_{backbone}_m{members}": (backbone, members) for backbone in _BACKBONES for members in (2, 3, 4)
}
default_cfgs = generate_default_cfgs(
    {"mixmo": _cfg("resnet18", 2), **{name: _cfg(*variant) for name, variant in _NAMED.items()}}
)


def _create_named(variant: str, pretrained: bool, **kwargs: Any) -> MixMo:
    backbone, members = _NAMED[variant]
    for name in {"backbone", "members"} & set(kwargs):
        raise ValueError(f"{variant} has a fixed {name}; use timm.create_model('mixmo', backbone=..., members=...)")
    return _create_mixmo(variant, pretrained, backbone, members, **kwargs)


@register_model
def mixmo(pretrained: bool = False, backbone: str = "resnet18", members: int = 2, **kwargs: Any) -> MixMo:
    """MixMo over any timm backbone: timm.create_model('mixmo', backbone='convnext_tiny', members=3)."""
    check_members("members", members)
    if not kwargs.get("pretrained_cfg"):
        cfg = _cfg(backbone, members)
        check_tag_is_used(backbone, pretrained)
        source = source_cfg(backbone) if pretrained else None
        kwargs["pretrained_cfg"] = {**cfg, **(source or {}), "architecture": "mixmo"}
    backbone = without_tag(backbone)
    return _create_mixmo("mixmo", pretrained, backbone, members, **kwargs)


register_table(
    _create_named,
    {name: f"MixMo with {members} members over {backbone}." for name, (backbone, members) in _NAMED.items()},
)
