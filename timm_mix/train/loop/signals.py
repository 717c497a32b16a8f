"""Signals that end a run, and what all processes of a run agree on."""

import signal
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

__all__ = ["Agreement", "StopSignals"]


class StopSignals:
    """Within it SIGTERM and SIGINT are noted, for the run to end after its current update; a second SIGINT is Ctrl-C.

    received: the number of the first signal, 0 before.

    >>> with StopSignals() as signals:
    ...     signal.raise_signal(signal.SIGINT)
    >>> signals.received == signal.SIGINT
    True
    """

    def __init__(self) -> None:
        self.received = 0

    def __enter__(self) -> "StopSignals":
        self._before = {}
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = self.received or number


class Agreement:
    """The largest number over all processes: on the CPU, so that no accelerator has to be waited for.

    >>> Agreement(processes=1).largest(15)
    15
    """

    def __init__(self, processes: int):
        self.processes = processes
        self.group: Any = None
        if processes > 1 and dist.get_backend() != "gloo":
            self.group = dist.new_group(backend="gloo")

    def largest(self, number: int) -> int:
        """All processes call this together."""
        if self.processes == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, dist.ReduceOp.MAX, group=self.group)
        return int(value)
