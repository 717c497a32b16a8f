"""Modules of the user's own, whose methods are known by name once they are imported."""

import importlib
import sys
from collections.abc import Iterable

__all__ = ["import_modules"]


def import_modules(names: Iterable[str]) -> None:
    """Import each, as `python -c "import NAME"` would find it from the working directory.

    Only names that the user gave are for this: those in a checkpoint or in somebody else's results are never imported.

    >>> import_modules(["json"])

    Raises:
        ValueError: there is no such module, or it fails.
    """
    if names and "" not in sys.path:
        sys.path.insert(0, "")  # a console script has its own folder there instead
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            wanted = "give the name of a module, my_methods for my_methods.py"
            raise ValueError(f"cannot import {name!r} ({reason}); {wanted}") from error
