"""What a handler sees of a request, and what becomes of what it gives back, over real sockets."""

import json
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest

import batchbridge as bb
from support.serving import make_server, running
from support.wire import Client, chunked, head


class Bench:
    """A server under construction; entered, it runs and has a client."""

    def __init__(self, engine: str, **settings: object) -> None:
        self.server = make_server(engine, **settings)
        self.route = self.server.batch

    def __enter__(self) -> Client:
        self._running = running(self.server)
        self._running.__enter__()
        self._client = Client(self.server.url)
        return self._client

    def __exit__(self, *error: Any) -> None:
        self._client.close()
        self._running.__exit__(*error)


@pytest.fixture
def bench(engine: str) -> Bench:
    return Bench(engine)


# --- what a handler sees ----------------------------------------------------------------------------------------------


def test_a_request_from_every_side(bench: Bench) -> None:
    seen: dict[str, Any] = {}

    @bench.route("/score/{model}/{version}", methods=["POST"])
    def score(batch: bb.Batch) -> list[bytes]:
        (request,) = batch
        seen.update(
            method=request.method, path=request.path, raw_path=request.raw_path, params=request.params,
            query=request.query, query_string=request.query_string, body=bytes(request.body), client=request.client,
            length=len(batch), headers=dict(request.headers.items()), authority=request.authority,
            version=request.http_version, time_left=request.time_left_us, cancelled=request.cancelled,
            accept=request.headers["ACCEPT"], listed=request.headers.getall("x-list"), reason=batch.reason,
            missing=request.headers.get("missing", "none"), known="accept" in request.headers, target=request.target,
        )  # fmt: skip
        return [b"done"]

    with bench as client:
        reply = client.ask(
            "POST", "/score/big%20one/%C3%BC?a=1&b=%C3%BC+x&a=2&empty=",
            ("Accept", "text/plain"), ("X-List", "one"), ("x-list", "two, three"), host="example.com:81",
            body=b"\0body\xff",
        )  # fmt: skip
        assert reply.status == 200
        host, port = client.socket.getsockname()
    assert seen["method"] == "POST" and seen["version"] == "1.1" and seen["length"] == 1
    assert seen["path"] == "/score/big one/\u00fc" and seen["raw_path"] == b"/score/big%20one/%C3%BC"
    assert seen["target"] == b"/score/big%20one/%C3%BC?a=1&b=%C3%BC+x&a=2&empty="
    assert seen["params"] == {"model": "big one", "version": "\u00fc"}
    assert seen["query"] == {"a": "2", "b": "\u00fc x", "empty": ""}
    assert seen["query_string"] == b"a=1&b=%C3%BC+x&a=2&empty="
    assert seen["body"] == b"\0body\xff" and seen["client"] == (host, port)
    assert seen["accept"] == "text/plain" and seen["known"] and seen["missing"] == "none"
    assert seen["listed"] == ["one", "two, three"] and seen["headers"]["x-list"] == "one, two, three"
    assert seen["authority"] == "example.com:81" and seen["reason"] == "idle"
    assert seen["time_left"] is None and seen["cancelled"] is False


def test_an_absolute_target_and_its_authority(bench: Bench) -> None:
    bench.route("/x")(lambda batch: [f"{request.path} {request.authority}" for request in batch])
    with bench as client:
        assert client.ask("GET", "http://one.example/x?q", host="one.example").body == b"/x one.example"
        assert client.ask("GET", "/x", host=None, version="1.0").body == b"/x "


def test_the_rest_of_a_path(bench: Bench) -> None:
    bench.route("/files/{rest:path}")(lambda batch: [request.params["rest"] for request in batch])
    with bench as client:
        assert client.ask("GET", "/files/a/b%20c/d").body == b"a/b c/d"
        assert client.ask("GET", "/files/a").body == b"a"


