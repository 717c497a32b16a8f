"""Training checkpoints: one file with everything that the next epoch needs, readable with weights_only=True."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from timm.models import clean_state_dict
from timm.task import TrainingTask

from trainkit.errors import UsageError, user_errors
from trainkit.files import write_whole

__all__ = ["find_checkpoint", "load_checkpoint", "read_checkpoint", "save_checkpoint"]

VERSION = 1
_KEYS = {"version", "epoch", "config", "state_dict", "task_states", "optimizer", "schedule", "scaler", "history"}


def save_checkpoint(
    path: Path,
    *,
    task: TrainingTask,
    optimizer: Any,
    schedule: Any,
    scaler: Any,
    epoch: int,
    history: list[dict[str, Any]],
    config: dict[str, Any],
    main: bool,
    whole: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
) -> None:
    """Save after `epoch` (counted from 0). All processes call this, the main one writes.

    `whole` makes the run's content, on the main process, from what each process has; None: the main one has it all.
    """
    own = task.get_task_state()
    shared = () if main else getattr(task, "shared_state", ())  # alike everywhere: the main process' is enough
    task_states = gather_object([{name: value for name, value in own.items() if name not in shared}])
    if not main and whole is None:
        return
    content = {
        "version": VERSION,
        "epoch": epoch,
        "config": config,
        "history": history,
        "task_states": task_states,
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict() if schedule is not None else None,
        "scaler": scaler.state_dict() if scaler is not None else None,
        "state_dict": task.get_checkpoint_state()["state_dict"],
    }
    if task.has_ema():
        content["state_dict_ema"] = task.get_checkpoint_state(ema=True)["state_dict_ema"]
    if whole is not None:
        content = whole(content)
    if main:
        write_whole(path, lambda stream: torch.save(content, stream))


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """`auto` is the run's own newest checkpoint, or None when it has none; everything else is a path.

    Raises:
        UsageError: no such file.
    """
    path = folder / "checkpoints" / "last.pt" if resume == "auto" else Path(resume)
    if path.is_file():
        return path
    if resume == "auto":
        return None
    raise UsageError(f"--resume wants a checkpoint file or auto, {resume} is no file")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this trainer.

    Raises:
        UsageError: torn, foreign, or another version.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torn files fail in many ways: zip, pickle, end of file, ...
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise UsageError(f"cannot read checkpoint {path} ({reason}); it is torn or not ours, give another") from error
    missing = _KEYS - set(content) if isinstance(content, dict) else _KEYS
    if missing:
        raise UsageError(f"{path} is no checkpoint of this trainer (no {', '.join(sorted(missing))}); give another")
    if content["version"] != VERSION:
        raise UsageError(f"checkpoint {path} has version {content['version']}, wanted {VERSION}; start anew")
    return content


def load_checkpoint(
    content: dict[str, Any], *, task: TrainingTask, optimizer: Any, schedule: Any, scaler: Any, rank: int
) -> tuple[int, list[dict[str, Any]]]:
    """Put a checkpoint back; returns the next epoch and the history so far.

    With another number of processes than before, the ranks that have no state of their own start a fresh generator.
    """
    with user_errors("resume: the checkpoint does not fit this recipe"):
        states = content["task_states"]
        task_state = {**states[0], **states[rank]} if rank < len(states) else states[0]
        task.load_checkpoint_state(clean_state_dict(content["state_dict"]), task_state or None)
        if task.has_ema():  # a run without averaging that goes on with it starts from the weights it has
            averaged = content.get("state_dict_ema", content["state_dict"])
            task.load_checkpoint_state(clean_state_dict(averaged), ema=True)
        optimizer.load_state_dict(content["optimizer"])
        if schedule is not None and content["schedule"] is not None:
            schedule.load_state_dict(content["schedule"])
        if scaler is not None and content["scaler"] is not None:
            scaler.load_state_dict(content["scaler"])
    return content["epoch"] + 1, content["history"]
