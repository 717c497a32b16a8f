"""The two HTTP servers, and the handle that tests hold."""

import contextlib
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

import loopback_hub.downloads
import loopback_hub.repos
import loopback_hub.uploads  # noqa: F401  (these three register their routes)
from loopback_hub.api import Api
from loopback_hub.faults import Fault
from loopback_hub.store import Commit, Repo
from loopback_hub.wire import Record, Request, Response

__all__ = ["LoopbackHub"]

MAX_BODY = 1 << 28  # bytes of one request
SILENCE = 60  # seconds after which a connection on which nothing comes is closed


class LoopbackHub:
    """A Hub on 127.0.0.1 while the context lasts.

    Args:
        root: a folder for the Xet store.
        faults: what goes wrong; `hub.faults = [...]` may replace them at any time, and counts anew.
        tokens: {token: {namespace: 'write' or 'read'}}; the first namespace is the user.
        lfs_part_size: LFS uploads of more bytes than this go in parts.
        page: entries per page of the tree and of the history.
    Attributes:
        url, cdn_url: where the Hub and its second port are.
        requests: every request so far, as Records.
        on_kill: called by faults with kill=True.
    """

    def __init__(
        self,
        root: str | Path,
        faults: Iterable[Fault] = (),
        *,
        tokens: Mapping[str, Mapping[str, str]] | None = None,
        lfs_part_size: int = 1 << 24,
        page: int = 1000,
    ):
        self.lock = threading.RLock()
        self.api = Api(Path(root).resolve() / "xet-store", tokens, lfs_part_size=lfs_part_size, page=page)
        self.requests: list[Record] = []
        self.on_kill: Callable[[], object] = lambda: None
        self._servers = {port: _Server(self, port) for port in ("hub", "cdn")}
        self._threads = [
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
            for server in self._servers.values()
        ]
        hub, cdn = (server.server_address[1] for server in self._servers.values())
        # two names, as there are two in the world: clients before huggingface_hub 2 do not compare ports
        self.url, self.cdn_url = f"http://127.0.0.1:{hub}", f"http://localhost:{cdn}"
        self.api.url, self.api.cdn_url = self.url, self.cdn_url
        self.faults = faults

    def __enter__(self) -> "LoopbackHub":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        for server in self._servers.values():
            server.shutdown()
            server.close_all()
        for thread in self._threads:
            thread.join(timeout=10)
        if self.api.crashes and kind is None:
            raise AssertionError(f"the loopback Hub itself failed:\n{self.api.crashes[0]}")

    # -- what tests look at and plant

    @property
    def tokens(self) -> dict[str, dict[str, str]]:
        return self.api.tokens

    @property
    def repos(self) -> dict[str, Repo]:
        return self.api.repos

    def repo(self, repo_id: str) -> Repo:
        return self.api.repos[repo_id]

    def commit(
        self,
        repo_id: str,
        files: Mapping[str, bytes | None],
        *,
        message: str = "planted",
        revision: str = "main",
        private: bool = False,
    ) -> Commit:
        """Put files into a repository, which is made where it is missing, without any client and any check."""
        with self.lock:
            return self.api.plant(repo_id, files, message=message, revision=revision, private=private)

    def rename(self, old: str, new: str) -> None:
        """Give a repository another name; the old one leads there."""
        with self.lock:
            self.repos[new] = self.repos.pop(old)
            self.repos[new].id = new
            self.api.renamed[old] = new

    @property
    def faults(self) -> list[Fault]:
        return self._faults

    @faults.setter
    def faults(self, faults: Iterable[Fault]) -> None:
        with self.lock:
            self._faults = list(faults)
            self._counts = [0] * len(self._faults)

    # -- what the connections call

    def fault_for(self, method: str, path: str) -> Fault | None:
        """Count this request for every fault that it matches; the first one that applies hits."""
        with self.lock:
            hit = None
            for i, fault in enumerate(self._faults):
                if fault.matches(method, path):
                    self._counts[i] += 1
                    if hit is None and fault.applies(self._counts[i]):
                        hit = fault
            return hit

    def answer(self, request: Request) -> Response:
        with self.lock:
            return self.api.answer(request)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, hub: LoopbackHub, port: str):
        self.hub, self.port = hub, port
        self.connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def close_all(self) -> None:
        self.server_close()
        for connection in list(self.connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no news."""


class _CutError(Exception):
    """Close the connection now."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = SILENCE
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.connections.add(self.connection)

    def finish(self) -> None:
        self.server.connections.discard(self.connection)
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        shown = unquote(self.path) if self.server.port == "hub" else "/cdn" + unquote(self.path)
        fault = self.server.hub.fault_for(self.command, shown)
        record = Record(
            self.command, shown, self.server.port, self.headers["Range"], self.headers["Authorization"], fault=fault
        )
        self.server.hub.requests.append(record)
        try:
            response = self._respond(parts.path, dict(parse_qsl(parts.query)), fault)
            record.status = response.status
            self._send(response, fault.cut_after if fault else None)
        except (_CutError, OSError):
            record.status = None
            self._close(abrupt=bool(fault and fault.abrupt))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve  # noqa: N815

    def _respond(self, path: str, query: dict[str, str], fault: Fault | None) -> Response:
        if fault and fault.kill and not fault.lose_response:
            self.server.hub.on_kill()
            raise _CutError
        body = self._read_body(fault.cut_upload_after if fault else None)
        if fault and fault.delay:
            time.sleep(fault.delay)
        if fault and (error := fault.error()):
            return error
        headers = {name.lower(): value for name, value in self.headers.items()}
        response = self.server.hub.answer(Request(self.command, path, query, headers, body, self.server.port))
        if fault and fault.lose_response:
            if fault.kill:
                self.server.hub.on_kill()
            raise _CutError
        return fault.spoil(response, self.command) if fault else response

    def _read_body(self, cut_after: int | None) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            body = b"".join(iter(self._read_chunk, b""))
        else:
            length = int(self.headers.get("Content-Length") or 0)
            if length > MAX_BODY:
                raise _CutError
            body = self.rfile.read(length if cut_after is None else min(length, cut_after))
        if cut_after is not None:
            raise _CutError
        return body

    def _read_chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        data = self.rfile.read(size)
        self.rfile.readline()
        return data

    def _send(self, response: Response, cut_after: int | None) -> None:
        self.send_response_only(response.status)
        headers = {"Content-Length": str(len(response.body)), **response.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD" and response.status not in (204, 304):
            self.wfile.write(response.body if cut_after is None else response.body[:cut_after])
        self.wfile.flush()
        if cut_after is not None:
            raise _CutError

    def _close(self, *, abrupt: bool) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            if abrupt:  # lingering for no time makes the close a reset
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                os.close(self.connection.detach())
            else:
                self.connection.shutdown(socket.SHUT_RDWR)