def test_routes_are_told_apart(bench: Bench) -> None:
    bench.route("/a/{x}")(lambda batch: [f"a {request.params}" for request in batch])
    bench.route("/a/b/c")(lambda batch: ["abc"] * len(batch))
    bench.route("/")(lambda batch: ["root"] * len(batch))
    bench.route("/m", methods=["PUT", "DELETE"])(lambda batch: [request.method for request in batch])
    with bench as client:
        assert client.ask("GET", "/a/b").body == b"a {'x': 'b'}"
        assert client.ask("GET", "/a/b/c").body == b"abc"
        assert client.ask("GET", "/").body == b"root"
        assert client.ask("DELETE", "/m").body == b"DELETE"
        for target in ("/a", "/a/", "/a/b/", "/a/b/c/d", "/A/b", "/m/", "//"):
            assert client.ask("GET", target).status in (400, 404), target


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_view_outlives_its_batch(bench: Bench, framing: str) -> None:
    kept: list[memoryview] = []

    @bench.route("/keep", methods=["POST"])
    def keep(batch: bb.Batch) -> list[bytes]:
        kept.extend(request.body for request in batch)
        return [b""] * len(batch)

    bodies = [bytes([place]) * (1000 + place) for place in range(100)]
    with bench as client:
        for body in bodies:
            if framing == "length":
                client.send(head("POST", "/keep", body=body))
            else:
                client.send(head("POST", "/keep", "Transfer-Encoding: chunked") + chunked(body[:500], body[500:]))
            assert client.reply("POST").status == 200
        assert [bytes(view) for view in kept] == bodies
        assert all(view.readonly for view in kept)
    assert [bytes(view) for view in kept] == bodies, "also when the server has ended"


def test_more_views_kept_than_there_are_slabs_cost_503_and_no_more(engine: str) -> None:
    bench = Bench(engine, handler_queue_slabs=2)
    kept: list[memoryview] = []

    @bench.route("/keep", methods=["POST"], max_batch_size=1)
    def keep(batch: bb.Batch) -> list[bytes]:
        kept.extend(request.body for request in batch)
        return [b""] * len(batch)

    with bench as client:
        statuses = [client.ask("POST", "/keep", body=b"z" * 900_000).status for _ in range(20)]
        assert set(statuses) <= {200, 503} and 200 in statuses and 503 in statuses
        kept.clear()
        assert client.ask("POST", "/keep", body=b"z").status == 200


# --- decoding ---------------------------------------------------------------------------------------------------------


def test_json(bench: Bench) -> None:
    bench.route("/j", methods=["POST"], decode=bb.Json())(
        lambda batch: [json.dumps({"got": request.json()}) for request in batch]
    )
    with bench as client:
        for content in ({"a": [1, "\u00fc"]}, [], 0, "text", None, False):
            reply = client.ask("POST", "/j", ("Content-Type", "application/json"), body=json.dumps(content).encode())
            assert reply.status == 200 and json.loads(reply.body) == {"got": content}
        for kind in ("application/problem+json", "application/json; charset=utf-8", "Application/JSON"):
            assert client.ask("POST", "/j", ("Content-Type", kind), body=b"1").status == 200
        assert client.ask("POST", "/j", body=b"1").status == 200
        for body in (b"{", b"", b"\xff", b"nan,", b"[1] 2"):
            assert client.ask("POST", "/j", body=body).status == 400
        assert client.ask("POST", "/j", ("Content-Type", "text/plain"), body=b"1").status == 415


def test_msgpack(bench: Bench) -> None:
    bench.route("/m", methods=["POST"], decode=bb.Msgpack())(
        lambda batch: [msgpack.packb(request.msgpack()) for request in batch]
    )
    with bench as client:
        for content in ({"a": [1, b"x"]}, [], 0, None, "\u00fc"):
            body = msgpack.packb(content)
            assert client.ask("POST", "/m", ("Content-Type", "application/msgpack"), body=body).body == body
        for body in (b"\xc1", b"", b"\x92\x01", b"\x01\x02"):
            assert client.ask("POST", "/m", body=body).status == 400
        assert client.ask("POST", "/m", ("Content-Type", "application/json"), body=b"\x01").status == 415


