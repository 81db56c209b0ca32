"""Engines differ in how they talk to the kernel and in nothing else: the same bytes in give the same bytes out, Date
aside, whole or cut, one after the other or pipelined (the engine ladder of DESIGN.md section 3)."""

import contextlib
import random
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import batchbridge as bb
from support.serving import ENGINES, make_server, require_engine, running
from support.site import make_root
from support.wire import Client, chunked, head

#: Each ends its connection, so that all that was answered can be read to the end.
LAST = head("GET", "/one.txt", ("Connection", "close"))
CHUNKED = ("Transfer-Encoding", "chunked")

REQUESTS: dict[str, bytes] = {
    **{f"get {target}": head("GET", target) for target in (
        "/", "/a.txt", "/empty.txt", "/data.bin", "/big.bin", "/dir", "/dir/", "/dir/page.html", "/bare/", "/nothing",
        "/fifo", "/link_inside", "/link_relative", "/../x", "/%61.txt", "/%00", "/%zz", "/x?q=1", "/items/a%20b?c=d",
        "/large", "/bad", "/raise", "/teapot", "/nocontent", "/headers", "/kept", "http://test/a.txt", "/socket",
        "/drawing.svg",
    )},
    **{f"head {target}": head("HEAD", target) for target in (
        "/", "/a.txt", "/big.bin", "/items/x", "/large", "/nothing",
    )},
    **{f"options {target}": head("OPTIONS", target) for target in ("*", "/a.txt", "/items/x", "/echo")},
    "post file": head("POST", "/a.txt", body=b"abc"),
    "post echo": head("POST", "/echo", body=b"abc"),
    "post chunked": head("POST", "/echo", CHUNKED) + chunked(b"ab", b"c" * 5000, trailers=b"X: y\r\n"),
    "post large": head("POST", "/echo", body=b"z" * 100_000),
    "post json": head("POST", "/json", ("Content-Type", "application/json"), body=b'{"a": 1}'),
    "post bad json": head("POST", "/json", body=b"{"),
    "post other type": head("POST", "/json", ("Content-Type", "text/plain"), body=b"1"),
    "post short array": head("POST", "/array", body=b"1234"),
    "post array": head("POST", "/array", body=bytes(8)),
    "brew": head("BREW", "/a.txt"), "brew route": head("BREW", "/echo"),
    "range": head("GET", "/a.txt", ("Range", "bytes=2-4")),
    "range of big": head("GET", "/big.bin", ("Range", "bytes=-70000")),
    "no range": head("GET", "/a.txt", ("Range", "bytes=99-")),
    "ranges": head("GET", "/a.txt", ("Range", "bytes=0-1,3-4")),
    "parts": head("GET", "/data.bin", ("Range", "bytes=0-1,500-600,90000-")),
    "parts of big": head("GET", "/big.bin", ("Range", "bytes=2000000-2999999,0-99")),
    "parts of kept": head("GET", "/kept-long", ("Range", "bytes=0-1,500-600")),
    "coded": head("GET", "/page.html", ("Accept-Encoding", "gzip, br")),
    "coded otherwise": head("GET", "/page.html", ("Accept-Encoding", "gzip;q=0.5, br;q=0.1")),
    "coded range": head("GET", "/page.html", ("Accept-Encoding", "gzip"), ("Range", "bytes=1-3")),
    "not coded": head("GET", "/page.html"), "head coded": head("HEAD", "/page.html", ("Accept-Encoding", "br")),
    "match": head("GET", "/a.txt", ("If-Match", '"x"')), "none match": head("GET", "/a.txt", ("If-None-Match", "*")),
    "since": head("GET", "/big.bin", ("If-Modified-Since", "Fri, 31 Dec 2100 23:59:59 GMT")),
    "1.0": head("GET", "/a.txt", ("Connection", "keep-alive"), version="1.0"),
    "1.0 without host": head("GET", "/items/x", ("Connection", "keep-alive"), host=None, version="1.0"),
    "body of get": head("GET", "/a.txt", body=b"body"),
    "expect": head("POST", "/echo", ("Expect", "100-continue"), body=b"there already"),
    "empty lines": b"\r\n\r\n" + head("GET", "/a.txt"),
}  # fmt: skip

