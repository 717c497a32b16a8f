"""One run at a time in a folder."""

import os
from pathlib import Path

from timm_mix.train.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FolderLock"]

_HELD: set[int] = set()  # open files of this process


class FolderLock:
    """Keeps other runs out of a folder until `release`, or the end of the process however it ends.

    Where the file system knows no locks it keeps nobody out.

    >>> one, other = FolderLock(Path("run")), FolderLock(Path("run"))
    >>> one.take()
    >>> other.take()
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: another run is training in run; wait for it, or give another --experiment
    >>> one.release(), other.take()
    (None, None)
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._handle: int | None = None
        self._made = False

    def take(self) -> None:
        """
        Raises:
            UsageError: another run has the folder.
        """
        if fcntl is None or self._handle is not None:
            return
        self._made = not self.folder.exists()
        self.folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.folder, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise UsageError(
                f"another run is training in {self.folder}; wait for it, or give another --experiment"
            ) from None
        except OSError:
            os.close(handle)
            return
        self._handle = handle
        _HELD.add(handle)

    def release(self) -> None:
        """A folder that was made for the lock alone goes again."""
        if self._handle is None:
            return
        os.close(self._handle)
        _HELD.discard(self._handle)
        self._handle = None
        if self._made and not any(self.folder.iterdir()):
            self.folder.rmdir()


def _leave_to_the_parent() -> None:
    """A worker that outlives a killed run would hold its lock."""
    for handle in _HELD:
        os.close(handle)
    _HELD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_parent)
