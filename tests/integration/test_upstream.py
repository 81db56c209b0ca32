"""Requests reach the upstream, and answers the client, as a gateway passes them on; its faults are 502 and 504."""

import contextlib
import http.server
import itertools
import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

import batchbridge as bb
from support.serving import config, running
from support.wire import Client, Reply, await_true, chunked, head, together

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Mirror(http.server.BaseHTTPRequestHandler):
    """Answers each request with what it was, as JSON."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        seen = {
            "method": self.command,
            "target": self.path,
            "headers": [(name.lower(), value) for name, value in self.headers.items()],
            "body": body.decode("latin-1"),
            "connection": self.client_address[1],
        }
        content = json.dumps(seen).encode()
        self.send_response(203)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Set-Cookie", "a=1")
        self.send_header("Set-Cookie", "b=2")
        self.send_header("Keep-Alive", "timeout=5")
        self.send_header("Connection", "keep-alive, X-Mine")
        self.send_header("X-Mine", "1")
        self.send_header("X-Mirror", "1")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = do_PATCH = do_OPTIONS = do_PROPFIND = answer

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


class MirrorServer(http.server.ThreadingHTTPServer):
    request_queue_size = 128  # with 5, some of the connections that come together wait for a second and more
    daemon_threads = True


@pytest.fixture(scope="module")
def mirror() -> Iterator[str]:
    server = MirrorServer(("127.0.0.1", 0), Mirror)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@contextmanager
def frontend(upstream: str, **settings: Any) -> Iterator[bb.Server]:
    server = bb.Server(config=config("auto", upstream=upstream, **settings))
    with running(server):
        yield server


@pytest.fixture(scope="module")
def mirrored(mirror: str) -> Iterator[bb.Server]:
    with frontend(mirror) as server:
        yield server


def seen_by(server: bb.Server, *arguments: Any, **more: Any) -> dict[str, Any]:
    """What the mirror saw of a request."""
    with Client(server.url) as client:
        return seen_in(client.ask(*arguments, **more))


def seen_in(reply: Reply) -> dict[str, Any]:
    assert reply.status == 203
    seen: dict[str, Any] = json.loads(reply.body)
    return seen


def values(seen: dict[str, Any], wanted: str) -> list[str]:
    return [value for name, value in seen["headers"] if name == wanted]


class Scripted:
    """An upstream that treats each connection, by its number, as `serve` does."""

    def __init__(self, serve: Callable[[socket.socket, int], None]) -> None:
        self.serve = serve
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.connections = 0
        self.ended = threading.Event()
        self.threads = [threading.Thread(target=self.accept)]

    def accept(self) -> None:
        for number in itertools.count():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections += 1
            self.threads.append(threading.Thread(target=self.run, args=(connection, number)))
            self.threads[-1].start()

    def run(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(5.0)
            self.serve(connection, number)

    def __enter__(self) -> "Scripted":
        self.threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.listener.shutdown(socket.SHUT_RD)
        for thread in self.threads:
            thread.join()
        self.listener.close()


def read_request(connection: socket.socket) -> bytes:
    """A request's head, and its body where Content-Length tells of one; nothing: the end."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    length = re.search(rb"(?i)content-length: *(\d+)", data)
    whole = data.index(b"\r\n\r\n") + 4 + (int(length[1]) if length else 0)
    while len(data) < whole:
        data += connection.recv(65536)
    return data


def always(response: bytes) -> Callable[[socket.socket, int], None]:
    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(response)

    return serve


def once(response: bytes) -> Callable[[socket.socket, int], None]:
    """Answers one request, and closes."""

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(response)

    return serve


def answer_through(response: bytes, method: str = "GET", target: str = "/", **settings: Any) -> Reply:
    with (
        Scripted(once(response)) as upstream,
        frontend(upstream.url, **settings) as server,
        Client(server.url) as client,
    ):
        return client.ask(method, target)


# What goes to the upstream


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND"])
def test_method_target_and_body_arrive_as_they_were(mirrored, method):
    seen = seen_by(mirrored, method, "/a%20b//../c?x=%20&y", body=b"the \xff body")
    assert (seen["method"], seen["target"], seen["body"]) == (method, "/a%20b//../c?x=%20&y", "the \xff body")


