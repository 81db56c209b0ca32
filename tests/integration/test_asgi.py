"""An ASGI application sees what ASGI 3 promises, all items of a batch at once, and its faults cost one request each."""

import asyncio
import importlib.util
import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import batchbridge as bb
from batchbridge import asgi
from support.serving import config, running
from support.skips import skip_if
from support.wire import Client, Reply, await_true, chunked, head, together

Application = Callable[[Any, Any, Any], Awaitable[None]]


@contextmanager
def serving(application: Application, **settings: Any) -> Iterator[bb.Server]:
    server = bb.Server(asgi=application, config=config("auto", **settings))
    with running(server):
        yield server


def http_only(application: Application) -> Application:
    """The application, which does not speak the lifespan protocol."""

    async def checked(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        await application(scope, receive, send)

    return checked


async def respond(send: Any, body: bytes = b"ok", status: int = 200, headers: Any = ()) -> None:
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def plain(body: bytes = b"ok", status: int = 200, headers: Any = ()) -> Application:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, body, status, headers)

    return http_only(application)


def answer_of(application: Application, method: str = "GET", target: str = "/", *headers: Any, **more: Any) -> Reply:
    with serving(application) as server, Client(server.url) as client:
        return client.ask(method, target, *headers, **more)


def scope_of(method: str = "GET", target: str = "/", *headers: Any, **more: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope, received=await receive())
        await respond(send)

    assert answer_of(http_only(application), method, target, *headers, **more).status == 200
    return seen


# The scope


def test_the_request_becomes_a_scope():
    scope = scope_of("GET", "/a%20b/%C3%BC?x=%20y", ("X-Two", "a"), ("X-TWO", "b"), ("X-L", "\xe9"))
    assert scope["asgi"] == {"version": "3.0", "spec_version": "2.4"}
    assert (scope["method"], scope["http_version"], scope["scheme"]) == ("GET", "1.1", "http")
    assert (scope["path"], scope["raw_path"]) == ("/a b/ü", b"/a%20b/%C3%BC")
    assert (scope["query_string"], scope["root_path"]) == (b"x=%20y", "")
    assert scope["headers"] == [(b"host", b"test"), (b"x-two", b"a"), (b"x-two", b"b"), (b"x-l", b"\xe9")]
    assert scope["received"] == {"type": "http.request", "body": b"", "more_body": False}


def test_an_absolute_target_names_the_host():
    scope = scope_of("GET", "http://other:81/path?q")
    assert scope["headers"] == [(b"host", b"other:81")]
    assert (scope["path"], scope["query_string"]) == ("/path", b"q")


def test_the_addresses_are_told():
    seen: dict[str, Any] = {}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope)
        await respond(send)

    with serving(http_only(application)) as server, Client(server.url) as client:
        client.ask()
        assert "http://{}:{}".format(*seen["server"]) == server.url
        assert tuple(seen["client"]) == client.socket.getsockname()


def test_the_body_comes_at_once_whatever_its_coding():
    assert scope_of("POST", "/", body=b"the body")["received"]["body"] == b"the body"

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, (await receive())["body"])

    with serving(http_only(application)) as server, Client(server.url) as client:
        client.send(head("POST", "/", "Transfer-Encoding: chunked") + chunked(b"hel", b"lo"))
        assert client.reply("POST").body == b"hello"


# Responses


