"""Names in SplitNet's official checkpoints (arXiv:2011.14660) -> ours.

Part i of S lies under `models.<i>.` (with `module.` in front after parallel training) and comes under `subnets.<i>.`,
or, S = 1, under no prefix in a plain model. Its family is known by two of its keys; the rules of the family say what
changes, and what they do not name keeps its name.

    ResNet               layer0.<n>. -> conv1.<n>. and bn1.: timm's stem keeps its last batch norm apart
    SENet, ResNeXSt      layer0.conv<n>., layer0.bn<n>. -> the same; se_module -> se; last_linear -> fc
    both                 layer1.0.downsample.<n>. -> <n + 1>: timm's shortcut has a pool there that does nothing;
                         not SENet-154, whose shortcuts are strided convolutions in both
    DenseNet             norm_final -> norm5
    EfficientNet         blocks one after the other (_blocks.<n>) or by stage (mod<n>.block<n>) -> blocks.<n>.<n>;
                         the first stage has no expansion, so that conv_pw, bn1 and bn2 mean other layers there
    Shake-Shake          stage_<n> -> layer<n>, conv_1 -> conv1, ...; the shortcuts of blocks that keep their width are
                         left out: the published network builds them, but no forward pass reads them
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

from timm.models import is_model
from torch import nn

__all__ = ["LEFT_OUT", "NETWORKS", "model_name", "recognises", "rename"]

LEFT_OUT = "the published network never uses them"

_TO_EIGHT, _TO_FOUR = (1, 2, 4, 8), (1, 2, 4)
# published name -> ours, and the numbers of parts that the published code can build
NETWORKS: dict[str, tuple[str, tuple[int, ...]]] = {
    "resnet50": ("resnet50e", _TO_EIGHT),
    "resnet101": ("resnet101e", _TO_EIGHT),
    "resnet152": ("resnet152e", _TO_EIGHT),
    "resnet200": ("resnet200e", _TO_EIGHT),
    "wide_resnet50_2": ("wide_resnet50_2e", _TO_FOUR),
    "wide_resnet50_3": ("wide_resnet50_3e", _TO_FOUR),
    "wide_resnet101_2": ("wide_resnet101_2e", _TO_FOUR),
    "resnext50_32x4d": ("resnext50e_32x4d", _TO_EIGHT),
    "resnext101_32x4d": ("resnext101e_32x4d", _TO_EIGHT),
    "resnext101_64x4d": ("resnext101e_64x4d", _TO_EIGHT),
    "senet154": ("senet154e", _TO_EIGHT),
    "senet113": ("senet113", _TO_EIGHT),
    "se_resnet50": ("se_resnet50", _TO_EIGHT),
    "se_resnet50_B": ("se_resnet50_b", _TO_EIGHT),
    "se_resnet101": ("se_resnet101", _TO_EIGHT),
    "se_resnet152": ("se_resnet152", _TO_EIGHT),
    "se_resnext101_64x4d": ("se_resnext101_64x4d", _TO_EIGHT),
    "se_resnext101_64x4d_B": ("se_resnext101_64x4d_b", _TO_EIGHT),
    "resnest101": ("resnest101e", (1,)),
    "resnest200": ("resnest200e", (1,)),
    "resnest269": ("resnest269e", (1,)),
    "resnexst50_4x16d": ("resnexst50_4x16d", _TO_FOUR),
    "resnexst50_8x16d": ("resnexst50_8x16d", _TO_EIGHT),
    "resnexst50_4x32d": ("resnexst50_4x32d", _TO_FOUR),
    "resnexst101_8x32d": ("resnexst101_8x32d", _TO_EIGHT),
    **{
        f"efficientnetb{n}{theirs}": (f"efficientnetb{n}{ours}", _TO_FOUR)
        for theirs, ours in (("", ""), ("@lightnet", "_lightnet"), ("@cifar", "_cifar"))
        for n in range(8)
    },
    "resnet110": ("resnet110", (*_TO_EIGHT, 16)),
    "resnet164": ("resnet164", (*_TO_EIGHT, 16)),
    "resnext29_8x64d": ("resnext29_8x64d", _TO_EIGHT),
    "resnext29_16x64d": ("resnext29_16x64d", _TO_EIGHT),
    "wide_resnet16_8": ("wide_resnet16_8", _TO_EIGHT),
    "wide_resnet16_12": ("wide_resnet16_12", _TO_EIGHT),
    "wide_resnet28_10": ("wide_resnet28_10", _TO_EIGHT),
    "wide_resnet40_10": ("wide_resnet40_10", _TO_EIGHT),
    "wide_resnet52_8": ("wide_resnet52_8", _TO_EIGHT),
    "se_resnet110": ("se_resnet110", _TO_FOUR),
    "se_resnet164": ("se_resnet164", _TO_FOUR),
    "shake_resnet26_2x96d": ("shake_resnet26_2x96d", (*_TO_EIGHT, 16)),
    "pyramidnet164": ("pyramidnet164", _TO_EIGHT),
    "pyramidnet272": ("pyramidnet272", _TO_EIGHT),
    "densenet190": ("densenet190", _TO_EIGHT),
}
_PART = re.compile(r"(?:module\.)?models\.(\d+)\.(.+)")
# (pattern, replacement): the first pattern that is found decides; None leaves the tensor out
_Rules = tuple[tuple[str, str | None], ...]


@dataclass(frozen=True)
class _Family:
    signs: tuple[str, ...]  # keys that, together, only this family (or one further down) has
    rules: _Rules


_SHORTCUT: _Rules = (
    (r"^layer1\.0\.downsample\.0\.", "layer1.0.downsample.1."),
    (r"^layer1\.0\.downsample\.1\.", "layer1.0.downsample.2."),
)
_SQUEEZE: _Rules = ((r"\.se_module\.", ".se."), (r"^last_linear\.", "fc."))
_THREE_CONVS: _Rules = (
    (r"^layer0\.conv1\.", "conv1.0."),
    (r"^layer0\.bn1\.", "conv1.1."),
    (r"^layer0\.conv2\.", "conv1.3."),
    (r"^layer0\.bn2\.", "conv1.4."),
    (r"^layer0\.conv3\.", "conv1.6."),
    (r"^layer0\.bn3\.", "bn1."),
)

_BLOCK = r"^(blocks\.\d+\.\d+)\."
_FIRST = r"^(blocks\.0\.\d+)\."
_EFFICIENTNET: _Rules = (
    (r"^(_conv_stem|mod1\.conv_block\.conv)\.", "conv_stem."),
    (r"^(_bn0|mod1\.conv_block\.norm)\.", "bn1."),
    (_FIRST + r"(_depthwise_conv|depth_wise\.conv_block\.conv)\.", r"\1.conv_dw."),
    (_FIRST + r"(_bn1|depth_wise\.conv_block\.norm)\.", r"\1.bn1."),
    (_FIRST + r"(_project_conv|point_wise\.conv)\.", r"\1.conv_pw."),
    (_FIRST + r"(_bn2|point_wise\.norm)\.", r"\1.bn2."),
    (_BLOCK + r"(_expand_conv|expansion\.conv_block\.conv)\.", r"\1.conv_pw."),
    (_BLOCK + r"(_bn0|expansion\.conv_block\.norm)\.", r"\1.bn1."),
    (_BLOCK + r"(_depthwise_conv|depth_wise\.conv_block\.conv)\.", r"\1.conv_dw."),
    (_BLOCK + r"(_bn1|depth_wise\.conv_block\.norm)\.", r"\1.bn2."),
    (_BLOCK + r"(_se_reduce|se_block\.channel_se\.linear1)\.", r"\1.se.conv_reduce."),
    (_BLOCK + r"(_se_expand|se_block\.channel_se\.linear2)\.", r"\1.se.conv_expand."),
    (_BLOCK + r"(_project_conv|point_wise\.conv)\.", r"\1.conv_pwl."),
    (_BLOCK + r"(_bn2|point_wise\.norm)\.", r"\1.bn3."),
    (r"^(_conv_head|last_feat\.conv_block\.conv)\.", "conv_head."),
    (r"^(_bn1|last_feat\.conv_block\.norm)\.", "bn2."),
    (r"^_fc\.", "classifier."),
)
_FAMILIES = (  # the first whose signs are there
    _Family(("layer0.7.weight",), ((r"^layer0\.([01346])\.", r"conv1.\1."), (r"^layer0\.7\.", "bn1."), *_SHORTCUT)),
    _Family(("layer0.1.weight",), ((r"^layer0\.0\.", "conv1."), (r"^layer0\.1\.", "bn1."), *_SHORTCUT)),
    _Family(("layer0.bn3.weight", "layer2.0.downsample.0.weight"), (*_THREE_CONVS, *_SQUEEZE)),  # SENet-154
    _Family(("layer0.bn3.weight",), (*_THREE_CONVS, *_SQUEEZE, *_SHORTCUT)),
    _Family(("layer0.bn1.weight",), ((r"^layer0\.(conv1|bn1)\.", r"\1."), *_SQUEEZE, *_SHORTCUT)),
    _Family(("_conv_stem.weight",), _EFFICIENTNET),
    _Family(("mod1.conv_block.conv.weight",), _EFFICIENTNET),
    _Family(
        ("stage_1.0.shortcut.bn.weight",),
        (
            (r"^stage_\d+\.[1-9]\d*\.shortcut\.", None),  # only the first block of a stage changes the width
            (r"^stage_(\d+)\.", r"layer\1."),
            (r"^conv_1\.", "conv1."),
            (r"^bn_1\.", "bn1."),
            (r"^fc_out\.", "fc."),
        ),
    ),
    _Family(("features.norm_final.weight",), ((r"^features\.norm_final\.", "features.norm5."),)),
)
_DEPTHS = (1.0, 1.1, 1.2, 1.4, 1.8, 2.2, 2.6, 3.1)  # of EfficientNet B0 to B7
_STAGES = [tuple(math.ceil(repeats * depth) for repeats in (1, 2, 2, 3, 3, 4, 1)) for depth in _DEPTHS]
_STAGES_OF = {sum(stages): stages for stages in _STAGES}  # by the number of all blocks; B1 and B2 are equally deep


def model_name(name: str, members: int) -> str:
    """The registered name of one of NETWORKS in that number of parts.

    Raises:
        ValueError: none is registered; the message holds the generic call that makes the model.

    >>> model_name("resnet50e", 2), model_name("resnet50e", 1)
    ('splitnet_resnet50e_s2', 'resnet50e')
    """
    wanted = name if members == 1 else f"splitnet_{name}_s{members}"
    if is_model(wanted):
        return wanted
    raise ValueError(
        f"{wanted} is not a registered name; load such a checkpoint into "
        f"timm.create_model('splitnet', backbone={name!r}, split={members}, num_classes=...): see official_network()"
    )


def recognises(keys: Iterable[str]) -> bool:
    """Whether some key is one of a part.

    >>> recognises(["module.models.0.conv1.weight"]), recognises(["conv1.weight"])
    (True, False)
    """
    return any(_PART.fullmatch(key) for key in keys)


def rename(keys: Iterable[str], model: nn.Module) -> dict[str, str | None]:
    """Our name of every official key, in the given model; None where the published network never uses the tensor.

    A key that no rule knows, or of a part that the model cannot have, keeps its name.

    >>> parts = nn.ModuleDict({"subnets": nn.ModuleList()})  # a model with parts; its layers do not matter
    >>> rename(["models.1.layer0.0.weight", "models.1.layer0.1.weight"], parts)
    {'models.1.layer0.0.weight': 'subnets.1.conv1.weight', 'models.1.layer0.1.weight': 'subnets.1.bn1.weight'}
    """
    has_parts = hasattr(model, "subnets")
    names: dict[str, str | None] = {key: key for key in keys}
    parts: dict[str, dict[str, str]] = {}
    for key in names:
        part = _PART.fullmatch(key)
        if part and (has_parts or part[1] == "0"):
            parts.setdefault(part[1], {})[key] = part[2]
    for index, part_keys in parts.items():
        prefix = f"subnets.{index}." if has_parts else ""
        ours = _part_names(set(part_keys.values()))
        names |= {key: prefix + name if (name := ours[inner]) else None for key, inner in part_keys.items()}
    return names


def _part_names(keys: set[str]) -> dict[str, str | None]:
    rules = next((family.rules for family in _FAMILIES if keys.issuperset(family.signs)), ())
    blocks = {match[1] for key in keys if (match := re.match(r"_blocks\.(\d+)\.", key))}
    stages = _STAGES_OF.get(len(blocks), ())
    return {key: _substitute(_in_stages(key, stages), rules) for key in keys}


def _substitute(key: str, rules: _Rules) -> str | None:
    for pattern, replacement in rules:
        if re.search(pattern, key):
            return None if replacement is None else re.sub(pattern, replacement, key, count=1)
    return key


def _in_stages(key: str, stages: tuple[int, ...]) -> str:
    """EfficientNet: the n-th block of all, or block n of module m, as block n of its stage."""
    if match := re.match(r"mod(\d+)\.block(\d+)\.", key):
        return f"blocks.{int(match[1]) - 2}.{int(match[2]) - 1}.{key[match.end() :]}"
    if match := re.match(r"_blocks\.(\d+)\.", key):
        block = int(match[1])
        for stage, count in enumerate(stages):
            if block < count:
                return f"blocks.{stage}.{block}.{key[match.end() :]}"
            block -= count
    return key
