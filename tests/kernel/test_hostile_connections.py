"""Very many clients, and clients that do not play along: connections opened and dropped by the thousand, partial
requests, a full ring, no row and no image left, answers that nobody reads. Everything is given back, memory stays
bounded, and whoever behaves is answered."""

import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchbridge as bb
from support.serving import Command, make_server, running
from support.wire import Client, ask, await_true, head, together

from .conftest import FILES, echoing, side

MIB = 1 << 20


def resident_bytes(command: Command) -> int:
    return int(Path(f"/proc/{command.process.pid}/statm").read_text().split()[1]) * 4096


@pytest.mark.parametrize("threads", [1, 2])
def test_ten_thousand_connections_opened_and_dropped(root: Path, threads: int) -> None:
    """In waves; by FIN and by RST; half of them in the middle of a request, some before they were accepted."""
    settings = ("--admin", "127.0.0.1:0", "--max-connections", "512", "--engine-threads", str(threads))
    with Command(str(root), *settings, "--access-log", "off", folder=root, engine="kernel") as command:
        parts = (
            b"",
            b"GET /f HT",
            head("GET", "/f"),
            head("GET", "/f") * 2 + b"GET",
            head("POST", "/f", body=b"x")[:-1],
        )
        sizes = []
        for wave in range(40):
            clients = [Client(command.url) for _ in range(250)]
            for number, client in enumerate(clients):
                client.send(parts[number % len(parts)])
            for number, client in enumerate(clients):
                client.reset() if (number + wave) % 2 else client.close()
            if wave % 10 == 9:
                await_true(lambda: command.stats()["connections"]["open"] == 0)
                assert ask(command.url, "GET", "/f").body == FILES["f"]
                sizes.append(resident_bytes(command))
        await_true(lambda: command.stats()["connections"]["open"] == 0)
        await_true(lambda: side_of(command)["rows_in_use"] == 0, what="rows given back")
        assert side_of(command)["connections"] + side_of(command)["untracked"] >= 9_000
        assert sizes[-1] - sizes[0] < 8 * MIB, sizes
        assert command.terminate() == 0


def side_of(command: Command) -> dict[str, int]:
    figures: dict[str, int] = command.stats()["kernel_side"]
    return figures


def test_a_full_ring_and_new_connections(root: Path) -> None:
    """While the engine is stopped the ring fills up; connections that find it full are ordinary ones."""
    settings = ("--admin", "127.0.0.1:0", "--kernel-ring-size", "64KiB", "--access-log", "off")
    with Command(str(root), *settings, folder=root, engine="kernel") as command:
        early = [Client(command.url) for _ in range(20)]
        for client in early:
            assert client.ask("GET", "/a").body == FILES["a"]
        command.signal(signal.SIGSTOP)
        for client in early:
            client.send(head("GET", "/b", ("X-Filler", "x" * 4000)) * 2, *[head("GET", "/b")] * 38)
        late = [Client(command.url) for _ in range(40)]
        for number, client in enumerate(late):
            client.send(head("GET", "/f") * (1 + number % 3))
        late[0].reset()
        late[1].end_sending()
        command.signal(signal.SIGCONT)
        for client in early:
            assert [client.reply().body for _ in range(40)] == [FILES["b"]] * 40
        for number, client in enumerate(late[1:], 1):
            assert [client.reply().body for _ in range(1 + number % 3)] == [FILES["f"]] * (1 + number % 3)
        seen = side_of(command)
        assert seen["spills"] > 0 and seen["untracked"] > 0, seen
        for client in [*early, *late[1:]]:
            client.close()
        await_true(lambda: side_of(command)["rows_in_use"] == 0, what="rows given back")
        assert ask(command.url, "GET", "/f").body == FILES["f"]
        assert command.terminate() == 0


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def server(request: pytest.FixtureRequest, root: Path) -> Iterator[bb.Server]:
    with running(echoing(make_server("kernel", root=str(root), engine_threads=request.param))) as server:
        yield server


