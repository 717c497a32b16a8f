"""timm training tasks: create_task(name, model, criterion, ...)."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from timm_mix.functional.blocks import BLOCKS, Block
from timm_mix.registry import Registry, check_takes
from timm_mix.tasks._base import MemberTask, MixingTask
from timm_mix.tasks._mix_block import MIX_BLOCKS
from timm_mix.tasks._two_heads import stage_of_reduction
from timm_mix.tasks.automix import AutoMixTask
from timm_mix.tasks.cotraining import CoTrainingTask
from timm_mix.tasks.facts import Example, Facts, Method, Work, method_of
from timm_mix.tasks.manifoldmixup import ManifoldMixupTask
from timm_mix.tasks.mixmo import MixMoTask
from timm_mix.tasks.recursivemix import RecursiveMixTask

__all__ = [
    "MIX_BLOCKS",
    "PLAIN",
    "TASKS",
    "AutoMixTask",
    "CoTrainingTask",
    "Example",
    "Facts",
    "ManifoldMixupTask",
    "MemberTask",
    "Method",
    "MixMoTask",
    "MixingTask",
    "RecursiveMixTask",
    "Work",
    "create_task",
    "method_of",
    "register_block",
    "register_task",
    "stage_of_reduction",
    "task_settings",
]

PLAIN = "classification"  # what a trainer calls plain training, which is timm's own task


def _check(name: str, task: Any) -> None:
    if name == PLAIN:
        raise ValueError(f"task {PLAIN!r} is plain training; take another name")
    if not isinstance(task, type) or not issubclass(task, MixingTask):
        raise ValueError(f"task {name!r} must be a subclass of timm_mix.tasks.MixingTask, got {task!r}")
    if task.forward is MixingTask.forward:
        raise ValueError(f"task {name!r} must have a forward(input, target) -> dict with loss, got {task!r} without")
    wanted = "(model, criterion, *, settings) and the keywords of MixingTask"
    check_takes(f"task {name!r}", task, wanted, None, None, **dict.fromkeys(_keywords(MixingTask)))


def _keywords(task: type[MixingTask]) -> set[str]:
    return {name for name, p in inspect.signature(task).parameters.items() if p.kind is p.KEYWORD_ONLY}


TASKS: Registry[type[MixingTask]] = Registry("task", _check)
TASKS.register("mixmo", MixMoTask)
TASKS.register("cotraining", CoTrainingTask)
TASKS.register("recursivemix", RecursiveMixTask)
TASKS.register("automix", AutoMixTask)
TASKS.register("manifoldmixup", ManifoldMixupTask)


def register_task(name: str, task: type[MixingTask] | None = None) -> Any:
    """Let a training task of your own be created, trained with and described by `name`.

    As a function, register_task("mine", MyTask), or as a decorator of the class, @register_task("mine").

    Args:
        task: a subclass of MixingTask (or MemberTask) with a forward(); its settings are the keyword-only arguments of
            its constructor, which hands **kwargs on. What else must be known of it is in its `facts`.
    Raises:
        ValueError: a name that is taken, or a class that lacks one of these.

    >>> @register_task("plain-again")
    ... class PlainAgain(MixingTask):
    ...     def forward(self, input, target):
    ...         logits = self.trainable_module(input)
    ...         self.step += 1
    ...         return {"loss": self.criterion(logits, target), "output": logits}
    >>> import timm, torch
    >>> task = create_task("plain-again", timm.create_model("test_resnet", num_classes=5), num_classes=5)
    >>> task(torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3]))["output"].shape
    torch.Size([4, 5])
    """
    return TASKS.register(name, task)


def register_block(name: str, block: Any = None, *, binary: bool = False) -> Any:
    """Let a mixing block of your own be the `block` of a task.

    As a function, register_block("mine", mine), or as a decorator, @register_block("mine").

    Args:
        block: of MixMo, a function (kappa [B], shape (B, C', h, w), generator) -> region [B, 1 or C', h, w] or
            [B, C', 1, 1], float32 or bool, 1 where a place is the first role's; one that draws on the CPU is a
            functional.blocks.Block. Of AutoMix, a subclass of nn.Module, made with (channels, *, settings), that maps
            (features, partners, lam, size) to masks; see MixBlock in tasks/_mix_block.py.
        binary: of such a function, whether it gives every place to one member; `partition` needs that.
    Raises:
        ValueError: a name that is taken, or a block that cannot be called so.

    >>> import timm, torch
    >>> @register_block("left-half", binary=True)
    ... def left_half(kappa, shape, generator):
    ...     return (torch.arange(shape[3]) < shape[3] // 2).expand(shape[0], 1, *shape[2:])
    >>> model = timm.create_model("mixmo_wrn16_2_m2", num_classes=5, depth=10)
    >>> create_task("mixmo", model, num_classes=5, block="left-half").settings["block"]
    'left-half'
    """
    if block is None:
        return partial(register_block, name, binary=binary)
    if isinstance(block, type):
        return MIX_BLOCKS.register(name, block)
    BLOCKS.register(name, block if isinstance(block, Block) else Block(block, binary=binary))
    return block


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
        name: one of TASKS: `mixmo` or `cotraining` for models with members, `recursivemix`, `automix` or
            `manifoldmixup` for any, or your own.
        criterion: (logits [B, K], target) -> mean loss over the batch; None is cross-entropy.
        settings: those of the task (see the task's class) and of MixingTask.
    Raises:
        ValueError: an unknown name or setting, or whatever the task itself raises.

    >>> import timm, torch
    >>> model = timm.create_model("mixmo_wrn16_2_m2", num_classes=5, depth=10)
    >>> task = create_task("mixmo", model, num_classes=5, block="cut", total_steps=100)
    >>> result = task(torch.rand(4, 3, 16, 16), torch.tensor([0, 1, 2, 3]))
    >>> result["loss"].backward()  # the optimizer's step follows
    >>> sorted(result), result["output"].shape
    (['ce', 'loss', 'output'], torch.Size([4, 5]))
    """
    task, known = TASKS.find(name), task_settings(name)
    for setting in settings:
        if setting not in known:
            raise ValueError(f"task {name} has no setting {setting!r}; it has {', '.join(sorted(known))}")
    return task(model, criterion, num_classes=num_classes, seed=seed, total_steps=total_steps, **settings)


def task_settings(name: str) -> set[str]:
    """The keywords that a task takes, those of MixingTask among them.

    Raises:
        ValueError: an unknown name.

    >>> sorted(task_settings("manifoldmixup") - task_settings("cotraining"))
    ['alpha', 'stages']
    """
    return _keywords(MixingTask) | _keywords(TASKS.find(name))
