"""What the versions of huggingface_hub call by different names, and which of them can push.

Reading works with all that pyproject.toml admits: transformers 4 pins huggingface_hub below 1.0, transformers 5 wants
1.x.
"""

import re
from typing import Any

import huggingface_hub
from huggingface_hub import errors, utils

__all__ = [
    "KEEPS_PARTS",
    "OLDEST_TO_PUSH",
    "REPEATS_DOWNLOADS",
    "ConnectionFailed",
    "EntryNotFound",
    "can_push",
    "reason_of",
    "status_of",
]

# older ones repeat fewer uploads, and do not come through every fault that the tests script
OLDEST_TO_PUSH = (1, 33)
# whether downloads wait and ask again by themselves, after a lost connection and as the Hub's limits say
REPEATS_DOWNLOADS = hasattr(utils, "parse_ratelimit_headers")

if hasattr(errors, "RemoteEntryNotFoundError"):
    # errors.HTTPError is the base of all that the HTTP client raises
    ConnectionFailed: Any = errors.HTTPError
    EntryNotFound: Any = errors.RemoteEntryNotFoundError
else:  # before 1.0 the client is requests, whose HTTPError is an answer with a wrong status alone
    from requests import RequestException

    ConnectionFailed = RequestException
    EntryNotFound = errors.EntryNotFoundError  # LocalEntryNotFoundError is a kind of it there: catch that one first


def can_push() -> bool:
    """Whether the installed huggingface_hub is new enough for push_to_hub.

    >>> import huggingface_hub
    >>> can_push() == (tuple(map(int, huggingface_hub.__version__.split(".")[:2])) >= OLDEST_TO_PUSH)
    True
    """
    return tuple(map(int, re.findall(r"\d+", huggingface_hub.__version__)[:2])) >= OLDEST_TO_PUSH


# whether what came of a download that failed is kept and continued, also where its length is wrong
KEEPS_PARTS = not can_push()


def status_of(error: Any) -> int | None:
    """The HTTP status of what the Hub answered, None where it did not answer (a LocalEntryNotFoundError before 1.0).

    >>> from types import SimpleNamespace as Answered
    >>> status_of(Answered(response=Answered(status_code=404))), status_of(Answered(response=None))
    (404, None)
    """
    return getattr(error.response, "status_code", None)


def reason_of(response: Any) -> str:
    """The words beside the status: "Not Found".

    >>> from types import SimpleNamespace as Answer
    >>> reason_of(Answer(reason_phrase="Not Found")), reason_of(Answer(reason="Not Found")), reason_of(None)
    ('Not Found', 'Not Found', '')
    """
    return str(getattr(response, "reason_phrase", None) or getattr(response, "reason", None) or "")
