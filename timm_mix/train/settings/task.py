"""Settings of what is learnt from a batch: the task, and what mixes images and labels."""

from dataclasses import dataclass
from typing import Any

from timm_mix.mixers import MIXERS, mixer_settings
from timm_mix.tasks import TASKS, task_settings
from timm_mix.train.errors import UsageError, nearest
from timm_mix.train.settings.fields import AT_LEAST_0, BELOW_1, NOT_NEGATIVE, SHARE, check_fields, setting

__all__ = ["PLAIN", "TaskSettings"]

PLAIN = "classification"
_OF_ALL_MIXERS = {"prob", "label_smoothing", "off_epoch"}


def _tasks() -> tuple[str, ...]:
    return (PLAIN, *TASKS)


def _mixers() -> tuple[str | None, ...]:
    return (None, *MIXERS)


@dataclass(frozen=True)
class TaskSettings:
    """task and mixing

    >>> TaskSettings(cutmix=1.0).mixes_samples
    True
    >>> TaskSettings(name="mixmo", cutmix=1.0)
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: mixup and cutmix are for task classification, got task mixmo; drop them, ...
    """

    name: str = setting(PLAIN, "the method; classification is plain training", choices=_tasks, name="task")
    mixer: str | None = setting(None, "mixes the batches of task classification", choices=_mixers)
    mix: dict[str, Any] = setting({}, "settings of the task or mixer, key=value")
    smoothing: float = setting(0.0, "label smoothing: share of the target that is spread over all classes", BELOW_1)
    bce_loss: bool = setting(
        False, "binary cross-entropy: every class is a question of its own (always where images have several labels)"
    )
    bce_sum: bool = setting(False, "sum it over the classes instead of averaging")
    bce_target_thresh: float | None = setting(None, "--bce-loss: labels above are 1, others 0, after mixing", SHARE)
    class_weights: str | None = setting(
        None,
        "weight of each class in the loss: a file or list of numbers, or balanced (1 / its images, mean 1; of several "
        "labels per image the positive term by negatives / positives)",
    )
    mixup: float = setting(0.0, "alpha of timm's mixup, 0 for none; task classification only", NOT_NEGATIVE)
    cutmix: float = setting(0.0, "alpha of timm's CutMix, 0 for none; task classification only", NOT_NEGATIVE)
    mixup_prob: float = setting(1.0, "probability of mixup or CutMix per batch, pair or image", SHARE)
    mixup_switch_prob: float = setting(0.5, "share of CutMix when both are on", SHARE)
    mixup_mode: str = setting("batch", "one draw per batch, pair or elem (image)", choices=("batch", "pair", "elem"))
    mixup_off_epoch: int = setting(0, "the epoch, from 0, in which all mixing ends; 0: never", AT_LEAST_0)

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.bce_loss and (self.bce_sum or self.bce_target_thresh is not None):
            raise UsageError("bce_sum and bce_target_thresh are for --bce-loss; give it, or drop them")
        if self.mixer is not None and self.name != PLAIN:
            raise UsageError(f"mixer is for task {PLAIN}, got task {self.name}; drop one of the two")
        if self.mixer is not None and self.mixes_samples:
            raise UsageError(f"mixer {self.mixer} takes the place of mixup and cutmix; drop one or the other")
        if self.mixes_samples and self.name != PLAIN:
            raise UsageError(
                f"mixup and cutmix are for task {PLAIN}, got task {self.name}; drop them, or set what the task "
                "itself mixes by --mix"
            )
        if self.mixup_off_epoch and self.name == PLAIN and self.mixer is None and not self.mixes_samples:
            raise UsageError("mixup_off_epoch ends what a task, mixer, mixup or cutmix mixes, got none; drop it")
        if self.mixup_off_epoch and "off_epoch" in self.mix:
            raise UsageError("mixup_off_epoch and off_epoch of mix say the same; drop one of the two")
        self._check_mix()

    @property
    def off_epoch(self) -> dict[str, int]:
        """The setting of the task by this name, if there is one."""
        return {"off_epoch": self.mixup_off_epoch} if self.mixup_off_epoch else {}

    def _check_mix(self) -> None:
        """Every setting of the method is one that it has, as far as that is known without its network."""
        if self.name == PLAIN and self.mixer is None:
            if self.mix:
                raise UsageError(f"task {PLAIN} has no settings, got mix: {', '.join(self.mix)}; drop them")
            return
        who = f"task {self.name}" if self.mixer is None else f"mixer {self.mixer}"
        known = task_settings(self.name) if self.mixer is None else mixer_settings(self.mixer) | _OF_ALL_MIXERS
        for name in self.mix:
            if name not in known:
                hint = nearest(name, known) or f"it has {', '.join(sorted(known))}"
                raise UsageError(f"{who} has no setting {name!r}; {hint}")

    def check_fact(self, fact: str, what: str, advice: str) -> None:
        """A setting that is for the tasks of which a fact is true (timm_mix.tasks.facts.Facts).

        Raises:
            UsageError: this is another task.
        """
        known = [name for name, task in TASKS.items() if getattr(task.facts, fact)]
        if self.name not in known:
            raise UsageError(f"{what} for task {' or '.join(known)}, got task {self.name}; {advice}")

    @property
    def mixes_samples(self) -> bool:
        """By timm's mixup or CutMix."""
        return self.mixup > 0 or self.cutmix > 0