@pytest.mark.parametrize(
    ("target", "sent"),
    [
        ("http://other:81/path?q", "/path?q"),
        ("http://other", "/"),
        ("http://other?q=/", "/?q=/"),
        ("/?", "/?"),
        ("//x", "//x"),
    ],
)
def test_targets_arrive_in_origin_form(mirrored, target, sent):
    seen = seen_by(mirrored, "GET", target)
    if sent == "//x":  # http.server itself shortens it
        sent = seen["target"]
    assert seen["target"] == sent
    assert values(seen, "host") == ["other:81" if "81" in target else "other" if "other" in target else "test"]


def test_the_host_is_the_one_that_the_client_asked_for(mirrored, mirror):
    assert values(seen_by(mirrored, "GET", "/", host="name.example:8080"), "host") == ["name.example:8080"]
    assert values(seen_by(mirrored, "GET", "/", version="1.0", host=None), "host") == [mirror.removeprefix("http://")]


def test_fields_of_the_clients_connection_stay_here(mirrored):
    seen = seen_by(
        mirrored, "GET", "/", ("Connection", "close, X-Mine"), ("X-Mine", "1"), ("Keep-Alive", "5"), ("TE", "trailers"),
        ("Upgrade", "x"), ("Proxy-Connection", "close"), ("Proxy-Authorization", "x"), ("X-Kept", "a"), ("X-Kept", "b"),
        ("Authorization", "Basic x"), ("Cookie", "a=b"),
    )  # fmt: skip
    names = {name for name, _ in seen["headers"]}
    assert names == {"host", "x-kept", "authorization", "cookie", "x-forwarded-for", "forwarded", "via"}
    assert values(seen, "x-kept") == ["a", "b"]


def test_the_client_is_told_behind_those_that_it_names(mirrored):
    seen = seen_by(mirrored, "GET", "/", host="h.example:81")
    assert values(seen, "x-forwarded-for") == ["127.0.0.1"]
    assert values(seen, "forwarded") == ['for=127.0.0.1;host="h.example:81";proto=http']
    assert re.fullmatch(r"1\.1 batchbridge-[0-9a-f]{8}", values(seen, "via")[0])
    seen = seen_by(
        mirrored, "GET", "/", ("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-For", "::1"), ("Forwarded", "for=x"),
        ("Via", "1.0 fred"), ("Connection", "X-Forwarded-For"),
    )  # fmt: skip
    assert values(seen, "x-forwarded-for") == ["1.2.3.4, ::1, 127.0.0.1"]
    assert values(seen, "forwarded") == ['for=x, for=127.0.0.1;host="test";proto=http']
    assert values(seen, "via")[0].startswith("1.0 fred, 1.1 batchbridge-")


def test_an_ipv6_client_is_quoted(mirror):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return
    with frontend(mirror, bind=("[::1]:0",)) as server:
        seen = seen_by(server, "GET", "/")
    assert values(seen, "x-forwarded-for") == ["::1"]
    assert values(seen, "forwarded") == ['for="[::1]";host="test";proto=http']


def test_a_chunked_body_arrives_with_its_length(mirrored):
    with Client(mirrored.url) as client:
        client.send(head("POST", "/", "Transfer-Encoding: chunked", "Trailer: X") + chunked(b"hel", b"lo"))
        seen = seen_in(client.reply("POST"))
    assert (seen["body"], values(seen, "content-length")) == ("hello", ["5"])
    assert values(seen, "transfer-encoding") == values(seen, "trailer") == []


def test_an_expectation_is_settled_here(mirrored):
    with Client(mirrored.url) as client:
        client.send(head("POST", "/", "Expect: 100-continue", "Content-Length: 5"))
        assert client.interim() == 100
        client.send(b"hello")
        seen = seen_in(client.reply("POST"))
    assert (seen["body"], values(seen, "expect")) == ("hello", [])


def test_lengths_are_told_where_a_body_is_usual(mirrored):
    assert values(seen_by(mirrored, "GET", "/"), "content-length") == []
    assert values(seen_by(mirrored, "GET", "/", body=b""), "content-length") == ["0"]
    assert values(seen_by(mirrored, "POST", "/"), "content-length") == ["0"]


@pytest.mark.parametrize(("method", "target"), [("CONNECT", "test:80"), ("TRACE", "/")])
def test_some_methods_are_not_forwarded(mirrored, method, target):
    with Client(mirrored.url) as client:
        assert client.ask(method, target).status == 501


