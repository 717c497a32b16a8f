"""Where a run stands: what is saved of it and how a run goes on from there."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor

from timm_mix.train.checkpoints.content import VERSION, collect, put_back, read_checkpoint
from timm_mix.train.checkpoints.folder import CheckpointFolder
from timm_mix.train.checkpoints.lock import FolderLock
from timm_mix.train.errors import UsageError
from timm_mix.train.loop.guards import check_run
from timm_mix.train.loop.member_parallel import MemberParallel
from timm_mix.train.loop.parallel import DataParallel
from timm_mix.train.loop.results import score
from timm_mix.train.settings.config import Config

__all__ = ["Keeper", "Progress"]


@dataclass
class Progress:
    """A place between two updates.

    epoch: the running one, from 0.   batch, update: batches of it and updates of the run that are done.
    trained: all of its batches are, and the processes' BatchNorm statistics are one; evaluation is what is left.
    lr: at the beginning of the epoch.   seconds: of training in it.   history: a row for every epoch before it.
    sums: of what the task reported in it, in this process.

    >>> progress = Progress(batch=22, update=22)
    >>> progress.finish_epoch({"eval": {"ensemble": {"top1": 71.0}}})
    >>> progress.epoch, progress.batch, progress.update, progress.at_best
    (1, 0, 22, True)
    """

    epoch: int = 0
    batch: int = 0
    update: int = 0
    trained: bool = False
    lr: float | None = None
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def finish_epoch(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        self.epoch, self.batch, self.trained = self.epoch + 1, 0, False
        self.lr, self.seconds, self.sums = None, 0.0, {}

    @property
    def at_best(self) -> bool:
        """Between two epochs, and the one before is the best: the first of equally good ones, as in results.json."""
        tops = [score(row) for row in self.history]
        return self.batch == 0 and bool(tops) and tops.index(max(tops)) == len(tops) - 1


class Keeper:
    """Saves and restores a run; all processes call its methods together, the main one reads and writes.

    Args:
        parts: task, optimizer, schedule and scaler, by these names.
        facts: what has to be the same when the run goes on; see guards.check_run.

    >>> from timm.task import ClassificationTask
    >>> task = ClassificationTask(torch.nn.Linear(2, 3), torch.nn.CrossEntropyLoss(), verbose=False)
    >>> parts = {"task": task, "optimizer": torch.optim.SGD(task.parameters()), "schedule": None, "scaler": None}
    >>> accelerator = Accelerator(cpu=True)
    >>> keeper = Keeper(Config.of(resume="auto"), accelerator, DataParallel(accelerator), parts, facts={})
    >>> keeper.save(Progress(epoch=1, update=7))
    >>> keeper.resume().update
    7
    """

    def __init__(
        self,
        config: Config,
        accelerator: Accelerator,
        parallel: DataParallel | MemberParallel,
        parts: dict[str, Any],
        facts: dict[str, Any],
    ):
        self.config, self.accelerator, self.parallel, self.parts = config, accelerator, parallel, parts
        self.facts = {"processes": parallel.shares, **facts}
        self.files = CheckpointFolder(config.folder / "checkpoints", config.run.checkpoint_hist)
        self.lock = FolderLock(config.folder)

    def save(self, progress: Progress, *, final: bool = False) -> None:
        """
        Args:
            final: a checkpoint that cannot be written is an error; else a warning, because the older ones are there.
        """
        state = {name: getattr(progress, name) for name in _PLACE}
        content = {"version": VERSION, "progress": state, "facts": self.facts}
        content["config"] = self.config.flat()
        main = self.accelerator.is_main_process
        content = self.parallel.whole({**content, **collect(**self.parts, sums=progress.sums, main=main)})
        if not main:
            return
        try:
            self.files.write(content, progress.update, best=progress.at_best)
        except OSError as error:
            report_unwritten(f"the checkpoint of update {progress.update}", error, final=final)

    def resume(self) -> Progress:
        """The place that the settings name, with all parts as they were there; the beginning where they name none.

        Raises:
            UsageError: a checkpoint that cannot be read, does not fit the run, or was made by another one.
        """
        path = self._agreed_path()
        if path is None:
            self._say_what_is_replaced()
            return Progress()
        content = read_checkpoint(path, check=False)
        longer = self._goes_on_longer(content)
        check_run(path, content["config"], self.config, content["facts"], self.facts, longer=longer)
        if content["config"]["member_parallel"] != self.config.run.member_parallel and self.accelerator.is_main_process:
            how = "a part of the model" if self.config.run.member_parallel else "the whole model"
            print(f"going on with {how} per process, whose augmentation is drawn otherwise", flush=True)
        self._check_best(content["progress"]["history"])
        parallel = self.parallel
        place = {"share": parallel.share, "part": parallel.part, "parts": parallel.parts}
        parts = {**self.parts, "schedule": None} if longer else self.parts
        sums = put_back(parallel.own(content), **parts, **place)
        progress = Progress(**content["progress"], sums=sums)
        if longer and self.parts["schedule"] is not None:  # the one of the longer run, where that would be now
            self.parts["schedule"].step(progress.epoch)
            self.parts["schedule"].step_update(progress.update)
        return progress

    def _goes_on_longer(self, content: dict[str, Any]) -> bool:
        """Whether a run that is finished is given more epochs."""
        then, now = content["config"], self.config.optimise
        epochs = then.get("epochs", now.epochs)
        finished = content["progress"].get("epoch", 0) >= epochs + then.get("cooldown_epochs", 0)
        longer = finished and now.epochs > epochs and now.sched != "plateau"
        if longer and self.accelerator.is_main_process:
            told = f"the run of {epochs} epochs is finished and goes on to {now.epochs}"
            print(f"{told}, at the learning rates of such a run", flush=True)
        return longer

    def release(self) -> None:
        """Another run may have the folder now."""
        self.lock.release()

    def published(self, history: list[dict[str, Any]]) -> dict[str, Any]:
        """The checkpoint of the weights to publish; the main process calls this.

        Raises:
            UsageError: it could not be written when it was due.
        """
        content = read_checkpoint(self.files.best if self.config.run.export == "best" else self.files.last)
        tops = [score(row) for row in history]
        wanted = tops.index(max(tops)) + 1 if self.config.run.export == "best" else len(history)
        if content["progress"]["epoch"] != wanted:
            raise UsageError(
                f"the weights of epoch {wanted} could not be saved, {self.files.folder} has those of epoch "
                f"{content['progress']['epoch']}; publish these with --export last --resume auto"
            )
        return content

    def _agreed_path(self) -> Path | None:
        """What the main process found and checked."""
        told: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                self.lock.take()
                told[0] = self.files.find(self.config.run.resume)
            except UsageError as error:
                told[1] = str(error)
        broadcast_object_list(told)
        if told[1] is not None:
            raise UsageError(told[1])
        return told[0]

    def _say_what_is_replaced(self) -> None:
        """A run that begins in the folder of another one may be a forgotten flag."""
        if self.accelerator.is_main_process and self.files.last.is_file():
            line = f"{self.config.folder} has a run, which this one replaces; --resume auto would go on with it"
            print(f"warning: {line}", file=sys.stderr, flush=True)

    def _check_best(self, history: list[dict[str, Any]]) -> None:
        """The best of the epochs that are done has to be here."""
        if self.config.run.export == "best" and history and not self.files.best.is_file():
            raise UsageError(f"--export best needs {self.files.best}; resume in the run's own folder")


def report_unwritten(what: str, error: OSError, *, final: bool) -> None:
    """One line for a file that cannot be written, say because the disk is full.

    Raises:
        UsageError: when `final`, because there is no later try.
    """
    line = f"cannot write {what}: {error.strerror or error}"
    if final:
        raise UsageError(f"{line}; make room and go on with --resume auto") from error
    print(f"warning: {line}; going on, the older one stays", file=sys.stderr, flush=True)


_PLACE = ("epoch", "batch", "update", "trained", "lr", "seconds", "history")
