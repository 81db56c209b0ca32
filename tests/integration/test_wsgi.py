"""A WSGI application sees what PEP 3333 promises, and what it does wrong costs only the request that it did it for."""

import importlib.util
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from wsgiref.validate import validator

import pytest

import batchbridge as bb
from support.serving import config, running
from support.skips import skip_if
from support.wire import Client, Reply, await_true, chunked, head, together

Application = Callable[[Any, Any], Any]


@contextmanager
def serving(application: Application, **settings: Any) -> Iterator[bb.Server]:
    server = bb.Server(wsgi=application, config=config("auto", **settings))
    with running(server):
        yield server


def answer_of(application: Application, method: str = "GET", target: str = "/", *headers: Any, **more: Any) -> Reply:
    with serving(application) as server, Client(server.url) as client:
        return client.ask(method, target, *headers, **more)


def environ_of(method: str = "GET", target: str = "/", *headers: Any, **more: Any) -> dict[str, Any]:
    """The environment that an application sees, under the eyes of the standard library's validator."""
    seen: dict[str, Any] = {}

    def application(environ: Any, start_response: Any) -> list[bytes]:
        # The validator takes two arguments, and wants read() to have one.
        seen.update(environ, body=environ["wsgi.input"].read(1 << 20))
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"ok"]

    reply = answer_of(validator(application), method, target, *headers, **more)  # type: ignore[arg-type]
    assert (reply.status, reply.body) == (200, b"" if method == "HEAD" else b"ok")
    return seen


def plain(body: bytes = b"ok", status: str = "200 OK", *headers: tuple[str, str]) -> Application:
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response(status, [("Content-Type", "text/plain"), *headers])
        return [body]

    return application


# The environment


def test_the_request_line_becomes_variables():
    environ = environ_of("GET", "/a%20b/%C3%BC%2F?x=%20y&z")
    assert environ["REQUEST_METHOD"] == "GET"
    assert environ["SCRIPT_NAME"] == ""
    assert environ["PATH_INFO"].encode("latin-1").decode() == "/a b/ü/"
    assert environ["QUERY_STRING"] == "x=%20y&z"
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.1"
    assert environ["wsgi.url_scheme"] == "http"
    assert environ["wsgi.version"] == (1, 0)
    assert environ["body"] == b""
    assert "CONTENT_LENGTH" not in environ
    assert "CONTENT_TYPE" not in environ


def test_header_fields_become_variables():
    environ = environ_of(
        "GET",
        "/",
        ("X-One", "1"),
        ("X-Two", "a"),
        ("X-Two", "b"),
        ("Cookie", "c=1"),
        ("Cookie", "d=2"),
        ("X-L", "\xe9"),
    )
    assert environ["HTTP_HOST"] == "test"
    assert environ["HTTP_X_ONE"] == "1"
    assert environ["HTTP_X_TWO"] == "a, b"
    assert environ["HTTP_COOKIE"] == "c=1; d=2"
    assert environ["HTTP_X_L"] == "\xe9"


def test_fields_that_would_be_taken_for_others_are_dropped():
    environ = environ_of("GET", "/", ("X_Real_Ip", "6.6.6.6"), ("Proxy", "http://evil"))
    assert "HTTP_X_REAL_IP" not in environ
    assert "HTTP_PROXY" not in environ


def test_an_absolute_target_names_the_host():
    environ = environ_of("GET", "http://other:81/path?q")
    assert (environ["HTTP_HOST"], environ["PATH_INFO"], environ["QUERY_STRING"]) == ("other:81", "/path", "q")


def test_an_old_client_has_no_host():
    environ = environ_of("GET", "/", version="1.0", host=None)
    assert environ["SERVER_PROTOCOL"] == "HTTP/1.0"
    assert "HTTP_HOST" not in environ


def test_the_addresses_are_told():
    seen: dict[str, Any] = {}

    def application(environ: Any, start_response: Any) -> Any:
        seen.update(environ)
        return plain()(environ, start_response)

    with serving(application) as server, Client(server.url) as client:
        client.ask()
        assert f"http://{seen['SERVER_NAME']}:{seen['SERVER_PORT']}" == server.url
        assert (seen["REMOTE_ADDR"], int(seen["REMOTE_PORT"])) == client.socket.getsockname()


def test_a_body_is_read_and_its_length_told():
    environ = environ_of("POST", "/", ("Content-Type", "text/x"), body=b"the body")
    assert environ["body"] == b"the body"
    assert environ["CONTENT_LENGTH"] == "8"
    assert environ["CONTENT_TYPE"] == "text/x"
    assert "HTTP_CONTENT_LENGTH" not in environ
    assert environ_of("PUT", "/", body=b"")["CONTENT_LENGTH"] == "0"


