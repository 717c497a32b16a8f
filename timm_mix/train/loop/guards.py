"""What a run refuses: to go on with figures that are not finite, or with another recipe or data than it began with."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from timm_mix.train.data.labels import is_multi_label, labels_of
from timm_mix.train.data.sources import is_stream
from timm_mix.train.errors import UsageError
from timm_mix.train.loop.signals import Agreement
from timm_mix.train.settings.config import Config

__all__ = ["LossGuard", "check_classes", "check_run", "check_sigmoids"]

# settings that do not change what is learnt: where, how fast and how loudly a run works (workers: but for a stream)
FREE = {
    *("workers", "pin_mem", "data_dir", "labels_csv", "dataset_download", "validation_batch_size", "pretrained"),
    *("initial_checkpoint", "grad_checkpointing", "channels_last", "torchcompile", "cpu", "member_parallel"),
    *("output", "experiment", "resume", "log_interval", "export", "tracker", "checkpoint_interval", "checkpoint_hist"),
    *("deterministic", "check_images", "imports"),
}
ADVICE = "try a lower --lr, --clip-grad 1, a longer --warmup-epochs, or without --amp"


class LossGuard:
    """Notices a loss or weights that are not finite.

    The losses stay on their device until `check`: a step waits for nothing.

    >>> guard = LossGuard(Agreement(processes=1))
    >>> for update, loss in enumerate((2.5, math.inf)):
    ...     guard.see(update, torch.tensor(loss))
    >>> guard.check()
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: the loss of update 2 is inf (last finite loss: 2.5); try a lower --lr, ...
    """

    def __init__(self, agreement: Agreement):
        self.agreement = agreement
        self.last_finite: float | None = None
        self._pending: list[tuple[int, Tensor]] = []

    def __len__(self) -> int:
        """Updates since the last check."""
        return len(self._pending)

    def see(self, update: int, loss: Tensor) -> None:
        """loss: of this update (counted from 0), a detached scalar."""
        self._pending.append((update, loss))

    def check(self, module: nn.Module | None = None) -> None:
        """All processes call this together; `module`: whose weights are looked at, too.

        Raises:
            UsageError: on all processes, when something is not finite on one.
        """
        update, value = self._first_bad_loss()
        bad_weights = int(module is not None and not _all_finite(module))
        largest = self.agreement.largest(max(int(update is not None) * 2, bad_weights))
        if not largest:
            return
        if update is not None:
            what = f"the loss of update {update + 1} is {value}"
        elif largest == 2:
            what = "the loss is not finite on another process"
        else:
            what = "the loss is finite, but the weights are not"
        last = "none" if self.last_finite is None else f"{self.last_finite:.4g}"
        raise UsageError(f"{what} (last finite loss: {last}); {ADVICE}")

    def _first_bad_loss(self) -> tuple[int | None, float]:
        pending, self._pending = self._pending, []
        values = torch.stack([loss.float() for _, loss in pending]).tolist() if pending else []
        for (update, _), value in zip(pending, values, strict=True):
            if not math.isfinite(value):
                return update, value
            self.last_finite = value
        return None, math.nan


def check_run(
    path: Path,
    made_with: dict[str, Any],
    config: Config,
    made_on: dict[str, Any],
    facts: dict[str, Any],
    *,
    longer: bool = False,
) -> None:
    """
    Args:
        made_with: the settings that the checkpoint was made with; one that it does not have had its default.
        longer: the run was finished and is given more epochs.
        made_on, facts: what is countable about data and processes, then and now, by its name.
    Raises:
        UsageError: a setting that changes what is learnt, or a number, is another one now; one line names all of them.

    >>> then = Config.of(lr=0.1, workers=2).flat()
    >>> check_run(Path("last.pt"), then, Config.of(lr=0.1, workers=8), {}, {})  # workers change nothing that is learnt
    >>> check_run(Path("last.pt"), then, Config.of(lr=0.2), {}, {})
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: last.pt was made with lr=0.1, got lr=0.2; resume with the same, or start anew ...
    """
    given, settings = config.flat(), config.settings()
    free = FREE - {"workers"} if is_stream(config.data.dataset) else FREE
    free = free | ({"epochs"} if longer else set())
    then = {name: made_with.get(name, one.default) for name, one in settings.items() if name not in free}
    pairs = [(f"{name}={was}", f"{name}={given[name]}") for name, was in then.items() if was != given[name]]
    pairs += [
        (f"{made_on[name]} {name}", f"{now} {name}") for name, now in facts.items() if made_on.get(name, now) != now
    ]
    if pairs:
        was, now = (", ".join(column) for column in zip(*pairs, strict=True))
        moved = "; a file or class was renamed, added or sorted otherwise" if "_digest" in was else ""
        line = f"{path} was made with {was}, got {now}{moved}"
        raise UsageError(f"{line}; resume with the same, or start anew (--experiment)")


def check_classes(model: nn.Module, num_classes: int, **splits: Dataset) -> None:
    """
    Args:
        num_classes: of the data.
        splits: datasets by their names; one that does not list its labels is not looked at.
    Raises:
        UsageError: the model has another number of classes, or a label lies outside them.

    >>> check_classes(timm.create_model("test_resnet", num_classes=5), num_classes=10)
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: the model must predict the 10 classes of the data, got 5; set the same
    """
    predicted = getattr(model, "num_classes", num_classes)
    if predicted != num_classes:
        raise UsageError(f"the model must predict the {num_classes} classes of the data, got {predicted}; set the same")
    for name, dataset in splits.items():
        labels = labels_of(dataset)
        if is_multi_label(dataset):
            labels = np.arange(labels.shape[1])
        if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
            raise UsageError(
                f"the labels of the {name} data must lie in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}; "
                "correct --num-classes or the class map"
            )


def check_sigmoids(model: nn.Module, name: str) -> None:
    """
    Raises:
        UsageError: an ensemble of probabilities over the classes, where an image may have any number of labels.

    >>> check_sigmoids(timm.create_model("mixmo_wrn16_2_m2", depth=10, ensemble="softmax"), "mixmo_wrn16_2_m2")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: several labels per image want an ensemble of logits, mixmo_wrn16_2_m2 has ...
    """
    own = getattr(model, "ensemble", "logits")
    if own != "logits":
        raise UsageError(
            f"several labels per image want an ensemble of logits, {name} has ensemble={own}; set it by --model-kwargs "
            "ensemble=logits"
        )


@torch.no_grad()
def _all_finite(module: nn.Module) -> bool:
    tensors = [t for t in (*module.parameters(), *module.buffers()) if t.is_floating_point() and t.numel()]
    return bool(torch.stack([t.isfinite().all() for t in tensors]).all())
