"""One bad item spoils nothing (law 9): what a raise, a wrong result or a broken handler costs, and whom."""

import logging
import sys
import threading
from typing import Any

import pytest

import batchbridge as bb
from support.serving import make_server, running
from support.wire import Client, head, together

#: Batches form from what one client pipelines: all of it arrives, then it leaves.
TOGETHER = {"policy": "fixed", "max_queue_delay_us": 2_000_000}


class CulpritError(Exception):
    pass


def run(
    engine: str, function: Any, requests: list[bytes], methods: list[str], settings: dict[str, Any] | None = None,
    **route: Any,
) -> list[tuple[int, bytes]]:  # fmt: skip
    """Statuses and bodies of what the requests, as one batch, are answered by a handler at /x/{n}."""
    server = make_server(engine, **(settings or {}))
    route = {**TOGETHER, "methods": sorted(set(methods)), "max_batch_size": len(requests), **route}
    server.batch("/x/{n}", **route)(function)
    with running(server), Client(server.url) as client:
        client.send(b"".join(requests))
        replies = [client.reply(method) for method in methods]
        assert client.is_silent(0.02)
        assert client.ask("GET", "/nothing").status == 404, "the connection goes on"
    return [(reply.status, reply.body) for reply in replies]


def numbered(method: str, count: int = 4) -> tuple[list[bytes], list[str]]:
    body = b"" if method == "POST" else None
    return [head(method, f"/x/{place}", body=body) for place in range(count)], [method] * count


def numbers(batch: bb.Batch) -> list[str]:
    return [request.params["n"] for request in batch]


def raise_at_two(calls: list[list[str]]) -> Any:
    def handler(batch: bb.Batch) -> list[str]:
        calls.append(numbers(batch))
        if "2" in calls[-1]:
            raise CulpritError("number two")
        return [f"fine {number}" for number in calls[-1]]

    return handler


FINE = [(200, b"fine 0"), (200, b"fine 1"), (500, b"500 Internal Server Error\n"), (200, b"fine 3")]


@pytest.mark.parametrize("threads", [0, 1])
def test_a_raise_costs_only_the_culprit(engine: str, caplog: pytest.LogCaptureFixture, threads: int) -> None:
    calls: list[list[str]] = []
    requests, methods = numbered("GET")
    assert run(engine, raise_at_two(calls), requests, methods, {"handler_threads": threads}) == FINE
    assert calls == [["0", "1", "2", "3"], ["0"], ["1"], ["2"], ["3"]]
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) == 1 and "number two" in errors[0].getMessage() and errors[0].exc_info, errors


def test_a_raise_is_not_tried_again_where_that_could_do_harm(engine: str) -> None:
    calls: list[list[str]] = []
    requests, methods = numbered("POST")
    answers = run(engine, raise_at_two(calls), requests, methods)
    assert [status for status, _ in answers] == [500] * 4 and calls == [["0", "1", "2", "3"]]


def test_one_unsafe_method_among_safe_ones_forbids_it(engine: str) -> None:
    calls: list[list[str]] = []
    requests = [head("GET", "/x/0"), head("DELETE", "/x/1"), head("GET", "/x/2")]
    answers = run(engine, raise_at_two(calls), requests, ["GET", "DELETE", "GET"])
    assert [status for status, _ in answers] == [500] * 3 and len(calls) == 1


def test_a_route_may_say_that_it_does_no_harm(engine: str) -> None:
    calls: list[list[str]] = []
    requests, methods = numbered("POST")
    assert run(engine, raise_at_two(calls), requests, methods, idempotent=True) == FINE
    assert len(calls) == 5


def test_on_error_fail(engine: str) -> None:
    calls: list[list[str]] = []
    requests, methods = numbered("GET")
    answers = run(engine, raise_at_two(calls), requests, methods, on_error="fail")
    assert [status for status, _ in answers] == [500] * 4 and len(calls) == 1


