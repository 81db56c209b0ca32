"""A response of an upstream ends where RFC 9112 says, however its bytes come; what has no clear end is refused."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from batchbridge import upstream_connection
from batchbridge.upstream_connection import (
    HEAD_SIZE_BYTES_MAX,
    UNREAD_SIZE_BYTES_MAX,
    Answer,
    Connection,
    Pool,
    UpstreamError,
)
from batchbridge.values import Address

OK = b"HTTP/1.1 200 OK\r\n"
EMPTY = memoryview(b"")


class FakeTransport(asyncio.Transport):
    def __init__(self) -> None:
        self.written = b""
        self.is_reading = True
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        self.is_reading = True

    def is_closing(self) -> bool:
        return self.is_closed

    def abort(self) -> None:
        self.is_closed = True


async def exchange(
    pieces: list[bytes], method: str = "GET", size_bytes_max: int = 1000, *, ends: bool = False
) -> tuple[Answer, Connection]:
    """What comes of a response that arrives in these pieces, with the connection's end behind it or not."""
    connection = Connection()
    connection.connection_made(FakeTransport())

    async def arrive() -> None:
        for piece in pieces:
            connection.data_received(piece)
            await asyncio.sleep(0)
        if ends:
            connection.eof_received()

    task = asyncio.create_task(arrive())
    try:
        async with asyncio.timeout(2.0):
            return await connection.exchange(b"head", EMPTY, method, size_bytes_max), connection
    finally:
        await task


def answer_to(raw: bytes, method: str = "GET", **more: Any) -> Answer:
    return asyncio.run(exchange([raw], method, **more))[0]


# Where a response ends

