"""One line for a mistake of the user."""

import difflib
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pickle import PickleError

import torch
from safetensors import SafetensorError

__all__ = ["Stopped", "UsageError", "check_keys", "nearest", "run_script", "user_errors"]

_CAUSED_BY_SETTINGS = (
    ValueError,
    TypeError,
    KeyError,
    AttributeError,
    AssertionError,
    RuntimeError,
    OSError,
    ImportError,
    SafetensorError,  # a torn file of weights
    EOFError,
    PickleError,
)
LONGEST_REASON = 400  # characters


class UsageError(ValueError):
    """A mistake of the user; scripts print it as one line and exit with 2.

    >>> raise UsageError("batch_size must be >= 1, got 0")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: batch_size must be >= 1, got 0
    """


class Stopped(Exception):  # noqa: N818 - nothing is wrong with the run
    """A signal ended a run that has been saved; scripts print it as one line and exit with 128 + its number.

    >>> Stopped("stopped by SIGTERM after update 7, which is saved", 15).status
    143
    """

    def __init__(self, line: str, number: int):
        super().__init__(line)
        self.status = 128 + number


@contextmanager
def user_errors(what: str) -> Iterator[None]:
    """Turn what a library raises over a setting into a UsageError: "cannot <what>: <reason>".

    >>> with user_errors("create the optimizer"):
    ...     torch.optim.SGD([torch.zeros(3)], lr=-1.0)
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: cannot create the optimizer: Invalid learning rate: -1.0
    """
    try:
        yield
    except UsageError:
        raise
    except _CAUSED_BY_SETTINGS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if len(reason) > LONGEST_REASON:  # torch lists every weight that it misses
            reason = f"{reason[:LONGEST_REASON]} ..."
        raise UsageError(f"cannot {what}: {reason}") from error


def check_keys(where: str, keys: Iterable[object], known: Collection[str], otherwise: str) -> None:
    """An unknown key is a UsageError with the nearest known one, or with `otherwise` where none is near.

    >>> check_keys("recipe mine.yaml", ["lr", "epoch"], ["lr", "epochs"], "see train --help")
    Traceback (most recent call last):
        ...
    timm_mix.train.errors.UsageError: recipe mine.yaml has an unknown key 'epoch'; did you mean 'epochs'?
    """
    for key in keys:
        if key not in known:
            raise UsageError(f"{where} has an unknown key {key!r}; {nearest(str(key), known) or otherwise}")


def nearest(word: str, known: Iterable[str]) -> str:
    """What a wrong word may have meant, as a question; empty where nothing is near.

    >>> nearest("cosin", ["cosine", "step"]), nearest("linear", ["cosine", "step"])
    ("did you mean 'cosine'?", '')
    """
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"did you mean {near[0]!r}?" if near else ""


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main; a UsageError becomes one line on stderr and exit status 2, Stopped its own status.

    Who reads the output may leave (`| head`): the script ends then, with 141 as the shell's own tools.

    >>> def main():
    ...     raise UsageError("batch_size must be >= 1, got 0")
    >>> run_script(main)  # stderr has the one line
    Traceback (most recent call last):
        ...
    SystemExit: 2
    """
    try:
        main()
        sys.stdout.flush()
    except UsageError as error:
        _say(f"error: {error}")
        sys.exit(2)
    except Stopped as stopped:
        _say(str(stopped))
        sys.exit(stopped.status)
    except (MemoryError, torch.OutOfMemoryError) as error:
        reason = " ".join(str(error).split()) or "more than this machine has"
        _say(f"error: not enough memory ({reason}); lower --batch-size or --img-size, or take a smaller network")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(141)


def _say(line: str) -> None:
    """From one process only."""
    if int(os.environ.get("RANK", "0")) == 0:
        print(_LONG_WORD.sub(_shortened, line), file=sys.stderr)


_LONG_WORD = re.compile(r"\S{300,}")  # a number of thousands of digits, a file that was taken for a name


def _shortened(word: re.Match[str]) -> str:
    text = word.group()
    return f"{text[:60]}...{text[-20:]} ({len(text):,} characters)"
