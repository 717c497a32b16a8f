"""One line for a mistake of the user."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

__all__ = ["UsageError", "run_script", "user_errors"]

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
)


class UsageError(ValueError):
    """A mistake of the user; scripts print it as one line and exit with 2."""


@contextmanager
def user_errors(what: str) -> Iterator[None]:
    """Turn what a library raises over a setting into a UsageError: "cannot <what>: <reason>"."""
    try:
        yield
    except UsageError:
        raise
    except _CAUSED_BY_SETTINGS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UsageError(f"cannot {what}: {reason}") from error


def run_script(main: Callable[[], object]) -> None:
    """Run a script's main; a UsageError becomes one line on stderr (from one process only) and exit status 2."""
    try:
        main()
    except UsageError as error:
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
