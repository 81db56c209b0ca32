"""The seam between protocols and engine is one: a protocol of lines, which is nothing but a parser, the beginning of
its responses, one state of its own and a table, is answered from the cache, from files and by batch handlers, in order,
by each engine; and HTTP on a listener beside it, by the same handlers."""

import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from batchbridge.cython_ext.line_testing import TABLE, line_protocol
from support.serving import Gate, assert_balanced, config, running
from support.wire import ask, await_true

BIG = b"0123456789abcdef" * 200_000


class LineServer(bb.Server):
    """A server whose engines speak lines. All else is a server's."""

    def engine_settings(self, handlers: list[Any]) -> dict[str, Any]:
        return {**super().engine_settings(handlers), "protocol": line_protocol(), "table": TABLE}


class LineClient:
    def __init__(self, url: str) -> None:
        host, _, port = url.removeprefix("http://").rpartition(":")
        self.socket = socket.create_connection((host, int(port)), 8.0)
        self.file = self.socket.makefile("rb")

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.socket.sendall(piece)
            if len(pieces) > 1:
                time.sleep(0.002)

    def reply(self) -> tuple[int, bytes]:
        line = self.file.readline()
        assert line.endswith(b"\r\n"), line
        status, length = map(int, line.split())
        return status, self.file.read(length)

    def ask(self, line: bytes) -> tuple[int, bytes]:
        self.send(line)
        return self.reply()

    def is_ended(self) -> bool:
        return self.file.read() == b""

    def close(self) -> None:
        self.file.close()
        self.socket.close()


def add_routes(server: bb.Server, gate: Gate, seen: list[list[str]]) -> None:
    @server.batch("/items/{name}")
    def items(batch: bb.Batch) -> list[str]:
        seen.append([request.path for request in batch])
        return [f"item {request.params['name']}" for request in batch]

    @server.batch("/kept/{name}")
    def kept(batch: bb.Batch) -> list[bb.Response]:
        seen.append([request.path for request in batch])
        return [bb.Response(request.params["name"], cache_ttl_s=60, headers={"X-A": "b"}) for request in batch]

    @server.batch("/slow")
    def slow(batch: bb.Batch) -> list[str]:
        gate.pass_through()
        return ["slow"] * len(batch)

    @server.batch("/large")
    def large(batch: bb.Batch) -> list[bytes]:
        return [BIG[:300_000]] * len(batch)

    @server.batch("/hasty", timeout_us=50_000)
    def hasty(batch: bb.Batch) -> list[str]:
        time.sleep(0.3)
        return ["late"] * len(batch)


class Site:
    def __init__(self, server: bb.Server, gate: Gate, seen: list[list[str]]) -> None:
        self.server, self.gate, self.seen = server, gate, seen

    def client(self) -> LineClient:
        return LineClient(self.server.url)


