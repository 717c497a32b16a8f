"""Settings of an evaluation, from the command line; the names are those of train.py and timm's validate.py."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm_mix.train.errors import UsageError
from timm_mix.train.evaluate.corruptions import family_names
from timm_mix.train.settings.text import Parser, parse_pairs

__all__ = ["ValidateConfig", "parse_validate"]

# of these None means: as the checkpoint's run had it, else as the model says
_LIKE_TRAINING = ("in_chans", "img_size", "mean", "std", "interpolation", "crop_pct", "aug")


@dataclass(frozen=True)
class ValidateConfig:
    """One evaluation. Of the settings of the images None leaves them to the checkpoint's run, else to the model."""

    model: str
    output: str
    checkpoint: str | None
    initial_checkpoint: str | None
    pretrained: bool
    use_ema: bool
    model_kwargs: dict[str, Any]
    num_classes: int | None
    data_dir: str | None
    dataset: str
    split: str
    val_fraction: float | None
    val_seed: int | None
    class_map: str | None
    dataset_download: bool
    batch_size: int
    workers: int
    in_chans: int | None
    img_size: int | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    interpolation: str | None
    crop_pct: float | None
    aug: str | None
    fold: bool
    robustness: bool
    epsilons: tuple[float, ...]
    corruptions: tuple[str, ...]
    corruptions_dir: str | None
    save_predictions: bool
    seed: int
    amp: bool
    amp_dtype: str
    channels_last: bool
    cpu: bool

    def __post_init__(self) -> None:
        least_of = {"batch_size": 1, "workers": 0, "seed": 0, "val_seed": 0, "num_classes": 1, "img_size": 1}
        for name, least in least_of.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise UsageError(f"{name} must be >= {least}, got {value}")
        if not all(0 <= epsilon <= 255 for epsilon in self.epsilons):
            raise UsageError(f"eps must lie in [0, 255], got {' '.join(f'{e:g}' for e in self.epsilons)}")
        if self.val_seed is not None and self.val_fraction is None:
            raise UsageError(f"val_seed goes with val_fraction, got {self.val_seed} alone; give --val-fraction, too")
        if self.corruptions and self.corruptions_dir:
            raise UsageError("corruptions are made by --corruptions or read by --corruptions-dir, got both; drop one")
        if self.checkpoint and self.initial_checkpoint:
            raise UsageError("weights come from --checkpoint or --initial-checkpoint, got both; drop one")

    @property
    def like_training(self) -> dict[str, Any]:
        """What was given of the settings that a run of train.py has, too."""
        return {name: getattr(self, name) for name in _LIKE_TRAINING if getattr(self, name) is not None}


def parse_validate(argv: Sequence[str] | None = None) -> ValidateConfig:
    """Read the command line.

    Raises:
        UsageError: anything that is wrong with the flags.
    """
    values = vars(_parser().parse_args(argv))
    values["model_kwargs"] = parse_pairs("model_kwargs", values["model_kwargs"])
    values["corruptions"] = tuple(family_names(values["corruptions"]))
    for name in ("mean", "std", "epsilons"):
        values[name] = tuple(values[name]) if values[name] is not None else None
    if Path(values["model"]).is_file() and not values["checkpoint"]:  # a checkpoint knows its model
        values["checkpoint"] = values["model"]
    return ValidateConfig(**values)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description="Evaluate members, ensemble and folded network of an image classifier.")
    _add_model(parser.add_argument_group("model"))
    _add_data(parser.add_argument_group("images"))
    wanted = parser.add_argument_group("what is measured")
    wanted.add_argument("--output", required=True, metavar="DIR", help="folder for results.json and the pictures")
    wanted.add_argument("--fold", action="store_true", help="also the folded network of a MixMo model")
    wanted.add_argument("--robustness", action="store_true", help="accuracy under FGSM")
    eps = wanted.add_argument("--eps", dest="epsilons", type=float, nargs="+", default=[1, 2, 4, 8, 16])
    eps.help = "sizes of the FGSM step in 1/255 (default: 1 2 4 8 16)"
    wanted.add_argument("--corruptions", nargs="+", default=[], metavar="NAME", help="families, or all")
    wanted.add_argument("--corruptions-dir", metavar="DIR", help="corrupted images: labels.npy and <family>.npy")
    wanted.add_argument("--save-predictions", action="store_true", help="logits of all images: predictions.safetensors")
    wanted.add_argument("--seed", type=int, default=0, help="of the corruptions and of the halves for temperatures")
    return parser


def _add_model(group: Any) -> None:
    group.add_argument(
        "--model",
        required=True,
        help="a saved model's folder (local-dir:FOLDER or FOLDER), hf-hub:ID, a checkpoint of train.py, or a timm name",
    )
    group.add_argument("--checkpoint", metavar="FILE", help="checkpoint of train.py (checkpoints/*.pt) for a timm name")
    group.add_argument("--initial-checkpoint", metavar="FILE", help="weights that timm loads, for a timm name")
    group.add_argument("--pretrained", action="store_true", help="published weights, for a timm name")
    group.add_argument(
        "--use-ema",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="averaged weights of a checkpoint that has them",
    )
    group.add_argument("--model-kwargs", nargs="+", default=[], metavar="KEY=VALUE")
    group.add_argument("--num-classes", type=int, help="default: the checkpoint's, the model's or the data's")
    group.add_argument("--channels-last", action="store_true")
    group.add_argument("--amp", action="store_true", help="mixed precision")
    group.add_argument("--amp-dtype", choices=("bfloat16", "float16"), default="bfloat16")
    group.add_argument("--cpu", action="store_true", help="stay on the CPU even where there is a GPU")


def _add_data(group: Any) -> None:
    group.add_argument("--dataset", default="", help="as in train.py: digits, '' (folder or tar), torch/..., hfds/...")
    group.add_argument("--data-dir", help="root of the data set")
    group.add_argument("--split", default="validation")
    group.add_argument(
        "--val-fraction",
        type=float,
        help="the images that finetune.py --val-fraction held back (default: as the run of --model did, where it has "
        "results.json and the same --data-dir)",
    )
    group.add_argument("--val-seed", type=int, help="--seed of the run that held them back (default: its own, else 42)")
    group.add_argument("--class-map")
    group.add_argument("--dataset-download", action="store_true")
    group.add_argument("--batch-size", type=int, default=64, help="per process")
    group.add_argument("--workers", type=int, default=2)
    group.add_argument("--in-chans", type=int)
    group.add_argument("--img-size", type=int)
    group.add_argument("--mean", type=float, nargs="+")
    group.add_argument("--std", type=float, nargs="+")
    group.add_argument("--interpolation")
    group.add_argument("--crop-pct", type=float)
    group.add_argument(
        "--aug", choices=("small", "imagenet", "none"), help="style of the transform, see train.py (default: imagenet)"
    )
