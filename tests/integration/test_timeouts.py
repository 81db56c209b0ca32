"""A slow or silent client costs a bounded time: 408 for an unfinished head or body, a quiet close for an idle one, a
cut for one that takes nothing; a client that makes progress, or waits for a slow handler, is left alone."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import batchbridge as bb
from support.serving import Gate, make_server, running
from support.wire import Client, await_true, head

TIMEOUT_S = 0.3
#: Within this, a time-out of TIMEOUT_S must have been carried out, on a busy machine too.
PATIENCE_S = 4.0

#: Much more than a socket takes at once.
BIG = b"z" * (16 << 20)


@dataclass
class Timed:
    server: bb.Server
    gate: Gate

    def client(self, **more: object) -> Client:
        return Client(self.server.url, patience_s=PATIENCE_S, **more)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def timed(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Timed]:
    root = tmp_path_factory.mktemp("timed")
    (root / "a.txt").write_text("a\n")
    (root / "big.bin").write_bytes(BIG)
    server = make_server(
        engine,
        root=str(root),
        header_timeout_s=TIMEOUT_S,
        body_timeout_s=TIMEOUT_S,
        idle_timeout_s=3 * TIMEOUT_S,
        send_timeout_s=TIMEOUT_S,
        linger_timeout_s=TIMEOUT_S,
        response_size_bytes_max="16MiB",
        response_arena_size_bytes="64MiB",
    )
    gate = Gate()

    @server.batch("/echo", methods=["POST"])
    def echo(batch: bb.Batch) -> list[bytes]:
        return [bytes(request.body) for request in batch]

    @server.batch("/slow")
    def slow(batch: bb.Batch) -> list[str]:
        gate.pass_through()
        return ["slow\n"] * len(batch)

    @server.batch("/big")
    def big(batch: bb.Batch) -> list[bytes]:
        return [BIG] * len(batch)

    with running(server):
        yield Timed(server, gate)


def elapsed(since: float) -> float:
    return time.monotonic() - since


@pytest.mark.parametrize("start", [b"G", b"GET / HTTP/1.1\r\n", head("GET", "/a.txt")[:-1], b"\r\n"])
def test_an_unfinished_head_is_408(timed: Timed, start: bytes) -> None:
    with timed.client() as client:
        since = time.monotonic()
        client.send(start)
        reply = client.reply()
        assert reply.status == 408 and reply["connection"] == "close"
        assert elapsed(since) >= 0.9 * TIMEOUT_S
        client.assert_ended()


def test_a_byte_now_and_then_keeps_no_head_alive(timed: Timed) -> None:
    with timed.client() as client:
        since = time.monotonic()
        with pytest.raises((ConnectionError, TimeoutError)):
            client.send(*(bytes([byte]) for byte in head("GET", "/a.txt", "X: " + "x" * 1000)), pause_s=0.05)
        assert elapsed(since) < TIMEOUT_S + 3 * TIMEOUT_S + 1


def test_an_unfinished_head_behind_a_request_is_408(timed: Timed) -> None:
    with timed.client() as client:
        client.send(head("GET", "/a.txt") + b"GET /a.t")
        assert client.reply().status == 200
        assert client.reply().status == 408
        client.assert_ended()


@pytest.mark.parametrize("framing", ["Content-Length: 100", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("part", [b"", b"5\r\nab"])
def test_an_unfinished_body_is_408(timed: Timed, framing: str, part: bytes) -> None:
    with timed.client() as client:
        since = time.monotonic()
        client.send(head("POST", "/echo", framing) + part)
        assert client.reply("POST").status == 408
        assert elapsed(since) >= 0.9 * TIMEOUT_S
        client.assert_ended()


def test_a_slow_body_that_makes_progress_is_taken(timed: Timed) -> None:
    with timed.client() as client:
        client.send(head("POST", "/echo", ("Content-Length", "6")))
        client.send(*(bytes([byte]) for byte in b"slowly"), pause_s=0.4 * TIMEOUT_S)
        assert client.reply("POST").body == b"slowly"


@pytest.mark.parametrize("before", [b"", head("GET", "/a.txt"), head("POST", "/echo", body=b"x")])
def test_an_idle_connection_is_closed_quietly(timed: Timed, before: bytes) -> None:
    with timed.client() as client:
        client.send(before)
        if before:
            assert client.reply().status == 200
        since = time.monotonic()
        client.assert_ended()
        assert 2 * TIMEOUT_S < elapsed(since) < 3 * TIMEOUT_S + 2


def test_each_request_sets_the_idle_time_back(timed: Timed) -> None:
    with timed.client() as client:
        for _ in range(4):
            assert client.ask("GET", "/a.txt").status == 200
            time.sleep(1.5 * TIMEOUT_S)


def test_waiting_for_a_slow_handler_is_not_idling(timed: Timed) -> None:
    timed.gate.close()
    with timed.client() as client:
        client.send(head("GET", "/slow"))
        timed.gate.await_arrival()
        assert client.is_silent(4 * TIMEOUT_S)
        timed.gate.open()
        assert client.reply().body == b"slow\n"
        assert client.ask("GET", "/a.txt").status == 200


@pytest.mark.parametrize("target", ["/big", "/big.bin"])
def test_a_client_that_takes_nothing_is_cut_off(timed: Timed, target: str) -> None:
    before = timed.server.stats()["connections"]["timed_out"]
    with timed.client(receive_buffer_bytes=4096) as client:
        client.send(head("GET", target))
        await_true(lambda: timed.server.stats()["connections"]["timed_out"] > before, PATIENCE_S, "cut off")
        assert len(client.everything()) < len(BIG)
    await_true(lambda: timed.server.stats()["connections"]["open"] == 0, PATIENCE_S, "closed")


@pytest.mark.parametrize("target", ["/big", "/big.bin"])
def test_a_slow_reader_that_takes_something_is_served(timed: Timed, target: str) -> None:
    # Slow as measured by the time-out, but fast enough that the kernel's buffers show it.
    with timed.client(receive_buffer_bytes=1 << 18) as client:
        client.send(head("GET", target))
        got, since = [client.socket.recv(1 << 17)], time.monotonic()
        while elapsed(since) < 3 * TIMEOUT_S:
            time.sleep(0.002)
            if sum(map(len, got)) < len(BIG) * elapsed(since) / (4 * TIMEOUT_S):
                got.append(client.socket.recv(1 << 17))
        client.rest = b"".join(got)
        assert client.reply().body == BIG
        assert client.ask("GET", "/a.txt").status == 200


def test_a_refused_client_that_goes_on_sending_is_cut_off(timed: Timed) -> None:
    with timed.client() as client:
        client.send(b"nonsense\r\n\r\n")
        assert client.reply().status == 400
        since = time.monotonic()
        with pytest.raises((ConnectionError, TimeoutError)):
            client.send(*[b"z" * 1000] * 200, pause_s=0.02)
        assert elapsed(since) < TIMEOUT_S + 2


def test_a_client_that_reads_slowly_is_not_cut_off(engine: str, tmp_path: Path) -> None:
    """However much of its file TCP would take at once: that it reads is seen before send_timeout is over."""
    content = bytes(range(256)) * 6250
    (tmp_path / "file").write_bytes(content)
    with (
        running(make_server(engine, root=str(tmp_path), send_timeout_s=1.0, idle_timeout_s=1.0)) as server,
        Client(server.url, receive_buffer_bytes=16_384) as client,
    ):
        client.send(head("GET", "/file", "Connection: close"))
        received = b""
        while piece := client.socket.recv(65_536):
            received += piece
            time.sleep(0.02)
    assert received.partition(b"\r\n\r\n")[2] == content
