"""Whatever several clients send, however it is cut, and however slowly they read: each gets, byte for byte, what a
simple model of the server says (Date and Age aside), in the order in which it asked; and when all are gone, nothing is
left: each request had its outcome, and everything lent was given back.
"""

import http
import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batchbridge as bb
from support.loop import DATE, Loop, get, make_server

AGE = re.compile(rb"Age: \d+\r\n")
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
TEXT, BYTES = "text/plain; charset=utf-8", "application/octet-stream"
DELAY_US = 100

#: Below and above what is copied into the scratch (1 KiB), cached (8 KiB), read at a time (128 KiB).
FILES = {
    "a.txt": b"the file a\n",
    "empty.txt": b"",
    "half.txt": b"h" * 700,
    "large.txt": b"0123456789abcdef" * 300,
    "huge.txt": b"0123456789abcde\n" * 9000,
    "dir/index.txt": b"index\n",
}
LIMITS: dict[str, Any] = {
    "zero_copy_size_bytes_min": 1024,
    "cached_file_size_bytes_max": 8192,
    "pipelined_requests_max": 4,
    "body_size_bytes_max": 200_000,
    "index_files": ("index.txt",),
    "handler_queue_slabs": 16,
    "response_arena_size_bytes": 256 * 1024,
}


# --- the server -------------------------------------------------------------------------------------------------------


def declare(server: bb.Server, policy: dict[str, Any]) -> None:
    """Handlers whose answers depend on nothing but their request, and which answer a batch back to front."""

    def each(answer: Callable[[bb.Request], Any]) -> Callable[[bb.Batch], None]:
        def handler(batch: bb.Batch) -> None:
            for request in reversed(batch):
                response = answer(request)
                request.respond(
                    response.body,
                    status=response.status,
                    content_type=response.content_type,
                    headers=response.headers,
                    cache_ttl_s=response.cache_ttl_s,
                )

        return handler

    server.batch("/item/{name}", **policy)(lambda batch: [f"item {request.params['name']}\n" for request in batch])
    server.batch("/echo", methods=["POST", "PUT"], **policy)(
        each(lambda request: bb.Response(request.body, headers={"X-Method": request.method}))
    )
    server.batch("/size/{n}", **policy)(each(lambda request: bb.Response(filler(int(request.params["n"])))))
    server.batch("/cached/{name}", **policy)(each(lambda request: bb.Response(request.path, cache_ttl_s=60)))
    server.batch("/same/{name}", coalesce=True, **policy)(
        each(lambda request: bb.Response(request.query["n"] * 500, status=203, content_type="text/x-same"))
    )

    @server.batch("/error/{status}", **policy)
    def error(batch: bb.Batch) -> list[bb.HTTPError]:
        return [bb.HTTPError(int(request.params["status"]), "so it is") for request in batch]

    @server.batch("/fail/{how}", **policy)
    def fail(batch: bb.Batch) -> list[str]:
        if any(request.params["how"] == "badly" for request in batch):
            raise ValueError("as the test wants it")
        return [request.path for request in batch]

    @server.batch("/sum", methods=["POST"], decode=bb.Array("<u2", (4,)), **policy)
    def add(batch: bb.Batch) -> Any:
        return batch.as_array().sum(axis=1, dtype="<u4")


