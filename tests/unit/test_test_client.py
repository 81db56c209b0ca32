"""The test client calls a server's whole path without a socket: each of its ways to ask, what its responses offer, that
what is sent together makes one batch, and that it leaves nothing behind.
"""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from batchbridge.testing import TestClient, TestResponse


@pytest.fixture
def server() -> bb.Server:
    server = bb.Server()

    @server.batch("/echo", methods=["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
    def echo(batch: bb.Batch) -> list[bb.Response]:
        return [
            bb.Response(
                json.dumps([request.method, bytes(request.body).decode(), dict(request.headers), len(batch)]),
                content_type="application/json",
                headers={"X-Echo": "1"},
            )
            for request in batch
        ]

    return server


@pytest.fixture
def client(server: bb.Server) -> Iterator[TestClient]:
    with server.test_client() as client:
        yield client


def test_get(client: TestClient) -> None:
    response = client.get("/echo?x", headers={"X-One": "1"})
    assert isinstance(response, TestResponse)
    assert response.status == 200
    assert response.json() == ["GET", "", {"host": "test", "x-one": "1"}, 1]
    assert response.text == response.body.decode()
    assert response.headers["x-echo"] == response.headers["X-ECHO"] == "1"
    assert response.raw.startswith(b"HTTP/1.1 200 OK\r\n")
    assert response.raw.endswith(b"\r\n\r\n" + response.body)


def test_head(client: TestClient) -> None:
    response = client.head("/echo")
    assert (response.status, response.body) == (200, b"")
    assert int(response.headers["content-length"]) > 0


@pytest.mark.parametrize("method", ["post", "put"])
def test_post_and_put(client: TestClient, method: str) -> None:
    ask = getattr(client, method)
    name = method.upper()
    assert ask("/echo").json()[:3] == [name, "", {"host": "test", "content-length": "0"}]
    assert ask("/echo", b"body").json()[:3] == [name, "body", {"host": "test", "content-length": "4"}]
    kind, body, headers, _ = ask("/echo", json={"a": [1, "\u00e4"]}).json()
    assert (kind, json.loads(body)) == (name, {"a": [1, "\u00e4"]})
    assert headers["content-type"] == "application/json"
    _, _, headers, _ = ask("/echo", json=1, headers={"Content-Type": "application/x+json", "X": "y"}).json()
    assert (headers["content-type"], headers["x"]) == ("application/x+json", "y")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_request(client: TestClient, method: str) -> None:
    assert client.request(method, "/echo", body=b"x", headers={"A": "b"}).json()[:2] == [method, "x"]


@pytest.mark.parametrize(
    ("headers", "body", "seen"),
    [
        ({"Host": "mine"}, b"", {"host": "mine"}),
        ({"host": "mine"}, b"", {"host": "mine"}),
        ({"content-length": "3"}, b"abc", {"content-length": "3"}),
        ({"Transfer-Encoding": "chunked"}, b"3\r\nabc\r\n0\r\n\r\n", {"transfer-encoding": "chunked"}),
        ({"X": "\u00e4"}, b"abc", {"x": "\u00e4"}),
    ],
)
def test_headers_that_are_given_are_sent_as_given(
    client: TestClient, headers: dict[str, str], body: bytes, seen: dict[str, str]
) -> None:
    response = client.post("/echo", body, headers=headers)
    assert response.status == 200
    assert seen.items() <= response.json()[2].items()


def test_what_is_sent_together_is_one_batch(client: TestClient) -> None:
    responses = client.batch(
        [
            "/echo",
            ("GET", "/echo"),
            ("POST", "/echo", b"three"),
            ("PUT", "/echo", b"four", {"X": "4"}),
            ("HEAD", "/echo"),
            "/nothing",
        ]
    )
    assert [response.status for response in responses] == [200] * 5 + [404]
    assert [response.json()[:2] for response in responses[:4]] == [
        ["GET", ""],
        ["GET", ""],
        ["POST", "three"],
        ["PUT", "four"],
    ]
    assert {response.json()[3] for response in responses[:4]} == {5}
    assert responses[3].json()[2]["x"] == "4"
    assert client.batch([]) == []


def test_errors_are_responses_too(client: TestClient) -> None:
    assert client.get("/nothing").status == 404
    assert client.request("TRACE", "/echo").status in (405, 501)
    assert client.get("/echo", headers={"Bad Name": "x"}).status == 400
    assert client.get("/echo", headers={"Connection": "close"}).headers["connection"] == "close"
    assert client.get("/echo").status == 200


def test_large_bodies_both_ways(client: TestClient, server: bb.Server) -> None:
    body = b"0123456789" * 90_000
    assert client.post("/echo", body).json()[1] == body.decode()


def test_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("the file\n")
    (tmp_path / "large.bin").write_bytes(b"x" * 5_000_000)
    with bb.Server(root=tmp_path).test_client() as client:
        response = client.get("/a.txt")
        assert (response.body, response.headers["content-type"]) == (b"the file\n", "text/plain")
        assert client.get("/a.txt", headers={"If-None-Match": response.headers["etag"]}).status == 304
        assert client.get("/a.txt", headers={"Range": "bytes=4-7"}).body == b"file"
        assert client.get("/large.bin").body == b"x" * 5_000_000


def test_a_coroutine_function_is_run_to_its_end() -> None:
    import asyncio

    server = bb.Server(handler_threads=3)
    seen: list[int] = []

    @server.batch("/h/{n}")
    async def handler(batch: bb.Batch) -> list[str]:
        await asyncio.sleep(0)
        seen.append(len(batch))
        if len(batch) > 2:
            raise ValueError
        return [request.params["n"] for request in batch]

    with server.test_client() as client:
        assert [response.text for response in client.batch(["/h/1", "/h/2"])] == ["1", "2"]
        assert [response.text for response in client.batch(["/h/1", "/h/2", "/h/3"])] == ["1", "2", "3"]
    assert seen == [2, 3, 1, 1, 1]


def test_the_lifespan_is_entered_once_and_left_at_the_end() -> None:
    steps: list[Any] = []

    @contextlib.contextmanager
    def lifespan(server: bb.Server) -> Iterator[str]:
        steps.append("enter")
        yield "state"
        steps.append("leave")

    server = bb.Server(lifespan=lifespan)

    @server.batch("/h")
    def handler(batch: bb.Batch) -> list[str]:
        steps.append(batch.state)
        return ["x"] * len(batch)

    client = server.test_client()
    client.get("/h")
    client.get("/h")
    assert steps == ["enter", "state", "state"]
    client.close()
    assert steps == ["enter", "state", "state", "leave"]
    client.close()
    assert steps[-1] == "leave" and len(steps) == 4


def test_what_the_lifespan_raises_is_raised_and_nothing_is_left() -> None:
    def lifespan(server: bb.Server) -> Iterator[None]:
        raise OSError("no model")
        yield

    server = bb.Server(lifespan=lifespan)
    server.batch("/h")(lambda batch: ["x"])
    with pytest.raises(OSError, match="no model"):
        server.test_client()
    assert server.engines == []
    server.lifespan = None
    with server.test_client() as client:
        assert client.get("/h").status == 200


def test_a_server_with_nothing_to_serve_has_no_client() -> None:
    with pytest.raises(bb.ConfigError, match="nothing to serve"):
        bb.Server().test_client()


def test_routes_cannot_be_added_while_there_is_a_client(server: bb.Server) -> None:
    with server.test_client(), pytest.raises(bb.ConfigError, match="cannot be added while the server runs"):
        server.batch("/other")
    server.batch("/other")(lambda batch: ["x"] * len(batch))
    with server.test_client() as client:
        assert client.get("/other").text == "x"


def test_the_servers_figures_are_the_clients(server: bb.Server, client: TestClient) -> None:
    client.batch(["/echo"] * 3)
    assert server.stats()["requests"]["outcomes"]["batch"] == 3
    assert server.cache.purge(prefix="/") == 0
    assert server.set_policy("/echo", max_batch_size=2).max_batch_size == 2
    assert {response.json()[3] for response in client.batch(["/echo"] * 4)} == {2}


def test_the_access_log_is_whole_when_the_client_is_closed(tmp_path: Path, server: bb.Server) -> None:
    log = tmp_path / "access.log"
    server.configure({"access_log": str(log)})
    with server.test_client() as client:
        client.batch(["/echo", "/nothing"])
    assert [line.split('"')[1] for line in log.read_text().splitlines()] == [
        "GET /nothing HTTP/1.1",
        "GET /echo HTTP/1.1",
    ]


def test_connections_are_not_used_up() -> None:
    server = bb.Server(config=bb.Config(max_connections=4))
    server.batch("/h")(lambda batch: ["x"] * len(batch))
    with server.test_client() as client:
        for _ in range(20):
            assert client.get("/h").status == 200
        assert [response.status for response in client.batch(["/h"] * 3)] == [200] * 3


def test_responses_are_values(client: TestClient) -> None:
    response = client.get("/nothing")
    assert "raw" not in repr(response)
    with pytest.raises(AttributeError):
        response.status = 200  # type: ignore[misc]
    with pytest.raises(json.JSONDecodeError):
        response.json()
