"""The upstream: forwards requests to another server and passes its answers back (RFC 9110 section 3.7, a gateway).

All items of a batch are under way at the same time, each on a connection of its own. A handler thread keeps
connections open (``upstream_connections_max`` at most; a request waits for one) and uses them again.

What goes to the upstream:

- The request's method, target (in origin form) and body, as HTTP/1.1. A body is sent with Content-Length, whatever
  coding it came in.
- Host is the one that the client asked for, so that virtual hosts and links work as they do without us; the upstream's
  own address where the client named none (HTTP/1.0).
- All header fields but those about the client's connection (RFC 9110 section 7.6.1), and Expect, which is settled here.
- X-Forwarded-For and Forwarded (RFC 7239), each with the client behind what the client itself sent there: the upstream
  may trust the last element. Via (RFC 9110 section 7.6.3), with a name that is new for each start: a request that comes
  back with it has gone in a circle (508).
- CONNECT and TRACE are not forwarded (501); OPTIONS as far as its Max-Forwards lets it (section 7.6.2).

What comes back: the status, header fields and body, without what is about the upstream's connection. Date and Server
are written by our engine. Informational responses are read and dropped.

What goes wrong: refused, reset or senseless is 502, as is an answer above ``response_size_bytes_max``; too late is 504
(``upstream_connect_timeout_s``, and ``upstream_timeout_s`` in all, the wait for a connection included). A request that
met a kept connection which the upstream had closed is sent once more on a new one, if its method is safe: of others
nobody knows whether they were carried out. A client that goes away does not stop its request.

Each answer passes through user mode, and is whole before it leaves. An upstream state of the engine itself, later,
sends it on piece by piece, splices large bodies, caches what may be cached, and keeps its connections in the ring.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from .errors import HTTPError
from .gateway import HOP_BY_HOP, ApplicationError, connection_options, respond
from .upstream_connection import Answer, Pool, UpstreamError
from .values import parse_address

if TYPE_CHECKING:
    from .cython_ext.messages import Batch, Request
    from .server import Server

__all__ = ["UpstreamGateway"]

logger = logging.getLogger("batchbridge.upstream")

REFUSED_METHODS = ("CONNECT", "TRACE")
METHODS_WITH_BODY = ("POST", "PUT", "PATCH")

#: Fields of a request that are written anew or are settled here.
REWRITTEN = HOP_BY_HOP | {b"host", b"content-length", b"expect", b"via", b"forwarded", b"x-forwarded-for"}


class UpstreamGateway:
    """The handler that forwards requests to the upstream."""

    def __init__(self, server: Server) -> None:
        config = server.config
        assert config.upstream is not None
        self.address = parse_address(config.upstream.removeprefix("http://"), "upstream", default_port=80)
        self.timeout_s = config.upstream_timeout_s
        self.connect_timeout_s = config.upstream_connect_timeout_s
        self.connections_max = config.upstream_connections_max
        self.size_bytes_max = config.response_size_bytes_max
        self.pseudonym = f"{config.server_name or 'batchbridge'}-{secrets.token_hex(4)}"
        self.is_failing = False
        self._pools: dict[asyncio.AbstractEventLoop, Pool] = {}

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Closes this event loop's connections in the end."""
        try:
            yield
        finally:
            self.pool().close()
            del self._pools[asyncio.get_running_loop()]

    def pool(self) -> Pool:
        """The connections of this event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            self._pools[loop] = Pool(self.address, self.connections_max, self.connect_timeout_s)
        return self._pools[loop]

    async def run(self, batch: Batch) -> None:
        """Answers the requests of a batch, all at the same time."""
        pool = self.pool()
        await asyncio.gather(*(self.answer(pool, request) for request in batch))

    async def answer(self, pool: Pool, request: Request) -> None:
        """Answers one, and lets no failure of it out."""
        with request:
            if request.method in REFUSED_METHODS:
                raise HTTPError(501)
            if request.method == "OPTIONS" and request.headers.get("max-forwards") == "0":
                respond(request, 204, [], b"")
                return
            head = self.head(request)
            answer = await self.exchange(pool, request, head)
            try:
                respond(request, answer.status, answer.fields, answer.body)
            except (ApplicationError, ValueError) as error:
                raise self.failed(502, str(error)) from None
            if self.is_failing:
                self.is_failing = False
                logger.warning("the upstream %s answers again", self.address)

    async def exchange(self, pool: Pool, request: Request, head: bytes) -> Answer:
        """The upstream's answer. Raises HTTPError."""
        try:
            async with asyncio.timeout(self.timeout_s), pool.places:
                if request.cancelled:
                    raise HTTPError(503)  # which nobody will see
                return await pool.exchange(head, request.body, request.method, self.size_bytes_max)
        except TimeoutError:
            raise self.failed(504, "took too long") from None
        except UpstreamError as error:
            raise self.failed(502, str(error)) from None
        except OSError as error:
            raise self.failed(502, f"cannot be reached: {(error.strerror or str(error)).lower()}") from None

    def failed(self, status: int, reason: str) -> HTTPError:
        """What the client gets; the log has a line when it begins, not one a request."""
        if not self.is_failing:
            self.is_failing = True
            logger.warning("the upstream %s %s (%d)", self.address, reason, status)
        return HTTPError(status, "the upstream took too long" if status == 504 else "the upstream gave no answer")

    # --- what is sent ---

    def head(self, request: Request) -> bytes:
        """The head of the request to the upstream. Raises HTTPError(508) for one that was here before."""
        headers = request.headers
        via = headers.get("via", "")
        if self.pseudonym in via:
            raise HTTPError(508, "the request came back to where it was")
        host = request.authority or str(self.address)
        lines = [f"{request.method} ".encode() + target_of(request) + b" HTTP/1.1", f"Host: {host}".encode("latin-1")]
        dropped = REWRITTEN | connection_options(headers.getall("connection"))
        for name in headers:
            if name.encode("ascii") not in dropped:
                values = headers.getall(name)
                if name == "max-forwards" and request.method == "OPTIONS" and values[0].isdigit():
                    values = [str(int(values[0][:9]) - 1)]
                lines.extend(f"{name}: {value}".encode("latin-1") for value in values)
        if len(request.body) or request.method in METHODS_WITH_BODY or "content-length" in headers:
            lines.append(b"Content-Length: %d" % len(request.body))
        address = request.client[0] if request.client is not None else "unknown"
        for name, element in (
            ("X-Forwarded-For", address),
            ("Forwarded", forwarded(address, request.authority)),
            ("Via", f"{request.http_version} {self.pseudonym}"),
        ):
            lines.append(f"{name}: {', '.join([*headers.getall(name), element])}".encode("latin-1"))
        return b"\r\n".join([*lines, b"", b""])


def target_of(request: Request) -> bytes:
    """The request target in origin form (RFC 9112 section 3.2.1), without a change to its path and query."""
    target = bytes(request.target)
    if not target.startswith(b"/"):
        target = target.partition(b"://")[2]
        target = target[min((at for at in (target.find(b"/"), target.find(b"?")) if at >= 0), default=len(target)) :]
        if not target.startswith(b"/"):
            target = b"/" + target
    return target


def forwarded(address: str, authority: str) -> str:
    """An element of Forwarded (RFC 7239 section 4)."""
    node = f'"[{address}]"' if ":" in address else address
    host = authority.replace("\\", "\\\\").replace('"', '\\"')
    return f'for={node};host="{host}";proto=http' if authority else f"for={node};proto=http"