def test_decoding_that_a_handler_asks_for_itself(bench: Bench) -> None:
    bench.route("/j", methods=["POST"])(lambda batch: [json.dumps(request.json()) for request in batch])
    with bench as client:
        assert client.ask("POST", "/j", body=b"[1]").body == b"[1]"
        assert client.ask("POST", "/j", body=b"[1").status == 400


def test_bad_bodies_never_reach_the_handler(bench: Bench) -> None:
    sizes: list[int] = []

    @bench.route(
        "/j", methods=["POST"], decode=bb.Json(), policy="fixed", max_batch_size=8, max_queue_delay_us=2_000_000
    )
    def take(batch: bb.Batch) -> list[str]:
        sizes.append(len(batch))
        assert [request.json() for request in batch] == [0, 2, 4, 6]
        return [str(request.json()) for request in batch]

    with bench as client:
        bodies = [b"%d" % place if place % 2 == 0 else b"{" for place in range(8)]
        client.send(b"".join(head("POST", "/j", body=body) for body in bodies))
        replies = client.replies(*["POST"] * 8)
    assert [reply.status for reply in replies] == [200, 400] * 4
    assert [reply.body for reply in replies[::2]] == [b"0", b"2", b"4", b"6"] and sizes == [4]


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(), (3,), (16,), (2, 5)])
@pytest.mark.parametrize("dtype", ["<f4", "<i8", ">u2", "u1"])
def test_array_bodies_lie_side_by_side(bench: Bench, dtype: str, shape: tuple[int, ...]) -> None:
    seen: list[tuple[Any, ...]] = []

    @bench.route(
        "/a", methods=["POST"], decode=bb.Array(dtype, shape), policy="fixed", max_batch_size=4,
        max_queue_delay_us=2_000_000,
    )  # fmt: skip
    def take(batch: bb.Batch) -> np.ndarray:
        array = batch.as_array()
        copy = batch.as_array(copy=True)
        seen.append((array.shape, array.dtype, array.flags.writeable, copy.flags.writeable, array.copy(), copy))
        return np.ascontiguousarray(array)

    bodies = [np.array(np.arange(np.prod(shape, dtype=int)).reshape(shape) + place, dtype) for place in range(4)]
    with bench as client:
        client.send(b"".join(head("POST", "/a", body=body.tobytes()) for body in bodies))
        assert [reply.body for reply in client.replies(*["POST"] * 4)] == [body.tobytes() for body in bodies]
    ((size, kind, writable, copy_writable, content, copy),) = seen
    assert size == (4, *shape) and kind == np.dtype(dtype) and not writable and copy_writable
    assert np.array_equal(content, np.stack(bodies)) and np.array_equal(copy, content)


def test_array_bodies_of_another_length_are_422(bench: Bench) -> None:
    bench.route("/a", methods=["POST"], decode=bb.Array("<f4", (4,)))(lambda batch: batch.as_array().sum(axis=1))
    with bench as client:
        for length in (0, 1, 15, 17, 32):
            assert client.ask("POST", "/a", body=b"\0" * length).status == 422
        reply = client.ask("POST", "/a", body=np.ones(4, "<f4").tobytes())
        assert np.frombuffer(reply.body, "<f4") == [4.0]
        client.send(head("POST", "/a", "Transfer-Encoding: chunked") + chunked(b"\0" * 7, b"\0" * 9))
        assert client.reply("POST").body == b"\0" * 4


def test_an_array_outlives_its_batch(bench: Bench) -> None:
    kept: list[np.ndarray] = []

    @bench.route("/a", methods=["POST"], decode=bb.Array("<u4", (2,)))
    def take(batch: bb.Batch) -> list[bytes]:
        kept.append(batch.as_array())
        return [b""] * len(batch)

    with bench as client:
        for place in range(300):
            assert client.ask("POST", "/a", body=np.array([place, ~place & 0xFF], "<u4").tobytes()).status == 200
        assert [int(row[0]) for array in kept for row in array] == list(range(300))


