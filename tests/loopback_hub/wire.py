"""What passes between the HTTP layer and the Hub's answers: requests, responses, refusals, records."""

import json
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Record", "RefusalError", "Request", "Response", "as_json"]


@dataclass(frozen=True)
class Request:
    """One request as it came in.

    path: still percent-encoded, without the query; port: 'hub' or 'cdn'.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    port: str = "hub"

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            raise RefusalError(400, "the body is no JSON") from None


@dataclass(frozen=True)
class Response:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class RefusalError(Exception):
    """An error that the client is told of; code is the Hub's X-Error-Code."""

    def __init__(self, status: int, message: str, code: str | None = None, body: Any = None, **headers: str):
        super().__init__(message)
        self.status, self.message, self.code, self.body = status, message, code, body
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}

    def response(self) -> Response:
        headers = {"X-Error-Message": self.message, **self.headers}
        if self.code:
            headers["X-Error-Code"] = self.code
        return as_json(self.body or {"error": self.message}, status=self.status, headers=headers)


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(
        status, {"Content-Type": "application/json; charset=utf-8", **(headers or {})}, json.dumps(value).encode()
    )


@dataclass
class Record:
    """A request that was seen. status: None while it is under way and where the connection was cut.

    path: percent-decoded, with the query.
    """

    method: str
    path: str
    port: str
    range: str | None = None
    authorization: str | None = None
    status: int | None = None
    fault: Any = None

    def __str__(self) -> str:
        return f"{self.method} {self.path} -> {self.status}"
