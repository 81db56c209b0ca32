"""The laws of the architecture that can be seen without a socket, one test or group each: order (1), nobody is woken
for nothing (5), everything is bounded (6), nothing is lost (7), a lone request never waits (8), one bad item spoils
nothing (9). Laws 2 and 3 are the kernel tier's and the cache's; 4 is what the memory driver is made to find out.
"""

import os
import select
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from batchbridge.handlers import HandlerThread
from support.loop import Loop, get, looping, make_server, post, recording

S = 1_000_000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("the file\n")
    (tmp_path / "large.bin").write_bytes(bytes(3_000_000))
    return tmp_path


def is_rung(bell: int) -> bool:
    return bool(select.select([bell], [], [], 0)[0])


# --- 1: order ---------------------------------------------------------------------------------------------------------


def answered_in_order(loop: Loop, targets: list[str]) -> list[Any]:
    """What a client gets that asks for all of these at once, when later batches are answered first."""
    client = loop.connect(*[get(target) for target in targets])
    loop.turn()
    for _ in range(20):
        for worker in reversed(loop.workers):
            if (batch := worker.next_batch()) is not None:
                worker.run_batch(batch)
                del batch
                loop.turn()
        loop.turn()
    loop.settle()  # what is large leaves in pieces
    return [(reply.status, reply.body[:9]) for reply in loop.replies(client)]


def test_law_1_answers_leave_in_the_order_of_requests_whoever_makes_them(root: Path) -> None:
    server = make_server(root=str(root))
    for path in ("/one", "/two", "/three"):
        server.batch(path)(lambda batch: [request.path for request in batch])
    server.batch("/kept")(lambda batch: [bb.Response("kept", cache_ttl_s=9) for _ in batch])
    with looping(server, lanes=3) as loop:
        loop.ask(get("/kept"))
        loop.ask(get("/a.txt"))
        targets = ["/one", "/kept", "/two", "/a.txt", "/three", "/nothing", "/one", "/large.bin", "/two", "/kept"]
        bodies = [
            b"/one",
            b"kept",
            b"/two",
            b"the file\n",
            b"/three",
            b"404 Not F",
            b"/one",
            bytes(9),
            b"/two",
            b"kept",
        ]
        statuses = [404 if target == "/nothing" else 200 for target in targets]
        assert answered_in_order(loop, targets) == list(zip(statuses, bodies, strict=True))


def test_law_1_a_later_batch_that_is_ready_first_waits() -> None:
    server = make_server()
    for path in ("/one", "/two"):
        server.batch(path)(lambda batch: [request.path for request in batch])
    with looping(server, lanes=2) as loop:
        client = loop.connect(get("/one"), get("/two"))
        loop.turn()
        batches = [worker.next_batch() for worker in loop.workers]
        for worker, batch in reversed(list(zip(loop.workers, batches, strict=True))):
            assert batch is not None
            assert loop.output(client) == b""
            worker.run_batch(batch)
            loop.turn()
        del batch, batches
        assert [reply.text for reply in loop.replies(client)] == ["/one", "/two"]


@pytest.mark.parametrize("role", ["standalone", "colocated"])
@pytest.mark.parametrize(
    "edit",
    [
        {},
        {("Derive Miss Response", "no route"): "Derive Deferred Response"},
        {("Derive Miss Response", "no route"): "Derive Remote Response"},
        {("Derive Miss Response", "no route"): "Derive Status Response"},
        {("Derive Cached Response", "miss"): "Derive Uncached Response"},
        {("Derive Request", "request"): "Derive Uncached Response"},
    ],
)
def test_law_1_holds_whatever_the_table_says(root: Path, role: str, edit: dict[Any, str]) -> None:
    server = make_server(root=str(root), role=role)
    server.batch("/one")(lambda batch: ["one"] * len(batch))
    with Loop(server) as loop:
        client = loop.connect(get("/one"))
        loop.turn()
        for transition, target in edit.items():
            server.machine.table[transition] = target
        loop.send(client, get("/a.txt") + get("/nothing") + get("/one"))
        for _ in range(3):
            loop.turn()
            assert loop.output(client) == b""
        loop.settle()
        first, *rest = loop.replies(client)
        assert first.text == "one"
        assert [reply.text == "the file\n" for reply in rest] in ([True, False, False], [False, False, False])
        assert len(rest) == 3


# --- 5: nobody is woken for nothing -----------------------------------------------------------------------------------


