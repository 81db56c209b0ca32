"""Whatever clients do at the same time, whole or in pieces, politely or not: each whole answer is the right one for its
request, nothing hangs, and in the end all counters and the log agree (laws 1, 7 and 9)."""

import os
import random
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from support.accesslog import parse
from support.serving import make_server, running
from support.site import FILES, make_root, pattern
from support.wire import Client, Reply, chunked, head

DURATION_S = 2.0
CLIENTS = 8
SIZES = (5, 9_000, 20_000, 70_000, 300_000)
PATTERN = pattern(max(SIZES))


@dataclass(frozen=True)
class Question:
    bytes: bytes
    method: str
    is_right: Callable[[Reply], bool]


def add_routes(server: bb.Server) -> None:
    @server.batch("/echo/{n}", methods=["POST"], max_batch_size=16, concurrency=4, idempotent=True)
    def echo(batch: bb.Batch) -> list[bytes]:
        if len(batch) > 1 and len(batch[0].body) % 7 == 3:
            raise ValueError("one of them")
        return [b"%b:%b" % (request.params["n"].encode(), request.body) for request in batch]

    @server.batch("/array", methods=["POST"], decode=bb.Array("<u4", (8,)), max_queue_delay_us=300)
    def array(batch: bb.Batch) -> Any:
        return batch.as_array() + 1

    @server.batch("/same/{n}", coalesce=True, concurrency=2)
    def same(batch: bb.Batch) -> list[bytes]:
        time.sleep(0.002)
        return [PATTERN[: int(request.params["n"])] for request in batch]

    @server.batch("/late/{n}", timeout_us=4_000, concurrency=2, max_batch_size=4)
    def late(batch: bb.Batch) -> list[str]:
        time.sleep(random.random() * 0.006)
        return [request.params["n"] for request in batch]

    @server.batch("/queue/{n}", queue_timeout_us=4_000, max_queue_size=8, max_batch_size=2)
    def queue(batch: bb.Batch) -> list[str]:
        time.sleep(0.001)
        return [request.params["n"] for request in batch]

    @server.batch("/kept/{n}", vary=("X-Kind",), concurrency=2)
    def kept(batch: bb.Batch) -> None:
        for request in batch:
            number = int(request.params["n"])
            text = f"{number}|{request.headers.get('x-kind', '')}|" + "y" * (number * 37 % 30_000)
            request.respond(text, cache_ttl_s=60, tags=(f"tag{number % 5}",))


