"""WSGI: an application (PEP 3333) behind all routes.

The items of a batch are run one after another, on the handler thread that took it: ``handler_threads`` is how many
requests the application works on at a time, and more than one tells it ``wsgi.multithread``.

- A response is collected, up to ``response_size_bytes_max``, before it leaves: what an application gives piece by piece
  does not arrive so. As to ``start_response``, headers count as sent once there was a byte of the body.
- The request's body is read before the application runs, so ``wsgi.input`` ends by itself and CONTENT_LENGTH tells how
  long it is, also for a body in chunked coding.
- Content-Length, Date, Server, Connection and what else is about the connection are the engine's to write; an
  application's own are dropped. A Content-Length that does not fit the body is a failure (500).
- Header fields with an underscore in their names are dropped: in the environment ``X_Real_Ip`` could not be told from
  ``X-Real-Ip``. So is Proxy, which the environment would show as HTTP_PROXY.
- A failure costs the one request, which gets 500.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote_to_bytes

from .errors import HTTPError
from .gateway import ApplicationError, Body, respond, server_address

if TYPE_CHECKING:
    from types import TracebackType

    from .cython_ext.messages import Batch, Request
    from .server import Server

__all__ = ["WsgiGateway"]

Environ = dict[str, Any]

#: Fields that are told by variables of their own, are used up, or must not be told.
UNTOLD = frozenset(("content-type", "content-length", "transfer-encoding", "host", "proxy"))


class WsgiGateway:
    """The handler that runs a WSGI application."""

    def __init__(self, application: Callable[..., Iterable[bytes]], server: Server) -> None:
        self.application = application
        self.server = server
        self.size_bytes_max = server.config.response_size_bytes_max
        self._base: Environ | None = None

    def run(self, batch: Batch) -> None:
        """Answers the requests of a batch, one after another."""
        for request in batch:
            with request:
                self.answer(request)

    def answer(self, request: Request) -> None:
        """Answers one. Raises what the application raised, or ApplicationError where it broke the interface's rules."""
        if request.cancelled:
            raise HTTPError(503)  # which nobody will see
        if request.method == "CONNECT":
            raise HTTPError(501)
        exchange = Exchange(self.size_bytes_max)
        try:
            exchange.run(self.application, self.environ(request))
        except SystemExit as error:
            # It would end the handler thread, and with it the other requests.
            raise ApplicationError("the application called exit()") from error
        exchange.answer(request)

    def environ(self, request: Request) -> Environ:
        """The environment of one request (PEP 3333, "environ Variables"; RFC 3875 section 4.1)."""
        if self._base is None:
            self._base = self.base()
        headers, body = request.headers, request.body
        environ = {
            **self._base,
            "REQUEST_METHOD": request.method,
            # Bytes, decoded as latin-1 (PEP 3333, "Unicode Issues").
            "PATH_INFO": unquote_to_bytes(request.raw_path).decode("latin-1"),
            "QUERY_STRING": request.query_string.decode("latin-1"),
            "SERVER_PROTOCOL": f"HTTP/{request.http_version}",
            "wsgi.input": io.BytesIO(body),
        }
        client = request.client
        if client is not None:
            environ["REMOTE_ADDR"], environ["REMOTE_PORT"] = client[0], str(client[1])
        if request.authority:
            environ["HTTP_HOST"] = request.authority
        if "content-type" in headers:
            environ["CONTENT_TYPE"] = headers["content-type"]
        if body or "content-length" in headers:
            environ["CONTENT_LENGTH"] = str(len(body))
        for name in headers:
            if name not in UNTOLD and "_" not in name:
                separator = "; " if name == "cookie" else ", "
                environ["HTTP_" + name.upper().replace("-", "_")] = separator.join(headers.getall(name))
        return environ

    def base(self) -> Environ:
        """What is the same for all requests."""
        address = server_address(self.server)
        config = self.server.config
        return {
            "SCRIPT_NAME": "",
            "SERVER_NAME": address.host,
            "SERVER_PORT": str(address.port),
            "SERVER_SOFTWARE": config.server_name or "batchbridge",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": config.handler_threads * config.engine_threads > 1,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
        }


class Exchange:
    """One run of an application: what start_response and write were given."""

    def __init__(self, size_bytes_max: int) -> None:
        self.status: str | None = None
        self.headers: list[tuple[str, str]] = []
        self.body = Body(size_bytes_max)

    def run(self, application: Callable[..., Iterable[bytes]], environ: Environ) -> None:
        """Calls the application, takes all that it gives, and closes what it returned, whatever happens."""
        pieces = application(environ, self.start_response)
        try:
            for piece in pieces:
                self.write(piece)
        finally:
            close = getattr(pieces, "close", None)
            if close is not None:
                close()
        if self.status is None:
            raise ApplicationError("the application returned without calling start_response()")

    def start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: tuple[type[BaseException], BaseException, TracebackType | None] | None = None,
    ) -> Callable[[bytes], None]:
        """PEP 3333, "The start_response() Callable": a second call replaces the first, if it says why and in time."""
        if exc_info is not None:
            try:
                if self.body.size_bytes:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # no circle of references through the traceback
        elif self.status is not None:
            raise ApplicationError("start_response() was called a second time without exc_info")
        self.status, self.headers = status, list(headers)
        return self.write

    def write(self, piece: bytes) -> None:
        """Takes a piece of the body: PEP 3333, "The write() Callable"."""
        if not isinstance(piece, bytes):
            raise ApplicationError(f"a piece of the body is {type(piece).__name__}, not bytes")
        if self.status is None:
            raise ApplicationError("the application gave a piece of the body before it called start_response()")
        self.body.add(piece)

    def answer(self, request: Request) -> None:
        """Gives the request what was collected."""
        assert self.status is not None
        code = self.status[:3]
        if not (code.isascii() and code.isdigit()) or self.status[3:4] not in ("", " "):
            raise ApplicationError(f"{self.status!r} is not a status, such as '200 OK'")
        fields = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in self.headers]
        respond(request, int(code), fields, self.body.whole())
