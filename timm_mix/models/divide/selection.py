"""Which channels of a whole network one of its S parts starts from (weight selection).

Xu et al., ICLR 2024 (arXiv:2311.18823): a smaller network of the same family starts from evenly spaced channels of a
larger pretrained one, the same channels wherever two layers meet. Here each of S parts takes another offset, so that
they differ, and what belongs together stays whole: attention heads, groups of channels, a depthwise filter with its
channel, each layer's share of DenseNet's features and PyramidNet's added channels.

>>> spread(8, 4, number=0, parts=2), spread(8, 4, number=1, parts=2)
(tensor([0, 2, 4, 6]), tensor([1, 3, 5, 7]))
"""

from collections.abc import Callable, Iterator
from typing import Any, Optional

import torch
from timm.layers import SplitAttn
from timm.models.densenet import DenseNet
from torch import Tensor, nn

from timm_mix.models.pyramidnet_cifar import PyramidNet

__all__ = ["SELECTIONS", "Selection", "blocks", "select_part", "spread"]

SELECTIONS = ("uniform",)
_NORM = ("weight", "bias", "running_mean", "running_var")


def spread(whole: int, part: int, *, number: int = 0, parts: int = 1) -> Tensor:
    """`part` evenly spaced indices of `whole`, of part `number` of `parts`: floor((i + number / parts) whole / part).

    Any number of equal segments side by side, each spread alone, gives the same indices.

    Raises:
        ValueError: a part that is wider than the whole.

    >>> spread(6, 4, number=1, parts=2)
    tensor([0, 2, 3, 5])
    """
    if part > whole:
        raise ValueError(f"a part must not be wider than the whole, got {part} channels of {whole}")
    return torch.div((torch.arange(part) * parts + number) * whole, part * parts, rounding_mode="floor")


def blocks(chosen: Tensor, inner: Tensor, width: int) -> Tensor:
    """The indices `inner` in each of the `chosen` blocks of `width` channels.

    >>> blocks(torch.tensor([0, 2]), torch.tensor([0, 1]), width=4)
    tensor([0, 1, 8, 9])
    """
    return (chosen[:, None] * width + inner).flatten()


class Selection:
    """The indices that one part takes along every dimension of every tensor.

    They follow from the two sizes of a dimension, so that layers which meet agree by themselves; `shared` holds pairs
    of sizes, and `own` single dimensions of a tensor, for which the structure of the network says otherwise; `made` are
    tensors that the whole does not have.

    Args:
        whole, part: the two networks, with the same layers.
        number, parts: which part this is, of how many.

    >>> whole, part = nn.Linear(8, 3), nn.Linear(4, 3)
    >>> Selection(whole, part, 1, 2).index("weight", 1, 8, 4)
    tensor([1, 3, 5, 7])
    """

    def __init__(self, whole: nn.Module, part: nn.Module, number: int, parts: int):
        self.number = number
        self.parts = parts
        self.shared: dict[tuple[int, int], Tensor] = {}
        self.own: dict[tuple[str, int], Tensor] = {}
        self.made: dict[str, Tensor] = {}
        pairs = list(_pairs(whole, part))
        for rule in _RULES:
            for name, ours, theirs in pairs:
                rule(self, name, ours, theirs)

    def spread(self, whole: int, part: int) -> Tensor:
        """The function of this name, for this part."""
        return spread(whole, part, number=self.number, parts=self.parts)

    def channels(self, whole: int, part: int) -> Tensor:
        """What layers with these two widths take."""
        found = self.shared.get((whole, part))
        return self.spread(whole, part) if found is None else found

    def index(self, name: str, dim: int, whole: int, part: int) -> Tensor:
        """The indices along one dimension of the tensor `name`."""
        found = self.own.get((name, dim))
        return self.channels(whole, part) if found is None else found


def select_part(whole: nn.Module, part: nn.Module, number: int, parts: int, skip: tuple[str, ...]) -> dict[str, Tensor]:
    """The tensors with which part `number` of `parts` starts.

    Args:
        whole, part: the two networks; the part gives names and sizes.
        skip: layers that are not taken, such as the classifier; of these the part's own tensors are given.
    Raises:
        ValueError: layers of the part that the whole does not have, or wider ones.

    >>> whole, part = nn.Linear(8, 3), nn.Linear(4, 3)
    >>> torch.equal(select_part(whole, part, 1, 2, skip=())["weight"], whole.weight[:, 1::2])
    True
    """
    source, selection = whole.state_dict(), Selection(whole, part, number, parts)
    stems = {f"{name}.weight" for name in _first_convs(whole)}
    state: dict[str, Tensor] = {}
    for name, own in part.state_dict().items():
        if name.rpartition(".")[0] in skip:
            state[name] = own
            continue
        if name in selection.made:
            state[name] = selection.made[name].to(own)
            continue
        if name not in source or source[name].ndim != own.ndim:
            raise ValueError(f"the part has {name} {list(own.shape)}, which the whole has not: nothing to select")
        taken = source[name]
        for dim, (before, after) in enumerate(zip(source[name].shape, own.shape, strict=True)):
            if dim == 1 and name in stems:
                continue  # the image's channels: timm adapts them
            if before != after or (name, dim) in selection.own:
                taken = taken.index_select(dim, selection.index(name, dim, before, after).to(taken.device))
        state[name] = taken.clone()
    return state


