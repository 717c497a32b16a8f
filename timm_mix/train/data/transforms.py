"""From PIL images to normalised tensors: a recipe for small images, and timm's for ImageNet.

All chance is drawn from the global generators of `random`, numpy and torch, as torchvision and timm do;
`timm_mix.train.data.loaders` seeds them for every item.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm.data
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_interp_mode
from torchvision.transforms import Normalize, v2

from timm_mix.train.errors import UsageError

__all__ = ["Lighting", "ResizeIfNeeded", "create_transform", "small_image_transform"]

AUTO_AUGMENT = {"cifar10": v2.AutoAugmentPolicy.CIFAR10}
PAD_MODES = ("constant", "edge", "reflect", "symmetric")
STYLES = {
    "small": {
        "padding", "pad_mode", "hflip", "auto_augment", "re_prob", "re_scale", "re_ratio", "re_value", "interpolation",
    },
    "imagenet": {
        "scale", "ratio", "train_crop_mode", "hflip", "vflip", "color_jitter", "color_jitter_prob", "grayscale_prob",
        "gaussian_blur_prob", "auto_augment", "re_prob", "re_mode", "re_count", "re_scale", "re_ratio",
        "crop_pct", "crop_mode", "crop_border_pixels", "interpolation", "lighting",
    },
    "none": {"interpolation"},
}  # fmt: skip
PICTURES = (1, 3)  # channels of what PIL holds; images of others are tensors
OF_PICTURES = ("color_jitter", "auto_augment", "grayscale_prob")


def small_image_transform(
    img_size: int | tuple[int, int],
    mean: Sequence[float],
    std: Sequence[float],
    *,
    training: bool,
    padding: int = 4,
    pad_mode: str = "constant",
    hflip: float = 0.5,
    auto_augment: str | None = None,
    re_prob: float = 0.0,
    re_scale: tuple[float, float] = (0.0625, 0.1),
    re_ratio: tuple[float, float] = (0.99, 1.0),
    re_value: float | str = 0.0,
    interpolation: str = "bicubic",
) -> v2.Compose:
    """The usual recipe for images of 32 to 64 pixels: padded random crop, flip, AutoAugment, random erasing.

    Images are PIL's, or tensors [C, H, W] in [0, 1].
    Training: resize if the size differs - random crop from the padded image - flip - AutoAugment - to [0, 1] -
    normalise - erase. Evaluation: resize if the size differs - to [0, 1] - normalise.

    Args:
        img_size: H and W, or one number for both.
        mean: of each channel, for values in [0, 1].
        std: of each channel.
        training: False gives the evaluation transform; the settings of the augmentation are then not read.
        padding: pixels added on each side before the crop.
        pad_mode: "constant" (zeros), "edge", "reflect" or "symmetric".
        hflip: probability of the horizontal flip.
        auto_augment: "cifar10" for the CIFAR-10 policy of Cubuk et al., arXiv:1805.09501; None for none.
        re_prob: probability of random erasing (Zhong et al., arXiv:1708.04896), done after normalising.
        re_scale: area of the erased box as a share of the image; the default and that of re_ratio are the settings of
            Divide and Co-training (arXiv:2011.14660) for CIFAR-100, whose re_prob is 0.5.
        re_ratio: aspect ratio of the erased box.
        re_value: what is written into it, "random" for noise.
        interpolation: of the resize, by timm's names.
    Shapes: with C = len(mean)
        returns a callable: PIL image -> [C, H, W] float32.
    Raises:
        UsageError: unknown auto_augment, pad_mode or interpolation; auto_augment for other than 1 or 3 channels.

    >>> transform = small_image_transform(16, mean=(0.5,) * 3, std=(0.25,) * 3, training=False)
    >>> transform(Image.new("RGB", (20, 20), "white")).unique()
    tensor([2.])
    """
    size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)
    steps: list[Callable] = [ResizeIfNeeded(size, interpolation)]
    finish: list[Callable] = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]
    if training:
        _check_choice("pad_mode", pad_mode, PAD_MODES)
        steps.append(v2.RandomCrop(size, padding=padding or None, padding_mode=pad_mode))
        if hflip > 0:
            steps.append(v2.RandomHorizontalFlip(hflip))
        if auto_augment is not None:
            _check_choice("auto_augment", auto_augment, AUTO_AUGMENT)
            _check_pictures(len(mean), auto_augment=auto_augment)
            steps.append(v2.AutoAugment(AUTO_AUGMENT[auto_augment]))
        if re_prob > 0:
            finish.append(v2.RandomErasing(re_prob, re_scale, re_ratio, re_value))
    return v2.Compose([*steps, *finish, v2.ToPureTensor()])


def create_transform(
    style: str, data_config: Mapping[str, Any], *, training: bool, **options: Any
) -> Callable[[Image.Image], torch.Tensor]:
    """Make the transform of a style.

    Args:
        style: "small" (`small_image_transform`), "imagenet" (`timm.data.create_transform`: random resized crop, colour
            jitter for 1 or 3 channels, timm's AutoAugment and RandAugment strings, ...) or "none" (in training, too,
            the evaluation transform of "small": resize if the size differs, normalise).
        data_config: what `timm.data.resolve_data_config` gives: input_size [C, H, W], mean, std, interpolation,
            crop_pct, crop_mode (the last two are read by "imagenet" only).
        training: False gives the evaluation transform of the style.
        **options: the settings of the style under the names of `small_image_transform` or `timm.data.create_transform`;
            `aa` is short for `auto_augment`, and "imagenet" takes `re_scale`, `re_ratio` and `lighting` (see Lighting),
            too. None stands for the default. They take precedence over `data_config`.
    Raises:
        UsageError: unknown style, an option other than None that the style does not have, or a value that it rejects.

    >>> data_config = timm.data.resolve_data_config({"input_size": (3, 16, 16)})
    >>> transform = create_transform("imagenet", data_config, training=True, lighting=0.1)
    >>> transform(Image.new("RGB", (20, 24))).shape
    torch.Size([3, 16, 16])
    """
    _check_choice("transform style", style, STYLES)
    given = _given_options(style, options)
    base = {"interpolation": data_config["interpolation"], **given}
    mean, std, size = data_config["mean"], data_config["std"], tuple(data_config["input_size"])
    crop = {name: data_config.get(name) for name in ("crop_pct", "crop_mode")}
    try:
        if style != "imagenet":
            return small_image_transform(size[-2:], mean, std, training=training and style == "small", **base)
        erase = {name: tuple(base[name]) for name in ("re_scale", "re_ratio") if name in base}
        _check_pictures(size[0], **{name: given.get(name) for name in OF_PICTURES})
        if size[0] not in PICTURES:
            base["color_jitter"] = None
        lighting = Lighting(base.pop("lighting"), size[0]) if "lighting" in base else None
        timms = {**crop, **{name: value for name, value in base.items() if name not in erase}}
        made = timm.data.create_transform(input_size=size, is_training=training, mean=mean, std=std, **timms)
        _set_erased_boxes(made.transforms, **erase)
        if lighting is not None and training:
            place = next(i for i, step in enumerate(made.transforms) if isinstance(step, Normalize))
            made.transforms.insert(place, lighting)
        return made
    except UsageError:
        raise
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        settings = ", ".join(f"{name}={value!r}" for name, value in base.items())
        reason = " ".join(str(error).split()) or "an assertion failed"
        raise UsageError(
            f"the transform style {style!r} does not take {settings}: {reason}; correct that setting"
        ) from error


def _set_erased_boxes(
    steps: Sequence[Callable], re_scale: tuple[float, ...] | None = None, re_ratio: tuple[float, ...] | None = None
) -> None:
    """Give timm's random erasing, where it is among the steps, the areas and aspect ratios that its factory fixes."""
    for erasing in (step for step in steps if isinstance(step, RandomErasing)):
        if re_scale is not None:
            erasing.min_area, erasing.max_area = re_scale
        if re_ratio is not None:
            erasing.log_aspect_ratio = (math.log(re_ratio[0]), math.log(re_ratio[1]))


