"""What the Hub says, in one line; and calls that are made again where that helps.

huggingface_hub repeats its uploads by itself, but not the calls around them (whoami, create, info, commit). Those are
repeated here, on the same answers: a lost connection, 408, 429 and 5xx. What the Hub refuses (401, 403, 404, 409, 412,
413, 422) is never asked twice.
"""

import errno
import json
import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from timm_mix.hub.client import ConnectionFailed, reason_of, status_of

__all__ = ["NO_TOKEN", "HubError", "hub_errors", "is_temporary", "with_retries"]

_logger = logging.getLogger("timm_mix.hub")
_T = TypeVar("_T")

TEMPORARY = (408, 429, 500, 502, 503, 504)  # as huggingface_hub's own uploads take them
WAITS = (1.0, 2.0, 4.0, 8.0)  # seconds before the second, third, ... try
LONGEST_WAIT = 310.0  # seconds; the Hub counts its limits in windows of five minutes
# raised before anything is sent, for a wrong HF_ENDPOINT or a token with a line break in it
_NEVER_SENT = (
    *("UnsupportedProtocol", "LocalProtocolError"),  # httpx
    *("MissingSchema", "InvalidSchema", "InvalidURL", "InvalidHeader"),  # requests
)
# the header `ratelimit: "api";r=0;t=55` of the IETF's draft: nothing remains, and a new window begins in t seconds
_SPENT = re.compile(r'"\w+"\s*;\s*r\s*=\s*0+\s*;\s*t\s*=\s*(?P<seconds>\d+)')
_LOGIN = "log in with `hf auth login` or set HF_TOKEN to a token that may write"
NO_TOKEN = f"there is no token; {_LOGIN}"
_ADVICE = {
    400: "correct what it names and run the same command again",
    401: f"this token is not valid; {_LOGIN}",
    402: "this account's plan does not allow it; see its billing page",
    403: "this token may not do that; take one with write access there, or another repository",
    404: "look at the name of the repository and of the revision, and whether this token may see them",
    409: "another change is under way there; run the same command again in a moment",
    412: "somebody else has changed the repository meanwhile; look at it, then run the same command again",
    413: "the files are too large for it; leave pictures out of the folder",
    422: "it cannot take this content; correct what it names",
    429: "too many requests; wait some minutes and run the same command again",
}
_ADVICE_OF_READING = {
    **_ADVICE,
    401: "look at the name; for a private model log in with `hf auth login` or set HF_TOKEN to a valid token",
    403: "this token may not read it; ask for access on the model's page, or take another token",
}
_LATER = "the Hub is in trouble; run the same command again later"


class HubError(RuntimeError):
    """The Hub did not do what was wanted; one line: what was wanted, what it said, what to do.

    >>> from timm_mix.hub import load_pretrained
    >>> load_pretrained(".")  # a folder that nobody saved a model in
    Traceback (most recent call last):
        ...
    timm_mix.hub.errors.HubError: cannot load .: the folder . has no config.json; give one that ...
    """