WHOLE = [
    (b"Content-Length: 5\r\n\r\nhello", b"hello"),
    (b"Content-Length: 0\r\n\r\n", b""),
    (b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", b"hello"),
    (b"Transfer-Encoding: CHUNKED\r\n\r\n3;x=y\r\nhel\r\n02\r\nlo\r\n0\r\nTrailer: x\r\n\r\n", b"hello"),
    (b"X: y\nContent-Length: 2\n\nok", b"ok"),
    (b"Content-Length: 2\r\nContent-Length: 2\r\n\r\nok", b"ok"),
]


@pytest.mark.parametrize(("rest", "body"), WHOLE)
def test_the_end_is_found_however_the_bytes_are_cut(rest, body):
    raw = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK + rest

    async def all_cuts() -> None:
        for pieces in [
            [raw],
            [raw[i : i + 1] for i in range(len(raw))],
            *([raw[:i], raw[i:]] for i in range(1, len(raw))),
        ]:
            answer, connection = await exchange(pieces)
            assert (answer.status, answer.body, answer.is_last) == (200, body, False)
            assert connection.is_idle

    asyncio.run(all_cuts())


@pytest.mark.parametrize(
    ("method", "head"),
    [
        ("HEAD", OK + b"Content-Length: 500\r\n\r\n"),
        ("HEAD", OK + b"Transfer-Encoding: chunked\r\n\r\n"),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
        ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 500\r\nETag: x\r\n\r\n"),
    ],
)
def test_some_responses_have_no_content_whatever_they_say(method, head):
    answer, connection = asyncio.run(exchange([head], method))
    assert answer.body == b""
    assert connection.is_idle


def test_without_a_length_the_end_of_the_connection_is_the_end():
    answer, _ = asyncio.run(exchange([OK + b"\r\n", b"hel", b"lo"], ends=True))
    assert answer.body == b"hello"
    assert answer.is_last


@pytest.mark.parametrize(
    "head",
    [
        OK + b"Connection: close\r\nContent-Length: 0\r\n\r\n",
        OK + b"Connection: x, Close\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        OK + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
def test_a_connection_is_last_where_the_response_says_so_or_is_ambiguous(head):
    assert answer_to(head).is_last


def test_what_http_1_0_keeps_alive_is_kept():
    assert not answer_to(b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 0\r\n\r\n").is_last


def test_bytes_behind_a_response_are_nobodys_and_end_the_connection():
    answer, connection = asyncio.run(exchange([OK + b"Content-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n"]))
    assert answer.body == b"ok"
    assert not connection.is_idle


# What is refused


@pytest.mark.parametrize(
    "raw",
    [
        b"garbage\r\n\r\n",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 99 No\r\n\r\n",
        b"HTTP/1.1 600 No\r\n\r\n",
        b"HTTP/1.1 200OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n",
        OK + b"no colon\r\n\r\n",
        OK + b": no name\r\n\r\n",
        OK + b"X: a\r\n folded\r\nContent-Length: 0\r\n\r\n",
        OK + b"X: a\0b\r\n\r\n",
        OK + b"X: a\rb\r\n\r\n",
        OK + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        OK + b"Content-Length: 1, 1\r\n\r\nx",
        OK + b"Content-Length: -1\r\n\r\n",
        OK + b"Content-Length: +1\r\n\r\nx",
        OK + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: identity\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\nx\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n0x1\r\nx\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n" + b"0" * 5000,
        OK + b"X: " + b"x" * HEAD_SIZE_BYTES_MAX + b"\r\n\r\n",
        OK + b"X: y\r\n" * HEAD_SIZE_BYTES_MAX + b"\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 20,
    ],
)
def test_what_is_no_clear_response_is_refused(raw):
    with pytest.raises(UpstreamError):
        answer_to(raw)


@pytest.mark.parametrize(("rest", "_body"), WHOLE)
def test_a_response_cut_short_is_none(rest, _body):
    raw = OK + rest

    async def all_cuts() -> None:
        for end in range(len(raw)):
            with pytest.raises(UpstreamError):
                await exchange([raw[:end]] if end else [], ends=True)

    asyncio.run(all_cuts())


@pytest.mark.parametrize(
    "raw",
    [
        OK + b"Content-Length: 1001\r\n\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3e9\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n3e8\r\n" + b"x" * 1000 + b"\r\n1\r\n",
        OK + b"\r\n" + b"x" * 1001,
    ],
)
def test_a_body_above_the_limit_is_refused(raw):
    with pytest.raises(UpstreamError, match="larger"):
        answer_to(raw)


def test_a_body_at_the_limit_is_taken():
    assert len(answer_to(OK + b"Content-Length: 1000\r\n\r\n" + b"x" * 1000).body) == 1000


def test_an_error_of_the_connection_is_not_taken_for_the_end():
    async def broken() -> None:
        connection = Connection()
        connection.connection_made(FakeTransport())
        connection.data_received(OK + b"\r\nhalf")
        asyncio.get_running_loop().call_soon(connection.connection_lost, ConnectionResetError())
        with pytest.raises(UpstreamError, match="broke"):
            await connection.exchange(b"", EMPTY, "GET", 1000)

    asyncio.run(broken())


def test_the_socket_is_read_no_faster_than_its_bytes_are_taken():
    async def flood() -> None:
        connection = Connection()
        transport = FakeTransport()
        connection.connection_made(transport)
        length = UNREAD_SIZE_BYTES_MAX + 100
        connection.data_received(OK + b"Content-Length: %d\r\n\r\n" % length)
        connection.data_received(b"x" * (length - 1))
        assert not transport.is_reading
        asyncio.get_running_loop().call_soon(connection.data_received, b"x")
        answer = await connection.exchange(b"", EMPTY, "GET", length)
        assert transport.is_reading
        assert len(answer.body) == length

    asyncio.run(flood())


# The pool


async def with_server(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    use: Callable[[Pool], Awaitable[None]],
) -> int:
    """Runs `use` with a pool on a server whose connections `serve` answers; how many there were."""
    count = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        count += 1
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    pool = Pool(Address(*server.sockets[0].getsockname()), 4, 1.0)
    async with server, asyncio.timeout(5.0):
        await use(pool)
        pool.close()
    return count


async def answer_all(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while await reader.readuntil(b"\r\n\r\n"):
        writer.write(OK + b"Content-Length: 2\r\n\r\nok")


async def answer_one(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(OK + b"Content-Length: 2\r\n\r\nok")


async def ask(pool: Pool, method: str = "GET") -> None:
    answer = await pool.exchange(method.encode() + b" / HTTP/1.1\r\n\r\n", EMPTY, method, 1000)
    assert answer.body == (b"" if method == "HEAD" else b"ok")


def quiet(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """The scripted servers end with their connections."""


def test_a_connection_is_used_again():
    async def use(pool: Pool) -> None:
        asyncio.get_running_loop().set_exception_handler(quiet)
        for _ in range(3):
            await ask(pool)

    assert asyncio.run(with_server(answer_all, use)) == 1


def test_a_connection_that_was_closed_meanwhile_is_not():
    async def use(pool: Pool) -> None:
        for _ in range(3):
            await ask(pool, "POST")
            await asyncio.sleep(0.02)

    assert asyncio.run(with_server(answer_one, use)) == 3


def test_a_kept_connection_is_closed_in_time(monkeypatch):
    monkeypatch.setattr(upstream_connection, "KEPT_IDLE_S", 0.05)

    async def use(pool: Pool) -> None:
        asyncio.get_running_loop().set_exception_handler(quiet)
        await ask(pool)
        (connection,) = pool._kept
        await asyncio.sleep(0.2)
        assert pool._kept == []
        assert pool._timer is None
        assert not connection.is_idle
        await ask(pool)

    assert asyncio.run(with_server(answer_all, use)) == 2


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "POST", "PUT", "DELETE"])
def test_a_request_that_met_a_closed_connection_goes_again_if_its_method_is_safe(method):
    served = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK + b"Content-Length: 2\r\n\r\n" + (b"" if method == "HEAD" else b"ok"))
        served += 1
        if served == 1:
            await reader.readuntil(b"\r\n\r\n")  # and ends as it arrives

    async def use(pool: Pool) -> None:
        await ask(pool, method)
        if method in ("GET", "HEAD", "OPTIONS"):
            await ask(pool, method)
        else:
            with pytest.raises(UpstreamError, match="without a response"):
                await ask(pool, method)

    asyncio.run(with_server(serve, use))
    assert served == (2 if method in ("GET", "HEAD", "OPTIONS") else 1)