def _first_convs(model: Any) -> tuple[str, ...]:
    names = (getattr(model, "pretrained_cfg", None) or {}).get("first_conv")
    return (names,) if isinstance(names, str) else tuple(names or ())


def _pairs(whole: nn.Module, part: nn.Module) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    others = dict(part.named_modules())
    for name, module in whole.named_modules():
        if name in others:
            yield name, module, others[name]


def _split_attention(selection: Selection, name: str, whole: Any, part: Any) -> None:
    """ResNeSt: the convolution splits its input into cardinality x radix groups, its output into cardinality."""
    if not isinstance(getattr(whole, "conv2", None), SplitAttn) or whole.conv2.fc1.groups == 1:
        return
    groups, fewer = whole.conv2.fc1.groups, part.conv2.fc1.groups
    chosen = selection.spread(groups, fewer)

    def inside(ours: int, theirs: int) -> tuple[Tensor, Tensor]:
        """Channels of this width in a group, and in all chosen groups."""
        inner = selection.spread(ours // groups, theirs // fewer)
        return inner, blocks(chosen, inner, ours // groups)

    for layer in ("fc1", "fc2"):
        ours, theirs = getattr(whole.conv2, layer), getattr(part.conv2, layer)
        selection.own[f"{name}.conv2.{layer}.weight", 1], _ = inside(ours.in_channels, theirs.in_channels)
        _, out = inside(ours.out_channels, theirs.out_channels)
        selection.own |= {(f"{name}.conv2.{layer}.{key}", 0): out for key in ("weight", "bias")}
        if layer == "fc1":
            selection.own |= {(f"{name}.conv2.bn1.{key}", 0): out for key in _NORM}
            _, selection.own[f"{name}.conv3.weight", 1] = inside(ours.in_channels, theirs.in_channels)


def _groups(selection: Selection, name: str, whole: Any, part: Any) -> None:
    """Whole groups, or a part's groups inside them; depthwise filters go with their channels by themselves."""
    if not isinstance(whole, nn.Conv2d) or whole.groups == 1 or whole.groups == whole.in_channels:
        return
    if (f"{name}.weight", 0) in selection.own:
        return
    found = []
    for ours, theirs in ((whole.in_channels, part.in_channels), (whole.out_channels, part.out_channels)):
        widths = ours // whole.groups, theirs // part.groups
        found.append(_inside(selection, whole.groups, part.groups, *widths))
        owners, inner = found[-1]
        index = (owners[:, None] * widths[0] + inner).flatten()
        selection.shared.setdefault((ours, theirs), index)
    (owners, inputs), (_, outputs) = found
    of_groups = whole.weight.unflatten(0, (whole.groups, -1))[owners]  # [groups, outputs, inputs, kh, kw]
    rows = [group[own][:, read] for group, own, read in zip(of_groups, outputs, inputs, strict=True)]
    selection.made[f"{name}.weight"] = torch.cat(rows).detach()


def _inside(selection: Selection, groups: int, of_part: int, width: int, narrow: int) -> tuple[Tensor, Tensor]:
    """Which group of the whole each group of the part lies in, and which of its channels: [groups], [groups, narrow].

    Several groups of the part in one of the whole take other channels each, as far as there are enough.
    """
    numbers = torch.arange(of_part) * selection.parts + selection.number
    owners = torch.div(numbers * groups, of_part * selection.parts, rounding_mode="floor")
    inner = []
    for group, owner in enumerate(owners):
        together = int((owners == owner).sum())
        rank = int((owners[:group] == owner).sum())
        number = rank * selection.parts + selection.number
        inner.append(spread(width, narrow, number=number, parts=selection.parts * together))
    return owners, torch.stack(inner)


def _heads(selection: Selection, name: str, whole: Any, part: Any) -> None:
    """Whole heads, in the queries, keys and values alike."""
    packed = {
        kind: times for kind, times in (("qkv", 3), ("kv", 2)) if isinstance(getattr(whole, kind, None), nn.Linear)
    }
    heads = getattr(whole, "num_heads", None)
    if not isinstance(heads, int) or not packed:
        return
    for kind, times in packed.items():
        ours, theirs = (getattr(net, kind).out_features // times for net in (whole, part))
        dims = ours // heads, theirs // part.num_heads
        inner = blocks(selection.spread(heads, part.num_heads), selection.spread(*dims), dims[0])
        selection.shared.setdefault((ours, theirs), inner)
        every = blocks(torch.arange(times), inner, ours)
        selection.own |= {(f"{name}.{kind}.{key}", 0): every for key in ("weight", "bias")}


def _merging(selection: Selection, name: str, whole: Any, part: Any) -> None:
    """Swin puts four neighbours side by side before it halves the map."""
    reduction = getattr(whole, "reduction", None)
    if not isinstance(reduction, nn.Linear) or not hasattr(whole, "norm"):
        return
    ours, theirs = reduction.in_features // 4, part.reduction.in_features // 4
    four = blocks(torch.arange(4), selection.channels(ours, theirs), ours)
    selection.own[f"{name}.reduction.weight", 1] = four
    if isinstance(whole.norm, nn.LayerNorm) and whole.norm.normalized_shape[0] == 4 * ours:  # else behind the reduction
        selection.own |= {(f"{name}.norm.{key}", 0): four for key in ("weight", "bias")}


def _concatenated(selection: Selection, name: str, whole: Any, part: Any) -> None:
    """DenseNet's features: those of the block's input, then the new ones of every layer."""
    if not isinstance(whole, DenseNet):
        return
    features: Optional[Tensor] = None
    for stage, layers in whole.features.named_children():
        other = getattr(part.features, stage)
        if stage.startswith("denseblock"):
            for layer, module in layers.named_children():
                twin = getattr(other, layer)
                ours, theirs = module.conv1.in_channels, twin.conv1.in_channels
                features = selection.channels(ours, theirs) if features is None else features
                _read(selection, f"features.{stage}.{layer}.norm1", f"features.{stage}.{layer}.conv1", features)
                new = selection.spread(module.conv2.out_channels, twin.conv2.out_channels)
                features = torch.cat([features, ours + new])
        elif features is not None and hasattr(layers, "conv"):
            _read(selection, f"features.{stage}.norm", f"features.{stage}.conv", features)
            features = None
    if features is not None:
        _read(selection, "features.norm5", "classifier", features)


def _read(selection: Selection, norm: str, layer: str, features: Tensor) -> None:
    selection.own |= {(f"{norm}.{key}", 0): features for key in _NORM}
    selection.own[f"{layer}.weight", 1] = features


def _added(selection: Selection, name: str, whole: Any, part: Any) -> None:
    """PyramidNet: every block adds channels behind those that its shortcut hands on."""
    if not isinstance(whole, PyramidNet):
        return
    before = whole.conv1.out_channels, part.conv1.out_channels
    index = selection.spread(*before)
    for stage in ("layer1", "layer2", "layer3"):
        for ours, theirs in zip(getattr(whole, stage), getattr(part, stage), strict=True):
            selection.shared[before] = index
            after = before[0] + ours.new_chs, before[1] + theirs.new_chs
            index = torch.cat([index, before[0] + selection.spread(ours.new_chs, theirs.new_chs)])
            before = after
    selection.shared[before] = index


def _shortcuts(selection: Selection, name: str, whole: Any, part: Any) -> None:
    """Where the whole hands its input on as it is and the part cannot: a projection that picks the part's channels."""
    ours, theirs = getattr(whole, "downsample", None), getattr(part, "downsample", None)
    if ours is not None or theirs is None:
        return
    convs = [(key, module) for key, module in theirs.named_modules() if isinstance(module, nn.Conv2d)]
    norms = [(key, module) for key, module in theirs.named_modules() if hasattr(module, "running_mean")]
    for key, conv in convs:
        width = whole.conv1.in_channels
        inputs, outputs = (selection.channels(width, side) for side in (conv.in_channels, conv.out_channels))
        pick = (outputs[:, None] == inputs).float()
        selection.made[f"{name}.downsample.{key}.weight"] = pick.reshape(conv.weight.shape)
    for key, norm in norms:
        values = dict.fromkeys(norm.state_dict(), 0.0) | {"weight": 1.0, "running_var": 1.0 - norm.eps}  # the identity
        selection.made |= {
            f"{name}.downsample.{key}.{kind}": torch.full(tensor.shape, values[kind])
            for kind, tensor in norm.state_dict().items()
        }


# in this order: the first that speaks of a pair of sizes is heard
_RULES: tuple[Callable[[Selection, str, Any, Any], None], ...] = (
    *(_added, _concatenated, _split_attention),
    *(_groups, _heads, _merging, _shortcuts),
)
