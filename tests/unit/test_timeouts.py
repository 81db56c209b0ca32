"""Every wait has an end: a client that says nothing, too little or too slowly, or does not read; a request that waits
too long for its handler. Time is the test's own; deadlines are seen to at most 20 ms late.
"""

from typing import Any

import pytest

import batchbridge as bb
from support.loop import Loop, get, looping, make_server, post, recording

S = 1_000_000
LATE_US = 20_000

TIMEOUTS = {
    "idle_timeout_s": 50.0,
    "header_timeout_s": 10.0,
    "body_timeout_s": 20.0,
    "send_timeout_s": 30.0,
    "linger_timeout_s": 5.0,
}


def serving(
    *, methods: tuple[str, ...] = ("GET", "POST"), settings: dict[str, Any] | None = None, **policy: Any
) -> Any:
    server = make_server(**{**TIMEOUTS, **(settings or {})})
    _, handler = recording()
    server.batch("/h", methods=methods, **policy)(handler)
    return looping(server)


def assert_ends_after(loop: Loop, client: int, time_s: int) -> None:
    """It is there a second before, and gone then; and the engine would have been woken for it."""
    assert 0 < loop.wait_us() <= time_s * S
    loop.turn((time_s - 1) * S)
    assert not loop.engine.is_closed(client)
    loop.turn(S + LATE_US)
    assert loop.engine.is_closed(client)


def assert_refused_after(loop: Loop, client: int, time_s: int, status: int = 408) -> None:
    loop.turn((time_s - 1) * S)
    assert loop.output(client) == b""
    loop.turn(S + LATE_US)
    (reply,) = loop.replies(client)
    assert (reply.status, reply.headers["connection"]) == (status, "close")
    assert loop.engine.is_finished(client)


# --- connections ------------------------------------------------------------------------------------------------------


def test_a_client_that_never_says_anything_is_left_alone_for_the_idle_time() -> None:
    with serving() as loop:
        client = loop.connect()
        loop.turn()
        assert_ends_after(loop, client, 50)
        assert loop.output(client) == b""
        assert loop.stats["connections"]["timed_out"] == 1
        assert loop.outcomes == {}


def test_the_idle_time_begins_anew_with_each_request() -> None:
    with serving() as loop:
        client = loop.connect()
        for target in ("/h", "/nothing", "/h"):
            loop.turn(40 * S)
            loop.send(client, get(target))
            loop.settle()
            assert len(loop.replies(client)) == 1
        assert_ends_after(loop, client, 50)


def test_there_is_no_idle_time_while_a_request_is_in_user_mode() -> None:
    with serving() as loop:
        client = loop.connect(get("/h"))
        loop.turn()
        loop.turn(500 * S)
        assert not loop.engine.is_closed(client)
        loop.settle()
        assert loop.replies(client)[0].status == 200
        assert_ends_after(loop, client, 50)


def test_a_head_has_its_time_from_its_first_byte_however_it_drips() -> None:
    with serving() as loop:
        client = loop.connect()
        loop.turn(30 * S)
        for byte in b"GET /h HT":
            loop.send(client, bytes([byte]))
            loop.turn()
            loop.turn(S)
        assert loop.output(client) == b""
        loop.turn(S + LATE_US)
        assert loop.replies(client)[0].status == 408
        assert loop.outcomes == {"error_4xx": 1}


def test_half_a_head_behind_another_request_costs_that_nothing() -> None:
    with serving() as loop:
        client = loop.connect(get("/h") + b"GET /h")
        loop.turn()
        loop.turn(100 * S)  # the handler takes long
        loop.settle()
        loop.turn(10 * S + LATE_US)
        assert [reply.status for reply in loop.replies(client)] == [200, 408]
        assert loop.engine.is_finished(client)


def test_a_head_that_is_finished_while_another_request_is_answered_is_in_time() -> None:
    with serving() as loop:
        client = loop.connect(get("/h") + get("/h")[:9])
        loop.turn()
        loop.turn(100 * S)
        loop.send(client, get("/h")[9:])
        loop.turn()
        loop.settle()
        assert [reply.status for reply in loop.replies(client)] == [200, 200]


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_has_its_time_from_its_last_progress(chunked: bool) -> None:
    with serving() as loop:
        length = "Transfer-Encoding: chunked" if chunked else "Content-Length: 100"
        client = loop.connect(get("/h", length, method="POST"))
        loop.turn()
        for _ in range(5):
            loop.turn(15 * S)
            loop.send(client, b"1\r\nx\r\n")
            loop.turn()
        assert_refused_after(loop, client, 20)