def test_options_goes_as_far_as_it_may(mirrored):
    with Client(mirrored.url) as client:
        assert client.ask("OPTIONS", "/", ("Max-Forwards", "0")).status == 204
        assert values(seen_in(client.ask("OPTIONS", "/", ("Max-Forwards", "5"))), "max-forwards") == ["4"]
        assert values(seen_in(client.ask("GET", "/", ("Max-Forwards", "5"))), "max-forwards") == ["5"]


def test_a_request_that_goes_in_a_circle_is_stopped():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with (
        frontend(f"http://127.0.0.1:{port}", bind=(f"127.0.0.1:{port}",), upstream_timeout_s=5.0) as server,
        Client(server.url) as client,
    ):
        assert client.ask().status == 508


# What comes back


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_status_fields_and_body_come_back(mirrored, method):
    with Client(mirrored.url) as client:
        for _ in range(2):
            reply = client.ask(method, "/")
            assert reply.status == 203
            assert reply["content-type"] == "application/json"
            assert reply.all("set-cookie") == ["a=1", "b=2"]
            assert reply["server"] == "batchbridge"
            assert len(reply.all("date")) == 1
            assert int(reply["content-length"]) == len(reply.body) or (method == "HEAD" and not reply.body)
            assert {"connection", "keep-alive", "x-mine"}.isdisjoint(reply.names())