def test_status_and_fields_come_through_and_those_of_the_connection_do_not():
    theirs = [
        (b"content-length", b"2"), (b"connection", b"close"), (b"transfer-encoding", b"chunked"), (b"date", b"now"),
        (b"server", b"theirs"), (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2"), (b"x-l", b"\xe9"),
    ]  # fmt: skip
    with serving(plain(b"ok", 418, theirs)) as server, Client(server.url) as client:
        for _ in range(2):
            reply = client.ask()
            assert (reply.status, reply.body) == (418, b"ok")
            assert reply.all("set-cookie") == ["a=1", "b=2"]
            assert sorted(reply.names()) == ["content-length", "date", "server", "set-cookie", "set-cookie", "x-l"]


def test_pieces_are_collected():
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        for piece in (b"a", b"", b"b"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(0)
        await send({"type": "http.response.body"})

    assert answer_of(http_only(application)).body == b"ab"


def test_head_gets_the_length_that_the_application_tells():
    assert answer_of(plain(b"", 200, [(b"content-length", b"500")]), "HEAD")["content-length"] == "500"
    assert answer_of(plain(b"hello"), "HEAD")["content-length"] == "5"
    assert "content-length" not in answer_of(plain(b""), "HEAD")


def test_what_is_done_after_the_response_keeps_nobody_waiting():
    done, release = threading.Event(), threading.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)
        await asyncio.to_thread(release.wait, 5.0)
        done.set()

    with serving(http_only(application)) as server, Client(server.url) as client:
        assert client.ask().status == 200
        assert client.ask().status == 200
        assert not done.is_set()
        release.set()
        assert done.wait(5.0)


# Concurrency


def test_requests_run_at_the_same_time():
    running_now: set[str] = set()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        running_now.add(scope["path"])
        while len(running_now) < 20:
            await asyncio.sleep(0.001)
        await respond(send, scope["path"].encode())

    with serving(http_only(application)) as server:

        def call(number: int) -> None:
            with Client(server.url) as client:
                assert client.ask("GET", f"/{number}").body == b"/%d" % number

        together([lambda number=number: call(number) for number in range(20)])


def test_pipelined_requests_are_answered_in_order():
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep((10 - int(scope["path"][1:])) * 0.002)  # the last is ready first
        await respond(send, scope["path"].encode())

    with serving(http_only(application)) as server, Client(server.url) as client:
        client.send(b"".join(head("GET", f"/{number}") for number in range(10)))
        assert [client.reply().body for _ in range(10)] == [b"/%d" % number for number in range(10)]


def test_a_slow_request_does_not_hold_back_a_quick_one_of_another_connection():
    release = threading.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await asyncio.to_thread(release.wait, 5.0)
        await respond(send, scope["path"].encode())

    with serving(http_only(application)) as server, Client(server.url) as slow, Client(server.url) as quick:
        slow.send(head("GET", "/slow"))
        for _ in range(3):
            assert quick.ask("GET", "/quick").body == b"/quick"
        assert slow.is_silent(0.01)
        release.set()
        assert slow.reply().body == b"/slow"


def test_a_client_that_goes_is_told():
    told: list[Any] = []
    begun = threading.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        told.append(await receive())
        begun.set()
        told.append(await receive())
        try:
            await respond(send)
        except OSError as error:
            told.append(error)

    with serving(http_only(application)) as server:
        with Client(server.url) as client:
            client.send(head())
            assert begun.wait(5.0)
            client.reset()
        await_true(lambda: len(told) == 3)
    assert told[1] == {"type": "http.disconnect"}


def test_after_the_response_receive_tells_that_it_is_over():
    told: list[Any] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        listening = asyncio.create_task(receive())
        await asyncio.sleep(0.01)
        await respond(send)
        told.append(await listening)

    assert answer_of(http_only(application)).status == 200
    assert told == [{"type": "http.disconnect"}]


# Failures


async def raises(scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("on purpose")


async def exits(scope: Any, receive: Any, send: Any) -> None:
    raise SystemExit(1)


async def cancels(scope: Any, receive: Any, send: Any) -> None:
    raise asyncio.CancelledError


async def silent(scope: Any, receive: Any, send: Any) -> None:
    pass


async def half(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"x", "more_body": True})


async def without_start(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.body", "body": b"x"})


async def two_starts(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.start", "status": 200})


async def endless(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})


@pytest.mark.parametrize(
    ("application", "reason"),
    [
        (raises, "on purpose"),
        (exits, "exit()"),
        (cancels, "cancelled itself"),
        (silent, "without a whole response"),
        (half, "without a whole response"),
        (without_start, "before the start"),
        (two_starts, "after the start"),
        (endless, "larger than response_size_bytes_max"),
        (plain(b"x", 100), "not a final status"),
        (plain(b"x", 200, [(b"x-bad", b"a\r\nx-injected: b")]), "line end"),
        (plain(b"x", 200, [(b"content-length", b"2")]), "Content-Length is 2"),
        (plain(b"x", 200, [("x-text", "text")]), "string argument"),
    ],
)
def test_what_goes_wrong_is_500_for_that_item_alone(application, reason, caplog):
    async def mostly_good(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/bad":
            await application(scope, receive, send)
        else:
            await asyncio.sleep(0.005)
            await respond(send)

    with (
        caplog.at_level(logging.ERROR),
        serving(http_only(mostly_good), response_size_bytes_max=1 << 20) as server,
        Client(server.url) as client,
    ):
        client.send(b"".join(head("GET", target) for target in ("/", "/bad", "/")))
        assert [reply.status for reply in client.replies("GET", "GET", "GET")] == [200, 500, 200]
    assert reason in caplog.text


def test_what_goes_wrong_after_the_response_is_only_logged(caplog):
    async def application(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)
        if scope["path"] == "/twice":
            await respond(send)
        raise RuntimeError("afterwards")

    with serving(http_only(application)) as server, Client(server.url) as client:
        assert client.ask().status == 200
        assert client.ask("GET", "/twice").status == 200
    assert "afterwards" in caplog.text
    assert "after the response's end" in caplog.text


# The lifespan


class Spoken:
    """An application that speaks the lifespan protocol, and tells what it was told."""

    def __init__(self, startup: str = "complete", shutdown: str = "complete", message: str = "") -> None:
        self.told: list[Any] = []
        self.kinds = {"lifespan.startup": startup, "lifespan.shutdown": shutdown}
        self.message = message

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.told.append((scope["type"], threading.get_ident(), asyncio.get_running_loop()))
        if scope["type"] == "http":
            scope["state"]["mine"] = 1
            await respond(send, scope["state"]["greeting"].encode())
            return
        scope["state"]["greeting"] = "hello"
        for kind, answer in self.kinds.items():
            message = await receive()
            assert message == {"type": kind}
            self.told.append(kind)
            if answer == "raise":
                raise RuntimeError(f"{kind} raised")
            if answer == "hang":
                await asyncio.Event().wait()
            await send({"type": f"{kind}.{answer}", "message": self.message})
        assert "mine" not in scope["state"]


def test_the_lifespan_runs_once_in_each_handler_thread():
    application = Spoken()
    with serving(application, handler_threads=2) as server:
        assert application.told.count("lifespan.startup") == 2
        with Client(server.url) as client:
            assert [client.ask().body for _ in range(3)] == [b"hello"] * 3
        assert "lifespan.shutdown" not in application.told
    assert application.told.count("lifespan.shutdown") == 2
    spans = {entry[1:] for entry in application.told if entry[0] == "lifespan"}
    assert len(spans) == 2
    assert {entry[1:] for entry in application.told if entry[0] == "http"} <= spans


def test_an_application_that_cannot_start_keeps_the_server_from_starting(caplog):
    application = Spoken(startup="failed", message="Traceback:\n  no database\nValueError: no such host\n")
    server = bb.Server(asgi=application, config=config("auto"))
    with pytest.raises(bb.AppError, match=r"^the ASGI application cannot start: ValueError: no such host$"):
        server.start()
    assert "no database" in caplog.text
    application.kinds["lifespan.startup"] = "complete"
    with server.running(), Client(server.url) as client:
        assert client.ask().status == 200


@pytest.mark.parametrize("shutdown", ["failed", "raise", "hang"])
def test_a_shutdown_that_fails_is_logged_and_not_waited_for(shutdown, caplog, monkeypatch):
    monkeypatch.setattr(asgi, "SHUTDOWN_TIMEOUT_S", 0.1)
    with serving(Spoken(shutdown=shutdown, message="could not save")) as server, Client(server.url) as client:
        assert client.ask().status == 200
    assert any(text in caplog.text for text in ("could not save", "raised", "did not shut down"))


def test_an_application_that_never_ends_is_cancelled_when_the_server_has_stopped(monkeypatch):
    monkeypatch.setattr("batchbridge.handlers.CLOSING_PATIENCE_S", 0.1)
    begun, ended = threading.Event(), threading.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    server = bb.Server(asgi=http_only(application), config=config("auto", drain_timeout_s=0.1))
    with server.running(), Client(server.url) as client:
        client.send(head())
        assert begun.wait(5.0)
    assert ended.is_set()
    assert not any(thread.name.startswith("batchbridge-handler") for thread in threading.enumerate())


# Frameworks


@skip_if(importlib.util.find_spec("starlette") is None, "no-starlette", "Starlette is not installed")
def test_starlette():
    import contextlib

    from starlette.applications import Starlette
    from starlette.background import BackgroundTask
    from starlette.requests import Request
    from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
    from starlette.routing import Route

    ran = threading.Event()

    async def echo(request: Request) -> JSONResponse:
        body = (await request.body()).decode()
        answer = {"url": str(request.url), "body": body, "greeting": request.state.greeting}
        return JSONResponse(answer, background=BackgroundTask(ran.set))

    async def stream(request: Request) -> StreamingResponse:
        async def pieces() -> Any:
            for number in range(3):
                yield f"{number}\n"
                await asyncio.sleep(0)

        return StreamingResponse(pieces(), media_type="text/plain")

    def in_thread(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.path_params["name"])

    async def fails(request: Request) -> PlainTextResponse:
        raise RuntimeError("on purpose")

    @contextlib.asynccontextmanager
    async def lifespan(application: Starlette) -> Any:
        yield {"greeting": "hello"}

    routes = [
        Route("/echo", echo, methods=["GET", "POST"]),
        Route("/stream", stream),
        Route("/thread/{name}", in_thread),
        Route("/fails", fails),
    ]
    with serving(Starlette(routes=routes, lifespan=lifespan)) as server, Client(server.url) as client:
        reply = client.ask("POST", "/echo?x=1", body=b"hi")
        assert reply.body == b'{"url":"http://test/echo?x=1","body":"hi","greeting":"hello"}'
        assert reply["content-type"] == "application/json"
        assert ran.wait(5.0)
        assert client.ask("GET", "/stream").body == b"0\n1\n2\n"
        assert client.ask("GET", "/thread/%C3%BC").body == "ü".encode()
        assert client.ask("GET", "/missing").status == 404
        assert client.ask("DELETE", "/echo").status == 405
        assert client.ask("GET", "/fails").status == 500
        page = client.ask("GET", "/echo")
        assert client.ask("HEAD", "/echo")["content-length"] == page["content-length"]