class Lighting:
    """AlexNet's colour noise (Krizhevsky et al., NeurIPS 2012, sec. 4.1): one colour is added to the whole image.

    Along each principal axis of ImageNet's colours, std times N(0, 1) times the axis' scale.

    Args:
        std: of the noise (published with ResNet-50: .1).
        channels: of the images.
    Shapes: image [3, H, W] in [0, 1] -> the same, not clipped.
    Raises:
        UsageError: std < 0 or not finite, images that are not in colour.

    >>> image = Lighting(0.1)(torch.full((3, 8, 8), 0.5))
    >>> image.flatten(1).unique(dim=1).shape  # all pixels have the same new colour
    torch.Size([3, 1])
    """

    # of ImageNet's training pixels in [0, 1]; the constants that the ResNet training codes share
    SCALES = (0.2175, 0.0188, 0.0045)
    AXES = ((-0.5675, 0.7192, 0.4009), (-0.5808, -0.0045, -0.8140), (-0.5836, -0.6948, 0.4203))  # in columns

    def __init__(self, std: float, channels: int = 3):
        if not (std >= 0 and math.isfinite(std)):
            raise UsageError(f"lighting must be >= 0 and finite, got {std}")
        if channels != 3:
            raise UsageError(f"lighting is for images in colour, got {channels} channels: drop it")
        self.std = std
        self.axes = torch.tensor(self.AXES) * torch.tensor(self.SCALES)

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        return image + (self.axes @ (torch.randn(3) * self.std))[:, None, None]

    def __repr__(self) -> str:
        return f"Lighting(std={self.std})"


