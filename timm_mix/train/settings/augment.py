"""Settings of how training images are changed before they are learnt."""

from dataclasses import dataclass

from timm_mix.train.settings.fields import AT_LEAST_0, AT_LEAST_1, NOT_NEGATIVE, POSITIVE, SHARE, check_fields, setting
from timm_mix.train.settings.model import Floats

__all__ = ["STYLES", "AugmentSettings"]

STYLES = ("small", "imagenet", "none")


@dataclass(frozen=True)
class AugmentSettings:
    """augmentation

    >>> AugmentSettings(scale=(0.9, 0.5))
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: scale must be two numbers, the smaller first, got 0.9, 0.5
    """

    aug: str = setting("imagenet", "small (pad, crop, flip), imagenet (timm's) or none", choices=STYLES)
    padding: int | None = setting(None, "pixels around an image of aug small before it is cropped", AT_LEAST_0)
    pad_mode: str | None = setting(None, "with aug=small: constant (zeros, the default), edge, reflect or symmetric")
    scale: Floats | None = setting(None, "area range of aug imagenet's crops over the image", NOT_NEGATIVE.of_a_pair)
    ratio: Floats | None = setting(None, "aspect range of these crops", POSITIVE.of_a_pair)
    hflip: float | None = setting(None, "probability of a horizontal flip; 0 where left and right differ", SHARE)
    vflip: float | None = setting(None, "probability of a vertical flip, for images without an up", SHARE)
    color_jitter: float | None = setting(None, "strength of changes in brightness, contrast, saturation", NOT_NEGATIVE)
    lighting: float | None = setting(
        None, "std of AlexNet's colour noise along the data's main axes, with aug=imagenet", NOT_NEGATIVE
    )
    aa: str | None = setting(None, "AutoAugment: timm's string, or cifar10 with aug=small")
    reprob: float | None = setting(None, "probability of random erasing", SHARE)
    remode: str | None = setting(None, "what erased boxes hold: const (zeros), rand (a colour), pixel (noise)")
    recount: int | None = setting(None, "boxes that are erased at most", AT_LEAST_1)
    rescale: Floats | None = setting(None, "area range of random erasing", NOT_NEGATIVE.of_a_pair)
    reratio: Floats | None = setting(None, "aspect range of random erasing", POSITIVE.of_a_pair)
    views: int | None = setting(
        None, "views per image; default: 1, or one per member where the task wants that", AT_LEAST_1
    )

    def __post_init__(self) -> None:
        check_fields(self)
