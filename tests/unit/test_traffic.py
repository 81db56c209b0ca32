"""Requests from URLs and files are what they say, each mistake is told with its line, and answers are learnt once."""

import contextlib
import json
import re
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchbridge.cython_ext.load import Exchange
from batchbridge.measure.traffic import (
    Target,
    TrafficError,
    get,
    learn,
    parse_url,
    read_requests,
    read_urls,
    request_bytes,
)
from support.scripted import Scripted

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


@pytest.fixture
def file(tmp_path):
    """A file of requests with these lines; objects become JSON."""

    def file(*lines, name="asked"):
        path = tmp_path / name
        path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
        return path

    return file


def body_of(exchange: Exchange) -> bytes:
    return exchange.data.partition(b"\r\n\r\n")[2]


# --- URLs and requests ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "target", "authority"),
    [
        ("http://a.example", Target("a.example", 80, "/"), "a.example"),
        ("http://127.0.0.1:8080/f?x=1#there", Target("127.0.0.1", 8080, "/f?x=1"), "127.0.0.1:8080"),
        ("http://[::1]:81/a%20b", Target("::1", 81, "/a%20b"), "[::1]:81"),
    ],
)
def test_a_url(url, target, authority):
    assert parse_url(url) == target
    assert parse_url(url).authority == authority


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:80/f", "https://a/", "http:///f", "http://a:x/", "http://a:99999/", "http://a:0/", "http://[::1/",
     "http://u:p@a/", "http://a/b c", "http://a/\u00e9"],
)  # fmt: skip
def test_what_is_no_url(url):
    with pytest.raises(TrafficError, match=re.escape(repr(url))):
        parse_url(url)


def test_header_lines_that_are_given_replace_ours():
    data = request_bytes("GET", "/a", host="h", headers={"HOST": "other", "X": "y"})
    assert re.findall(rb"(?im)^host: (.*)\r$", data) == [b"other"]
    assert data.endswith(b"X: y\r\n\r\n")
    assert b"\r\nUser-Agent: batchbridge-bench\r\n" in data
    assert request_bytes("PUT", "/a", body=b"").endswith(b"Content-Length: 0\r\n\r\n")


def test_paths():
    first, second = get("/a", "/b?c", host="h:1")
    assert first.data.startswith(b"GET /a HTTP/1.1\r\nHost: h:1\r\n")
    assert second.name == "GET /b?c"
    assert first.statuses == (200,) and not first.is_status_given


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_of_urls(file):
    found = read_urls(file("# weights", "", "/a", "  2.5   /b?x=y ", "1e1 /c"), host="h")
    assert [(exchange.name, exchange.weight) for exchange in found] == [
        ("GET /a", 1), ("GET /b?x=y", 2.5), ("GET /c", 10),
    ]  # fmt: skip
    assert found[1].data.startswith(b"GET /b?x=y HTTP/1.1\r\nHost: h\r\n")


@pytest.mark.parametrize("line", ["a", "1 a", "/a b", "/a /b", "0 /a", "-1 /a", "nan /a", "inf /a", "x /a", "1 2 /a"])
def test_a_line_that_is_no_url(file, line):
    with pytest.raises(TrafficError, match=r"asked:3: "):
        read_urls(file("/first", "", line))


@pytest.mark.parametrize("read", [read_urls, read_requests])
def test_a_file_that_has_nothing_to_read(file, tmp_path, read):
    with pytest.raises(TrafficError, match=r"asked has no request"):
        read(file("# nothing", "  "))
    with pytest.raises(TrafficError, match=r"cannot read .*none: no such file"):
        read(tmp_path / "none")
    with pytest.raises(TrafficError, match=r"cannot read .*: is a directory"):
        read(tmp_path)
    (tmp_path / "binary").write_bytes(b"\xff\xfe/a")
    with pytest.raises(TrafficError, match=r"binary is not a file of UTF-8 text"):
        read(tmp_path / "binary")


