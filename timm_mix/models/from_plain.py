"""Start a network with members from ONE plain timm network, pretrained or the user's own.

MixMo's first convolutions and heads are linear, so M encoders W / M and M copies of the head give the plain network's
own logits: the inverse of `fold()`. A divided network cannot hold the whole one; its parts take a selection of the
channels (see `divide.selection`), an initialisation and no more. The models' `from_plain` take a network; a state dict
of the plain network is told by its keys and converted wherever timm loads one into a model with members.
"""

import math
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple

import timm
import torch
from timm.models import get_pretrained_cfg
from timm.models._input import get_model_args
from torch import nn

from timm_mix.functional.checks import check_not_negative
from timm_mix.models._backbone import first_conv_name, is_linear_conv
from timm_mix.models._heads import MemberHeads
from timm_mix.models.weights.shipped import untrained_cfg

__all__ = [
    "PlainStart",
    "check_own",
    "draw_tags",
    "is_plain",
    "load_started",
    "mixmo_state",
    "name_and_args",
    "plain_from_state",
    "plain_layers",
    "split_state",
]

State = Dict[str, torch.Tensor]

# What a model was built with and get_model_args leaves out, because an export does not need it.
_DROP = ("drop_rate", "drop_path_rate", "drop_block_rate")


class PlainStart(MemberHeads):
    """A network with members that takes a state dict of its plain backbone wherever it takes one of its own.

    >>> model = timm.create_model("mixmo_wrn16_2_m2", depth=10, num_classes=5)
    >>> model.load_state_dict(timm.create_model("wrn16_2", depth=10, num_classes=5).state_dict())
    <All keys matched successfully>
    """

    @torch.jit.ignore
    def convert_plain(self, state: State) -> State:
        """The plain backbone's weights under the names of this network."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: Any, strict: bool = True, assign: bool = False) -> Any:
        """As in torch; a state dict of the plain backbone is converted first."""
        if is_plain(state_dict, self):
            try:
                state_dict = self.convert_plain(dict(state_dict))
            except ValueError:
                if strict:  # else torch says which keys are missing and unexpected
                    raise
        return super().load_state_dict(state_dict, strict=strict, assign=assign)


def name_and_args(model: nn.Module) -> Tuple[str, Dict[str, Any]]:
    """timm's name of a plain network, and the keyword arguments that build it.

    Raises:
        ValueError: it was not created by timm.create_model, or has members itself.

    >>> name_and_args(timm.create_model("test_resnet", num_classes=5, in_chans=1))
    ('test_resnet', {'num_classes': 5, 'in_chans': 1, 'global_pool': 'avg'})
    """
    cfg = getattr(model, "pretrained_cfg", None) or {}
    name = cfg.get("architecture")
    made_with = getattr(model, "_model_args", None)  # timm.create_model notes it, an entrypoint alone does not
    if not isinstance(name, str) or not timm.is_model(name) or not hasattr(model, "num_classes") or made_with is None:
        raise ValueError(f"from_plain needs a whole model of timm.create_model, got {type(model).__name__}")
    if hasattr(model, "num_members"):
        raise ValueError(f"from_plain needs a plain network, got {name}, which has members itself")
    return name, {**{key: made_with[key] for key in _DROP if key in made_with}, **get_model_args(model)}


def plain_layers(name: str) -> Tuple[Tuple[str, ...], Tuple[str, ...]]:
    """The names of the first convolutions and of the classifiers of a timm architecture.

    >>> plain_layers("wrn16_2")
    (('conv1',), ('fc',))
    """
    cfg = get_pretrained_cfg(name)
    return _names(cfg and cfg.first_conv), _names(cfg and cfg.classifier)


def mixmo_state(
    plain: nn.Module, members: int, *, noise: float = 0.0, generator: Optional[torch.Generator] = None
) -> State:
    """The state dict of a MixMo whose ensemble, and whose fold(), is the plain network.

    Encoders W / M + eps_i with sum_i eps_i = 0 (a bias: b / M), the classifier M times, everything else as it is.

    Args:
        noise: standard deviation of eps_i over that of the encoder's W / M.
        generator: of eps; None takes torch's own.
    Raises:
        ValueError: a network without a single first convolution, noise < 0.

    >>> plain = timm.create_model("wrn16_2", depth=10, num_classes=5).eval()
    >>> model = timm.create_model("mixmo", backbone="wrn16_2", depth=10, num_classes=5).eval()
    >>> model.load_state_dict(mixmo_state(plain, members=2, noise=0.5))
    <All keys matched successfully>
    >>> x = torch.rand(2, 3, 32, 32)
    >>> torch.allclose(model(x), plain(x), atol=1e-5)
    True
    """
    check_not_negative("noise", noise)
    conv, heads = first_conv_name(plain), _names(plain.pretrained_cfg.get("classifier"))
    layer: Any = plain.get_submodule(conv)
    if not is_linear_conv(layer):
        raise ValueError(
            f"members that equal the plain network need a first convolution that is linear in its weight, got "
            f"{type(layer).__name__} in {plain.pretrained_cfg.get('architecture')}; choose another backbone"
        )
    state: State = {}
    for key, value in plain.state_dict().items():
        owner, _, kind = key.rpartition(".")
        if owner == conv:
            copies = (value / members)[None].repeat(members, *(1 for _ in value.shape))
            if kind == "weight" and noise:
                copies += _zero_sum(copies, noise * copies[0].float().std(), generator)
            state |= {f"encoders.{i}.{kind}": copy for i, copy in enumerate(copies)}
        elif owner in heads:
            head = value.flatten(1) if kind == "weight" else value
            state |= {f"heads.{i}.{kind}": head.clone() for i in range(members)}
        else:
            state[f"core.{key}"] = value.clone()
    return state


def load_started(model: nn.Module, state: State) -> None:
    """Load what a plain network gave, in place.

    Raises:
        ValueError: the network was changed since it was created, so that its name builds another one.

    >>> load_started(nn.Linear(3, 5), {"weight": torch.zeros(5, 3), "bias": torch.zeros(5)})
    """
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"the network is not the one that its name builds: {_first_fault(error)}") from error


def draw_tags(
    weight: torch.Tensor, members: int, deviation: float, generator: Optional[torch.Generator] = None
) -> torch.Tensor:
    """MixMo's tags, zero summed over the members.

    Shapes: weight [C', C, kh, kw] of an encoder.   returns [members, C'].

    >>> draw_tags(torch.ones(16, 3, 3, 3), members=2, deviation=0.1).sum(0).abs().max() < 1e-6
    tensor(True)
    """
    norms = weight.detach().flatten(1).float().norm(dim=1)
    return _zero_sum(norms.expand(members, -1), deviation * norms, generator).to(weight)


def is_plain(state: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether a state dict is of the plain backbone of a model with members, or of nothing that the model knows.

    >>> model = timm.create_model("mixmo_wrn16_2_m2")
    >>> is_plain(timm.create_model("wrn16_2").state_dict(), model), is_plain(model.state_dict(), model)
    (True, False)
    """
    if not isinstance(state, Mapping) or not state:
        return False
    if not all(isinstance(key, str) and torch.is_tensor(value) for key, value in state.items()):
        return False
    ours = {"module", "_orig_mod"} | {key.split(".")[0] for key in model.state_dict()}  # the first two are torch's
    return ours.isdisjoint(key.split(".")[0] for key in state)


