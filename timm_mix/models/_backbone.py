"""Take a timm network apart: first convolution, core, classifier, as its pretrained cfg names them."""

from dataclasses import dataclass
from typing import Any, Dict, List, Tuple, Union

import timm
import torch
from timm.layers import Conv2dSame, PatchEmbed
from timm.models import get_model_input_config
from torch import nn

from timm_mix.functional.checks import check_members
from timm_mix.models._batch_norm import set_batch_norm
from timm_mix.models.weights.shipped import untrained_cfg

__all__ = [
    "Parts",
    "backbone_cfg",
    "build_backbone",
    "check_drop_rates",
    "features_cfg",
    "first_conv_name",
    "is_linear_conv",
    "take_apart",
]

# What a wrapper inherits from its backbone's cfg: how to feed it. Never where the backbone's own weights lie.
_INHERITED = (
    *("input_size", "test_input_size", "min_input_size", "fixed_input_size", "interpolation", "crop_pct"),
    *("test_crop_pct", "crop_mode", "mean", "std", "num_classes", "pool_size", "test_pool_size"),
)


@dataclass(frozen=True)
class Parts:
    """A timm network taken apart.

    core: the network with its first convolution replaced by the identity and without classifier; [B, C', h, w] in.
    encoders: one first convolution per member, each with its own random weights.
    heads: one classifier per member, each with its own random weights; empty when there are no classes.

    >>> parts = take_apart("wrn16_2", members=2, num_classes=5)
    >>> [encoder(torch.zeros(1, 3, 32, 32)).shape for encoder in parts.encoders]
    [torch.Size([1, 16, 32, 32]), torch.Size([1, 16, 32, 32])]
    >>> parts.core(torch.zeros(1, 16, 32, 32)).shape
    torch.Size([1, 128])
    """

    core: nn.Module
    encoders: nn.ModuleList
    heads: nn.ModuleList


def build_backbone(name: str, **kwargs: Any) -> nn.Module:
    """timm.create_model with random weights and a clear error for a name that nobody registered.

    Raises:
        ValueError: an unknown name, a name with a source such as 'hf-hub:', or a file for the backbone alone (a config
            from the Hub could name any file of its reader).

    >>> build_backbone("test_resnet", num_classes=5, in_chans=1)(torch.zeros(2, 1, 64, 64)).shape
    torch.Size([2, 5])
    """
    _known_cfg(name)
    if "." in name:
        raise ValueError(
            f"a tag names weights, which the backbone {name!r} is built without; give it to timm.create_model with "
            "pretrained=True, or drop it"
        )
    if kwargs.get("checkpoint_path"):
        raise ValueError(
            f"checkpoint_path is of the whole model, not of its backbone; got {kwargs['checkpoint_path']!r}: give "
            "it to timm.create_model itself"
        )
    bn = {key: kwargs.pop(key) for key in ("bn_momentum", "bn_eps") if key in kwargs}
    return set_batch_norm(timm.create_model(name, pretrained=False, **kwargs), **bn)


def backbone_cfg(name: str, first_conv: Tuple[str, ...], classifier: Tuple[str, ...]) -> Dict[str, Any]:
    """The pretrained cfg of a wrapper around `name`: its data settings, our layer names, no weights.

    Raises:
        ValueError: a name that timm does not know.

    >>> cfg = backbone_cfg("wrn16_2", first_conv=("encoders.0", "encoders.1"), classifier=("heads.0", "heads.1"))
    >>> cfg["input_size"], cfg["first_conv"], "url" in cfg
    ((3, 32, 32), ('encoders.0', 'encoders.1'), False)
    """
    values = _known_cfg(name).to_dict()
    inherited = {key: values[key] for key in _INHERITED if values.get(key) is not None}
    return {**inherited, "first_conv": first_conv, "classifier": classifier}


def features_cfg(name: str, kwargs: Dict[str, Any]) -> Dict[str, Any]:
    """timm's feature_cfg of a wrapper: the backbone's own default levels, read through forward_intermediates.

    Raises:
        ValueError: another feature_cls than 'getter'; the others rebuild a network from its children.

    >>> features_cfg("wrn16_2", {"features_only": True})
    {'feature_cls': 'getter', 'out_indices': (0, 1, 2)}
    """
    if kwargs.pop("feature_cls", "getter") != "getter":
        raise ValueError("features of a model with members need feature_cls='getter' (the default)")
    cfg: Dict[str, Any] = {"feature_cls": "getter"}
    if kwargs.get("features_only"):
        cfg["out_indices"] = build_backbone(name, features_only=True, device="meta").feature_info.out_indices
    return cfg


def first_conv_name(model: nn.Module) -> str:
    """Name of the one convolution that reads the image.

    Raises:
        ValueError: none, several, or one that does not read the image's own channels.

    >>> first_conv_name(timm.create_model("test_resnet"))
    'conv1.0'
    """
    name = model.pretrained_cfg.get("first_conv")
    conv = model.get_submodule(name) if isinstance(name, str) else None
    if not isinstance(conv, nn.Conv2d) or conv.in_channels != model.in_chans:
        raise ValueError(
            f"MixMo copies the one convolution that reads the image, but {_name(model)} has first_conv={name!r} "
            f"({conv if conv is not None else 'not a single layer'}); choose another backbone"
        )
    return name


def is_linear_conv(conv: nn.Module) -> bool:
    """Whether the layer is linear in its weight (weight-standardised convolutions are not).

    >>> from timm.layers import StdConv2d
    >>> is_linear_conv(nn.Conv2d(3, 5, 3)), is_linear_conv(StdConv2d(3, 5, 3))
    (True, False)
    """
    return type(conv) in (nn.Conv2d, Conv2dSame)