@pytest.mark.parametrize(
    "result",
    [
        np.arange(3.0),
        np.arange(6, dtype="<i2").reshape(3, 2),
        np.arange(12, dtype="<f8").reshape(3, 2, 2)[:, ::-1],
        np.zeros((3, 0)),
        np.array([True, False, True]),
        np.arange(6, dtype="<i4").reshape(2, 3).T,
    ],
    ids=str,
)
def test_an_array_of_answers(bench: Bench, result: np.ndarray) -> None:
    bench.route("/r", policy="fixed", max_batch_size=3, max_queue_delay_us=2_000_000)(lambda batch: result)
    with bench as client:
        client.send(head("GET", "/r") * 3)
        replies = client.replies(*["GET"] * 3)
    rows = [result[at : at + 1].tobytes() for at in range(3)]
    assert [(reply.status, reply.body) for reply in replies] == [(200, row) for row in rows]
    assert replies[0]["content-type"] == "application/octet-stream"


@pytest.mark.parametrize("result", [np.array([b"abc", b"de", b""]), np.array(["abc", "de", ""])], ids=["bytes", "str"])
def test_an_array_of_texts_is_one_entry_an_item(bench: Bench, result: np.ndarray) -> None:
    bench.route("/r", policy="fixed", max_batch_size=3, max_queue_delay_us=2_000_000)(lambda batch: result)
    with bench as client:
        client.send(head("GET", "/r") * 3)
        assert [reply.body for reply in client.replies(*["GET"] * 3)] == [b"abc", b"de", b""]


# --- what a handler gives back ----------------------------------------------------------------------------------------


class OddError(Exception):
    pass


