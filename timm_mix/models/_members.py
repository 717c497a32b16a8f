"""The member axis: the only place where members meet the batch axis.

Inputs are [B, C, H, W] (all members see the same image) or [B, N, C, H, W] (one image or view each), member logits are
[B, N, K]. The functions that look at a tensor's rank, or at optional arguments, are leaves for torch.fx, so that one
traced graph serves every way of calling a model.
"""

from typing import Any, Dict, List, Optional

import torch
from timm.models import register_notrace_function

from timm_mix.functional.masks import check_masks

__all__ = [
    "ENSEMBLES",
    "check_ensemble",
    "member_output",
    "mix_members",
    "prefix_matcher",
    "reduce_members",
    "select_member",
]

ENSEMBLES = ("logits", "softmax", "max")


def check_ensemble(mode: str) -> str:
    if mode not in ENSEMBLES:
        raise ValueError(f"ensemble must be one of {', '.join(ENSEMBLES)}, got {mode!r}")
    return mode


@register_notrace_function
def select_member(x: torch.Tensor, member: int, members: int) -> torch.Tensor:
    """The images of one member: [B, C, H, W] as it is, or [:, member] of [B, N, C, H, W].

    Raises:
        ValueError: another rank, or another number of members in dim 1.
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
    """
    members = len(encoded)
    if masks is None:
        mixed = encoded[0]
        for i in range(1, members):
            mixed = mixed + encoded[i]
        return mixed
    if not torch.jit.is_scripting():
        _check_masks(masks, encoded[0], members)
    shares = masks.to(encoded[0].dtype) * members
    mixed = encoded[0] * shares[:, 0]
    for i in range(1, members):
        mixed = mixed + encoded[i] * shares[:, i]
    return mixed


@torch.jit.ignore
def _check_masks(masks: torch.Tensor, encoded: torch.Tensor, members: int) -> None:
    if not torch.compiler.is_compiling() and masks.device.type != "meta":
        batch, channels, height, width = encoded.shape
        check_masks(masks, batch, members, (channels, height, width))


def reduce_members(members: torch.Tensor, mode: str) -> torch.Tensor:
    """The ensemble of member logits: [B, N, K] -> [B, K].

    `logits`: their mean. `softmax`: the logarithm of the mean probability, so that softmax of the result is that mean.
    `max`: the largest logit per class.
    """
    if mode == "logits":
        return members.mean(dim=1)
    if mode == "max":
        return members.amax(dim=1)
    return torch.log_softmax(members, dim=-1).logsumexp(dim=1) - torch.log(
        torch.tensor(members.shape[1], dtype=members.dtype, device=members.device)
    )


@register_notrace_function
def member_output(logits: List[torch.Tensor], return_members: bool, mode: str) -> torch.Tensor:
    """Stack N x [B, K] into [B, N, K], and reduce to the ensemble [B, K] unless the members are asked for."""
    members = torch.stack(logits, dim=1)
    if return_members:
        return members
    return reduce_members(members, mode)


def prefix_matcher(matcher: Dict[str, Any], prefix: str) -> Dict[str, Any]:
    """timm's group_matcher of a wrapped network, for names that begin with `prefix` (a regular expression)."""

    def wrap(pattern: str) -> str:
        return rf"^{prefix}\.(?:{pattern.replace('^', '')})"

    return {
        group: [(wrap(pattern), suffix) for pattern, suffix in spec]
        if isinstance(spec, (tuple, list))
        else (wrap(spec) if spec is not None else None)
        for group, spec in matcher.items()
    }
