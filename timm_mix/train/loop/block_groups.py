"""The Mix Block's own parameter groups: its learning rate, momentum and final learning rate (task automix)."""

from typing import Any

import torch
from torch import nn

from timm_mix.train.errors import UsageError
from timm_mix.train.settings.optimise import OptimiseSettings

__all__ = ["BlockSchedule", "GroupsOf", "own_block_group"]

MARK = "mix_block"  # key of the groups that hold the Mix Block


def own_block_group(wanted: OptimiseSettings, optimizer: torch.optim.Optimizer, net: Any) -> None:
    """Move the Mix Block's parameters into groups of their own, where the recipe has settings for it.

    Whether they are decayed, and how much, stays as it was; a scale of the learning rate by depth does not.

    Args:
        net: what is trained; its `block` is the Mix Block.
    Raises:
        UsageError: block_momentum with an optimizer that has none.

    >>> net = nn.ModuleDict({"model": nn.Linear(2, 3), "block": nn.Linear(2, 3)})
    >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    >>> own_block_group(OptimiseSettings(lr=0.1, block_lr=0.01), optimizer, net)
    >>> [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
    [(0.1, 2), (0.01, 2)]
    """
    if not wanted.of_the_block:
        return
    block: nn.Module = net.block
    members = {id(p) for p in block.parameters()}
    for group in list(optimizer.param_groups):
        own = {MARK: True, "lr": wanted.lr if wanted.block_lr is None else wanted.block_lr}
        if wanted.block_momentum is not None:
            if "momentum" not in group:
                raise UsageError(f"block_momentum needs an optimizer with momentum, got opt {wanted.opt}; drop it")
            own["momentum"] = wanted.block_momentum
        theirs = {key: value for key, value in group.items() if key not in ("params", "lr_scale", *own)}
        moved = [p for p in group["params"] if id(p) in members]
        group["params"] = [p for p in group["params"] if id(p) not in members]
        if moved:
            optimizer.add_param_group({"params": moved, **theirs, **own})
    optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]


class GroupsOf:
    """The groups of an optimizer that hold the Mix Block, or the others: all that a schedule of timm's sees of one.

    They are looked up anew each time: loading a state replaces them.

    >>> groups = [{"params": [torch.zeros(2)]}, {"params": [torch.zeros(3)], MARK: True}]
    >>> optimizer = torch.optim.SGD(groups, lr=0.1)
    >>> [len(group["params"][0]) for group in GroupsOf(optimizer, block=True).param_groups]
    [3]
    """

    def __init__(self, optimizer: torch.optim.Optimizer, *, block: bool):
        self.optimizer = optimizer
        self.block = block

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.optimizer.param_groups if group.get(MARK, False) == self.block]


class BlockSchedule:
    """Two schedules that go together: timm's have one floor for all groups, the Mix Block has its own.

    >>> from timm.scheduler import CosineLRScheduler
    >>> groups = [{"params": [torch.zeros(2)]}, {"params": [torch.zeros(3)], MARK: True}]
    >>> optimizer = torch.optim.SGD(groups, lr=0.1)
    >>> ends = {False: 0.0, True: 0.05}
    >>> halves = [CosineLRScheduler(GroupsOf(optimizer, block=block), 5, lr_min=end) for block, end in ends.items()]
    >>> BlockSchedule(*halves).step(5)
    >>> [group["lr"] for group in optimizer.param_groups]
    [0.0, 0.05]
    """

    def __init__(self, network: Any, block: Any):
        self.network = network
        self.block = block

    def step(self, epoch: int, metric: float | None = None) -> None:
        self.network.step(epoch, metric)
        self.block.step(epoch, metric)

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        self.network.step_update(num_updates, metric)
        self.block.step_update(num_updates, metric)

    def state_dict(self) -> dict[str, Any]:
        return {"network": self.network.state_dict(), "block": self.block.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.block.load_state_dict(state["block"])
