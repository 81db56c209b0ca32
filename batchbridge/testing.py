"""A client without sockets: it calls the whole path of a server (parser, machine, bridge, handlers) in this thread."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from http.client import HTTPResponse
from io import BufferedReader, BytesIO
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from .messages import Headers

if TYPE_CHECKING:
    from .cython_ext.memory import MemoryEngine
    from .server import Server

__all__ = ["TestClient", "TestResponse"]

#: Turns of the engine's loop that a response may take. A file of several MiB takes one for each 128 KiB.
TURNS_MAX = 100_000

#: How long it sleeps between two turns, at most, while a batch waits out its delay.
NAP_US_MAX = 1_000


@dataclass(frozen=True)
class TestResponse:
    """A response as the client got it."""

    __test__ = False  # its name begins as pytest's classes do

    status: int
    headers: Headers
    body: bytes
    raw: bytes = field(repr=False)
    """The bytes on the wire."""

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)


class _Bytes:
    """What http.client reads a response from."""

    def __init__(self, data: bytes) -> None:
        self.stream = BytesIO(data)

    def makefile(self, _mode: str) -> BufferedReader:
        return self.stream  # type: ignore[return-value]


class TestClient:
    """Sends requests to a server that does not listen. Handlers run in the calling thread, whatever handler_threads is.

    A context manager; without one, close() ends the lifespan.
    """

    __test__ = False

    def __init__(self, server: Server) -> None:
        from .cython_ext.memory import MemoryEngine
        from .cython_ext.worker import Worker

        self.server = server
        self._stack = contextlib.ExitStack()
        handlers = self._stack.enter_context(server.prepared())
        settings = server.engine_settings(handlers)
        self.engine: MemoryEngine = MemoryEngine(settings, [handler.settings() for handler in handlers], 1)
        self._stack.callback(self.engine.close)
        worker = Worker(self.engine, 0, handlers)
        self._stack.callback(worker.close)
        self.engine.set_inline_worker(worker)
        server.machine.table.listeners.append(self.engine.set_table)
        worker.state = self._stack.enter_context(server.entered())
        server.engines.append(self.engine)
        self._stack.callback(server.engines.remove, self.engine)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Leaves the lifespan."""
        self._stack.close()

    # --- requests ---

    def request(
        self, method: str, target: str, *, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """Sends one request and returns its response."""
        return self.batch([(method, target, body, headers or {})])[0]

    def get(self, target: str, *, headers: Mapping[str, str] | None = None) -> TestResponse:
        """GET."""
        return self.request("GET", target, headers=headers)

    def head(self, target: str, *, headers: Mapping[str, str] | None = None) -> TestResponse:
        """HEAD."""
        return self.request("HEAD", target, headers=headers)

    def post(
        self, target: str, body: bytes = b"", *, json: Any = None, headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """POST of `body`, or of `json` as application/json."""
        return self.request("POST", target, **_encoded(body, json, headers))

    def put(
        self, target: str, body: bytes = b"", *, json: Any = None, headers: Mapping[str, str] | None = None
    ) -> TestResponse:
        """PUT of `body`, or of `json` as application/json."""
        return self.request("PUT", target, **_encoded(body, json, headers))

    def batch(self, requests: Sequence[str | tuple[Any, ...]]) -> list[TestResponse]:
        """Sends requests at the same time, each on a connection of its own, and returns the responses in their order.

        An entry is a target (GET), or (method, target[, body[, headers]]). Those for one route arrive together, and
        so make one batch, as far as its policy lets them.
        """
        connections = []
        for entry in requests:
            method, target, *rest = ("GET", entry) if isinstance(entry, str) else entry
            body = rest[0] if rest else b""
            headers = rest[1] if len(rest) > 1 else {}
            connection = self.engine.connect()
            connections.append((connection, method))
            self.engine.feed(connection, _request_bytes(method, target, body, headers))
        return [self._response(connection, method) for connection, method in connections]

    def _response(self, connection: int, method: str) -> TestResponse:
        raw = b""
        for _ in range(TURNS_MAX):
            raw += self.engine.output(connection)
            response = _parsed(raw, method)
            if response is not None:
                self.engine.feed_end(connection)
                self.engine.turn()
                self.engine.forget(connection)
                return response
            self.engine.turn()
            wait_us = self.engine.wait_us()
            if wait_us > 0:
                time.sleep(min(wait_us, NAP_US_MAX) / 1e6)
        raise TimeoutError(f"no whole response after {TURNS_MAX} turns of the engine; so far {raw[:200]!r}")


def _encoded(body: bytes, value: Any, headers: Mapping[str, str] | None) -> dict[str, Any]:
    if value is None:
        return {"body": body, "headers": headers}
    return {"body": json.dumps(value).encode(), "headers": {"Content-Type": "application/json", **(headers or {})}}


def _request_bytes(method: str, target: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    given = {name.lower() for name in headers}
    lines = [f"{method} {target} HTTP/1.1"]
    if "host" not in given:
        lines.append("Host: test")
    lines += [f"{name}: {value}" for name, value in headers.items()]
    framed = "content-length" in given or "transfer-encoding" in given
    if not framed and (body or method in ("POST", "PUT", "PATCH")):
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def _parsed(raw: bytes, method: str) -> TestResponse | None:
    """The response in `raw`, or None while it is not whole."""
    head, separator, rest = raw.partition(b"\r\n\r\n")
    if not separator:
        return None
    response = HTTPResponse(_Bytes(raw), method=method)  # type: ignore[arg-type]
    response.begin()
    if response.length is not None and len(rest) < response.length:
        return None
    return TestResponse(response.status, Headers(head.partition(b"\r\n")[2] + b"\r\n"), response.read(), raw)
