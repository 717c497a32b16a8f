"""The folder of a run's checkpoints: the newest ones by their update, the best one, and last.pt, a name of the newest.

Every file is whole or not there. A killed process leaves at most a scratch file, which the next start removes.
"""

import sys
from pathlib import Path
from typing import Any

from timm_mix.train.checkpoints.content import TornCheckpointError, read_checkpoint, write_checkpoint
from timm_mix.train.errors import UsageError
from timm_mix.train.files import link_whole, write_whole

__all__ = ["CheckpointFolder"]


class CheckpointFolder:
    """Used by the main process alone.

    Files of another run in the folder stay until this run has a checkpoint of its own, as best.pt does until its first
    epoch is scored.

    Args:
        folder: made when it is needed.
        keep: how many of the newest checkpoints stay.

    >>> files = CheckpointFolder(Path("checkpoints"), keep=2)
    >>> for update in (10, 20, 30):
    ...     files.write({"version": 2}, update)
    >>> sorted(path.name for path in files.folder.iterdir())
    ['last.pt', 'update_000000020.pt', 'update_000000030.pt']
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self._own: list[Path] = []  # oldest first

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    def write(self, content: dict[str, Any], update: int, *, best: bool = False) -> None:
        """Write the checkpoint of an update under all its names and remove the oldest.

        Raises:
            OSError: of the file system; the checkpoints that were there are still there.
        """
        path = self.folder / f"update_{update:09d}.pt"
        if best:  # first: a best.pt that is newer than all others is made again, one that is older would stay
            write_whole(self.best, lambda stream: write_checkpoint(content, stream))
            link_whole(self.best, path)
        else:
            write_whole(path, lambda stream: write_checkpoint(content, stream))
        link_whole(path, self.last)
        self._own = [*(known for known in self._own if known != path), path][-self.keep :]
        for stale in set(self._numbered()) - set(self._own):
            stale.unlink(missing_ok=True)

    def find(self, resume: str | None) -> Path | None:
        """What `resume` names: a path, or `auto` for the newest whole checkpoint; None where there is none.

        Raises:
            UsageError: no such file, or one that cannot be read (with `auto`: none of several, or one that is foreign).
        """
        self._remove_scratch()
        if resume is None:
            return None
        if resume != "auto":
            if not Path(resume).is_file():
                raise UsageError(f"--resume wants a checkpoint file or auto, {resume} is no file")
            read_checkpoint(Path(resume))
            return Path(resume)
        return self._newest_whole()

    def _newest_whole(self) -> Path | None:
        candidates = self._numbered() or [path for path in (self.last, self.best) if path.is_file()]
        errors: list[UsageError] = []
        for number, path in enumerate(candidates):
            try:
                read_checkpoint(path)
            except UsageError as error:
                errors.append(error)
                continue
            _warn(errors, f"; going on from {path.name}")
            self._own = [other for other in reversed(candidates[number:]) if other in self._numbered()]
            return path
        if len(errors) == 1 and isinstance(errors[0], TornCheckpointError) and self._numbered():
            _warn(errors, ", the only one; starting anew")  # a torn file costs the newest checkpoint, no more
        elif errors:
            raise UsageError(f"{_fault(errors[0])}, nor any other in its folder; remove them to start anew")
        return None

    def _numbered(self) -> list[Path]:
        """Newest first."""
        return sorted(self.folder.glob("update_*.pt"), reverse=True)

    def _remove_scratch(self) -> None:
        for name in ("update_*.pt", "last.pt", "best.pt"):
            for scratch in self.folder.glob(f".{name}.*"):
                scratch.unlink(missing_ok=True)


def _fault(error: UsageError) -> str:
    """Without its advice."""
    return str(error).rpartition(";")[0]


def _warn(errors: list[UsageError], consequence: str) -> None:
    for error in errors:
        print(f"warning: {_fault(error)}{consequence}", file=sys.stderr)
