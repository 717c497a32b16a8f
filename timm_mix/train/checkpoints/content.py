"""What a checkpoint holds, and its file: a zip archive that torch.load reads, with a digest as its comment.

torch.load itself does not notice every flipped bit: the digest is that of the file as torch.save writes it.
"""

import hashlib
import os
import zipfile
from pathlib import Path
from pickle import UnpicklingError
from typing import IO, Any

import torch
from accelerate.utils import gather_object, send_to_device
from timm.models import clean_state_dict
from timm.task import TrainingTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from timm_mix.train.errors import UsageError, user_errors

__all__ = ["VERSION", "TornCheckpointError", "collect", "put_back", "read_checkpoint", "write_checkpoint"]

VERSION = 2
_NO_COMMENT = b"\0\0"  # the end of a zip archive without one
_KEYS = {
    *("version", "progress", "config", "facts", "state_dict", "task_states", "own_states", "optimizer", "schedule"),
    "scaler",
}


def collect(
    task: TrainingTask, optimizer: Any, schedule: Any, scaler: Any, sums: dict[str, Tensor], *, main: bool = True
) -> dict[str, Any]:
    """The state of the parts of a run; all processes call this together.

    main: this is the process whose word counts for what a task has alike everywhere (`shared_state`).
    task_states, own_states: of every process; the latter is what the networks have of their own in each (BatchNorm
        statistics, what the task averages beside the model) and `sums`.

    >>> from timm.task import ClassificationTask
    >>> task = ClassificationTask(nn.Linear(2, 3), nn.CrossEntropyLoss(), verbose=False)
    >>> content = collect(task, torch.optim.SGD(task.parameters(), lr=0.1), None, None, {"loss": torch.tensor(1.5)})
    >>> sorted(content)
    ['optimizer', 'own_states', 'scaler', 'schedule', 'state_dict', 'task_states']
    """
    states = _without_shared(task, task.get_task_state(), main), _own_state(task, sums, main)
    processes = gather_object([send_to_device(states, "cpu")])
    content = {
        "task_states": [state for state, _ in processes],
        "own_states": [state for _, state in processes],
        "optimizer": optimizer.state_dict(),
        "schedule": _schedule_state(schedule),
        "scaler": scaler.state_dict() if scaler is not None else None,
        "state_dict": task.get_checkpoint_state()["state_dict"],
    }
    if task.has_ema():
        content["state_dict_ema"] = task.get_checkpoint_state(ema=True)["state_dict_ema"]
    return content


def put_back(
    content: dict[str, Any],
    *,
    task: TrainingTask,
    optimizer: Any,
    schedule: Any,
    scaler: Any,
    share: int = 0,
    part: int = 0,
    parts: int = 1,
) -> dict[str, Tensor]:
    """Undo `collect`; returns this process's `sums`.

    Args:
        share, part, parts: the process holds this part of this replica.
    Raises:
        UsageError: the content does not fit the parts of the run.

    >>> from timm.task import ClassificationTask
    >>> def parts():
    ...     task = ClassificationTask(nn.Linear(2, 3), nn.CrossEntropyLoss(), verbose=False)
    ...     return {"task": task, "optimizer": torch.optim.SGD(task.parameters()), "schedule": None, "scaler": None}
    >>> then, now = parts(), parts()
    >>> sums = put_back(collect(**then, sums={}), **now)
    >>> all(map(torch.equal, then["task"].parameters(), now["task"].parameters()))
    True
    """
    with user_errors("resume: the checkpoint does not fit this recipe"):
        own = _own(content, share, part, parts)
        state = {**content["task_states"][0], **content["task_states"][share]}
        task.load_checkpoint_state(clean_state_dict(content["state_dict"]), state)
        if task.has_ema():
            averaged = {**content["own_states"][0]["task_ema"], **own["task_ema"]}
            task.load_checkpoint_state(clean_state_dict(content["state_dict_ema"]), averaged, ema=True)
        for name, module in _modules(task).items():
            for key, buffer in module.named_buffers():
                if key in own["buffers"].get(name, {}):
                    buffer.copy_(own["buffers"][name][key])
        optimizer.load_state_dict(content["optimizer"])
        if schedule is not None:
            _load_schedule(schedule, content["schedule"])
        if scaler is not None and content["scaler"] is not None:
            scaler.load_state_dict(content["scaler"])
    return send_to_device(own["sums"], task.device)


def write_checkpoint(content: dict[str, Any], stream: IO[bytes]) -> None:
    """Write to a stream that can seek.

    Raises:
        OSError: of the stream, also where torch would hide it.

    >>> with open("run.pt", "wb") as stream:
    ...     write_checkpoint({"version": VERSION}, stream)
    >>> torch.load("run.pt")
    {'version': 2}
    """
    watched: Any = _Watched(stream)
    try:
        torch.save(content, watched)
    except Exception as error:
        raise (watched.error or error) from None
    digest = watched.digest.digest()
    stream.seek(-len(_NO_COMMENT), os.SEEK_END)
    stream.write(_length(digest) + digest)


