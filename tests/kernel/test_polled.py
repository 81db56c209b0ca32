"""Polled sockets: where few connections are busy, their own packets wake the engine; nothing is lost by that."""

import random
import time

import pytest

import batchbridge as bb
from support.serving import make_server, running
from support.wire import Client, await_true, head

from .conftest import FILES, side

#: So long that the engine sleeps before what comes next.
PAUSE_S = 0.001
#: Requests until a connection's socket is polled, and that is known to wake.
UNTIL_TRUSTED = 20


def exchange(client: Client, path: str = "/f") -> None:
    client.send(head("GET", path))
    assert client.reply().body == FILES[path[1:]]


def wakes_of(server: bb.Server, clients: list[Client], rounds: int) -> int:
    """Interrupts by which the kernel side woke the engine in so many rounds of one request of each client."""
    before = side(server)["wakes"]
    for _ in range(rounds):
        for client in clients:
            exchange(client)
            time.sleep(PAUSE_S)
    return int(side(server)["wakes"] - before)


@pytest.mark.parametrize("count", [1, 4])
def test_few_busy_connections_wake_by_their_sockets(server: bb.Server, count: int) -> None:
    clients = [Client(server.url) for _ in range(count)]
    wakes_of(server, clients, UNTIL_TRUSTED)
    # Each of 100 requests finds the engine asleep; the kernel side has no need to interrupt.
    assert wakes_of(server, clients, 100 // count) < 10
    for client in clients:
        client.close()
    await_true(lambda: server.stats()["connections"]["open"] == 0)


def test_a_connection_takes_the_place_of_one_that_is_idle(server: bb.Server) -> None:
    idle = [Client(server.url) for _ in range(4)]
    wakes_of(server, idle, UNTIL_TRUSTED)
    with Client(server.url) as client:
        wakes_of(server, [client], 150)
        assert wakes_of(server, [client], 100) < 10
    wakes_of(server, idle, 3)
    for other in idle:
        other.close()


def test_many_connections_in_turn_are_all_answered(server: bb.Server) -> None:
    """More than there are places, in bursts and alone, with some that leave and some that come."""
    random.seed(7)
    clients = [Client(server.url) for _ in range(12)]
    for _ in range(400):
        chosen = random.sample(clients, random.choice((1, 1, 2, 5, 9)))
        for client in chosen:
            client.send(head("GET", "/a"))
        for client in chosen:
            assert client.reply().body == FILES["a"]
        if random.random() < 0.1:
            clients.pop(random.randrange(len(clients))).close()
            clients.append(Client(server.url))
        if random.random() < 0.3:
            time.sleep(PAUSE_S)
    for client in clients:
        client.close()
    await_true(lambda: server.stats()["connections"]["open"] == 0)


def test_a_polled_socket_is_closed_at_once(server: bb.Server) -> None:
    """A poll would keep it open behind its descriptor."""
    for last in (("Connection", "close"), None):
        with Client(server.url) as client:
            wakes_of(server, [client], UNTIL_TRUSTED)
            if last:
                client.send(head("GET", "/f", last))
                assert client.reply().body == FILES["f"]
            else:
                client.send(b"no request\r\n\r\n")
                assert client.reply().status == 400
            began = time.monotonic()
            client.assert_ended()
            assert time.monotonic() - began < 2


def test_an_idle_polled_connection_times_out(root: object) -> None:
    with running(make_server("kernel", root=str(root), idle_timeout_s=0.5)) as server, Client(server.url) as client:
        wakes_of(server, [client], UNTIL_TRUSTED)
        client.assert_ended()
        await_true(lambda: server.stats()["connections"]["open"] == 0)


def test_pauses_and_spills_of_a_polled_connection(server: bb.Server) -> None:
    body = b"0123456789abcdef" * 40_000
    with Client(server.url) as client:
        for _ in range(UNTIL_TRUSTED):
            exchange(client)
            time.sleep(PAUSE_S)
        for size in (1, 100, 70_000, len(body)):
            client.send(head("POST", "/echo/7", ("Content-Length", str(size))) + body[:size])
            assert client.reply().body == b"7 %d %b" % (size, body[:size])
            time.sleep(PAUSE_S)
            exchange(client)
