"""The kernel side answers by itself what user mode has published, and nobody can tell: the same bytes, in order, with
the right Date, none of them old, each counted and logged once."""

import itertools
import json
import random
import threading
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from support.accesslog import parse
from support.answering import DATE, Reader, make_answering, until_answered
from support.segments import NETWORK, Peer, tunnel
from support.serving import run_command, running
from support.wire import Client, await_true, head, together

from .conftest import FILES, echoing, side

A, B, F = (head("GET", f"/{name}") for name in "abf")


@pytest.fixture
def server(root: Path) -> Iterator[bb.Server]:
    """Files and POST /echo/{n}, with a kernel side that answers."""
    with running(echoing(make_answering(root=str(root)))) as server:
        yield server


def warm(server: bb.Server, client: Client, request: bytes = F) -> None:
    """Asks until the kernel side answers this request."""

    def ask() -> None:
        client.send(request)
        client.reply()

    until_answered(lambda: side(server)["answered"], ask)


# --- the same as user mode, counted and logged ---


@pytest.mark.parametrize("logged", [False, True], ids=["unlogged", "logged"])
def test_each_answer_is_counted_and_logged_once(
    root: Path, tmp_path_factory: pytest.TempPathFactory, logged: bool
) -> None:
    log = tmp_path_factory.mktemp("log") / "access.log"
    request = head("GET", "/f", ("User-Agent", "one"), ("Referer", "http://x/"))
    count, connections = 400, 3
    server = make_answering(root=str(root), access_log=str(log) if logged else "off")
    received = 0
    with running(server):
        for _ in range(connections):
            with Client(server.url) as client:
                reader = Reader(client.socket)
                for _ in range(count):
                    client.send(request)
                    assert reader.body() == FILES["f"]
                received += reader.count
    stats, total = server.stats(), count * connections
    assert stats["requests"]["read"] == total
    assert stats["requests"]["outcomes"] == {
        **dict.fromkeys(stats["requests"]["outcomes"], 0), "hit": total - 1, "file": 1
    }  # fmt: skip
    assert stats["bytes"]["sent"] == received and stats["bytes"]["received"] == total * len(request)
    assert stats["cache"]["hits"] == total - 1
    assert stats["kernel_side"]["answered"] > total / 2, stats["kernel_side"]
    if logged:
        lines = parse(log.read_text())
        assert len(lines) == total == stats["log"]["lines"]
        told = {(line.request, line.status, line.size_bytes, line.referer, line.user_agent) for line in lines}
        assert told == {("GET /f HTTP/1.1", 200, 64, "http://x/", "one")}


