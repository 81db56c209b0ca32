"""Large answers of handlers leave without being copied, whole and in order, to fast, slow and vanishing readers; the
arena's room comes back (law 4)."""

import time
from functools import cache
from typing import Any

import numpy as np
import pytest

import batchbridge as bb
from support.serving import make_server, running
from support.site import pattern as make_pattern
from support.wire import Client, ask, await_true, head, together

SIZES = [16_000, 16_384, 65_024, 65_536, 65_537, 262_144, (1 << 20) - 1, 1 << 20, 3_000_001, 8 << 20]


pattern = cache(make_pattern)


def make(engine: str, **settings: Any) -> bb.Server:
    server = make_server(engine, **settings)

    @server.batch("/{size}", max_batch_size=16)
    def sized(batch: bb.Batch) -> list[bytes]:
        return [pattern(int(request.params["size"])) for request in batch]

    return server


@pytest.mark.parametrize("threads", [0, 1])
def test_each_size(engine: str, threads: int) -> None:
    with running(make(engine, handler_threads=threads)) as server, Client(server.url) as client:
        for size in SIZES:
            assert client.ask("GET", f"/{size}").body == pattern(size)
            assert client.ask("HEAD", f"/{size}")["content-length"] == str(size)
        assert client.ask("GET", "/10", ("Connection", "close")).body == pattern(10)
        client.assert_ended()


def test_each_size_as_a_last_answer(engine: str) -> None:
    with running(make(engine)) as server:
        for size in SIZES:
            for headers, version in ([("Connection", "close")], "1.1"), ([], "1.0"):
                with Client(server.url) as client:
                    assert client.ask("GET", f"/{size}", *headers, version=version).body == pattern(size)
                    client.assert_ended()


def test_pipelined_with_small_ones_between(engine: str) -> None:
    sizes = [100_000, 5, 300_000, 17, 65_536, 65_000, 1, 1_000_000, 0, 70_000] * 4
    with running(make(engine)) as server, Client(server.url) as client:
        client.send(b"".join(head("GET", f"/{size}") for size in sizes))
        for size in sizes:
            assert client.reply().body == pattern(size)


def test_many_at_once(engine: str) -> None:
    def several(place: int) -> bool:
        with Client(server.url) as client:
            return all(client.ask("GET", f"/{size}").body == pattern(size) for size in [200_000 + place, 1 << 20] * 3)

    with running(make(engine)) as server:
        assert all(together([lambda place=place: several(place) for place in range(8)]))
    sends = server.stats()["sends"]
    assert engine == "epoll" or sends["zero_copy"] > 0, "they leave from registered buffers"


def test_a_slow_reader(engine: str) -> None:
    with running(make(engine)) as server, Client(server.url, receive_buffer_bytes=65_536) as client:
        client.send(head("GET", "/2000000") + head("GET", "/3") + head("GET", "/500000"))
        for _ in range(20):
            client.rest += client.socket.recv(2000)
            time.sleep(0.01)
        assert client.reply().body == pattern(2_000_000)
        assert client.reply().body == pattern(3)
        assert client.reply().body == pattern(500_000)


def test_readers_that_vanish_give_the_room_back(engine: str) -> None:
    with running(make(engine, response_arena_size_bytes="16MiB")) as server:
        for turn in range(40):
            client = Client(server.url, receive_buffer_bytes=4096)
            client.send(head("GET", "/3000000") * 3)
            if turn % 2:
                client.socket.recv(10_000)
            client.reset()
        await_true(lambda: server.stats()["connections"]["open"] == 0)
        with Client(server.url) as client:
            for _ in range(5):
                assert client.ask("GET", f"/{8 << 20}").body == pattern(8 << 20)


def test_more_than_the_arena_holds_in_one_batch(engine: str) -> None:
    with running(make(engine, response_arena_size_bytes="1MiB")) as server:
        clients = [Client(server.url) for _ in range(16)]
        for client in clients:
            client.send(head("GET", "/400000"))
        since = time.monotonic()
        replies = [client.reply() for client in clients]
        assert {reply.status for reply in replies} <= {200, 503} and time.monotonic() - since < 5
        assert all(reply.body == pattern(400_000) for reply in replies if reply.status == 200)
        assert ask(server.url, "GET", "/900000").body == pattern(900_000)


@pytest.mark.parametrize("size", [60_000, 200_000])
def test_one_large_answer_for_many(engine: str, size: int) -> None:
    # Coalesced: all send the same bytes, some at once, some slowly, one vanishes.
    server = make_server(engine)

    @server.batch("/same", coalesce=True)
    def same(batch: bb.Batch) -> list[bytes]:
        time.sleep(0.2)
        return [pattern(size)] * len(batch)

    with running(server):
        clients = [Client(server.url, receive_buffer_bytes=65_536 if place % 2 else None) for place in range(10)]
        for place, client in enumerate(clients):
            client.send(head("GET", "/same", *([("Connection", "close")] if place % 3 == 0 else [])))
        await_true(lambda: server.stats()["bridge"]["coalesced"] == 9)
        clients[5].reset()
        time.sleep(0.25)
        for place, client in enumerate(clients):
            if place != 5:
                assert client.reply().body == pattern(size)


def test_rows_of_an_array(engine: str) -> None:
    result = np.frombuffer(pattern(4 * 500_000), "u1").reshape(4, 500_000)
    server = make_server(engine)
    server.batch("/rows", policy="fixed", max_batch_size=4, max_queue_delay_us=2_000_000)(lambda batch: result)
    with running(server), Client(server.url) as client:
        client.send(head("GET", "/rows") * 4)
        assert [reply.body for reply in client.replies(*["GET"] * 4)] == [row.tobytes() for row in result]


def test_what_a_handler_changes_afterwards_does_not_change_what_is_sent(engine: str) -> None:
    buffer = bytearray(4 << 20)
    server = make_server(engine)

    @server.batch("/b/{n}")
    def fill(batch: bb.Batch) -> None:
        for request in batch:
            buffer[:] = bytes([int(request.params["n"])]) * len(buffer)
            request.respond(buffer)

    with running(server):
        clients = [Client(server.url, receive_buffer_bytes=65_536) for _ in range(3)]
        for place, client in enumerate(clients):
            client.send(head("GET", f"/b/{place + 1}"))
        for place, client in enumerate(clients):
            assert client.reply().body == bytes([place + 1]) * len(buffer)


@pytest.mark.parametrize("threshold", ["1KiB", 5000, "1MiB"])
def test_any_threshold_for_copying(engine: str, threshold: object) -> None:
    with running(make(engine, zero_copy_size_bytes_min=threshold)) as server, Client(server.url) as client:
        for size in (0, 1, 900, 1100, 20_000, 300_000, 2 << 20):
            assert client.ask("GET", f"/{size}").body == pattern(size)
        assert client.ask("HEAD", "/1000").status == 200
        client.send(head("GET", "/5000") * 50)
        assert all(reply.body == pattern(5000) for reply in client.replies(*["GET"] * 50))
