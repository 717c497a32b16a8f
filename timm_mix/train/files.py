"""Files that are either whole or not there."""

import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from timm_mix.train.errors import UsageError

__all__ = ["check_archive", "check_folder", "link_whole", "write_json", "write_whole"]


def write_whole(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write to a temporary name beside `path`, sync, rename, sync the folder.

    On failure the old file stays as it was. A process that is killed leaves a file `.NAME.*`.

    >>> write_whole(Path("notes/first.txt"), lambda stream: stream.write(b"whole"))
    >>> write_whole(Path("notes/first.txt"), lambda stream: stream.write(b"half") / 0)
    Traceback (most recent call last):
        ...
    ZeroDivisionError: division by zero
    >>> [(path.name, path.read_text()) for path in Path("notes").iterdir()]
    [('first.txt', 'whole')]
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
        _sync_folder(path.parent)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def check_folder(folder: Path, flag: str = "--output") -> None:
    """What cannot be written at the end is an error at the beginning; nothing is left there.

    Raises:
        UsageError: the folder cannot be made, or nothing be written into it.

    >>> written = Path("taken").write_text("a file")
    >>> check_folder(Path("taken/run"))
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: the folder taken/run cannot be made, .../taken is a file: give another --output
    """
    if "\0" in str(folder):
        raise UsageError(f"a folder's name cannot hold the character 0, got {str(folder)!r}: give another {flag}")
    if len(os.fsencode(folder.name)) > 255:  # of no file system that is in use
        raise UsageError(
            f"a folder's name has 255 bytes at most, {folder.name} has {len(folder.name)} characters: shorten it"
        )
    present = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not present.is_dir():
        raise UsageError(f"the folder {folder} cannot be made, {present} is a file: give another {flag}")
    try:
        with tempfile.TemporaryDirectory(prefix=".", dir=present):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {folder} ({error.strerror or error}): give another {flag}") from error


def check_archive(path: str | Path) -> None:
    """A file of torch.save's is whole: torch itself reads damaged numbers without a word.

    Raises:
        UsageError: an entry whose bytes do not have its checksum.

    >>> torch.save({"weight": torch.zeros(100)}, "whole.pt")
    >>> data = bytearray(Path("whole.pt").read_bytes())
    >>> data[data.index(bytes(400)) + 50] = 1
    >>> written = Path("damaged.pt").write_bytes(data)
    >>> check_archive("damaged.pt")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: damaged.pt is damaged, whole/data/0 has another checksum than it was ...
    """
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (zipfile.BadZipFile, zlib.error, OSError, NotImplementedError, RuntimeError) as error:
        raise UsageError(f"{path} is damaged ({error}); give a whole file") from error
    if bad is not None:
        raise UsageError(f"{path} is damaged, {bad} has another checksum than it was written with; give a whole file")


def link_whole(source: Path, target: Path) -> None:
    """A second name for a file, which takes no space; a copy where the file system has no hard links.

    >>> written = Path("update_7.pt").write_text("weights")
    >>> link_whole(Path("update_7.pt"), Path("last.pt"))
    >>> Path("last.pt").read_text(), Path("last.pt").samefile("update_7.pt")
    ('weights', True)
    """
    scratch = target.parent / f".{target.name}.{os.getpid()}"
    scratch.unlink(missing_ok=True)
    try:
        os.link(source, scratch)
    except OSError:
        with source.open("rb") as stream:
            write_whole(target, lambda copy: shutil.copyfileobj(stream, copy))
        return
    os.replace(scratch, target)
    scratch.unlink(missing_ok=True)  # rename does nothing with two names of one file
    _sync_folder(target.parent)


def write_json(path: Path, content: Any) -> None:
    """As a file that people read, too.

    >>> write_json(Path("results.json"), {"top1": 71.5})
    >>> json.loads(Path("results.json").read_text())
    {'top1': 71.5}
    """
    text = json.dumps(content, indent=2) + "\n"
    write_whole(path, lambda stream: stream.write(text.encode()))


def _sync_folder(folder: Path) -> None:
    """Only then does the name survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
