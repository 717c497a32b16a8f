"""Settings of fine-tuning: those of training with other defaults, and what is done to weights that are good already."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from timm_mix.train.errors import UsageError
from timm_mix.train.settings.config import Config
from timm_mix.train.settings.fields import AT_LEAST_1, check_fields, setting

__all__ = ["SUITED", "FinetuneConfig", "FinetuneSettings"]

# What the tasks start with where the weights are good already, found by the suites finetune_search*; --mix overrides
SUITED: Mapping[str, Mapping[str, Any]] = {
    "mixmo": {"repetition": 0.85},
    "automix": {
        **{"momentum": 0.9, "momentum_end": 0.999},  # published are .999 to .999999: a short run would never catch up
        **{"block_every": 4, "one_hot_prob": 0.0, "main_head": "mix"},
    },
}


@dataclass(frozen=True)
class FinetuneSettings:
    """fine-tuning

    >>> FinetuneSettings(freeze="stem")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: freeze takes a number of stages >= 1 or backbone, got 'stem'
    """

    val_fraction: float | None = setting(
        None, "share of each class to hold back, where --data-dir has no validation folder"
    )
    check_images: bool = setting(True, "read every image once before training (default: True)")
    keep_head: bool = setting(False, "go on with the heads, on the very classes they know")
    freeze: str | None = setting(None, "N: the first N stages, stem included; or backbone: everything but the heads")
    recalibrate: int | None = setting(
        None, "training images on which batch norms are measured before training; for selected parts", AT_LEAST_1
    )
    teacher: str | None = setting(
        None, "for task cotraining: a fine-tuned model of the same classes, such as the undivided one, to learn from"
    )
    linear_probe: bool = setting(False, "train the heads alone, the model in evaluation mode; --lr 0.01 is usual")

    def __post_init__(self) -> None:
        check_fields(self)
        if self.freeze is not None and self.freeze != "backbone" and not (self.freeze.isdecimal() and int(self.freeze)):
            raise UsageError(f"freeze takes a number of stages >= 1 or backbone, got {self.freeze!r}")
        if self.freeze is not None and self.linear_probe:
            raise UsageError(f"linear_probe freezes the whole backbone, got freeze={self.freeze} as well: drop one")


@dataclass(frozen=True)
class FinetuneConfig(Config):
    """A training run with other defaults and a few settings more.

    A subclass, so that every setting of training is one here, and results and checkpoints hold all of them.

    >>> config = FinetuneConfig.of(model="resnet18", data_dir="pets", linear_probe=True)
    >>> config.optimise.opt, config.model.pretrained, config.finetune.linear_probe
    ('adamw', True, True)
    """

    finetune: FinetuneSettings = field(default_factory=FinetuneSettings)

    defaults: ClassVar[Mapping[str, Any]] = {
        **{"model": "", "pretrained": True, "batch_size": 32, "smoothing": 0.1},
        **{"epochs": 10, "opt": "adamw", "lr": 5e-4, "weight_decay": 0.05},
        **{"sched_on_updates": True, "warmup_epochs": 1, "warmup_lr": 1e-6, "model_ema_decay": 0.998},
    }
    helps: ClassVar[Mapping[str, str]] = {
        "model": "a model's name, local-dir:FOLDER (saved by save_pretrained) or hf-hub:ORG/NAME",
        "pretrained": "start from the model's weights where it has any (default: True)",
        "task": "classification: all members see the same image, the mean of their losses; or one of the methods",
        "layer_decay": "learning rate of a layer over that of the next one; 0.65 to 0.9 is usual",
        "model_ema_decay": "for runs of some thousand updates",
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        model, optimise = self.model, self.optimise
        if not model.name:
            raise UsageError("--model is missing: a model's name, local-dir:FOLDER or hf-hub:ORG/NAME")
        if self.finetune.linear_probe and (model.drop or model.drop_path):
            raise UsageError("linear_probe trains on the features of evaluation mode, got drop or drop_path")
        if optimise.layer_decay is not None and not optimise.layer_decay <= 1:
            raise UsageError(f"layer_decay must lie in (0, 1], got {optimise.layer_decay}")
        if optimise.layer_decay is not None and optimise.sched == "none":
            raise UsageError("layer_decay acts through the schedule, got sched=none: take --sched constant")
