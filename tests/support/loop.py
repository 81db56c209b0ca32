"""An engine turned by hand: no sockets, no threads, no clock but the test's own.

A turn takes what was fed, answers what it can, and dispatches batches. Workers run only when `work` or `settle` says
so, so a test decides how long a handler takes. Between turns time stands still, unless a turn is told how much of it
has passed: the machine's own clock may jump in a test, as that of a virtual machine does that is paused.
"""

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import batchbridge as bb
from batchbridge.cython_ext.memory import MemoryEngine
from batchbridge.cython_ext.worker import Worker

ROUNDS_MAX = 20_000
DATE = re.compile(rb"Date: [^\r]*\r\n")
IPV4, IPV6 = 2, 10


def make_server(*, lifespan: Any = None, **settings: Any) -> bb.Server:
    """A server with these settings, whose handlers may be run by a Loop or a test client."""
    return bb.Server(
        config=bb.Config(**{"handler_threads": 0, "file_revalidate_s": 0.0, **settings}), lifespan=lifespan
    )


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000


class Loop:
    """The engine of a server, and its workers. `inline`: the first worker runs within turns, as soon as it can."""

    def __init__(
        self, server: bb.Server, *, lanes: int = 1, late_sends: bool = False, inline: bool = False, **settings: Any
    ) -> None:
        self._stack = ExitStack()
        handlers = self._stack.enter_context(server.prepared())
        settings = {**server.engine_settings(handlers), **settings}
        self.server = server
        self.engine = MemoryEngine(settings, [handler.settings() for handler in handlers], lanes)
        self.engine.late_sends = late_sends
        self.workers = [Worker(self.engine, number, handlers) for number in range(lanes)]
        state = self._stack.enter_context(server.entered())
        for worker in self.workers:
            worker.state = state
        if inline:
            self.engine.set_inline_worker(self.workers[0])
        server.engines.append(self.engine)
        server.machine.table.listeners.append(self.engine.set_table)
        self.now_us = monotonic_us()
        self.turn()

    def __enter__(self) -> "Loop":
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.close()
        self.server.engines.remove(self.engine)
        self._stack.close()

    # --- clients ---

    def connect(self, *pieces: bytes, address: str | None = None) -> int:
        """A new client; `pieces` are received one by one in the next turn."""
        if address is None:
            client = self.engine.connect()
        else:
            from ipaddress import ip_address

            ip = ip_address(address)
            client = self.engine.connect(IPV4 if ip.version == 4 else IPV6, ip.packed, 4711)
        self.send(client, *pieces)
        return client

    def send(self, client: int, *pieces: bytes) -> None:
        for piece in pieces:
            self.engine.feed(client, piece)

    def output(self, client: int) -> bytes:
        """What has left for the client since this was last asked, without Date."""
        return DATE.sub(b"", self.engine.output(client))

    def replies(self, client: int, *methods: str) -> "list[Reply]":
        """The same, as responses; `methods` of their requests, where they are not GET."""
        return list(replies_in(self.engine.output(client), list(methods)))

    # --- turns ---

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Lets the engine's clock go on from where it stood, and remembers where it has come to."""
        # Its offset from the machine's clock counts modulo 2**64.
        self.engine.advance((self.now_us - monotonic_us() - self.engine.clock_offset_us) % 2**64)
        yield
        self.now_us = (monotonic_us() + self.engine.clock_offset_us) % 2**64

    def turn(self, after_us: int = 0, *, more_input: bool = False) -> bool:
        """One turn, so much later than the last one; whether another one would do something at once."""
        self.now_us += after_us
        with self.clock():
            return self.engine.turn(None, more_input)

    def wait_us(self) -> int:
        """How long the engine would sleep now: 0 not at all, -1 until something happens."""
        with self.clock():
            return self.engine.wait_us()

    def work(self, batches_max: int | None = None) -> int:
        """Lets workers run what was dispatched to them, in turn; how many batches they ran."""
        ran = 0
        for worker in self.workers:
            while (batches_max is None or ran < batches_max) and (batch := worker.next_batch()) is not None:
                with self.clock():
                    worker.run_batch(batch)
                del batch
                ran += 1
        return ran

    def settle(self, after_us: int = 0) -> None:
        """Turns and works until there is nothing left to do but to wait for clients or the clock."""
        busy = self.turn(after_us)
        for _ in range(ROUNDS_MAX):
            worked = self.work()
            if not busy and not worked:
                return
            busy = self.turn()
        raise AssertionError(f"the engine does not come to rest within {ROUNDS_MAX} rounds")

    def ask(self, *pieces: bytes, method: str = "GET") -> "Reply":
        """One request on a connection of its own, and its response."""
        client = self.connect(*pieces)
        self.settle()
        (reply,) = self.replies(client, method)
        self.engine.feed_end(client)
        self.turn()
        return reply

    # --- figures ---

    @property
    def stats(self) -> Any:
        return self.engine.stats()

    @property
    def outcomes(self) -> dict[str, int]:
        """Those that are not 0."""
        return {name: count for name, count in self.stats["requests"]["outcomes"].items() if count}

    def close_all(self) -> None:
        """Ends every connection, and asserts that nothing is left of any."""
        self.settle()
        self.engine.close()
        self.settle()
        self.assert_idle()

    def assert_idle(self) -> None:
        """Law 7, and that what was lent was given back."""
        stats = self.stats
        assert stats["requests"]["read"] == sum(stats["requests"]["outcomes"].values()), stats["requests"]
        assert stats["connections"]["accepted"] == stats["connections"]["closed"] + stats["connections"]["open"]
        assert stats["bridge"]["in_user_mode"] == 0, stats["bridge"]
        assert stats["bytes"]["input_waiting"] == 0, stats["bytes"]
        assert stats["engine"]["table_faults"] == 0
        queues = {path: (route["queued"], route["in_flight"]) for path, route in stats["routes"].items()}
        assert set(queues.values()) <= {(0, 0)}, queues
        # Each route keeps its open slab.
        assert stats["bridge"]["slabs_in_use"] <= len(queues), stats["bridge"]