@contextmanager
def hub_errors(wanted: str, *, reading: bool = False) -> Iterator[None]:
    """Turn what huggingface_hub raises into a HubError: "cannot <wanted>: <what the Hub said>; <what to do>".

    Args:
        reading: nothing was to be written; a download begins anew, and needs no right to write.

    Xet raises ConnectionError and RuntimeError, the client HTTPError, ValueError (LFS errors, answers that are no JSON)
    and KeyError, TypeError or AttributeError (answers without what they must hold).

    Raises:
        HubError: for each of these.

    >>> with hub_errors("get config.json of me/digits", reading=True):
    ...     raise ConnectionError("reset by peer")
    Traceback (most recent call last):
        ...
    timm_mix.hub.errors.HubError: cannot get config.json of me/digits: the connection failed (reset by peer); run ...
    """
    try:
        yield
    except HubError:
        raise
    except (ConnectionFailed, OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise HubError(f"cannot {wanted}: {_said(error, reading)}") from error


def with_retries(call: Callable[[], _T], done: Callable[[], _T | None] = lambda: None) -> _T:
    """Call, and again after a temporary failure, five times at most; Retry-After is honoured up to five minutes.

    Args:
        done: asked before each repetition whether the failed call has worked after all (its answer was lost); what it
            returns is then the result.
    Raises:
        Exception: what the last call raised; at once, where another try would not help.

    >>> with_retries(lambda: "at once")
    'at once'
    """
    for wait in WAITS:
        try:
            return call()
        except Exception as error:
            asked = _asked_wait(error)
            if not is_temporary(error) or asked > LONGEST_WAIT:
                raise
            wait = max(wait, asked)
            said = f"the Hub says {status_of(error)}" if isinstance(error, HfHubHTTPError) else _one_line(error)
            _logger.info("%s; next try in %.0f s", said, wait)
        time.sleep(wait)
        found = done()
        if found is not None:
            return found
    return call()


def is_temporary(error: Exception) -> bool:
    """Whether the same call may work a little later.

    >>> is_temporary(ConnectionError("reset by peer")), is_temporary(ValueError("no such name"))
    (True, False)
    """
    if isinstance(error, HfHubHTTPError):
        # the client itself would repeat this one for ever, without a pause
        conflict = status_of(error) == 409 and "conflicting operation is in progress" in error.response.text
        return conflict or status_of(error) in TEMPORARY
    if isinstance(error, OfflineModeIsEnabled) or type(error).__name__ in _NEVER_SENT:
        return False
    return isinstance(error, (ConnectionFailed, ConnectionError, json.JSONDecodeError))


def _asked_wait(error: Any) -> float:
    """Seconds that the Hub asks to wait, 0 where it does not say."""
    status = status_of(error) if isinstance(error, HfHubHTTPError) else None
    if status is None:
        return 0.0
    headers = error.response.headers
    spent = _SPENT.search(headers.get("ratelimit", ""))
    if status == 429 and spent:
        return float(spent["seconds"]) + 1
    value = headers.get("retry-after", "").strip()
    if value.isdigit():
        return float(value) + 1
    try:
        date = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    return max(0.0, (date.replace(tzinfo=date.tzinfo or timezone.utc) - datetime.now(timezone.utc)).total_seconds() + 1)


def _said(error: Any, reading: bool) -> str:
    if isinstance(error, HfHubHTTPError):
        return _refusal(error, reading)
    if isinstance(error.__cause__, HfHubHTTPError):  # LFS uploads wrap it
        return f"{_one_line(error)} {_refusal(error.__cause__, reading)}"
    if isinstance(error, OfflineModeIsEnabled):
        return "offline mode is on; unset HF_HUB_OFFLINE"
    if isinstance(error, LocalTokenNotFoundError):
        return NO_TOKEN
    if isinstance(error, json.JSONDecodeError):
        return f"its answer is not JSON ({_one_line(error)}); {_LATER}"
    if isinstance(error, KeyError):
        return f"its answer lacks {error}; {_LATER}"
    if isinstance(error, (TypeError, AttributeError)):
        return f"its answer is not what it should be ({_one_line(error)}); {_LATER}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"{_one_line(error)}; make room on this disk and run the same command again"
    if type(error).__name__ in _NEVER_SENT:
        return f"{_one_line(error)}; look at HF_ENDPOINT and at the token"
    if getattr(error, "response", None) is not None:  # requests' own error, which clients before 1.0 let through
        return f"the Hub says {error.response.status_code} {reason_of(error.response)}; {_LATER}"
    if isinstance(error, (ConnectionFailed, ConnectionError)):
        goes_on = "" if reading else ", it goes on where it stopped"
        return f"the connection failed ({_one_line(error)}); run the same command again{goes_on}"
    return _one_line(error)


def _refusal(error: HfHubHTTPError, reading: bool) -> str:
    status, reason = status_of(error), reason_of(error.response)
    if status is None:
        return _one_line(error)
    message = " ".join((error.server_message or "").split())[:300]
    if not message and not reason:
        message = _one_line(error)
    said = f"the Hub says {status} {reason}".rstrip() + (f": {message}" if message else "")
    request = f" (request {error.request_id})" if error.request_id else ""
    asked = _asked_wait(error)
    if status == 429 and asked:
        return f"{said}{request}; wait {asked:.0f} seconds and run the same command again"
    advice = _ADVICE_OF_READING if reading else _ADVICE
    return f"{said}{request}; {advice.get(status, _LATER if status >= 500 else 'see what it says')}"


def _one_line(error: BaseException) -> str:
    """At most 300 characters, without a token that an error about a header may quote."""
    text = re.sub(r"Bearer \S+", "Bearer ...", " ".join(str(error).split()))
    return (text or type(error).__name__)[:300]
