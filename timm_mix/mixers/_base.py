"""The mixers: settings and a generator around functional.plan; timm's seat, (x, y) -> (x', soft y')."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from timm_mix.functional.checks import check_count, check_images
from timm_mix.functional.plan import MixPlan, apply_mix, mix_targets, plan_cutmix, plan_mixup, plan_resizemix
from timm_mix.registry import Registry, check_takes

__all__ = ["MIXERS", "CutMix", "Mixer", "Mixup", "ResizeMix", "Switch"]


def _check(name: str, mixer: Any) -> None:
    """What create_mixer, a training loop and MixerTask ask of a mixer; one is made to see it."""
    shared = {"num_classes": 2, "seed": 0, "label_smoothing": 0.0, "prob": 1.0}
    if not isinstance(mixer, type):
        raise ValueError(f"mixer {name!r} must be a class, such as a subclass of timm_mix.mixers.Mixer, got {mixer!r}")
    check_takes(f"mixer {name!r}", mixer, "the keywords num_classes, seed, label_smoothing, prob", **shared)
    try:
        made: Any = mixer(**shared)
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"mixer {name!r} must come into being without settings of its own, got {reason}") from error
    if not callable(made):
        raise ValueError(f"mixer {name!r} must be callable, (x, y) -> (x', soft y'), got {mixer!r} without __call__")
    for attribute in ("mixup_enabled", "rng"):
        if not hasattr(made, attribute):
            raise ValueError(
                f"mixer {name!r} must have mixup_enabled (True until a loop switches it off) and rng (its numpy "
                f"generator), got {mixer!r} without {attribute}"
            )


MIXERS: Registry[type[Any]] = Registry("mixer", _check)


class Mixer(ABC):
    """A callable in the seat of timm's mixup_fn; set mixup_enabled to False to let the batches pass.

    Shapes: mixer(x [B, C, H, W], y [B] or [B, K]) -> x' [B, C, H, W], y' [B, K] float32. Any B, odd ones too.
    Raises:
        ValueError: num_classes < 1, label_smoothing outside [0, 1), a setting outside its range; in a call images that
            are no floating point [B, C, H, W], targets of another shape or outside the classes.

    >>> import torch
    >>> mixer = Mixup(num_classes=3, label_smoothing=0.3)
    >>> mixer.mixup_enabled = False
    >>> x, y = mixer(torch.zeros(1, 3, 8, 8), torch.tensor([2]))  # not mixed, but as soft as the others
    >>> y
    tensor([[0.1000, 0.1000, 0.8000]])
    """

    def __init__(self, *, num_classes: int, seed: int = 0, label_smoothing: float = 0.0, prob: float = 1.0):
        check_count("num_classes", num_classes)
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing must be in [0, 1), got {label_smoothing!r}")
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.prob = prob
        self.mixup_enabled = True
        self.rng = np.random.default_rng(seed)

    @abstractmethod
    def plan(self, batch: int, size: tuple[int, int]) -> MixPlan:
        """Draw for `batch` images of `size` (H, W)."""

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        check_images(x)
        if not self.mixup_enabled:
            batch = len(x)
            untouched = MixPlan(np.arange(batch), np.ones(batch))
            return x, mix_targets(y, untouched, self.num_classes, self.label_smoothing)
        plan = self.plan(len(x), (x.shape[-2], x.shape[-1]))
        return apply_mix(x, plan), mix_targets(y, plan, self.num_classes, self.label_smoothing)

    def state_dict(self) -> dict[str, Any]:
        """The generator and the switch; loadable with weights_only=True."""
        return {"rng": self.rng.bit_generator.state, "mixup_enabled": self.mixup_enabled}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on drawing where `state` was taken."""
        self.rng.bit_generator.state = state["rng"]
        self.mixup_enabled = state["mixup_enabled"]


class Mixup(Mixer):
    """mixup (arXiv:1710.09412); see functional.plan.plan_mixup.

    Args:
        alpha: Beta parameter.
        mode: one draw per `batch`, `pair` or `elem`.
        shared: see Mixer (num_classes, seed, label_smoothing, prob).
    Raises:
        ValueError: a setting outside its range.

    >>> import torch
    >>> x, y = Mixup(num_classes=2, alpha=0.2)(torch.tensor([0.0, 1.0]).view(2, 1, 1, 1), torch.tensor([0, 1]))
    >>> torch.equal(x.flatten(), y[:, 1])  # images and labels are mixed alike
    True
    """

    def __init__(self, *, alpha: float = 0.8, mode: str = "batch", **shared: Any):
        super().__init__(**shared)
        self.settings: dict[str, Any] = {"alpha": alpha, "mode": mode, "prob": self.prob}
        plan_mixup(1, rng=np.random.default_rng(0), **self.settings)  # a wrong setting is an error now

    def plan(self, batch: int, size: tuple[int, int]) -> MixPlan:
        return plan_mixup(batch, rng=self.rng, **self.settings)


