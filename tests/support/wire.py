"""A client on a raw socket, which sends the bytes it is told and reads one response at a time.

h11 is the oracle: what it refuses is no response. It tells where a response ends, so that what follows (the next one,
the connection's end, or bytes that should not be there) can be told apart.
"""

import contextlib
import socket
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import h11

PATIENCE_S = 8.0
RECEIVE_SIZE_BYTES = 1 << 16


@dataclass
class Reply:
    """One response; header names are in lower case."""

    status: int
    reason: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes = b""
    interim: list[int] = field(default_factory=list)
    """Statuses of the 1xx responses before it."""

    def __getitem__(self, name: str) -> str:
        (value,) = self.all(name)
        return value

    def __contains__(self, name: str) -> bool:
        return bool(self.all(name))

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known == name.lower()]

    def names(self) -> list[str]:
        return [name for name, _ in self.headers]

    def but_date(self) -> tuple[object, ...]:
        """All of it, but for what the clock changes."""
        return (self.status, self.reason, self.version, [pair for pair in self.headers if pair[0] != "date"], self.body)


def head(
    method: str = "GET",
    target: str = "/",
    *headers: tuple[str, str] | str,
    version: str = "1.1",
    host: str | None = "test",
    body: bytes | None = None,
) -> bytes:
    """The bytes of a request; with `body`, its Content-Length and the body, too."""
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += [line if isinstance(line, str) else f"{line[0]}: {line[1]}" for line in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1") + (body or b"")


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    """A body in chunked coding."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailers + b"\r\n"


class NoReplyError(AssertionError):
    """The connection ended where a response was due, without a byte of it."""


class Client:
    """One connection. Reads are bounded by `patience_s`, so that a server that never answers fails the test.

    A small `receive_buffer_bytes` makes a slow reader. Below 64 KiB, what is to be read to its end may come at some
    KiB a second: where the window is smaller than a segment, TCP waits for a timer each time.
    """

    def __init__(self, url: str, *, patience_s: float = PATIENCE_S, receive_buffer_bytes: int | None = None) -> None:
        host, _, port = url.removeprefix("http://").rstrip("/").rpartition(":")
        family = socket.AF_INET6 if host.startswith("[") else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        if receive_buffer_bytes is not None:  # before connecting: the window follows from it
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.socket.settimeout(patience_s)
        self.socket.connect((host.strip("[]"), int(port)))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.rest = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- sending ---

    def send(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        for piece in pieces:
            self.socket.sendall(piece)
            if pause_s:
                time.sleep(pause_s)

    def ask(self, method: str = "GET", target: str = "/", *headers: tuple[str, str] | str, **more: object) -> Reply:
        """Sends one request and reads its response."""
        self.send(head(method, target, *headers, **more))  # type: ignore[arg-type]
        return self.reply(method)

    def end_sending(self) -> None:
        """FIN: the client asks nothing more, and still listens."""
        self.socket.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """RST: the client is gone, and what it has not read is lost."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()

    # --- reading ---

    def reply(self, method: str = "GET") -> Reply:
        """Reads exactly one response to a request of this method.

        AssertionError: it is none, or breaks off. NoReplyError: the connection ended before it.
        """
        oracle = h11.Connection(our_role=h11.CLIENT, max_incomplete_event_size=1 << 16)
        oracle.send(h11.Request(method=method, target="/", headers=[("Host", "test")]))
        oracle.send(h11.EndOfMessage())
        reply: Reply | None = None
        body: list[bytes] = []
        interim: list[int] = []
        begun = bool(self.rest)
        if begun:
            oracle.receive_data(self.rest)
            self.rest = b""
        while True:
            try:
                event = oracle.next_event()
            except h11.RemoteProtocolError as error:
                raise AssertionError(f"not a response: {error}; after {reply}") from error
            if event is h11.NEED_DATA:
                more = self.socket.recv(RECEIVE_SIZE_BYTES)
                if not more and not begun:
                    raise NoReplyError("the connection ended where a response was due")
                oracle.receive_data(more)
                begun = True
            elif isinstance(event, h11.InformationalResponse):
                interim.append(event.status_code)
            elif isinstance(event, h11.Response):
                pairs = [(name.decode(), value.decode("latin-1")) for name, value in event.headers]
                reply = Reply(event.status_code, event.reason.decode(), event.http_version.decode(), pairs)
            elif isinstance(event, h11.Data):
                body.append(bytes(event.data))
            elif isinstance(event, h11.EndOfMessage):
                assert reply is not None
                reply.body, reply.interim = b"".join(body), interim
                self.rest = oracle.trailing_data[0]
                return reply
            else:
                raise AssertionError(f"no response, but {event!r}")

    def interim(self) -> int:
        """Reads one 1xx response and returns its status."""
        while b"\r\n\r\n" not in self.rest:
            more = self.socket.recv(RECEIVE_SIZE_BYTES)
            assert more, f"the connection ended after {self.rest!r}"
            self.rest += more
        text, _, self.rest = self.rest.partition(b"\r\n\r\n")
        status = int(text.split(b" ")[1])
        assert 100 <= status < 200, text
        return status

    def replies(self, *methods: str) -> list[Reply]:
        return [self.reply(method) for method in methods]

    def everything(self) -> bytes:
        """All bytes up to the connection's end."""
        pieces = [self.rest]
        self.rest = b""
        with contextlib.suppress(ConnectionResetError):
            while more := self.socket.recv(RECEIVE_SIZE_BYTES):
                pieces.append(more)
        return b"".join(pieces)

    def assert_ended(self) -> None:
        """The server sent nothing more, and FIN (a reset is a fault: it can cost a client what it has not read)."""
        assert self.rest == b"", f"bytes behind the response: {self.rest[:80]!r}"
        more = self.socket.recv(RECEIVE_SIZE_BYTES)
        assert more == b"", f"bytes behind the response: {more[:80]!r}"

    def is_gone(self) -> bool:
        """Whether the connection ends within the client's patience, in whatever way, without another byte."""
        try:
            return self.rest == b"" and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False

    def is_silent(self, seconds: float = 0.2) -> bool:
        """Whether nothing comes for so long, neither bytes nor the end."""
        patience_s = self.socket.gettimeout()
        self.socket.settimeout(seconds)
        try:
            more = self.socket.recv(RECEIVE_SIZE_BYTES)
            self.rest += more
            return False
        except TimeoutError:
            return self.rest == b""
        finally:
            self.socket.settimeout(patience_s)


def ask(url: str, method: str = "GET", target: str = "/", *headers: tuple[str, str] | str, **more: object) -> Reply:
    """One request on a connection of its own."""
    with Client(url) as client:
        return client.ask(method, target, *headers, **more)


def await_true(condition: object, patience_s: float = PATIENCE_S, what: str = "") -> None:
    """Waits until `condition()` is true; AssertionError when it does not become so."""
    until = time.monotonic() + patience_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, f"did not come true within {patience_s} s: {what or condition}"
        time.sleep(0.005)


def together(calls: Iterable[object]) -> list[object]:
    """Runs the calls on threads of their own, at the same time, and returns their results; raises what one raised."""
    from concurrent.futures import ThreadPoolExecutor

    jobs = list(calls)
    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result() for future in [pool.submit(job) for job in jobs]]  # type: ignore[arg-type]
