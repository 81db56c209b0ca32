"""Connections are accepted together with their first bytes, or when they have kept silent for long enough."""

import time
from pathlib import Path

import pytest

import batchbridge as bb
from support.serving import make_server, running
from support.wire import Client, ask, await_true


def opened(server: bb.Server) -> int:
    return int(server.stats()["connections"]["open"])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"the file")
    return tmp_path


def test_a_silent_client_is_accepted_later(engine: str, root: Path) -> None:
    with running(make_server(engine, root=str(root), accept_defer_s=1)) as server, Client(server.url) as silent:
        before_s = time.monotonic()
        assert ask(server.url, "GET", "/a").body == b"the file"
        await_true(lambda: opened(server) == 0)
        await_true(lambda: opened(server) == 1)
        assert time.monotonic() - before_s > 0.5
        assert silent.ask("GET", "/a").body == b"the file"


def test_a_silent_client_is_accepted_at_once_where_that_is_wanted(engine: str, root: Path) -> None:
    made = make_server(engine, root=str(root), accept_defer_s=0, idle_timeout_s=0.2)
    with running(made) as server, Client(server.url) as silent:
        before_s = time.monotonic()
        assert silent.socket.recv(1) == b""  # its time-out is over
        assert time.monotonic() - before_s < 0.9


def test_its_first_bytes_accept_a_client(engine: str, root: Path) -> None:
    with running(make_server(engine, root=str(root), accept_defer_s=60)) as server, Client(server.url) as client:
        time.sleep(0.2)
        assert opened(server) == 0
        client.send(b"G")
        await_true(lambda: opened(server) == 1)
        client.send(b"ET /a HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.reply().body == b"the file"
