"""Connections to an upstream: a client's side of HTTP/1.1 (RFC 9112), for the event loop of one handler thread.

It knows bytes and connections, and nothing of what is forwarded (:mod:`.upstream`).

The rules:

- A connection carries one request at a time. It is kept only when the response's end is beyond doubt and not a byte
  came behind it: what would be taken for the next request's response is never read.
- Reading is bounded: a head, a line of chunked coding and a body each have their limit, and the socket is read no
  faster than its bytes are taken.
- What had arrived before the connection broke is read first: an upstream may answer and close before it has taken a
  whole body.
"""

from __future__ import annotations

import asyncio
import re
from typing import NamedTuple

from .gateway import WITHOUT_CONTENT, Fields, connection_options
from .values import Address

__all__ = ["SAFE_METHODS", "Answer", "Connection", "Pool", "UpstreamError"]

#: A kept connection is not used again after this: before most servers close it (Node.js does after 5 s).
KEPT_IDLE_S = 4.0

#: What is read of a response's head, and how many heads in front of the final one.
HEAD_SIZE_BYTES_MAX = 32 * 1024
INTERIM_RESPONSES_MAX = 16

#: A line of a chunked body, with its extensions; trailers may be as long as a head.
CHUNK_LINE_SIZE_BYTES_MAX = 4096

#: Bytes that may wait here unread; then the socket is left alone.
UNREAD_SIZE_BYTES_MAX = 256 * 1024

#: Methods that change nothing (RFC 9110 section 9.2.1), so that they can be sent again.
SAFE_METHODS = ("GET", "HEAD", "OPTIONS")

STATUS_LINE = re.compile(rb"HTTP/1\.([0-9]) ([1-5][0-9][0-9])(?: [^\r\n]*)?\r?\n")
# White space before the colon is to be taken out (RFC 9112 section 5.1). A folded line is no field, so it is refused.
FIELD_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)[ \t]*:[ \t]*([^\r\n\0]*?)[ \t]*\r?\n")
CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,16})[ \t]*(?:;[^\r\n]*)?\r?\n")


class UpstreamError(Exception):
    """The upstream's answer is none, or is not HTTP, or is too large."""


class StaleConnectionError(UpstreamError):
    """The upstream had closed the connection: not a byte of an answer came."""


class Answer(NamedTuple):
    """What the upstream said."""

    status: int
    fields: Fields
    body: bytes
    is_last: bool
    """Nothing more comes on its connection."""