class CutMix(Mixer):
    """CutMix (arXiv:1905.04899); see functional.plan.plan_cutmix.

    Args:
        alpha: Beta parameter of the area that is kept.
        mode: one draw per `batch`, `pair` or `elem`.
        shared: see Mixer (num_classes, seed, label_smoothing, prob).
    Raises:
        ValueError: a setting outside its range.

    >>> import torch
    >>> x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8)
    >>> x, y = CutMix(num_classes=2)(x, torch.tensor([0, 1]))
    >>> x.unique().tolist(), torch.equal(x.mean((1, 2, 3)), y[:, 1])  # the label counts the pixels
    ([0.0, 1.0], True)
    """

    def __init__(self, *, alpha: float = 1.0, mode: str = "batch", **shared: Any):
        super().__init__(**shared)
        self.settings: dict[str, Any] = {"alpha": alpha, "mode": mode, "prob": self.prob}
        plan_cutmix(1, (1, 1), rng=np.random.default_rng(0), **self.settings)

    def plan(self, batch: int, size: tuple[int, int]) -> MixPlan:
        return plan_cutmix(batch, size, rng=self.rng, **self.settings)


class ResizeMix(Mixer):
    """ResizeMix (arXiv:2012.11101); see functional.plan.plan_resizemix.

    Args:
        scope: of the box's sides, as shares of the image's.
        mode: one draw per `batch`, `pair` or `elem`.
        shared: see Mixer (num_classes, seed, label_smoothing, prob).
    Raises:
        ValueError: a setting outside its range.

    >>> import torch
    >>> _, y = ResizeMix(num_classes=2, scope=(0.5, 0.5))(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))
    >>> y
    tensor([[0.7500, 0.2500],
            [0.2500, 0.7500]])
    """

    def __init__(self, *, scope: tuple[float, float] = (0.1, 0.8), mode: str = "batch", **shared: Any):
        super().__init__(**shared)
        self.settings: dict[str, Any] = {"scope": tuple(scope), "mode": mode, "prob": self.prob}
        plan_resizemix(1, (1, 1), rng=np.random.default_rng(0), **self.settings)

    def plan(self, batch: int, size: tuple[int, int]) -> MixPlan:
        return plan_resizemix(batch, size, rng=self.rng, **self.settings)


class Switch(Mixer):
    """One of several mixers per batch (timm's switch between mixup and CutMix).

    Args:
        mixers: names, or names with their settings: {"mixup": {"alpha": 0.2}, "cutmix": {}}.
        weights: how often each is taken; None takes all alike.
        shared: see Mixer (num_classes, seed, label_smoothing, prob).
    Raises:
        ValueError: mixers that are none, weights that are negative, all 0 or of another number; what a mixer raises.

    >>> import torch
    >>> mixer = Switch(num_classes=2, mixers={"mixup": {"alpha": 0.2}, "cutmix": {}}, weights=[1, 3])
    >>> mixer.weights.tolist(), mixer(torch.rand(2, 3, 8, 8), torch.tensor([0, 1]))[1].shape
    ([0.25, 0.75], torch.Size([2, 2]))
    """

    def __init__(
        self,
        *,
        mixers: Sequence[str] | Mapping[str, Mapping[str, Any]] = ("mixup", "cutmix"),
        weights: Sequence[float] | None = None,
        **shared: Any,
    ):
        super().__init__(**shared)
        kinds = {name: kind for name, kind in MIXERS.items() if not issubclass(kind, Switch)}
        if not mixers or any(name not in kinds for name in mixers):
            raise ValueError(f"mixers must be some of {', '.join(kinds)}, got {list(mixers)}")
        weights = [1.0] * len(mixers) if weights is None else list(weights)
        if len(weights) != len(mixers) or min(weights) < 0 or not sum(weights) > 0:
            raise ValueError(f"weights must be {len(mixers)} numbers >= 0, not all 0, got {weights}")
        settings = mixers if isinstance(mixers, Mapping) else {name: {} for name in mixers}
        self.mixers = [kinds[name](**{**shared, **settings[name]}) for name in settings]
        for mixer in self.mixers:
            mixer.rng = self.rng
        self.weights = np.asarray(weights) / sum(weights)

    def __call__(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """A mixer that has no plan is asked for its batch."""
        return self._choose()(x, y) if self.mixup_enabled else super().__call__(x, y)

    def plan(self, batch: int, size: tuple[int, int]) -> MixPlan:
        return self._choose().plan(batch, size)

    def _choose(self) -> Any:
        return self.mixers[self.rng.choice(len(self.mixers), p=self.weights)]
