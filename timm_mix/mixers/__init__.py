"""Mixers for the seat of timm's Mixup: create_mixer(name, ...) is a callable (x, y) -> (x', soft y')."""

import inspect
from typing import Any

from timm_mix.mixers._base import CutMix, Mixer, Mixup, ResizeMix, Switch

__all__ = ["MIXERS", "CutMix", "Mixer", "Mixup", "ResizeMix", "Switch", "create_mixer"]

MIXERS: dict[str, type[Mixer]] = {"mixup": Mixup, "cutmix": CutMix, "resizemix": ResizeMix, "switch": Switch}


def create_mixer(
    name: str,
    *,
    num_classes: int,
    seed: int = 0,
    label_smoothing: float = 0.0,
    prob: float = 1.0,
    **settings: Any,
) -> Mixer:
    """Create a mixer by name.

    Args:
        name: `mixup`, `cutmix`, `resizemix`, or `switch`, one of several per batch.
        num_classes: K of the soft labels.
        seed: of the mixer's generator; give every process its own.
        prob: probability that a batch (pair, sample) is mixed.
        settings: those of the mixer: mode and alpha, scope of resizemix, mixers and weights of switch.
    Raises:
        ValueError: an unknown name or setting, or a value outside its range.
    """
    if name not in MIXERS:
        raise ValueError(f"mixer must be one of {', '.join(MIXERS)}, got {name!r}")
    known = [n for n, p in inspect.signature(MIXERS[name]).parameters.items() if p.kind is p.KEYWORD_ONLY]
    for setting in settings:
        if setting not in known:
            raise ValueError(f"mixer {name} has no setting {setting!r}; it has {', '.join(sorted(known))}")
    return MIXERS[name](num_classes=num_classes, seed=seed, label_smoothing=label_smoothing, prob=prob, **settings)
