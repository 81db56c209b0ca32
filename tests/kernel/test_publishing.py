"""What the kernel side recognises: exactly the bytes that were published, and never with an old answer."""

import itertools
import threading
import time
from pathlib import Path

import pytest

import batchbridge as bb
from support.accesslog import parse
from support.serving import make_server, running
from support.wire import Client, ask, await_true, head

from .conftest import FILES, side


def repeat(client: Client, request: bytes, body: bytes, times: int = 5) -> None:
    for _ in range(times):
        client.send(request)
        assert client.reply().body == body


def test_hits_are_recognised_counted_and_logged(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    log = tmp_path_factory.mktemp("log") / "access.log"
    with running(make_server("kernel", root=str(root), access_log=str(log))) as server, Client(server.url) as client:
        repeat(client, head("GET", "/f", ("User-Agent", "one"), ("Referer", "http://x/")), FILES["f"], 100)
        stats = server.stats()
    assert stats["kernel_side"]["images"] == 1
    assert stats["kernel_side"]["hits"] == 97  # read from the file, then seen once, then twice
    assert stats["requests"]["outcomes"] == {**dict.fromkeys(stats["requests"]["outcomes"], 0), "hit": 99, "file": 1}
    assert stats["cache"]["hits"] == 99
    lines = parse(log.read_text())
    assert len(lines) == 100
    told = {(line.request, line.status, line.size_bytes, line.referer, line.user_agent) for line in lines}
    assert told == {("GET /f HTTP/1.1", 200, 64, "http://x/", "one")}


def test_a_connection_s_first_request_is_recognised(server: bb.Server) -> None:
    """It mostly comes before the connection is known to the engine."""
    for _ in range(30):
        assert ask(server.url, "GET", "/f").body == FILES["f"]
    seen = side(server)
    assert seen["hits"] == seen["known"] == 27
    with Client(server.url) as client:
        client.send(head("GET", "/f"), head("POST", "/echo/1", body=b"x") + head("GET", "/f"))
        client.end_sending()
        assert [client.reply().body, client.reply("POST").body, client.reply().body] == [
            FILES["f"],
            b"1 1 x",
            FILES["f"],
        ]
        client.assert_ended()


def test_only_the_same_bytes_are_recognised(server: bb.Server) -> None:
    with Client(server.url) as client:
        repeat(client, head("GET", "/f"), FILES["f"])
        before = side(server)["hits"]
        client.send(head("GET", "/F"))
        assert client.reply().status == 404
        client.send(head("GET", "/f", ("Connection", "close")).replace(b"Host: test", b"Host: tesT"))
        assert client.reply().body == FILES["f"]
        client.assert_ended()
        assert side(server)["hits"] == before


@pytest.mark.parametrize(
    "lines",
    [
        [("Cookie", "a=b")],
        [("Authorization", "Basic eDp5")],
        [("Range", "bytes=0-3")],
        [("If-None-Match", '"x"')],
        [("Cache-Control", "no-cache")],
        [("Content-Length", "0")],
        [("Connection", "close")],
        [("X-Long", "x" * 2000)],
    ],
    ids=lambda lines: lines[0][0],
)
def test_some_requests_are_never_published(server: bb.Server, lines: list[tuple[str, str]]) -> None:
    for _ in range(6):
        with Client(server.url) as client:
            client.send(head("GET", "/f", *lines))
            assert client.reply().status in (200, 206)
    assert side(server)["images"] == 0


@pytest.mark.parametrize(
    "length", [*range(40, 140), *range(318, 324), 511, 512, 513, *range(766, 772), *range(1984, 2060)]
)
def test_requests_of_every_length(server: bb.Server, length: int) -> None:
    bare = len(head("GET", "/f", "X: "))
    request = head("GET", "/f", host="t") if length < bare else head("GET", "/f", "X: " + "y" * (length - bare))
    with Client(server.url) as client:
        repeat(client, request, FILES["f"], 6)
    assert (side(server)["hits"] == 3) == (len(request) <= 2016)


def test_pipelined_and_split_and_behind_what_is_owed(server: bb.Server) -> None:
    """A recognised request may come in the middle of anything: it is only a short way of writing its bytes."""
    known, body = head("GET", "/f"), head("GET", "/f")
    with Client(server.url) as client:
        repeat(client, known, FILES["f"])
        post = head("POST", "/echo/1", body=body)
        for _ in range(20):
            # The body of a request, in a packet of its own, has just the bytes of the image.
            client.send(post[: -len(body)])
            time.sleep(0.002)
            client.send(body)
            assert client.reply("POST").body == b"1 %d %b" % (len(body), body)
            client.send(head("POST", "/echo/2", body=b"x"))
            client.send(known)
            client.send(head("GET", "/large"))
            client.send(known)
            assert client.reply("POST").body == b"2 1 x"
            assert [client.reply().body for _ in range(3)] == [FILES["f"], FILES["large"], FILES["f"]]


def test_more_requests_than_images_of_their_size(server: bb.Server) -> None:
    """Images make room for others, one for one; no request is answered as another, and those of other sizes stay."""
    filler = ("X-Filler", "y" * 800)
    requests = [head("GET", f"/{'abf'[number % 3]}", ("X-Number", str(number)), filler) for number in range(1500)]
    with Client(server.url) as client:
        repeat(client, head("GET", "/f"), FILES["f"])
    for part in range(0, len(requests), 60):
        with Client(server.url) as client:
            for _, number in itertools.product(range(4), range(part, min(part + 60, len(requests)))):
                client.send(requests[number])
                assert client.reply().body == FILES["abf"[number % 3]]
    assert 1000 < side(server)["images"] - 1 <= 1024
    hits = side(server)["hits"]
    assert ask(server.url, "GET", "/f").body == FILES["f"]
    assert side(server)["hits"] == hits + 1


def test_more_requests_than_images(server: bb.Server) -> None:
    """The last that came in, and one that is asked for all the time, are recognised whatever else wants a place."""
    requests = [head("GET", f"/{'abf'[number % 3]}", ("X-Number", str(number))) for number in range(17_500)]
    with Client(server.url) as hot:
        for name in "abf":
            repeat(hot, head("GET", f"/{name}"), FILES[name])
        for part in range(0, len(requests), 60):
            asked = requests[part : part + 60]
            with Client(server.url) as client:
                for _ in range(2):
                    client.send(b"".join(asked))
                    for place in range(len(asked)):
                        assert client.reply().body == FILES["abf"[(part + place) % 3]]
            repeat(hot, head("GET", "/f"), FILES["f"], 1)
        assert 16_000 < side(server)["images"] <= 16_384
        # No place is used for two in one turn, so these come one by one.
        for number in range(50):
            repeat(hot, head("GET", "/f", ("X-Last", str(number))), FILES["f"], 3)
        hits = side(server)["hits"]
        for number in range(50):
            repeat(hot, head("GET", "/f", ("X-Last", str(number))), FILES["f"], 1)
        assert side(server)["hits"] - hits > 40  # now and then one finds no place in the index
        hits = side(server)["hits"]
        repeat(hot, head("GET", "/f"), FILES["f"], 1)
        assert side(server)["hits"] == hits + 1


def test_one_connection_cannot_publish_everything(server: bb.Server) -> None:
    with Client(server.url) as client:
        for number in range(200):
            repeat(client, head("GET", "/f", ("X-Number", str(number))), FILES["f"], 4)
    assert side(server)["images"] == 64


def test_a_changed_file_is_seen(root: Path) -> None:
    with running(make_server("kernel", root=str(root), file_revalidate_s=0.05)) as server, Client(server.url) as client:
        repeat(client, head("GET", "/f"), FILES["f"], 20)
        (root / "new").write_bytes(b"another content\n")
        (root / "new").rename(root / "f")
        time.sleep(0.06)
        repeat(client, head("GET", "/f"), b"another content\n", 20)


def test_expired_answers_are_asked_for_again() -> None:
    server = bb.Server(config=bb.Config(engine="kernel", bind=("127.0.0.1:0",)))
    calls = itertools.count()

    @server.batch("/kept")
    def kept(batch: bb.Batch) -> None:
        for request in batch:
            request.respond(f"{next(calls)}", cache_ttl_s=1)

    with running(server), Client(server.url) as client:
        repeat(client, head("GET", "/kept"), b"0", 10)
        assert side(server)["hits"] > 0
        time.sleep(1.05)
        repeat(client, head("GET", "/kept"), b"1", 10)


def test_no_old_byte_after_a_purge() -> None:
    """Readers hammer one key, which is purged thousands of times: an answer that was asked for after a purge had
    returned is never older than it (law 3)."""
    server = bb.Server(config=bb.Config(engine="kernel", bind=("127.0.0.1:0",)))
    current = known = 0

    @server.batch("/kept")
    def kept(batch: bb.Batch) -> None:
        for request in batch:
            request.respond(f"{current}", cache_ttl_s=3600, tags=("t",))

    stop = threading.Event()
    faults: list[str] = []

    def read() -> None:
        with Client(server.url) as client:
            while not stop.is_set():
                at_least = known
                client.send(head("GET", "/kept"))
                got = int(client.reply().body)
                if got < at_least:
                    faults.append(f"{got} after {at_least}")
                    stop.set()

    with running(server):
        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        until = time.monotonic() + 3.0
        purges = 0
        hits = 0
        while time.monotonic() < until and not stop.is_set():
            current += 1
            server.cache.purge(tag="t") if purges % 2 else server.cache.purge(url="/kept")
            known = current
            purges += 1
            if purges % 50 == 0:
                time.sleep(0.02)
                hits = side(server)["hits"]
        stop.set()
        for reader in readers:
            reader.join()
        assert not faults
        assert purges > 200 and hits > 0
        await_true(lambda: server.stats()["bridge"]["in_user_mode"] == 0)