def test_a_chunked_body_has_a_length_too():
    def application(environ: Any, start_response: Any) -> list[bytes]:
        assert "HTTP_TRANSFER_ENCODING" not in environ
        start_response("200 OK", [])
        return [environ["CONTENT_LENGTH"].encode(), environ["wsgi.input"].read(), environ["wsgi.input"].read(1)]

    with serving(application) as server, Client(server.url) as client:
        client.send(head("POST", "/", "Transfer-Encoding: chunked") + chunked(b"hel", b"lo"))
        assert client.reply("POST").body == b"5hello"


def test_threads_are_told():
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [str(environ["wsgi.multithread"]).encode()]

    for threads, told in ((0, b"False"), (1, b"False"), (2, b"True")):
        with serving(application, handler_threads=threads) as server, Client(server.url) as client:
            assert client.ask().body == told


# Responses


def test_status_and_fields_come_through_as_they_are():
    reply = answer_of(plain(b"x", "418 Short and stout", ("Set-Cookie", "a=1"), ("Set-Cookie", "b=2"), ("X-L", "\xe9")))
    assert (reply.status, reply.body) == (418, b"x")
    assert reply.all("set-cookie") == ["a=1", "b=2"]
    assert reply["x-l"] == "\xe9"
    assert reply["content-type"] == "text/plain"


def test_no_type_is_made_up():
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [b"x"]

    assert "content-type" not in answer_of(application)


def test_fields_of_the_connection_are_the_engines():
    theirs = [
        ("Content-Length", "2"), ("Connection", "close, X-Mine"), ("Transfer-Encoding", "chunked"), ("Date", "now"),
        ("Server", "theirs"), ("Keep-Alive", "1"), ("Upgrade", "x"), ("Trailer", "x"), ("X-Mine", "1"), ("X-Kept", "1"),
    ]  # fmt: skip
    with serving(plain(b"ok", "200 OK", *theirs)) as server, Client(server.url) as client:
        for _ in range(2):  # the connection is kept
            reply = client.ask()
            assert sorted(reply.names()) == ["content-length", "content-type", "date", "server", "x-kept"]
            assert reply["server"] == "batchbridge"


def test_pieces_are_put_together_from_write_and_iteration():
    def application(environ: Any, start_response: Any) -> Iterator[bytes]:
        write = start_response("200 OK", [])
        write(b"a")
        write(b"")
        yield b"b"
        yield b""
        yield b"c"

    assert answer_of(application).body == b"abc"


def test_what_is_iterated_is_closed_whatever_happens():
    class Pieces:
        closed = 0

        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def __iter__(self) -> Iterator[bytes]:
            yield b"x"
            if self.fails:
                raise RuntimeError("in the middle")

        def close(self) -> None:
            Pieces.closed += 1

    def application(environ: Any, start_response: Any) -> Pieces:
        start_response("200 OK", [])
        return Pieces(environ["PATH_INFO"] == "/fails")

    with serving(application) as server, Client(server.url) as client:
        assert client.ask("GET", "/").status == 200
        assert Pieces.closed == 1
        assert client.ask("GET", "/fails").status == 500
        assert Pieces.closed == 2


@pytest.mark.parametrize(
    ("body", "length", "told"), [(b"", "500", "500"), (b"hello", "5", "5"), (b"hello", None, "5"), (b"", None, None)]
)
def test_head_gets_the_length_that_the_application_tells(body, length, told):
    reply = answer_of(plain(body, "200 OK", *([("Content-Length", length)] if length else [])), "HEAD")
    assert reply.all("content-length") == ([told] if told else [])


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_some_responses_have_no_body(status):
    with serving(plain(b"", status, ("Content-Length", "0"), ("ETag", '"x"'))) as server, Client(server.url) as client:
        for _ in range(2):
            reply = client.ask()
            assert reply.status == int(status[:3])
            assert "content-length" not in reply
            assert reply["etag"] == '"x"'


def test_headers_can_be_replaced_before_the_body_begins_and_not_after(caplog):
    def application(environ: Any, start_response: Any) -> Iterator[bytes]:
        start_response("200 OK", [("X-First", "1")])
        if environ["PATH_INFO"] == "/late":
            yield b"begun"
        try:
            raise KeyError("trouble")
        except KeyError:
            import sys

            start_response("503 Trouble", [("X-Second", "1")], sys.exc_info())
        yield b"sorry"

    with serving(application) as server, Client(server.url) as client:
        reply = client.ask("GET", "/early")
        assert (reply.status, reply.body) == (503, b"sorry")
        assert "x-first" not in reply and "x-second" in reply
        assert client.ask("GET", "/late").status == 500
    assert "KeyError: 'trouble'" in caplog.text


# Failures


def twice(environ: Any, start_response: Any) -> list[bytes]:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return []