def check_own(state: State, model: nn.Module) -> None:
    """Of weights of this very network everything but the heads must be there, and be numbers.

    timm itself looks at no key any more where the number of classes differs.

    Raises:
        ValueError: a tensor is missing or holds values that are no numbers.

    >>> model = timm.create_model("mixmo_wrn16_2_m2", num_classes=5)
    >>> check_own(model.state_dict(), timm.create_model("mixmo_wrn16_2_m3", num_classes=7))
    Traceback (most recent call last):
        ...
    ValueError: the weights for mixmo_wrn16_2_m3 lack encoders.2.weight; take a file of this very network
    """
    cfg: Any = model.pretrained_cfg
    heads = tuple(f"{name}." for name in _names(cfg.get("classifier")))
    lacking = [key for key in model.state_dict() if key not in state and not key.startswith(heads)]
    if lacking:
        name = cfg.get("architecture")
        raise ValueError(f"the weights for {name} lack {lacking[0]}; take a file of this very network")
    _check_finite(cfg.get("architecture"), state)


def split_state(parts: Iterable[State]) -> State:
    """The parts' state dicts as one, under the names that they have in a SplitNet.

    >>> sorted(split_state([{"fc.bias": torch.zeros(5)}, {"fc.bias": torch.ones(5)}]))
    ['subnets.0.fc.bias', 'subnets.1.fc.bias']
    """
    return {f"subnets.{i}.{key}": value.clone() for i, part in enumerate(parts) for key, value in part.items()}


