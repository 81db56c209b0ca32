"""Records of the kernel side become requests once, whole and in order, whatever is late: bytes that went through a
socket may be in it later than what came behind them by the ring (a gap). Nobody else waits for them.

The kernel side is memory (`kernel_testing`), so a test decides what is late, and by how much.
"""

import contextlib
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from batchbridge.cython_ext.kernel_testing import MemorySide
from support.loop import Loop, get, make_server

PATIENCE_US = 1_000_000
LARGE = b"0123456789abcdef" * 10_000


@dataclass
class Wire:
    """A client's connection, in row `row`: what arrives, and what of it is not in its socket yet."""

    side: MemorySide
    loop: Loop
    row: int
    ours: socket.socket = field(init=False)
    theirs: socket.socket = field(init=False)
    late: bytes = b""
    is_fin_late: bool = False

    def __post_init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.side.open(self.row)
        self.client = self.loop.connect()
        self.side.accept(self.client, self.row, self.ours.fileno())

    def arrive(self, data: bytes, *, fin: bool = False, is_full: bool = False) -> bool:
        """Whether it went up by the ring; else it is late."""
        went_up = self.side.arrive(self.row, data, fin, is_full)
        if not went_up:
            self.late += data
            self.is_fin_late |= fin
        return went_up

    def deliver(self, size_bytes: int | None = None) -> None:
        """Puts the first of the late bytes into the socket; with the last of them the FIN, if it is late, too."""
        size_bytes = len(self.late) if size_bytes is None else size_bytes
        if size_bytes:
            self.theirs.sendall(self.late[:size_bytes])
        self.late = self.late[size_bytes:]
        if self.is_fin_late and not self.late:
            self.theirs.shutdown(socket.SHUT_WR)
            self.is_fin_late = False

    @property
    def bodies(self) -> list[bytes]:
        return [reply.body for reply in self.loop.replies(self.client)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for number in range(10):
        (tmp_path / str(number)).write_bytes(b"%d" % number)
    (tmp_path / "large").write_bytes(LARGE)
    return tmp_path


@pytest.fixture
def loop(root: Path) -> Iterator[Loop]:
    with Loop(make_server(root=str(root))) as loop:
        yield loop


@pytest.fixture
def side(loop: Loop) -> Iterator[MemorySide]:
    with contextlib.closing(MemorySide(loop.engine)) as side:
        yield side


def turn(side: MemorySide, loop: Loop, after_us: int = 0) -> bool:
    """A turn of the driver; whether the engine could sleep behind it."""
    loop.turn(after_us)
    is_idle = side.consume()
    loop.settle()
    return is_idle


def ask(number: int) -> bytes:
    return get(f"/{number}")


def gap(side: MemorySide, loop: Loop) -> Wire:
    """A connection that waits for the bytes of request 1, while request 2 has come up by the ring."""
    wire = Wire(side, loop, 0)
    assert wire.arrive(ask(0))
    turn(side, loop)
    assert not wire.arrive(ask(1), is_full=True)
    turn(side, loop)  # the socket is empty, so it is taken as drained
    assert wire.arrive(ask(2))
    assert not turn(side, loop)
    assert wire.bodies == [b"0"] and side.is_paused(0) and side.gaps_awaited == 1
    return wire


def test_what_comes_by_the_ring(side: MemorySide, loop: Loop) -> None:
    wire = Wire(side, loop, 0)
    wire.arrive(ask(0) + ask(1)[:9])
    assert turn(side, loop)
    wire.arrive(ask(1)[9:] + ask(2), fin=True)
    turn(side, loop)
    assert wire.bodies == [b"0", b"1", b"2"]
    assert loop.engine.is_finished(wire.client)


def test_what_goes_through_the_socket(side: MemorySide, loop: Loop) -> None:
    wire = Wire(side, loop, 0)
    wire.arrive(ask(0))
    wire.arrive(ask(1), is_full=True)
    assert not wire.arrive(ask(2))  # all that comes behind it goes the same way
    wire.deliver()
    turn(side, loop)
    assert wire.arrive(ask(3))
    turn(side, loop)
    assert wire.bodies == [b"0", b"1", b"2", b"3"] and side.gaps_awaited == 0


def test_others_do_not_wait_for_a_gap(side: MemorySide, loop: Loop) -> None:
    wire, other = gap(side, loop), Wire(side, loop, 1)
    for _ in range(5):
        other.arrive(ask(7))
        turn(side, loop)
        assert other.bodies == [b"7"] and wire.bodies == []
    wire.deliver()
    turn(side, loop)
    assert wire.bodies == [b"1", b"2"]
    assert not side.is_paused(0) and turn(side, loop)


def test_what_comes_behind_a_gap_stays_in_the_socket(side: MemorySide, loop: Loop) -> None:
    wire = gap(side, loop)
    for number in (3, 4, 5):
        assert not wire.arrive(ask(number))
    turn(side, loop)
    assert wire.bodies == []
    wire.deliver(len(ask(1)) - 1)
    turn(side, loop)
    assert wire.bodies == []
    wire.deliver()
    for _ in range(2):
        turn(side, loop)
    assert wire.bodies == [b"%d" % number for number in (1, 2, 3, 4, 5)]
    assert wire.arrive(ask(6)) and turn(side, loop) and wire.bodies == [b"6"]


def test_records_behind_a_gap_wait_with_their_fin(side: MemorySide, loop: Loop) -> None:
    """Those that were in the ring before the pause was seen."""
    wire = Wire(side, loop, 0)
    wire.arrive(ask(1), is_full=True)
    turn(side, loop)
    assert wire.arrive(ask(2)) and wire.arrive(ask(3)) and wire.arrive(ask(4)[:5]) and wire.arrive(ask(4)[5:], fin=True)
    turn(side, loop)
    assert wire.bodies == [] and side.gaps_awaited == 1
    wire.deliver()
    turn(side, loop)
    assert wire.bodies == [b"1", b"2", b"3", b"4"]
    assert loop.engine.is_finished(wire.client)


def test_a_gap_is_given_up_when_nothing_comes(side: MemorySide, loop: Loop) -> None:
    wire = gap(side, loop)
    for _ in range(3):  # as long as something comes, it goes on
        turn(side, loop, PATIENCE_US * 9 // 10)
        wire.deliver(1)
        turn(side, loop)
    assert not loop.engine.is_closed(wire.client)
    turn(side, loop, PATIENCE_US * 11 // 10)
    turn(side, loop)
    assert loop.engine.is_closed(wire.client) and wire.bodies == []
    side.leave(wire.client)
    side.end(0)
    assert turn(side, loop)


def test_a_connection_that_ends_in_a_gap_gives_its_row_back(side: MemorySide, loop: Loop) -> None:
    rows = side.rows_free
    wire = gap(side, loop)
    side.end(0)
    turn(side, loop)
    assert loop.engine.is_closed(wire.client)
    side.leave(wire.client)
    assert turn(side, loop)
    assert side.rows_free == rows + 1  # which nobody had taken from the list


def test_a_pause_for_the_client_s_sake_does_not_end_with_the_gap(side: MemorySide, loop: Loop) -> None:
    """The kept bytes are more than may wait: the connection is paused by what the gap's end hands on."""
    wire = Wire(side, loop, 0)
    loop.engine.send_limit(wire.client, 0)
    wire.arrive(get("/large"))
    turn(side, loop)
    wire.arrive(ask(1), is_full=True)
    turn(side, loop)
    assert wire.arrive(ask(2) * 3000)
    turn(side, loop)
    wire.deliver()
    turn(side, loop)
    assert side.is_paused(0)
    loop.engine.send_limit(wire.client, None)
    loop.settle()
    assert not side.is_paused(0)
    assert wire.bodies == [LARGE, b"1", *[b"2"] * 3000]


@pytest.mark.parametrize("seed", range(60))
def test_any_order_of_events(side: MemorySide, loop: Loop, seed: int) -> None:
    """Bytes cut anywhere, a ring that is full now and then, sockets that are late, turns in between."""
    chance = random.Random(seed)
    wires = [Wire(side, loop, row) for row in range(3)]
    asked = [[chance.randrange(10) for _ in range(chance.randrange(1, 40))] for _ in wires]
    streams = [b"".join(map(ask, numbers)) for numbers in asked]
    answered: list[list[bytes]] = [[] for _ in wires]
    fullness, lateness = chance.random() * 0.5, chance.random()
    while any(streams):
        number = chance.choice([number for number, stream in enumerate(streams) if stream])
        length = chance.randrange(1, 150)
        part, streams[number] = streams[number][:length], streams[number][length:]
        wires[number].arrive(part, fin=not streams[number], is_full=chance.random() < fullness)
        for wire, got in zip(wires, answered, strict=True):
            if chance.random() > lateness:
                wire.deliver(chance.randrange(len(wire.late) + 1))
            if chance.random() < 0.4:
                turn(side, loop)
            got += wire.bodies
    for _ in range(4):
        for wire, got in zip(wires, answered, strict=True):
            wire.deliver()
            turn(side, loop)
            got += wire.bodies
    assert answered == [[b"%d" % number for number in numbers] for numbers in asked]
    assert all(loop.engine.is_finished(wire.client) for wire in wires)


# --- whether connections are worth a row ------------------------------------------------------------------------------


def come(loop: Loop, connections: int, requests: int) -> None:
    """So many connections, of so many requests each, that end."""
    for _ in range(connections):
        loop.connect(ask(0) * (requests - 1) + get("/0", "Connection: close"))
    loop.settle()


@pytest.mark.parametrize(
    ("least", "connections", "requests", "leaves"),
    [(4, 64, 3, True), (4, 64, 4, False), (4, 63, 1, False), (0, 200, 1, False), (1, 200, 1, False)],
)
def test_connections_of_few_requests_are_left_to_user_mode(
    side: MemorySide, loop: Loop, least: int, connections: int, requests: int, leaves: bool
) -> None:
    turn(side, loop)
    side.requests_min = least
    come(loop, connections, requests)
    turn(side, loop, 500_001)
    assert not side.leaves_connections  # once says nothing
    come(loop, connections, requests)
    turn(side, loop, 250_000)
    assert not side.leaves_connections
    turn(side, loop, 250_001)
    assert side.leaves_connections == leaves
    turn(side, loop, 500_001)
    assert not side.leaves_connections


def test_connections_that_have_not_ended_do_not_count_as_short(side: MemorySide, loop: Loop) -> None:
    side.requests_min = 4
    for _ in range(3):
        for _ in range(100):
            loop.connect(ask(0))
        loop.settle()
        turn(side, loop, 500_001)
        assert not side.leaves_connections


def test_one_connection_that_lasts_outweighs_many_that_do_not(side: MemorySide, loop: Loop) -> None:
    side.requests_min = 4
    lasting = loop.connect(ask(0))
    turn(side, loop, 500_001)
    for _ in range(3):
        come(loop, 100, 1)
        for _ in range(10):
            loop.send(lasting, ask(0) * 30)
            loop.settle()
        turn(side, loop, 500_001)
        assert not side.leaves_connections