def test_clients_that_do_not_read(server: bb.Server) -> None:
    """They ask for more than their sockets and the server's hold, and read nothing; others are answered meanwhile."""
    request = head("GET", "/large")
    silent = [Client(server.url, receive_buffer_bytes=4096) for _ in range(24)]
    for client in silent:
        client.socket.setblocking(False)
    waiting = dict.fromkeys(silent, request * 300)
    received = server.stats()["bytes"]["received"]
    for _ in range(30):
        for client in silent:
            waiting[client] = waiting[client][send_some(client.socket, waiting[client]) :]
        with Client(server.url) as other:
            for number in range(5):
                assert other.ask("GET", "/f").body == FILES["f"]
                reply = other.ask("POST", f"/echo/{number}", body=b"x")
                assert reply.body == b"%d 1 x" % number
    stats = server.stats()
    # Each holds what it asked for, and no more than TCP and a pause let in; no answer is made before there is room.
    assert stats["bytes"]["input_waiting"] < len(silent) * 512 * 1024
    assert stats["bytes"]["received"] - received < len(silent) * len(request) * 300 + 100_000
    for number, client in enumerate(silent):
        client.reset() if number % 2 else client.close()
    await_true(lambda: server.stats()["connections"]["open"] == 0)
    await_true(lambda: side(server)["rows_in_use"] == 0, what="rows given back")


def send_some(connection: socket.socket, data: bytes) -> int:
    try:
        return connection.send(data)
    except BlockingIOError:
        return 0


def test_one_that_reads_at_last_gets_all(server: bb.Server) -> None:
    with Client(server.url, receive_buffer_bytes=65_536) as slow, Client(server.url) as other:
        slow.send(head("GET", "/large") * 30 + head("POST", "/echo/1", body=b"last"))
        for _ in range(20):
            assert other.ask("GET", "/f").body == FILES["f"]
        for _ in range(30):
            assert slow.reply().body == FILES["large"]
        assert slow.reply("POST").body == b"1 4 last"


def test_no_row_left(root: Path) -> None:
    """Rows are held by connections that stay; further ones are ordinary, and get rows again when there are some."""
    with running(make_server("kernel", root=str(root), max_connections=8)) as server:
        for _ in range(3):
            clients = [Client(server.url) for _ in range(40)]
            for client in clients:
                client.send(head("GET", "/a", ("Connection", "close")))
            assert [client.reply().body for client in clients] == [FILES["a"]] * 40
            for client in clients:
                client.close()
            await_true(lambda: side(server)["rows_in_use"] == 0, what="rows given back")
        before = side(server)
        assert before["untracked"] > 0
        with Client(server.url) as client:
            for _ in range(6):
                assert client.ask("GET", "/f").body == FILES["f"]
        assert side(server)["hits"] > before["hits"]


def test_no_image_left_for_others(server: bb.Server) -> None:
    """One client fills all places of a size with requests of its own, again and again; others get right answers, and
    places of that size."""
    long = ("X-Filler", "y" * 800)

    def flood(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(40):
            with Client(server.url) as client:
                batch = [head("GET", "/a", ("X-Flood", f"{chance.getrandbits(64):0800}")) for _ in range(64)]
                for _ in range(3):
                    client.send(b"".join(batch))
                    for _ in batch:
                        assert client.reply().body == FILES["a"]

    def behave() -> None:
        until = time.monotonic() + 1.5
        with Client(server.url) as client:
            while time.monotonic() < until:
                assert client.ask("GET", "/f", long).body == FILES["f"]

    together([lambda: flood(1), lambda: flood(2), behave])
    assert side(server)["images"] <= 1024 * server.config.engine_threads
    with Client(server.url) as client:
        before = side(server)["hits"]
        for _ in range(6):
            assert client.ask("GET", "/b", long).body == FILES["b"]
        assert side(server)["hits"] > before