def test_law_5_an_idle_engine_waits_without_a_time() -> None:
    server = make_server()
    server.batch("/h", queue_timeout_us=9 * S, timeout_us=9 * S, max_queue_delay_us=S)(lambda batch: ["x"] * len(batch))
    with looping(server) as loop:
        assert loop.wait_us() == -1
        client = loop.connect(get("/h"))
        loop.settle()
        assert loop.wait_us() > 0  # the request's own time, and then the client's
        loop.engine.feed_end(client)
        loop.turn()
        loop.settle(100 * S)
        assert loop.wait_us() == -1


def test_law_5_what_the_engine_answers_wakes_no_worker(root: Path) -> None:
    server = make_server(root=str(root))
    server.batch("/kept")(lambda batch: [bb.Response("kept", cache_ttl_s=99) for _ in batch])
    with looping(server) as loop:
        loop.ask(get("/kept"))
        worker = loop.workers[0]
        assert worker.prepare_sleep()
        before = loop.stats["bridge"]
        for _ in range(10):
            client = loop.connect(get("/kept"), get("/a.txt"), get("/nothing"), get("/kept", method="DELETE"))
            while loop.turn():
                pass
            assert [reply.status for reply in loop.replies(client)] == [200, 200, 404, 405]
        assert not is_rung(worker.bell)
        assert loop.stats["bridge"] == before


def test_law_5_a_worker_is_woken_once_a_batch_and_only_while_it_sleeps() -> None:
    server = make_server()
    seen, handler = recording()
    server.batch("/h")(handler)
    with looping(server) as loop:
        worker = loop.workers[0]
        assert worker.prepare_sleep()
        for _ in range(50):
            loop.connect(get("/h"))
        loop.turn()
        assert is_rung(worker.bell)
        assert os.eventfd_read(worker.bell) == 1
        worker.awake()
        loop.settle()
        loop.connect(get("/h"))
        loop.turn()
        assert not is_rung(worker.bell)
        assert not worker.prepare_sleep()  # there is work already
        loop.settle()
        assert seen == [(50, "idle"), (1, "idle")]


def test_law_5_an_engine_that_is_awake_is_not_rung_for() -> None:
    server = make_server()
    _, handler = recording()
    server.batch("/h")(handler)
    with looping(server) as loop:
        loop.connect(get("/h"))
        loop.turn()
        loop.work()
        assert loop.wait_us() == 0  # it would not go to sleep: there is an answer


@pytest.fixture
def threaded() -> Iterator[Loop]:
    """A Loop whose worker runs on a thread of its own."""
    server = make_server()
    server.batch("/h")(lambda batch: [request.path for request in batch])
    with looping(server) as loop:
        thread = HandlerThread(loop.workers[0], server.entered, 0)
        thread.start()
        thread.started_up.wait()
        yield loop
        loop.workers[0].close()
        thread.join(10)
        assert not thread.is_alive()
        assert thread.error is None


def test_law_5_a_worker_wakes_an_engine_that_sleeps(threaded: Loop) -> None:
    clients = []
    for _ in range(20):
        clients.append(threaded.connect(get("/h")))
        threaded.turn()
        until = threading.Event()
        while not (data := threaded.output(clients[-1])):
            assert threaded.engine.wait_for_workers(10.0), "nobody rang"
            threaded.turn()
        assert data.endswith(b"/h")
        until.set()
    bridge = threaded.stats["bridge"]
    assert bridge["batches"] == bridge["items"] == 20
    assert bridge["gil_entries"] <= 21  # one a batch at most, and one when the thread began


# --- 6: everything is bounded -----------------------------------------------------------------------------------------


def test_law_6_connections() -> None:
    server = make_server(max_connections=3)
    server.batch("/h")(lambda batch: ["x"] * len(batch))
    with looping(server) as loop:
        clients = [loop.connect() for _ in range(3)]
        with pytest.raises(BlockingIOError):
            loop.connect()
        loop.engine.feed_end(clients[1])
        loop.turn()
        again = loop.connect(get("/h"))
        loop.settle()
        assert loop.replies(again)[0].status == 200


def test_law_6_requests_of_one_connection() -> None:
    server = make_server(pipelined_requests_max=5)
    server.batch("/h")(lambda batch: ["x"] * len(batch))
    with looping(server) as loop:
        client = loop.connect(get("/h") * 12)
        loop.turn()
        assert loop.stats["bridge"]["in_user_mode"] == 5
        loop.settle()
        assert len(loop.replies(client)) == 12
        assert loop.stats["routes"]["/h"]["batches"] == 3


