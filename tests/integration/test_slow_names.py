"""While a disk takes its time to find a file, whoever asked for it waits, and an engine answers everybody else: with a
real file system that does not answer, and each engine."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchbridge as bb
from support.serving import make_server, running
from support.slow_disk import SlowDisk, slow_disk
from support.wire import Client, ask, await_true

FILES = {
    "slow.txt": b"found at last\n",
    "slower.txt": b"found even later\n",
    "other.txt": b"another\n",
    "deep/down/file.txt": b"deep down\n",
    "folder/index.html": b"<h1>folder</h1>\n",
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SlowDisk]:
    with slow_disk(tmp_path, FILES) as disk:
        yield disk


@pytest.fixture(params=[0.0, 60.0], ids=["compared", "watched"])
def server(engine: str, disk: SlowDisk, request: pytest.FixtureRequest) -> Iterator[bb.Server]:
    server = make_server(engine, root=str(disk.path), file_revalidate_s=request.param, precompressed=("br",))
    with running(server):
        yield server
        disk.let_go()
        await_true(lambda: server.stats()["openings"]["under_way"] == 0)


def test_nobody_else_waits(server: bb.Server, disk: SlowDisk) -> None:
    disk.hold("slow.txt", "deep", "index.html", "other.txt.br")
    clients = [Client(server.url) for _ in range(5)]
    paths = ["/slow.txt", "/slow.txt", "/deep/down/file.txt", "/folder/", "/other.txt"]
    for client, path in zip(clients, paths, strict=True):
        client.send(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    disk.await_waiting(4)
    assert server.stats()["openings"]["under_way"] == 4
    for _ in range(3):
        assert ask(server.url, "GET", "/slower.txt").body == FILES["slower.txt"]
        assert ask(server.url, "GET", "/nothing").status == 404
        assert ask(server.url, "OPTIONS", "*").status == 204
    clients.pop(1).close()
    del paths[1]
    disk.let_go()
    for client, path in zip(clients, paths, strict=True):
        reply = client.reply()
        assert (reply.status, reply.body) == (200, FILES[path[1:] + "index.html" * path.endswith("/")])
        client.close()


def test_it_takes_no_longer_than_the_disk(server: bb.Server, disk: SlowDisk) -> None:
    disk.hold("slow.txt")
    with Client(server.url) as client:
        client.send(b"GET /slow.txt HTTP/1.1\r\nHost: a\r\n\r\n")
        disk.await_waiting(1)
        time.sleep(0.2)
        before = time.monotonic()
        disk.let_go()
        assert client.reply().body == FILES["slow.txt"]
        assert time.monotonic() - before < 5
        for _ in range(3):
            assert client.ask("GET", "/slow.txt").body == FILES["slow.txt"]
            assert client.ask("GET", "/nothing").status == 404
        # What the kernel knows is not looked up by a thread again.
        assert server.stats()["openings"]["later"] == 2


def test_a_server_ends_when_the_disk_has_answered(engine: str, disk: SlowDisk) -> None:
    disk.hold("slow.txt")
    server = make_server(engine, root=str(disk.path), drain_timeout_s=0.1)
    with running(server), Client(server.url) as client:
        client.send(b"GET /slow.txt HTTP/1.1\r\nHost: a\r\n\r\n")
        disk.await_waiting(1)
        threading.Timer(1.0, disk.let_go).start()
        server.stop()
    assert server.stats()["openings"] == {"later": 1, "under_way": 0}
