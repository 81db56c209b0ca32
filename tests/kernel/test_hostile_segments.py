"""Clients whose segments are as bad as TCP allows: one byte each, lost, out of order, repeated. Each request is seen
once, whole and in its place; and nothing but a whole published request is taken for one."""

import itertools
import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchbridge as bb
from support.segments import NETWORK, Peer, bodies, tunnel
from support.serving import make_server, running
from support.wire import await_true, head

from .conftest import FILES, echoing, side

PATIENCE_S = 8.0

#: Each way in which the engine answers: from the cache, by a file, by a handler, by itself.
REQUEST_SET = (
    (head("GET", "/f"), FILES["f"]),
    (head("GET", "/a", ("X-Filler", "y" * 90)), FILES["a"]),
    (head("POST", "/echo/7", body=b"a body of some bytes"), b"7 20 a body of some bytes"),
    (head("GET", "/f"), FILES["f"]),
    (head("POST", "/echo/8", body=b""), b"8 0 "),
    (head("GET", "/b"), FILES["b"]),
    (head("GET", "/f"), FILES["f"]),
)
STREAM = b"".join(request for request, _ in REQUEST_SET)
ANSWERS = [body for _, body in REQUEST_SET]


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def server(request: pytest.FixtureRequest, wire: int, root: Path) -> Iterator[bb.Server]:
    settings = {"root": str(root), "bind": (f"{NETWORK}.1:0",), "engine_threads": request.param}
    with running(echoing(make_server("kernel", **settings))) as server:
        yield server


@pytest.fixture
def wire() -> Iterator[int]:
    with tunnel() as fd:
        yield fd


@pytest.fixture
def peer(wire: int, server: bb.Server) -> Peer:
    return Peer(wire, port_of(server))


def port_of(server: bb.Server) -> int:
    return int(server.url.rpartition(":")[2])


def publish(wire: int, server: bb.Server, request: bytes) -> None:
    """Lets every engine thread publish it: each has a kernel side of its own."""
    for _ in range(8):
        peer = Peer(wire, port_of(server))
        for number in range(4):
            peer.send(number * len(request), request)
            await_answers(peer, number + 1)


def await_answers(peer: Peer, count: int) -> None:
    peer.listen_until(lambda: peer.received.count(b"HTTP/1.1 ") >= count, PATIENCE_S)


def received(server: bb.Server) -> int:
    return int(server.stats()["bytes"]["received"])


def send_apart(peer: Peer, server: bb.Server, before: int, *pieces: bytes) -> None:
    """Sends each piece when the engine has all that was sent earlier; it had received `before` bytes of others.

    While the engine holds a connection's socket, TCP joins the segments that wait for it (in its backlog): a beginning
    and its rest would become a whole request, and rightly be taken for it.
    """
    for piece in pieces:
        peer.send(peer.at, piece)
        await_true(lambda: received(server) == before + peer.at, what="a segment's bytes received")


def expect(peer: Peer, wanted: list[bytes]) -> None:
    await_answers(peer, len(wanted))
    peer.listen(0.05)
    assert bodies(peer.received) == wanted
    assert not peer.has_rst


def test_segments_of_one_byte(peer: Peer, server: bb.Server) -> None:
    for place in range(len(STREAM)):
        peer.send(place, STREAM[place : place + 1])
        if place % 50 == 0:
            peer.listen(0.001)
    expect(peer, ANSWERS)
    assert peer.acknowledged == len(STREAM)
    assert server.stats()["requests"]["read"] == len(REQUEST_SET)


def test_segments_of_one_byte_of_what_is_published(wire: int, server: bb.Server) -> None:
    publish(wire, server, head("GET", "/f"))
    hits, before = side(server)["hits"], received(server)
    assert hits > 0
    peer = Peer(wire, port_of(server))
    for request, _ in REQUEST_SET:
        # Whatever TCP joins of the rest begins behind a request's first byte.
        send_apart(peer, server, before, request[:1])
        for place in range(1, len(request)):
            peer.send(peer.at, request[place : place + 1])
    expect(peer, ANSWERS)
    assert side(server)["hits"] == hits