def exits(environ: Any, start_response: Any) -> list[bytes]:
    raise SystemExit(1)


def raises(environ: Any, start_response: Any) -> list[bytes]:
    raise RuntimeError("on purpose")


def too_large(environ: Any, start_response: Any) -> Iterator[bytes]:
    start_response("200 OK", [])
    while True:
        yield b"x" * 65536


@pytest.mark.parametrize(
    ("application", "reason"),
    [
        (raises, "on purpose"),
        (exits, "exit()"),
        (twice, "a second time"),
        (too_large, "larger than response_size_bytes_max"),
        (lambda environ, start_response: [b"x"], "before it called start_response"),
        (lambda environ, start_response: [], "without calling start_response"),
        (lambda environ, start_response: None, "NoneType"),
        (plain("text"), "is str, not bytes"),  # type: ignore[arg-type]
        (plain(b"x", "OK"), "is not a status"),
        (plain(b"x", "200OK"), "is not a status"),
        (plain(b"x", "100 Continue"), "not a final status"),
        (plain(b"x", "200 OK", ("X-Bad", "a\r\nX-Injected: b")), "line end"),
        (plain(b"x", "200 OK", ("X Bad", "a")), "not a header name"),
        (plain(b"x", "200 OK", ("Content-Length", "2")), "Content-Length is 2"),
        (plain(b"x", "200 OK", ("Content-Length", "x")), "no number"),
    ],
)
def test_what_goes_wrong_is_500_and_told_in_the_log(application, reason, caplog):
    def mostly_good(environ: Any, start_response: Any) -> Any:
        return (application if environ["PATH_INFO"] == "/bad" else plain())(environ, start_response)

    with (
        caplog.at_level(logging.ERROR),
        serving(mostly_good, response_size_bytes_max=1 << 20) as server,
        Client(server.url) as client,
    ):
        client.send(*(head("GET", target) for target in ("/", "/bad", "/")))
        assert [reply.status for reply in client.replies("GET", "GET", "GET")] == [200, 500, 200]
    assert reason in caplog.text


def test_two_threads_run_two_requests_at_the_same_time():
    both = threading.Barrier(2, timeout=5.0)

    def application(environ: Any, start_response: Any) -> Any:
        both.wait()
        return plain()(environ, start_response)

    with (
        serving(application, handler_threads=2) as server,
        Client(server.url) as first,
        Client(server.url) as second,
    ):
        # Sent together, they may be one batch, of which one thread takes the items one after another.
        first.send(head())
        await_true(lambda: both.n_waiting == 1)
        second.send(head())
        assert (first.reply().status, second.reply().status) == (200, 200)


def test_many_at_once_each_get_their_own():
    def application(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode("latin-1")]

    with serving(application, handler_threads=2) as server:

        def call(number: int) -> None:
            with Client(server.url) as client:
                targets = [f"/{number}/{turn}" for turn in range(50)]
                client.send(b"".join(head("GET", target) for target in targets))
                assert [client.reply().body.decode() for _ in targets] == targets

        together([lambda number=number: call(number) for number in range(8)])


@skip_if(importlib.util.find_spec("flask") is None, "no-flask", "Flask is not installed")
def test_flask():
    import flask

    application = flask.Flask("test")

    @application.route("/hello/<name>", methods=["GET", "POST"])
    def hello(name: str) -> Any:
        flask.session["seen"] = name
        return {"name": name, "form": flask.request.form.to_dict(), "url": flask.request.url}

    @application.route("/stream")
    def stream() -> Any:
        return flask.Response((f"{number}\n" for number in range(3)), mimetype="text/plain")

    application.secret_key = "test"
    with serving(application, handler_threads=2) as server, Client(server.url) as client:
        reply = client.ask("GET", "/hello/%C3%BC?x=1")
        assert reply.status == 200
        assert flask.json.loads(reply.body) == {"name": "ü", "form": {}, "url": "http://test/hello/ü?x=1"}
        assert reply["set-cookie"].startswith("session=")
        form = ("Content-Type", "application/x-www-form-urlencoded")
        assert flask.json.loads(client.ask("POST", "/hello/x", form, body=b"a=b").body)["form"] == {"a": "b"}
        client.send(head("POST", "/hello/x", form, "Transfer-Encoding: chunked") + chunked(b"a=", b"b"))
        assert flask.json.loads(client.reply("POST").body)["form"] == {"a": "b"}
        assert client.ask("GET", "/stream").body == b"0\n1\n2\n"
        assert client.ask("GET", "/missing").status == 404
        assert client.ask("PUT", "/hello/x", body=b"").status == 405
        page = client.ask("GET", "/hello/x")
        assert client.ask("HEAD", "/hello/x")["content-length"] == page["content-length"]
