"""Native handlers pass the whole bridge on every engine: the same policies, limits, deadlines and counters as Python's,
without the interpreter; and what they do wrong costs their own items alone (law 9), is counted, and told in the log.
"""

import ctypes
import logging
import struct
from typing import Any
from urllib.parse import urlsplit

import pytest

import batchbridge as bb
from support.native import Notes
from support.serving import make_server, running
from support.wire import Client, await_true, head, together

#: Batches form from what one client pipelines: all of it arrives, then it leaves.
TOGETHER = {"policy": "fixed", "max_queue_delay_us": 2_000_000}
OK, NO_ITEM, ANSWERED, BAD_STATUS, TOO_LARGE, BAD_HEADER, NOT_CACHEABLE = range(0, -7, -1)


@pytest.fixture(params=[0, 1])
def threads(request: pytest.FixtureRequest) -> int:
    return request.param  # type: ignore[no-any-return]


class Run:
    """What a native handler at /x/{n} answers requests that reach it as one batch, and what it notes and costs."""

    def __init__(
        self, engine: str, function: object, requests: list[bytes], methods: list[str], threads: int = 0,
        settings: dict[str, Any] | None = None, **route: Any,
    ) -> None:  # fmt: skip
        self.notes = Notes()
        server = make_server(engine, handler_threads=threads, **(settings or {}))
        route = {**TOGETHER, "methods": sorted(set(methods)), "max_batch_size": len(requests), **route}
        server.native("/x/{n}", function, context=self.notes, **route)
        with running(server), Client(server.url) as client:
            client.send(b"".join(requests))
            self.replies = [client.reply(method) for method in methods]
            assert client.is_silent(0.02)
            assert client.ask("GET", "/nothing").status == 404, "the connection goes on"
        self.answers = [(reply.status, reply.body) for reply in self.replies]
        self.stats = server.stats()
        self.bridge = self.stats["bridge"]


def numbered(count: int = 4, method: str = "GET") -> tuple[list[bytes], list[str]]:
    return [head(method, f"/x/{place}") for place in range(count)], [method] * count


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "batchbridge.handlers"]


# --- what is right ----------------------------------------------------------------------------------------------------


