"""Settings of the network, and of the images as it wants them."""

from dataclasses import dataclass, replace
from typing import Any

from timm.models import split_model_name_tag

from timm_mix.train.errors import UsageError
from timm_mix.train.settings.fields import AT_LEAST_1, BELOW_1, FINITE, POSITIVE, SHARE, check_fields, setting

__all__ = ["Floats", "ImageMode", "ModelSettings", "mode_of"]

Floats = tuple[float, ...]
ImageMode = str | int


@dataclass(frozen=True)
class ModelSettings:
    """model

    >>> ModelSettings(name="resnet18", in_chans=1).image_mode  # grey
    'L'
    """

    name: str = setting(
        "mixmo_wrn16_2_m2", "what timm.create_model takes: a name, local-dir:FOLDER, hf-hub:ORG/NAME", name="model"
    )
    model_kwargs: dict[str, Any] = setting({}, "further keywords of timm.create_model: backbone=resnet18 members=3")
    pretrained: bool = setting(False, "start from the published weights of the name")
    initial_checkpoint: str | None = setting(None, "start from the weights in a file (timm's checkpoint_path)")
    num_classes: int | None = setting(None, "default: what the data set says", AT_LEAST_1)
    in_chans: int | None = setting(
        None,
        "channels; 1 reads in grey, others want TIFF or .npy files of as many; default: the model's",
        AT_LEAST_1,
    )
    img_size: int | None = setting(
        None, "pixels of a side, of images and of a network built for one size; default: the model's", AT_LEAST_1
    )
    input_size: tuple[int, ...] | None = setting(
        None, "C H W: channels, height and width, in the place of in_chans and img_size", AT_LEAST_1
    )
    mean: Floats | None = setting(None, "of the images' channels in [0, 1], to normalise; default: the model's", FINITE)
    std: Floats | None = setting(None, "likewise; it must be that of the weights the run starts from", POSITIVE)
    interpolation: str | None = setting(None, "bilinear, bicubic, ...: how images are resized; default: the model's")
    crop_pct: float | None = setting(
        None, "side of the evaluation's crop over that of the image; default: the model's", POSITIVE
    )
    drop: float | None = setting(
        None, "dropout; each part of a splitnet gets it as it is (default: the model's own)", BELOW_1
    )
    drop_path: float | None = setting(None, "stochastic depth; likewise", BELOW_1)
    bn_momentum: float | None = setting(None, "of every batch norm's statistics; default: the model's own", SHARE)
    bn_eps: float | None = setting(None, "of every batch norm; default: the model's own", POSITIVE)
    grad_checkpointing: bool = setting(False, "compute activations twice and keep fewer: less memory, more time")
    channels_last: bool = setting(False, "memory order that convolutions on newer GPUs and CPUs are faster in")
    torchcompile: bool = setting(False, "torch.compile the training step: minutes at the start, faster after")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.input_size is not None and len(self.input_size) != 3:
            raise UsageError(f"input_size must be three numbers C H W, got {' '.join(map(str, self.input_size))}")
        self._one_of("in_chans", {self.in_chans, *(self.input_size or ())[:1], self.model_kwargs.get("in_chans")})
        self._one_of("img_size", {self._square, (self.input_size or ())[1:] or None, self._built_for})

    def _one_of(self, name: str, given: set[Any]) -> None:
        values = sorted(given - {None})
        if len(values) > 1:
            listed = " and ".join("x".join(map(str, v)) if isinstance(v, tuple) else str(v) for v in values)
            raise UsageError(f"{name}, input_size and {name} of model_kwargs are one setting, got {listed}; drop one")

    @property
    def _square(self) -> tuple[int, int] | None:
        return None if self.img_size is None else (self.img_size, self.img_size)

    @property
    def _built_for(self) -> tuple[int, int] | None:
        """What model_kwargs says of the size."""
        size = self.model_kwargs.get("img_size")
        if size is None:
            return None
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if len(sides) != 2 or not all(isinstance(side, int) and side > 0 for side in sides):
            raise UsageError(f"img_size of model_kwargs must be one or two numbers >= 1, got {size!r}")
        return sides[0], sides[1]

    @property
    def size(self) -> tuple[int, int] | None:
        """(H, W) of the images; None: the model's.

        >>> ModelSettings(input_size=(3, 64, 96)).size, ModelSettings(img_size=64).size
        ((64, 96), (64, 64))
        """
        if self.input_size is not None:
            return self.input_size[1], self.input_size[2]
        return self._square or self._built_for

    @property
    def channels(self) -> int | None:
        """Of the images; None: the model's."""
        return self.input_size[0] if self.input_size is not None else self.in_chans or self.model_kwargs.get("in_chans")

    def sized(self, channels: int | None, size: tuple[int, int] | None) -> "ModelSettings":
        """The same with other channels and size, where these are not None.

        >>> ModelSettings(input_size=(3, 64, 96)).sized(1, None).input_size
        (1, 64, 96)
        """
        wanted = size or self.size
        kwargs = {key: value for key, value in self.model_kwargs.items() if key != "in_chans" or channels is None}
        kwargs = {key: value for key, value in kwargs.items() if key != "img_size" or size is None}
        whole: dict[str, Any] = {"in_chans": channels or self.channels, "model_kwargs": kwargs}
        whole |= {"img_size": None, "input_size": None}
        if wanted is not None and wanted[0] != wanted[1]:
            whole |= {"in_chans": None, "input_size": (whole["in_chans"] or 3, *wanted)}
        elif wanted is not None:
            whole["img_size"] = wanted[0]
        return replace(self, **whole)

    @property
    def without_weights(self) -> "ModelSettings":
        """The same network with random weights; a backbone's tag names weights, too.

        >>> named = ModelSettings("mixmo", {"backbone": "resnet18.a1_in1k"}, pretrained=True)
        >>> named.without_weights.model_kwargs
        {'backbone': 'resnet18'}
        """
        kwargs = dict(self.model_kwargs)
        if isinstance(kwargs.get("backbone"), str):
            kwargs["backbone"], _ = split_model_name_tag(kwargs["backbone"])
        return replace(self, pretrained=False, initial_checkpoint=None, model_kwargs=kwargs)

    @property
    def image_mode(self) -> ImageMode:
        """How images are read, see `mode_of`."""
        return mode_of(self.channels or 3)


def mode_of(channels: int) -> ImageMode:
    """PIL's mode of images with so many channels, to which others are converted; the number where PIL has none for it.

    >>> mode_of(1), mode_of(3), mode_of(13)
    ('L', 'RGB', 13)
    """
    return {1: "L", 3: "RGB"}.get(channels, channels)
