"""Coroutine handlers on a handler thread's event loop: batches overlap and may be answered in any order, by the same
rules as others; the thread ends when all of them have.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import batchbridge as bb
from batchbridge.handlers import HandlerThread
from support.loop import Loop, get, looping, make_server, post

PATIENCE_S = 10.0


@contextmanager
def threaded(server: bb.Server) -> Iterator[Loop]:
    """A Loop whose worker runs on a handler thread, with an event loop where a route needs one."""
    with looping(server, lane_batches_max=32) as loop:
        thread = HandlerThread(loop.workers[0], server.entered, 0)
        thread.start()
        assert thread.started_up.wait(PATIENCE_S)
        assert thread.error is None
        try:
            yield loop
        finally:
            loop.workers[0].close()
            thread.join(PATIENCE_S)
        assert not thread.is_alive()
        assert thread.error is None


def until(loop: Loop, condition: Callable[[], Any]) -> None:
    """Turns, and sleeps between turns until a worker rings, until the condition is true."""
    for _ in range(1000):
        if condition():
            return
        assert loop.engine.wait_for_workers(PATIENCE_S), "no worker rang"
    raise AssertionError("it did not come true")


def text(loop: Loop, client: int) -> str:
    """The one response's body, waited for."""
    got: list[Any] = []
    until(loop, lambda: got or got.extend(loop.replies(client)) or got)
    return got[0].text  # type: ignore[no-any-return]


def test_batches_overlap_and_are_answered_as_they_end() -> None:
    server = make_server()
    events: dict[str, asyncio.Event] = {}
    started: list[str] = []

    @server.batch("/h/{name}", concurrency=3)
    async def handler(batch: bb.Batch) -> list[str]:
        name = batch[0].params["name"]
        events[name] = asyncio.Event()
        events[name].loop = asyncio.get_running_loop()  # type: ignore[attr-defined]
        started.append(name)
        ready.release()
        await events[name].wait()
        return [name] * len(batch)

    def let(name: str) -> None:
        events[name].loop.call_soon_threadsafe(events[name].set)  # type: ignore[attr-defined]

    ready = threading.Semaphore(0)
    with threaded(server) as loop:
        clients = {}
        for name in "abc":
            clients[name] = loop.connect(get(f"/h/{name}"))
            loop.turn()
            assert ready.acquire(timeout=PATIENCE_S)
        assert started == ["a", "b", "c"]
        late = loop.connect(get("/h/d"))
        loop.turn()
        assert loop.stats["routes"]["/h/{name}"]["queued"] == 1
        for name in "cab":
            let(name)
            assert text(loop, clients[name]) == name
        assert ready.acquire(timeout=PATIENCE_S)
        let("d")
        assert text(loop, late) == "d"
        assert loop.stats["bridge"]["gil_entries"] <= 2 * loop.stats["bridge"]["batches"] + 2


def test_coroutines_are_isolated_decoded_and_told_like_others(caplog: pytest.LogCaptureFixture) -> None:
    server = make_server()
    runs: list[int] = []

    @server.batch("/h", methods=["POST"], decode=bb.Json(), idempotent=True)
    async def handler(batch: bb.Batch) -> list[Any]:
        runs.append(len(batch))
        await asyncio.sleep(0)
        if any(request.json() == "bad" for request in batch):
            raise ValueError("secret")
        return [f"{request.json()}" for request in batch]

    @server.batch("/forgets")
    async def forgets(batch: bb.Batch) -> None:
        await asyncio.sleep(0)

    @server.batch("/plain")
    def plain(batch: bb.Batch) -> list[str]:
        return ["plain"] * len(batch)

    with threaded(server) as loop:
        bodies = [b"1", b"{", b'"bad"', b"2"]
        clients = [loop.connect(post("/h", body)) for body in bodies]
        others = [loop.connect(get(path)) for path in ("/forgets", "/plain")]
        loop.turn()
        texts = [text(loop, client) for client in clients]
        assert texts[0] == "1" and texts[3] == "2"
        assert texts[1].startswith("the body is not JSON")
        assert texts[2] == "500 Internal Server Error\n"
        assert runs == [3, 1, 1, 1]
        assert [text(loop, client) for client in others] == ["500 Internal Server Error\n", "plain"]
    assert "left 1 items unanswered" in caplog.text
    assert caplog.text.count("of /h failed: secret") == 1


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError(), GeneratorExit()])
def test_nothing_that_a_coroutine_raises_ends_its_thread(error: BaseException) -> None:
    server = make_server()

    @server.batch("/h/{name}")
    async def handler(batch: bb.Batch) -> list[str]:
        await asyncio.sleep(0)
        if batch[0].params["name"] == "bad":
            raise error
        return ["fine"] * len(batch)

    with threaded(server) as loop:
        for name, answer in (("bad", "500 Internal Server Error\n"), ("good", "fine")):
            client = loop.connect(get(f"/h/{name}"))
            loop.turn()
            assert text(loop, client) == answer


def test_closing_waits_for_what_is_under_way() -> None:
    server = make_server()
    began = threading.Event()

    @server.batch("/h")
    async def handler(batch: bb.Batch) -> list[str]:
        began.set()
        await asyncio.sleep(0.05)
        return ["done"] * len(batch)

    with threaded(server) as loop:
        client = loop.connect(get("/h"))
        loop.turn()
        assert began.wait(PATIENCE_S)
        loop.workers[0].close()
        assert text(loop, client) == "done"


def test_each_thread_has_its_lifespan() -> None:
    entered: list[str] = []

    def lifespan(server: bb.Server) -> Iterator[str]:
        entered.append(threading.current_thread().name)
        yield f"state {len(entered)}"
        entered.append("left")

    server = make_server(lifespan=lifespan)

    @server.batch("/h")
    async def handler(batch: bb.Batch) -> list[str]:
        return [batch.state]

    with threaded(server) as loop:
        client = loop.connect(get("/h"))
        loop.turn()
        assert text(loop, client) == "state 2"  # the first is the Loop's own
    assert entered[1:] == ["batchbridge-handler-0", "left", "left"]
