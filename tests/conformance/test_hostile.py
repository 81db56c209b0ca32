"""What is malformed or oversized gets the right 4xx (or 501, 505), once, and a closed connection; no byte behind it is
taken for a request (RFC 9112 section 11, RFC 9110 section 15.5)."""

import threading

import pytest

from support.serving import make_server, running
from support.site import Site, make_root
from support.wire import Client, head

CHUNKED = "Transfer-Encoding: chunked"
MALFORMED = {
    "no version": (b"GET /\r\nHost: test\r\n\r\n", {400, 505}),
    "http/0.9": (b"GET /\r\n\r\n", {400, 505}),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: test\r\n\r\n", {400}),
    "tab": (b"GET\t/ HTTP/1.1\r\nHost: test\r\n\r\n", {400}),
    "space behind": (b"GET / HTTP/1.1 \r\nHost: test\r\n\r\n", {400, 505}),
    "lower case version": (b"GET / http/1.1\r\nHost: test\r\n\r\n", {400, 505}),
    "version 2": (b"GET / HTTP/2.0\r\nHost: test\r\n\r\n", {505}),
    "preface of HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
    "no method": (b" / HTTP/1.1\r\nHost: test\r\n\r\n", {400}),
    "bad method": (b"G@T / HTTP/1.1\r\nHost: test\r\n\r\n", {400}),
    "bare line feeds": (b"GET / HTTP/1.1\nHost: test\n\n", {400}),
    "bare carriage return": (b"GET / HTTP/1.1\r\nHost: test\r\nX: a\rb\r\n\r\n", {400}),
    "bare line feed within": (b"GET / HTTP/1.1\r\nHost: test\r\nX: a\nY: b\r\n\r\n", {400}),
    "folded line": (head("GET", "/", "X: a\r\n b"), {400}),
    "folded first line": (b"GET / HTTP/1.1\r\n Host: test\r\n\r\n", {400}),
    "space before colon": (head("GET", "/", "X : a"), {400}),
    "no colon": (head("GET", "/", "nonsense"), {400}),
    "empty name": (head("GET", "/", ": value"), {400}),
    "NUL in a value": (head("GET", "/", "X: a\0b"), {400}),
    "control in a value": (head("GET", "/", "X: a\x01b"), {400}),
    "space in a name": (head("GET", "/", "X Y: a"), {400}),
    "two lengths": (head("POST", "/echo", "Content-Length: 3", "Content-Length: 4") + b"abcd", {400}),
    "the same length twice": (head("POST", "/echo", "Content-Length: 3", "Content-Length: 3") + b"abc", {400}),
    "a list of lengths": (head("POST", "/echo", "Content-Length: 3, 3") + b"abc", {400}),
    "length and chunked": (head("POST", "/echo", "Content-Length: 3", CHUNKED) + b"0\r\n\r\n", {400}),
    "chunked and length": (head("POST", "/echo", CHUNKED, "Content-Length: 3") + b"0\r\n\r\n", {400}),
    "negative length": (head("POST", "/echo", "Content-Length: -1"), {400}),
    "signed length": (head("POST", "/echo", "Content-Length: +3") + b"abc", {400}),
    "hexadecimal length": (head("POST", "/echo", "Content-Length: 0x3") + b"abc", {400}),
    "length with junk": (head("POST", "/echo", "Content-Length: 3 4") + b"abc", {400}),
    "empty length": (head("POST", "/echo", "Content-Length: "), {400}),
    "length beyond 64 bits": (head("POST", "/echo", "Content-Length: 18446744073709551617") + b"a", {400, 413}),
    "unknown coding": (head("POST", "/echo", "Transfer-Encoding: xyzzy"), {400, 501}),
    "gzip before chunked": (head("POST", "/echo", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", {400, 501}),
    "chunked not last": (head("POST", "/echo", "Transfer-Encoding: chunked, gzip"), {400, 501}),
    "chunked twice": (head("POST", "/echo", "Transfer-Encoding: chunked, chunked") + b"0\r\n\r\n", {400}),
    "chunked in 1.0": (head("POST", "/echo", CHUNKED, version="1.0") + b"0\r\n\r\n", {400}),
    "vertical tab in coding": (head("POST", "/echo", "Transfer-Encoding:\x0bchunked") + b"0\r\n\r\n", {400, 501}),
    "bad chunk size": (head("POST", "/echo", CHUNKED) + b"x\r\nabc\r\n0\r\n\r\n", {400}),
    "negative chunk": (head("POST", "/echo", CHUNKED) + b"-1\r\nabc\r\n0\r\n\r\n", {400}),
    "prefixed chunk size": (head("POST", "/echo", CHUNKED) + b"0x3\r\nabc\r\n0\r\n\r\n", {400}),
    "chunk size overflow": (head("POST", "/echo", CHUNKED) + b"ffffffffffffffff1\r\nabc\r\n0\r\n\r\n", {400, 413}),
    "chunk too short": (head("POST", "/echo", CHUNKED) + b"5\r\nabc\r\n0\r\n\r\n", {400}),
    "chunk too long": (head("POST", "/echo", CHUNKED) + b"2\r\nabc\r\n0\r\n\r\n", {400}),
    "chunk with bare line feed": (head("POST", "/echo", CHUNKED) + b"3\nabc\n0\n\n", {400}),
    "folded trailer": (head("POST", "/echo", CHUNKED) + b"0\r\nX: a\r\n b\r\n\r\n", {400}),
    "length in the trailer": (head("POST", "/echo", CHUNKED) + b"0\r\nContent-Length: 5\r\n\r\n", {400}),
    "TLS": (bytes.fromhex("16030100c8010000c403030102030405060708090a0b0c0d0e0f") + b"\0" * 100, {400}),
    "binary": (bytes(range(128, 256)) * 3, {400}),
    "NUL": (b"\0" * 100, {400}),
}
SMUGGLED = head("POST", "/echo", body=b"smuggled")


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_in_one_piece_cut_and_pipelined(site: Site, kind: str) -> None:
    request, statuses = MALFORMED[kind]
    site.seen.clear()
    file, route = head("GET", "/one.txt"), head("GET", "/items/x")
    for before, cut in ((b"", None), (b"", 1), (file, None), (route, len(request))):
        with site.client() as client:
            stream = before + request + SMUGGLED
            pieces = [stream] if cut is None else [stream[at : at + cut] for at in range(0, len(stream), cut)]
            try:
                client.send(*pieces)
            except OSError:
                assert cut == 1  # refused long before its last byte
            if before:
                assert client.reply().status == 200
            reply = client.reply()
            assert reply.status in statuses and reply["connection"] == "close"
            client.assert_ended()
    assert site.seen == []


@pytest.mark.parametrize("kind", ["two lengths", "bad chunk size", "bare carriage return", "version 2"])
def test_a_malformed_request_behind_a_slow_one(site: Site, gate: object, kind: str) -> None:
    request, statuses = MALFORMED[kind]
    site.seen.clear()
    with site.client() as client:
        client.send(head("GET", "/slow") + request + SMUGGLED)
        gate.await_arrival()  # type: ignore[attr-defined]
        gate.open()  # type: ignore[attr-defined]
        assert client.reply().status == 200
        assert client.reply().status in statuses
        client.assert_ended()
    assert site.seen == []


# --- limits -----------------------------------------------------------------------------------------------------------


def test_limits_of_the_head(engine: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = make_root(tmp_path_factory.mktemp("limits"))
    server = make_server(
        engine, root=str(root), head_size_bytes_max=2048, target_size_bytes_max=256, header_count_max=10
    )
    fitting = [
        head("GET", "/a.txt?" + "x" * 249),
        head("GET", "/a.txt", *[f"X-{number}: 1" for number in range(9)]),
        head("GET", "/a.txt", "X: " + "x" * 1900),
    ]
    refused = [
        (head("GET", "/a.txt?" + "x" * 250), 414),
        (b"GET /" + b"x" * 5000, 414),
        (head("GET", "/a.txt", *[f"X-{number}: 1" for number in range(10)]), 431),
        (head("GET", "/a.txt", "X: " + "x" * 2100), 431),
        (b"GET / HTTP/1.1\r\nHost: test\r\nX: " + b"x" * 5000, 431),
        (b"GET / HTTP/1.1\r\nHost: test\r\n" + b"X: y\r\n" * 1000, 431),
        (b"\r\n" * 3000, 400),
    ]
    with running(server):
        for request in fitting:
            with Client(server.url) as client:
                client.send(request)
                assert client.reply().status == 200, request[:40]
        for request, status in refused:
            for size in (len(request), 100):
                with Client(server.url) as client:
                    client.send(*(request[at : at + size] for at in range(0, len(request), size)))
                    assert client.reply().status == status, request[:40]
                    client.assert_ended()


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_too_long_a_body_is_413_while_it_is_being_sent(site: Site, framing: str) -> None:
    # The client goes on sending for a moment; it must be able to read why it was refused.
    size_bytes = (1 << 20) + 1
    body = b"z" * size_bytes
    site.seen.clear()
    with site.client() as client:
        if framing == "length":
            pieces = [head("POST", "/echo", ("Content-Length", str(size_bytes))), body]
        else:
            pieces = [head("POST", "/echo", CHUNKED), b"%x\r\n" % size_bytes, body, b"\r\n0\r\n\r\n"]
        sender = threading.Thread(target=client.send, args=pieces)
        sender.start()
        assert client.reply("POST").status == 413
        sender.join()
        client.assert_ended()
    assert site.seen == []


def test_a_body_at_the_limit_is_taken(site: Site) -> None:
    body = b"z" * (1 << 20)
    assert site.ask("POST", "/echo", body=body).body == body


def test_a_body_limit_of_nothing(engine: str) -> None:
    server = make_server(engine, body_size_bytes_max=0)
    server.batch("/x", methods=["POST"])(lambda batch: [b"taken"] * len(batch))
    with running(server), Client(server.url) as client:
        assert client.ask("POST", "/x", body=b"").body == b"taken"
        assert client.ask("POST", "/x", body=b"1").status == 413
        client.assert_ended()


def test_a_long_location_fits_or_is_refused(engine: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = make_root(tmp_path_factory.mktemp("location"))
    server = make_server(engine, root=str(root), target_size_bytes_max="15KiB", file_revalidate_s=0.0)
    with running(server), Client(server.url) as client:
        for length in [*range(9100, 9260, 2), 8000, 12_000, 15_000]:
            reply = client.ask("GET", "/dir?" + "q" * length)
            assert reply.status in (301, 308, 414)
            assert client.ask("GET", "/one.txt").body == b"1", length
