"""Settings of a training run: a recipe (yaml), then flags; both checked against one declaration.

The names are those of timm's train script where it has them, with `_` in a recipe and `-` in a flag.
"""

import math
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, overload

from timm_mix.mixers import MIXERS
from timm_mix.train.errors import UsageError
from timm_mix.train.settings.ranges import check_ranges
from timm_mix.train.settings.recipes import find_recipe
from timm_mix.train.settings.text import check_settings, checked, parse_pairs, parser_of, read_yaml

__all__ = ["Config", "load_recipe", "parse_config"]

Floats = tuple[float, ...]
_ABOUT = "Train an image classifier: mixed inputs, divided networks, or plain."
TASKS = ("classification", "mixmo", "cotraining", "recursivemix", "automix", "manifoldmixup")
TRACKERS = ("tensorboard", "wandb", "csv")


@dataclass(frozen=True)
class Config:
    """One run. `None` leaves a setting to timm or to the model."""

    # data
    dataset: str = field(
        default="", metadata={"help": "digits, or timm's: '' (folder or tar), torch/..., hfds/..., wds/..."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "root of the data set"})
    train_split: str = "train"
    val_split: str = "validation"
    dataset_download: bool = False
    class_map: str | None = None
    workers: int = 2
    pin_mem: bool = False
    device_loader: bool = field(
        default=False,
        metadata={"help": "keep images of 32-64 px in memory, augment on the device (aug small, none); workers decode"},
    )
    # model
    model: str = "mixmo_wrn16_2_m2"
    model_kwargs: dict[str, Any] = field(default_factory=dict)
    pretrained: bool = False
    initial_checkpoint: str | None = None
    num_classes: int | None = field(default=None, metadata={"help": "default: what the data set says"})
    in_chans: int | None = None
    img_size: int | None = None
    drop: float | None = field(
        default=None, metadata={"help": "dropout; each part of a splitnet gets it as it is (default: the model's own)"}
    )
    drop_path: float | None = field(default=None, metadata={"help": "stochastic depth; likewise"})
    grad_checkpointing: bool = False
    channels_last: bool = False
    torchcompile: bool = False
    # task
    task: str = field(
        default="classification",
        metadata={"help": "classification, mixmo, cotraining, recursivemix, automix or manifoldmixup"},
    )
    mixer: str | None = field(
        default=None, metadata={"help": f"mixes the batches of task classification: {', '.join(MIXERS)}"}
    )
    mix: dict[str, Any] = field(default_factory=dict, metadata={"help": "settings of the task or mixer, key=value"})
    smoothing: float = 0.0
    # augmentation
    aug: str = field(default="imagenet", metadata={"help": "small (pad, crop, flip), imagenet (timm's) or none"})
    padding: int | None = None
    pad_mode: str | None = field(
        default=None, metadata={"help": "with aug=small: constant (zeros, the default), edge, reflect or symmetric"}
    )
    mean: Floats | None = None
    std: Floats | None = None
    interpolation: str | None = None
    crop_pct: float | None = None
    scale: Floats | None = None
    ratio: Floats | None = None
    hflip: float | None = None
    vflip: float | None = None
    color_jitter: float | None = None
    lighting: float | None = field(
        default=None, metadata={"help": "std of AlexNet's colour noise along the data's main axes, with aug=imagenet"}
    )
    aa: str | None = field(default=None, metadata={"help": "AutoAugment: timm's string, or cifar10 with aug=small"})
    reprob: float | None = None
    remode: str | None = None
    recount: int | None = None
    rescale: Floats | None = field(default=None, metadata={"help": "area range of random erasing"})
    reratio: Floats | None = field(default=None, metadata={"help": "aspect range of random erasing"})
    views: int | None = field(default=None, metadata={"help": "views per image; default: one per part for cotraining"})
    mixup: float = field(default=0.0, metadata={"help": "alpha of timm's mixup, 0 for none; task classification only"})
    cutmix: float = field(
        default=0.0, metadata={"help": "alpha of timm's CutMix, 0 for none; task classification only"}
    )
    mixup_prob: float = field(default=1.0, metadata={"help": "probability of mixup or CutMix per batch, pair or image"})
    mixup_switch_prob: float = field(default=0.5, metadata={"help": "share of CutMix when both are on"})
    mixup_mode: str = field(default="batch", metadata={"help": "one draw per batch, pair or elem (image)"})
    # batches
    batch_size: int = field(default=64, metadata={"help": "per process"})
    validation_batch_size: int | None = None
    batch_repeats: int = field(default=1, metadata={"help": "copies of an image per batch, each augmented on its own"})
    grad_accum_steps: int = 1
    # optimisation
    epochs: int = 100
    opt: str = "sgd"
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = field(default=5e-4, metadata={"help": "timm's: biases and norm layers are spared"})
    divide_weight_decay: bool = field(
        default=False, metadata={"help": "multiply weight_decay by exp(1 / S - 1), S the number of parts (splitnet)"}
    )
    no_decay: tuple[str, ...] | None = field(
        default=None,
        metadata={"help": "spare only parameters whose name holds one of these words; default: timm's rule"},
    )
    l2_penalty: float = field(
        default=0.0,
        metadata={"help": "adds l2 * sum of squares of ALL parameters to the loss (gradient 2 * l2 * W), not reported"},
    )
    opt_eps: float | None = None
    opt_betas: Floats | None = None
    layer_decay: float | None = None
    block_lr: float | None = field(default=None, metadata={"help": "automix: of the Mix Block; default: lr"})
    block_min_lr: float | None = field(default=None, metadata={"help": "automix: of the Mix Block; default: min_lr"})
    block_momentum: float | None = field(
        default=None, metadata={"help": "automix: of the Mix Block; default: momentum"}
    )
    clip_grad: float | None = None
    clip_mode: str = "norm"
    sched: str = "cosine"
    sched_on_updates: bool = False
    warmup_epochs: int = 0
    warmup_lr: float = 1e-5
    sched_after_warmup: bool = field(
        default=False,
        metadata={"help": "start the schedule where the warm-up ends; default: at epoch 0, under the warm-up (timm's)"},
    )
    min_lr: float = 0.0
    decay_epochs: float = 30
    decay_milestones: tuple[int, ...] = field(
        default=(90, 180, 270),
        metadata={"help": "multistep; with --sched-on-updates m acts after m epochs, else after m - 1 (timm's way)"},
    )
    decay_rate: float = 0.1
    cooldown_epochs: int = 0
    # precision and averaging
    amp: bool = False
    amp_dtype: str = field(default="bfloat16", metadata={"help": "bfloat16 or float16"})
    model_ema: bool = False
    model_ema_decay: float = 0.9998
    model_ema_warmup: bool = False
    # run
    member_parallel: bool = field(
        default=False,
        metadata={"help": "cotraining with one part of the splitnet per process; batch_size is then per S processes"},
    )
    cpu: bool = field(default=False, metadata={"help": "stay on the CPU even where there is a GPU"})
    seed: int = 42
    output: str = "output"
    experiment: str | None = field(default=None, metadata={"help": "folder under output; default: the model's name"})
    resume: str | None = field(default=None, metadata={"help": "a checkpoint, or auto: the run's own newest one"})
    checkpoint_interval: int | None = field(
        default=None, metadata={"help": "updates between checkpoints; default: at the end of every epoch only"}
    )
    checkpoint_hist: int = field(default=2, metadata={"help": "how many of the newest checkpoints are kept"})
    deterministic: bool = field(
        default=False, metadata={"help": "GPU: only operations that repeat to the bit (the CPU's do anyway); slower"}
    )
    tracker: str | None = field(default=None, metadata={"help": "tensorboard, wandb or csv: logs every epoch there"})
    log_interval: int = field(default=50, metadata={"help": "batches between looks at the loss"})
    export: str = field(default="last", metadata={"help": "weights of the saved model: last or best epoch"})

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.sched_after_warmup and not self.warmup_epochs < self.epochs:
            raise UsageError(
                f"sched_after_warmup needs epochs after the warm-up, got {self.epochs} epochs with {self.warmup_epochs}"
            )
        choices = {
            "task": TASKS,
            "aug": ("small", "imagenet", "none"),
            "amp_dtype": ("bfloat16", "float16"),
            "clip_mode": ("norm", "value", "agc"),
            "mixup_mode": ("batch", "pair", "elem"),
            "export": ("last", "best"),
            "tracker": (None, *TRACKERS),
            "mixer": (None, *MIXERS),
        }
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise UsageError(f"{name} must be one of {', '.join(filter(None, known))}, got {getattr(self, name)!r}")
        self._check_mixup()
        self._check_block()
        self._check_member_parallel()

    def _check_mixup(self) -> None:
        """timm's mixup pairs image i with image B - 1 - i, and belongs to a network with one input, as mixers do."""
        if self.mixer is not None and self.task != "classification":
            raise UsageError(f"mixer is for task classification, got task {self.task}; drop one of the two")
        if self.mixer is not None and self.mixes_samples:
            raise UsageError(f"mixer {self.mixer} takes the place of mixup and cutmix; drop one or the other")
        if not self.mixes_samples:
            return
        if self.task != "classification":
            raise UsageError(
                f"mixup and cutmix are for task classification, got task {self.task}; drop them, or set what the task "
                "itself mixes by --mix"
            )
        if self.batch_size % 2:
            raise UsageError(f"mixup and cutmix need an even batch_size, got {self.batch_size}; take one more or less")

    def _check_block(self) -> None:
        """The Mix Block's own learning rate, floor and momentum."""
        given = {name: getattr(self, name) for name in ("block_lr", "block_min_lr", "block_momentum")}
        given = {name: value for name, value in given.items() if value is not None}
        if given and self.task != "automix":
            raise UsageError(f"{' and '.join(given)} are for task automix, got task {self.task}; drop them")
        for name, value in given.items():
            low, high = (0, 1) if name == "block_momentum" else (0, math.inf)
            if not low <= value < high:
                raise UsageError(f"{name} must lie in [{low}, {high}), got {value}")
        if self.block_min_lr is not None and self.sched == "plateau":
            raise UsageError("block_min_lr needs a schedule that is known beforehand, got sched plateau; take cosine")

    def _check_member_parallel(self) -> None:
        if self.member_parallel and self.task != "cotraining":
            raise UsageError(f"member_parallel is for task cotraining, got task {self.task}; drop it")
        if self.member_parallel and self.amp and self.amp_dtype == "float16":
            raise UsageError(
                "member_parallel needs amp_dtype bfloat16, got float16, whose loss scale would differ between parts"
            )

    @property
    def mixes_samples(self) -> bool:
        return self.mixup > 0 or self.cutmix > 0

    @property
    def folder(self) -> Path:
        return Path(self.output) / (self.experiment or self.model.replace(":", "_").replace("/", "_"))


