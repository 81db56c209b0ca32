"""Full means 503 with Retry-After, or waiting in the backlog; never a crash, never unbounded memory; and when the load
is gone, all is as before (law 6)."""

import os
import resource
import time
from functools import partial
from pathlib import Path

import pytest

import batchbridge as bb
from batchbridge.cython_ext.load import Exchange, Load
from support.serving import Command, Gate, make_server, running
from support.wire import Client, ask, await_true, head, together


def gated(engine: str, gate: Gate, **settings: object) -> bb.Server:
    """A server with /slow, whose queue takes two requests while one is being handled."""
    server = make_server(engine, **settings)

    @server.batch("/slow", max_batch_size=1, max_queue_size=2)
    def slow(batch: bb.Batch) -> list[str]:
        gate.pass_through()
        return ["slow\n"] * len(batch)

    @server.batch("/quick")
    def quick(batch: bb.Batch) -> list[str]:
        return ["quick\n"] * len(batch)

    return server


def is_served(url: str, target: str) -> bool:
    try:
        return ask(url, "GET", target).status == 200
    except (OSError, AssertionError):
        return False


def test_a_full_queue_is_503_with_retry_after(engine: str) -> None:
    gate = Gate()
    with running(gated(engine, gate, handler_threads=2)) as server:
        clients = [Client(server.url) for _ in range(3)]
        clients[0].send(head("GET", "/slow"))
        gate.await_arrival()
        for client in clients[1:]:
            client.send(head("GET", "/slow"))
        await_true(lambda: server.stats()["routes"]["/slow"]["queued"] == 2)
        with Client(server.url) as late:
            for _ in range(5):
                reply = late.ask("GET", "/slow")
                assert reply.status == 503 and int(reply["retry-after"]) >= 1
                assert late.ask("GET", "/quick").body == b"quick\n", "another route has a queue of its own"
        gate.open()
        assert [client.reply().body for client in clients] == [b"slow\n"] * 3
        assert server.stats()["routes"]["/slow"]["queue_full"] == 5
        assert clients[0].ask("GET", "/slow").status == 200, "and all is as before"
    assert server.stats()["requests"]["outcomes"]["error_5xx"] == 5


def test_one_connection_that_pipelines_into_a_full_queue_waits_its_turn(engine: str) -> None:
    gate = Gate()
    with running(gated(engine, gate)) as server, Client(server.url) as client:
        client.send(head("GET", "/slow") * 8)
        gate.await_arrival()
        gate.open()
        assert {reply.status for reply in client.replies(*["GET"] * 8)} <= {200, 503}
        assert client.ask("GET", "/slow").status == 200


def test_connections_beyond_the_maximum_do_no_harm(engine: str) -> None:
    with running(gated(engine, Gate(), max_connections=8)) as server:
        held = [Client(server.url) for _ in range(8)]
        assert [client.ask("GET", "/quick").status for client in held] == [200] * 8
        # Further ones wait in the backlog, or are closed; those that are in go on.
        extra = [Client(server.url, patience_s=0.2) for _ in range(8)]
        for client in extra:
            client.send(head("GET", "/quick"))
        time.sleep(0.2)
        assert [client.ask("GET", "/quick").status for client in held] == [200] * 8
        assert server.stats()["connections"]["open"] <= 8
        for client in held + extra:
            client.close()
        await_true(lambda: is_served(server.url, "/quick"), what="a new client is served again")


def test_waiting_connections_are_served_when_others_leave(engine: str) -> None:
    with running(gated(engine, Gate(), max_connections=4)) as server:
        held = [Client(server.url) for _ in range(4)]
        assert [client.ask("GET", "/quick").status for client in held] == [200] * 4
        waiting = Client(server.url)
        waiting.send(head("GET", "/quick"))
        time.sleep(0.3)
        for client in held:
            client.close()
        assert waiting.reply().status == 200


def test_memory_for_unfinished_requests_is_bounded(engine: str) -> None:
    server = make_server(engine, input_size_bytes_max="1MiB", body_size_bytes_max="1MiB")
    server.batch("/x", methods=["POST"])(lambda batch: [b"x"] * len(batch))
    with running(server):
        clients = [Client(server.url) for _ in range(8)]
        for client in clients:
            client.send(head("POST", "/x", ("Content-Length", "400000")))
            try:
                client.send(b"z" * 399_999)
            except OSError:
                continue
        time.sleep(0.2)
        assert server.stats()["bytes"]["input_waiting"] <= 1 << 20
        assert ask(server.url, "POST", "/x", body=b"z" * 1000).status in (200, 503)
        refused = 0
        for client in clients:
            try:
                client.send(b"z")
                refused += client.reply("POST").status == 503
            except (OSError, AssertionError):
                refused += 1
            client.close()
        assert 1 <= refused < 8
        await_true(lambda: server.stats()["bytes"]["input_waiting"] == 0)
        assert ask(server.url, "POST", "/x", body=b"z" * 1000).status == 200