#: What ends a connection: nothing behind it is answered.
ENDS: dict[str, bytes] = {
    "close": head("GET", "/a.txt", ("Connection", "close")),
    "close route": head("GET", "/items/x", ("Connection", "close")),
    "close large": head("GET", "/large", ("Connection", "close")), "1.0 once": head("GET", "/big.bin", version="1.0"),
    "no host": head("GET", "/", host=None), "two hosts": head("GET", "/", ("Host", "b")),
    "nonsense": b"nonsense\r\n\r\n",
    "version": b"GET / HTTP/2.0\r\n\r\n", "folded": head("GET", "/", "X: a\r\n b"), "long": b"GET /" + b"x" * 9000,
    "headers": head("GET", "/", *[f"X-{place}: y" for place in range(101)]),
    "huge": head("POST", "/echo", ("Content-Length", "999999999")),
    "lengths": head("POST", "/echo", "Content-Length: 1, 1"),
    "smuggle": head("POST", "/echo", "Content-Length: 1", CHUNKED) + b"0\r\n\r\n",
    "bad chunk": head("POST", "/echo", CHUNKED) + b"xyz\r\n", "expectation": head("POST", "/echo", ("Expect", "magic")),
    "connect": b"CONNECT test:1 HTTP/1.1\r\nHost: test:1\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
}  # fmt: skip


def add_routes(server: bb.Server) -> None:
    @server.batch("/items/{name}")
    def items(batch: bb.Batch) -> list[str]:
        return [f"{request.params} {request.query}\n" for request in batch]

    @server.batch("/echo", methods=["POST", "PUT"])
    def echo(batch: bb.Batch) -> list[bytes]:
        return [bytes(request.body) for request in batch]

    @server.batch("/json", methods=["POST"], decode=bb.Json())
    def json(batch: bb.Batch) -> list[str]:
        return [repr(request.json()) for request in batch]

    @server.batch("/array", methods=["POST"], decode=bb.Array("<f4", (2,)))
    def array(batch: bb.Batch) -> Any:
        return batch.as_array() + 1

    fixed = {
        "/large": lambda: b"z" * 70_000,
        "/bad": lambda: 7,
        "/raise": lambda: ValueError("wrong"),
        "/teapot": lambda: bb.HTTPError(418, "teapot"),
        "/nocontent": lambda: bb.Response(b"", 204),
        "/headers": lambda: bb.Response("x", 201, headers={"X-A": "b", "Location": "/"}, content_type="text/css"),
        "/kept": lambda: bb.Response("kept", cache_ttl_s=3600),
        "/kept-long": lambda: bb.Response("kept" * 300, cache_ttl_s=3600),
    }
    for path, entry in fixed.items():
        server.batch(path)(lambda batch, entry=entry: [entry() for _ in batch])


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The URLs of servers of the same root, one with each engine."""
    import logging

    for engine in ENGINES:
        require_engine(engine)
    root = make_root(tmp_path_factory.mktemp("engines"))
    for name, content in (
        ("page.html", b"<p>page</p>" * 99),
        ("page.html.gz", b"zipped" * 9),
        ("page.html.br", b"br" * 9),
    ):
        (root / name).write_bytes(content)
    logging.getLogger("batchbridge.handlers").setLevel(logging.CRITICAL)
    servers = [served(engine, root) for engine in ENGINES]
    try:
        with contextlib.ExitStack() as stack:
            for server in servers:
                stack.enter_context(running(server))
            yield {engine: server.url for engine, server in zip(ENGINES, servers, strict=True)}
    finally:
        logging.getLogger("batchbridge.handlers").setLevel(logging.NOTSET)
    # The same requests were read, and came to the same ends.
    first, *others = (server.stats() for server in servers)
    for other in others:
        assert first["requests"] == other["requests"]
        assert first["cache"]["objects"] == other["cache"]["objects"]


def served(engine: str, root: Path) -> bb.Server:
    server = make_server(engine, root=str(root), file_revalidate_s=60.0, precompressed=("br", "gzip"))
    add_routes(server)
    return server


DATE = re.compile(rb"\r\nDate: [^\r]*")
BOUNDARY = re.compile(rb"(boundary=|\r\n--)[0-9a-f]{16}")
AGE = re.compile(rb"\r\nAge: [0-9]+")


def without_chance(answer: bytes) -> bytes:
    """Without what the clock changes, and the boundaries, which are drawn."""
    return BOUNDARY.sub(rb"\1", AGE.sub(b"", DATE.sub(b"", answer)))


def answers(url: str, stream: bytes, cuts: list[int] | None = None) -> bytes:
    """All that is answered to these bytes, up to the connection's end, without what the clock changes."""
    with Client(url) as client:
        places = [0, *sorted(cut for cut in cuts or [] if cut < len(stream)), len(stream)]
        try:
            for start, end in pairwise(places):
                client.send(stream[start:end], pause_s=0.001 if len(places) > 2 else 0)
        except ConnectionError:
            pass  # refused before the last byte
        return without_chance(client.everything())


