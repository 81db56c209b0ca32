"""Memory that a handler looks at stays as it is for as long as it looks: arrays, memoryviews, requests and batches kept
beyond their batch, while thousands of further requests run. Once let go of, it is used again.
"""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import batchbridge as bb
from support.loop import Loop, get, looping, make_server, post

ROUNDS = 40
TOGETHER = 32


def body_of(number: int) -> bytes:
    return number.to_bytes(4, "little") * 8


def keeping(keep: Callable[[bb.Batch], Any], **settings: Any) -> tuple[bb.Server, list[Any]]:
    """A server of arrays that keeps something of every 10th batch."""
    server = make_server(**{"handler_queue_slabs": 64, "batch_size_max": TOGETHER, **settings})
    kept: list[Any] = []
    count = [0]

    @server.batch("/h", methods=["POST"], decode=bb.Array("<u4", (8,)))
    def handler(batch: bb.Batch) -> Any:
        count[0] += 1
        if count[0] % 10 == 0:
            kept.append(([bytes(body) for body in batch.bodies], keep(batch)))
        return batch.as_array()

    return server, kept


def rush(loop: Loop, rounds: int = ROUNDS) -> None:
    """Many further requests, all different."""
    number = 1000
    for _ in range(rounds):
        clients = {}
        for _ in range(TOGETHER):
            number += 1
            clients[number] = loop.connect(post("/h", body_of(number)))
        loop.settle()
        for sent, client in clients.items():
            reply = loop.replies(client)[0]
            assert (reply.status, reply.body) == (200, body_of(sent))
            loop.engine.feed_end(client)
        loop.turn()