def take_apart(name: str, members: int, num_classes: int, **kwargs: Any) -> Parts:
    """Build `name` once per member, keep one core and every copy's first convolution and classifier.

    A whole network per member, because only its own constructor knows how its layers are initialised.

    Raises:
        ValueError: members < 1, an unknown name, or a backbone without a single first convolution and classifier.

    >>> parts = take_apart("wrn16_2", members=3, num_classes=5)
    >>> len(parts.encoders), len(parts.heads), parts.heads[0]
    (3, 3, Linear(in_features=128, out_features=5, bias=True))
    """
    check_members("members", members)
    core = build_backbone(name, num_classes=num_classes, **kwargs)
    if num_classes > 0 and kwargs.get("global_pool") == "":
        raise ValueError("MixMo's heads need pooled features, got global_pool=''; take 'avg', or num_classes=0")
    encoders, heads = [_encoder(core)], _heads(core)
    for _ in range(members - 1):
        copy = build_backbone(name, num_classes=num_classes, **kwargs)
        encoders.append(_encoder(copy))
        heads += _heads(copy)
    _remove_first_conv(core, encoders[0])
    if num_classes > 0:
        _remove_classifier(core)
    return Parts(core, nn.ModuleList(encoders), nn.ModuleList(heads))


def check_drop_rates(kwargs: Dict[str, Any]) -> None:
    """Raise a ValueError unless every drop_rate, drop_path_rate, ... is in [0, 1): 1 would drop everything.

    >>> check_drop_rates({"drop_rate": 0.5, "drop_path_rate": 1})
    Traceback (most recent call last):
        ...
    ValueError: drop_path_rate must be in [0, 1), got 1
    """
    for name, rate in kwargs.items():
        if "drop" not in name or not name.endswith("_rate") or rate is None:
            continue
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise ValueError(f"{name} must be in [0, 1), got {rate!r}")


def _known_cfg(name: Any) -> Any:
    error = ValueError(f"backbone must be a model name that timm knows (timm.list_models()), got {name!r}")
    if not isinstance(name, str) or not timm.is_model(name.split(".")[0]):
        raise error
    try:
        return untrained_cfg(name)
    except RuntimeError:  # the architecture is known, its tag is not
        raise error from None


def _name(model: nn.Module) -> str:
    return model.pretrained_cfg.get("architecture") or type(model).__name__


def _encoder(model: nn.Module) -> nn.Module:
    return model.get_submodule(first_conv_name(model))


def _heads(model: nn.Module) -> List[nn.Module]:
    if model.num_classes == 0:
        return []
    name: Union[str, Tuple[str, ...], None] = model.pretrained_cfg.get("classifier")
    layer = model.get_submodule(name) if isinstance(name, str) else None
    if isinstance(layer, nn.Linear):
        return [layer]
    if isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1):
        return [_as_linear(layer)]
    raise ValueError(
        f"MixMo copies the one linear classifier, but {_name(model)} has classifier={name!r} "
        f"({type(layer).__name__ if layer is not None else 'not a single layer'}); choose another backbone"
    )


def _as_linear(conv: nn.Conv2d) -> nn.Linear:
    """A 1x1 convolution on pooled features is a linear layer."""
    bias = conv.bias is not None
    weight = conv.weight
    linear = nn.Linear(conv.in_channels, conv.out_channels, bias=bias, device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        linear.weight.copy_(weight.flatten(1))
        if conv.bias is not None:
            linear.bias.copy_(conv.bias)
    return linear


def _remove_first_conv(core: nn.Module, encoder: nn.Module) -> None:
    name = first_conv_name(core)
    parent = core.get_submodule(name.rpartition(".")[0])
    core.set_submodule(name, nn.Identity())
    if isinstance(parent, PatchEmbed):
        if parent.dynamic_img_pad:
            raise ValueError(
                f"{_name(core)} pads the image inside its patch embedding (dynamic_img_pad), which the members would "
                "miss; build it without dynamic_img_pad or strict_img_size=False"
            )
        # what it sees from now on is the grid, one place per patch
        parent.patch_size = (1, 1)
        parent.img_size = parent.grid_size
    elif hasattr(parent, "img_size"):
        _try_features(core, encoder)


@torch.no_grad()
def _try_features(core: nn.Module, encoder: nn.Module) -> None:
    """A patch embedding of its own may insist on seeing an image: find out now, not in the first step."""
    weight, training = encoder.weight, core.training
    image = torch.zeros((1, *get_model_input_config(core)["input_size"]), device=weight.device, dtype=weight.dtype)
    try:
        core.eval()(encoder(image))
    except (RuntimeError, AssertionError, ValueError) as error:
        raise ValueError(
            f"{_name(core)} needs the image itself behind its first convolution "
            f"({' '.join(str(error).split())[:90]}); choose another backbone"
        ) from error
    core.train(training)


def _remove_classifier(core: nn.Module) -> None:
    name = core.pretrained_cfg["classifier"]
    before = set(core.state_dict())
    core.reset_classifier(0)
    lost = sorted(key for key in before - set(core.state_dict()) if not key.startswith(f"{name}."))
    if lost:
        raise ValueError(
            f"MixMo shares everything but the linear classifier, but removing {name!r} from {_name(core)} removes "
            f"{lost[0]!r} as well; choose another backbone"
        )
