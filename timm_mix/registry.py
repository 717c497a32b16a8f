"""One registration per kind: the names of tasks, mixers, blocks and divisions, and what stands behind them."""

import difflib
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar

__all__ = ["Registry", "check_takes", "one_of"]

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """What is registered under its name, in the order of registration: a live mapping that only `register` changes.

    Args:
        kind: what an entry is, for the messages: `task`, `mixer`, ...
        check: (name, entry) -> None; raises ValueError where an entry lacks what is needed.

    >>> def check(name, entry):
    ...     if not callable(entry):
    ...         raise ValueError(f"colour {name!r} must be callable, got {entry!r}")
    >>> colours = Registry("colour", check)
    >>> @colours.register("grey")
    ... def grey(level):
    ...     return [level] * 3
    >>> list(colours), colours.find("grey")(7)
    (['grey'], [7, 7, 7])
    >>> colours.find("gray")
    Traceback (most recent call last):
    ValueError: colour must be one of grey, got 'gray'; did you mean grey?
    """

    def __init__(self, kind: str, check: Callable[[str, Any], None]):
        self.kind = kind
        self._check = check
        self._entries: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __reversed__(self) -> Iterator[str]:
        return reversed(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def register(self, name: str, entry: Any = None) -> Any:
        """Put `entry` behind `name` and give it back; without one, a decorator that does so.

        Raises:
            ValueError: a name that is none, or is taken; an entry that lacks what its kind needs.
        """
        if not isinstance(name, str) or not name or any(letter.isspace() for letter in name):
            raise ValueError(f"the name of a {self.kind} must be text without spaces, got {name!r}")
        if entry is None:
            return partial(self.register, name)
        if name in self._entries:
            raise ValueError(f"{self.kind} {name!r} is registered already ({self._entries[name]!r}); take another name")
        self._check(name, entry)
        self._entries[name] = entry
        return entry

    def find(self, name: Any) -> T:
        """What stands behind `name`.

        Raises:
            ValueError: nothing does; the message has all names, and the one that was meant where there is a near miss.
        """
        return self._entries[one_of(self.kind, name, self._entries)]

    @contextmanager
    def scoped(self) -> Iterator[None]:
        """What is registered inside is forgotten on leaving: for tests and notebooks."""
        before = dict(self._entries)
        try:
            yield
        finally:
            self._entries = before


def one_of(what: str, given: Any, known: Any) -> Any:
    """`given`, if it is one of the names `known`.

    Raises:
        ValueError: it is none of them.
    Args:
        what: what the names are, for the message.

    >>> one_of("block", "cut", ("linear", "cut"))
    'cut'
    >>> one_of("block", "cutt", ("linear", "cut"))
    Traceback (most recent call last):
    ValueError: block must be one of linear, cut, got 'cutt'; did you mean cut?
    """
    names = list(known)
    if isinstance(given, str) and given in names:
        return given
    near = difflib.get_close_matches(given, names, n=1) if isinstance(given, str) else []
    meant = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"{what} must be one of {', '.join(names)}, got {given!r}{meant}")


def check_takes(what: str, function: Any, wanted: str, *args: Any, **kwargs: Any) -> None:
    """Check that a function or class can be called with these arguments; others it may ask for besides.

    Args:
        wanted: how it is called, for the message.
    Raises:
        ValueError: it cannot.

    >>> check_takes("fill", lambda kappa, shape: kappa, "(kappa, shape)", None, None)
    >>> check_takes("draw", lambda kappa: kappa, "(kappa, rng=)", None, rng=None)
    Traceback (most recent call last):
    ValueError: draw must take (kappa, rng=), got <function <lambda> at ...>: got an unexpected keyword argument 'rng'
    """
    try:
        inspect.signature(function).bind_partial(*args, **kwargs)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{what} must take {wanted}, got {function!r}: {error}") from None