def test_head_keeps_the_length_of_what_get_would_have_got():
    assert (
        answer_through(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n", "HEAD")["content-length"] == "999999999"
    )
    assert "content-length" not in answer_through(b"HTTP/1.1 200 OK\r\n\r\n", "HEAD")


def test_responses_without_content_have_none():
    reply = answer_through(b'HTTP/1.1 304 Not Modified\r\nETag: "x"\r\nContent-Length: 5\r\n\r\n')
    assert (reply.status, reply["etag"], reply.body) == (304, '"x"', b"")
    assert "content-length" not in reply
    assert answer_through(b"HTTP/1.1 204 No Content\r\n\r\n").status == 204


@pytest.mark.parametrize(
    "response",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_whatever_delimits_a_body_it_comes_back_with_its_length(response):
    reply = answer_through(response)
    assert (reply.body, reply["content-length"], reply.interim) == (b"hello", "5", [])
    assert "transfer-encoding" not in reply
    assert "link" not in reply


def test_a_large_body_comes_through_both_ways(mirrored):
    body = bytes(range(256)) * 2000
    seen = seen_by(mirrored, "POST", "/", body=body)
    assert seen["body"].encode("latin-1") == body


def test_an_answer_that_comes_before_the_body_was_taken_is_passed_on():
    def serve(connection: socket.socket, number: int) -> None:
        connection.recv(100)
        connection.sendall(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        time.sleep(0.05)

    with Scripted(serve) as upstream, frontend(upstream.url) as server, Client(server.url) as client:
        assert client.ask("POST", "/", body=b"x" * 500_000).status == 413


# Connections


def test_connections_are_kept_and_not_too_many(mirror):
    with frontend(mirror, upstream_connections_max=3) as server:

        def call() -> set[int]:
            with Client(server.url) as client:
                return {seen_in(client.ask())["connection"] for _ in range(20)}

        used = together([call] * 8)
    assert 1 <= len(set().union(*used)) <= 3  # type: ignore[arg-type]


def test_items_of_a_batch_are_under_way_at_the_same_time():
    all_there = threading.Barrier(16, timeout=5.0)

    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            all_there.wait()
            connection.sendall(OK)

    with Scripted(serve) as upstream, frontend(upstream.url) as server, Client(server.url) as client:
        client.send(b"".join(head() for _ in range(16)))
        assert [client.reply().body for _ in range(16)] == [b"ok"] * 16


def test_each_client_gets_its_own_answers(mirrored):
    def call(number: int) -> None:
        with Client(mirrored.url) as client:
            targets = [f"/{number}/{turn}" for turn in range(25)]
            client.send(b"".join(head("GET", target) for target in targets))
            assert [seen_in(client.reply())["target"] for _ in targets] == targets

    together([lambda number=number: call(number) for number in range(6)])


@pytest.mark.parametrize(("method", "status"), [("GET", 200), ("OPTIONS", 200), ("POST", 502), ("DELETE", 502)])
def test_a_request_that_met_a_closed_connection_is_sent_again_if_that_is_safe(method, status):
    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(OK)
            if number == 0:
                read_request(connection)
                return  # without an answer

    with Scripted(serve) as upstream, frontend(upstream.url) as server, Client(server.url) as client:
        assert client.ask().status == 200
        assert client.ask(method).status == status
        assert client.ask("POST").status == 200
        assert upstream.connections == 2


def test_a_connection_that_the_upstream_closed_meanwhile_is_not_used():
    with Scripted(once(OK)) as upstream, frontend(upstream.url) as server, Client(server.url) as client:
        for _ in range(3):
            assert client.ask("POST").status == 200
            time.sleep(0.02)
        assert upstream.connections == 3


def test_an_answer_that_was_not_asked_for_is_given_to_nobody():
    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            connection.sendall(OK + b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")

    with Scripted(serve) as upstream, frontend(upstream.url) as server, Client(server.url) as client:
        assert [client.ask().body for _ in range(3)] == [b"ok"] * 3


# What goes wrong


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"garbage\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Le",
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxy",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 3000000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 3_000_000,
        b"HTTP/1.1 200 OK\r\n" + b"X-Many: y\r\n" * 2000 + b"Content-Length: 0\r\n\r\n",
    ],
)
def test_no_usable_answer_is_502(response):
    assert answer_through(response, response_size_bytes_max=1 << 20).status == 502


def test_a_refused_connection_is_502_and_logged_once(caplog):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with frontend(f"http://{address}") as server, Client(server.url) as client:
        for _ in range(5):
            reply = client.ask()
            assert reply.status == 502
            assert address.encode() not in reply.body
    assert caplog.text.count(f"the upstream {address} cannot be reached") == 1


def test_a_reset_is_502():
    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\nhalf")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    with Scripted(serve) as upstream, frontend(upstream.url) as server, Client(server.url) as client:
        assert client.ask().status == 502


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel"])
def test_an_answer_that_does_not_come_in_time_is_504(begun):
    def serve(connection: socket.socket, number: int) -> None:
        request = read_request(connection)
        if b"/slow" in request:
            connection.sendall(begun)
            connection.recv(1)  # until the other side gives up
        else:
            connection.sendall(OK)

    with (
        Scripted(serve) as upstream,
        frontend(upstream.url, upstream_timeout_s=0.4) as server,
        Client(server.url) as client,
    ):
        client.send(head("GET", "/slow") + head("GET", "/quick"))
        assert [client.reply().status for _ in range(2)] == [504, 200]


def test_a_wait_for_a_connection_that_takes_too_long_is_504_and_the_place_is_free_again():
    release = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        while read_request(connection):
            release.wait(5.0)
            connection.sendall(OK)

    with (
        Scripted(serve) as upstream,
        frontend(upstream.url, upstream_timeout_s=0.4, upstream_connections_max=1) as server,
        Client(server.url) as one,
        Client(server.url) as other,
    ):
        one.send(head())
        other.send(head())
        assert (one.reply().status, other.reply().status) == (504, 504)
        release.set()
        assert one.ask().status == 200


def test_a_hanging_upstream_does_not_stop_the_servers_own_routes():
    server_ended = threading.Event()

    def serve(connection: socket.socket, number: int) -> None:
        read_request(connection)
        server_ended.wait(5.0)

    with Scripted(serve) as upstream:
        server = bb.Server(
            config=config("auto", upstream=upstream.url, drain_timeout_s=0.1, upstream_connections_max=4)
        )

        @server.batch("/own")
        def own(batch: bb.Batch) -> list[str]:
            return ["own"] * len(batch)

        with server.running(), contextlib.ExitStack() as stack:
            waiting = [stack.enter_context(Client(server.url)) for _ in range(60)]
            for client in waiting:
                client.send(head())
            await_true(lambda: upstream.connections == 4)
            with Client(server.url) as client:
                assert client.ask("GET", "/own").body == b"own"
            server_ended.set()


def test_forwarded_requests_are_told_in_the_figures(mirror):
    with frontend(mirror) as server:
        seen_by(server, "GET", "/")
        await_true(lambda: server.stats()["requests"]["outcomes"]["remote"] == 1)


def test_it_works_without_a_socket_on_our_side(mirror):
    server = bb.Server(config=config("auto", upstream=mirror))
    with server.test_client() as client:
        assert client.get("/x").json()["target"] == "/x"
        assert client.post("/y", b"body").json()["body"] == "body"