@contextmanager
def looping(server: bb.Server, **more: Any) -> Iterator[Loop]:
    """A Loop, at whose end all connections are closed and nothing may be left."""
    with Loop(server, **more) as loop:
        yield loop
        loop.close_all()


# --- bytes ------------------------------------------------------------------------------------------------------------


def get(target: str, *lines: str, method: str = "GET", version: str = "1.1", body: bytes | None = None) -> bytes:
    """A request's bytes; with `body`, its Content-Length, too."""
    lines = (f"{method} {target} HTTP/{version}", "Host: test", *lines)
    if body is not None:
        lines = (*lines, f"Content-Length: {len(body)}")
    return "".join(f"{line}\r\n" for line in [*lines, ""]).encode("latin-1") + (body or b"")


def post(target: str, body: bytes = b"", *lines: str, method: str = "POST") -> bytes:
    return get(target, *lines, method=method, body=body)


@dataclass
class Reply:
    """One response; header names are in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes
    head: bytes

    @property
    def text(self) -> str:
        return self.body.decode()


def replies_in(data: bytes, methods: list[str]) -> Iterator[Reply]:
    """Takes responses apart by their Content-Length. AssertionError: the last one is not whole."""
    while data:
        head, separator, data = data.partition(b"\r\n\r\n")
        assert separator, f"half of a head: {head!r}"
        lines = head.decode("latin-1").split("\r\n")
        pairs = [line.split(": ", 1) for line in lines[1:]]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), f"a header twice: {lines}"
        status = int(lines[0].split(" ")[1])
        method = methods.pop(0) if methods and status >= 200 else "GET"
        bodiless = method == "HEAD" or status in (204, 304) or status < 200
        length = 0 if bodiless else int(headers["content-length"])
        assert len(data) >= length, f"half of a body: {len(data)} of {length} bytes"
        yield Reply(status, headers, data[:length], head)
        data = data[length:]


def recording(batches: list[bb.Batch] | None = None) -> tuple[list[Any], Callable[[bb.Batch], list[str]]]:
    """A handler that answers with paths, and the list of (size, reason) of the batches that it was called with."""
    seen: list[Any] = []

    def handler(batch: bb.Batch) -> list[str]:
        seen.append((len(batch), batch.reason))
        return [request.path for request in batch]

    return seen, handler
