"""The member axis: the only place where members meet the batch axis.

Inputs are [B, C, H, W] (all members see the same image) or [B, N, C, H, W] (one image or view each), member logits are
[B, N, K]. The functions that look at a tensor's rank, or at optional arguments, are leaves for torch.fx, so that one
traced graph serves every way of calling a model.
"""

import math
import re
from typing import Any, Callable, Dict, List, Optional, Union

import torch
from timm.models import register_notrace_function

from timm_mix.functional.masks import check_masks, check_shares

__all__ = [
    "ENSEMBLES",
    "check_ensemble",
    "concat_channels",
    "flatten_members",
    "member_output",
    "mix_members",
    "prefix_matcher",
    "reduce_members",
    "select_member",
    "split_channels",
]

ENSEMBLES = ("logits", "softmax", "max")


def check_ensemble(mode: str) -> str:
    """The mode, if there is such an ensemble.

    Raises:
        ValueError: it is none of ENSEMBLES.

    >>> check_ensemble("softmax")
    'softmax'
    """
    if mode not in ENSEMBLES:
        raise ValueError(f"ensemble must be one of {', '.join(ENSEMBLES)}, got {mode!r}")
    return mode


@register_notrace_function
def select_member(x: torch.Tensor, member: int, members: int) -> torch.Tensor:
    """The images of one member: [B, C, H, W] as it is, or [:, member] of [B, N, C, H, W].

    Raises:
        ValueError: another rank, or another number of members in dim 1.

    >>> select_member(torch.zeros(5, 2, 3, 7, 11), 1, members=2).shape
    torch.Size([5, 3, 7, 11])
    """
    if x.ndim == 4:
        return x
    if x.ndim != 5 or x.shape[1] != members:
        raise ValueError(
            f"input must be [B, C, H, W] or [B, {members}, C, H, W] (one image per member), got {list(x.shape)}"
        )
    return x[:, member]


@register_notrace_function
def mix_members(encoded: List[torch.Tensor], masks: Optional[torch.Tensor]) -> torch.Tensor:
    """The mixing block: M * sum_i masks_i * c_i, or sum_i c_i without masks (MixMo, eq. 4).

    Shapes: encoded M x [B, C', h, w].   masks [B|1, M, 1|C', h, w].   returns [B, C', h, w].
    Raises:
        ValueError: masks of another shape, or not summing to 1.

    >>> encoded = [torch.full((1, 1, 1, 2), 3.0), torch.full((1, 1, 1, 2), 5.0)]
    >>> left = torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 2)
    >>> mix_members(encoded, torch.cat([left, 1 - left], dim=1)).flatten()  # the first member's share is the left
    tensor([ 6., 10.])
    """
    members = len(encoded)
    if masks is None:
        mixed = encoded[0]
        for i in range(1, members):
            mixed = mixed + encoded[i]
        return mixed
    if not torch.jit.is_scripting():
        _check(masks, encoded[0], members)
    shares = masks.to(encoded[0].dtype) * members
    mixed = encoded[0] * shares[:, 0]
    for i in range(1, members):
        mixed = mixed + encoded[i] * shares[:, i]
    return mixed


@torch.jit.ignore
def _check(masks: torch.Tensor, encoded: torch.Tensor, members: int) -> None:
    check_masks(masks, members, encoded)
    if not torch.compiler.is_compiling():  # what the shares are is data: no compiled graph can branch on it
        check_shares(masks)


def reduce_members(members: torch.Tensor, mode: str) -> torch.Tensor:
    """The ensemble of member logits: [B, N, K] -> [B, K].

    `logits`: their mean. `softmax`: the logarithm of the mean probability, so that softmax of the result is that mean.
    `max`: the largest logit per class.

    >>> reduce_members(torch.tensor([[[0.0, 4.0], [2.0, -2.0]]]), "logits")
    tensor([[1., 1.]])
    >>> reduce_members(torch.tensor([[[0.0, 4.0], [2.0, -2.0]]]), "max")
    tensor([[2., 4.]])
    """
    if mode == "logits":
        return members.mean(dim=1)
    if mode == "max":
        return members.amax(dim=1)
    if mode != "softmax":
        raise ValueError(f"the members are joined by logits, softmax or max, got {mode}")
    return torch.log_softmax(members, dim=-1).logsumexp(dim=1) - math.log(members.shape[1])


@register_notrace_function
def member_output(logits: List[torch.Tensor], return_members: bool, mode: str) -> torch.Tensor:
    """Stack N x [B, K] into [B, N, K], and reduce to the ensemble [B, K] unless the members are asked for.

    Shapes: logits N x [B, K].   returns [B, N, K] or [B, K].

    >>> logits = [torch.zeros(5, 13), torch.ones(5, 13)]
    >>> member_output(logits, return_members=True, mode="logits").shape
    torch.Size([5, 2, 13])
    """
    members = torch.stack(logits, dim=1)
    if return_members:
        return members
    return reduce_members(members, mode)


def flatten_members(members: torch.Tensor) -> torch.Tensor:
    """[B, N, K] -> [N * B, K], one member after the other: the form in which torch_uncertainty takes an ensemble.

    >>> flatten_members(torch.tensor([[[1.0], [2.0]], [[3.0], [4.0]]])).flatten()
    tensor([1., 3., 2., 4.])
    """
    return members.transpose(0, 1).flatten(0, 1)


@register_notrace_function
def concat_channels(features: List[torch.Tensor], channels_last: bool) -> torch.Tensor:
    """Put the members' features side by side on the channel axis: dim 1 of maps, the last of NHWC maps and tokens.

    Shapes: N x [B, C, h, w] -> [B, N * C, h, w]; N x [B, h, w, C] -> [B, h, w, N * C]; N x [B, T, C] -> [B, T, N * C].

    >>> concat_channels([torch.zeros(5, 3, 7, 11), torch.zeros(5, 3, 7, 11)], channels_last=False).shape
    torch.Size([5, 6, 7, 11])
    """
    return torch.cat(features, dim=-1 if channels_last or features[0].ndim != 4 else 1)


@register_notrace_function
def split_channels(features: torch.Tensor, members: int, channels_last: bool) -> List[torch.Tensor]:
    """Undo concat_channels.

    Shapes: [B, N * C, h, w] -> N x [B, C, h, w], and so on.

    >>> [part.shape for part in split_channels(torch.zeros(5, 6, 7, 11), members=2, channels_last=False)]
    [torch.Size([5, 3, 7, 11]), torch.Size([5, 3, 7, 11])]
    """
    return list(features.chunk(members, dim=-1 if channels_last or features.ndim != 4 else 1))


def prefix_matcher(matcher: Union[Dict[str, Any], Callable], prefix: str) -> Union[Dict[str, Any], Callable]:
    """timm's group_matcher of a wrapped network, for names that begin with `prefix` (a regular expression).

    Names without the prefix fall into the last group.

    >>> matcher = prefix_matcher({"stem": "^conv1", "blocks": "^layer([0-9])"}, "core")
    >>> [bool(re.match(matcher["stem"], name)) for name in ("core.conv1.weight", "conv1.weight")]
    [True, False]
    """
    if callable(matcher):
        begin = re.compile(rf"^{prefix}\.")
        return lambda name: matcher(begin.sub("", name)) if begin.match(name) else float("inf")

    def wrap(pattern: str) -> str:
        return rf"^{prefix}\.(?:{pattern.replace('^', '')})"

    return {
        group: [(wrap(pattern), suffix) for pattern, suffix in spec]
        if isinstance(spec, (tuple, list))
        else (wrap(spec) if spec is not None else None)
        for group, spec in matcher.items()
    }