def test_a_client_that_lingers_is_let_go() -> None:
    with serving() as loop:
        client = loop.connect(b"nonsense\r\n\r\nand more")
        loop.turn()
        assert loop.replies(client)[0].status == 400
        assert loop.engine.is_finished(client)
        loop.send(client, b"it talks on")
        loop.turn()
        assert_ends_after(loop, client, 5)


def test_a_client_that_lingers_and_then_ends_is_let_go_at_once() -> None:
    with serving() as loop:
        client = loop.connect(b"nonsense\r\n\r\n")
        loop.turn()
        loop.engine.feed_end(client)
        loop.turn()
        assert loop.engine.is_closed(client)


@pytest.mark.parametrize("size", [100, 200_000])
def test_a_client_that_reads_nothing_is_cut_off(size: int) -> None:
    server = make_server(**TIMEOUTS)
    server.batch("/h")(lambda batch: [b"x" * size for _ in batch])
    with looping(server) as loop:
        client = loop.connect(get("/h"))
        loop.engine.send_limit(client, 0)
        loop.settle()
        assert loop.output(client) == b""
        assert_ends_after(loop, client, 30)
        assert not loop.engine.is_finished(client)


def test_a_client_that_reads_a_little_now_and_then_is_served_to_the_end() -> None:
    server = make_server(**TIMEOUTS)
    server.batch("/h")(lambda batch: [b"x" * 500 for _ in batch])
    with looping(server) as loop:
        client = loop.connect(get("/h"))
        loop.engine.send_limit(client, 0)
        loop.settle()
        got = b""
        while not got.endswith(b"x" * 500):
            assert len(got) < 1000
            loop.engine.send_limit(client, 20)
            loop.settle(25 * S)
            got += loop.output(client)
        loop.send(client, get("/nothing"))
        loop.engine.send_limit(client, None)
        loop.settle()
        assert loop.replies(client)[0].status == 404


def test_a_pipelined_request_waits_for_a_slow_reader_without_a_time_of_its_own() -> None:
    server = make_server(**TIMEOUTS)
    server.batch("/h")(lambda batch: [b"x" * 50_000 for _ in batch])
    with looping(server) as loop:
        client = loop.connect(get("/h"))
        loop.engine.send_limit(client, 1000)
        loop.settle()
        loop.send(client, get("/nothing") + b"GET /half")
        for _ in range(10):
            loop.engine.send_limit(client, 1000)
            loop.settle(25 * S)
        loop.engine.send_limit(client, None)
        loop.settle()
        assert [reply.status for reply in loop.replies(client)] == [200, 404]
        assert_refused_after(loop, client, 10)


def test_the_earliest_time_out_of_all_is_waited_for() -> None:
    with serving() as loop:
        first = loop.connect()
        loop.turn(20 * S)
        second = loop.connect(b"GET ")
        loop.turn()
        assert 9 * S < loop.wait_us() <= 10 * S
        loop.turn(10 * S)
        loop.engine.feed_end(second)
        loop.turn()
        assert loop.engine.is_closed(second)
        assert_ends_after(loop, first, 20)
        assert loop.stats["connections"]["timed_out"] == 2
        assert loop.wait_us() == -1


# --- requests in user mode --------------------------------------------------------------------------------------------


def test_a_request_not_answered_in_its_time_gets_504_and_its_answer_is_late() -> None:
    with serving(timeout_us=10 * S) as loop:
        client = loop.connect(get("/h"))
        loop.turn()
        assert 9 * S < loop.wait_us() <= 10 * S
        loop.turn(9 * S)
        assert loop.output(client) == b""
        loop.turn(S + LATE_US)
        loop.turn()
        (reply,) = loop.replies(client)
        assert reply.status == 504
        assert "connection" not in reply.headers
        assert loop.outcomes == {"error_5xx": 1}
        loop.settle()
        assert loop.output(client) == b""
        assert loop.stats["bridge"]["late"] == 1
        loop.send(client, get("/h"))
        loop.settle()
        assert loop.replies(client)[0].status == 200


def test_each_of_several_requests_has_its_own_time() -> None:
    with serving(timeout_us=10 * S) as loop:
        client = loop.connect(get("/h"))
        loop.turn()
        loop.turn(5 * S)
        loop.send(client, get("/h") + get("/nothing"))
        loop.turn()
        loop.turn(5 * S + LATE_US)
        loop.turn()
        assert [reply.status for reply in loop.replies(client)] == [504]
        loop.settle()
        assert [reply.status for reply in loop.replies(client)] == [200, 404]


