"""Where the ring is full, or the engine asks for a pause, bytes go through the socket: none is lost, none overtakes."""

import hashlib
import os
import random
import signal
import threading
import time
from pathlib import Path

import batchbridge as bb
from support.serving import Command, make_server, running
from support.wire import Client, await_true, head, together

from .conftest import FILES, echoing, side

SMALLEST_RING = "64KiB"


def digesting(server: bb.Server) -> bb.Server:
    @server.batch("/digest/{n}", methods=["POST"])
    def digest(batch: bb.Batch) -> list[str]:
        return [f"{request.params['n']} {hashlib.sha256(request.body).hexdigest()}" for request in batch]

    return server


def test_a_small_ring_loses_nothing(root: Path) -> None:
    server = digesting(
        make_server("kernel", root=str(root), kernel_ring_size_bytes=SMALLEST_RING, body_size_bytes_max="4MiB")
    )

    def talk(seed: int) -> None:
        chance = random.Random(seed)
        with Client(server.url) as client:
            for number in range(25):
                body = chance.randbytes(chance.choice((0, 10, 600, 5_000, 60_000, 300_000)))
                client.send(head("POST", f"/digest/{number}", body=body) + head("GET", "/f"))
                expected = f"{number} {hashlib.sha256(body).hexdigest()}".encode()
                assert client.reply("POST").body == expected
                assert client.reply().body == FILES["f"]

    with running(server):
        together([lambda seed=seed: talk(seed) for seed in range(8)])
        seen = side(server)
        assert seen["spills"] > 0 and seen["drained_bytes"] > 0, seen
        assert server.stats()["requests"]["read"] == 8 * 25 * 2


def test_a_stopped_server_finds_all_that_came_meanwhile(root: Path) -> None:
    """The ring fills while nobody reads it; then the sockets do; then the clients have to wait."""
    settings = ("--admin", "127.0.0.1:0", "--kernel-ring-size", SMALLEST_RING)
    with Command(str(root), *settings, folder=root, engine="kernel") as command:
        clients = [Client(command.url) for _ in range(12)]
        for client in clients:
            assert client.ask("GET", "/a").body == FILES["a"]
        command.signal(signal.SIGSTOP)
        count = 400
        for number, client in enumerate(clients):
            client.send(head("GET", "/a", ("X-Filler", "x" * 50 * number)) * count)
            if number % 3 == 0:
                client.end_sending()
        command.signal(signal.SIGCONT)
        for client in clients:
            for _ in range(count):
                assert client.reply().body == FILES["a"]
            client.close()
        seen = command.stats()["kernel_side"]
        assert seen["spills"] > 0, seen
        await_true(lambda: command.stats()["connections"]["open"] == 0)
        assert command.stats()["requests"]["read"] == len(clients) * (count + 1)
        assert command.terminate() == 0


def test_resets_that_find_the_ring_full_give_their_rows_back(root: Path) -> None:
    settings = ("--admin", "127.0.0.1:0", "--kernel-ring-size", SMALLEST_RING, "--max-connections", "64")
    with Command(str(root), *settings, folder=root, engine="kernel") as command:
        for _ in range(6):
            clients = [Client(command.url) for _ in range(40)]
            for client in clients:
                assert client.ask("GET", "/a").body == FILES["a"]
            command.signal(signal.SIGSTOP)
            for client in clients:
                client.send(head("GET", "/b", ("X-Filler", "x" * 3000)))
            for client in clients:
                client.reset()
            command.signal(signal.SIGCONT)
            await_true(lambda: command.stats()["connections"]["open"] == 0)
        # Six times 40 connections and 128 rows: they were given back.
        seen = command.stats()["kernel_side"]
        assert seen["untracked"] == 0 and seen["connections"] == 240, seen
        assert command.terminate() == 0


def test_a_flood_is_slowed_down_and_all_of_it_answered(root: Path) -> None:
    """A handler that is slow: the connection pauses, TCP makes the client wait, and then everything is served."""
    server = echoing(make_server("kernel", root=str(root), pipelined_requests_max=8))
    opened = threading.Event()

    @server.batch("/slow")
    def slow(batch: bb.Batch) -> list[bytes]:
        opened.wait(5.0)
        return [b"slow"] * len(batch)

    count = 3000
    stream = head("GET", "/slow") + b"".join(
        head("POST", f"/echo/{number}", body=b"%d" % number * 50) for number in range(count)
    )
    with running(server), Client(server.url) as client:
        sender = threading.Thread(target=client.send, args=(stream,))
        sender.start()
        time.sleep(0.2)
        opened.set()
        assert client.reply().body == b"slow"
        for number in range(count):
            body = b"%d" % number * 50
            assert client.reply("POST").body == b"%d %d %b" % (number, len(body), body)
        sender.join()


def test_pieces_of_one_byte(server: bb.Server) -> None:
    body = os.urandom(300)
    stream = head("POST", "/echo/1", body=body) + head("GET", "/f")
    with Client(server.url) as client:
        for place in range(len(stream)):
            client.send(stream[place : place + 1])
        assert client.reply("POST").body == b"1 300 " + body
        assert client.reply().body == FILES["f"]


def test_a_body_in_packets_as_large_as_they_come(root: Path) -> None:
    server = digesting(make_server("kernel", root=str(root), body_size_bytes_max="32MiB"))
    with running(server), Client(server.url) as client:
        for number, size in enumerate((511, 512, 513, 4095, 4096, 4097, 130_000, 262_144, 262_145, 20_000_000)):
            body = os.urandom(size)
            client.send(head("POST", f"/digest/{number}", body=body))
            assert client.reply("POST").body.decode() == f"{number} {hashlib.sha256(body).hexdigest()}"
