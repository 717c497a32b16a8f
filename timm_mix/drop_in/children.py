"""Python scripts that a script starts, such as those of timm's bulk_runner.py: they know our names, too.

The command of the child is rewritten, `python child.py ...` to `python -m timm_mix.drop_in child.py ...`, where the
script starts it through subprocess. Nothing in the environment changes, so that no other process is touched.
"""

import functools
import inspect
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["children_know_us", "rewritten"]

FLAGS = "bBdEiIOPqsSuvVx"  # of python, those that take no value
VALUED = ("-W", "-X", "--check-hash-based-pycs")
WITH_VALUE = ("-W", "-X", "--check-hash-based-pycs=")  # in the same word
_STANDARD = Path(sysconfig.get_path("stdlib")).resolve()


@contextmanager
def children_know_us(imports: Sequence[str] = ()) -> Iterator[None]:
    """What is started by subprocess in here is rewritten; on leaving, subprocess is as it was.

    Args:
        imports: modules that the children import first, too.

    >>> written = Path("child.py").write_text("import sys; print('timm_mix' in sys.modules)")
    >>> with children_know_us():
    ...     subprocess.run([sys.executable, "child.py"], capture_output=True, text=True).stdout
    'True\\n'
    """
    original = subprocess.Popen.__init__
    signature = inspect.signature(original)

    @functools.wraps(original)
    def start(*args: Any, **kwargs: Any) -> None:
        bound = signature.bind(*args, **kwargs)
        given = bound.arguments
        if not given.get("shell") and given.get("executable") is None:
            given["args"] = rewritten(given["args"], imports, given.get("cwd"), given.get("env"))
        original(*bound.args, **bound.kwargs)

    subprocess.Popen.__init__ = start  # type: ignore[method-assign]
    try:
        yield
    finally:
        subprocess.Popen.__init__ = original  # type: ignore[method-assign]


def rewritten(
    command: Any, imports: Sequence[str] = (), cwd: Any = None, environment: Mapping[Any, Any] | None = None
) -> Any:
    """The command under drop_in, where it is a list: this Python, its options, and a script; any other as it is.

    Scripts of installed packages stay as they are: compilers and loggers start such processes for themselves.

    >>> written = Path("child.py").write_text("")
    >>> rewritten(["python", "-c", "pass"])
    ['python', '-c', 'pass']
    >>> rewritten([sys.executable, "-u", "child.py", "--model", "mixmo"], imports=["my_methods"])[1:]
    ['-u', '-m', 'timm_mix.drop_in', '--import', 'my_methods', 'child.py', '--model', 'mixmo']
    """
    if isinstance(command, (str, bytes, os.PathLike)) or not isinstance(command, Sequence):
        return command
    words = [os.fspath(word) for word in command]
    if not all(isinstance(word, str) for word in words) or not words or not _is_this_python(words[0], environment):
        return command
    place = _place_of_script(words)
    if place is None or not _is_own(Path(cwd or ".", words[place])):
        return command
    ours = ["-m", "timm_mix.drop_in", *(word for module in imports for word in ("--import", module))]
    return [*words[:place], *ours, *words[place:]]


def _is_this_python(program: str, environment: Mapping[Any, Any] | None) -> bool:
    """By whatever name; another environment's Python need not have this package."""
    found = shutil.which(program, path=None if environment is None else environment.get("PATH"))
    if not found or not sys.executable:
        return False
    one, other = Path(found).absolute(), Path(sys.executable).absolute()
    return one.parent.resolve() == other.parent.resolve() and one.resolve() == other.resolve()


def _place_of_script(words: Sequence[str]) -> int | None:
    """Behind Python's own options; None where it runs a module, a string, or what comes in."""
    place = 1
    while place < len(words) and words[place].startswith("-"):
        word = words[place]
        if word in VALUED:
            place += 1
        elif word == "-" or (word[1:].strip(FLAGS) and not word.startswith(WITH_VALUE)):
            return None
        place += 1
    return place if place < len(words) else None


def _is_own(script: Path) -> bool:
    path = script.resolve()
    installed = _STANDARD in path.parents or {"site-packages", "dist-packages"} & set(path.parts)
    return path.suffix == ".py" and path.is_file() and not installed
