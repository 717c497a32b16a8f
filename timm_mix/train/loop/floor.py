"""A schedule that is cut off: it goes on below the floor, the learning rate does not."""

from typing import Any

__all__ = ["FlooredSchedule"]


class FlooredSchedule:
    """timm's schedule, none of whose learning rates is below the floor; the warm-up's are not, either.

    Args:
        schedule: of timm's.
        floor: of the learning rate before a group's own scale (layer decay).

    >>> import torch
    >>> from timm.scheduler import CosineLRScheduler
    >>> optimizer = torch.optim.SGD([torch.zeros(2)], lr=0.1)
    >>> schedule = FlooredSchedule(CosineLRScheduler(optimizer, t_initial=10), floor=0.01)
    >>> rates = []
    >>> for epoch in (5, 9, 10):
    ...     schedule.step(epoch)
    ...     rates.append(round(optimizer.param_groups[0]["lr"], 4))
    >>> rates  # the cosine itself is .0024 at 9 and 0 at 10
    [0.05, 0.01, 0.01]
    """

    def __init__(self, schedule: Any, floor: float):
        self.schedule, self.floor = schedule, floor
        self._cut()

    def __getattr__(self, name: str) -> Any:
        """What else a schedule of timm's has (optimizer, a plateau's lr_scheduler)."""
        if name == "schedule":  # a copy that is not filled yet
            raise AttributeError(name)
        return getattr(self.schedule, name)

    def step(self, epoch: int, metric: float | None = None) -> None:
        self.schedule.step(epoch, metric)
        self._cut()

    def step_update(self, num_updates: int, metric: float | None = None) -> None:
        self.schedule.step_update(num_updates, metric)
        self._cut()

    def state_dict(self) -> dict[str, Any]:
        return self.schedule.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.schedule.load_state_dict(state)

    def _cut(self) -> None:
        for group in self.schedule.optimizer.param_groups:
            group["lr"] = max(group["lr"], self.floor * group.get("lr_scale", 1.0))