class TornCheckpointError(UsageError):
    """A file that is not whole.

    >>> written = Path("torn.pt").write_text("half a checkpoint")
    >>> read_checkpoint(Path("torn.pt"))
    Traceback (most recent call last):
        ...
    timm_mix.train.checkpoints.content.TornCheckpointError: cannot read checkpoint torn.pt (no whole zip archive); ...
    """


def read_checkpoint(path: Path, *, check: bool = True) -> dict[str, Any]:
    """Read a checkpoint of this trainer; and `check` its digest.

    Raises:
        UsageError: foreign, or another version; TornCheckpointError: torn or damaged.

    >>> with open("old.pt", "wb") as stream:
    ...     write_checkpoint({"version": 1}, stream)
    >>> read_checkpoint(Path("old.pt"))
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: checkpoint old.pt has version 1, wanted 2; start anew
    """
    advice = "it is torn or not ours, give another"
    if not zipfile.is_zipfile(path):
        raise TornCheckpointError(f"cannot read checkpoint {path} (no whole zip archive); {advice}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torn files fail in many ways: zip, pickle, end of file, ...
        foreign = "more than tensors and plain values in it"  # torch says how to run a stranger's code
        reason = foreign if isinstance(error, UnpicklingError) else " ".join(str(error).split())[:120]
        reason = reason or type(error).__name__
        raise TornCheckpointError(f"cannot read checkpoint {path} ({reason}); {advice}") from error
    version = content.get("version") if isinstance(content, dict) else None
    if isinstance(version, int) and version != VERSION:
        raise UsageError(f"checkpoint {path} has version {version}, wanted {VERSION}; start anew")
    missing = _KEYS - set(content) if isinstance(content, dict) else _KEYS
    if missing:
        raise UsageError(f"{path} is no checkpoint of this trainer (no {', '.join(sorted(missing))}); give another")
    if check and not _has_its_digest(path):
        raise TornCheckpointError(f"cannot read checkpoint {path} (its digest is another one); {advice}")
    return content


class _Watched:
    """A stream that takes a digest, and remembers what went wrong: torch reports a full disk as an internal error."""

    def __init__(self, stream: IO[bytes]):
        self.stream = stream
        self.error: OSError | None = None
        self.digest = hashlib.sha256()

    def write(self, data: Any) -> int:
        try:
            written = self.stream.write(data)
        except OSError as error:
            self.error = error
            raise
        self.digest.update(data)
        return written

    def flush(self) -> None:
        self.stream.flush()


def _has_its_digest(path: Path) -> bool:
    digest = hashlib.sha256()
    tail = 2 + digest.digest_size
    rest = path.stat().st_size - tail
    with path.open("rb") as stream:
        while rest > 0 and (block := stream.read(min(rest, 1 << 20))):
            digest.update(block)
            rest -= len(block)
        digest.update(_NO_COMMENT)
        return stream.read() == _length(digest.digest()) + digest.digest()


def _length(comment: bytes) -> bytes:
    """As a zip archive ends: two bytes, the smaller one first, then the comment."""
    return len(comment).to_bytes(2, "little")


def _modules(task: TrainingTask) -> dict[str, nn.Module]:
    """The networks of a task: what is trained, evaluated and averaged."""
    found = {"trained": task.get_trainable_module(), "evaluated": task.get_eval_model()}
    if task.has_ema():
        found["averaged"] = task.get_trainable_module(ema=True)
    return {name: unwrap_model(module) for name, module in found.items()}


def _own_state(task: TrainingTask, sums: dict[str, Tensor], main: bool) -> dict[str, Any]:
    buffers = {name: dict(module.named_buffers()) for name, module in _modules(task).items()}
    averaged = _without_shared(task, task.get_task_state(ema=True), main) if task.has_ema() else {}
    return {"task_ema": averaged, "buffers": buffers, "sums": sums}


def _without_shared(task: TrainingTask, state: dict[str, Any], main: bool) -> dict[str, Any]:
    """What a task has alike in all processes (`shared_state`) comes from the main one alone."""
    shared = () if main else getattr(task, "shared_state", ())
    return {name: value for name, value in state.items() if name not in shared}


def _own(content: dict[str, Any], share: int, part: int, parts: int) -> dict[str, Any]:
    """Of the own states that of this process, or of a run that divided its model otherwise, all of this replica's."""
    made_with = len(content["own_states"]) // len(content["task_states"])
    replica = content["own_states"][share * made_with : (share + 1) * made_with]
    if made_with == parts:
        return replica[part]
    names = replica[0]["buffers"]
    joined = {name: {key: b for own in replica for key, b in own["buffers"][name].items()} for name in names}
    return {**replica[0], "buffers": joined}


def _schedule_state(schedule: Any) -> dict[str, Any] | None:
    """timm's plateau schedule leaves out the patience that it has spent, which torch's own state has."""
    if schedule is None:
        return None
    inner = getattr(schedule, "lr_scheduler", None)
    return {"timm": schedule.state_dict(), "torch": None if inner is None else inner.state_dict()}


def _load_schedule(schedule: Any, state: dict[str, Any]) -> None:
    schedule.load_state_dict(state["timm"])
    if state["torch"] is not None:
        schedule.lr_scheduler.load_state_dict(state["torch"])
