"""Settings of the network, and of the images as it wants them."""

from dataclasses import dataclass, replace
from typing import Any

from timm.models import split_model_name_tag

from timm_mix.train.settings.fields import AT_LEAST_1, BELOW_1, FINITE, POSITIVE, check_fields, setting

__all__ = ["Floats", "ModelSettings"]

Floats = tuple[float, ...]


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
    in_chans: int | None = setting(None, "channels; 1 reads images in grey; default: the model's", AT_LEAST_1)
    img_size: int | None = setting(None, "pixels of a side; default: the model's", AT_LEAST_1)
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
    grad_checkpointing: bool = setting(False, "compute activations twice and keep fewer: less memory, more time")
    channels_last: bool = setting(False, "memory order that convolutions on newer GPUs and CPUs are faster in")
    torchcompile: bool = setting(False, "torch.compile the training step: minutes at the start, faster after")

    def __post_init__(self) -> None:
        check_fields(self)

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
    def image_mode(self) -> str:
        """PIL's mode in which images are read."""
        return "L" if self.in_chans == 1 else "RGB"