def test_a_batch_is_answered_without_the_interpreter(
    engine: str, natives: Any, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(engine, natives.echo, *numbered(8), threads)
    assert run.answers == [(200, b"%d" % number) for number in range(8)]
    assert all(reply["content-type"] == "text/plain" for reply in run.replies)
    assert (run.notes.calls, run.notes.items) == (1, 8)
    route = run.stats["routes"]["/x/{n}"]
    assert (route["batches"], route["items"], route["reasons"]["full"]) == (1, 8, 1)
    assert (run.bridge["batches"], run.bridge["items"]) == (1, 8)
    assert run.bridge["gil_entries"] == 2 * threads, "to start the thread, and to end it"
    assert (run.bridge["items_unanswered"], run.bridge["answers_refused"]) == (0, 0) and told(caplog) == []


def test_it_runs_while_another_thread_holds_the_interpreter(engine: str, natives: Any, threads: int) -> None:
    server = make_server(engine, handler_threads=threads)
    server.native("/echo/{word}", natives.echo)
    ask = ctypes.PyDLL(natives._name).ask  # PyDLL: it keeps the lock while it asks
    text = ctypes.create_string_buffer(1024)
    with running(server):
        with Client(server.url) as client:
            assert client.ask("GET", "/echo/first").body == b"first"  # the thread has started, which takes the lock
        received = ask(urlsplit(server.url).port, text, len(text))
    assert received > 0 and text.raw[:received].endswith(b"\r\n\r\nalone")


def test_all_of_a_request_can_be_seen(engine: str, natives: Any) -> None:
    notes = Notes()
    server = make_server(engine)
    server.native("/a/{one}/{rest:path}", natives.describe, methods=["PUT"], context=notes)
    with running(server), Client(server.url) as client:
        fields = (("X-Name", " first "), ("X-Name", "second"), ("Content-Length", "4"))
        client.send(head("PUT", "/a/b%20c/d/e?q=1", *fields) + b"body")
        seen = client.reply().body.decode().splitlines()
    assert seen[:7] == [
        "method: PUT", "target: /a/b%20c/d/e?q=1", "path: /a/b%20c/d/e", "query: q=1", "authority: test", "body: body",
        "parameter: b%20c",
    ]  # fmt: skip
    assert seen[7:11] == ["parameter: d/e", "x-name: first", "x-nam: none", "version: 1.1"]
    assert seen[11] in ("client: 127.0.0.1 1", "client:  0"), "not every kernel tells"
    assert int(seen[12].removeprefix("lines: ")) > 40 and notes.noted() == [OK, 1, 0]


def test_what_a_request_does_not_have_is_told_apart_from_what_is_empty(engine: str, natives: Any) -> None:
    server = make_server(engine)
    server.native("/a", natives.describe)
    with running(server), Client(server.url) as client:
        plain = client.ask("GET", "/a", ("X-Name", "")).body.decode().splitlines()
        asked = client.ask("GET", "/a?", version="1.0", host=None).body.decode().splitlines()
    assert plain[3:7] == ["query: none", "authority: test", "body: ", "x-name: "]
    assert asked[3:5] == ["query: ", "authority: none"] and "version: 1.0" in asked


def test_bodies_come_back_as_they_were_sent(engine: str, natives: Any, threads: int) -> None:
    bodies = [b"", b"x", bytes(range(256)) * 40, b"y" * 300_000]
    requests = [head("POST", f"/x/{place}", body=body) for place, body in enumerate(bodies)]
    # They are no whole batch, so it is the delay that ends it.
    run = Run(engine, natives.body, requests, ["POST"] * 4, threads, max_queue_delay_us=200_000)
    assert [body for _, body in run.answers] == bodies
    assert {reply["content-type"] for reply in run.replies} == {"application/octet-stream"}


def test_arrays_lie_side_by_side(engine: str, natives: Any, threads: int) -> None:
    rows = [(1.0, 2.0, 3.0, float(place)) for place in range(5)]
    requests = [head("POST", f"/x/{place}", body=struct.pack("<4f", *row)) for place, row in enumerate(rows)]
    requests.insert(2, head("POST", "/x/short", body=b"12345"))
    # A refusal waits for its turn, and what is behind it waits, too: no batch is full.
    route = {"decode": bb.Array("<f4", (4,)), "max_batch_size": 5, "max_queue_delay_us": 200_000}
    run = Run(engine, natives.sums, requests, ["POST"] * 6, threads, **route)
    assert run.replies[2].status == 422 and run.notes.items == 5
    assert [struct.unpack("<f", body)[0] for status, body in run.answers if status == 200] == [sum(row) for row in rows]


@pytest.mark.parametrize("size_out", [None, 1, 3])
def test_answers_go_back_in_groups_and_in_order(engine: str, natives: Any, threads: int, size_out: int | None) -> None:
    run = Run(engine, natives.echo, *numbered(50), threads, response_batch_size=size_out)
    assert run.answers == [(200, b"%d" % number) for number in range(50)]
    run = Run(
        engine, natives.echo, *numbered(50), threads, response_batch_size=size_out, max_batch_size=4, policy="idle"
    )
    assert run.answers == [(200, b"%d" % number) for number in range(50)] and run.notes.items == 50


def test_native_and_python_handlers_share_a_worker(engine: str, natives: Any, threads: int) -> None:
    server = make_server(engine, handler_threads=threads)
    server.native("/native/{n}", natives.echo, max_batch_size=3)

    @server.batch("/python/{n}", max_batch_size=3)
    def python(batch: bb.Batch) -> list[str]:
        return [f"python {request.params['n']}" for request in batch]

    with running(server), Client(server.url) as client:
        targets = [f"/{('native', 'python')[number // 2 % 2]}/{number}" for number in range(60)]
        client.send(*[head("GET", target) for target in targets])
        bodies = [client.reply().body.decode() for _ in targets]
    assert bodies == [f"python {n}" if n // 2 % 2 else str(n) for n in range(60)]
    assert server.stats()["bridge"]["items"] == 60


def test_native_handlers_run_beside_async_ones(engine: str, natives: Any) -> None:
    server = make_server(engine, handler_threads=1)
    server.native("/native/{n}", natives.echo)

    @server.batch("/async/{n}")
    async def slow(batch: bb.Batch) -> list[str]:
        return [f"async {request.params['n']}" for request in batch]

    with running(server), Client(server.url) as client:
        for number in range(10):
            assert client.ask("GET", f"/native/{number}").body == b"%d" % number
            assert client.ask("GET", f"/async/{number}").body == b"async %d" % number


def test_several_threads_of_several_engines(engine: str, natives: Any) -> None:
    server = make_server(engine, handler_threads=2, engine_threads=2)
    server.native("/x/{n}", natives.echo, concurrency=2)

    def ask(start: int) -> Any:
        with Client(server.url) as client:
            return [client.ask("GET", f"/x/{start + n}").body for n in range(20)]

    with running(server):
        answers = together([lambda start=start: ask(start) for start in range(0, 200, 20)])
    assert answers == [[b"%d" % (start + n) for n in range(20)] for start in range(0, 200, 20)]


def test_identical_requests_share_an_answer(engine: str, natives: Any) -> None:
    notes = Notes()
    server = make_server(engine, handler_threads=1)
    server.native("/x/{n}", natives.gated, coalesce=True, max_batch_size=1, context=notes)
    with running(server), Client(server.url) as first, Client(server.url) as second:
        first.send(head("GET", "/x/same"))
        await_true(lambda: notes.waiting == 1)
        second.send(head("GET", "/x/same"))
        await_true(lambda: server.stats()["bridge"]["coalesced"] == 1)
        notes.is_open = 1
        assert (first.reply().body, second.reply().body) == (b"same", b"same")
    assert notes.calls == 1


# --- caching ----------------------------------------------------------------------------------------------------------


def test_answers_are_cached_by_headers_that_vary_tagged_and_purged(engine: str, natives: Any) -> None:
    notes = Notes()
    server = make_server(engine)
    server.native("/x/{n}", natives.cached, vary=["Accept-Language"], context=notes)
    with running(server), Client(server.url) as client:
        reply = client.ask("GET", "/x/1?tagged")
        assert (reply.body, reply["vary"]) == (b"call 1", "Accept-Language")
        assert client.ask("GET", "/x/1?tagged").body == b"call 1"
        assert client.ask("HEAD", "/x/1?tagged")["content-length"] == "6"
        assert client.ask("GET", "/x/1?tagged", ("Accept-Language", "de")).body == b"call 2"
        assert server.cache.purge(tag="two") == 2
        assert client.ask("GET", "/x/1?tagged").body == b"call 3"
        assert client.ask("GET", "/x/1?tagged", ("Cookie", "a=b")).body == b"call 4"
        assert client.ask("GET", "/x/1?public", ("Cookie", "a=b")).body == b"call 5"
        assert client.ask("GET", "/x/1?public").body == b"call 5"
    # The handler tries a second time, which is refused.
    assert notes.noted() == [OK] * 5 and server.stats()["bridge"]["answers_refused"] == 5


def test_what_cannot_be_cached_is_refused(engine: str, natives: Any) -> None:
    notes = Notes()
    server = make_server(engine)
    server.native("/x/{n}", natives.cached, methods=["GET", "POST"], context=notes)
    with running(server), Client(server.url) as client:
        assert client.ask("POST", "/x/1", body=b"").body == b"call 1", "without a time to live it is taken"
        assert client.ask("GET", "/x/1?endless").body == b"call 2"
        assert client.ask("GET", "/x/1?endless").body == b"call 3"
    assert notes.noted() == [NOT_CACHEABLE] * 3


# --- deadlines and clients that go ------------------------------------------------------------------------------------


def test_deadlines_hold_and_late_answers_are_dropped(engine: str, natives: Any) -> None:
    notes = Notes()
    server = make_server(engine, handler_threads=1)
    server.native("/x/{n}", natives.gated, timeout_us=300_000, max_batch_size=2, context=notes, **TOGETHER)
    with running(server), Client(server.url) as client:
        client.send(head("GET", "/x/0"), head("GET", "/x/1"))
        assert [client.reply().status for _ in range(2)] == [504, 504]
        assert notes.waiting == 1 and 0 < notes.time_left_us <= 300_000
        notes.is_open = 1
        await_true(lambda: server.stats()["bridge"]["late"] == 2)
    assert notes.cancelled == 2


def test_a_batch_with_items_of_clients_that_went(engine: str, natives: Any) -> None:
    notes = Notes()
    server = make_server(engine, handler_threads=1)
    server.native("/x/{n}", natives.gated, max_batch_size=3, context=notes, **TOGETHER)
    with running(server):
        clients = [Client(server.url) for _ in range(3)]
        for number, client in enumerate(clients):
            client.send(head("GET", f"/x/{number}"))
        await_true(lambda: notes.waiting == 1)
        clients[1].reset()
        await_true(lambda: server.stats()["requests"]["outcomes"]["client_gone"] == 1)
        notes.is_open = 1
        assert [clients[number].reply().body for number in (0, 2)] == [b"0", b"2"]
        await_true(lambda: server.stats()["bridge"]["late"] == 1)
        clients[0].close()
        clients[2].close()
    assert (notes.items, notes.cancelled) == (3, 1)


def test_a_full_queue_is_503(engine: str, natives: Any) -> None:
    notes = Notes()
    server = make_server(engine, handler_threads=1)
    server.native("/x/{n}", natives.gated, max_batch_size=1, max_queue_size=2, context=notes)
    with running(server):
        clients = [Client(server.url) for _ in range(4)]
        clients[0].send(head("GET", "/x/0"))
        await_true(lambda: notes.waiting == 1)
        for client in clients[1:3]:
            client.send(head("GET", "/x/1"))
        await_true(lambda: server.stats()["routes"]["/x/{n}"]["queued"] == 2)
        refused = clients[3].ask("GET", "/x/2")
        assert refused.status == 503 and "retry-after" in refused
        notes.is_open = 1
        assert [client.reply().status for client in clients[:3]] == [200] * 3
        for client in clients:
            client.close()


def test_a_drain_lets_a_batch_end(engine: str, natives: Any) -> None:
    notes = Notes()
    server = make_server(engine, handler_threads=1)
    server.native("/x/{n}", natives.echo, context=notes, policy="fixed", max_queue_delay_us=60_000_000)
    with running(server), Client(server.url) as client:
        client.send(head("GET", "/x/last"))
        await_true(lambda: server.stats()["routes"]["/x/{n}"]["queued"] == 1)
        server.stop()
        assert client.reply().body == b"last"
    assert server.stats()["routes"]["/x/{n}"]["reasons"]["closing"] == 1


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_a_second_answer_is_refused(engine: str, natives: Any, threads: int, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(engine, natives.twice, *numbered(), threads)
    assert run.answers == [(200, b"%d" % number) for number in range(4)]
    assert run.notes.noted() == [OK, ANSWERED] * 4 and run.bridge["answers_refused"] == 4
    (line,) = told(caplog)
    assert "twice" in line and "/x/{n}" in line and "4 answers" in line and "answered before" in line


def test_items_that_are_not_there(engine: str, natives: Any, threads: int, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(engine, natives.stray, *numbered(2), threads)
    assert run.answers == [(200, b"0"), (200, b"1")]
    assert run.notes.noted() == [NO_ITEM, NO_ITEM, 1, NO_ITEM, NO_ITEM, -1] * 4
    assert run.bridge["answers_refused"] == 4, "looking is not counted"
    (line,) = told(caplog)
    assert "no such item" in line


def test_a_batch_cannot_be_made_larger(engine: str, natives: Any) -> None:
    run = Run(engine, natives.grows, *numbered(2))
    assert run.answers == [(200, b"0"), (200, b"1")] and run.notes.noted() == [NO_ITEM, NO_ITEM, OK, OK]


@pytest.mark.parametrize(("name", "unanswered"), [("forgetful", 3), ("silent", 4)])
def test_what_is_left_unanswered_is_500(
    engine: str, natives: Any, threads: int, caplog: pytest.LogCaptureFixture, name: str, unanswered: int
) -> None:
    run = Run(engine, getattr(natives, name), *numbered(), threads)
    assert [status for status, _ in run.answers] == [200] * (4 - unanswered) + [500] * unanswered
    assert run.bridge["items_unanswered"] == unanswered and run.bridge["answers_refused"] == 0
    assert run.notes.calls == 1, "nothing is tried again"
    (line,) = told(caplog)
    assert name in line and "/x/{n}" in line and f"{unanswered} items" in line


def test_a_body_that_is_too_large_costs_its_own_item(
    engine: str, natives: Any, threads: int, caplog: pytest.LogCaptureFixture
) -> None:
    requests = [head("GET", f"/x/{name}") for name in ("a", "large", "null", "huge", "b")]
    run = Run(engine, natives.large, requests, ["GET"] * 5, threads, {"response_size_bytes_max": "100KiB"})
    assert [status for status, _ in run.answers] == [200, 500, 500, 500, 200]
    assert (run.answers[0][1], run.answers[4][1]) == (b"a", b"b")
    assert run.notes.noted() == [OK, TOO_LARGE, TOO_LARGE, TOO_LARGE, OK]
    assert (run.bridge["items_unanswered"], run.bridge["answers_refused"]) == (3, 3)
    refused, unanswered = told(caplog)
    assert "response_size_bytes_max" in refused and "3 items" in unanswered


def test_statuses_that_cannot_be_sent(engine: str, natives: Any) -> None:
    run = Run(engine, natives.statuses, *numbered(2))
    assert run.answers == [(418, b"teapot")] * 2 and run.notes.noted() == ([BAD_STATUS] * 8 + [OK]) * 2


def test_header_lines_that_would_break_the_message(engine: str, natives: Any) -> None:
    run = Run(engine, natives.splits, *numbered(1))
    (reply,) = run.replies
    assert (reply.status, reply.body, reply["content-type"]) == (200, b"body", "text/css")
    assert (reply["x-a"], reply["x-empty"]) == ("b", "") and not {"x-evil", "x-c"} & set(reply.names())
    *refused, last = run.notes.noted()
    assert set(refused) == {BAD_HEADER} and len(refused) == 20 and last == OK


def test_a_length_is_told_only_for_a_body_that_nobody_sees(engine: str, natives: Any) -> None:
    run = Run(engine, natives.lengths, [head("HEAD", "/x/0"), head("GET", "/x/1")], ["HEAD", "GET"])
    assert [reply["content-length"] for reply in run.replies] == ["12345", "1"]
    assert run.notes.noted() == [BAD_HEADER, OK, BAD_HEADER, BAD_HEADER]


def test_one_handlers_faults_are_no_other_routes(engine: str, natives: Any, threads: int) -> None:
    server = make_server(engine, handler_threads=threads)
    server.native("/bad/{n}", natives.silent, max_batch_size=4)
    server.native("/good/{n}", natives.echo, max_batch_size=4)
    with running(server), Client(server.url) as client:
        targets = [f"/{('good', 'bad')[number % 2]}/{number}" for number in range(40)]
        client.send(*[head("GET", target) for target in targets])
        statuses = [client.reply().status for _ in targets]
    assert statuses == [200, 500] * 20 and server.stats()["bridge"]["items_unanswered"] == 20


def test_errors_are_logged_as_errors(engine: str, natives: Any, caplog: pytest.LogCaptureFixture) -> None:
    Run(engine, natives.silent, *numbered(1), 1)
    assert [record.levelno for record in caplog.records if record.name == "batchbridge.handlers"] == [logging.ERROR]


# --- other versions ---------------------------------------------------------------------------------------------------


def test_handlers_of_other_versions_have_other_structures(engine: str, natives: Any) -> None:
    run = Run(engine, natives.versions, *numbered(4))
    assert run.answers == [(200, b"older"), (200, b"newer")] * 2 and run.notes.noted() == [OK, 1, OK, 1, OK] * 4
