"""What a network is built for: channels, size and weights of the settings, and how its images are fed to it."""

import inspect
import sys
from pathlib import Path
from typing import Any

import torch
from timm.data import resolve_data_config
from timm.models import (
    get_model_input_config,
    get_pretrained_cfg,
    load_checkpoint,
    load_state_dict,
    model_entrypoint,
    resolve_model_input_args,
)
from torch import nn

from timm_mix.models.from_plain import is_plain
from timm_mix.models.weights.fitted import resampled, with_channels
from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.memory import check_images
from timm_mix.train.settings.model import ModelSettings

__all__ = ["FOREIGN", "batch_norm_args", "data_config_of", "fitted", "input_args", "load_file", "try_an_image"]

FOREIGN = (".npz", ".npy")  # files of weights of which only the network itself knows the names


def input_args(wanted: ModelSettings, name: str) -> dict[str, Any]:
    """in_chans, and img_size for a network that is built for one size: the keywords of timm.create_model.

    Args:
        name: of the model, with a source that is on this machine.

    >>> wanted = ModelSettings(input_size=(1, 64, 96))
    >>> input_args(wanted, "resnet18"), input_args(wanted, "vit_tiny_patch16_224")
    ({'in_chans': 1}, {'in_chans': 1, 'img_size': (64, 96)})
    >>> over_a_vit = ModelSettings(input_size=(1, 64, 96), model_kwargs={"backbone": "vit_tiny_patch16_224"})
    >>> input_args(over_a_vit, "mixmo")["img_size"]
    (64, 96)
    """
    args: dict[str, Any] = {} if wanted.channels is None else {"in_chans": wanted.channels}
    if wanted.size is not None and _is_built_for_a_size(wanted, name):
        args["img_size"] = wanted.size
    return args


def _is_built_for_a_size(wanted: ModelSettings, name: str) -> bool:
    if "img_size" in wanted.model_kwargs:
        return True
    found = resolve_model_input_args(name, **wanted.model_kwargs)
    backbone = found.get("backbone")
    if backbone is None and not found["pretrained_cfg"].get("fixed_input_size"):
        parameter = inspect.signature(model_entrypoint(found["model_name"])).parameters.get("backbone")
        backbone = None if parameter is None else parameter.default
    if isinstance(backbone, str):
        cfg = get_pretrained_cfg(backbone, allow_unregistered=True)
        return bool(cfg is not None and cfg.fixed_input_size)
    return bool(found["pretrained_cfg"].get("fixed_input_size") or "img_size" in found)


def batch_norm_args(wanted: ModelSettings, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """bn_momentum and bn_eps: as keywords of timm.create_model, and those to be set on the network that it made.

    Raises:
        UsageError: a bn_eps that timm would forget where it builds the saved network again.

    >>> batch_norm_args(ModelSettings(bn_momentum=0.01), "wrn16_2")
    ({'bn_momentum': 0.01}, {})
    >>> batch_norm_args(ModelSettings(bn_momentum=0.01), "resnet18")  # timm's has no such keyword
    ({}, {'bn_momentum': 0.01})
    """
    given = {key: getattr(wanted, key) for key in ("bn_momentum", "bn_eps") if getattr(wanted, key) is not None}
    if not given:
        return {}, {}
    module = model_entrypoint(resolve_model_input_args(name, **wanted.model_kwargs)["model_name"]).__module__
    if module.startswith("timm_mix.") or hasattr(sys.modules[module], "resolve_bn_args"):
        return given, {}
    if "bn_eps" in given:
        raise UsageError(f"bn_eps of {wanted.name} would be lost where timm builds it again: drop it")
    return {}, given


def fitted(model: nn.Module, state: dict[str, Any], source: tuple[int, int] | None = None) -> dict[str, Any]:
    """A state dict of the model, or of its plain backbone, at the model's image size and channels, as timm fits them.

    Args:
        source: (H, W) of the images that the weights were trained on, where it is known.

    >>> import timm
    >>> state = timm.create_model("test_vit", img_size=32, num_classes=5).state_dict()
    >>> model = timm.create_model("mixmo", backbone="test_vit", img_size=64, in_chans=2, num_classes=5)
    >>> model.load_state_dict(fitted(model, state, source=(32, 32)))
    <All keys matched successfully>
    """
    if hasattr(model, "convert_plain") and is_plain(state, model):
        state = model.convert_plain(state)  # type: ignore[operator]
    own = getattr(model, "resampled", None)
    return with_channels(model, own(state, source) if own else resampled(model, state, source))


def load_file(model: nn.Module, file: str) -> None:
    """Weights of a file, fitted to the model.

    >>> import timm
    >>> torch.save(timm.create_model("test_resnet", num_classes=5).state_dict(), "colour.pth")
    >>> load_file(timm.create_model("test_resnet", num_classes=5, in_chans=1), "colour.pth")
    """
    if Path(file).suffix in FOREIGN:
        load_checkpoint(model, file)
    else:
        model.load_state_dict(fitted(model, load_state_dict(file)))


def data_config_of(wanted: ModelSettings, model: nn.Module) -> dict[str, Any]:
    """timm's data config of the model, with the recipe's settings on top.

    Where mean and std are known for other channels: one takes their mean, more repeat them, as timm does with the
    weights of a first convolution.

    >>> import timm
    >>> model = timm.create_model("wrn16_2", num_classes=5, in_chans=4)
    >>> data_config = data_config_of(ModelSettings(name="wrn16_2", input_size=(4, 64, 96)), model)
    >>> data_config["input_size"], len(data_config["mean"])
    ((4, 64, 96), 4)
    """
    channels, *size = get_model_input_config(model)["input_size"]
    channels = wanted.channels or channels
    names = ("mean", "std", "interpolation", "crop_pct")
    args = {name: getattr(wanted, name) for name in names if getattr(wanted, name) is not None}
    for name in ("mean", "std"):
        if name in args and len(args[name]) not in (1, channels):
            raise UsageError(f"{name} must be one number, or {channels} for the channels, got {len(args[name])}")
    with user_errors("resolve the data settings"):
        data_config = resolve_data_config({**args, "input_size": (channels, *(wanted.size or size))}, model=model)
    check_images(1, data_config["input_size"], "lower --img-size")
    for name in ("mean", "std"):
        data_config[name] = _per_channel(tuple(data_config[name]), channels)
    return data_config


def _per_channel(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))


@torch.no_grad()
def try_an_image(wanted: ModelSettings, model: nn.Module, data_config: dict[str, Any]) -> None:
    """Show the model one black image, so that a size or a number of channels that it does not take is an error now.

    >>> import timm
    >>> wanted = ModelSettings("test_resnet", input_size=(1, 64, 96))
    >>> model = timm.create_model("test_resnet")  # for 3 channels
    >>> try_an_image(wanted, model, data_config_of(wanted, model))
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: cannot run test_resnet on images of 1 x 64 x 96 (see ...): ...
    """
    parameter = next(model.parameters(), torch.empty(0))
    image = torch.zeros(1, *data_config["input_size"], device=parameter.device, dtype=parameter.dtype)
    modes = {module: module.training for module in model.modules()}
    shape = " x ".join(map(str, data_config["input_size"]))
    try:
        with user_errors(f"run {wanted.name} on images of {shape} (see --img-size, --input-size)"):
            model.eval()(image)
    finally:
        for module, training in modes.items():
            module.training = training