def test_a_handlers_batch_may_be_answered_by_halves() -> None:
    server = make_server()
    loop: Loop

    @server.batch("/h", timeout_us=10 * S, response_batch_size=1)
    def handler(batch: bb.Batch) -> None:
        first, *others = batch
        first.respond(b"in time")
        loop.turn()
        loop.turn(11 * S)
        assert [request.cancelled for request in batch] == [False, True, True]
        assert [request.time_left_us for request in others] == [0, 0]
        for request in others:
            request.respond(b"late")

    with looping(server) as loop:
        clients = [loop.connect(get("/h")) for _ in range(3)]
        loop.settle()
        assert [loop.replies(client)[0].status for client in clients] == [200, 504, 504]
        assert loop.stats["bridge"]["late"] == 2


def test_a_request_that_waited_too_long_for_a_handler_is_dropped_with_503() -> None:
    server = make_server()
    seen, handler = recording()
    server.batch("/h", queue_timeout_us=10 * S)(handler)
    with looping(server) as loop:
        working = loop.connect(get("/h"))
        loop.turn()  # with the handler
        waiting = [loop.connect(get("/h")) for _ in range(2)]
        loop.turn()
        loop.turn(8 * S)
        later = loop.connect(get("/h"))
        loop.turn()
        assert S < loop.wait_us() <= 2 * S
        loop.turn(2 * S + LATE_US)
        loop.turn()
        assert [loop.replies(client)[0].status for client in waiting] == [503, 503]
        assert loop.output(later) == b""
        loop.settle()
        assert [loop.replies(client)[0].status for client in (working, later)] == [200, 200]
        assert [size for size, _ in seen] == [1, 1]
        assert loop.stats["bridge"]["dropped_expired"] == 2
        assert loop.outcomes == {"batch": 2, "error_5xx": 2}


def test_time_with_the_handler_is_not_time_in_the_queue() -> None:
    with serving(queue_timeout_us=10 * S) as loop:
        client = loop.connect(get("/h"))
        loop.turn()
        loop.turn(50 * S)
        loop.settle()
        assert loop.replies(client)[0].status == 200


def test_an_expired_request_is_dropped_before_it_reaches_its_handler() -> None:
    server = make_server()
    seen, handler = recording()
    server.batch("/h", timeout_us=10 * S)(handler)
    with looping(server) as loop:
        clients = [loop.connect(get("/h"))]
        loop.turn()
        clients += [loop.connect(get("/h")) for _ in range(3)]
        loop.turn()
        loop.turn(6 * S)
        clients.append(loop.connect(get("/h")))
        loop.turn(4 * S + LATE_US)
        loop.settle()
        assert [loop.replies(client)[0].status for client in clients] == [504, 504, 504, 504, 200]
        assert [size for size, _ in seen] == [1, 1]
        assert loop.stats["bridge"]["dropped_expired"] == 3
        assert loop.stats["bridge"]["late"] == 1


def test_time_left_counts_down_to_0() -> None:
    server = make_server()
    left: list[Any] = []
    server.batch("/timed", timeout_us=10 * S)(lambda batch: left.extend(r.time_left_us for r in batch) or ["x"])
    server.batch("/untimed")(lambda batch: left.extend(r.time_left_us for r in batch) or ["x"])
    with looping(server) as loop:
        loop.connect(get("/timed"))
        loop.settle()
        assert 9 * S < left[-1] <= 10 * S
        loop.connect(get("/timed"))
        loop.turn()
        loop.turn(4 * S)
        loop.settle()
        assert 5 * S < left[-1] <= 6 * S
        loop.connect(get("/timed"))
        loop.turn()
        loop.turn(20 * S)
        loop.settle()
        assert left[-1] == 0
        loop.connect(get("/untimed"))
        loop.settle()
        assert left[-1] is None


def test_expect_continue_is_asked_for_once_and_then_waited_for() -> None:
    with serving() as loop:
        client = loop.connect(get("/h", "Expect: 100-continue", "Content-Length: 4", method="POST"))
        loop.turn()
        assert loop.output(client) == b"HTTP/1.1 100 Continue\r\n\r\n"
        loop.turn(15 * S)
        loop.send(client, b"ab")
        loop.turn()
        assert loop.output(client) == b""
        loop.turn(15 * S)
        loop.send(client, b"cd")
        loop.settle()
        assert loop.replies(client)[0].status == 200


def test_a_body_that_comes_with_its_head_is_not_asked_for() -> None:
    with serving() as loop:
        client = loop.connect(post("/h", b"abcd", "Expect: 100-continue"))
        loop.settle()
        assert [reply.status for reply in loop.replies(client, "POST")] == [200]
