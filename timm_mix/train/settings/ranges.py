"""What a number of a training run's settings may be."""

import math
from collections.abc import Callable
from typing import Any

from timm_mix.train.errors import UsageError

__all__ = ["check_ranges"]

_RANGES: tuple[tuple[str, Callable[[float], bool], tuple[str, ...]], ...] = (
    (
        "be >= 1",
        lambda value: value >= 1,
        (
            *("num_classes", "in_chans", "img_size", "views", "batch_size", "validation_batch_size", "batch_repeats"),
            *("grad_accum_steps", "epochs", "log_interval", "checkpoint_interval", "checkpoint_hist", "recount"),
        ),
    ),
    ("be >= 0", lambda value: value >= 0, ("padding", "warmup_epochs", "cooldown_epochs")),
    ("lie in [0, 2**63)", lambda value: 0 <= value < 2**63, ("seed",)),
    (
        "be >= 0 and finite",
        lambda value: value >= 0 and math.isfinite(value),
        (
            *("mixup", "cutmix", "l2_penalty", "lr", "warmup_lr", "min_lr", "weight_decay", "opt_eps", "color_jitter"),
            *("lighting", "scale", "rescale"),
        ),
    ),
    (
        "be > 0 and finite",
        lambda value: value > 0 and math.isfinite(value),
        ("std", "crop_pct", "ratio", "reratio", "clip_grad", "decay_epochs", "decay_rate", "layer_decay"),
    ),
    ("lie in [0, 1)", lambda value: 0 <= value < 1, ("drop", "drop_path", "momentum", "smoothing")),
    (
        "lie in [0, 1]",
        lambda value: 0 <= value <= 1,
        ("mixup_prob", "mixup_switch_prob", "hflip", "vflip", "reprob", "model_ema_decay"),
    ),
    ("be finite", math.isfinite, ("mean", "opt_betas")),
)
_PAIRS = ("scale", "ratio", "rescale", "reratio")


def check_ranges(settings: Any) -> None:
    """Look at the fields that have a range; one that is None is not looked at, of a tuple every entry is.

    Raises:
        UsageError: a number outside its range, or a pair that is none.
    """
    for wanted, holds, names in _RANGES:
        for name in names:
            value = getattr(settings, name)
            entries = value if isinstance(value, tuple) else (value,)
            if not all(entry is None or holds(entry) for entry in entries):
                raise UsageError(f"{name} must {wanted}, got {_listed(entries)}")
    for name in _PAIRS:
        value = getattr(settings, name)
        if value is not None and not (len(value) == 2 and value[0] <= value[1]):
            raise UsageError(f"{name} must be two numbers, the smaller first, got {_listed(value)}")


def _listed(values: tuple[float, ...]) -> str:
    return ", ".join(map(str, values))
