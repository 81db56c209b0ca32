"""How requests become batches: policies and why a batch left, run-time changes, concurrency and handler threads,
overlapping coroutines, and identical requests that share one place (DESIGN.md sections 5 and 6, law 8)."""

import asyncio
import contextlib
import threading
import time
from functools import partial
from typing import Any

import pytest

import batchbridge as bb
from support.serving import Gate, make_server, running
from support.wire import Client, ask, await_true, head, together


class Recorder:
    """A handler that answers with its batch's size, and keeps sizes and reasons."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.batches: list[tuple[int, str]] = []
        self.gate = gate

    def __call__(self, batch: bb.Batch) -> list[str]:
        self.batches.append((len(batch), batch.reason))
        if self.gate is not None:
            self.gate.pass_through()
        return [str(len(batch))] * len(batch)


@pytest.mark.parametrize("threads", [0, 1])
def test_a_lone_request_never_waits(engine: str, threads: int) -> None:
    # Law 8: the delay is spent only where more is coming.
    recorder = Recorder()
    server = make_server(engine, handler_threads=threads)
    server.batch("/x", max_queue_delay_us=2_000_000)(recorder)
    with running(server), Client(server.url) as client:
        since = time.monotonic()
        for _ in range(20):
            assert client.ask("GET", "/x").body == b"1"
        assert time.monotonic() - since < 1.0
    assert recorder.batches == [(1, "idle")] * 20


@pytest.mark.parametrize("size_bytes", [100, 20_000, 100_000])
def test_a_lone_request_in_many_pieces_never_waits(engine: str, size_bytes: int) -> None:
    # "More is coming" must stop being believed when nothing comes, and an engine that waits must not spin.
    server = make_server(engine)
    server.batch("/x", methods=["POST"])(lambda batch: [bytes(request.body) for request in batch])
    slowest_s = 0.0
    with running(server), Client(server.url) as client:
        request = head("POST", "/x", body=b"z" * size_bytes)
        for _ in range(300):
            since = time.monotonic()
            client.send(request[:100], request[100:])
            assert len(client.reply("POST").body) == size_bytes
            slowest_s = max(slowest_s, time.monotonic() - since)
        loops = server.stats()["engine"]["loops"]
        time.sleep(0.2)
        assert server.stats()["engine"]["loops"] - loops < 10
    assert slowest_s < 1.0 and loops < 300 * 300


def test_what_arrives_together_leaves_together(engine: str) -> None:
    recorder = Recorder()
    server = make_server(engine)
    server.batch("/x", max_batch_size=64)(recorder)
    with running(server), Client(server.url) as client:
        client.send(head("GET", "/x") * 40)
        assert len(client.replies(*["GET"] * 40)) == 40
    assert sum(size for size, _ in recorder.batches) == 40 and len(recorder.batches) <= 4


@pytest.mark.parametrize(("count", "sizes"), [(8, [8]), (20, [8, 8, 4]), (3, [3])])
def test_full_or_delay(engine: str, count: int, sizes: list[int]) -> None:
    recorder = Recorder()
    server = make_server(engine)
    server.batch("/x", policy="fixed", max_batch_size=8, max_queue_delay_us=200_000)(recorder)
    with running(server), Client(server.url) as client:
        since = time.monotonic()
        client.send(head("GET", "/x") * count)
        assert [reply.body for reply in client.replies(*["GET"] * count)] == [
            b"%d" % size for size in sizes for _ in range(size)
        ]
        took_s = time.monotonic() - since
    assert [size for size, _ in recorder.batches] == sizes
    for size, reason in recorder.batches:
        assert reason == ("full" if size == 8 else "delay")
    assert (took_s >= 0.19) == (sizes[-1] < 8)
    figures = server.stats()["routes"]["/x"]
    assert (figures["batches"], figures["items"]) == (len(sizes), count)
    assert figures["reasons"]["full"] == sizes.count(8)


def test_batches_form_while_a_handler_works(engine: str) -> None:
    gate = Gate()
    recorder = Recorder(gate)
    server = make_server(engine)
    server.batch("/x", max_batch_size=64)(recorder)
    with running(server), Client(server.url) as client:
        client.send(head("GET", "/x"))
        gate.await_arrival()
        for _ in range(10):
            client.send(head("GET", "/x"), pause_s=0.002)
        await_true(lambda: server.stats()["routes"]["/x"]["queued"] == 10)
        gate.open()
        assert [reply.body for reply in client.replies(*["GET"] * 11)] == [b"1"] + [b"10"] * 10


def test_preferred_sizes(engine: str) -> None:
    gate = Gate()
    recorder = Recorder(gate)
    server = make_server(engine)
    server.batch("/x", max_batch_size=64, preferred_batch_size=(4, 8))(recorder)
    with running(server), Client(server.url) as client:
        client.send(head("GET", "/x"))
        gate.await_arrival()
        client.send(head("GET", "/x") * 13)
        await_true(lambda: server.stats()["routes"]["/x"]["queued"] == 13)
        gate.open()
        assert len(client.replies(*["GET"] * 14)) == 14
    assert [size for size, _ in recorder.batches] == [1, 8, 4, 1]


def test_a_policy_is_changed_at_run_time(engine: str) -> None:
    recorder = Recorder()
    server = make_server(engine)
    server.batch("/x", policy="fixed", max_batch_size=4, max_queue_delay_us=2_000_000)(recorder)
    with running(server), Client(server.url) as client:

        def sizes(count: int) -> list[int]:
            client.send(head("GET", "/x") * count)
            return [int(reply.body) for reply in client.replies(*["GET"] * count)]

        assert sizes(4) == [4] * 4
        assert server.set_policy("/x", max_batch_size=2).max_batch_size == 2
        assert server.policy("/x").max_batch_size == 2
        assert sizes(4) == [2] * 4
        server.set_policy("/x", max_batch_size=512)
        server.set_policy("/x", max_queue_delay_us=100_000)
        assert sizes(5) == [5] * 5
        server.set_policy("/x", policy="idle")
        since = time.monotonic()
        assert sizes(1) == [1] and time.monotonic() - since < 0.09
        with pytest.raises(bb.ConfigError):
            server.set_policy("/x", max_batch_size=0)
        with pytest.raises(bb.ConfigError):
            server.set_policy("/x", nonsense=1)
        with pytest.raises(KeyError):
            server.set_policy("/y", max_batch_size=1)
        assert sizes(1) == [1]


def test_an_adaptive_policy_moves_its_delay_within_its_bounds(engine: str) -> None:
    server = make_server(engine)
    policy = {"policy": "adaptive", "max_queue_delay_us": 4_000, "latency_objective_us": 1}
    server.batch("/x", max_batch_size=64, **policy)(Recorder())
    with running(server), Client(server.url) as client:

        def delay_us_after(count: int) -> int:
            for _ in range(count):
                client.send(head("GET", "/x") * 3)
                assert {reply.body for reply in client.replies(*["GET"] * 3)} <= {b"1", b"2", b"3"}
            return int(server.stats()["routes"]["/x"]["effective_delay_us"])

        assert delay_us_after(20) < 100, "above the objective it shrinks"
        server.set_policy("/x", latency_objective_us=1_000_000)
        assert 100 < delay_us_after(40) <= 4_000, "below, it grows, up to its maximum"


def test_coalescing_is_switched_at_run_time(engine: str) -> None:
    gate = Gate()
    recorder = Recorder(gate)
    server = make_server(engine)
    server.batch("/x", max_batch_size=64)(recorder)
    with running(server):
        server.set_policy("/x", coalesce=True)
        clients = hold(server, gate, 4)
        await_true(lambda: server.stats()["bridge"]["coalesced"] == 3)
        gate.open()
        assert [client.reply().status for client in clients] == [200] * 4
    assert [size for size, _ in recorder.batches] == [1]


def hold(server: bb.Server, gate: Gate, count: int, *headers: tuple[str, str], target: str = "/x") -> list[Client]:
    """So many clients with a request for `target` under way, of which the first has reached the gate."""
    clients = [Client(server.url) for _ in range(count)]
    for place, client in enumerate(clients):
        client.send(head("GET", target, *headers))
        if place == 0:
            gate.await_arrival()
    return clients


# --- several at a time ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "concurrency", "at_once"), [(1, 4, 1), (3, 1, 1), (3, 2, 2), (3, 8, 3)])
def test_how_many_batches_are_handled_at_once(engine: str, threads: int, concurrency: int, at_once: int) -> None:
    gate = Gate()
    server = make_server(engine, handler_threads=threads)
    server.batch("/x", max_batch_size=1, concurrency=concurrency)(Recorder(gate))
    with running(server):
        clients = [Client(server.url) for _ in range(6)]
        for client in clients:
            client.send(head("GET", "/x"))
        for _ in range(at_once):
            gate.await_arrival()
        assert not gate.reached.acquire(timeout=0.1), "one more than allowed"
        assert server.stats()["routes"]["/x"]["in_flight"] == at_once
        gate.open()
        assert [client.reply().status for client in clients] == [200] * 6


def test_threads_take_turns_and_all_are_used(engine: str) -> None:
    seen: set[int] = set()
    barrier = threading.Barrier(3, timeout=8)
    server = make_server(engine, handler_threads=3)

    @server.batch("/x", max_batch_size=1, concurrency=3)
    def handler(batch: bb.Batch) -> list[str]:
        barrier.wait()
        seen.add(threading.get_ident())
        return ["x"]

    with running(server):
        assert together([partial(ask, server.url, "GET", "/x") for _ in range(3)])
    assert len(seen) == 3


@pytest.mark.parametrize("threads", [1, 2])
def test_coroutines_overlap(engine: str, threads: int) -> None:
    running_now, most = 0, 0
    server = make_server(engine, handler_threads=threads)

    @server.batch("/a", max_batch_size=1, concurrency=32)
    async def waiting(batch: bb.Batch) -> list[str]:
        nonlocal running_now, most
        running_now += 1
        most = max(most, running_now)
        await asyncio.sleep(0.2)
        running_now -= 1
        return ["a"] * len(batch)

    @server.batch("/plain")
    def plain(batch: bb.Batch) -> list[str]:
        return ["plain"] * len(batch)

    with running(server):
        since = time.monotonic()
        replies = together([partial(ask, server.url, "GET", "/a") for _ in range(10)])
        took_s = time.monotonic() - since
        assert [reply.body for reply in replies] == [b"a"] * 10  # type: ignore[attr-defined]
        assert took_s < 1.5 and most >= 4
        assert ask(server.url, "GET", "/plain").body == b"plain"


def test_coroutines_fail_one_by_one(engine: str) -> None:
    server = make_server(engine)

    @server.batch("/a/{n}", policy="fixed", max_batch_size=3, max_queue_delay_us=2_000_000, concurrency=4)
    async def handler(batch: bb.Batch) -> list[Any]:
        await asyncio.sleep(0)
        if "1" in [request.params["n"] for request in batch]:
            raise ValueError("one")
        return ["fine"] * len(batch)

    with running(server), Client(server.url) as client:
        client.send(b"".join(head("GET", f"/a/{place}") for place in range(3)))
        assert [reply.status for reply in client.replies(*["GET"] * 3)] == [200, 500, 200]


def test_coroutines_without_a_thread_of_their_own(engine: str) -> None:
    # They would need an event loop, which the engine's thread has not: refused at start, or they work.
    server = make_server(engine, handler_threads=0)

    @server.batch("/a")
    async def handler(batch: bb.Batch) -> list[str]:
        await asyncio.sleep(0.001)
        return ["a"] * len(batch)

    with contextlib.suppress(bb.ConfigError), running(server):
        assert ask(server.url, "GET", "/a").body == b"a"


# --- coalescing -------------------------------------------------------------------------------------------------------


def coalescing(engine: str, gate: Gate, **route: Any) -> tuple[bb.Server, list[int]]:
    calls: list[int] = []
    server = make_server(engine)

    @server.batch("/x", methods=["GET", "POST"], coalesce=True, max_batch_size=64, **route)
    def handler(batch: bb.Batch) -> list[str]:
        calls.append(len(batch))
        gate.pass_through()
        return [f"call {len(calls)}, {request.headers.get('accept-language', '')}" for request in batch]

    return server, calls


@pytest.mark.parametrize("size_bytes", [10, 100_000])
def test_identical_requests_run_once(engine: str, size_bytes: int) -> None:
    gate = Gate()
    calls: list[int] = []
    server = make_server(engine)

    @server.batch("/x", coalesce=True)
    def handler(batch: bb.Batch) -> list[bytes]:
        calls.append(len(batch))
        gate.pass_through()
        return [b"%d" % len(calls) * size_bytes] * len(batch)

    with running(server):
        clients = hold(server, gate, 12)
        await_true(lambda: server.stats()["bridge"]["coalesced"] == 11)
        gate.open()
        replies = [client.reply() for client in clients]
        assert [reply.body for reply in replies] == [b"1" * size_bytes] * 12 and calls == [1]
        assert ask(server.url, "GET", "/x").body == b"2" * size_bytes, "later ones ask anew"
    stats = server.stats()
    assert stats["requests"]["outcomes"]["batch"] == 13 and stats["bridge"]["items"] == 2


def test_what_differs_is_not_coalesced(engine: str) -> None:
    gate = Gate()
    server, calls = coalescing(engine, gate, vary=("Accept-Language",))
    different = [
        head("GET", "/x"), head("GET", "/x?a"), head("GET", "/x", host="other"), head("HEAD", "/x"),
        head("GET", "/x", ("Accept-Language", "de")), head("POST", "/x", body=b""), head("GET", "/x", body=b"b"),
        head("GET", "/x", ("Authorization", "a")), head("GET", "/x", ("Authorization", "a")),
        head("GET", "/x", ("Cookie", "a=b")),
    ]  # fmt: skip
    with running(server):
        clients = hold(server, gate, 1)
        for request in different[1:]:
            clients.append(Client(server.url))
            clients[-1].send(request)
        await_true(lambda: server.stats()["routes"]["/x"]["queued"] == len(different) - 1)
        assert server.stats()["bridge"]["coalesced"] == 0
        gate.open()
        for client, request in zip(clients, different, strict=True):
            assert client.reply(request.split(b" ")[0].decode()).status == 200
    assert calls == [1, len(different) - 1]


@pytest.mark.parametrize("who", ["owner", "follower", "all"])
def test_a_client_that_leaves_takes_no_one_with_it(engine: str, who: str) -> None:
    gate = Gate()
    server, calls = coalescing(engine, gate)
    with running(server):
        clients = hold(server, gate, 5)
        await_true(lambda: server.stats()["bridge"]["coalesced"] == 4)
        gone = {"owner": clients[:1], "follower": clients[2:4], "all": clients}[who]
        for client in gone:
            client.reset()
        await_true(lambda: server.stats()["requests"]["outcomes"]["client_gone"] == len(gone))
        gate.open()
        assert {client.reply().body for client in clients if client not in gone} <= {b"call 1, "}
        assert ask(server.url, "GET", "/x").body == b"call 2, "
    assert calls == [1, 1]


def test_one_connection_may_ask_the_same_twice(engine: str) -> None:
    gate = Gate()
    server, calls = coalescing(engine, gate)
    with running(server), Client(server.url) as client:
        client.send(head("GET", "/x") * 3)
        gate.await_arrival()
        gate.open()
        assert [reply.status for reply in client.replies(*["GET"] * 3)] == [200] * 3
    assert len(calls) <= 3
