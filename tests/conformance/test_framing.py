"""A request is the same however its bytes are cut, its body framed, or its continuation asked for (RFC 9112 sections
6 and 7, RFC 9110 section 10.1.1)."""

import threading

import pytest

from support.site import Site
from support.wire import chunked, head

CHUNKED = ("Transfer-Encoding", "chunked")

WHOLE = {
    "get": head("GET", "/items/cut?x=1", ("User-Agent", "cutter")),
    "file": head("GET", "/a.txt", ("Accept", "*/*")),
    "length": head("POST", "/echo", ("Content-Type", "text/plain"), body=b"the body"),
    "chunked": head("POST", "/echo", CHUNKED) + chunked(b"the ", b"body", trailers=b"X-Sum: 1\r\n"),
    "absolute": head("GET", "http://test/items/cut", ("Connection", "keep-alive")),
    "refused": head("POST", "/a.txt", body=b"abc"),
}
ANSWERS = {
    "get": (200, b"item cut\n"),
    "file": (200, b"the file a\n"),
    "length": (200, b"the body"),
    "chunked": (200, b"the body"),
    "absolute": (200, b"item cut\n"),
    "refused": (405, b"405 Method Not Allowed\n"),
}
METHODS = {"length": "POST", "chunked": "POST", "refused": "POST"}


@pytest.mark.parametrize("kind", WHOLE)
def test_cut_in_two_at_every_byte(site: Site, kind: str) -> None:
    request = WHOLE[kind]
    with site.client() as client:
        for place in range(1, len(request)):
            # A moment between the parts, so that they come apart.
            client.send(request[:place], pause_s=0.0005)
            client.send(request[place:])
            reply = client.reply(METHODS.get(kind, "GET"))
            assert (reply.status, reply.body) == ANSWERS[kind], place


@pytest.mark.parametrize("kind", WHOLE)
def test_byte_by_byte(site: Site, kind: str) -> None:
    with site.client() as client:
        client.send(*(bytes([byte]) for byte in WHOLE[kind]), pause_s=0.0003)
        reply = client.reply(METHODS.get(kind, "GET"))
        assert (reply.status, reply.body) == ANSWERS[kind]


def test_all_together_cut_anywhere(site: Site) -> None:
    kinds = list(WHOLE)
    stream = b"".join(WHOLE[kind] for kind in kinds)
    for size in (1, 7, 50, 64, 199, len(stream)):
        with site.client() as client:
            client.send(*(stream[at : at + size] for at in range(0, len(stream), size)))
            for kind in kinds:
                reply = client.reply(METHODS.get(kind, "GET"))
                assert (reply.status, reply.body) == ANSWERS[kind], (size, kind)


@pytest.mark.parametrize(
    "coded",
    [
        b"8\r\nthe body\r\n0\r\n\r\n",
        b"1\r\nt\r\n1\r\nh\r\n6\r\ne body\r\n0\r\n\r\n",
        b"8;name=value\r\nthe body\r\n0\r\n\r\n",
        b'8;name="quoted"\r\nthe body\r\n0;last\r\n\r\n',
        b"0008\r\nthe body\r\n000\r\n\r\n",
        b"8\r\nthe body\r\n0\r\nX-One: 1\r\nX-Two: 2\r\n\r\n",
    ],
)
def test_chunked_forms(site: Site, coded: bytes) -> None:
    with site.client() as client:
        client.send(head("POST", "/echo", CHUNKED) + coded + head("GET", "/one.txt"))
        assert client.reply("POST").body == b"the body"
        assert client.reply().body == b"1"


def test_hexadecimal_sizes_in_either_case(site: Site) -> None:
    with site.client() as client:
        for size in (b"1a", b"1A"):
            client.send(head("POST", "/echo", CHUNKED) + size + b"\r\n" + b"z" * 26 + b"\r\n0\r\n\r\n")
            assert client.reply("POST").body == b"z" * 26


