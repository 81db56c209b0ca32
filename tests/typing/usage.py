"""Programs as people write them, for mypy: everything here is right, but for the lines that say which error they make.

Checked by test_typing.py against the installed package; never run.
"""

import contextlib
import ctypes
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, Literal, assert_type

import numpy as np
import numpy.typing as npt

import batchbridge as bb
from batchbridge.machine import Machine
from batchbridge.policy import Decision, adapt, decide
from batchbridge.testing import TestClient, TestResponse


class Model:
    def predict(self, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        return np.add(rows[:, 0], np.float32(1))


# --- servers ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def load_model(server: bb.Server) -> Iterator[Model]:
    yield Model()


def load_plainly(server: bb.Server) -> Iterator[Model]:
    yield Model()


server = bb.Server(root="site", bind="127.0.0.1:8080", lifespan=load_model, handler_threads=2, engine="epoll")
other = bb.Server(bind=["127.0.0.1:0", "[::1]:0"], lifespan=load_plainly, config="batchbridge.toml")
third = bb.Server(config=bb.Config(max_connections=10, idle_timeout_s=1.5))

bb.Server("site")  # type: ignore[call-arg]
bb.Server(rooot="site")  # type: ignore[call-arg]
bb.Server(handler_threads="2")  # type: ignore[arg-type]


# --- handlers ---------------------------------------------------------------------------------------------------------


@server.batch(
    "/score/{model}", methods=["POST"], decode=bb.Array("<f4", (16,)), max_batch_size=64, max_queue_delay_us=200
)
def score(batch: bb.Batch) -> npt.NDArray[np.float32]:
    model: Model = batch.state
    return model.predict(batch.as_array())


@server.batch("/hello/{name}", coalesce=True, vary=["Accept-Language"])
def hello(batch: bb.Batch) -> list[str]:
    return [f"hello {request.params['name']}\n" for request in batch]


@server.batch("/slow", methods=("GET", "POST"), decode=bb.Json(), concurrency=8, timeout_us=1_000_000)
async def slow(batch: bb.Batch) -> None:
    for request in batch:
        with request:
            request.respond(str(request.json()), status=201, headers={"X-One": "1"})


@server.batch("/mixed")
def mixed(batch: bb.Batch) -> Sequence[bytes | str | bb.Response | bb.HTTPError]:
    return [b"a", "b", bb.Response("c", 404, cache_ttl_s=None), bb.HTTPError(409, "no", [("Retry-After", "1")])]


def decorated_functions_stay_what_they_are(batch: bb.Batch) -> None:
    assert_type(hello(batch), list[str])
    coroutine: Coroutine[Any, Any, None] = slow(batch)
    print(coroutine)
    hello(5)  # type: ignore[arg-type]


server.batch(b"/bytes")  # type: ignore[arg-type]
server.batch("/x", decode=bb.Json)  # type: ignore[arg-type]
server.batch("/x", max_batch_sizes=5)  # type: ignore[call-arg]
server.batch("/x", max_batch_size="5")  # type: ignore[arg-type]
server.batch("/x", on_error="ignore")  # type: ignore[arg-type]


# --- native handlers --------------------------------------------------------------------------------------------------

library = ctypes.CDLL(None)
assert_type(server.native("/native/{n}", library.abs, methods=["GET"], max_batch_size=64, keep=library), None)
server.native("/address", 0x1000, context=ctypes.c_void_p(), abi=1, decode=bb.Array("<f4", (4,)), vary=["Accept"])
assert_type(bb.get_include(), str)

server.native("/x")  # type: ignore[call-arg]
server.native("/x", library.abs, abi="1")  # type: ignore[arg-type]
server.native("/x", library.abs, decode=bb.Json())  # type: ignore[arg-type]
server.native("/x", library.abs, max_batch_sizes=5)  # type: ignore[call-arg]


# --- batches and requests ---------------------------------------------------------------------------------------------


def look(batch: bb.Batch, request: bb.Request) -> None:
    assert_type(len(batch), int)
    assert_type(batch[0], bb.Request)
    assert_type(batch[1:], list[bb.Request])
    assert_type(batch.bodies, list[memoryview])
    assert_type(batch.route.path, str)
    assert_type(batch.route.policy, bb.BatchPolicy)
    assert_type(batch.index(request), int)
    as_sequence: Sequence[bb.Request] = batch
    assert_type(list(reversed(as_sequence)), list[bb.Request])
    reason: Literal["full", "delay", "idle", "deadline", "closing"] = batch.reason
    print(reason)

    assert_type(request.method, str)
    assert_type(request.path, str)
    assert_type(request.raw_path, bytes)
    assert_type(request.target, bytes)
    assert_type(request.query, dict[str, str])
    assert_type(request.params, dict[str, str])
    assert_type(request.body, memoryview)
    assert_type(request.client, tuple[str, int] | None)
    assert_type(request.time_left_us, int | None)
    assert_type(request.cancelled, bool)
    assert_type(request.answered, bool)
    as_mapping: Mapping[str, str] = request.headers
    assert_type(as_mapping.get("x"), str | None)
    assert_type(request.headers["x"], str)
    assert_type(request.headers.getall("x"), list[str])
    with request as same:
        assert_type(same, bb.Request)

    request.respond()
    request.respond(b"x", cache_ttl_s=5, tags=["a"], public=True)
    request.respond(bytearray(), content_type="a/b", headers=[("a", "b"), (b"c", b"d")], tags="one")
    request.respond(5)  # type: ignore[arg-type]
    request.respond(b"x", 404)  # type: ignore[call-arg]
    request.respond(b"x", status="404")  # type: ignore[arg-type]
    request.path = "/"  # type: ignore[misc]
    request.header  # type: ignore[attr-defined]  # noqa: B018
    batch.append(request)  # type: ignore[attr-defined]


class Special(bb.Batch):  # type: ignore[misc]
    pass


# --- values -----------------------------------------------------------------------------------------------------------

response = bb.Response("body", 201, content_type="a/b", headers={"a": "b"}, cache_ttl_s=1.5, tags="t", public=True)
assert_type(response.status, int)
bb.Response(status="200")  # type: ignore[arg-type]
bb.Response("x", 200, "text/html")  # type: ignore[call-arg]

policy = bb.BatchPolicy(max_batch_size=8, policy="fixed", preferred_batch_size=(2, 4))
assert_type(policy.changed(policy="idle"), bb.BatchPolicy)
assert_type(policy.queue_timeout_us, int | None)
bb.BatchPolicy(policy="sometimes")  # type: ignore[arg-type]
bb.BatchPolicy(max_batch=8)  # type: ignore[call-arg]
policy.max_batch_size = 9  # type: ignore[misc]

decision = decide(policy, waiting=1, oldest_waited_us=0, handlers_free=1, more_input=False, closing=False)
assert_type(decision, Decision)
assert_type(decision.wait_us, int | None)
assert_type(adapt(policy, 1, 2), int)

config = bb.Config(body_size_bytes_max=5)
assert_type(config.replace(root="x"), bb.Config)
assert_type(config.bind, tuple[str, ...])
bb.Config("x")  # type: ignore[call-arg]
config.root = "x"  # type: ignore[misc]

error = bb.HTTPError(404, "gone", [("a", "b")])
assert_type(error.status, int)
assert_type(error.headers, tuple[tuple[str, str], ...])
bb.HTTPError("404")  # type: ignore[arg-type]

as_os_error: OSError = bb.BindError(98, "in use")
as_value_error: ValueError = bb.ConfigError("bad")
as_one_of_ours: bb.BatchBridgeError = bb.EngineError("none")


# --- running it -------------------------------------------------------------------------------------------------------


def run() -> None:
    with server.running() as running:
        assert_type(running, bb.Server)
        assert_type(running.url, str)
        assert_type(running.urls, list[str])
    assert_type(server.policy("/hello/{name}"), bb.BatchPolicy)
    assert_type(server.set_policy("/hello/{name}", max_batch_size=3), bb.BatchPolicy)
    assert_type(server.cache.purge(tag="t"), int)
    server.set_policy("/hello/{name}", policy="sometimes")  # type: ignore[arg-type]
    server.set_policy("/hello/{name}", max_batch=3)  # type: ignore[call-arg]
    server.cache.purge("t")  # type: ignore[call-arg]
    assert_type(server.machine, Machine)
    assert_type(server.machine.table["Derive Request", "request"], str)
    server.machine.table["Derive Request"] = "Finished"  # type: ignore[index]
    server.machine.table["Derive Request", "request"] = 5  # type: ignore[assignment]
    assert_type(server.machine.to_dot(), str)
    server.run(on_ready=lambda ready: print(ready.url))


async def serve() -> None:
    await server.serve()


def test_it() -> None:
    with server.test_client() as client:
        assert_type(client, TestClient)
        assert_type(client.get("/", headers={"a": "b"}), TestResponse)
        client.post("/", b"x")
        client.put("/", json={"a": [1]})
        client.batch(["/", ("GET", "/"), ("POST", "/", b"x"), ("POST", "/", b"x", {"a": "b"})])
        client.get("/", body=b"x")  # type: ignore[call-arg]
        client.post("/", "text")  # type: ignore[arg-type]
        reply = client.head("/")
        assert_type(reply.status, int)
        assert_type(reply.body, bytes)
        assert_type(reply.text, str)
        assert_type(reply.headers, bb.Headers)
        reply.status = 5  # type: ignore[misc]