def plain_from_state(name: str, state: State, model: nn.Module, kwargs: Dict[str, Any]) -> nn.Module:
    """The plain network with these weights, at its own classes and channels, brought to the model's image size.

    timm itself loads them, so that whatever it does for the plain network (older names of keys, another image size)
    is done here as well.

    Args:
        name: architecture of the plain network.
        state: its state dict, as its file has it.
        model: the model with members that is to have them; its cfg says what the weights were trained on.
        kwargs: keyword arguments of the plain network, but for num_classes and in_chans.
    Raises:
        ValueError: weights of another network, or with values that are no numbers.

    >>> state = timm.create_model("wrn16_2", num_classes=5, in_chans=1).state_dict()
    >>> plain = plain_from_state("wrn16_2", state, timm.create_model("mixmo_wrn16_2_m2", num_classes=7), {})
    >>> plain.num_classes, plain.in_chans
    (5, 1)
    """
    _check_finite(name, state)
    kwargs = {key: value for key, value in kwargs.items() if key not in ("bn_momentum", "bn_eps")}  # of no weight
    cfg: Any = model.pretrained_cfg
    convs, heads = plain_layers(name)
    size = cfg.get("input_size", (3, 224, 224))
    channels = _size(state, convs, 1, size[0])
    classes = _size(state, heads, 0, cfg.get("num_classes", 0))
    if classes < 1:  # of a cfg without heads, or of timm's scripts, which say -1
        classes = untrained_cfg(name).num_classes
    overlay: Dict[str, Any] = {
        "state_dict": dict(state),
        "input_size": (channels, *size[1:]),
        "num_classes": classes,
        "label_offset": 0,
        "custom_load": False,
        **dict.fromkeys(("file", "hf_hub_id", "url", "source")),
    }
    try:
        return timm.create_model(
            name, pretrained=True, num_classes=classes, in_chans=channels, pretrained_cfg_overlay=overlay, **kwargs
        )
    except (RuntimeError, KeyError, IndexError, AttributeError, AssertionError) as error:
        raise ValueError(f"these weights are not those of {name}: {_first_fault(error)}") from error


def _zero_sum(like: torch.Tensor, deviation: torch.Tensor, generator: Optional[torch.Generator]) -> torch.Tensor:
    """[M, ...] noise that vanishes summed over M, drawn on the CPU."""
    if like.is_meta:
        return torch.zeros_like(like)
    members = like.shape[0]
    noise = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    scale = math.sqrt(members / max(1, members - 1))  # makes up for the common part that goes
    return ((noise - noise.mean(0)) * scale * deviation.double().cpu()).to(like)


def _names(value: Any) -> Tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())


def _size(state: State, layers: Tuple[str, ...], dim: int, otherwise: int) -> int:
    weight = state.get(f"{layers[0]}.weight") if layers else None
    known = weight is not None and weight.ndim in ((2, 4) if dim == 0 else (4,))  # a patch embedding may come flat
    return weight.shape[dim] if known else otherwise


def _check_finite(name: str, state: State) -> None:
    for key, value in state.items():
        if torch.is_tensor(value) and value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"the weights for {name} hold values that are no numbers ({key}); take another file")


def _first_fault(error: BaseException) -> str:
    """One line of torch's list of keys and sizes that do not fit."""
    lines = [" ".join(line.split()) for line in str(error).splitlines()[1:] or [str(error)]]
    lines.sort(key=lambda line: not line.startswith("size mismatch"))  # says more than names that are missing
    return (lines[0] if lines else type(error).__name__)[:200]