@pytest.mark.parametrize(
    ("keep", "bytes_of"),
    [
        (lambda batch: batch.as_array(), lambda array: [row.tobytes() for row in array]),
        (lambda batch: batch.as_array()[::2, 1:], lambda array: [b"%b" % row.tobytes() for row in array]),
        (lambda batch: batch.bodies, lambda views: [bytes(view) for view in views]),
        (lambda batch: [request.body for request in batch], lambda views: [bytes(view) for view in views]),
        (lambda batch: memoryview(batch[0].body)[:], lambda view: [bytes(view)]),
        (lambda batch: batch[0], lambda request: [bytes(request.body)]),
        (lambda batch: batch, lambda batch: [bytes(request.body) for request in batch]),
        (lambda batch: np.frombuffer(batch[0].body, "<u4"), lambda array: [array.tobytes()]),
    ],
)
def test_what_is_kept_stays_as_it_was(keep: Any, bytes_of: Any) -> None:
    server, kept = keeping(keep)
    with looping(server) as loop:
        rush(loop)
        assert len(kept) == ROUNDS // 10
        for bodies, thing in kept:
            seen = bytes_of(thing)
            for original, now in zip(bodies[:: 2 if len(seen) == TOGETHER // 2 else 1], seen, strict=False):
                assert now in (original, original[4:])
        kept.clear()
        gc.collect()
        assert loop.stats["bridge"]["slabs_in_use"] <= 1


def test_slabs_that_nobody_looks_at_any_more_are_used_again() -> None:
    server, kept = keeping(lambda batch: batch.as_array(), handler_queue_slabs=3)
    with looping(server) as loop:
        rush(loop, 10)
        assert len(kept) == 1
        for _ in range(20):  # a slab is always kept, never the same for long
            rush(loop, 10)
            assert len(kept) == 2
            for bodies, array in kept:
                assert [row.tobytes() for row in array] == bodies
            del kept[0]
        kept.clear()


def test_two_slabs_are_enough_while_nothing_is_kept() -> None:
    server, kept = keeping(lambda batch: batch.as_array().copy(), handler_queue_slabs=2)
    with looping(server) as loop:
        rush(loop, 200)
        assert all([row.tobytes() for row in copy] == bodies for bodies, copy in kept)


def test_without_a_slab_left_it_is_503_until_one_is_let_go() -> None:
    server = make_server(handler_queue_slabs=2, batch_size_max=1)
    kept: list[Any] = []

    @server.batch("/h", methods=["POST"], max_batch_size=1)
    def handler(batch: bb.Batch) -> list[str]:
        kept.append(batch[0].body)
        return ["x"]

    with looping(server) as loop:
        statuses = [loop.ask(post("/h", b"%d" % n)).status for n in range(5)]
        assert statuses == [200, 200, 503, 503, 503]
        assert [bytes(view) for view in kept] == [b"0", b"1"]
        del kept[0]
        assert loop.ask(post("/h", b"5")).status == 200
        assert [bytes(view) for view in kept] == [b"1", b"5"]
        kept.clear()


def test_a_view_keeps_its_batch_and_nothing_else() -> None:
    server, kept = keeping(lambda batch: weakref.ref(batch.as_array()))
    with looping(server) as loop:
        rush(loop, 10)
        ((_, reference),) = kept
        assert reference() is None


def test_a_view_outlives_its_engine() -> None:
    server, kept = keeping(lambda batch: (batch.as_array(), batch[1].body, batch))
    with looping(server) as loop:
        rush(loop, 10)
    del loop
    gc.collect()
    ((bodies, (array, body, batch)),) = kept
    assert [row.tobytes() for row in array] == bodies
    assert bytes(body) == bodies[1]
    assert [bytes(request.body) for request in batch] == bodies
    del array, body, batch
    kept.clear()
    gc.collect()


def test_to_answer_after_the_engine_has_gone_does_no_harm() -> None:
    server = make_server()
    kept: list[bb.Request] = []

    @server.batch("/h")
    def handler(batch: bb.Batch) -> None:
        kept.extend(batch)

    with looping(server) as loop:
        assert loop.ask(get("/h")).status == 500
    del loop
    gc.collect()
    with pytest.raises(bb.AlreadyAnsweredError):
        kept[0].respond(b"too late")
    assert kept[0].path == "/h"


def test_to_answer_after_the_handler_has_returned_is_refused() -> None:
    server = make_server()
    kept: list[bb.Request] = []

    @server.batch("/h")
    def handler(batch: bb.Batch) -> None:
        kept.extend(batch)

    with looping(server) as loop:
        assert loop.ask(get("/h")).status == 500
        for _ in range(3):
            with pytest.raises(bb.AlreadyAnsweredError, match="answered before"):
                kept[0].respond(b"too late", status=201)
            loop.settle()
        assert loop.ask(get("/h?again")).status == 500
        assert [request.query_string for request in kept] == [b"", b"again"]


def test_memoryviews_are_read_only_bytes() -> None:
    server = make_server()

    @server.batch("/h", methods=["GET", "POST"])
    def handler(batch: bb.Batch) -> list[Any]:
        answers = []
        for request in batch:
            body = request.body
            assert isinstance(body, memoryview)
            assert (body.readonly, body.format, body.itemsize, body.ndim, body.contiguous) == (True, "B", 1, 1, True)
            with pytest.raises(TypeError, match="read-only"):
                body[0:1] = b"x"
            assert body == request.body and len(body) == body.nbytes
            answers.append(body)
        return answers

    with looping(server) as loop:
        for size in (0, 1, 63, 64, 65, 5000, 200_000):
            body = bytes(number % 251 for number in range(size))
            assert loop.ask(post("/h", body)).body == body
        assert loop.ask(get("/h")).body == b""


def test_bodies_begin_at_multiples_of_64() -> None:
    server = make_server()
    addresses: list[int] = []

    @server.batch("/h", methods=["POST"])
    def handler(batch: bb.Batch) -> list[str]:
        addresses.extend(np.frombuffer(request.body, "u1").__array_interface__["data"][0] for request in batch)
        return ["x"] * len(batch)

    with looping(server) as loop:
        for size in (1, 2, 100, 1000):
            for _ in range(3):
                loop.connect(post("/h?" + "x" * size, b"y" * size))
        loop.settle()
    assert len(addresses) == 12
    assert all(address % 64 == 0 for address in addresses)


def test_an_answer_that_is_its_requests_own_body_is_copied_in_time() -> None:
    server = make_server(handler_queue_slabs=2)
    server.batch("/h", methods=["POST"])(lambda batch: batch.bodies)
    with looping(server) as loop:
        slow = loop.connect(post("/h", b"s" * 100_000))
        loop.engine.send_limit(slow, 10)
        loop.settle()
        for number in range(300):
            assert loop.ask(post("/h", b"%d" % number * 1000)).body == b"%d" % number * 1000
        loop.engine.send_limit(slow, None)
        loop.settle()
        assert loop.replies(slow)[0].body == b"s" * 100_000


def test_requests_and_batches_of_thousands_of_batches_do_not_pile_up() -> None:
    server = make_server()

    @server.batch("/h", methods=["POST"], decode=bb.Json(), on_error="isolate", idempotent=True)
    def handler(batch: bb.Batch) -> list[Any]:
        if len(batch) > 3:
            raise ValueError
        return [request.headers.get("host") for request in batch]

    with looping(server) as loop:
        seen = []
        for round_ in range(60):
            clients = [loop.connect(post("/h", b"[1]")) for _ in range(1 + round_ % 6)]
            loop.settle()
            for client in clients:
                loop.engine.feed_end(client)
            loop.turn()
            for client in clients:
                loop.engine.forget(client)
            if round_ % 15 == 14:
                gc.collect()
                kinds = [type(thing).__name__ for thing in gc.get_objects()]
                seen.append(sum(kinds.count(kind) for kind in ("Batch", "Request", "View")))
        assert len(set(seen)) == 1
