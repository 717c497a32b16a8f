"""Faults, declared: which request, which time, and what goes wrong."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from loopback_hub.wire import Response

__all__ = ["Fault"]

OTHER_BYTES = bytes(byte ^ 0x5A for byte in range(256))


@dataclass(frozen=True, eq=False)
class Fault:
    """One thing that goes wrong. Everything that is not asked for stays as it would have been.

    Args:
        method: one method, or 'GET|HEAD', or '*'.
        path: regular expression, searched in the percent-decoded path with its query. Requests to the second port (the
            "CDN") have paths that begin with /cdn/.
        when: 'once', 'always', 'first N', or n: the n-th request that matches, counted from 1.
        status: answer with this status instead of handling the request.
        error_code, error_message: the headers X-Error-Code and X-Error-Message; the message is in the JSON body, too.
        headers: more headers (of the error, or of the answer that is given all the same).
        body: the body instead (bytes as they are, str, or anything that JSON takes).
        cut_after: bytes of the response body after which the connection is closed. Content-Length stays the whole.
        cut_upload_after: bytes of the request body after which the connection is closed; the request is not handled.
        lose_response: the request is handled, and the connection is closed without an answer.
        abrupt: cut connections end with a reset instead of an orderly end.
        delay: seconds to wait before answering (short ones: the server has one thread per connection).
        wrong_bytes: the body keeps its length, and its second half is other bytes.
        wrong_size: HEAD tells one byte more than there are; GET sends a whole answer that is one byte short.
        drop_headers: headers to leave out.
        kill: call `hub.on_kill()` before the request is handled (with lose_response: after it), then close.
    """

    method: str = "*"
    path: str = ""
    when: str | int = "once"
    status: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Any = None
    cut_after: int | None = None
    cut_upload_after: int | None = None
    lose_response: bool = False
    abrupt: bool = False
    delay: float = 0.0
    wrong_bytes: bool = False
    wrong_size: bool = False
    drop_headers: tuple[str, ...] = ()
    kill: bool = False

    def __post_init__(self) -> None:
        re.compile(self.path)
        self.applies(1)

    def matches(self, method: str, path: str) -> bool:
        return (self.method == "*" or method in self.method.split("|")) and re.search(self.path, path) is not None

    def applies(self, count: int) -> bool:
        """Whether the count-th matching request is hit."""
        if isinstance(self.when, int):
            return count == self.when
        if self.when in ("once", "always"):
            return self.when == "always" or count == 1
        first, _, number = self.when.partition(" ")
        if first != "first" or not number.isdigit():
            raise ValueError(f"wanted when='once', 'always', 'first N' or a number, got {self.when!r}")
        return count <= int(number)

    def error(self) -> Response | None:
        """The answer in place of the real one, or None where the request is to be handled."""
        if self.status is None:
            return None
        headers = {"Content-Type": "application/json", **self._error_headers(), **self.headers}
        return Response(self.status, headers, self._body() or json.dumps({"error": self.error_message or ""}).encode())

    def spoil(self, response: Response, method: str) -> Response:
        """A real answer, changed as declared."""
        headers = {**response.headers, **self._error_headers(), **self.headers}
        body = response.body if self.body is None else self._body()
        if self.wrong_bytes and body:
            half = len(body) // 2
            body = body[:half] + body[half:].translate(OTHER_BYTES)
        if self.wrong_size and method == "HEAD":
            for name in ("X-Linked-Size", "Content-Length"):
                if name in headers or name == "Content-Length":
                    headers[name] = str(int(headers.get(name, len(body))) + 1)
        elif self.wrong_size:
            body = body[:-1]
            headers.pop("Content-Range", None)
        dropped = {name.lower() for name in self.drop_headers}
        return Response(response.status, {k: v for k, v in headers.items() if k.lower() not in dropped}, body)

    def _body(self) -> bytes:
        if self.body is None or isinstance(self.body, bytes):
            return self.body or b""
        return (self.body if isinstance(self.body, str) else json.dumps(self.body)).encode()

    def _error_headers(self) -> dict[str, str]:
        pairs = {"X-Error-Code": self.error_code, "X-Error-Message": self.error_message}
        return {name: value for name, value in pairs.items() if value is not None}
