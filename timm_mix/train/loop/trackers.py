"""Where the figures of every epoch go beside results.json: a csv file, TensorBoard, Weights & Biases, by Accelerate.

A run that is resumed goes on in the same place, and what an epoch that is trained again had logged is not there twice.
"""

import csv
import importlib.util
import io
import os
import uuid
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, on_main_process

from timm_mix.train.errors import UsageError, user_errors
from timm_mix.train.files import write_whole
from timm_mix.train.settings.run import RunSettings

__all__ = ["CsvTracker", "figures_of", "start_tracker", "tracker_of"]

_PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX"), "wandb": ("wandb",), "csv": ("csv",)}


class CsvTracker(GeneralTracker):
    """A row per epoch. The file is written anew every time, so that it is whole and has every epoch once.

    >>> accelerator, tracker = Accelerator(cpu=True), CsvTracker(Path("log.csv"))
    >>> for epoch, loss in enumerate((2.5, 1.5)):
    ...     tracker.log({"epoch": epoch, "loss": loss}, step=epoch)
    >>> Path("log.csv").read_text().split()
    ['epoch,loss', '0,2.5', '1,1.5']
    """

    name = "csv"
    requires_logging_directory = False

    def __init__(self, path: Path):
        super().__init__()
        self.path = path
        self.rows: dict[int, dict[str, Any]] = {}

    @property
    def tracker(self) -> dict[int, dict[str, Any]]:
        return self.rows

    @on_main_process
    def log(self, values: dict[str, Any], step: int | None = None, **kwargs: Any) -> None:
        assert step is not None
        self.rows[step] = values
        text = io.StringIO()
        columns = dict.fromkeys(name for row in self.rows.values() for name in row)
        writer = csv.DictWriter(text, list(columns), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows.values())
        write_whole(self.path, lambda stream: stream.write(text.getvalue().encode()))


def tracker_of(name: str | None, folder: Path) -> Any:
    """What Accelerator takes as `log_with`; None without a tracker.

    Raises:
        UsageError: the tracker's package is not installed.

    >>> tracker_of("csv", Path("output/my_run")).path.name
    'log.csv'
    """
    if name is None:
        return None
    packages = _PACKAGES[name]
    if not any(importlib.util.find_spec(package) for package in packages):
        raise UsageError(f"--tracker {name} needs a package that is not installed: pip install {packages[0]}")
    return CsvTracker(folder / "log.csv") if name == "csv" else name


def start_tracker(accelerator: Accelerator, run: RunSettings, folder: Path, history: list[dict[str, Any]]) -> None:
    """Begin to log, or go on after the epochs of `history`; all processes call this together.

    >>> accelerator = Accelerator(cpu=True, log_with=tracker_of("csv", Path("my_run")))
    >>> start_tracker(accelerator, RunSettings(tracker="csv"), Path("my_run"), history=[{"epoch": 0, "lr": 0.1}])
    >>> accelerator.log({"epoch": 1, "lr": 0.05}, step=1)
    >>> Path("my_run/log.csv").read_text().split()
    ['epoch,lr', '0,0.1', '1,0.05']
    """
    if run.tracker is None:
        return
    settings: dict[str, dict[str, Any]] = {"tensorboard": {"purge_step": len(history)}}
    if run.tracker == "wandb" and accelerator.is_main_process:
        os.environ.setdefault("WANDB_SILENT", "true")
        known = _wandb_run(folder / "wandb_run", anew=run.resume is None)
        settings["wandb"] = {"id": known, "resume": "allow", "name": folder.name, "dir": str(folder)}
    project = "timm_mix" if run.tracker == "wandb" else run.tracker  # else a folder
    with user_errors(f"start the tracker {run.tracker}"):
        try:
            accelerator.init_trackers(project, init_kwargs=settings)
        except BaseException:
            accelerator.trackers = []  # one that has not started cannot be finished
            raise
    if run.tracker == "csv":
        rows = {row["epoch"]: figures_of(row) for row in history}
        accelerator.get_tracker("csv", unwrap=True).update(rows)


def figures_of(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A row of the history without nesting: eval/ensemble/top1, ...

    >>> figures_of({"epoch": 0, "eval": {"ensemble": {"top1": 71.0}}})
    {'epoch': 0, 'eval/ensemble/top1': 71.0}
    """
    flat: dict[str, Any] = {}
    for name, value in row.items():
        flat |= figures_of(value, f"{prefix}{name}/") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _wandb_run(path: Path, *, anew: bool) -> str:
    """The id under which W&B knows a run: that of an earlier start, if this one goes on with it."""
    if anew or not path.is_file():
        write_whole(path, lambda stream: stream.write(uuid.uuid4().hex.encode()))
    return path.read_text()