def question(chance: random.Random) -> Question:
    kind = chance.choice(["echo", "array", "same", "late", "queue", "kept", "file", "range"])
    number = chance.randrange(1_000_000)
    expected = f"{number}".encode()
    if kind == "echo":
        body = os.urandom(chance.choice((0, 1, 500, 5_000, 70_000)))
        if chance.random() < 0.5:
            request = head("POST", f"/echo/{number}", body=body)
        else:
            pieces = [piece for piece in (body[: len(body) // 3], body[len(body) // 3 :]) if piece]
            request = head("POST", f"/echo/{number}", "Transfer-Encoding: chunked") + chunked(*pieces)
        return Question(request, "POST", lambda reply: reply.status == 500 or reply.body == expected + b":" + body)
    if kind == "array":
        row = [chance.randrange(1 << 31) for _ in range(8)]
        answer = struct.pack("<8I", *(value + 1 for value in row))
        return Question(
            head("POST", "/array", body=struct.pack("<8I", *row)), "POST", lambda reply: reply.body == answer
        )
    if kind == "same":
        size = chance.choice(SIZES)
        return Question(head("GET", f"/same/{size}"), "GET", lambda reply: reply.body == PATTERN[:size])
    if kind in ("late", "queue"):
        return Question(head("GET", f"/{kind}/{number}"), "GET", lambda reply: reply.body == expected)
    if kind == "kept":
        number %= 200
        word, method = chance.choice(("a", "b")), chance.choice(("GET", "HEAD"))
        text = f"{number}|{word}|".encode() + b"y" * (number * 37 % 30_000)
        request = head(method, f"/kept/{number}", ("X-Kind", word))
        return Question(request, method, lambda reply: method == "HEAD" or reply.body == text)
    if kind == "file":
        name = chance.choice(("a.txt", "data.bin", "big.bin", "empty.txt"))
        return Question(head("GET", f"/{name}"), "GET", lambda reply: reply.body == FILES[name])
    first = chance.randrange(3_000_000)
    last = first + chance.randrange(100_000)
    request = head("GET", "/big.bin", ("Range", f"bytes={first}-{last}"))
    return Question(request, "GET", lambda reply: reply.body == FILES["big.bin"][first : last + 1])


class Crowd:
    """Clients, each with its own idea of manners, until told to stop."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stop = threading.Event()
        self.statuses: Counter[int] = Counter()
        self.faults: list[object] = []

    def run(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stop.is_set():
            try:
                with Client(self.url, receive_buffer_bytes=chance.choice((None, None, 65_536))) as client:
                    for _ in range(chance.randrange(1, 12)):
                        if not self.exchange(client, chance):
                            break
            except (OSError, AssertionError) as error:
                self.faults.append((seed, error))
                self.stop.set()

    def exchange(self, client: Client, chance: random.Random) -> bool:
        """Some requests, pipelined; False: the connection is at its end."""
        questions = [question(chance) for _ in range(chance.choice((1, 1, 2, 5, 12)))]
        stream = b"".join(each.bytes for each in questions)
        manner = chance.choice(["whole"] * 8 + ["pieces"] * 4 + ["half-close", "leave", "leave early"])
        if manner == "leave early":
            client.send(stream[: chance.randrange(len(stream))])
            client.reset()
            return False
        sender = threading.Thread(target=self.send, args=(client, stream, manner, chance.random()))
        sender.start()
        if manner == "leave":
            sender.join()
            client.reset()
            return False
        for each in questions:
            reply = client.reply(each.method)
            self.statuses[reply.status] += 1
            if reply.status not in (503, 504) and not each.is_right(reply):
                self.faults.append((each.bytes[:80], reply.status, reply.body[:80]))
        sender.join()
        if manner == "half-close":
            client.assert_ended()
        return manner != "half-close"

    @staticmethod
    def send(client: Client, stream: bytes, manner: str, where: float) -> None:
        try:
            if manner == "pieces":
                place = int(where * len(stream))
                client.send(stream[:place], stream[place : place + 30], stream[place + 30 :], pause_s=0.001)
            else:
                client.send(stream)
            if manner == "half-close":
                client.end_sending()
        except OSError:
            pass  # the reading side tells


@pytest.mark.parametrize(("handler_threads", "engine_threads"), [(0, 1), (1, 1), (3, 2)])
def test_a_mixed_crowd(engine: str, tmp_path: Path, handler_threads: int, engine_threads: int) -> None:
    log = tmp_path / "access.log"
    server = make_server(
        engine,
        root=str(make_root(tmp_path)),
        access_log=str(log),
        handler_threads=handler_threads,
        engine_threads=engine_threads,
        file_revalidate_s=0.01,
        cache_size_bytes=3_000_000,
        response_arena_size_bytes="4MiB",
    )
    add_routes(server)
    chance = random.Random(handler_threads)
    with running(server):
        crowd = Crowd(server.url)
        threads = [threading.Thread(target=crowd.run, args=(seed,)) for seed in range(CLIENTS)]
        for thread in threads:
            thread.start()
        until = time.monotonic() + DURATION_S
        while time.monotonic() < until and not crowd.stop.is_set():
            purged = [{"url": f"/kept/{chance.randrange(200)}"}, {"tag": "tag1"}, {"prefix": "/kept/1"}]
            server.cache.purge(**chance.choice(purged))
            server.set_policy("/same/{n}", max_batch_size=chance.choice((1, 4, 64)))
            time.sleep(0.01)
        crowd.stop.set()
        for thread in threads:
            thread.join()
    assert crowd.faults == []
    assert crowd.statuses[200] > 100 and crowd.statuses[206] > 10
    assert len(parse(log.read_text())) == server.stats()["requests"]["read"] == server.stats()["log"]["lines"]