def deliver(peer: Peer, stream: bytes, chance: random.Random, loss: float) -> None:
    """Sends the stream in pieces that are lost, repeated and out of order, until all of it is acknowledged."""
    cuts = sorted({0, len(stream), *chance.sample(range(1, len(stream)), 25)})
    pieces = list(itertools.pairwise(cuts))
    until = time.monotonic() + PATIENCE_S
    while peer.acknowledged < len(stream):
        assert time.monotonic() < until, f"{peer.acknowledged} of {len(stream)} bytes acknowledged"
        missing = [piece for piece in pieces if piece[1] > peer.acknowledged]
        for first, end in chance.sample(missing, min(len(missing), 8)):
            # Now and then with bytes before it that were sent already.
            first = max(0, first - chance.choice((0, 0, 0, 1, 40)))
            if chance.random() >= loss:
                peer.send(first, stream[first:end])
        peer.listen(0.003)


@pytest.mark.parametrize("seed", range(6))
def test_loss_and_reordering(peer: Peer, server: bb.Server, seed: int) -> None:
    deliver(peer, STREAM * 3, random.Random(seed), loss=0.3)
    expect(peer, ANSWERS * 3)
    await_true(lambda: server.stats()["requests"]["read"] == len(REQUEST_SET) * 3)


def test_loss_on_many_connections_at_once(wire: int, server: bb.Server) -> None:
    """Their segments come mixed; each connection sees its own answers."""
    publish(wire, server, head("GET", "/f"))
    chance = random.Random(3)
    streams = [head("POST", f"/echo/{number}", body=b"%d" % number * 30) + head("GET", "/f") for number in range(12)]
    peers = [Peer(wire, port_of(server)) for _ in streams]
    jobs = [(number, place) for number, stream in enumerate(streams) for place in range(0, len(stream), 40)]
    chance.shuffle(jobs)
    for number, place in jobs:
        peers[number].send(place, streams[number][place : place + 40])
    for number, (peer, stream) in enumerate(zip(peers, streams, strict=True)):
        deliver(peer, stream, chance, loss=0.3)
        body = b"%d" % number * 30
        expect(peer, [b"%d %d %b" % (number, len(body), body), FILES["f"]])


#: The least and the largest image, also of each size of places, and words and lanes of the comparison.
LENGTHS = (27, 31, 32, 33, 63, 64, 65, 95, 96, 97, 319, 320, 321, 767, 768, 769, 1983, 1984, 1985, 2015, 2016, 2017)
LENGTHS += (2047, 2048, 2049)


def request_of(name: str, length: int, last: bytes = b"y") -> bytes:
    """A request for a file, of exactly so many bytes; `last` is the last one of its filler."""
    bare = b"GET /%b HTTP/1.1\r\nHost:" % name.encode()
    filler = length - len(bare) - 4
    assert filler > 0
    host = b"y" * (filler - 1) + last
    if filler > 200:
        lines = b"h\r\nX-Filler:"
        host = lines + b"y" * (filler - len(lines) - 1) + last
    return bare + host + b"\r\n\r\n"


@pytest.mark.parametrize("server", [1], indirect=True)
@pytest.mark.parametrize("length", LENGTHS)
def test_images_of_every_length_around_the_limits(wire: int, server: bb.Server, length: int) -> None:
    known = request_of("a", length)
    assert len(known) == length
    publish(wire, server, known)
    hits = side(server)["hits"]
    assert (hits > 0) == (length <= 2016)
    # Nothing that is nearly the same is taken for it: another file, another last byte, one byte more or less.
    others = [request_of("b", length)]
    others += [request_of("a", length, b"z"), request_of("a", length + 1)]
    others += [request_of("a", length - 1)] if length > 27 else []
    before = received(server)
    peer = Peer(wire, port_of(server))
    for number, other in enumerate(others):
        peer.send(peer.at, other)
        await_answers(peer, number + 1)
    # Nor its beginning, or it with a byte behind it, as segments.
    for first in (length - 1, length - 2, 15, 16, 17):
        send_apart(peer, server, before, known[:first], known[first:])
    send_apart(peer, server, before, known + known[:1], known[1:])
    wanted = [FILES["b" if other.startswith(b"GET /b") else "a"] for other in others] + [FILES["a"]] * 7
    expect(peer, wanted)
    assert side(server)["hits"] == hits
    peer.send(peer.at, known)
    await_answers(peer, len(wanted) + 1)
    assert side(server)["hits"] == hits + (length <= 2016)
