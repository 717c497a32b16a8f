"""Every task over every kind of network: one row per task and variant, one column per network, and their runs on two
processes.

Run as a script it forks the two processes, which train every row over every network:
python tests/tasks/task_matrix.py OUT
"""

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from small_nets import NETS, K
from support.processes import fork, free_ports, place
from torch.nn.parallel import DistributedDataParallel

import timm_mix
from timm_mix.tasks import TASKS, task_settings

B, RANKS, STEPS = 5, 2, 3


@dataclass(frozen=True)
class Row:
    """The smallest settings that exercise a task.

    settings: of the task.   model: the wrapper that the task needs around the network, with its settings.
    still: ends of the names of parameters that the loss does not depend on.
    """

    task: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: tuple[str, dict[str, Any]] | None = None
    still: tuple[str, ...] = ()


@dataclass(frozen=True)
class Net:
    """A timm network. size: side of its images.   reduction: of its features, for the tasks that ask for one."""

    name: str
    settings: dict[str, Any]
    size: int = 64
    reduction: int = 16


def _example(task):
    """The row of a task as it was registered."""
    own = TASKS[task].facts.example
    return Row(task, own.settings, own.model and (own.model, own.model_settings), own.still)


ROWS = {
    **{task: _example(task) for task in TASKS},
    "recursivemix, one head": Row("recursivemix", {"region_head": "shared", "resize": "bilinear"}),
    "samix": Row(
        "automix",
        {"block": "samix", "variance": True, "mask_adjust": 0.5, "switch_off": 0.3},
        still=("block.key.bias",),  # adds the same to all scores of a query, of which the softmax takes the differences
    ),
    "automix, cheaper": Row("automix", {"block_every": 2, "one_hot_prob": 0.5}),
}
COLUMNS = {
    "resnet18_cifar": Net("resnet18_cifar", {"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 32)}, 16, 4),
    **{kind: Net(*NETS[kind]) for kind in ("convnext", "vit", "swin")},
}


def make_task(row, column, seed=0, **kwargs):
    """A task of the row over the column's network, whose random weights are those of the seed."""
    row, net = ROWS[row], COLUMNS[column]
    torch.manual_seed(seed)
    wrapper, settings = row.model or (net.name, {})
    wrapped = {"backbone": net.name} if row.model else {}
    model = timm.create_model(wrapper, num_classes=K, **wrapped, **settings, **net.settings)
    stage = {"reduction": net.reduction} if "reduction" in task_settings(row.task) else {}
    return timm_mix.create_task(
        row.task, model, num_classes=K, total_steps=20, verbose=False, **stage, **row.settings, **kwargs
    )


def batch_of(column, seed):
    generator = torch.Generator().manual_seed(seed)
    size = COLUMNS[column].size
    return torch.randn(B, 3, size, size, generator=generator), torch.randint(K, (B,), generator=generator)


def train(task, optimizer, batches):
    """The losses of one update per batch."""
    losses = []
    for images, target in batches:
        loss = task(images, target)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        task.update_ema()
        losses.append(loss.detach())
    return losses


def optimizer_of(task):
    return torch.optim.SGD(task.get_trainable_module().parameters(), lr=0.05, momentum=0.9)


def _distributed(row, column, rank):
    """What a process holds before and after STEPS steps with batches of its own."""
    task = make_task(row, column, seed=rank)  # the weights of rank 0 count
    alone = [p.detach().clone() for p in task.get_trainable_module().parameters()]
    task.prepare_distributed()
    losses = train(task, optimizer_of(task), [batch_of(column, 10 * rank + step) for step in range(STEPS)])
    state = task.get_task_state()
    return {
        "wrapped": isinstance(task.get_trainable_module(), DistributedDataParallel),
        "alone": alone,
        "trained": list(task.get_trainable_module().parameters()),
        "evaluated": list(task.get_eval_model().parameters()),
        "losses": losses,
        "rng": state["rng"],
        "history": state.get("history"),
    }


def _work(rank, world, port, out):
    os.environ.update(place(rank, world, port))
    dist.init_process_group("gloo")
    found = {f"{row} over {column}": _distributed(row, column, rank) for row in ROWS for column in COLUMNS}
    torch.save(found, out / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    torch.set_num_threads(1)
    fork(_work, RANKS, free_ports(1)[0], Path(sys.argv[1]))