def test_lines_are_written_while_the_server_runs(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Nobody is woken for each of them, and still they do not wait for something else to happen."""
    log = tmp_path_factory.mktemp("log") / "access.log"
    with running(make_answering(root=str(root), access_log=str(log))) as server, Client(server.url) as client:
        warm(server, client)
        before, loops = len(parse(log.read_text())), server.stats()["engine"]["loops"]
        for _ in range(2000):
            client.send(F)
            assert client.reply().body == FILES["f"]
        loops = server.stats()["engine"]["loops"] - loops
        await_true(lambda: len(parse(log.read_text())) >= before + 2000)
        assert loops < 1000, side(server)


def test_a_flood_of_answers_is_logged_and_counted(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """More of them than the log's buffers hold at once: none is lost, and the client has counted as many."""
    folder = tmp_path_factory.mktemp("log")
    log = folder / "access.log"
    with running(make_answering(root=str(root), access_log=str(log), access_log_buffer_size_bytes=65_536)) as server:
        target = f"{server.url}/f"
        done = run_command("bench", "load", target, "--connections", "32", "--seconds", "1", "--json", folder=folder)
    assert done.returncode == 0, done.stderr
    stats, asked = server.stats(), json.loads(done.stdout)
    assert stats["kernel_side"]["answered"] > 0
    assert stats["requests"]["read"] == stats["log"]["lines"] == log.read_bytes().count(b"\n")
    assert stats["log"]["lines_lost"] == 0
    assert asked["requests"] <= stats["requests"]["read"] <= asked["requests"] + 2  # and what it warms up with


def test_user_mode_has_no_part(server: bb.Server) -> None:
    with Client(server.url) as client:
        warm(server, client)
        before, loops = side(server), server.stats()["engine"]["loops"]
        for _ in range(2000):
            client.send(F)
            assert client.reply().body == FILES["f"]
        after = side(server)
        loops = server.stats()["engine"]["loops"] - loops
        assert after["answered"] - before["answered"] > 1500, after
        assert loops < 500, (loops, after)


def test_the_date_is_right_to_the_second(server: bb.Server) -> None:
    with Client(server.url) as client:
        warm(server, client)
        rendered, until, told = side(server)["rendered"], time.monotonic() + 2.5, set()
        while time.monotonic() < until:
            before = time.time()
            client.send(F)
            date = parsedate_to_datetime(client.reply()["date"]).timestamp()
            assert int(before - 0.1) <= date <= time.time()
            told.add(date)
        assert len(told) >= 3
        # One rendering for each second that was asked in.
        assert 2 <= side(server)["rendered"] - rendered <= len(told) + 1


def test_a_cached_answer_tells_its_age() -> None:
    server = make_answering()
    server.batch("/kept")(lambda batch: [bb.Response("kept", cache_ttl_s=3600) for _ in batch])
    with running(server), Client(server.url) as client:
        warm(server, client, head("GET", "/kept"))
        began, until = time.monotonic(), time.monotonic() + 2.2
        ages: list[int] = []
        while time.monotonic() < until:
            ages.append(int(client.ask("GET", "/kept")["age"]))
        assert ages == sorted(ages) and ages[-1] - ages[0] in (2, 3) and ages[-1] <= time.monotonic() - began + 2
        assert side(server)["answered"] > len(ages) / 2


def test_the_same_bytes_as_user_mode(root: Path) -> None:
    (root / "page.html").write_bytes(b"<p>" * 2000)
    (root / "empty").write_bytes(b"")
    with running(make_answering(root=str(root), server_name="")) as server, Client(server.url) as client:
        reader = Reader(client.socket)
        for name in ("f", "a", "page.html", "empty", "page.html?q=1"):
            before, seen = side(server)["answered"], set()
            for _ in range(12):
                client.send(head("GET", f"/{name}", ("Accept", "*/*")))
                seen.add(DATE.sub(b"", reader.response()))
            assert len(seen) == 1 and side(server)["answered"] > before, (name, seen)


@pytest.mark.parametrize("length", [40, 319, 320, 321, 767, 768, 769, 2015, 2016])
def test_requests_of_every_size(server: bb.Server, length: int) -> None:
    bare = len(head("GET", "/f", "X: "))
    request = head("GET", "/f", host="t") if length < bare else head("GET", "/f", "X: " + "y" * (length - bare))
    with Client(server.url) as client:
        warm(server, client, request)
        for _ in range(20):
            client.send(request)
            assert client.reply().body == FILES["f"]
        client.send(request[:-4] + b"z\r\n\r\n")
        assert client.reply().body == FILES["f"]
        assert side(server)["answered"] > 5, side(server)


# --- order ---


def test_pipelines_of_hits_and_others(server: bb.Server) -> None:
    """Packets close behind each other: some hits meet what user mode owes, some an answer on its way."""
    shapes = ["fff", "faf", "afb", "f1f", "1ff", "ff1", "fffff1", "1f1f", "f"]
    with Client(server.url) as client:
        warm(server, client)
        reader = Reader(client.socket)
        for shape in shapes * 40:
            for kind in shape:
                client.send(head("POST", "/echo/1", body=b"x") if kind == "1" else head("GET", f"/{kind}"))
            for kind in shape:
                assert reader.body() == (b"1 1 x" if kind == "1" else FILES[kind])
        assert side(server)["answered"] > len(shapes) * 10, side(server)


@pytest.mark.parametrize("seed", range(6))
def test_pipelines_cut_anywhere(server: bb.Server, seed: int) -> None:
    chance = random.Random(seed)
    with Client(server.url) as client:
        warm(server, client)
        reader = Reader(client.socket)
        for _ in range(120):
            kinds = chance.choices("fffa1", k=chance.randrange(1, 7))
            stream = b"".join(
                head("POST", "/echo/1", body=F) if kind == "1" else head("GET", f"/{kind}") for kind in kinds
            )
            while stream:
                cut = chance.choice((1, 2, len(F), len(F), len(F), 50, 200, len(stream)))
                client.send(stream[:cut], pause_s=chance.choice((0, 0, 0, 0.0005)))
                stream = stream[cut:]
            for kind in kinds:
                assert reader.body() == (b"1 %d %b" % (len(F), F) if kind == "1" else FILES[kind])


def test_a_body_that_looks_like_a_request(server: bb.Server) -> None:
    """The body of a request, in a packet of its own, has just the bytes of the image."""
    with Client(server.url) as client:
        warm(server, client)
        for _ in range(30):
            client.send(head("POST", "/echo/1", body=F)[: -len(F)])
            time.sleep(0.001)
            client.send(F)
            assert client.reply("POST").body == b"1 %d %b" % (len(F), F)
            client.send(F)
            assert client.reply().body == FILES["f"]


def test_many_connections_at_once(server: bb.Server) -> None:
    def talk(seed: int) -> int:
        chance = random.Random(seed)
        with Client(server.url) as client:
            reader = Reader(client.socket)
            for number in range(300):
                kinds = "f" if number % 4 else chance.choice(("fa", "1f", "b", "f1"))
                for kind in kinds:
                    client.send(head("POST", "/echo/1", body=b"%d" % seed) if kind == "1" else head("GET", f"/{kind}"))
                for kind in kinds:
                    expected = b"1 %d %d" % (len(str(seed)), seed) if kind == "1" else FILES[kind]
                    assert reader.body() == expected
        return 300

    together([lambda seed=seed: talk(seed) for seed in range(12)])
    assert side(server)["answered"] > 500, side(server)


# --- the wire ---


@pytest.fixture
def wire() -> Iterator[int]:
    with tunnel() as fd:
        yield fd


@pytest.fixture
def far_server(wire: int, root: Path) -> Iterator[bb.Server]:
    with running(make_answering(root=str(root), bind=(f"{NETWORK}.1:0",))) as server:
        yield server


def far(wire: int, server: bb.Server) -> Peer:
    """A connection that the kernel side answers on, and has."""
    peer = Peer(wire, int(server.url.rpartition(":")[2]))
    answered = side(server)["answered"]
    for count in range(40):
        if count > 4 and side(server)["answered"] > answered:
            break
        peer.send(count * len(F), F)
        peer.listen_until(lambda count=count: peer.received.count(b"HTTP/1.1 200") == count + 1)
    assert side(server)["answered"] > answered
    return peer


def expect_files(peer: Peer, count: int) -> None:
    peer.listen_until(lambda: peer.received.count(FILES["f"]) >= count)
    peer.listen(0.05)
    assert peer.received.count(FILES["f"]) == count == peer.received.count(b"HTTP/1.1 200") and not peer.has_rst


def test_retransmissions_are_not_answered_again(wire: int, far_server: bb.Server) -> None:
    peer = far(wire, far_server)
    asked = peer.at // len(F)
    peer.send(peer.at - len(F), F)
    peer.send(peer.at - 1, b"\0")  # a keepalive probe
    expect_files(peer, asked)
    peer.send(peer.at - len(F), F + F)
    expect_files(peer, asked + 1)
    peer.send(peer.at - 10, F[-10:] + F)
    expect_files(peer, asked + 2)
    assert far_server.stats()["requests"]["read"] == asked + 2


def test_a_known_request_that_comes_with_fin(wire: int, far_server: bb.Server) -> None:
    peer = far(wire, far_server)
    asked = peer.at // len(F)
    peer.send(peer.at, F, fin=True)
    expect_files(peer, asked + 1)
    peer.listen_until(lambda: peer.has_fin)


def test_fin_right_behind_a_known_request(wire: int, far_server: bb.Server) -> None:
    for _ in range(10):
        peer = far(wire, far_server)
        asked = peer.at // len(F)
        peer.send(peer.at, F)
        peer.send(peer.at, fin=True)
        expect_files(peer, asked + 1)
        peer.listen_until(lambda peer=peer: peer.has_fin)
    await_true(lambda: far_server.stats()["connections"]["open"] == 0)


def test_out_of_order_around_a_known_request(wire: int, far_server: bb.Server) -> None:
    peer = far(wire, far_server)
    asked, at = peer.at // len(F), peer.at
    peer.send(at + len(F), F)
    peer.send(at + 5, F[5:])
    peer.listen(0.05)
    assert peer.received.count(FILES["f"]) == asked
    peer.send(at, F[:10])
    expect_files(peer, asked + 2)


# --- nothing old ---


def test_no_old_byte_after_a_purge() -> None:
    """Readers hammer one key, which is purged thousands of times: an answer that was asked for after a purge had
    returned is never older than it (law 3)."""
    server = make_answering()
    current = known = 0

    @server.batch("/kept")
    def kept(batch: bb.Batch) -> None:
        for request in batch:
            request.respond(f"{current}", cache_ttl_s=3600, tags=("t",))

    stop, faults = threading.Event(), list[str]()

    def read() -> None:
        with Client(server.url) as client:
            reader = Reader(client.socket)
            while not stop.is_set():
                at_least = known
                client.send(head("GET", "/kept"))
                got = int(reader.body())
                if got < at_least:
                    faults.append(f"{got} after {at_least}")
                    stop.set()

    with running(server):
        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        purges, until = 0, time.monotonic() + 20.0
        while purges < 2000 and time.monotonic() < until and not stop.is_set():
            current += 1
            purge: Any = [{"tag": "t"}, {"url": "/kept"}, {"prefix": "/"}][purges % 3]
            server.cache.purge(**purge)
            known = current
            purges += 1
            time.sleep(0.003 if purges % 4 else 0)
        stop.set()
        for reader in readers:
            reader.join()
        seen = side(server)
        assert not faults
        assert purges > 300 and seen["answered"] > purges / 2, (purges, seen)
        await_true(lambda: server.stats()["bridge"]["in_user_mode"] == 0)


def test_a_replaced_file_is_noticed(root: Path) -> None:
    """A change wakes user mode, though nothing comes up; and once the new bytes were seen, the old ones never are."""
    server = make_answering(root=str(root), file_revalidate_s=3600.0)
    with running(server), Client(server.url) as client:
        for number in range(20):
            warm(server, client)
            (root / "new").write_bytes(b"content %d\n" % number)
            (root / "new").rename(root / "f")
            until = time.monotonic() + 1.5
            while client.ask("GET", "/f").body != b"content %d\n" % number:
                assert time.monotonic() < until
            for _ in range(10):
                assert client.ask("GET", "/f").body == b"content %d\n" % number


def test_a_file_that_is_never_trusted_is_never_answered_by_the_kernel_side(root: Path) -> None:
    with running(make_answering(root=str(root), file_revalidate_s=0.0)) as server, Client(server.url) as client:
        for number in range(50):
            (root / "f").write_bytes(b"content %d" % number)
            assert client.ask("GET", "/f").body == b"content %d" % number
        assert side(server)["answered"] == 0


def test_an_expired_answer_is_asked_for_again() -> None:
    server = make_answering()
    calls = itertools.count()
    server.batch("/kept")(lambda batch: [bb.Response(f"{next(calls)}", cache_ttl_s=1) for _ in batch])
    with running(server), Client(server.url) as client:
        began = time.monotonic()
        asked_at: dict[int, float] = {}
        while time.monotonic() < began + 2.5:
            before = time.monotonic()
            number = int(client.ask("GET", "/kept").body)
            first = asked_at.setdefault(number, time.monotonic())
            assert before - first < 1.0, "an answer that was older than it may be"
        assert len(asked_at) >= 3 and side(server)["answered"] > 0


def test_a_renewed_answer_takes_the_place_of_the_old() -> None:
    """Softly purged: one client gets a new one made, then everybody gets that."""
    server = make_answering()
    calls = itertools.count()
    server.batch("/kept")(lambda batch: [bb.Response(f"{next(calls)}", cache_ttl_s=3600) for _ in batch])
    with running(server), Client(server.url) as client:
        for number in range(10):
            warm(server, client, head("GET", "/kept"))
            assert client.ask("GET", "/kept").body == b"%d" % number
            server.cache.purge(url="/kept", soft=True)
            assert client.ask("GET", "/kept").body == b"%d" % (number + 1)


# --- connections ---


def test_a_reader_that_is_slow_gets_all_of_it(root: Path) -> None:
    (root / "page").write_bytes(bytes(range(256)) * 28)
    page, count = (root / "page").read_bytes(), 1500
    with running(make_answering(root=str(root), send_timeout_s=30.0)) as server:
        with Client(server.url) as other:
            warm(server, other, head("GET", "/page"))
        with Client(server.url, receive_buffer_bytes=65_536, patience_s=30.0) as client:
            for number in range(count):
                client.send(head("GET", "/page"))
                if number < 400:
                    time.sleep(0.0005)
            # Meanwhile others are served.
            with Client(server.url) as other:
                assert other.ask("GET", "/f").body == FILES["f"]
            reader = Reader(client.socket)
            for _ in range(count):
                assert reader.body() == page
            client.send(F)
            assert reader.body() == FILES["f"]
        seen = side(server)
        assert seen["answered"] > 10, seen


def test_clients_that_come_and_go_get_only_what_they_asked_for(root: Path) -> None:
    names = "abf"

    def talk(seed: int) -> None:
        chance = random.Random(seed)
        for _ in range(60):
            client = Client(server.url)
            reader = Reader(client.socket)
            for _ in range(chance.randrange(1, 12)):
                name = names[(seed + (chance.random() < 0.1)) % 3]
                client.send(head("GET", f"/{name}"))
                if chance.random() < 0.15:
                    break  # asked, and gone before the answer
                assert reader.body() == FILES[name]
            if chance.random() < 0.5:
                client.reset()
            else:
                client.close()

    with running(make_answering(root=str(root), max_connections=32)) as server:
        together([lambda seed=seed: talk(seed) for seed in range(9)])
        await_true(lambda: server.stats()["connections"]["open"] == 0)
        seen = side(server)
        assert seen["answered"] > 100 and seen["untracked"] == 0, seen


def test_a_connection_that_only_the_kernel_side_serves_is_not_idle(root: Path) -> None:
    with running(make_answering(root=str(root), idle_timeout_s=0.6)) as server, Client(server.url) as client:
        warm(server, client)
        before, until = side(server)["answered"], time.monotonic() + 2.0
        while time.monotonic() < until:
            client.send(F)
            assert client.reply().body == FILES["f"]
            time.sleep(0.05)
        assert side(server)["answered"] - before > 10
        began = time.monotonic()
        assert client.is_gone()
        assert time.monotonic() - began < 4.0


def test_the_thread_that_sends_is_woken(server: bb.Server) -> None:
    """It sleeps where nobody asks, and so does user mode, which must wake it."""
    with Client(server.url) as client:
        warm(server, client)
        for _ in range(8):
            time.sleep(0.15)
            client.send(F)
            assert client.reply().body == FILES["f"]
        seen = side(server)
        assert seen["thread_wakes"] > 0 and seen["doorbells"] > 0, seen


def test_a_shutdown_under_load_loses_no_count(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("log") / "access.log"
    server = make_answering(root=str(root), access_log=str(log))
    got = [0] * 6

    def read(number: int) -> None:
        client = Client(server.url)
        reader = Reader(client.socket)
        try:
            while True:
                client.send(F)
                assert reader.body() == FILES["f"]
                got[number] += 1
        except (OSError, EOFError):
            client.close()

    with running(server):
        readers = [threading.Thread(target=read, args=(number,)) for number in range(len(got))]
        for reader in readers:
            reader.start()
        await_true(lambda: side(server)["answered"] > 1000)
    for reader in readers:
        reader.join()
    stats = server.stats()
    # A last request may have been answered to a client that was being closed on.
    assert sum(got) <= stats["requests"]["read"] <= sum(got) + len(got)
    assert stats["requests"]["read"] == sum(stats["requests"]["outcomes"].values()) == len(parse(log.read_text()))


def test_a_table_that_sends_hits_elsewhere_is_obeyed(root: Path) -> None:
    server = make_answering(root=str(root))
    server.machine.table["Derive Cached Response", "hit"] = "Derive Status Response"
    with running(server), Client(server.url) as client:
        assert client.ask("GET", "/f").body == FILES["f"]
        for _ in range(20):
            assert client.ask("GET", "/f").status == 500
        assert side(server)["hits"] > 0 == side(server)["answered"]


# --- starting ---


def test_what_does_not_go_together_is_refused(root: Path) -> None:
    for engine in ("epoll", "io_uring"):
        with pytest.raises(bb.ConfigError, match=f"sqpoll: .*'{engine}'"):
            bb.Config(engine=engine, sqpoll=0)
    with pytest.raises(bb.ConfigError, match=r"sqpoll: .*engine_threads is 2"):
        bb.Config(engine="kernel", sqpoll=0, engine_threads=2)
    with pytest.raises(bb.ConfigError, match="sqpoll: -1"):
        bb.Config(engine="kernel", sqpoll=-1)
    server = bb.Server(root=root, bind="127.0.0.1:0", config=bb.Config(engine="kernel", sqpoll=4000))
    with pytest.raises(bb.EngineError, match=r"core 4000 .*this machine has the cores"), server.running():
        pass


def test_auto_takes_the_engine_that_can(root: Path) -> None:
    with running(bb.Server(root=root, bind="127.0.0.1:0", config=bb.Config(sqpoll=0))) as server:
        assert server.engine == "kernel"
