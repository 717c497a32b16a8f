"""Division rules beyond the paper for timm's ViT / DeiT and Swin.

The embedding, the number of heads and the hidden width of the MLPs are each divided by sqrt(S). Heads keep their size
where a whole number of them comes near enough; otherwise the size nearest to it.

>>> import timm_mix
>>> part = timm_mix.divide("vit_tiny_patch16_224", 2)
>>> part["embed_dim"], part["num_heads"]
(128, 2)
"""

import math
import re
from collections.abc import Iterator
from typing import Any

from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from timm_mix.models.divide.fit import as_whole, fit_first, no_rule, remembered, rounded
from timm_mix.models.divide.resnet import Rules

__all__ = ["RULES"]

_HEAD_DIMS = range(16, 129, 8)
_MLP_FACTORS = (1, 0.85, 1.15)  # make up for the rounding to whole heads
_LIKELY = 0.7, 1.15  # parameters of the parts' blocks over the whole's; others are not worth building


@remembered
def _vit(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    whole = as_whole(name, VisionTransformer)
    block = whole.blocks[0]
    hidden = _hidden(name, block)
    return fit_first(
        name,
        whole,
        split,
        (
            {"embed_dim": width, "num_heads": heads, "mlp_ratio": ratio}
            for width, heads, ratio in _widths(whole.embed_dim, block.attn.num_heads, hidden, split)
        ),
    )


@remembered
def _swin(match: re.Match[str], split: int) -> dict[str, Any]:
    name = match[0]
    whole = as_whole(name, SwinTransformerV2 if match["v2"] else SwinTransformer)
    block = whole.layers[0].blocks[0]
    hidden = _hidden(name, block)
    first = block.attn.num_heads
    multiples = [layer.blocks[0].attn.num_heads // first for layer in whole.layers]
    return fit_first(
        name,
        whole,
        split,
        (
            {"embed_dim": width, "num_heads": tuple(heads * multiple for multiple in multiples), "mlp_ratio": ratio}
            for width, heads, ratio in _widths(whole.embed_dim, first, hidden, split)
        ),
    )


def _widths(embed_dim: int, num_heads: int, hidden: int, split: int) -> Iterator[tuple[int, int, float]]:
    """(embedding, heads, MLP ratio) of a part, those with the whole network's own head size first."""
    scale = 1 / math.sqrt(split)
    whole_dim = embed_dim // num_heads
    others = sorted(set(_HEAD_DIMS) - {whole_dim}, key=lambda dim: abs(math.log(dim / whole_dim)))
    own = [(whole_dim, factor) for factor in _MLP_FACTORS]
    for head_dim, factor in (*own, *((dim, factor) for factor in _MLP_FACTORS for dim in others)):
        heads = rounded(embed_dim * scale / head_dim, 1)
        width = heads * head_dim
        part = rounded(hidden * scale * factor, 8)
        blocks = split * width * (2 * width + part) / (embed_dim * (2 * embed_dim + hidden))
        if _LIKELY[0] <= blocks <= _LIKELY[1]:
            # rounded up, because timm cuts width * ratio down to an integer
            yield width, heads, math.ceil(1e4 * part / width) / 1e4


def _hidden(name: str, block: nn.Module) -> int:
    """Hidden width of a block's MLP."""
    mlp = getattr(block, "mlp", None)
    first = getattr(mlp, "fc1_g", None) or getattr(mlp, "fc1", None)
    if first is None or not hasattr(getattr(block, "attn", None), "num_heads"):
        raise no_rule(name, f"its blocks ({type(block).__name__}) are not one attention and one MLP")
    return first.out_features


RULES: Rules = (
    (r"(?:vit|deit3?|flexivit)_\w+", _vit),
    (r"swin(?P<v2>v2)?_(?!cr)\w+", _swin),
)
