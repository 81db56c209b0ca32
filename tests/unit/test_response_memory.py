"""Memory of responses: whatever sizes handlers answer with, and however long clients take to read them, each client
gets its own bytes; what does not fit the arena goes elsewhere, within bounds; and all of it is used again.
"""

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchbridge as bb
from support.loop import Loop, get, looping, make_server

KIB = 1024
ARENA = 256 * KIB  # four blocks

sizes = st.sampled_from([0, 1, 500, 5000, 60_000, 64 * KIB - 600, 64 * KIB, 70_000, 130_000, 190_000, 250_000])


def body_of(name: str, size: int) -> bytes:
    """Bytes that nobody else's are like."""
    line = hashlib.sha256(name.encode()).hexdigest().encode() + b"\n"
    return (line * (size // len(line) + 1))[:size]


def serving(**settings: Any) -> bb.Server:
    server = make_server(response_arena_size_bytes=ARENA, **settings)

    @server.batch("/{size}/{name}", max_queue_size=100, coalesce=True)
    def handler(batch: bb.Batch) -> None:
        for request in batch:
            size, name = request.params["size"], request.params["name"]
            request.respond(body_of(name, int(size)), headers={"X-Name": name}, tags=name)

    return server


class Readers:
    """Clients that have asked and not yet read all, by number."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.waiting: dict[int, list[tuple[int, str]]] = {}
        self.data: dict[int, bytes] = {}

    def ask(self, count: int, size: int, name: str) -> None:
        client = self.loop.connect(*[get(f"/{size}/{name}-{number}") for number in range(count)])
        self.loop.engine.send_limit(client, 0)
        self.waiting[client] = [(size, f"{name}-{number}") for number in range(count)]
        self.loop.settle()

    def read(self, client: int) -> list[int]:
        """Reads all, checks it, and returns the statuses."""
        self.loop.engine.send_limit(client, None)
        self.loop.settle()
        replies = self.loop.replies(client)
        asked = self.waiting.pop(client)
        assert len(replies) == len(asked)
        for reply, (size, name) in zip(replies, asked, strict=True):
            if reply.status == 200:
                assert (reply.headers["x-name"], reply.body) == (name, body_of(name, size))
            else:
                assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        self.loop.engine.feed_end(client)
        return [reply.status for reply in replies]


steps = st.lists(
    st.tuples(st.just("ask"), st.integers(1, 3), sizes) | st.tuples(st.just("read"), st.integers(0, 9), st.just(0)),
    max_size=40,
)


@given(steps, st.booleans())
def test_each_client_gets_its_own_bytes_whatever_others_hold(
    steps: list[tuple[str, int, int]], late_sends: bool
) -> None:
    with looping(serving(), late_sends=late_sends) as loop:
        readers = Readers(loop)
        for number, (what, amount, size) in enumerate(steps):
            if what == "ask":
                readers.ask(amount, size, f"n{number}")
            elif readers.waiting:
                readers.read(list(readers.waiting)[amount % len(readers.waiting)])
        for client in list(readers.waiting):
            readers.read(client)
        # Nothing is held any more: as much can be answered as at first.
        readers.ask(1, 250_000, "last")
        assert readers.read(*readers.waiting) == [200]


def test_what_clients_that_went_held_is_used_again() -> None:
    with looping(serving()) as loop:
        for number in range(100):
            readers = Readers(loop)
            readers.ask(1, 190_000, f"gone{number}")
            readers.ask(1, 60_000, f"stays{number}")
            gone, stays = readers.waiting
            loop.engine.reset(gone)
            assert readers.read(stays) == [200]


@pytest.mark.parametrize("size", [200, 20_000, 250_000])
def test_what_is_held_is_bounded_and_then_it_is_503(size: int) -> None:
    with looping(serving()) as loop:
        readers = Readers(loop)
        for number in range(5 * ARENA // (size + 500) + 40):
            readers.ask(1, size, f"n{number}")
        clients = list(readers.waiting)
        statuses = [readers.read(client)[0] for client in clients]
        held = statuses.count(200) * size
        # Small answers are copied, and hold nothing.
        assert (503 in statuses) == (size > 16 * KIB)
        assert size < 16 * KIB or 3 * ARENA < held <= 6 * ARENA
        readers.ask(1, size, "again")
        assert readers.read(*readers.waiting) == [200]


def test_a_response_may_be_as_large_as_the_arena_and_larger_ones_are_refused_at_the_start() -> None:
    assert (
        make_server(response_arena_size_bytes=ARENA, response_size_bytes_max=2 * ARENA).config.response_size_bytes_max
        == ARENA
    )
    with looping(serving()) as loop:
        readers = Readers(loop)
        for size in (ARENA, ARENA - 600, ARENA):
            readers.ask(1, size, f"n{size}")
            assert readers.read(*readers.waiting) == [200]
        assert loop.ask(get(f"/{ARENA + 1}/n")).status == 500


def test_those_who_share_an_answer_hold_it_once_and_until_the_last_has_it() -> None:
    with looping(serving()) as loop:
        readers = Readers(loop)
        clients = []
        for _ in range(30):
            clients.append(loop.connect(get("/190000/same")))
            loop.engine.send_limit(clients[-1], 1000)
            readers.waiting[clients[-1]] = [(190_000, "same")]
        loop.settle()
        assert loop.stats["routes"]["/{size}/{name}"]["items"] == 1
        for number, client in enumerate(clients):
            if number % 3 == 0:
                loop.engine.reset(client)
                del readers.waiting[client]
            else:
                assert readers.read(client) == [200]
            loop.ask(get(f"/60000/other{number}"))


def test_answers_of_several_workers_do_not_meet() -> None:
    server = serving(handler_threads=0)
    server.set_policy("/{size}/{name}", concurrency=3)
    with looping(server, lanes=3) as loop:
        readers = Readers(loop)
        for number in range(12):
            readers.ask(1, 70_000, f"n{number}")
        for client in list(readers.waiting):
            assert readers.read(client) == [200]
