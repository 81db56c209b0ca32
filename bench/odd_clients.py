"""The soak's odd clients: slow, broken, hostile, or gone. Each act tallies what the server has to have counted."""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from batchbridge.measure.traffic import request_bytes

from .soak_traffic import BATCH, FILE, HUGE_SIZE_BYTES, LARGE_SIZE_BYTES, REFUSED, UNEXPECTED, Tally

#: No act waits longer than this for anything.
PATIENCE_S = 10.0
SLOW_BUFFER_SIZE_BYTES = 16_384
SLOW_PIECE_SIZE_BYTES = 65_536
SLOW_PAUSE_S = 0.02
#: Beyond this many faults, further ones tell nothing new.
FAULTS_MAX = 20


class Wire:
    """A connection that is spoken to in bytes."""

    def __init__(self, address: tuple[str, int], receive_size_bytes: int = 0) -> None:
        self.socket = socket.socket()
        if receive_size_bytes:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_size_bytes)
        self.socket.settimeout(PATIENCE_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.connect(address)
        self.unread = b""

    def send(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        for piece in pieces:
            self.socket.sendall(piece)
            time.sleep(pause_s)

    def more(self, size_bytes: int = 65_536) -> bytes:
        """Some bytes; none at the connection's end, however it ended."""
        try:
            return self.socket.recv(size_bytes)
        except ConnectionError:
            return b""

    def head(self) -> tuple[int, int]:
        """Status and Content-Length of the next response; (0, 0) where the connection has ended."""
        while b"\r\n\r\n" not in self.unread:
            piece = self.more()
            if not piece:
                return 0, 0
            self.unread += piece
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        length = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        return int(head[9:12]), length

    def body(self, length: int, pause_s: float = 0.0) -> bytes:
        """So many bytes, or fewer where the connection ended before."""
        while len(self.unread) < length:
            piece = self.more(SLOW_PIECE_SIZE_BYTES)
            if not piece:
                break
            self.unread += piece
            time.sleep(pause_s)
        body, self.unread = self.unread[:length], self.unread[length:]
        return body

    def answer(self) -> tuple[int, bytes]:
        """The next response, whole."""
        status, length = self.head()
        return status, self.body(length)

    def ended(self) -> bool:
        """Whether the server closes here, and sends nothing before."""
        return self.unread == b"" and self.more() == b""

    def reset(self) -> None:
        """Closes with RST instead of FIN."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()


@dataclass
class OddClient:
    """One thread's worth of odd behaviour."""

    address: tuple[str, int]
    chance: random.Random
    large: bytes
    tally: Tally = field(default_factory=Tally)

    def run(self, until: float) -> None:
        """Act after act, in an order of chance, until that moment (of time.monotonic)."""
        acts = dict(ACTS)
        while time.monotonic() < until and len(self.tally.faults) < FAULTS_MAX:
            name = self.chance.choice(list(acts))
            try:
                acts[name](self)
            except (OSError, ValueError, IndexError) as error:
                self.fault(f"{name}: {type(error).__name__}: {error}")
            self.tally.acts[name] += 1
            if name in ONCE:
                del acts[name]

    def fault(self, text: str) -> None:
        self.tally.faults.append(text)

    @contextlib.contextmanager
    def wire(self, receive_size_bytes: int = 0) -> Iterator[Wire]:
        wire = Wire(self.address, receive_size_bytes)
        with contextlib.closing(wire.socket):
            yield wire

    def expect(self, wire: Wire, what: str, outcome: str, status: int, body: bytes | None = None) -> None:
        """Reads a response and compares it."""
        got, content = wire.answer()
        if got:
            self.tally.outcomes[outcome if got == status else UNEXPECTED] += 1
        if got != status:
            self.fault(f"{what}: status {got or 'none'} instead of {status}")
        elif body is not None and content != body:
            self.fault(f"{what}: a body of {len(content)} bytes that is not the right one")


# --- slow -------------------------------------------------------------------------------------------------------------


def slow_reader(client: OddClient) -> None:
    with client.wire(SLOW_BUFFER_SIZE_BYTES) as wire:
        wire.send(request_bytes("GET", "/large.bin"))
        status, length = wire.head()
        client.tally.outcomes[FILE] += status == 200
        if length != LARGE_SIZE_BYTES or wire.body(length, SLOW_PAUSE_S) != client.large:
            client.fault(f"slow reader: status {status}, {length} bytes, or wrong ones")


def stuck_reader(client: OddClient) -> None:
    """Takes nothing any more: is cut off after send_timeout."""
    with client.wire(SLOW_BUFFER_SIZE_BYTES) as wire:
        wire.send(request_bytes("GET", "/huge.bin"))
        status, length = wire.head()
        client.tally.outcomes[FILE] += status == 200
        time.sleep(2.5)
        if len(wire.body(length)) >= HUGE_SIZE_BYTES:
            client.fault("stuck reader: was not cut off")


def byte_by_byte(client: OddClient) -> None:
    data = request_bytes("GET", "/add/1/2")
    with client.wire() as wire:
        wire.send(*[data[at : at + 1] for at in range(len(data))])
        client.expect(wire, "byte by byte", BATCH, 200, b"3")


def slow_head(client: OddClient) -> None:
    with client.wire() as wire:
        wire.send(b"GET /small/000.html HTTP/1.1\r\nHo")
        client.expect(wire, "slow head", REFUSED, 408)
        if not wire.ended():
            client.fault("slow head: not closed")


def slow_body(client: OddClient) -> None:
    with client.wire() as wire:
        wire.send(request_bytes("POST", "/echo", body=bytes(100))[:-50])
        client.expect(wire, "slow body", REFUSED, 408)
        if not wire.ended():
            client.fault("slow body: not closed")


def idle(client: OddClient) -> None:
    with client.wire() as wire:
        if not wire.ended():
            client.fault("idle: not closed")


# --- gone -------------------------------------------------------------------------------------------------------------


def leave(client: OddClient) -> None:
    """FIN, while the answer is awaited."""
    with client.wire() as wire:
        wire.send(request_bytes("GET", "/hold/1"))
        client.tally.abandoned += 1
        time.sleep(client.chance.random() * 0.02)


def reset_while_owed(client: OddClient) -> None:
    """RST. The file's answer tells that the request behind it, in the same packet, has been read as well."""
    with client.wire() as wire:
        wire.send(request_bytes("GET", "/folder/") + request_bytes("GET", "/hold/2"))
        client.expect(wire, "before a reset", FILE, 200)
        client.tally.abandoned += 1
        wire.reset()


def reset_in_body(client: OddClient) -> None:
    """RST in the middle of a large answer."""
    with client.wire(SLOW_BUFFER_SIZE_BYTES) as wire:
        wire.send(request_bytes("GET", "/large.bin"))
        client.tally.outcomes[FILE] += wire.head()[0] == 200
        wire.reset()


def leave_unfinished(client: OddClient) -> None:
    """Half a head, half a body, nothing: none is a request."""
    for data in (b"", b"GET /add/1/1 HT", request_bytes("POST", "/echo", body=bytes(5000))[:-1]):
        with client.wire() as wire:
            wire.send(data)
            if client.chance.random() < 0.5:
                wire.reset()


# --- hostile ----------------------------------------------------------------------------------------------------------

MALFORMED = (
    (b"GARBAGE\r\n\r\n", 400),
    (b"GET /\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\n folded: b\r\n\r\n", 400),
    (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
    (b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999\r\n\r\n", 413),
    (b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: a\r\n\r\n", 414),
    (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 20000 + b"\r\n\r\n", 431),
    (b"GET / HTTP/1.1\r\nHost: a\r\n" + b"X: a\r\n" * 200 + b"\r\n", 431),
)


def malformed(client: OddClient) -> None:
    data, status = client.chance.choice(MALFORMED)
    with client.wire() as wire:
        wire.send(data)
        client.expect(wire, f"malformed {data[:40]!r}", REFUSED, status)
        if not wire.ended():
            client.fault(f"malformed {data[:40]!r}: not closed")


def malformed_behind(client: OddClient) -> None:
    """Behind requests that are right, and still in user mode when it is read."""
    with client.wire() as wire:
        wire.send(request_bytes("GET", "/later/1") + request_bytes("GET", "/later/2") + b"BAD\r\n\r\n" + b"x" * 3000)
        client.expect(wire, "before garbage", BATCH, 200, b"later 1")
        client.expect(wire, "before garbage", BATCH, 200, b"later 2")
        client.expect(wire, "garbage behind", REFUSED, 400)
        if not wire.ended():
            client.fault("garbage behind: not closed")


# --- unusual, and right -----------------------------------------------------------------------------------------------


def continued(client: OddClient) -> None:
    body = client.chance.randbytes(2000)
    data = request_bytes("POST", "/echo", headers={"Expect": "100-continue"}, body=body)
    with client.wire() as wire:
        wire.send(data[: -len(body)])
        status, _ = wire.head()
        if status != 100:
            client.fault(f"expecting 100: got {status}")
        wire.send(body)
        client.expect(wire, "after 100", BATCH, 200, body)


def chunked_in_pieces(client: OddClient) -> None:
    body = client.chance.randbytes(3000)
    data = request_bytes("POST", "/echo", chunks=[body[at : at + 700] for at in range(0, len(body), 700)])
    cuts = sorted(client.chance.sample(range(1, len(data)), 12))
    with client.wire() as wire:
        pieces = [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        wire.send(*pieces, pause_s=0.001)
        client.expect(wire, "chunks in pieces", BATCH, 200, body)


def half_close(client: OddClient) -> None:
    with client.wire() as wire:
        wire.send(request_bytes("GET", "/later/7") + request_bytes("GET", "/folder/"))
        wire.socket.shutdown(socket.SHUT_WR)
        client.expect(wire, "half closed", BATCH, 200, b"later 7")
        client.expect(wire, "half closed", FILE, 200)
        if not wire.ended():
            client.fault("half closed: not closed")


def old_version(client: OddClient) -> None:
    with client.wire() as wire:
        wire.send(b"GET /add/2/2 HTTP/1.0\r\n\r\n")
        client.expect(wire, "HTTP/1.0", BATCH, 200, b"4")
        if not wire.ended():
            client.fault("HTTP/1.0: not closed")


Act = Callable[[OddClient], None]

ACTS: dict[str, Act] = {
    act.__name__.replace("_", " "): act
    for act in (
        slow_reader, stuck_reader, byte_by_byte, slow_head, slow_body, idle, leave, reset_while_owed, reset_in_body,
        leave_unfinished, malformed, malformed_behind, continued, chunked_in_pieces, half_close, old_version,
    )
}  # fmt: skip

#: Acts that take seconds: once a round and client.
ONCE = {"stuck reader", "slow head", "slow body", "idle", "slow reader"}