@pytest.mark.parametrize("size_bytes", [1, 1000, 4095, 4096, 4097, 65_536, 300_000, 1 << 20])
@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_body_sizes(site: Site, size_bytes: int, framing: str) -> None:
    body = (b"0123456789abcdef" * (size_bytes // 16 + 1))[:size_bytes]
    with site.client() as client:
        if framing == "length":
            request = head("POST", "/echo", body=body)
        else:
            pieces = [body[at : at + 3001] for at in range(0, size_bytes, 3001)]
            request = head("POST", "/echo", CHUNKED) + chunked(*pieces)
        sender = threading.Thread(target=client.send, args=(request + head("GET", "/one.txt"),))
        sender.start()
        assert client.reply("POST").body == body
        assert client.reply().body == b"1"
        sender.join()


@pytest.mark.parametrize("framing", ["none", "zero", "chunked"])
def test_an_empty_body(site: Site, framing: str) -> None:
    requests = {
        "none": head("POST", "/echo"),
        "zero": head("POST", "/echo", body=b""),
        "chunked": head("POST", "/echo", CHUNKED) + chunked(),
    }
    with site.client() as client:
        client.send(requests[framing])
        reply = client.reply("POST")
        assert (reply.status, reply.body) == (200, b"")
        assert client.ask("GET", "/one.txt").body == b"1"


def test_empty_lines_before_a_request_are_passed_over(site: Site) -> None:
    # RFC 9112 section 2.2: some clients send a CRLF behind a POST's body.
    with site.client() as client:
        client.send(head("POST", "/echo", body=b"x") + b"\r\n" + head("GET", "/one.txt") + b"\r\n")
        assert client.reply("POST").body == b"x"
        assert client.reply().body == b"1"
        assert client.ask("GET", "/one.txt").body == b"1"


# --- Expect: 100-continue ---------------------------------------------------------------------------------------------

EXPECT = ("Expect", "100-continue")


@pytest.mark.parametrize("framing", ["length", "chunked"])
@pytest.mark.parametrize("target", ["/echo", "/a.txt"])
def test_continue_is_sent_once_when_the_client_waits(site: Site, framing: str, target: str) -> None:
    with site.client() as client:
        if framing == "length":
            client.send(head("POST", target, EXPECT, ("Content-Length", "4")))
            rest = b"body"
        else:
            client.send(head("POST", target, EXPECT, CHUNKED))
            rest = chunked(b"bo", b"dy")
        if target == "/echo":
            assert client.interim() == 100
            assert client.is_silent(0.05)
            client.send(rest[:2], rest[2:], pause_s=0.02)
            reply = client.reply("POST")
            assert (reply.status, reply.body, reply.interim) == (200, b"body", [])
        else:  # a final answer at once would do, too
            client.send(rest)
            assert client.reply("POST").status == 405


def test_no_continue_when_the_body_is_there(site: Site) -> None:
    with site.client() as client:
        client.send(head("POST", "/echo", EXPECT, body=b"body"))
        reply = client.reply("POST")
        assert (reply.status, reply.body, reply.interim) == (200, b"body", [])


def test_no_continue_where_there_is_no_body(site: Site) -> None:
    for request in (head("GET", "/a.txt", EXPECT), head("POST", "/echo", EXPECT, body=b"")):
        with site.client() as client:
            client.send(request)
            reply = client.reply()
            assert (reply.status, reply.interim) == (200, [])


def test_no_continue_for_http_1_0(site: Site) -> None:
    with site.client() as client:
        client.send(head("POST", "/echo", EXPECT, ("Content-Length", "4"), version="1.0"))
        assert client.is_silent(0.1)
        client.send(b"body")
        assert client.reply("POST").body == b"body"
        client.assert_ended()


def test_too_long_a_body_is_refused_instead_of_asked_for(site: Site) -> None:
    with site.client() as client:
        client.send(head("POST", "/echo", EXPECT, ("Content-Length", str(1 << 30))))
        reply = client.reply("POST")
        assert (reply.status, reply.interim) == (413, [])
        client.assert_ended()


def test_another_expectation_is_417(site: Site) -> None:
    with site.client() as client:
        client.send(head("POST", "/echo", ("Expect", "a-miracle"), ("Content-Length", "4")))
        assert client.reply("POST").status == 417
        client.assert_ended()


def test_continue_behind_a_pipelined_request(site: Site) -> None:
    with site.client() as client:
        client.send(head("GET", "/items/x") + head("POST", "/echo", EXPECT, ("Content-Length", "4")))
        assert client.reply().body == b"item x\n"
        assert client.interim() == 100
        client.send(b"body")
        assert client.reply("POST").body == b"body"