def test_a_flood_of_pipelined_requests_is_slowed_down(engine: str) -> None:
    gate = Gate()
    with running(gated(engine, gate)) as server:
        client = Client(server.url, patience_s=0.3)
        client.send(head("GET", "/slow"))
        gate.await_arrival()
        sent, piece = 0, head("GET", "/quick") * 1000
        try:
            while sent < 64 << 20:
                client.send(piece)
                sent += len(piece)
        except TimeoutError:
            pass
        assert sent < 64 << 20, "TCP slows the client down"
        # What lay in the receive buffers, and a quarter more.
        in_buffers = server.config.receive_buffers * server.config.receive_buffer_size_bytes
        assert server.stats()["bytes"]["input_waiting"] < 1.5 * in_buffers
        assert ask(server.url, "GET", "/quick").body == b"quick\n" if server.config.handler_threads > 1 else True
        client.reset()
        gate.open()
        await_true(lambda: server.stats()["connections"]["open"] == 0)


def test_slow_readers_hold_nobody_up(engine: str, tmp_path: Path) -> None:
    (tmp_path / "big.bin").write_bytes(b"z" * (8 << 20))
    (tmp_path / "a.txt").write_bytes(b"a\n")
    server = gated(engine, Gate(), root=str(tmp_path))
    server.batch("/big")(lambda batch: [b"z" * (8 << 20)] * len(batch))
    with running(server):
        before_kib = resident_kib(os.getpid())
        readers = [Client(server.url, receive_buffer_bytes=4096) for _ in range(12)]
        for place, reader in enumerate(readers):
            reader.send(head("GET", "/big" if place % 2 else "/big.bin") * 3)
        time.sleep(0.3)
        since = time.monotonic()
        for target in ("/quick", "/a.txt", "/quick"):
            assert ask(server.url, "GET", target).status == 200
        assert time.monotonic() - since < 1.0, "others are not held up"
        # A file costs a chunk a client, a handler's answer a place in the arena (16 MiB) or a bounded copy.
        assert resident_kib(os.getpid()) - before_kib < 96 * 1024
        for reader in readers:
            reader.reset()
        await_true(lambda: server.stats()["connections"]["open"] == 0)
        assert len(ask(server.url, "GET", "/big").body) == 8 << 20


def resident_kib(process: int) -> int:
    with open(f"/proc/{process}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() // 1024


@pytest.mark.parametrize("count", [40, 200])
def test_connections_that_come_and_go(engine: str, count: int) -> None:
    with running(gated(engine, Gate(), max_connections=64)) as server:
        for _ in range(count):
            with Client(server.url) as client:
                assert client.ask("GET", "/quick", ("Connection", "close")).status == 200
    assert server.stats()["connections"]["accepted"] == count


def test_many_clients_at_once(engine: str) -> None:
    def several(url: str) -> int:
        with Client(url) as client:
            return sum(client.ask("GET", "/quick").status == 200 for _ in range(20))

    with running(gated(engine, Gate())) as server:
        assert together([partial(several, server.url) for _ in range(32)]) == [20] * 32
        assert server.stats()["requests"]["outcomes"]["batch"] == 640


def test_more_clients_send_at_once_than_there_are_buffers(engine: str, tmp_path: Path) -> None:
    """So many that what they make the engine submit does not fit its queue either."""
    (tmp_path / "a").write_bytes(b"a")
    settings = ["--receive-buffers", "16", "--access-log", "off"]
    request = [Exchange(head("GET", "/a"), body=b"a")]
    with Command(tmp_path, *settings, folder=tmp_path, engine=engine) as command:
        host, port = command.url.removeprefix("http://").split(":")
        figures = Load(host, int(port), request, 5000, 1.0, timeout_s=8.0).run()
        assert figures["responses"] > 0 and not figures["wrong"]["answers"], figures
        assert ask(command.url, "GET", "/a").body == b"a"
        assert command.terminate() == 0


def test_with_few_descriptors_the_server_survives_and_recovers(engine: str, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (root / "small.txt").write_bytes(b"small\n")
    (root / "big.bin").write_bytes(b"z" * (2 << 20))  # opened for each request

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (48, 48))

    settings = ["--max-connections", "200", "--access-log", "off"]
    with Command(root, *settings, folder=tmp_path, engine=engine, preexec=limit) as command:
        assert ask(command.url, "GET", "/small.txt").body == b"small\n"
        clients = []
        for _ in range(60):
            client = Client(command.url, patience_s=0.05, receive_buffer_bytes=4096)
            client.send(head("GET", "/big.bin"))
            clients.append(client)
        statuses = set()
        for client in clients:
            try:
                client.rest = client.socket.recv(1000)
                statuses.add(client.rest[9:12])
            except OSError:
                statuses.add(b"none")
        # Where connections take ordinary descriptors, they may have taken all before a file was opened.
        assert statuses <= {b"200", b"503", b"none", b""} and statuses & {b"200", b"503"}, statuses
        for client in clients:
            client.reset()

        await_true(lambda: is_served(command.url, "/big.bin"), what="files are opened and clients accepted again")
        assert command.terminate() == 0, command.errors
        assert "Traceback" not in command.errors