Settings = TypeVar("Settings", bound=Config)


def load_recipe(path: str | Path, kind: type[Config] = Config) -> dict[str, Any]:
    """Read a recipe and check every key and type against the declaration `kind`.

    Raises:
        UsageError: no such file, not a yaml mapping, an unknown key, or a value of the wrong type.
    """
    return check_settings(f"recipe {path}", read_yaml("recipe", find_recipe(path)), kind)


@overload
def parse_config(argv: Sequence[str] | None = None) -> Config: ...


@overload
def parse_config(argv: Sequence[str] | None, kind: type[Settings], about: str = _ABOUT) -> Settings: ...


def parse_config(argv: Sequence[str] | None = None, kind: type[Any] = Config, about: str = _ABOUT) -> Any:
    """Settings from the command line: `--config recipe.yaml`, overridden by flags.

    `kind` declares the settings, `about` opens the help.

    Raises:
        UsageError: anything that is wrong with recipe or flags.
    """
    types_of = typing.get_type_hints(kind)
    values = vars(parser_of(kind, about).parse_args(argv))
    recipe = values.pop("config", None)
    settings = load_recipe(recipe, kind) if recipe else {}
    for key, value in values.items():
        if typing.get_origin(types_of[key]) is dict:
            value = {**settings.get(key, {}), **parse_pairs(key, value)}
        settings[key] = checked(f"--{key.replace('_', '-')}", value, types_of[key])
    return kind(**settings)
