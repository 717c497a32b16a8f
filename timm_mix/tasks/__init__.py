"""timm training tasks: create_task(name, model, criterion, ...)."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from timm_mix.tasks._base import MemberTask, MixingTask
from timm_mix.tasks._two_heads import stage_of_reduction
from timm_mix.tasks.automix import AutoMixTask
from timm_mix.tasks.cotraining import CoTrainingTask
from timm_mix.tasks.manifoldmixup import ManifoldMixupTask
from timm_mix.tasks.mixmo import MixMoTask
from timm_mix.tasks.recursivemix import RecursiveMixTask

__all__ = [
    "TASKS",
    "AutoMixTask",
    "CoTrainingTask",
    "ManifoldMixupTask",
    "MemberTask",
    "MixMoTask",
    "MixingTask",
    "RecursiveMixTask",
    "create_task",
    "stage_of_reduction",
    "task_settings",
]

TASKS: dict[str, type[MixingTask]] = {
    "mixmo": MixMoTask,
    "cotraining": CoTrainingTask,
    "recursivemix": RecursiveMixTask,
    "automix": AutoMixTask,
    "manifoldmixup": ManifoldMixupTask,
}


def create_task(
    name: str,
    model: nn.Module,
    criterion: Callable[[Tensor, Tensor], Tensor] | None = None,
    *,
    num_classes: int,
    seed: int = 0,
    total_steps: int | None = None,
    **settings: Any,
) -> MixingTask:
    """Create a training task by name.

    An optimizer takes the parameters of task.get_trainable_module(): with AutoMix's Mix Block and RecursiveMix's region
    head they are more than the model's. Evaluate and save task.get_eval_model(). Of several processes each makes the
    task of the bare model, then calls task.prepare_distributed().

    Args:
        name: `mixmo` or `cotraining` for models with members, `recursivemix`, `automix` or
            `manifoldmixup` for any.
        criterion: (logits [B, K], target) -> mean loss over the batch; None is cross-entropy.
        settings: those of the task (see the task's class) and of MixingTask.
    Raises:
        ValueError: an unknown name or setting, or whatever the task itself raises.
    """
    if name not in TASKS:
        raise ValueError(f"task must be one of {', '.join(TASKS)}, got {name!r}")
    known = task_settings(name)
    for setting in settings:
        if setting not in known:
            raise ValueError(f"task {name} has no setting {setting!r}; it has {', '.join(sorted(known))}")
    return TASKS[name](model, criterion, num_classes=num_classes, seed=seed, total_steps=total_steps, **settings)


def task_settings(name: str) -> set[str]:
    """The keywords that a task takes, those of MixingTask among them."""
    parameters = {**inspect.signature(MixingTask).parameters, **inspect.signature(TASKS[name]).parameters}
    return {name for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY}
