"""One case of the table: what is tried, in a process of its own, and how it must end."""

import contextlib
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from timm_mix.train.errors import run_script

__all__ = ["Case", "Outcome", "try_case"]

MEMORY = 12 << 30  # bytes of address space beyond what the process has: more is refused, not tried
LONGEST = 600  # characters of an error


@dataclass(frozen=True)
class Case:
    """Something that a user may get wrong, or that must work all the same.

    attempt: a command's `main` with its arguments, or any call; gets the folder of the material.
    says: what the one line must contain; None: it has to succeed.
    errors: what a call may raise; of a command every error is caught by run_script.
    """

    area: str
    name: str
    attempt: Callable[[Path], object]
    says: str | None
    errors: tuple[type[Exception], ...] = ()


@dataclass(frozen=True)
class Outcome:
    """verdict: "as it should", or what was wrong."""

    verdict: str
    line: str
    seconds: float

    @property
    def good(self) -> bool:
        return self.verdict == "as it should"


def try_case(case: Case, material: Path, patience: float) -> Outcome:
    """In a fork, so that torch is imported once; the material must be as it was."""
    before = _listing(material)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        child = os.fork()
        if child == 0:
            _in_child(case, material, Path(scratch))
        status = _wait(child, patience)
        out = (Path(scratch) / "stderr").read_text(errors="replace") if (Path(scratch) / "stderr").exists() else ""
    seconds = time.perf_counter() - begun
    lines = [line for line in out.splitlines() if line.strip()]
    verdict = _verdict(case, status, lines)
    if verdict == "as it should" and _listing(material) != before:
        verdict = "it changed files that it was given"
    return Outcome(verdict, lines[-1][:LONGEST] if lines else "", seconds)


def _in_child(case: Case, material: Path, scratch: Path) -> None:
    status = 1
    try:
        os.setpgid(0, 0)
        os.chdir(scratch)
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT), stream)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # pytest and redirect_stdout have their own
        size = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(resource.RLIMIT_NPROC, (2_000, 2_000))
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, resource.RLIM_INFINITY))
        try:
            if case.errors:
                case.attempt(material)
            else:
                run_script(lambda: case.attempt(material))
            status = 0
        except case.errors as error:
            print(f"error: {error}", file=sys.stderr)
            status = 2
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _wait(child: int, patience: float) -> int | None:
    """The exit status; None where it had to be ended."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)  # workers that it left
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _verdict(case: Case, status: int | None, lines: Sequence[str]) -> str:
    if status is None:
        return "it did not end"
    if any(line.startswith("Traceback") for line in lines):
        return "a traceback"
    if case.says is None:
        return "as it should" if status == 0 else f"status {status}, wanted success"
    if status == 0:
        return "a wrong success"
    if status != 2:
        return f"status {status}, wanted 2"
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"{len(lines)} lines, wanted one that begins with error:"
    if case.says not in lines[0]:
        return f"another line than one with {case.says!r}"
    return "as it should" if len(lines[0]) < LONGEST else "a line that no one reads to its end"


def _listing(folder: Path) -> list[tuple[str, int, int]]:
    found = []
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        found.append((str(path), about.st_size, about.st_mtime_ns))
    return found
