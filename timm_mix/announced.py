"""What a Hub announces of a file, looked at before huggingface_hub uses it.

huggingface_hub names the file in the cache as the ETag says, its folder as X-Repo-Commit says, and fetches it from
where Location says. A broken or hostile endpoint (HF_ENDPOINT, a mirror, a proxy) may put anything there: `../..` would
be written outside of the cache. Within `checked_announcements` such an answer is refused; nothing has been written yet.
"""

import functools
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import file_download

__all__ = ["AnnouncementError", "check_announcement", "checked_announcements"]

# of digests, of mirrors' tags and of commits; nothing that a file system takes for more than a name
_NAME = re.compile(r"[0-9A-Za-z](?:[0-9A-Za-z._+=@,~-]{0,126}[0-9A-Za-z_+=~-])?")
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # names that Windows gives to no file
_ADVICE = "nothing is written; look at HF_ENDPOINT, and for a proxy in between"
_checking: ContextVar[bool] = ContextVar("timm_mix_checks_announcements", default=False)


class AnnouncementError(RuntimeError):
    """A header that cannot be used as it is meant; one line. The functions of timm_mix.hub make their HubError of it.

    >>> raise AnnouncementError("cdn.example gives config.json the ETag '../x', wanted ...")
    Traceback (most recent call last):
    timm_mix.announced.AnnouncementError: cdn.example gives config.json the ETag '../x', wanted ...
    """


@contextmanager
def checked_announcements() -> Iterator[None]:
    """Whatever huggingface_hub downloads in here, in this thread, has its headers checked first.

    Raises:
        AnnouncementError: from the download, one line; see `check_announcement`.

    >>> with checked_announcements():
    ...     pass  # hf_hub_download(...), or timm.create_model(..., pretrained=True)
    """
    _look_first()
    token = _checking.set(True)
    try:
        yield
    finally:
        _checking.reset(token)


def check_announcement(url: str, announced: Any) -> None:
    """Refuse what cannot be used as it is meant.

    Args:
        url: what was asked for.
        announced: has commit_hash, etag, location, size (bytes) and xet_file_data, as huggingface_hub's HfFileMetadata;
            None for what was not announced, which is huggingface_hub's to refuse.
    Raises:
        AnnouncementError: an etag, commit or Xet hash that is no plain name, a location that is no http(s) address, a
            size < 0.

    >>> from types import SimpleNamespace as Announced
    >>> url = "https://hub.example/me/digits/resolve/main/config.json"
    >>> more = {"commit_hash": "3f2a", "location": url, "size": 7, "xet_file_data": None}
    >>> check_announcement(url, Announced(etag="9c1d", **more))
    >>> check_announcement(url, Announced(etag="../../x", **more))
    Traceback (most recent call last):
        ...
    timm_mix.announced.AnnouncementError: hub.example gives config.json the ETag '../../x', wanted a plain name ...
    """
    xet = getattr(announced, "xet_file_data", None)
    names = {"ETag": announced.etag, "X-Repo-Commit": announced.commit_hash}
    addresses = {"Location": announced.location}
    if xet is not None:
        names["X-Xet-Hash"], addresses["address for Xet"] = xet.file_hash, xet.refresh_route
    for what, value in names.items():
        if value is not None and not _is_plain(value):
            raise _refusal(url, what, value, "a plain name of 1 to 128 letters and digits")
    for what, value in addresses.items():
        if value is not None and not _is_address(value):
            raise _refusal(url, what, value, "an http(s) address")
    if announced.size is not None and announced.size < 0:
        raise _refusal(url, "size", str(announced.size), "a number of bytes")


def _is_plain(name: str) -> bool:
    return _NAME.fullmatch(name) is not None and _DEVICE.fullmatch(name) is None


def _is_address(text: str) -> bool:
    try:
        parts = urlsplit(text)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a host that is none
        return False
    return fits and re.search(r"[\x00-\x20\x7f]", text) is None


def _refusal(url: str, what: str, value: str, wanted: str) -> AnnouncementError:
    asked, shown = urlsplit(url), repr(value if len(value) <= 40 else f"{value[:37]}...")
    file = asked.path.rpartition("/")[2]
    return AnnouncementError(f"{asked.netloc} gives {file} the {what} {shown}, wanted {wanted}; {_ADVICE}")


def _unreadable(url: str, error: ValueError) -> AnnouncementError:
    asked = urlsplit(url)
    file = asked.path.rpartition("/")[2]
    return AnnouncementError(f"{asked.netloc} gives {file} an address that cannot be read ({error}); {_ADVICE}")


def _look_first() -> None:
    """Put the check behind the one function by which huggingface_hub learns of a file; without effect elsewhere."""
    ask = file_download.get_hf_file_metadata
    if getattr(ask, "checks_announcements", False):
        return

    @functools.wraps(ask)
    def ask_and_look(*args: Any, **kwargs: Any) -> Any:
        if not _checking.get():
            return ask(*args, **kwargs)
        url = str(args[0] if args else kwargs.get("url"))
        try:
            announced = ask(*args, **kwargs)
        except Exception as error:
            if type(error) is ValueError:  # of an address that it could not take apart
                raise _unreadable(url, error) from error
            # that there is no such file is noted by the commit
            answer = getattr(error, "response", None)
            commit = None if answer is None else answer.headers.get("X-Repo-Commit")
            if commit is not None and not _is_plain(commit):
                raise _refusal(url, "X-Repo-Commit", commit, "a plain name of 1 to 128 letters and digits") from error
            raise
        check_announcement(url, announced)
        return announced

    ask_and_look.checks_announcements = True  # type: ignore[attr-defined]
    file_download.get_hf_file_metadata = ask_and_look
