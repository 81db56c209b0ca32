"""A client that goes while its request waits, is worked on, or is answered costs nobody else anything: its item is
dropped before dispatch or its answer thrown away, each counted, and batches close up behind it.
"""

from typing import Any

import numpy as np
import pytest

import batchbridge as bb
from support.loop import Loop, get, looping, make_server, post, recording

S = 1_000_000


@pytest.mark.parametrize("gone", [(0,), (4,), (1, 2), (0, 2, 4), (0, 1, 2, 3, 4), (3, 1)])
@pytest.mark.parametrize("decode", [None, bb.Array("<u4", (3,))])
def test_items_of_clients_that_went_are_dropped_before_dispatch(gone: tuple[int, ...], decode: Any) -> None:
    server = make_server()
    got: list[list[bytes]] = []

    @server.batch("/h", methods=["POST"], decode=decode)
    def handler(batch: bb.Batch) -> list[bytes]:
        if decode is not None:
            assert batch.as_array().tobytes() == b"".join(batch.bodies)
        got.append([bytes(request.body) for request in batch])
        return [bytes(request.body) for request in batch]

    with looping(server) as loop:
        busy = loop.connect(post("/h", b"b" * 12))
        loop.turn()
        bodies = [bytes([65 + number]) * 12 for number in range(5)]
        clients = [loop.connect(post("/h", body)) for body in bodies]
        loop.turn()
        for which in gone:
            loop.engine.reset(clients[which])
        loop.settle()
        left = [body for which, body in enumerate(bodies) if which not in gone]
        assert got == [[b"b" * 12], left] if left else [[b"b" * 12]]
        assert [loop.replies(client)[0].body for which, client in enumerate(clients) if which not in gone] == left
        assert loop.replies(busy)[0].status == 200
        assert loop.stats["bridge"]["dropped_disconnected"] == len(gone)
        assert loop.outcomes == {"batch": 1 + len(left)} | {"client_gone": len(gone)}


def test_dropped_items_make_room_in_the_queue_when_they_leave_it() -> None:
    server = make_server()
    seen, handler = recording()
    server.batch("/h", max_queue_size=4, max_batch_size=4)(handler)
    with looping(server) as loop:
        loop.connect(get("/h"))
        loop.turn()
        clients = [loop.connect(get("/h")) for _ in range(4)]
        loop.turn()
        for client in clients:
            loop.engine.reset(client)
        loop.settle()
        late = [loop.connect(get("/h")) for _ in range(4)]
        loop.settle()
        assert [loop.replies(client)[0].status for client in late] == [200] * 4
        assert [size for size, _ in seen] == [1, 4]


def test_an_answer_for_nobody_is_thrown_away() -> None:
    server = make_server()
    server.batch("/h")(lambda batch: [b"x" * 100_000 for _ in batch])
    with looping(server, response_arena_size_bytes=262_144) as loop:
        for _ in range(20):  # more than the arena would hold
            client = loop.connect(get("/h"))
            loop.turn()
            loop.engine.reset(client)
            loop.settle()
        assert loop.stats["bridge"]["late"] == 20
        assert loop.ask(get("/h")).body == b"x" * 100_000


def test_a_handler_can_see_that_nobody_waits_any_more() -> None:
    server = make_server()
    clients: list[int] = []
    loop: Loop

    @server.batch("/h")
    def handler(batch: bb.Batch) -> list[str]:
        assert [request.cancelled for request in batch] == [False, False]
        loop.engine.reset(clients[0])
        loop.turn()
        assert [request.cancelled for request in batch] == [True, False]
        return ["a", "b"]

    with looping(server) as loop:
        clients += [loop.connect(get("/h")) for _ in range(2)]
        loop.settle()
        assert loop.replies(clients[1])[0].text == "b"
        assert loop.stats["bridge"]["late"] == 1


def test_fin_is_no_farewell() -> None:
    server = make_server()
    seen, handler = recording()
    server.batch("/h")(handler)
    with looping(server) as loop:
        client = loop.connect(get("/h") + get("/h") + get("/nothing"))
        loop.engine.feed_end(client)
        loop.settle()
        assert [reply.status for reply in loop.replies(client)] == [200, 200, 404]
        assert loop.engine.is_closed(client)
        assert seen == [(2, "idle")]


@pytest.mark.parametrize("half", [get("/h")[:-1], post("/h", b"body")[:-1], b"G"])
def test_fin_in_the_middle_of_a_request_ends_it_without_a_word(half: bytes) -> None:
    server = make_server()
    _, handler = recording()
    server.batch("/h", methods=["GET", "POST"])(handler)
    with looping(server) as loop:
        client = loop.connect(get("/h") + half)
        loop.engine.feed_end(client)
        loop.settle()
        assert [reply.status for reply in loop.replies(client)] == [200]
        assert loop.engine.is_closed(client)
        assert loop.outcomes == {"batch": 1}


def test_a_pipeline_that_breaks_off_counts_each_of_its_requests_once() -> None:
    server = make_server()
    _, handler = recording()
    server.batch("/h")(handler)
    with looping(server) as loop:
        client = loop.connect(get("/nothing") + get("/h") * 3 + get("/nothing") * 2)
        loop.turn()
        loop.engine.reset(client)
        loop.settle()
        assert loop.outcomes == {"error_4xx": 1, "client_gone": 3}
        assert loop.stats["requests"]["read"] == 4


@pytest.mark.parametrize("late_sends", [False, True])
@pytest.mark.parametrize("error", [32, 104, 110])
@pytest.mark.parametrize("size", [10, 100_000])
def test_a_send_that_fails_ends_the_connection(late_sends: bool, error: int, size: int) -> None:
    server = make_server()
    server.batch("/h")(lambda batch: [b"x" * size for _ in batch])
    with looping(server, late_sends=late_sends) as loop:
        client = loop.connect(get("/h") + get("/nothing"))
        loop.turn()
        loop.send(client, get("/h"))
        loop.turn()
        loop.engine.fail_next_send(client, error)
        loop.settle()
        assert loop.output(client) == b""
        assert loop.engine.is_closed(client)
        assert loop.stats["connections"]["open"] == 0


def test_views_of_a_batch_whose_clients_all_went_stay_as_they_are() -> None:
    server = make_server()
    kept: list[np.ndarray[Any, Any]] = []

    @server.batch("/h", methods=["POST"], decode=bb.Array("<u4", ()))
    def handler(batch: bb.Batch) -> list[str]:
        kept.append(batch.as_array())
        return ["x"] * len(batch)

    with looping(server) as loop:
        clients = [loop.connect(post("/h", bytes([n, 0, 0, 0]))) for n in range(4)]
        loop.turn()
        for client in clients:
            loop.engine.reset(client)
        loop.settle()
        for n in range(2000):
            loop.connect(post("/h", bytes([9, 9, 9, 9])))
            if n % 50 == 0:
                loop.settle()
        assert kept[0].tolist() == [0, 1, 2, 3]
        kept.clear()