def assert_same(urls: dict[str, str], stream: bytes, cuts: list[int] | None = None) -> bytes:
    got = {engine: answers(url, stream, cuts) for engine, url in urls.items()}
    first, *others = got.values()
    assert first.startswith(b"HTTP/1.1 ")
    for other in others:
        assert other == first
    return first


@pytest.mark.parametrize("kind", REQUESTS)
def test_alone_and_again(urls: dict[str, str], kind: str) -> None:
    answer = assert_same(urls, REQUESTS[kind] * 2 + LAST)
    assert answer.endswith(b"\r\n\r\n1"), "all three were answered"
    assert_same(urls, REQUESTS[kind] + LAST, list(range(1, min(len(REQUESTS[kind]), 60))))


@pytest.mark.parametrize("kind", ENDS)
def test_what_ends_a_connection(urls: dict[str, str], kind: str) -> None:
    assert_same(urls, ENDS[kind] + LAST)
    assert_same(urls, REQUESTS["get /a.txt"] + ENDS[kind] + LAST)
    assert_same(urls, REQUESTS["get /items/a%20b?c=d"] + ENDS[kind] + LAST)


@cache
def stream_of(seed: int) -> tuple[bytes, list[int]]:
    chance = random.Random(seed)
    kinds = chance.choices(list(REQUESTS), k=chance.randrange(2, 12))
    stream = b"".join(REQUESTS[kind] for kind in kinds) + chance.choice([LAST, LAST, *ENDS.values()])
    return stream, [chance.randrange(1, len(stream)) for _ in range(chance.choice((0, 1, 3, 9)))]


@pytest.mark.parametrize("seed", range(40))
def test_pipelines_cut_anywhere(urls: dict[str, str], seed: int) -> None:
    assert_same(urls, *stream_of(seed))


@settings(max_examples=60)
@given(
    kind=st.sampled_from(sorted({**REQUESTS, **ENDS})),
    place=st.integers(0, 400),
    removed=st.integers(0, 3),
    inserted=st.binary(max_size=4),
)
def test_damaged_requests(urls: dict[str, str], kind: str, place: int, removed: int, inserted: bytes) -> None:
    whole = {**REQUESTS, **ENDS}[kind]
    place %= len(whole) + 1
    damaged = whole[:place] + inserted + whole[place + removed :]
    got = {}
    for engine, url in urls.items():
        with Client(url) as client:
            client.send(damaged + b"\r\n\r\n" + LAST)
            client.end_sending()  # what is unfinished is not waited for
            got[engine] = without_chance(client.everything())
    assert len(set(got.values())) == 1, got
