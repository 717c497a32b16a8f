"""Settings of an evaluation, from the command line; most are those of training, where their help and ranges stand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timm_mix.train.errors import UsageError
from timm_mix.train.evaluate.corruptions import family_names
from timm_mix.train.finetune.settings import FinetuneSettings
from timm_mix.train.settings.augment import STYLES, AugmentSettings
from timm_mix.train.settings.data import DataSettings
from timm_mix.train.settings.fields import AT_LEAST_0, Range, check_fields, like, setting
from timm_mix.train.settings.model import Floats, ModelSettings
from timm_mix.train.settings.nested import Nested
from timm_mix.train.settings.optimise import OptimiseSettings
from timm_mix.train.settings.run import RunSettings
from timm_mix.train.settings.text import parse_flags

__all__ = ["Evaluated", "ImagesOf", "Measured", "ValidateConfig", "parse_validate"]

# of these None means: as the checkpoint's run had it, else as the model says
_LIKE_TRAINING = ("in_chans", "img_size", "input_size", "mean", "std", "interpolation", "crop_pct", "aug")
_PIXELS = Range("lie in [0, 255]", lambda value: 0 <= value <= 255)


@dataclass(frozen=True)
class Evaluated:
    """model

    >>> Evaluated(name="resnet18", pretrained=True, img_size=160).like_training
    {'img_size': 160}
    """

    name: str = setting(
        "",
        "a saved model's folder (local-dir:FOLDER or FOLDER), hf-hub:ID, a checkpoint of train, or a timm name",
        name="model",
    )
    checkpoint: str | None = setting(None, "checkpoint of train (checkpoints/*.pt) for a timm name")
    initial_checkpoint: str | None = setting(None, "weights that timm loads, for a timm name")
    pretrained: bool = setting(False, "published weights, for a timm name")
    use_ema: bool = setting(True, "averaged weights of a checkpoint that has them")
    model_kwargs: dict[str, Any] = like(ModelSettings, "model_kwargs")
    num_classes: int | None = like(
        ModelSettings, "num_classes", why="default: the checkpoint's, the model's or the data's"
    )
    in_chans: int | None = like(ModelSettings, "in_chans")
    img_size: int | None = like(ModelSettings, "img_size")
    input_size: tuple[int, ...] | None = like(ModelSettings, "input_size")
    mean: Floats | None = like(ModelSettings, "mean")
    std: Floats | None = like(ModelSettings, "std")
    interpolation: str | None = like(ModelSettings, "interpolation")
    crop_pct: float | None = like(ModelSettings, "crop_pct")
    aug: str | None = like(
        AugmentSettings,
        "aug",
        default=None,
        why="style of the images' transform: small, imagenet or none; default: the run's, else imagenet",
        choices=(None, *STYLES),
    )
    channels_last: bool = like(ModelSettings, "channels_last")
    amp: bool = like(OptimiseSettings, "amp")
    amp_dtype: str = like(OptimiseSettings, "amp_dtype")
    cpu: bool = like(RunSettings, "cpu")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.name:
            raise UsageError("--model is missing: a saved model's folder, hf-hub:ID, a checkpoint, or a timm name")
        if self.checkpoint and self.initial_checkpoint:
            raise UsageError("weights come from --checkpoint or --initial-checkpoint, got both; drop one")

    @property
    def like_training(self) -> dict[str, Any]:
        """What was given of the settings that a run of training has, too."""
        return {name: getattr(self, name) for name in _LIKE_TRAINING if getattr(self, name) is not None}


@dataclass(frozen=True)
class ImagesOf:
    """images

    >>> ImagesOf(data_dir="pets", val_seed=3)
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: val_seed goes with val_fraction, got 3 alone; give --val-fraction, too
    """

    dataset: str = like(DataSettings, "dataset")
    data_dir: str | None = like(DataSettings, "data_dir")
    split: str = setting("validation", "split that is measured")
    val_fraction: float | None = like(
        FinetuneSettings,
        "val_fraction",
        why="the images that finetune --val-fraction held back (default: as the run of --model did, where it has "
        "results.json and the same --data-dir)",
    )
    val_seed: int | None = setting(
        None, "--seed of the run that held them back (default: its own, else 42)", AT_LEAST_0
    )
    class_map: str | None = like(DataSettings, "class_map")
    labels_csv: str | None = like(DataSettings, "labels_csv")
    dataset_download: bool = like(DataSettings, "dataset_download")
    batch_size: int = like(DataSettings, "batch_size")
    workers: int = like(DataSettings, "workers")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.val_seed is not None and self.val_fraction is None:
            raise UsageError(f"val_seed goes with val_fraction, got {self.val_seed} alone; give --val-fraction, too")


@dataclass(frozen=True)
class Measured:
    """what is measured

    >>> Measured(output="results", epsilons=(300.0,))
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: eps must lie in [0, 255], got 300.0
    """

    output: str = setting("", "folder for results.json and the pictures")
    fold: bool = setting(False, "also the folded network of a MixMo model")
    robustness: bool = setting(False, "accuracy under FGSM")
    epsilons: Floats = setting((1.0, 2.0, 4.0, 8.0, 16.0), "sizes of the FGSM step in 1/255", _PIXELS, flag="--eps")
    corruptions: tuple[str, ...] = setting((), "families of common corruptions, or all")
    corruptions_dir: str | None = setting(None, "corrupted images: labels.npy and <family>.npy")
    save_predictions: bool = setting(False, "logits of all images: predictions.safetensors")
    seed: int = like(RunSettings, "seed", default=0, why="of the corruptions and of the halves for temperatures")

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.output:
            raise UsageError("--output is missing: a folder for results.json and the pictures")
        if self.corruptions and self.corruptions_dir:
            raise UsageError("corruptions are made by --corruptions or read by --corruptions-dir, got both; drop one")


@dataclass(frozen=True)
class ValidateConfig(Nested):
    """One evaluation. Of the settings of the images None leaves them to the checkpoint's run, else to the model.

    >>> config = ValidateConfig.of(model="output/resnet18/model", dataset="digits", output="results")
    >>> config.images.split, config.measured.fold
    ('validation', False)
    """

    model: Evaluated = field(default_factory=Evaluated)
    images: ImagesOf = field(default_factory=ImagesOf)
    measured: Measured = field(default_factory=Measured)


def parse_validate(argv: Sequence[str] | None = None) -> ValidateConfig:
    """Read the command line.

    Raises:
        UsageError: anything that is wrong with the flags.

    >>> config = parse_validate(["--model", "my_model", "--output", "results", "--corruptions", "jpeg", "contrast"])
    >>> config.measured.corruptions
    ('contrast', 'jpeg')
    """
    about = "Evaluate members, ensemble and folded network of an image classifier."
    _, values = parse_flags(argv, ValidateConfig, about, recipe=False)
    values["corruptions"] = tuple(family_names(list(values.get("corruptions", ()))))
    name = values.get("model", "")
    if Path(name).is_file() and not values.get("checkpoint"):  # a checkpoint knows its model
        values["checkpoint"] = name
    return ValidateConfig.of(**values)