def test_law_6_memory_for_what_waits() -> None:
    server = make_server(input_size_bytes_max=1 << 20, body_size_bytes_max=1 << 20)
    server.batch("/h", methods=["POST"])(lambda batch: ["x"] * len(batch))
    with looping(server) as loop:
        clients = [loop.connect(post("/h", bytes(300_000))[:-1]) for _ in range(4)]
        loop.turn()
        assert loop.stats["bytes"]["input_waiting"] <= 1 << 20
        refused = [client for client in clients if loop.engine.is_finished(client)]
        assert refused
        for client in refused:
            (reply,) = loop.replies(client)
            assert (reply.status, reply.headers["retry-after"], reply.headers["connection"]) == (503, "1", "close")
        for client in set(clients) - set(refused):
            loop.send(client, b"\0")
        loop.settle()
        assert {loop.replies(client)[0].status for client in set(clients) - set(refused)} == {200}


def test_law_6_a_client_that_asks_faster_than_it_is_answered_is_paused() -> None:
    server = make_server()
    server.batch("/h", methods=["POST"])(lambda batch: [bytes(request.body[:1]) for request in batch])
    with looping(server) as loop:
        client = loop.connect(
            get("/h", method="POST", body=b""), *[post("/h", b"%d" % (n % 10) * 1000) for n in range(200)]
        )
        loop.turn()
        assert loop.engine.is_paused(client)
        assert 64 * 1024 <= loop.stats["bytes"]["input_waiting"] <= 256 * 1024
        loop.settle()
        assert not loop.engine.is_paused(client)
        assert [reply.body for reply in loop.replies(client)] == [b"", *[b"%d" % (n % 10) for n in range(200)]]


def test_law_6_slabs() -> None:
    server = make_server(handler_queue_slabs=2, batch_size_max=16)
    kept: list[bb.Batch] = []

    @server.batch("/h", max_batch_size=4)
    def handler(batch: bb.Batch) -> list[str]:
        kept.append(batch)  # its memory cannot be used again
        return ["x"] * len(batch)

    with looping(server) as loop:
        replies = [loop.ask(get("/h")) for _ in range(40)]
        statuses = [reply.status for reply in replies]
        assert statuses == [200] * len(kept) + [503] * (40 - len(kept))
        assert 24 < len(kept) <= 32
        assert replies[-1].headers["retry-after"] == "1"
        kept.clear()
        assert loop.ask(get("/h")).status == 200
        kept.clear()


def test_law_6_answers_that_slow_clients_hold() -> None:
    server = make_server()
    server.batch("/h")(lambda batch: [b"x" * 60_000 for _ in batch])
    with looping(server, response_arena_size_bytes=262_144) as loop:
        clients = []
        for _ in range(40):  # 2.4 MB; 1.3 MB are allowed, most of it not in the arena
            clients.append(loop.connect(get("/h")))
            loop.engine.send_limit(clients[-1], 1000)
            loop.settle()
        for client in clients:
            loop.engine.send_limit(client, None)
        loop.settle()
        replies = [loop.replies(client)[0] for client in clients]
        statuses = [reply.status for reply in replies]
        assert statuses == sorted(statuses)
        assert 15 <= statuses.count(200) < 40
        assert set(statuses) == {200, 503}
        assert {reply.headers.get("retry-after") for reply in replies if reply.status == 503} == {"1"}
        assert all(reply.body == b"x" * 60_000 for reply in replies if reply.status == 200)
        assert loop.ask(get("/h")).status == 200


def test_law_6_the_size_of_one_answer() -> None:
    server = make_server(response_size_bytes_max=100_000)
    server.batch("/h/{n}")(lambda batch: [b"x" * int(request.params["n"]) for request in batch])
    with looping(server) as loop:
        assert loop.ask(get("/h/100000")).status == 200
        assert loop.ask(get("/h/100001")).status == 500


# --- 7: nothing is lost -----------------------------------------------------------------------------------------------