def test_entries_of_every_kind(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    entries: list[Any] = [
        b"bytes", "text \u00fc", bytearray(b"array"), memoryview(b"view"), np.float32(1.5), b"", "",
        bb.Response("made", 201, headers={"X-Made": "yes", "Set-Cookie": "a=b"}, content_type="text/html"),
        bb.Response(b"\0", headers=[("X-Twice", "1"), ("X-Twice", "2")]),
        bb.HTTPError(404, "no such thing"), bb.HTTPError(429, "slow down", headers=[("Retry-After", "7")]),
        bb.HTTPError(403), OddError("alone"), 3, None, bb.Response(b"", 204), bb.Response(b"", 304),
        bb.Response("x", 599),
    ]  # fmt: skip

    @bench.route("/e", policy="fixed", max_batch_size=len(entries), max_queue_delay_us=2_000_000)
    def every(batch: bb.Batch) -> list[Any]:
        return entries[: len(batch)]

    with bench as client:
        client.send(head("GET", "/e") * len(entries))
        replies = client.replies(*["GET"] * len(entries))
        assert client.is_silent(0.02)
    statuses = [200] * 7 + [201, 200, 404, 429, 403, 500, 500, 500, 204, 304, 599]
    assert [reply.status for reply in replies] == statuses
    assert [reply.body for reply in replies[:7]] == [
        b"bytes", "text \u00fc".encode(), b"array", b"view", np.float32(1.5).tobytes(), b"", b"",
    ]  # fmt: skip
    assert replies[0]["content-type"] == "application/octet-stream"
    assert replies[1]["content-type"] == "text/plain; charset=utf-8"
    assert (replies[7]["x-made"], replies[7]["set-cookie"], replies[7]["content-type"]) == ("yes", "a=b", "text/html")
    assert replies[8].all("x-twice") == ["1", "2"]
    assert replies[9].body.strip() == b"no such thing" and replies[10]["retry-after"] == "7"
    assert b"alone" not in replies[12].body
    logged = [record.getMessage() for record in caplog.records if record.name == "batchbridge.handlers"]
    assert any("alone" in line and "every" in line for line in logged), logged


def test_respond(bench: Bench) -> None:
    @bench.route("/r/{what}")
    def respond(batch: bb.Batch) -> None:
        for request in batch:
            what = request.params["what"]
            if what == "bytes":
                request.respond(b"b")
            elif what == "status":
                request.respond("made", status=201, content_type="text/css", headers={"X-A": "b"})
            elif what == "nothing":
                request.respond()
            elif what == "twice":
                request.respond(b"first")
                with pytest.raises(bb.AlreadyAnsweredError):
                    request.respond(b"second")
                assert request.answered
            elif what == "bad":
                for wrong in ({"status": 99}, {"status": 600}, {"headers": {"A\r\nB": "x"}}, {"headers": {"A": "x\ny"}},
                              {"headers": {"Content-Length": "3"}}, {"headers": {"": "x"}},
                              {"headers": {"Transfer-Encoding": "chunked"}}, {"content_type": "a\r\nb"},
                              {"content_type": "a\r\n\r\nb", "headers": {"X": "1"}}):  # fmt: skip
                    with pytest.raises(ValueError):  # noqa: PT011
                        request.respond(b"x", **wrong)
                request.respond(b"good")

    with bench as client:
        assert client.ask("GET", "/r/bytes").body == b"b"
        made = client.ask("GET", "/r/status")
        assert (made.status, made.body, made["content-type"], made["x-a"]) == (201, b"made", "text/css", "b")
        assert client.ask("GET", "/r/nothing").body == b""
        assert client.ask("GET", "/r/twice").body == b"first"
        assert client.ask("GET", "/r/bad").body == b"good"


def test_answers_out_of_order_leave_in_order(bench: Bench) -> None:
    @bench.route("/o/{n}", policy="fixed", max_batch_size=10, max_queue_delay_us=2_000_000)
    def backwards(batch: bb.Batch) -> None:
        for request in reversed(list(batch)):
            request.respond(request.params["n"])

    with bench as client:
        client.send(b"".join(head("GET", f"/o/{place}") for place in range(10)))
        assert [reply.body for reply in client.replies(*["GET"] * 10)] == [b"%d" % place for place in range(10)]


def test_a_batch_is_a_sequence(bench: Bench) -> None:
    errors: list[BaseException] = []

    @bench.route("/s/{n}", policy="fixed", max_batch_size=4, max_queue_delay_us=2_000_000)
    def look(batch: bb.Batch) -> list[str]:
        try:
            assert len(batch) == 4 and batch[0] is batch[0] and batch[-1].params == {"n": "3"}
            assert [request.params["n"] for request in batch[1:3]] == ["1", "2"]
            assert list(batch)[2] is batch[2] and len(batch.bodies) == 4
            with pytest.raises(IndexError):
                batch[4]
            with pytest.raises(TypeError):
                batch.as_array()
            assert batch.reason == "full" and batch.route.path == "/s/{n}" and batch.state is None
        except BaseException as error:
            errors.append(error)
        return [request.params["n"] for request in batch]

    with bench as client:
        client.send(b"".join(head("GET", f"/s/{place}") for place in range(4)))
        assert [reply.status for reply in client.replies(*["GET"] * 4)] == [200] * 4
    assert not errors, errors


def test_the_examples_as_they_stand(engine: str) -> None:
    def served(name: str) -> Iterator[Client]:
        from pathlib import Path

        from batchbridge.cli.settings import load_server

        path = Path(__file__).parents[2] / "examples" / f"{name}.py"
        server = load_server(f"{path}:server")
        server.configure({"bind": ("127.0.0.1:0",), "engine": engine})
        with running(server), Client(server.url) as client:
            yield client

    for client in served("hello"):
        assert client.ask("GET", "/f").body == b"x" * 64
    for client in served("score"):
        vector = np.arange(16, dtype="<f4")
        assert np.frombuffer(client.ask("POST", "/score/mean", body=vector.tobytes()).body, "<f4") == [7.5]
        assert client.ask("POST", "/score/nothing", body=vector.tobytes()).status == 404