def test_a_file_of_requests(file, tmp_path):
    (tmp_path / "large.bin").write_bytes(b"\0\1" * 1000)
    found = read_requests(
        file(
            {"path": "/a"},
            "# and",
            {"method": "POST", "path": "/b", "headers": {"X": "y"}, "body": "é", "weight": 3},
            {"method": "PUT", "path": "/c", "body_file": "large.bin", "expect": {"status": [201, 503], "length": 7}},
            {"method": "POST", "path": "/d", "body_base64": "AAE=", "expect": {"status": 204}},
            {"path": "/e", "expect": {"body": "é", "body_crc32": 5}},
        ),
        host="h",
    )
    assert [exchange.name for exchange in found] == ["GET /a", "POST /b", "PUT /c", "POST /d", "GET /e"]
    assert [body_of(exchange) for exchange in found] == [b"", "é".encode(), b"\0\1" * 1000, b"\0\1", b""]
    assert b"Content-Length" not in found[0].data
    assert b"\r\nX: y\r\nContent-Length: 2\r\n\r\n" in found[1].data
    assert [exchange.weight for exchange in found] == [1, 3, 1, 1, 1]
    assert found[2].statuses == (201, 503) and found[2].length == 7 and found[2].is_status_given
    assert found[3].statuses == (204,)
    assert (found[4].body, found[4].length, found[4].crc32) == ("é".encode(), 2, 5)


def test_random_bodies(file):
    line = {"method": "POST", "path": "/s", "weight": 8,
            "body_random": {"dtype": "<f4", "shape": [4, 4], "count": 64}}  # fmt: skip
    found = read_requests(file(line, line))
    assert len(found) == 128
    assert sum(exchange.weight for exchange in found) == pytest.approx(16)
    vectors = [np.frombuffer(body_of(exchange), "<f4") for exchange in found]
    assert all(vector.size == 16 and np.abs(vector).max() <= 100 for vector in vectors)
    assert all((vector == vector.round()).all() for vector in vectors)
    assert len({vector.tobytes() for vector in vectors}) == 128  # the second line has others
    assert found[3].name == "POST /s with body 4"
    again = read_requests(file(line, line))
    assert [exchange.data for exchange in again] == [exchange.data for exchange in found]
    assert [exchange.data for exchange in read_requests(file(line, line), seed=2)] != [e.data for e in found]
    (unsigned,) = read_requests(file({"path": "/", "body_random": {"dtype": "u1", "shape": [1000]}}))
    assert max(body_of(unsigned)) <= 100


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "this is not JSON: "),
        ("[" * 100_000, "recursion"),
        ("[]", "is not a JSON object"),
        ({}, "path None does not begin with /"),
        ({"path": "a"}, "path 'a' does not begin with /"),
        ({"path": "/a b"}, "percent-encoded"),
        ({"path": "/a\r\nX: y"}, "percent-encoded"),
        ({"path": "/a", "methode": "PUT"}, "'methode' is no field: there are body, body_base64"),
        ({"path": "/a", "method": "G T"}, "method 'G T' is no method"),
        ({"path": "/a", "method": 1}, "method 1 is no method"),
        ({"path": "/a", "headers": []}, "headers is not an object"),
        ({"path": "/a", "headers": {"A": "b\r\nc: d"}}, "cannot be sent"),
        ({"path": "/a", "headers": {"A b": "c"}}, "cannot be sent"),
        ({"path": "/a", "headers": {"A": 1}}, "cannot be sent"),
        ({"path": "/a", "headers": {"content-length": "1"}}, "follows from the body"),
        ({"path": "/a", "weight": 0}, "weight 0 is not"),
        ({"path": "/a", "weight": True}, "weight True is not"),
        ({"path": "/a", "weight": "2"}, "weight '2' is not"),
        ('{"path": "/a", "weight": NaN}', "weight nan is not"),
        ({"path": "/a", "body": 1}, "body is not text"),
        ({"path": "/a", "body": "", "body_file": ""}, "body and body_file are two bodies"),
        ({"path": "/a", "body_file": "none"}, "body_file 'none' cannot be read: no such file"),
        ({"path": "/a", "body_base64": "?"}, "body_base64 is not base64"),
        ({"path": "/a", "body_random": 1}, "body_random is not an object"),
        ({"path": "/a", "body_random": {}}, "body_random has no dtype"),
        ({"path": "/a", "body_random": {"dtype": "<f4", "size": 1}}, "'size' is no field of body_random"),
        ({"path": "/a", "body_random": {"dtype": "wrong"}}, "none of numpy's"),
        ({"path": "/a", "body_random": {"dtype": "O"}}, "not one of whole or floating-point"),
        ({"path": "/a", "body_random": {"dtype": "<f4", "shape": [0]}}, "shape [0] is not"),
        ({"path": "/a", "body_random": {"dtype": "<f4", "shape": 16}}, "shape 16 is not"),
        ({"path": "/a", "body_random": {"dtype": "<f4", "count": 1.5}}, "count 1.5 is not"),
        ({"path": "/a", "body_random": {"dtype": "<f8", "shape": [1 << 20, 1 << 20]}}, "at most 268435456"),
        ({"path": "/a", "expect": 200}, "expect is not an object"),
        ({"path": "/a", "expect": {"code": 200}}, "'code' is no expectation"),
        ({"path": "/a", "expect": {"status": 100}}, "status 100 is not"),
        ({"path": "/a", "expect": {"status": []}}, "status [] is not"),
        ({"path": "/a", "expect": {"status": "200"}}, "status '200' is not"),
        ({"path": "/a", "expect": {"length": -1}}, "length -1 is not"),
        ({"path": "/a", "expect": {"body": 1}}, "expected body is not text"),
        ({"path": "/a", "expect": {"body": "abc", "length": 2}}, "not that of the expected body"),
        ({"path": "/a", "expect": {"body_crc32": 1 << 32}}, "body_crc32 4294967296 is not"),
    ],
)
def test_a_line_that_is_no_request(file, line, message):
    path = file({"path": "/first"}, "", line)
    with pytest.raises(TrafficError, match=rf"^{re.escape(str(path))}:3: .*{re.escape(message)}") as caught:
        read_requests(path)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("any") / "asked"
    path.write_text(text, "utf-8", "surrogatepass")
    for read in (read_urls, read_requests):
        with contextlib.suppress(TrafficError):
            assert read(path)