def test_law_7_each_request_has_one_outcome_and_one_line(root: Path, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    server = make_server(root=str(root), access_log=str(log), cached_file_size_bytes_max=1000)
    server.batch("/kept")(lambda batch: [bb.Response("kept", cache_ttl_s=99) for _ in batch])
    server.batch("/same", coalesce=True)(lambda batch: ["same"] * len(batch))
    server.batch("/slow", timeout_us=9 * S, max_queue_size=3, concurrency=2)(lambda batch: ["slow"] * len(batch))
    with looping(server) as loop:
        for pieces in (
            [get("/kept"), get("/kept"), get("/kept", method="HEAD")],
            [get("/a.txt"), get("/a.txt"), get("/large.bin"), get("/a.txt", "If-None-Match: *")],
            [get("/nothing"), get("/kept", method="OPTIONS"), get("/kept", method="PUT"), get("*", method="OPTIONS")],
            [get("/same") * 3],
            [b"nonsense\r\n\r\n"],
            [get("/a.txt", "Content-Length: 99999999999")],
        ):
            loop.connect(*pieces)
            loop.settle()
        goers = [loop.connect(get("/slow") * 2 + get("/nothing")) for _ in range(3)]
        half = loop.connect(b"GET /half")
        loop.turn()
        loop.engine.reset(goers[0])
        loop.turn()
        loop.turn(11 * S)
        loop.settle()
        assert b"408" in loop.output(half)
        loop.close_all()
        outcomes, stats = loop.outcomes, loop.stats
    lines = log.read_text().splitlines()
    assert stats["requests"]["read"] == sum(outcomes.values()) == stats["log"]["lines"] == len(lines)
    assert stats["log"]["lines_lost"] == 0
    assert set(outcomes) == {"hit", "file", "batch", "local", "error_4xx", "error_5xx", "client_gone"}


# --- 8: a lone request never waits ------------------------------------------------------------------------------------


def test_law_8_a_lone_request_leaves_in_the_turn_it_came_in() -> None:
    server = make_server()
    seen, handler = recording()
    server.batch("/h", max_queue_delay_us=60 * S, max_batch_size=1000)(handler)
    with looping(server) as loop:
        client = loop.connect(get("/h"))
        loop.turn()
        assert loop.work() == 1
        loop.turn()
        assert loop.replies(client)[0].status == 200
        assert seen == [(1, "idle")]


def test_law_8_no_timer_is_armed_while_nothing_waits() -> None:
    server = make_server(idle_timeout_s=1000.0)
    seen, handler = recording()
    server.batch("/h", max_queue_delay_us=5 * S, policy="fixed", max_batch_size=2)(handler)
    with looping(server) as loop:
        client = loop.connect()
        loop.turn()
        assert loop.wait_us() > 900 * S
        loop.send(client, get("/h"))
        loop.turn()
        assert 4 * S < loop.wait_us() <= 5 * S
        loop.send(client, get("/h"))
        loop.settle()
        assert seen == [(2, "full")]
        assert loop.wait_us() > 900 * S


# --- 9: one bad item spoils nothing -----------------------------------------------------------------------------------


def test_law_9_one_bad_item_of_each_kind_in_one_batch(caplog: pytest.LogCaptureFixture) -> None:
    server = make_server()
    sizes: list[int] = []

    @server.batch("/h/{what}", methods=["POST"], decode=bb.Json(), timeout_us=9 * S)
    def handler(batch: bb.Batch) -> None:
        sizes.append(len(batch))
        for request in batch:
            with request:
                what = request.params["what"]
                if what == "raises":
                    raise ValueError(what)
                if what == "refuses":
                    raise bb.HTTPError(409, what)
                if what != "forgets":
                    request.respond(f"{request.json() + 1}")

    with looping(server) as loop:
        busy = loop.connect(post("/h/good", b"0"))
        loop.turn()
        expired = loop.connect(post("/h/good", b"1"))
        loop.turn()
        loop.turn(8 * S)
        bodies = {
            "good": b"1",
            "raises": b"2",
            "refuses": b"3",
            "forgets": b"4",
            "bad": b"{",
            "gone": b"5",
            "fine": b"6",
        }
        clients = {what: loop.connect(post(f"/h/{what}", body)) for what, body in bodies.items()}
        loop.turn(S + 100_000)
        loop.engine.reset(clients.pop("gone"))
        loop.settle()
        replies = {what: loop.replies(client)[0] for what, client in clients.items()}
        assert {what: reply.status for what, reply in replies.items()} == {
            "good": 200, "raises": 500, "refuses": 409, "forgets": 500, "bad": 400, "fine": 200,
        }  # fmt: skip
        assert (replies["good"].text, replies["fine"].text) == ("2", "7")
        assert loop.replies(expired)[0].status == 504
        assert loop.replies(busy)[0].status == 504
        assert sizes == [1, 5]