def test_what_was_answered_before_the_raise_stays(engine: str) -> None:
    calls: list[list[str]] = []

    def handler(batch: bb.Batch) -> None:
        calls.append(numbers(batch))
        for request in batch:
            if request.params["n"] == "2":
                raise CulpritError
            request.respond(f"call {len(calls)}")

    requests, methods = numbered("GET")
    answers = run(engine, handler, requests, methods)
    assert answers[:2] == [(200, b"call 1")] * 2 and answers[2][0] == 500 and answers[3] == (200, b"call 3")
    assert calls == [["0", "1", "2", "3"], ["2"], ["3"]]


def test_a_raised_http_error_is_the_answer(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    def handler(batch: bb.Batch) -> list[str]:
        if "2" in numbers(batch):
            raise bb.HTTPError(409, "taken")
        return ["fine"] * len(batch)

    requests, methods = numbered("GET")
    answers = run(engine, handler, requests, methods)
    assert [status for status, _ in answers] == [200, 200, 409, 200] and b"taken" in answers[2][1]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_with_request_confines(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    def handler(batch: bb.Batch) -> None:
        for request in batch:
            with request:
                number = request.params["n"]
                if number == "1":
                    raise CulpritError("confined")
                if number == "2":
                    raise bb.HTTPError(418, "teapot")
                request.respond(f"fine {number}")
                if number == "3":
                    request.respond("again")  # AlreadyAnsweredError goes on up, and does no harm to what was answered

    requests, methods = numbered("POST")
    answers = run(engine, handler, requests, methods)
    assert [status for status, _ in answers] == [200, 500, 418, 200]
    assert answers[0] == (200, b"fine 0") and answers[3] == (200, b"fine 3") and b"teapot" in answers[2][1]
    assert any("confined" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize(
    "result",
    [
        lambda batch: ["too few"],
        lambda batch: ["x"] * (len(batch) + 1),
        lambda batch: [],
        lambda batch: "text",
        lambda batch: b"1234",
        lambda batch: dict.fromkeys(range(len(batch)), b""),
        lambda batch: 4,
        lambda batch: (text for text in ["x"] * len(batch)),
        lambda batch: __import__("numpy").zeros((len(batch) + 1, 2)),
        lambda batch: __import__("numpy").float64(1),
    ],
    ids=["few", "many", "none", "str", "bytes", "dict", "int", "generator", "rows", "scalar"],
)
def test_a_wrong_result_is_500_for_all_with_a_log_line(
    engine: str, caplog: pytest.LogCaptureFixture, result: Any
) -> None:
    requests, methods = numbered("POST")
    assert [status for status, _ in run(engine, result, requests, methods)] == [500] * 4
    lines = [record.getMessage() for record in caplog.records if record.name == "batchbridge.handlers"]
    assert len(lines) == 1 and "/x/{n}" in lines[0], lines


def test_a_wrong_length_does_not_run_the_handler_again(engine: str) -> None:
    calls: list[int] = []
    requests, methods = numbered("GET")

    def handler(batch: bb.Batch) -> list[str]:
        calls.append(len(batch))
        return ["x"]

    assert [status for status, _ in run(engine, handler, requests, methods)] == [500] * 4
    assert calls == [4]


def test_what_is_left_unanswered_is_500_with_one_log_line(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    def forgetful(batch: bb.Batch) -> None:
        batch[0].respond("here")

    requests, methods = numbered("GET")
    assert [status for status, _ in run(engine, forgetful, requests, methods)] == [200, 500, 500, 500]
    (line,) = [record.getMessage() for record in caplog.records if record.name == "batchbridge.handlers"]
    assert "forgetful" in line and "/x/{n}" in line and "3" in line


def test_a_too_large_response_is_500_for_itself(engine: str, caplog: pytest.LogCaptureFixture) -> None:
    def handler(batch: bb.Batch) -> list[bytes]:
        return [b"z" * (200_000 if request.params["n"] == "1" else 3) for request in batch]

    requests, methods = numbered("GET")
    answers = run(engine, handler, requests, methods, {"response_size_bytes_max": "100KiB"})
    assert [status for status, _ in answers] == [200, 500, 200, 200]
    assert any("200000" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_a_handler_that_exits_its_thread_stops_nobody(engine: str, threads: int) -> None:
    server = make_server(engine, handler_threads=threads)

    @server.batch("/exit")
    def leave(batch: bb.Batch) -> None:
        sys.exit(3)

    @server.batch("/fine")
    def fine(batch: bb.Batch) -> list[str]:
        return ["fine"] * len(batch)

    with running(server), Client(server.url) as client:
        for _ in range(3):
            assert client.ask("GET", "/exit").status == 500
            assert client.ask("GET", "/fine").body == b"fine"


def test_failures_on_all_sides_balance(engine: str) -> None:
    server = make_server(engine, handler_threads=2)

    @server.batch("/x/{n}", max_batch_size=16, concurrency=2)
    def handler(batch: bb.Batch) -> list[Any]:
        if len(batch) % 3 == 0:
            raise CulpritError
        return [b"x", bb.HTTPError(404), CulpritError(), 7][: len(batch)] if len(batch) <= 4 else [b"x"] * len(batch)

    logging.getLogger("batchbridge.handlers").setLevel(logging.CRITICAL)

    def client_of(place: int) -> int:
        with Client(server.url) as client:
            for _ in range(20):
                client.send(head("GET", "/x/1") * (place + 1))
                assert {reply.status for reply in client.replies(*["GET"] * (place + 1))} <= {200, 404, 500}
            return 20 * (place + 1)

    try:
        with running(server):
            counts = together([lambda place=place: client_of(place) for place in range(5)])
    finally:
        logging.getLogger("batchbridge.handlers").setLevel(logging.NOTSET)
    assert server.stats()["requests"]["read"] == sum(counts)  # type: ignore[arg-type]


# --- the lifespan -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("threads", "engine_threads"), [(0, 1), (1, 1), (3, 1), (0, 2), (2, 2)])
def test_the_lifespan_is_entered_and_left_once_a_thread(engine: str, threads: int, engine_threads: int) -> None:
    entered: list[tuple[int, int]] = []
    left: list[int] = []
    lock = threading.Lock()

    def lifespan(server: bb.Server) -> Any:
        with lock:
            state = len(entered)
            entered.append((state, threading.get_ident()))
        yield state
        with lock:
            left.append(state)

    server = make_server(engine, lifespan=lifespan, handler_threads=threads, engine_threads=engine_threads)

    @server.batch("/state", concurrency=8, max_batch_size=1)
    def state(batch: bb.Batch) -> list[str]:
        return [str((batch.state, threading.get_ident()) in entered)]

    with running(server):
        count = max(1, threads) * engine_threads
        assert len(entered) == count and left == []
        for _ in range(20):
            with Client(server.url) as client:
                assert client.ask("GET", "/state").body == b"True"
    assert sorted(left) == list(range(count))


@pytest.mark.parametrize("threads", [0, 1, 2])
def test_a_lifespan_that_raises_is_told_and_leaves_nothing_running(engine: str, threads: int) -> None:
    def lifespan(server: bb.Server) -> Any:
        raise CulpritError("no model")
        yield

    server = make_server(engine, lifespan=lifespan, handler_threads=threads)
    server.batch("/x")(lambda batch: ["x"])
    before = threading.active_count()
    with pytest.raises(CulpritError, match="no model"), server.running():
        pass
    assert threading.active_count() == before


def test_a_server_can_run_again(engine: str) -> None:
    server = make_server(engine)
    server.batch("/x")(lambda batch: ["x"] * len(batch))
    for _ in range(3):
        with running(server), Client(server.url) as client:
            assert client.ask("GET", "/x").body == b"x"
        assert server.stats()["requests"]["read"] == 1
