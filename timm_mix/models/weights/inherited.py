"""Weights that a network with members takes from its backbone: cfgs that say where they lie and what they know.

Every pretrained tag that timm has for a backbone is one of the models over it (`mixmo_resnet50_m2.a1_in1k`), behind
the weights of their own that they may have. The weights are the backbone's; `from_plain` converts them when they are
loaded.
"""

from dataclasses import asdict
from typing import Any, Callable, Dict, Mapping, Optional

from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg, split_model_name_tag
from torch import nn

from timm_mix.models.weights.shipped import is_declared, register_tags

__all__ = ["check_tag_is_used", "described", "inherit_weights", "source_cfg", "without_tag"]

# Not of the source: which network it is, and a format of files that only the plain network reads.
_OWN = ("architecture", "tag", "first_conv", "classifier", "source", "state_dict")
# What holds for a model wherever its weights come from.
_DESCRIBED = (
    *("input_size", "test_input_size", "min_input_size", "fixed_input_size", "interpolation", "crop_pct"),
    *("test_crop_pct", "crop_mode", "mean", "std", "num_classes", "pool_size", "test_pool_size"),
    *("label_names", "label_descriptions", "license", "origin_url"),
)


def described(model: nn.Module) -> Dict[str, Any]:
    """Of a plain network's cfg what holds for its converted weights: data, classes, licence.

    >>> cfg = described(timm.create_model("test_resnet", num_classes=5))
    >>> cfg["num_classes"], cfg["license"], "hf_hub_id" in cfg
    (5, 'apache-2.0', False)
    """
    cfg: Any = model.pretrained_cfg
    kept = {key: cfg[key] for key in _DESCRIBED if cfg.get(key) is not None}
    if kept.get("num_classes") != model.num_classes:  # a new head: the names are those of the old one
        kept = {key: value for key, value in kept.items() if not key.startswith("label_")}
        kept["num_classes"] = model.num_classes
    return kept


def source_cfg(backbone: str) -> Optional[Dict[str, Any]]:
    """The cfg of a backbone's weights without the names of its layers; None where it has none that convert.

    Args:
        backbone: name of a timm model, with or without a pretrained tag.

    >>> source_cfg("resnet18.a1_in1k")["hf_hub_id"], source_cfg("test_resnet.r160_in1k")["license"]
    ('timm/resnet18.a1_in1k', 'apache-2.0')
    """
    cfg = get_pretrained_cfg(backbone)
    if cfg is None or not _converts(cfg):
        return None
    values = {key: value for key, value in asdict(cfg).items() if key not in _OWN and value is not None}
    return {**values, "custom_load": False}


def check_tag_is_used(backbone: str, pretrained: bool) -> None:
    """A backbone's tag names weights: raise a ValueError where they would not be loaded.

    >>> check_tag_is_used("resnet18.a1_in1k", pretrained=True)
    """
    name, tag = split_model_name_tag(backbone)
    if tag and not pretrained:
        raise ValueError(
            f"backbone={backbone!r} names pretrained weights, which pretrained=False leaves unused; give "
            f"pretrained=True, or backbone={name!r}"
        )


def without_tag(backbone: Any) -> Any:
    """The bare name of a backbone; what is no name stays for others to refuse.

    >>> without_tag("resnet18.a1_in1k")
    'resnet18'
    """
    return split_model_name_tag(backbone)[0] if isinstance(backbone, str) else backbone


def inherit_weights(backbones: Mapping[str, str], cfg: Callable[[str, str], Dict[str, Any]]) -> None:
    """Register every tag of the backbones for the models over them.

    Args:
        backbones: name of a model -> its backbone.
        cfg: (name of a model, backbone with tag) -> the model's cfg for these weights.

    >>> inherit_weights({"mixmo_wrn28_2_m2": "wrn28_2"}, lambda name, backbone: {})  # this backbone has none
    >>> timm.list_pretrained("mixmo_wrn28_2_m2*")
    []
    """
    for name, backbone in backbones.items():
        found = {
            tagged: source
            for tagged, source in get_arch_pretrained_cfgs(backbone).items()
            if _converts(source) and not is_declared(tagged)
        }
        tags = {source.tag: PretrainedCfg(**cfg(name, tagged)) for tagged, source in found.items()}
        first = get_pretrained_cfg(backbone)
        register_tags(name, tags, first.tag if first is not None and first.tag in tags else None)


def _converts(cfg: PretrainedCfg) -> bool:
    """Whether timm reads these weights as a state dict; custom_load is for files that the plain class reads itself."""
    if not cfg.has_weights or cfg.custom_load == "hf":
        return False
    return not cfg.custom_load or bool(cfg.hf_hub_id and not cfg.hf_hub_filename)