# --- learning ---------------------------------------------------------------------------------------------------------


def answering(**answers: bytes) -> Scripted:
    """A server with an answer for each path."""
    return Scripted(lambda _number, request: answers[request.split()[1][1:].decode()])


def test_learns_status_length_and_checksum():
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n1\r\n!\r\n0\r\n\r\n"
    moved = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: /a\r\n\r\n"
    with answering(a=HELLO, b=chunked, c=moved, d=b"HTTP/1.1 204 No Content\r\n\r\n") as server:
        found = learn(server.host, server.port, get("/a", "/b", "/c", "/d"))
        assert [len(server.requests), server.connections] == [4, 4]
    assert [(e.statuses, e.length, e.crc32) for e in found] == [
        ((200,), 5, zlib.crc32(b"hello")),
        ((200,), 6, zlib.crc32(b"hello!")),
        ((302,), 0, 0),
        ((204,), 0, 0),
    ]


def test_learns_what_is_told_of_a_head():
    with answering(a=b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n") as server:
        (found,) = learn(server.host, server.port, [Exchange(request_bytes("HEAD", "/a"))])
    assert (found.length, found.crc32) == (7, None)


def test_learns_no_checksum_where_bodies_differ():
    with answering(a=HELLO) as server:
        (found,) = learn(server.host, server.port, get("/a"), bodies=False)
    assert (found.length, found.crc32) == (5, None)


def test_what_is_expected_stays():
    asked = Exchange(request_bytes("GET", "/a"), statuses=(503, 200), weight=3, length=9, crc32=4, name="mine")
    with answering(a=HELLO) as server:
        (found,) = learn(server.host, server.port, [asked])
    for name in ("data", "statuses", "weight", "length", "crc32", "name"):
        assert getattr(found, name) == getattr(asked, name)


@pytest.mark.parametrize(
    ("expected", "answer", "message"),
    [
        ({}, b"HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n", "GET /a is answered with status 404; if that is meant"),
        ({}, b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n", "status 500"),
        ({"statuses": (404,)}, HELLO, "status 200 instead of 404"),
        ({"statuses": (404, 410)}, HELLO, "status 200 instead of 404 or 410"),
        ({"length": 6}, HELLO, "5 bytes instead of 6"),
        ({"body": b"hullo"}, HELLO, "another body"),
        ({"crc32": 1}, HELLO, "another body"),
        ({}, b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "is answered with 5 of 9 bytes"),
        ({}, b"nonsense\r\n\r\n", "did not answer GET /a: nonsense"),
    ],
)
def test_an_answer_that_is_not_learnt(expected, answer, message):
    asked = Exchange(request_bytes("GET", "/a"), name="GET /a", **expected)
    with Scripted(lambda _number, _request: answer, closes=True) as server, pytest.raises(TrafficError, match=message):
        learn(server.host, server.port, [asked])


def test_nobody_answers():
    with Scripted(lambda _number, _request: HELLO) as server:
        where = (server.host, server.port)
    with pytest.raises(TrafficError, match=r"did not answer GET /a: connection refused"):
        learn(*where, get("/a"))
    with (
        Scripted(lambda _number, _request: b"HTTP/1.1 200 OK\r\n") as server,
        pytest.raises(TrafficError, match=r"did not answer GET /a within 0.2 s"),
    ):
        learn(server.host, server.port, get("/a"), timeout_s=0.2)
