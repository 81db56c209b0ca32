"""Nothing is lost (law 7): each request read has one counted outcome and one line in the access log: under load,
through a drain, over log rotation and for whatever a client forges."""

import random
import signal
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from support.accesslog import Line, parse
from support.serving import Command, Gate, make_server, running
from support.wire import Client, NoReplyError, await_true, head

APP = """
import time
import batchbridge as bb

server = bb.Server()

@server.batch("/x/{n}", max_batch_size=8)
def x(batch):
    time.sleep(0.001)
    return [f"x {request.params['n']}" if request.params["n"] != "bad" else bb.HTTPError(418) for request in batch]

@server.batch("/large")
def large(batch):
    return [b"z" * 100_000] * len(batch)

@server.batch("/slow")
def slow(batch):
    time.sleep(0.5)
    return ["slow"] * len(batch)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    root = tmp_path / "root"
    root.mkdir()
    (root / "a.txt").write_text("a\n")
    (root / "big.bin").write_bytes(b"z" * (2 << 20))
    return tmp_path


def log_of(server: bb.Server, path: Path) -> list[Line]:
    await_true(lambda: len(path.read_text().splitlines()) == server.stats()["log"]["lines"], what="log written")
    return parse(path.read_text())


def test_a_line_says_what_was_asked_and_answered(engine: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    (tmp_path / "a.txt").write_text("12345")
    server = make_server(engine, root=str(tmp_path), access_log=str(log))
    server.batch("/x/{n}", methods=["GET", "POST"])(lambda batch: ["four"] * len(batch))
    with running(server), Client(server.url) as client:
        agent, referer = ("User-Agent", "curl/8 (x; y)"), ("Referer", "http://from/?a=b")
        client.ask("GET", "/a.txt?q=1", agent, referer)
        client.ask("HEAD", "/a.txt")
        client.ask("POST", "/x/1?y", agent, body=b"body")
        client.ask("GET", "/nothing", version="1.0")
        address = client.socket.getsockname()[0]
        with Client(server.url) as other:
            other.send(b"nonsense here\r\n\r\n")
            other.reply()
        lines = log_of(server, log)
    assert [(line.request, line.status, line.size_bytes) for line in lines] == [
        ("GET /a.txt?q=1 HTTP/1.1", 200, 5),
        ("HEAD /a.txt HTTP/1.1", 200, 0),
        ("POST /x/1?y HTTP/1.1", 200, 4),
        ("GET /nothing HTTP/1.0", 404, 14),
        ("nonsense here", 400, 16),
    ]
    assert (lines[0].referer, lines[0].user_agent) == ("http://from/?a=b", "curl/8 (x; y)")
    assert (lines[1].referer, lines[1].user_agent) == ("-", "-") and lines[2].user_agent == "curl/8 (x; y)"
    assert {line.client for line in lines} == {address}
    moment = time.mktime(time.strptime(lines[0].time.partition(" ")[0], "%d/%b/%Y:%H:%M:%S"))
    assert abs(moment - time.time()) < 10


def test_ipv6_clients(engine: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    try:
        server = make_server(engine, bind=("[::1]:0",), access_log=str(log))
        server.batch("/x")(lambda batch: [str(batch[0].client[0])] * len(batch))
        with running(server), Client(server.url) as client:
            assert client.ask("GET", "/x").body == b"::1"
            assert [line.client for line in log_of(server, log)] == ["::1"]
    except bb.BindError as error:
        from support.skips import skip

        skip("no-ipv6", str(error))


def test_forged_fields_cannot_make_lines(engine: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    server = make_server(engine, access_log=str(log))
    server.batch("/x")(lambda batch: [b""] * len(batch))
    hostile = [
        'a" 200 1 "b', "back\\slash", "\\x22", "\x80\xff obs-text", "tab\there", '"' * 500, "\\" * 5000, "\xff" * 6000,
        "%0a%0d \u00e9",
    ]  # fmt: skip
    with running(server), Client(server.url) as client:
        for text in hostile:
            client.ask("GET", "/x", ("User-Agent", text), ("Referer", text))
            client.ask("GET", "/nothing", ("User-Agent", text), ("Referer", text))
        for request in (
            b'GET /"\\ HTTP/9\r\n\r\n',
            b"\x00\x1b[31m\xff\n\r\n",
            b'" 200 1 "-" "-"\nfake\r\n\r\n',
            b"\r\r\r\r\n",
        ):
            with Client(server.url) as other:
                other.send(request)
                assert other.reply().status in (400, 505)
        lines = log_of(server, log)
    assert len(lines) == 2 * len(hostile) + 4
    assert lines[0].user_agent == lines[0].referer == "a\\x22 200 1 \\x22b"
    assert lines[2].user_agent == "back\\x5cslash" and lines[6].user_agent == "\\x80\\xff obs-text"
    assert all("\x1b" not in line.request for line in lines)


def test_each_kind_of_outcome_once(engine: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    (tmp_path / "a.txt").write_text("a")
    (tmp_path / "dir").mkdir()
    server = make_server(engine, root=str(tmp_path), access_log=str(log), header_timeout_s=0.2, file_revalidate_s=60.0)
    server.batch("/x")(lambda batch: [b"x"] * len(batch))
    server.batch("/bad")(lambda batch: [bb.HTTPError(418)] * len(batch))
    server.batch("/late", timeout_us=50_000)(lambda batch: time.sleep(0.2) or [b""])
    with running(server), Client(server.url) as client:
        assert [client.ask("GET", "/a.txt").status for _ in range(3)] == [200] * 3
        assert client.ask("GET", "/x").status == 200
        assert client.ask("GET", "/bad").status == 418
        assert client.ask("GET", "/dir").status == 301
        assert client.ask("OPTIONS", "/a.txt").status == 204
        assert client.ask("GET", "/nothing").status == 404
        assert client.ask("GET", "/late").status == 504
        client.send(b"GET /unfin")
        assert client.reply().status == 408
        lines = log_of(server, log)
        statuses = Counter(line.status for line in lines)
    outcomes = server.stats()["requests"]["outcomes"]
    handlers_errors = outcomes["error_4xx"] - 2  # counted by class, or as the batch's: the next test
    assert handlers_errors in (0, 1)
    assert outcomes == {
        "file": 1, "hit": 2, "batch": 2 - handlers_errors, "remote": 0, "local": 2, "error_4xx": 2 + handlers_errors,
        "error_5xx": 1, "client_gone": 0,
    }  # fmt: skip
    assert statuses == {200: 4, 418: 1, 301: 1, 204: 1, 404: 1, 504: 1, 408: 1}


def test_a_handlers_error_counts_alike_with_and_without_words(engine: str) -> None:
    entries = {
        "bare": lambda: bb.HTTPError(418),
        "detail": lambda: bb.HTTPError(418, "teapot"),
        "response": lambda: bb.Response("teapot", 418),
    }
    counted = {}
    for kind, entry in entries.items():
        server = make_server(engine)
        server.batch("/x")(lambda batch, entry=entry: [entry()] * len(batch))
        with running(server), Client(server.url) as client:
            assert client.ask("GET", "/x").status == 418
        counted[kind] = [name for name, count in server.stats()["requests"]["outcomes"].items() if count]
    assert len({tuple(names) for names in counted.values()}) == 1, counted


def test_a_client_that_is_gone_has_its_line(engine: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    gate = Gate()
    server = make_server(engine, access_log=str(log))
    server.batch("/x")(lambda batch: gate.pass_through() or [b"x"] * len(batch))
    with running(server):
        client = Client(server.url)
        client.send(head("GET", "/x?1") + head("GET", "/x?2"))
        gate.await_arrival()
        client.reset()
        await_true(lambda: server.stats()["requests"]["outcomes"]["client_gone"] == 2)
        gate.open()
        lines = log_of(server, log)
    assert [line.request for line in lines] == ["GET /x?1 HTTP/1.1", "GET /x?2 HTTP/1.1"]
    assert server.stats()["requests"]["read"] == 2


# --- under load -------------------------------------------------------------------------------------------------------


class Load:
    """Clients that ask whatever comes to their mind until told to stop, and count the whole responses they got."""

    TARGETS = ("/x/1", "/x/2", "/x/bad", "/large", "/a.txt", "/big.bin", "/nothing", "/slow")
    WEIGHTS = (20, 20, 5, 4, 20, 1, 5, 0.3)

    def __init__(self, url: str, clients: int) -> None:
        self.url = url
        self.stop = threading.Event()
        self.got: Counter[tuple[str, int]] = Counter()
        self.lock = threading.Lock()
        self.faults: list[BaseException] = []
        self.threads = [threading.Thread(target=self.run, args=(seed,)) for seed in range(clients)]
        for thread in self.threads:
            thread.start()

    def run(self, seed: int) -> None:
        chance = random.Random(seed)
        got: Counter[tuple[str, int]] = Counter()
        while not self.stop.is_set():
            try:
                with Client(self.url) as client:
                    for _ in range(chance.randrange(1, 20)):
                        targets = chance.choices(self.TARGETS, self.WEIGHTS, k=chance.choice((1, 1, 1, 4)))
                        client.send(b"".join(head("GET", target) for target in targets))
                        for target in targets:
                            reply = client.reply()
                            got[target, reply.status] += 1
                            if "connection" in reply:
                                raise ConnectionResetError
            except (ConnectionError, NoReplyError):
                # While the server drains, a connection may end at any moment, but a response never in its middle.
                time.sleep(0.01)
            except AssertionError as error:
                self.faults.append(error)
        with self.lock:
            self.got.update(got)

    def join(self) -> Counter[tuple[str, int]]:
        self.stop.set()
        for thread in self.threads:
            thread.join()
        assert not self.faults, self.faults
        return self.got


@pytest.mark.parametrize("engine_threads", [1, 2])
def test_under_load(engine: str, tmp_path: Path, folder: Path, engine_threads: int) -> None:
    from batchbridge.cli.settings import load_server

    log = tmp_path / "access.log"
    server = load_server(f"{folder / 'app.py'}:server")
    server.configure({
        "bind": ("127.0.0.1:0",), "engine": engine, "engine_threads": engine_threads, "access_log": str(log),
        "root": str(folder / "root"), "handler_threads": 2,
    })  # fmt: skip
    with running(server):
        load = Load(server.url, 8)
        time.sleep(1.5)
        got = load.join()
    lines = parse(log.read_text())
    stats = server.stats()
    logged: Counter[tuple[str, int]] = Counter((line.request.split(" ")[1], line.status) for line in lines)
    assert logged == got
    assert len(lines) == stats["requests"]["read"] == stats["log"]["lines"] and stats["log"]["lines_lost"] == 0


def test_across_a_drain(engine: str, folder: Path) -> None:
    arguments = ["--app", "app.py:server", "--access-log", "access.log", "--handler-threads", "2"]
    with Command("root", *arguments, folder=folder, engine=engine) as command:
        load = Load(command.url, 8)
        time.sleep(1.0)
        command.signal(signal.SIGTERM)
        time.sleep(0.2)
        load.stop.set()
        assert command.wait() == 0, command.errors
        got = load.join()
        assert "Traceback" not in command.errors
    logged: Counter[tuple[str, int]] = Counter(
        (line.request.split(" ")[1], line.status) for line in parse((folder / "access.log").read_text())
    )
    # What a client got was logged. What was logged may have met a client that had stopped, or reset by the close.
    assert not got - logged, got - logged
    assert (logged - got).total() <= 8 * 4, logged - got


def test_a_disk_that_is_full_costs_lines_and_nothing_else(engine: str, tmp_path: Path) -> None:
    server = make_server(engine, access_log="/dev/full")
    server.batch("/x")(lambda batch: [b"x"] * len(batch))
    with running(server), Client(server.url) as client:
        for _ in range(20):
            assert client.ask("GET", "/x", ("User-Agent", "x" * 2000)).status == 200
        await_true(lambda: server.stats()["log"]["lines_lost"] > 0)
        assert client.ask("GET", "/x").status == 200


def test_lines_come_out_soon(engine: str, tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    server = make_server(engine, access_log=str(log))
    server.batch("/x")(lambda batch: [b"x"] * len(batch))
    with running(server), Client(server.url) as client:
        client.ask("GET", "/x")
        await_true(lambda: log.read_text().count("\n") == 1, 1.5, "each second")


def test_the_log_is_reopened(engine: str, folder: Path) -> None:
    log, old = folder / "access.log", folder / "access.log.1"
    with Command("root", "--access-log", log, folder=folder, engine=engine) as command:
        stop, count = threading.Event(), [0] * 4

        def ask_on(place: int) -> None:
            with Client(command.url) as client:
                while not stop.is_set():
                    assert client.ask("GET", "/a.txt").status == 200
                    count[place] += 1

        threads = [threading.Thread(target=ask_on, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.3)
        log.rename(old)
        command.signal(signal.SIGUSR1)
        await_true(lambda: log.exists() and log.stat().st_size > 0, what="the new log is written")
        time.sleep(0.2)
        stop.set()
        for thread in threads:
            thread.join()
        assert command.terminate() == 0
    assert len(parse(old.read_text())) + len(parse(log.read_text())) == sum(count)
    assert old.stat().st_size > 0


def test_figures_stay_after_the_end(engine: str, folder: Path) -> None:
    server = make_server(engine, root=str(folder / "root"))
    assert server.stats() == {} or isinstance(server.stats(), dict)
    with running(server), Client(server.url) as client:
        client.ask("GET", "/a.txt")
        during: Any = server.stats()
    after = server.stats()
    assert after["requests"] == during["requests"] and after["requests"]["read"] == 1
    assert after["connections"]["open"] == 0 and after["bytes"]["sent"] > 0
