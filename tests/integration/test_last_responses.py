"""A last response that does not leave at once still leaves whole, and a client that goes away meanwhile leaves nothing
behind: neither a connection nor a descriptor (laws 4 and 7)."""

import socket
import time
from pathlib import Path

import pytest

import batchbridge as bb
from support.serving import make_server, running
from support.wire import Client, await_true, head

#: Small enough for the scratch, so that all answers of a pipeline leave by one send; together more than a socket takes.
SIZE_BYTES = 12_000
COUNT = 20
BODY = b"z" * SIZE_BYTES


@pytest.fixture
def server(engine: str, tmp_path: Path) -> bb.Server:
    (tmp_path / "a").write_bytes(BODY)
    return make_server(engine, root=str(tmp_path), send_timeout_s=20.0, linger_timeout_s=0.3)


LAST = {
    "close": (head("GET", "/a", "Connection: close"), 200),
    "refused": (b"BAD\r\n\r\n", 400),
}


def stream(last: str) -> bytes:
    return head("GET", "/a") * (COUNT - 1) + LAST[last][0]


def take_little(server: bb.Server) -> None:
    """Lets connections accepted from now on take little at once: their sockets inherit their listener's buffer."""
    for listeners in server._listeners:
        for listener in listeners:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


def open_connections(server: bb.Server) -> int:
    return int(server.stats()["connections"]["open"])


@pytest.mark.parametrize("last", LAST)
def test_what_falls_short_still_leaves_whole(server: bb.Server, last: str) -> None:
    with running(server):
        take_little(server)
        client = Client(server.url, receive_buffer_bytes=65_536)
        client.send(stream(last))
        await_true(lambda: server.stats()["sends"]["short"] > 0)
        replies = client.replies(*["GET"] * COUNT)
        assert [reply.body for reply in replies[:-1]] == [BODY] * (COUNT - 1)
        assert replies[-1].status == LAST[last][1]
        client.assert_ended()
        client.close()
        await_true(lambda: open_connections(server) == 0)


@pytest.mark.parametrize("last", LAST)
def test_a_client_that_goes_meanwhile_leaves_nothing(server: bb.Server, last: str) -> None:
    with running(server):
        take_little(server)
        for pause_s in (0.0, 0.0, 0.002, 0.05):
            for _ in range(25):
                client = Client(server.url, receive_buffer_bytes=65_536)
                client.send(stream(last))
                time.sleep(pause_s)
                client.reset()
        await_true(lambda: open_connections(server) == 0)


def test_a_client_that_takes_nothing_of_a_large_answer_is_let_go(engine: str) -> None:
    server = make_server(engine, send_timeout_s=0.3)

    @server.batch("/big")
    def big(batch: bb.Batch) -> list[bytes]:
        return [b"y" * (8 << 20)] * len(batch)

    with running(server), Client(server.url, receive_buffer_bytes=65_536) as client:
        client.send(head("GET", "/big"))
        # The client stays, and does not read: only the server can end it.
        await_true(lambda: server.stats()["connections"]["accepted"] == 1 and open_connections(server) == 0)


def test_the_end_of_one_connection_is_never_anothers(server: bb.Server) -> None:
    """A FIN is sent by a thread of the kernel's: meanwhile the descriptor must not become the next client's."""
    with running(server):
        for _ in range(1500):
            with Client(server.url) as client:
                client.send(b"BAD\r\n\r\n" + head("GET", "/a"))
                client.end_sending()
                assert client.reply().status == 400
        await_true(lambda: open_connections(server) == 0)
