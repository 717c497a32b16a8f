"""Mixers for the seat of timm's Mixup: create_mixer(name, ...) is a callable (x, y) -> (x', soft y')."""

import inspect
from typing import Any

from timm_mix.mixers._base import MIXERS, CutMix, Mixer, Mixup, ResizeMix, Switch

__all__ = [
    "MIXERS",
    "CutMix",
    "Mixer",
    "Mixup",
    "ResizeMix",
    "Switch",
    "create_mixer",
    "mixer_settings",
    "register_mixer",
]

SHARED = {"num_classes", "seed", "label_smoothing", "prob"}  # keywords of every mixer

MIXERS.register("mixup", Mixup)
MIXERS.register("cutmix", CutMix)
MIXERS.register("resizemix", ResizeMix)
MIXERS.register("switch", Switch)


def register_mixer(name: str, mixer: type[Any] | None = None) -> Any:
    """Let a mixer of your own be created, trained with and chosen by a `switch` under `name`.

    As a function, register_mixer("mine", Mine), or as a decorator of the class, @register_mixer("mine").

    Args:
        mixer: a class that takes the keywords num_classes, seed, label_smoothing, prob and settings with defaults,
            whose objects are callable, (x [B, C, H, W], y [B] or [B, K]) -> (x', y' [B, K]), and have `mixup_enabled`
            and `rng`, the np.random.Generator of all their draws. A subclass of Mixer needs a plan() only.
    Raises:
        ValueError: a name that is taken, or a class that lacks one of these.

    >>> import torch
    >>> from timm_mix.functional.plan import plan_mixup
    >>> @register_mixer("halves")
    ... class Halves(Mixer):
    ...     def plan(self, batch, size):
    ...         return plan_mixup(batch, rng=self.rng, alpha=1e6)  # lam is 1/2, very nearly
    >>> _, y = create_mixer("halves", num_classes=2)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    >>> y.round(decimals=1)
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    return MIXERS.register(name, mixer)


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
        name: one of MIXERS: `mixup`, `cutmix`, `resizemix`, `switch` (one of several per batch), or your own.
        num_classes: K of the soft labels.
        seed: of the mixer's generator; give every process its own.
        prob: probability that a batch (pair, sample) is mixed.
        settings: those of the mixer: mode and alpha, scope of resizemix, mixers and weights of switch.
    Raises:
        ValueError: an unknown name or setting, or a value outside its range.

    >>> import torch
    >>> mixer = create_mixer("cutmix", num_classes=5, alpha=1.0)
    >>> x, y = mixer(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))
    >>> x.shape, y.shape, y.sum(1)
    (torch.Size([4, 3, 32, 32]), torch.Size([4, 5]), tensor([1., 1., 1., 1.]))
    """
    mixer, known = MIXERS.find(name), mixer_settings(name)
    for setting in settings:
        if setting not in known:
            raise ValueError(f"mixer {name} has no setting {setting!r}; it has {', '.join(sorted(known))}")
    return mixer(num_classes=num_classes, seed=seed, label_smoothing=label_smoothing, prob=prob, **settings)


def mixer_settings(name: str) -> set[str]:
    """The keywords of a mixer that are its own.

    Raises:
        ValueError: an unknown name.

    >>> sorted(mixer_settings("cutmix")), sorted(mixer_settings("switch"))
    (['alpha', 'mode'], ['mixers', 'weights'])
    """
    parameters = inspect.signature(MIXERS.find(name)).parameters.values()
    return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY} - SHARED