class ResizeIfNeeded:
    """Resize a PIL image, or [C, H, W], to exactly (H, W), aspect not kept; one of that size passes untouched.

    >>> ResizeIfNeeded((5, 7), "bilinear")(Image.new("RGB", (20, 20))).size  # PIL: width, height
    (7, 5)
    """

    def __init__(self, size: tuple[int, ...], interpolation: str):
        try:
            mode = str_to_interp_mode(interpolation)
        except KeyError as error:
            raise UsageError(
                f"interpolation must be one of nearest, bilinear, bicubic, got {interpolation!r}"
            ) from error
        self.size = size
        self.resize = v2.Resize(size, interpolation=mode)

    def __call__(self, image: Any) -> Any:
        size = tuple(image.shape[-2:]) if isinstance(image, torch.Tensor) else (image.height, image.width)
        return image if size == self.size else self.resize(image)

    def __repr__(self) -> str:
        return f"ResizeIfNeeded{self.size}"


def _given_options(style: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that are not None, `aa` under its long name; raises for those that the style does not have."""
    given = {name: value for name, value in options.items() if value is not None}
    if "aa" in given:
        if "auto_augment" in given:
            raise UsageError("aa and auto_augment are one setting, got both: drop one")
        given["auto_augment"] = given.pop("aa")
    for name, value in given.items():
        if name not in STYLES[style]:
            owners = [other for other, names in STYLES.items() if name in names]
            where = f"it belongs to {' and '.join(owners)}" if owners else "no style has it"
            raise UsageError(f"the transform style {style!r} has no option {name} (got {value!r}): drop it, {where}")
    return given


def _check_pictures(channels: int, **given: Any) -> None:
    """What changes colours, or goes through PIL, is for images in grey or colour; 0 and None stand for nothing."""
    for name, value in given.items():
        if value and channels not in PICTURES:
            raise UsageError(f"{name} is for images of 1 or 3 channels, the network takes {channels}: drop it")


def _check_choice(name: str, given: str, choices: Any) -> None:
    if given not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {given!r}: correct it")
