"""However a client cuts, repeats and overlaps its bytes on the wire, its requests are seen once, whole, in order."""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchbridge as bb
from support.segments import NETWORK, Peer, bodies, tunnel
from support.serving import make_server, running
from support.wire import await_true, head

from .conftest import FILES, echoing, side

A, B, F = (head("GET", f"/{name}") for name in "abf")


@pytest.fixture
def wire() -> Iterator[int]:
    with tunnel() as fd:
        yield fd


@pytest.fixture
def server(wire: int, root: Path) -> Iterator[bb.Server]:
    with running(echoing(make_server("kernel", root=str(root), bind=(f"{NETWORK}.1:0",)))) as server:
        yield server


@pytest.fixture
def peer(wire: int, server: bb.Server) -> Peer:
    return Peer(wire, int(server.url.rpartition(":")[2]))


def expect(peer: Peer, *names: str) -> None:
    wanted = [FILES[name] for name in names]
    peer.listen_until(lambda: peer.received.count(b"HTTP/1.1 ") >= len(wanted))
    peer.listen(0.1)
    assert bodies(peer.received) == wanted
    assert not peer.has_rst


def test_part_of_a_request_and_then_all_of_it(peer: Peer) -> None:
    peer.send(0, A[:20])
    peer.listen(0.1)
    peer.send(0, A)
    expect(peer, "a")
    assert peer.acknowledged == len(A)


def test_an_answered_request_again_merged_with_the_next(peer: Peer, server: bb.Server) -> None:
    peer.send(0, A)
    expect(peer, "a")
    peer.send(0, A + B)
    expect(peer, "a", "b")
    assert side(server)["overlaps"] == 1
    assert server.stats()["requests"]["read"] == 2


def test_a_recognised_request_again_merged_with_another(peer: Peer, server: bb.Server) -> None:
    for count in range(6):
        peer.send(count * len(F), F)
        expect(peer, *"f" * (count + 1))
    assert side(server)["hits"] > 0
    peer.send(5 * len(F), F + F)
    expect(peer, *"f" * 7)
    assert server.stats()["requests"]["read"] == 7


def test_out_of_order_and_overlapping(peer: Peer) -> None:
    stream = A + B + F
    peer.send(30, stream[30:50])
    peer.send(45, stream[45:])
    peer.send(10, stream[10:35])
    peer.listen(0.1)
    peer.send(0, stream[:20])
    expect(peer, "a", "b", "f")


def test_a_last_request_that_comes_with_fin(peer: Peer) -> None:
    peer.send(0, A + B, fin=True)
    expect(peer, "a", "b")
    peer.listen_until(lambda: peer.has_fin)
    assert peer.acknowledged == len(A + B) + 1


def test_fin_again_with_bytes_that_were_sent_before(peer: Peer, server: bb.Server) -> None:
    peer.send(0, A)
    expect(peer, "a")
    peer.send(0, A, fin=True)
    peer.listen_until(lambda: peer.has_fin)
    expect(peer, "a")
    assert server.stats()["requests"]["read"] == 1


def test_old_segments_and_probes_change_nothing(peer: Peer) -> None:
    peer.send(0, A)
    expect(peer, "a")
    peer.send(0, A)
    peer.send(len(A) - 1, b"\0")  # a keepalive probe: the byte before the next
    peer.send(len(A) - 1)
    expect(peer, "a")
    peer.send(len(A), B)
    expect(peer, "a", "b")


@pytest.mark.parametrize("seed", range(8))
def test_any_cut_and_any_order(peer: Peer, server: bb.Server, seed: int) -> None:
    chance = random.Random(seed)
    names = [chance.choice("abf") for _ in range(12)]
    stream = b"".join(head("GET", f"/{name}") for name in names)
    pieces = []
    at = 0
    while at < len(stream):
        length = chance.randrange(1, 120)
        pieces.append((max(0, at - chance.choice((0, 0, 0, 7, 60))), at + length))
        at += length
    while pieces:
        number = chance.randrange(min(3, len(pieces)))
        first, end = pieces[number] if chance.random() < 0.15 else pieces.pop(number)
        peer.send(first, stream[first:end])
        if chance.random() < 0.3:
            peer.listen(0.005)
    expect(peer, *names)
    await_true(lambda: server.stats()["requests"]["read"] == len(names))