@pytest.fixture(scope="module")
def site(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    root = tmp_path_factory.mktemp("lines")
    (root / "a.txt").write_bytes(b"the file\n")
    (root / "big.bin").write_bytes(BIG)
    (root / "dir").mkdir()
    gate, seen = Gate(), []
    log = root / "access.log"
    server = LineServer(config=config(engine, root=str(root), access_log=str(log), header_timeout_s=0.3))
    add_routes(server, gate, seen)
    with running(server):
        yield Site(server, gate, seen)
        gate.open()
    lines = log.read_text().splitlines()
    assert len(lines) == server.stats()["requests"]["read"]
    assert any('"GET /items/1" 200 6' in line for line in lines)
    assert any('"QUIT" 204 0' in line for line in lines)


@pytest.fixture
def client(site: Site) -> Iterator[LineClient]:
    client = site.client()
    yield client
    client.close()


def test_files_handlers_and_what_is_not_there(client: LineClient) -> None:
    for _ in range(3):
        assert client.ask(b"GET /a.txt\r\n") == (200, b"the file\n")
        assert client.ask(b"GET /items/1\r\n") == (200, b"item 1")
        assert client.ask(b"GET /nothing\n") == (404, b"404 Not Found\n")
        assert client.ask(b"GET /dir\r\n") == (301, b"301 Moved Permanently\n")
        assert client.ask(b"GET /dir/\r\n") == (404, b"404 Not Found\n")


def test_large_bodies(client: LineClient) -> None:
    for _ in range(2):
        assert client.ask(b"GET /big.bin\r\n") == (200, BIG)
        assert client.ask(b"GET /large\r\n") == (200, BIG[:300_000])
    assert client.ask(b"GET /a.txt\r\n") == (200, b"the file\n")


def test_answers_come_from_the_cache(site: Site, client: LineClient) -> None:
    site.seen.clear()
    for _ in range(4):
        assert client.ask(b"GET /kept/x\r\n") == (200, b"x")
    assert site.seen == [["/kept/x"]]
    assert site.server.cache.purge(url="/kept/x") == 1
    assert client.ask(b"GET /kept/x\r\n") == (200, b"x")
    assert site.seen == [["/kept/x"]] * 2


def test_requests_are_pipelined_in_order_and_form_batches(site: Site, client: LineClient) -> None:
    site.gate.close()
    site.seen.clear()
    client.send(b"GET /slow\r\n")
    site.gate.await_arrival()
    client.send(b"".join(b"GET /items/%d\r\n" % number for number in range(20)) + b"GET /a.txt\r\nGET /nothing\r\n")
    site.gate.open()
    assert client.reply() == (200, b"slow")
    assert [client.reply() for _ in range(20)] == [(200, b"item %d" % number) for number in range(20)]
    assert [client.reply(), client.reply()] == [(200, b"the file\n"), (404, b"404 Not Found\n")]
    assert max(map(len, site.seen)) > 1


def test_a_line_may_come_in_pieces(client: LineClient) -> None:
    client.send(*(b"GET /items/abc\r\nGET /a.txt\r\n"[place : place + 1] for place in range(28)))
    assert [client.reply(), client.reply()] == [(200, b"item abc"), (200, b"the file\n")]


def test_quit_is_the_last_answer(site: Site, client: LineClient) -> None:
    site.gate.open()
    client.send(b"GET /slow\r\nGET /a.txt\r\nQUIT\r\nGET /a.txt\r\n")
    assert [client.reply() for _ in range(3)] == [(200, b"slow"), (200, b"the file\n"), (204, b"")]
    assert client.is_ended()


@pytest.mark.parametrize("line", [b"PUT /a\r\n", b"GET a\r\n", b"\r\n", b"GET /\0\r\n", b"quit\r\n", b"G" * 2000])
def test_what_is_no_line_of_ours_is_refused_and_ends_the_connection(site: Site, line: bytes) -> None:
    client = site.client()
    client.send(b"GET /items/1\r\n" + line + b"GET /a.txt\r\n")
    assert client.reply() == (200, b"item 1")
    assert client.reply() == (400, b"400 Bad Request\n")
    assert client.is_ended()
    client.close()


def test_half_a_line_is_not_waited_for_without_end(site: Site) -> None:
    client = site.client()
    client.send(b"GET /a")
    assert client.reply() == (408, b"408 Request Timeout\n")
    assert client.is_ended()
    client.close()


def test_a_handlers_time_is_limited(client: LineClient) -> None:
    assert client.ask(b"GET /hasty\r\n") == (504, b"504 Gateway Timeout\n")
    assert client.ask(b"GET /items/2\r\n") == (200, b"item 2")


def test_a_client_that_goes_costs_nothing(site: Site) -> None:
    site.gate.close()
    client = site.client()
    client.send(b"GET /slow\r\nGET /big.bin\r\n")
    site.gate.await_arrival()
    client.close()
    site.gate.open()
    await_true(lambda: site.server.stats()["bridge"]["in_user_mode"] == 0, what="nothing is left in user mode")


def test_http_beside_it_on_another_listener(engine: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"the file\n")
    gate = Gate()
    gate.open()
    servers = [kind(config=config(engine, root=str(tmp_path))) for kind in (LineServer, bb.Server)]
    for server in servers:
        add_routes(server, gate, [])
    with running(servers[0]), running(servers[1]):
        client = LineClient(servers[0].url)
        for _ in range(3):
            assert client.ask(b"GET /a.txt\r\n")[1] == ask(servers[1].url, "GET", "/a.txt").body
            assert client.ask(b"GET /items/q\r\n")[1] == ask(servers[1].url, "GET", "/items/q").body
        client.close()
    for server in servers:
        assert_balanced(server.stats())


def test_a_tables_change_holds_for_this_protocol_too(engine: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"the file\n")
    server = LineServer(config=config(engine, root=str(tmp_path)))
    add_routes(server, Gate(), [])
    with running(server):
        client = LineClient(server.url)
        assert client.ask(b"GET /a.txt\r\n") == (200, b"the file\n")
        for running_engine in server.engines:
            running_engine.set_table({("Derive Request", "quit"): "Derive Cached Response"})
        client.send(b"GET /items/1\r\n")
        assert client.reply() == (200, b"item 1")
        with pytest.raises(KeyError, match="the line protocol has no state"):
            server.engines[0].set_table({("Take Leaves", "status"): "Send Engine"})
        client.close()
