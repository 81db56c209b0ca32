"""What a handler sees of a request: each attribute, decoded where its name says so and raw where it says so; and the
header fields as a mapping.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

import batchbridge as bb
from support.loop import get, looping, make_server, post

METHODS = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]


def seen(
    request: bytes, look: Callable[[bb.Request], Any], *, path: str = "/h", address: str | None = None, **settings: Any
) -> Any:
    """What `look` finds at the request that a handler for `path` gets."""
    server = make_server(**settings)
    found: list[Any] = []
    server.batch(path, methods=METHODS)(lambda batch: [found.append(look(request)) or b"x" for request in batch])
    with looping(server) as loop:
        client = loop.connect(request, address=address)
        loop.settle()
        assert loop.output(client).startswith(b"HTTP/1.1 200 ")
    (one,) = found
    return one


# --- the request line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_method(method: str) -> None:
    assert seen(get("/h", method=method), lambda r: (r.method, repr(r))) == (method, f"<Request {method} /h>")


@pytest.mark.parametrize(
    ("target", "target_seen", "path", "raw_path", "query"),
    [
        ("/h", b"/h", "/h", b"/h", b""),
        ("/h?", b"/h?", "/h", b"/h", b""),
        ("/h?a=b%20c", b"/h?a=b%20c", "/h", b"/h", b"a=b%20c"),
        ("/h?a?b/c", b"/h?a?b/c", "/h", b"/h", b"a?b/c"),
        ("http://other/h?q", b"http://other/h?q", "/h", b"/h", b"q"),
        ("HTTP://other:80/h", b"HTTP://other:80/h", "/h", b"/h", b""),
    ],
)
def test_target_path_and_query(target: str, target_seen: bytes, path: str, raw_path: bytes, query: bytes) -> None:
    look = seen(get(target), lambda r: (r.target, r.path, r.raw_path, r.query_string))
    assert look == (target_seen, path, raw_path, query)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ("/p/a%20b", "/p/a b"),
        ("/p/%C3%BC", "/p/\u00fc"),
        ("/p/%c3%bc", "/p/\u00fc"),
        ("/p/%FF", "/p/\ufffd"),
        ("/p/a+b", "/p/a+b"),
        ("/p/%41%2f%42", "/p/A/B"),
        ("/p/%25", "/p/%"),
        ("/p/a;b=c", "/p/a;b=c"),
    ],
)
def test_path_is_decoded_and_raw_path_is_not(raw: str, path: str) -> None:
    assert seen(get(raw), lambda r: (r.path, r.raw_path), path="/p/{rest:path}") == (path, raw.encode())


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("", {}),
        ("a=1", {"a": "1"}),
        ("a=1&b=2&a=3", {"a": "3", "b": "2"}),
        ("a", {"a": ""}),
        ("a=", {"a": ""}),
        ("=1", {"": "1"}),
        ("a=b=c", {"a": "b=c"}),
        ("a+b=c+d", {"a b": "c d"}),
        ("a%3Db=%26%C3%BC", {"a=b": "&\u00fc"}),
        ("&&a=1&&", {"a": "1"}),
        ("a=%FF", {"a": "\ufffd"}),
        ("a=%zz", {"a": "%zz"}),
    ],
)
def test_query_is_decoded(query: str, fields: dict[str, str]) -> None:
    assert seen(get(f"/h?{query}"), lambda r: r.query) == fields


@pytest.mark.parametrize(
    ("path", "target", "params"),
    [
        ("/h", "/h", {}),
        ("/h/{a}", "/h/1", {"a": "1"}),
        ("/h/{a}/x/{b}", "/h/1/x/2", {"a": "1", "b": "2"}),
        ("/h/{a}", "/h/%41%2F%20+", {"a": "A/ +"}),
        ("/h/{a}", "/h/%C3%BC", {"a": "\u00fc"}),
        ("/h/{a}", "/h/%FF", {"a": "\ufffd"}),
        ("/h/{rest:path}", "/h/a/b/../c", {"rest": "a/b/../c"}),
        ("/{a}/{rest:path}", "/x/y/", {"a": "x", "rest": "y/"}),
        ("/h/{a}", "/h/1?a=2", {"a": "1"}),
        ("/" + "/".join(f"{{p{n}}}" for n in range(8)), "/0/1/2/3/4/5/6/7", {f"p{n}": f"{n}" for n in range(8)}),
    ],
)
def test_params_are_decoded_by_their_names(path: str, target: str, params: dict[str, str]) -> None:
    assert seen(get(target), lambda r: r.params, path=path) == params


@pytest.mark.parametrize(
    ("request_", "version", "authority"),
    [
        (b"GET /h HTTP/1.1\r\nHost: a.example:8080\r\n\r\n", "1.1", "a.example:8080"),
        (b"GET /h HTTP/1.0\r\nHost: a\r\n\r\n", "1.0", "a"),
        (b"GET /h HTTP/1.0\r\n\r\n", "1.0", ""),
        (b"GET http://b:1/h HTTP/1.1\r\nHost: a\r\n\r\n", "1.1", "b:1"),
        (b"GET /h HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", "1.1", "[::1]:80"),
    ],
)
def test_version_and_authority(request_: bytes, version: str, authority: str) -> None:
    assert seen(request_, lambda r: (r.http_version, r.authority)) == (version, authority)


# --- the rest ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", ("192.0.2.1", 4711)),
        ("255.255.255.255", ("255.255.255.255", 4711)),
        ("::1", ("::1", 4711)),
        ("2001:db8::5", ("2001:db8::5", 4711)),
        (None, None),
    ],
)
def test_client(address: str | None, client: Any) -> None:
    assert seen(get("/h"), lambda r: r.client, address=address) == client


@pytest.mark.parametrize("pieces", [1, 7, 100])
@pytest.mark.parametrize("size", [0, 1, 5000, 300_000])
def test_body(size: int, pieces: int) -> None:
    server = make_server()
    server.batch("/h", methods=["POST"])(lambda batch: [bytes(request.body) for request in batch])
    body = bytes(number % 253 for number in range(size))
    with looping(server) as loop:
        data = post("/h", body)
        step = -(-len(data) // pieces)
        client = loop.connect(*[data[at : at + step] for at in range(0, len(data), step)])
        loop.settle()
        assert loop.replies(client)[0].body == body


def test_state_and_route() -> None:
    server = make_server(lifespan=lambda server: iter([{"model": 1}]))
    seen: list[Any] = []

    @server.batch("/h/{a}", max_batch_size=3, vary=["accept"])
    def handler(batch: bb.Batch) -> list[str]:
        seen.append((batch.state, batch.route))
        return ["x"] * len(batch)

    with looping(server) as loop:
        loop.ask(get("/h/1"))
    ((state, route),) = seen
    assert state == {"model": 1}
    assert route is server.routes["/h/{a}"]
    assert (route.path, route.methods, route.parameters, route.vary) == ("/h/{a}", ("GET",), ("a",), ("accept",))
    assert route.policy.max_batch_size == 3


def test_nothing_can_be_set_on_what_handlers_get() -> None:
    def look(request: bb.Request) -> bool:
        for name in ("path", "body", "method", "headers", "other"):
            with pytest.raises(AttributeError):
                setattr(request, name, 1)
        return True

    assert seen(get("/h"), look)
    for kind in (bb.Batch, bb.Request):
        with pytest.raises(TypeError):
            type("Sub", (kind,), {})


# --- headers ----------------------------------------------------------------------------------------------------------


def headers_of(*lines: str) -> Any:
    return seen(get("/h", *lines), lambda r: r.headers)


def test_headers_are_a_mapping_without_regard_to_case() -> None:
    headers = headers_of("X-One: 1", "x-TWO:2", "Accept:  a, b \t")
    assert isinstance(headers, Mapping)
    assert list(headers) == ["host", "x-one", "x-two", "accept"]
    assert len(headers) == 4
    for name in ("x-one", "X-ONE", "X-One"):
        assert name in headers
        assert headers[name] == headers.get(name) == "1"
    assert dict(headers) == {"host": "test", "x-one": "1", "x-two": "2", "accept": "a, b"}
    assert list(headers.keys()) == list(headers)
    assert list(headers.values()) == ["test", "1", "2", "a, b"]
    assert list(headers.items()) == list(dict(headers).items())
    assert "X-One" in repr(headers) or "x-one" in repr(headers)


def test_headers_that_are_not_there() -> None:
    headers = headers_of()
    assert "x" not in headers
    assert 5 not in headers
    assert headers.get("x") is None
    assert headers.get("x", "default") == "default"
    assert headers.getall("x") == []
    with pytest.raises(KeyError):
        headers["x"]


def test_headers_that_come_again_are_joined_or_told_apart() -> None:
    headers = headers_of("Accept: a", "X: 1", "ACCEPT: b, c", "accept:")
    assert headers["accept"] == "a, b, c, "
    assert headers.getall("Accept") == ["a", "b, c", ""]
    headers.getall("accept").append("mine")
    assert headers.getall("accept") == ["a", "b, c", ""]
    assert len(headers) == 3


def test_headers_are_latin_1_and_without_the_space_around_them() -> None:
    headers = headers_of("X: \t \u00e4\u00f6 \t", "Y:", "Z: a\tb")
    assert (headers["x"], headers["y"], headers["z"]) == ("\u00e4\u00f6", "", "a\tb")


def test_headers_are_made_once() -> None:
    assert seen(get("/h"), lambda r: r.headers is r.headers)


def test_headers_can_be_compared_with_a_dict() -> None:
    assert headers_of("X: 1") == {"host": "test", "x": "1"}
    assert bb.Headers(b"A: 1\r\nb: 2\r\n") == {"a": "1", "b": "2"}
    assert bb.Headers(b"") == {}


def test_many_headers() -> None:
    lines = [f"X-{number}: {number}" for number in range(90)]
    headers = headers_of(*lines)
    assert len(headers) == 91
    assert all(headers[f"x-{number}"] == f"{number}" for number in range(90))


def test_what_is_asked_for_after_the_batch_is_as_it_was() -> None:
    server = make_server()
    kept: list[bb.Request] = []

    @server.batch("/h/{a}", methods=["POST"])
    def handler(batch: bb.Batch) -> list[str]:
        kept.extend(batch)
        return ["x"] * len(batch)

    with looping(server) as loop:
        for number in range(600):  # more than a slab's worth
            loop.connect(post(f"/h/{number}?q={number}", b"%d" % number, f"X: {number}"))
            if number % 7 == 0:
                loop.settle()
        loop.settle()
        for number, request in enumerate(kept):
            assert (request.params, request.query, request.headers["x"], bytes(request.body)) == (
                {"a": f"{number}"}, {"q": f"{number}"}, f"{number}", b"%d" % number,
            )  # fmt: skip
        assert len(kept) == 600
        kept.clear()
