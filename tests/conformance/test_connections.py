"""A connection persists, or ends, as RFC 9112 section 9 says; pipelined requests are answered in their order, whatever
answers them; and a client that has sent FIN is still answered."""

import time

import pytest

from support.serving import Gate
from support.site import Site
from support.wire import chunked, head


@pytest.mark.parametrize("target", ["/a.txt", "/nothing", "/items/x", "/big.bin", "/dir"])
@pytest.mark.parametrize(
    ("version", "connection", "persists"),
    [
        ("1.1", None, True),
        ("1.1", "close", False),
        ("1.1", "Close", False),
        ("1.1", "keep-alive", True),
        ("1.1", "keep-alive, close", False),
        ("1.1", "x-hop, close", False),
        ("1.1", "x-hop", True),
        ("1.0", None, False),
        ("1.0", "keep-alive", True),
        ("1.0", "Keep-Alive", True),
        ("1.0", "close", False),
    ],
)
def test_persistence(site: Site, target: str, version: str, connection: str | None, persists: bool) -> None:
    headers = [("Connection", connection)] if connection else []
    with site.client() as client:
        reply = client.ask("GET", target, *headers, version=version)
        words = [word.strip().lower() for value in reply.all("connection") for word in value.split(",")]
        assert reply.version == "1.1"
        if persists:
            assert "close" not in words and (version == "1.1" or "keep-alive" in words)
            assert client.ask("GET", "/one.txt").body == b"1"
        else:
            assert "close" in words
            client.assert_ended()


def test_what_follows_the_last_request_is_not_answered(site: Site) -> None:
    with site.client() as client:
        client.send(head("GET", "/a.txt", ("Connection", "close")) + head("GET", "/b.txt"))
        assert client.reply().body == b"the file a\n"
        client.assert_ended()


def test_what_follows_the_last_request_to_a_handler_is_not_answered(site: Site, gate: Gate) -> None:
    with site.client() as client:
        client.send(head("GET", "/slow", ("Connection", "close")) + head("GET", "/b.txt"))
        gate.await_arrival()
        client.send(head("GET", "/b.txt"))
        gate.open()
        assert client.reply().body == b"slow\n"
        client.assert_ended()


PIPELINE = [
    ("GET", "/a.txt", None, 200),
    ("GET", "/items/one", None, 200),
    ("HEAD", "/data.bin", None, 200),
    ("GET", "/nothing", None, 404),
    ("POST", "/echo", b"first", 200),
    ("GET", "/data.bin", None, 200),
    ("POST", "/a.txt", b"refused", 405),
    ("GET", "/items/two", None, 200),
    ("GET", "/big.bin", None, 200),
    ("HEAD", "/big.bin", None, 200),
    ("PUT", "/echo", b"x" * 5000, 200),
    ("GET", "/dir", None, 301),
    ("OPTIONS", "/a.txt", None, 204),
    ("GET", "/empty.txt", None, 200),
    ("GET", "/b.txt", None, 200),
]


@pytest.mark.parametrize("rotation", range(0, len(PIPELINE), 2))
def test_pipelined_responses_keep_the_order(site: Site, rotation: int) -> None:
    requests = PIPELINE[rotation:] + PIPELINE[:rotation]
    with site.client() as client:
        client.send(b"".join(head(method, target, body=body) for method, target, body, _ in requests))
        for method, target, body, status in requests:
            reply = client.reply(method)
            assert (reply.status, target) == (status, target)
            if target == "/echo":
                assert reply.body == body
            elif target.startswith("/items"):
                assert reply.body == f"item {target.removeprefix('/items/')}\n".encode()
            elif status == 200 and method == "GET":
                assert reply.body == (site.root / target[1:]).read_bytes()
        assert client.is_silent(0.02)


def test_nothing_overtakes_a_slow_handler(site: Site, gate: Gate) -> None:
    with site.client() as client:
        client.send(
            head("GET", "/slow"),
            head("GET", "/a.txt") + head("GET", "/nothing") + head("GET", "/items/x"),
            head("GET", "/slow") + head("GET", "/big.bin"),
        )
        gate.await_arrival()
        assert client.is_silent(0.1)
        gate.open()
        got = [(reply.status, len(reply.body)) for reply in client.replies(*["GET"] * 6)]
        size_bytes = (site.root / "big.bin").stat().st_size
        assert got == [(200, 5), (200, 11), (404, 14), (200, 7), (200, 5), (200, size_bytes)]


@pytest.mark.parametrize("target", ["/echo", "/a.txt"])
def test_a_chunked_body_behind_a_slow_handler(site: Site, gate: Gate, target: str) -> None:
    coded = head("POST", target, ("Transfer-Encoding", "chunked")) + chunked(b"abc", b"defg")
    with site.client() as client:
        client.send(head("GET", "/slow") + coded + head("GET", "/b.txt"))
        gate.await_arrival()
        time.sleep(0.05)
        gate.open()
        slow, posted, after = client.replies("GET", "POST", "GET")
        assert (slow.status, after.body) == (200, b"the file b\n")
        assert (posted.status, posted.body[:7]) == ((200, b"abcdefg") if target == "/echo" else (405, b"405 Met"))


