"""A raise out of a handler: which items run again, one by one, which are answered 500, and what is logged; for every
mix of policy, methods and exceptions. What is left unanswered, or returned in the wrong number, is the handler's fault
and nobody else's.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

import batchbridge as bb
from batchbridge.testing import TestResponse

ERRORS: dict[str, Callable[[], BaseException]] = {
    "HTTPError": lambda: bb.HTTPError(409, "conflict"),
    "bare HTTPError": lambda: bb.HTTPError(404),
    "Exception": lambda: ValueError("secret"),
    "AssertionError": lambda: AssertionError("secret"),
    "SystemExit": lambda: SystemExit(3),
    "KeyboardInterrupt": lambda: KeyboardInterrupt(),
    "BaseException": lambda: BaseException("secret"),
    "GeneratorExit": lambda: GeneratorExit(),
    "MemoryError": lambda: MemoryError(),
    "BatchSizeError": lambda: bb.BatchSizeError("secret"),
}


def status_of(error: BaseException) -> int:
    return error.status if isinstance(error, bb.HTTPError) else 500


def ask(client: Any, whats: list[str], methods: list[str] | None = None, *, path: str = "/h") -> list[TestResponse]:
    methods = methods or ["GET"] * len(whats)
    return client.batch([(method, f"{path}/{what}") for method, what in zip(methods, whats, strict=True)])  # type: ignore[no-any-return]


@pytest.mark.parametrize("asynchronous", [False, True])
@pytest.mark.parametrize("answers_first", [False, True])
@pytest.mark.parametrize(
    "methods", [["GET"] * 4, ["GET", "HEAD", "OPTIONS", "GET"], ["POST"] * 4, ["GET", "GET", "GET", "PUT"]]
)
@pytest.mark.parametrize("idempotent", [False, True])
@pytest.mark.parametrize("on_error", ["isolate", "fail"])
@pytest.mark.parametrize("kind", ERRORS)
def test_a_raise(
    kind: str,
    on_error: Any,
    idempotent: bool,
    methods: list[str],
    answers_first: bool,
    asynchronous: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    runs: list[list[str]] = []
    server = bb.Server(handler_threads=0)

    def handle(batch: bb.Batch) -> list[str]:
        runs.append([request.params["what"] for request in batch])
        if answers_first and len(batch) > 1:
            batch[0].respond(b"before")
        if "bad" in runs[-1]:
            raise ERRORS[kind]()
        return [request.params["what"] for request in batch]

    async def handle_async(batch: bb.Batch) -> list[str]:
        return handle(batch)

    server.batch("/h/{what}", methods=["GET", "OPTIONS", "POST", "PUT"], on_error=on_error, idempotent=idempotent)(
        handle_async if asynchronous else handle
    )
    with server.test_client() as client:
        responses = ask(client, ["one", "bad", "two", "three"], methods)
        again = ask(client, ["fine"])
    error = ERRORS[kind]()
    safe = all(method in ("GET", "HEAD", "OPTIONS") for method in methods)
    # What ends a program, or is about the whole batch, is not tried again.
    again_alone = (
        on_error == "isolate"
        and (safe or idempotent)
        and isinstance(error, Exception)
        and not isinstance(error, bb.BatchSizeError)
    )
    statuses = [200, status_of(error), 200, 200] if again_alone else [status_of(error)] * 4
    if answers_first:
        statuses[0] = 200
    assert [response.status for response in responses] == statuses
    alone = [["one"], ["bad"], ["two"], ["three"]][answers_first:] if again_alone else []
    assert runs == [["one", "bad", "two", "three"], *alone, ["fine"]]
    assert again[0].text == "fine"
    assert all(b"secret" not in response.raw for response in responses)
    records = [record for record in caplog.records if record.name == "batchbridge.handlers"]
    assert len(records) == (0 if isinstance(error, bb.HTTPError) else 1)
    for record in records:
        assert record.levelno == logging.ERROR
        assert "handle" in record.getMessage() and " of /h/{what} failed" in record.getMessage()
        assert record.exc_info is not None and isinstance(record.exc_info[1], type(error))


def test_a_lone_item_is_not_run_twice() -> None:
    runs: list[int] = []
    server = bb.Server(handler_threads=0)

    @server.batch("/h/{what}")
    def handler(batch: bb.Batch) -> list[str]:
        runs.append(len(batch))
        raise ValueError

    with server.test_client() as client:
        assert ask(client, ["one"])[0].status == 500
    assert runs == [1]


def test_a_change_of_policy_changes_what_becomes_of_a_raise() -> None:
    server = bb.Server(handler_threads=0)

    @server.batch("/h/{what}", on_error="fail")
    def handler(batch: bb.Batch) -> list[str]:
        if any(request.params["what"] == "bad" for request in batch):
            raise ValueError
        return ["x"] * len(batch)

    with server.test_client() as client:
        assert [response.status for response in ask(client, ["a", "bad"])] == [500, 500]
        server.set_policy("/h/{what}", on_error="isolate")
        assert [response.status for response in ask(client, ["a", "bad"])] == [200, 500]


def test_several_culprits_are_each_found(caplog: pytest.LogCaptureFixture) -> None:
    server = bb.Server(handler_threads=0)

    @server.batch("/h/{what}", max_batch_size=32)
    def handler(batch: bb.Batch) -> list[str]:
        for request in batch:
            if request.params["what"].startswith("bad"):
                raise bb.HTTPError(400 + int(request.params["what"][3:]), request.params["what"])
        return [request.params["what"] for request in batch]

    whats = [f"bad{n}" if n % 3 == 0 else f"good{n}" for n in range(20)]
    with server.test_client() as client:
        responses = ask(client, whats)
    assert [response.status for response in responses] == [400 + n if n % 3 == 0 else 200 for n in range(20)]
    assert [response.text.strip() for response in responses] == whats


def test_what_a_part_is_given_is_as_in_its_batch() -> None:
    server = bb.Server(handler_threads=0, lifespan=lambda server: iter(["the state"]))
    seen: list[Any] = []

    @server.batch("/h/{what}", methods=["POST"], idempotent=True, decode=bb.Json())
    def handler(batch: bb.Batch) -> list[str]:
        if len(batch) > 1:
            raise ValueError
        request = batch[0]
        seen.append(
            (batch.state, batch.reason, batch.route.path, request.params["what"], request.json(), len(batch.bodies))
        )
        return [f"{request.json()}"]

    with server.test_client() as client:
        responses = client.batch([("POST", f"/h/{n}", b"%d" % n) for n in range(3)])
    assert [response.text for response in responses] == ["0", "1", "2"]
    assert seen == [("the state", "idle", "/h/{what}", f"{n}", n, 1) for n in range(3)]


def test_arrays_of_parts_are_rows_of_the_batch() -> None:
    server = bb.Server(handler_threads=0)
    kept = []

    @server.batch("/h", methods=["POST"], idempotent=True, decode=bb.Array("<u2", (2,)))
    def handler(batch: bb.Batch) -> Any:
        kept.append(batch.as_array())
        if len(batch) > 1 or kept[-1][0, 0] == 2:
            raise ValueError
        return batch.as_array() * 2

    with server.test_client() as client:
        responses = client.batch([("POST", "/h", bytes([n, 0, 9, 0])) for n in range(4)])
        assert [response.status for response in responses] == [200, 200, 500, 200]
        assert responses[3].body == bytes([6, 0, 18, 0])
        assert [array.tolist() for array in kept[1:]] == [[row] for row in kept[0].tolist()]


# --- with request -----------------------------------------------------------------------------------------------------


def test_with_request_confines_an_exception_to_its_item(caplog: pytest.LogCaptureFixture) -> None:
    server = bb.Server(handler_threads=0)
    runs: list[int] = []

    @server.batch("/h/{what}", methods=["POST"], on_error="fail")
    def handler(batch: bb.Batch) -> None:
        runs.append(len(batch))
        for request in batch:
            with request as same:
                assert same is request
                error = ERRORS.get(request.params["what"].replace("-", " "))
                if error is not None:
                    raise error()
                request.respond("fine")

    whats = ["one", "HTTPError", "Exception", "bare-HTTPError", "MemoryError", "two"]
    with server.test_client() as client:
        responses = ask(client, whats, ["POST"] * 6)
    assert [response.status for response in responses] == [200, 409, 500, 404, 500, 200]
    assert responses[1].text == "conflict\n"
    assert runs == [6]
    assert caplog.text.count("of /h/{what} failed") == 2


@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "BaseException"])
def test_with_request_does_not_confine_what_is_meant_for_the_program(kind: str) -> None:
    server = bb.Server(handler_threads=0)

    @server.batch("/h/{what}")
    def handler(batch: bb.Batch) -> None:
        for request in batch:
            with request:
                raise ERRORS[kind]()

    with server.test_client() as client:
        assert [response.status for response in ask(client, ["a", "b"])] == [500, 500]


def test_an_exception_behind_the_answer_is_not_swallowed() -> None:
    """The item has its answer, so nobody else would ever hear of it."""
    server = bb.Server(handler_threads=0)
    raised: list[bool] = []

    @server.batch("/h/{what}")
    def handler(batch: bb.Batch) -> None:
        for request in batch:
            try:
                with request:
                    request.respond(b"x")
                    raise ValueError
            except ValueError:
                raised.append(True)

    with server.test_client() as client:
        assert [response.status for response in ask(client, ["a", "b"])] == [200, 200]
    assert raised == [True, True]


def test_an_http_error_that_cannot_be_sent_is_500_for_its_item_alone() -> None:
    server = bb.Server(handler_threads=0)

    @server.batch("/with/{what}")
    def confined(batch: bb.Batch) -> None:
        for request in batch:
            with request:
                if request.params["what"] == "bad":
                    raise bb.HTTPError(400, "x", [("Date", "never")])
                request.respond(b"x")

    @server.batch("/h/{what}")
    def handler(batch: bb.Batch) -> list[str]:
        if any(request.params["what"] == "bad" for request in batch):
            raise bb.HTTPError(400, "x", [("Date", "never")])
        return ["x"] * len(batch)

    with server.test_client() as client:
        for path in ("/with", "/h"):
            assert [response.status for response in ask(client, ["a", "bad", "b"], path=path)] == [200, 500, 200]


# --- returned in the wrong number, or not at all ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "complaint"),
    [
        (["a", "b"], "returned 2 entries for a batch of 3"),
        (["a"] * 4, "returned 4 entries for a batch of 3"),
        ([], "returned 0 entries for a batch of 3"),
        ((), "returned 0 entries for a batch of 3"),
        ("abc", "returned one str for a batch"),
        (b"abc", "returned one bytes for a batch"),
        ({"a": 1, "b": 2, "c": 3}, "returned one dict for a batch"),
        (np.zeros(2), "returned 2 rows for a batch of 3"),
        (np.zeros((4, 3)), "returned 4 rows for a batch of 3"),
        (np.zeros(0), "returned 0 rows for a batch of 3"),
        (np.float64(3), "neither None nor a sequence"),
        (np.array(3), "neither None nor a sequence"),
        (7, "returned int, which is neither None nor a sequence"),
        (iter(["a", "b", "c"]), "which is neither None nor a sequence"),
        (bb.Response("x"), "returned Response, which is neither"),
    ],
)
def test_a_result_that_is_not_one_entry_an_item_is_500_for_all(
    result: Any, complaint: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = bb.Server(handler_threads=0)
    server.batch("/h/{what}", methods=["POST"])(lambda batch: result)
    with server.test_client() as client:
        assert [response.status for response in ask(client, ["a", "b", "c"], ["POST"] * 3)] == [500] * 3
    assert complaint in caplog.text


def test_what_was_answered_before_a_wrong_result_stays(caplog: pytest.LogCaptureFixture) -> None:
    server = bb.Server(handler_threads=0)

    @server.batch("/h/{what}")
    def handler(batch: bb.Batch) -> list[str]:
        batch[1].respond(b"mine")
        return []

    with server.test_client() as client:
        responses = ask(client, ["a", "b", "c"])
    assert [response.status for response in responses] == [500, 200, 500]
    assert caplog.text.count("returned 0 entries for a batch of 3") >= 1


@pytest.mark.parametrize("result", [None, [None, None, None]])
def test_what_is_left_unanswered_is_500_and_told(result: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = bb.Server(handler_threads=0)

    @server.batch("/h/{what}")
    def handler(batch: bb.Batch) -> Any:
        batch[-1].respond(b"the last one")
        return result

    with server.test_client() as client:
        assert [response.status for response in ask(client, ["a", "b", "c"])] == [500, 500, 200]
    assert "handler" in caplog.text and "/h/{what}" in caplog.text
    if result is None:
        assert "left 2 items unanswered; they get 500" in caplog.text


def test_entries_of_answered_items_are_passed_over() -> None:
    server = bb.Server(handler_threads=0)

    @server.batch("/h/{what}")
    def handler(batch: bb.Batch) -> list[Any]:
        batch[0].respond(b"by respond")
        return [None, b"returned", ValueError()]

    with server.test_client() as client:
        assert [r.body for r in ask(client, ["a", "b", "c"])][:2] == [b"by respond", b"returned"]


@pytest.mark.parametrize(
    "bad", [object(), 1, memoryview(b"abcdef")[::2], "\ud800", bb.Response(1), bb.Response(b"", 99)]
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_bad_entry_is_500_for_its_item_alone(method: str, bad: Any) -> None:
    server = bb.Server(handler_threads=0)
    runs: list[int] = []

    @server.batch("/h/{what}", methods=["GET", "POST"])
    def handler(batch: bb.Batch) -> list[Any]:
        runs.append(len(batch))
        return [bad if request.params["what"] == "bad" else b"x" for request in batch]

    with server.test_client() as client:
        responses = ask(client, ["a", "bad", "b"], [method] * 3)
    assert [response.status for response in responses] == [200, 500, 200]
    assert runs == [3]


def test_the_batch_may_be_used_up_before_it_returns() -> None:
    """Iterating, slicing and indexing give the same requests, in the order of arrival."""
    server = bb.Server(handler_threads=0)

    @server.batch("/h/{what}")
    def handler(batch: bb.Batch) -> list[str]:
        assert list(batch) == batch[:] == [batch[n] for n in range(len(batch))] == [batch[n - 3] for n in range(3)]
        assert batch[::-1] == list(reversed(batch))
        assert batch[1:2] == [batch[1]]
        assert batch[0] is batch[0] and batch[0] in batch
        assert (batch.index(batch[2]), batch.count(batch[2])) == (2, 1)
        assert isinstance(batch, Sequence)
        for index in (3, -4, 99):
            with pytest.raises(IndexError, match=f"item {index} of a batch of 3"):
                _ = batch[index]
        with pytest.raises(TypeError):
            _ = batch["one"]  # type: ignore[call-overload]
        assert repr(batch) == "<Batch of 3 for /h/{what}, idle>"
        return [request.params["what"] for request in batch]

    with server.test_client() as client:
        assert [response.text for response in ask(client, ["a", "b", "c"])] == ["a", "b", "c"]