class Connection(asyncio.Protocol):
    """A connection to the upstream: its unread bytes, and one request after another."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.unread = bytearray()
        self.has_ended = False
        self.is_broken = False
        self.kept_since_s = 0.0
        self._is_paused = False
        self._waiter: asyncio.Future[None] | None = None

    # --- what the loop calls ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is open."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self.unread += data
        if len(self.unread) > UNREAD_SIZE_BYTES_MAX and self.transport is not None and not self._is_paused:
            self._is_paused = True
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> None:
        """No more will come; the transport closes itself, once it has sent what it still has."""
        self.has_ended = True
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        """It is closed; by an error, maybe."""
        self.has_ended = True
        self.is_broken = error is not None
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # --- reading ---

    async def _more(self) -> bool:
        """Waits for more bytes; False: none will come."""
        if self.has_ended:
            return False
        if self._is_paused and self.transport is not None:
            self._is_paused = False
            self.transport.resume_reading()
        self._waiter = asyncio.get_running_loop().create_future()
        size = len(self.unread)
        await self._waiter
        return len(self.unread) > size or not self.has_ended

    async def read_line(self, size_bytes_max: int) -> bytes:
        """A line with its end, which may be LF alone (RFC 9112 section 2.2). Raises UpstreamError."""
        seen = 0
        while (end := self.unread.find(b"\n", seen, size_bytes_max)) < 0:
            seen = len(self.unread)
            if seen >= size_bytes_max:
                raise UpstreamError("sent a line that is too long")
            if not await self._more():
                raise UpstreamError("closed the connection within its response")
        return self._take(end + 1)

    async def read_exactly(self, length: int, size_bytes_max: int) -> bytes:
        """So many bytes. Raises UpstreamError, before it has read any where they are too many."""
        if length > size_bytes_max:
            raise UpstreamError("sent a response larger than response_size_bytes_max")
        pieces = []
        while length > len(self.unread):
            length -= len(self.unread)
            pieces.append(self._take(len(self.unread)))
            if not await self._more():
                raise UpstreamError("closed the connection within its response")
        return b"".join([*pieces, self._take(length)])

    async def read_to_end(self, size_bytes_max: int) -> bytes:
        """All until the upstream closes. Raises UpstreamError."""
        body = bytearray()
        while True:
            body += self._take(len(self.unread))
            if len(body) > size_bytes_max:
                raise UpstreamError("sent a response larger than response_size_bytes_max")
            if not await self._more():
                break
        if self.is_broken:
            raise UpstreamError("broke the connection within its response")
        return bytes(body)

    def _take(self, length: int) -> bytes:
        taken = bytes(memoryview(self.unread)[:length])
        del self.unread[:length]
        return taken

    # --- exchanges ---

    @property
    def is_idle(self) -> bool:
        """Whether it is open, and nothing is under way on it in either direction, asked for or not."""
        transport = self.transport
        return (
            transport is not None
            and not transport.is_closing()
            and not self.has_ended
            and not self.unread
            and transport.get_write_buffer_size() == 0
        )

    async def exchange(self, head: bytes, body: memoryview, method: str, size_bytes_max: int) -> Answer:
        """Sends one request and reads its response. Raises UpstreamError."""
        assert self.transport is not None
        # What does not leave at once does so while the response is awaited, which may come before it. Its size has
        # been limited where it was received.
        self.transport.write(head)
        if len(body):
            self.transport.write(body)
        while not self.unread:
            if not await self._more():
                raise StaleConnectionError("closed the connection without a response")
        return await read_answer(self, method, size_bytes_max)

    def close(self) -> None:
        """Closes it at once, whatever is under way."""
        if self.transport is not None:
            self.transport.abort()


# --- responses --------------------------------------------------------------------------------------------------------


async def read_fields(connection: Connection) -> Fields:
    """Header or trailer lines, until the empty one. Raises UpstreamError."""
    fields: Fields = []
    left = HEAD_SIZE_BYTES_MAX
    while True:
        line = await connection.read_line(left)
        left -= len(line)
        if line in (b"\r\n", b"\n"):
            return fields
        found = FIELD_LINE.fullmatch(line)
        if found is None:
            raise UpstreamError("sent a malformed header line")
        fields.append((found[1], found[2]))


async def read_head(connection: Connection) -> tuple[int, int, Fields]:
    """Status, minor version and header fields of the final response. Raises UpstreamError."""
    for _ in range(INTERIM_RESPONSES_MAX):
        found = STATUS_LINE.fullmatch(await connection.read_line(HEAD_SIZE_BYTES_MAX))
        if found is None:
            raise UpstreamError("sent no HTTP/1 response")
        fields = await read_fields(connection)
        status = int(found[2])
        if status == 101:
            raise UpstreamError("changed the protocol, unasked")
        if status >= 200:
            return status, int(found[1]), fields
    raise UpstreamError("sent informational responses without end")


async def read_answer(connection: Connection, method: str, size_bytes_max: int) -> Answer:
    """One response, delimited as RFC 9112 section 6.3 says. Raises UpstreamError."""
    status, minor, fields = await read_head(connection)
    options = connection_options(values(fields, b"connection"))
    is_last = b"close" in options or (minor == 0 and b"keep-alive" not in options)
    lengths = set(values(fields, b"content-length"))
    codings = values(fields, b"transfer-encoding")
    if len(lengths) > 1 or any(not length.isdigit() or len(length) > 18 for length in lengths):
        raise UpstreamError("sent bad or conflicting lengths")
    if method == "HEAD" or status in WITHOUT_CONTENT:
        body = b""
    elif codings:
        if minor == 0 or b",".join(codings).lower() != b"chunked":
            raise UpstreamError("sent a transfer coding that it was not offered")
        body = await read_chunked(connection, size_bytes_max)
        # Both: somebody on the way may have seen another end (RFC 9112 section 6.1).
        is_last = is_last or bool(lengths)
        fields = [field for field in fields if field[0].lower() != b"content-length"]
    elif lengths:
        body = await connection.read_exactly(int(lengths.pop()), size_bytes_max)
    else:
        body = await connection.read_to_end(size_bytes_max)
        is_last = True
    return Answer(status, fields, body, is_last)


def values(fields: Fields, wanted: bytes) -> list[bytes]:
    """The values of the fields called `wanted` (in lower case)."""
    return [value for name, value in fields if name.lower() == wanted]


async def read_chunked(connection: Connection, size_bytes_max: int) -> bytes:
    """A body in chunked coding (RFC 9112 section 7.1); its trailers are dropped. Raises UpstreamError."""
    body = bytearray()
    while True:
        found = CHUNK_LINE.fullmatch(await connection.read_line(CHUNK_LINE_SIZE_BYTES_MAX))
        if found is None:
            raise UpstreamError("sent bad chunked coding")
        length = int(found[1], 16)
        if length == 0:
            await read_fields(connection)
            return bytes(body)
        body += await connection.read_exactly(length, size_bytes_max - len(body))
        if await connection.read_line(2) not in (b"\r\n", b"\n"):
            raise UpstreamError("sent bad chunked coding")


# --- the pool ---------------------------------------------------------------------------------------------------------


class Pool:
    """The connections of one event loop: so many at most, those that are idle kept for a while."""

    def __init__(self, address: Address, connections_max: int, connect_timeout_s: float) -> None:
        self.address = address
        self.connect_timeout_s = connect_timeout_s
        #: To be held around exchange().
        self.places = asyncio.Semaphore(connections_max)
        self._loop = asyncio.get_running_loop()
        self._kept: list[Connection] = []
        self._timer: asyncio.TimerHandle | None = None

    async def exchange(self, head: bytes, body: memoryview, method: str, size_bytes_max: int) -> Answer:
        """Sends a request on a kept connection or a new one. Raises UpstreamError, OSError, TimeoutError."""
        connection = self._take()
        if connection is not None:
            try:
                return await self._use(connection, head, body, method, size_bytes_max)
            except StaleConnectionError:
                if method not in SAFE_METHODS:
                    raise
        async with asyncio.timeout(self.connect_timeout_s):
            _, connection = await self._loop.create_connection(Connection, self.address.host, self.address.port)
        return await self._use(connection, head, body, method, size_bytes_max)

    async def _use(
        self, connection: Connection, head: bytes, body: memoryview, method: str, size_bytes_max: int
    ) -> Answer:
        is_kept = False
        try:
            answer = await connection.exchange(head, body, method, size_bytes_max)
            is_kept = not answer.is_last and connection.is_idle
            return answer
        finally:
            if is_kept:
                self._keep(connection)
            else:
                connection.close()

    def _take(self) -> Connection | None:
        """The connection that was used last, so that those too many grow old."""
        while self._kept:
            connection = self._kept.pop()
            if connection.is_idle and self._loop.time() - connection.kept_since_s < KEPT_IDLE_S:
                return connection
            connection.close()
        return None

    def _keep(self, connection: Connection) -> None:
        connection.kept_since_s = self._loop.time()
        self._kept.append(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(KEPT_IDLE_S, self._expire)

    def _expire(self) -> None:
        """Closes what was kept for too long; the timer goes on while anything is kept."""
        oldest_s = self._loop.time() - KEPT_IDLE_S
        expired = [each for each in self._kept if each.kept_since_s <= oldest_s or not each.is_idle]
        self._kept = [each for each in self._kept if each not in expired]
        for connection in expired:
            connection.close()
        self._timer = self._loop.call_later(KEPT_IDLE_S, self._expire) if self._kept else None

    def close(self) -> None:
        """Closes what is kept."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for connection in self._kept:
            connection.close()
        self._kept.clear()