def test_a_bad_chunk_behind_a_slow_handler(site: Site, gate: Gate) -> None:
    site.seen.clear()
    coded = head("POST", "/echo", ("Transfer-Encoding", "chunked")) + b"5\r\nhelloX5\r\nworld\r\n0\r\n\r\n"
    with site.client() as client:
        client.send(head("GET", "/slow") + coded + head("POST", "/echo", body=b"never"))
        gate.await_arrival()
        time.sleep(0.05)
        gate.open()
        slow, refused = client.replies("GET", "POST")
        assert (slow.status, refused.status) == (200, 400)
        client.assert_ended()
    assert site.seen == []


@pytest.mark.parametrize("line", ["X: a\r\n b", "X : a", "nonsense", "Content-Length: x", "Host: second"])
def test_a_refused_head_behind_a_slow_handler(site: Site, gate: Gate, line: str) -> None:
    # It is judged while the first answer is owed, and must be refused when its turn comes, not read anew.
    site.seen.clear()
    with site.client() as client:
        client.send(head("GET", "/slow"))
        gate.await_arrival()
        client.send(head("GET", "/a.txt", line))
        time.sleep(0.05)
        client.send(head("POST", "/echo", body=b"never"))
        time.sleep(0.05)
        gate.open()
        slow, refused = client.replies("GET", "GET")
        assert (slow.status, refused.status) == (200, 400)
        client.assert_ended()
    assert site.seen == []


@pytest.mark.parametrize("first", ["/slow", "/big.bin"])
def test_a_large_body_behind_an_answer_that_is_under_way(site: Site, gate: Gate, first: str) -> None:
    # Reading pauses there, and must go on once the first answer has left.
    body = b"y" * 300_000
    request = head("POST", "/echo", body=body)
    with site.client(receive_buffer_bytes=65_536) as client:
        client.send(head("GET", first))
        if first == "/slow":
            gate.await_arrival()
        time.sleep(0.1)
        client.send(request[:100_000])
        time.sleep(0.1)
        client.send(request[100_000:200_000])
        time.sleep(0.1)
        gate.open()
        before = client.reply()
        assert before.status == 200
        client.send(request[200_000:])
        assert client.reply("POST").body == body
        assert client.ask("GET", "/one.txt").body == b"1"


def test_more_pipelined_requests_than_are_taken_at_once(site: Site, gate: Gate) -> None:
    count = 300  # more than pipelined_requests_max
    with site.client() as client:
        client.send(head("GET", "/slow") + head("GET", "/items/x") * count)
        gate.await_arrival()
        gate.open()
        assert client.reply().body == b"slow\n"
        assert {reply.body for reply in client.replies(*["GET"] * count)} == {b"item x\n"}
        assert client.is_silent(0.02)


def test_many_large_pipelined_responses(site: Site) -> None:
    with site.client() as client:
        client.send((head("GET", "/data.bin") + head("GET", "/a.txt")) * 40)
        data = (site.root / "data.bin").read_bytes()
        for place in range(80):
            assert client.reply().body == (b"the file a\n" if place % 2 else data)


@pytest.mark.parametrize("target", ["/a.txt", "/items/x", "/big.bin", "/slow"])
def test_a_half_closed_client_is_answered(site: Site, gate: Gate, target: str) -> None:
    with site.client() as client:
        client.send(head("GET", target) + head("GET", "/b.txt"))
        client.end_sending()
        if target == "/slow":
            gate.await_arrival()
            time.sleep(0.05)
        gate.open()
        assert client.reply().status == 200
        assert client.reply().body == b"the file b\n"
        client.assert_ended()


@pytest.mark.parametrize(
    "unfinished", [b"GET / HTT", head("GET", "/")[:-2], head("POST", "/echo", body=b"whole body")[:-3], b""]
)
def test_a_half_closed_client_with_an_unfinished_request_is_let_go(site: Site, unfinished: bytes) -> None:
    with site.client() as client:
        client.send(head("GET", "/a.txt") + unfinished)
        client.end_sending()
        assert client.reply().body == b"the file a\n"
        client.assert_ended()


def test_a_client_that_sends_nothing_and_closes(site: Site) -> None:
    with site.client() as client:
        client.end_sending()
        client.assert_ended()


def test_a_last_response_survives_what_the_client_still_sends(site: Site) -> None:
    # A close with unread bytes would be a reset, and could cost the client the response (RFC 9112 section 9.6).
    for _ in range(20):
        with site.client() as client:
            client.send(head("GET", "/data.bin", ("Connection", "close")) + b"z" * 50_000)
            client.send(b"z" * 1000)
            assert len(client.reply().body) == 100_000
            client.assert_ended()