def filler(size_bytes: int) -> bytes:
    return (b"%07x\n" * (size_bytes // 8 + 1) % tuple(range(size_bytes // 8 + 1)))[:size_bytes]


# --- the model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Exchange:
    request: bytes
    response: bytes
    closes: bool = False
    is_refused: bool = False
    """The server may know before it has all of the request."""
    may_continue: bool = False


def answer(status: int, *lines: str, body: bytes = b"", connection: str | None = None, length: int | None = 0) -> bytes:
    """A response without Date. `length`: None, no such line; 0, that of the body."""
    head = [f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}", "Server: batchbridge"]
    if length is not None:
        head.append(f"Content-Length: {length or len(body)}")
    if connection:
        head.append(f"Connection: {connection}")
    return "".join(f"{line}\r\n" for line in [*head, *lines, ""]).encode() + body


def said(status: int, *lines: str, connection: str | None = None) -> bytes:
    """What the engine says by itself."""
    body = f"{status} {http.HTTPStatus(status).phrase}\n".encode()
    return answer(status, *lines, f"Content-Type: {TEXT}", body=body, connection=connection)


def file_lines(path: Path) -> list[str]:
    facts = path.stat()
    return [
        f'ETag: "{facts.st_ino:x}-{facts.st_size:x}-{facts.st_mtime_ns:x}"',
        f"Last-Modified: {formatdate(facts.st_mtime_ns // 10**9, usegmt=True)}",
        "Content-Type: text/plain",
        "Accept-Ranges: bytes",
    ]


def chunked(body: bytes, size: int) -> bytes:
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x;x=y\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\nTrailer: t\r\n\r\n"


def exchanges(root: Path) -> list[Exchange]:
    """All that a client may ask, and what it shall get."""
    text = f"Content-Type: {TEXT}"
    found = []
    for name, content in FILES.items():
        path, lines = name.removesuffix("index.txt"), file_lines(root / name)
        found.append(Exchange(get(f"/{path}"), answer(200, *lines, body=content)))
        found.append(Exchange(get(f"/{path}?q", method="HEAD"), answer(200, *lines, length=len(content) or 0)))
    lines, large = file_lines(root / "large.txt"), FILES["large.txt"]
    part = f"Content-Range: bytes 5-1999/{len(large)}"
    found += [
        Exchange(get("/large.txt", "Range: bytes=5-1999"), answer(206, part, *lines, body=large[5:2000])),
        Exchange(get("/large.txt", "If-None-Match: *"), answer(304, *lines[:2], length=None)),
        Exchange(get("/dir"), said(301, "Location: /dir/")),
        Exchange(get("/nothing"), said(404)),
        Exchange(get("/a.txt", method="DELETE"), said(405, "Allow: GET, HEAD, OPTIONS")),
    ]
    found += [Exchange(get(f"/item/{name}"), answer(200, text, body=b"item %b\n" % name.encode())) for name in "xyz"]
    found += [
        Exchange(get("/item/x", method="HEAD"), answer(200, text, length=7)),
        Exchange(get("/item/x", method="OPTIONS"), answer(204, "Allow: GET, HEAD, OPTIONS", length=None)),
        Exchange(get("/cached/1"), answer(200, text, body=b"/cached/1")),
        Exchange(get("/cached/1", method="HEAD"), answer(200, text, length=9)),
        Exchange(get("/fail/not"), answer(200, text, body=b"/fail/not")),
        Exchange(get("/fail/badly"), said(500)),
        Exchange(get("/error/418"), answer(418, text, body=b"so it is\n")),
        Exchange(get("/error/503"), answer(503, text, body=b"so it is\n")),
    ]
    for size in (0, 900, 1100, 70_000):
        found.append(Exchange(get(f"/size/{size}"), answer(200, f"Content-Type: {BYTES}", body=filler(size))))
    for n in "12":
        found.append(Exchange(get(f"/same/1?n={n}"), answer(203, "Content-Type: text/x-same", body=n.encode() * 500)))
    for body in (b"", b"tiny", filler(5000), filler(90_000)):
        lines = [f"Content-Type: {BYTES}", "X-Method: POST"]
        coded = get("/echo", "Transfer-Encoding: chunked", method="POST") + chunked(body, 4000)
        found.append(Exchange(coded, answer(200, *lines, body=body)))
        expecting = get("/echo", "Expect: 100-continue", method="POST", body=body)
        found.append(Exchange(expecting, answer(200, *lines, body=body), may_continue=True))
    numbers = bytes([1, 0, 2, 0, 3, 0, 4, 1])
    found += [
        Exchange(get("/sum", method="POST", body=numbers), answer(200, f"Content-Type: {BYTES}", body=b"\x0a\1\0\0")),
        Exchange(get("/sum", method="POST", body=b"short"), said(422)),
        Exchange(
            get("/item/old", "Connection: keep-alive", version="1.0"),
            answer(200, text, body=b"item old\n", connection="keep-alive"),
        ),
    ]
    close = "close"
    found += [
        Exchange(get("/item/x", "Connection: close"), answer(200, text, body=b"item x\n", connection=close), True),
        Exchange(get("/nothing", version="1.0"), said(404, connection=close), True),
        Exchange(
            get("/a.txt", "Connection: close"),
            answer(200, *file_lines(root / "a.txt"), body=FILES["a.txt"], connection=close),
            closes=True,
        ),
        Exchange(b"GET  / HTTP/1.1\r\nHost: test\r\n\r\n", said(400, connection=close), True, is_refused=True),
        Exchange(get("/echo", "Content-Length: 999999", method="POST"), said(413, connection=close), True, True),
        Exchange(
            get("/echo", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\nx\r\n",
            said(400, connection=close),
            True,
            is_refused=True,
        ),
    ]
    return found


def comparable(cut: bytes) -> bytes:
    """A response cut short, without the line of its head where it was cut: that might be a Date."""
    if b"\r\n" not in cut or b"\r\n\r\n" in cut:
        return cut
    return cut[: cut.rindex(b"\r\n") + 2]


def check(data: bytes, asked: list[Exchange], fed: int, was_reset: bool) -> int:
    """Asserts that `data` is what a client gets that has fed so many bytes of what it asks; returns the number of
    requests that were answered."""
    rest, count, begin = AGE.sub(b"", DATE.sub(b"", data)), 0, 0
    for exchange in asked:
        end = begin + len(exchange.request)
        is_whole = end <= fed
        if exchange.may_continue and rest.startswith(CONTINUE) and begin + exchange.request.index(b"\r\n\r\n") < fed:
            rest = rest.removeprefix(CONTINUE)
        if was_reset and exchange.response.startswith(comparable(rest)):
            return count
        if not is_whole and not (exchange.is_refused and rest):
            break
        assert rest.startswith(exchange.response), (exchange.request[:200], exchange.response[:400], rest[:400])
        rest = rest[len(exchange.response) :]
        begin = end
        count += 1
        if exchange.closes:
            break
    assert rest == b"", rest[:400]
    return count


# --- what happens -----------------------------------------------------------------------------------------------------

CONNECTIONS = 4
EXCHANGES = 64  # at least as many as there are

steps = st.one_of(
    st.tuples(st.just("feed"), st.integers(0, CONNECTIONS - 1), st.integers(1, 200) | st.integers(1, 100_000)),
    st.tuples(st.just("feed"), st.integers(0, CONNECTIONS - 1), st.integers(1, 200)),
    st.tuples(st.just("turn"), st.integers(0, 3), st.sampled_from([0, 0, 1, DELAY_US])),
    st.tuples(st.just("work"), st.just(0), st.integers(1, 3)),
    st.tuples(st.just("limit"), st.integers(0, CONNECTIONS - 1), st.integers(0, 50) | st.integers(0, 20_000)),
    st.tuples(st.just("unlimit"), st.integers(0, CONNECTIONS - 1), st.just(0)),
    st.tuples(st.sampled_from(["end", "reset", "break"]), st.integers(0, CONNECTIONS - 1), st.just(0)),
)

policies = st.fixed_dictionaries(
    {
        "max_batch_size": st.integers(4, 9),
        "policy": st.sampled_from(["idle", "fixed"]),
        "max_queue_delay_us": st.sampled_from([0, DELAY_US]),
        "preferred_batch_size": st.sampled_from([(), (2, 3)]),
        "response_batch_size": st.sampled_from([None, 1, 2]),
        "concurrency": st.integers(1, 2),
    }
)


class Clients:
    """What each client has sent and got."""

    def __init__(self, loop: Loop, asked: list[list[Exchange]]) -> None:
        self.loop = loop
        self.asked = asked
        self.streams = [b"".join(exchange.request for exchange in list_) for list_ in asked]
        self.fed = [0] * len(asked)
        self.ended: set[int] = set()
        self.was_reset: set[int] = set()
        self.numbers = [loop.connect() for _ in asked]

    def feed(self, which: int, size: int) -> None:
        piece = self.streams[which][self.fed[which] : self.fed[which] + size]
        if which not in self.ended and piece:
            self.loop.send(self.numbers[which], piece)
            self.fed[which] += len(piece)

    def take(self, step: tuple[str, int, int]) -> None:
        what, which, amount = step
        engine, which = self.loop.engine, which % len(self.numbers)
        if what == "feed":
            self.feed(which, amount)
        elif what == "turn":
            self.loop.turn(amount, more_input=step[1] == 3)
        elif what == "work":
            self.loop.work(amount)
        elif what == "limit":
            engine.send_limit(self.numbers[which], amount)
        elif what == "unlimit":
            engine.send_limit(self.numbers[which], None)
        elif what == "end" and which not in self.ended:
            engine.feed_end(self.numbers[which])
            self.ended.add(which)
        elif what == "reset":
            engine.reset(self.numbers[which])
            self.was_reset.add(which)
        elif what == "break":
            engine.fail_next_send(self.numbers[which], 32)
            self.was_reset.add(which)

    def finish(self) -> int:
        """Everybody sends the rest and FIN, and reads; returns how many requests the model says were answered."""
        for which, number in enumerate(self.numbers):
            self.feed(which, len(self.streams[which]))
            self.loop.engine.send_limit(number, None)
            if which not in self.ended:
                self.loop.engine.feed_end(number)
        for _ in range(3):  # a queue may wait for its delay, and so do requests behind it
            self.loop.settle(DELAY_US)
        while any(not self.loop.engine.is_closed(number) for number in self.numbers):
            assert self.loop.stats["bridge"]["in_user_mode"], "a connection does not end"
            self.loop.settle(DELAY_US)
        count = 0
        for which, number in enumerate(self.numbers):
            data = self.loop.engine.output(number)
            count += check(data, self.asked[which], self.fed[which], which in self.was_reset)
        return count


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """The handlers that fail say so at length."""
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    (root / "dir").mkdir()
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    return root


@contextmanager
def served(root: Path, policy: dict[str, Any], **more: Any) -> Iterator[Loop]:
    server = make_server(root=str(root), **LIMITS)
    declare(server, policy)
    with Loop(server, **more) as loop:
        yield loop


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    chosen=st.lists(st.lists(st.integers(0, EXCHANGES - 1), max_size=7), min_size=1, max_size=CONNECTIONS),
    steps=st.lists(steps, max_size=60),
    policy=policies,
    lanes=st.integers(1, 2),
    late_sends=st.booleans(),
    inline=st.sampled_from([False, False, True]),
)
def test_clients_get_what_the_model_says(
    root: Path,
    chosen: list[list[int]],
    steps: list[tuple[str, int, int]],
    policy: dict[str, Any],
    lanes: int,
    late_sends: bool,
    inline: bool,
) -> None:
    possible = exchanges(root)
    assert len(possible) <= EXCHANGES
    asked = [[possible[number % len(possible)] for number in numbers] for numbers in chosen]
    with served(root, policy, lanes=1 if inline else lanes, late_sends=late_sends, inline=inline) as loop:
        clients = Clients(loop, asked)
        for step in steps:
            clients.take(step)
        count = clients.finish()
        if not clients.was_reset:
            assert loop.stats["requests"]["read"] == count
            assert "client_gone" not in loop.outcomes
        loop.close_all()


@pytest.mark.parametrize("number", range(EXCHANGES))
def test_each_exchange_by_itself(root: Path, number: int) -> None:
    possible = exchanges(root)
    exchange = possible[number % len(possible)]
    with served(root, {}) as loop:
        clients = Clients(loop, [[exchange, possible[0]]])
        assert clients.finish() == (1 if exchange.closes else 2)
        loop.close_all()
