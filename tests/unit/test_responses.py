"""What a handler may answer with, and what becomes of it on the wire: every form of `respond()`, of returned entries
and of `Response`; what cannot be sent costs its own item a 500, with a line in the log that names the handler.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import batchbridge as bb
from batchbridge.testing import TestResponse

TEXT, BYTES = "text/plain; charset=utf-8", "application/octet-stream"
Answer = Callable[[bb.Request], Any]


def ask(answer: Answer, *, method: str = "GET", **route: Any) -> TestResponse:
    """The response of a server whose handler calls `answer` for the one request that there is."""
    server = bb.Server(handler_threads=0)
    server.batch("/h", methods=["GET", "POST"], **route)(lambda batch: [answer(request) for request in batch])
    with server.test_client() as client:
        return client.request(method, "/h")


def responding(*args: Any, **more: Any) -> Answer:
    return lambda request: request.respond(*args, **more)


@pytest.fixture
def failures(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """The messages of the handlers' logger."""
    messages: list[str] = []
    with caplog.at_level(logging.INFO, "batchbridge.handlers"):
        yield messages
        messages.extend(record.getMessage() for record in caplog.records if record.name == "batchbridge.handlers")


# --- bodies -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "sent", "content_type"),
    [
        (b"", b"", BYTES),
        (b"bytes\0\xff", b"bytes\0\xff", BYTES),
        ("", b"", TEXT),
        ("t\u00e4xt \U0001f600", "t\u00e4xt \U0001f600".encode(), TEXT),
        (bytearray(b"array"), b"array", BYTES),
        (memoryview(b"view"), b"view", BYTES),
        (memoryview(b"abcdef")[2:4], b"cd", BYTES),
        (np.arange(3, dtype="<u2"), b"\0\0\1\0\2\0", BYTES),
        (np.array([[1, 2], [3, 4]], "u1"), b"\1\2\3\4", BYTES),
        (b"x" * 100_000, b"x" * 100_000, BYTES),
    ],
)
@pytest.mark.parametrize("how", ["respond", "return", "Response"])
def test_a_body_of_any_kind_is_sent_as_its_bytes(how: str, body: Any, sent: bytes, content_type: str) -> None:
    answers: dict[str, Answer] = {
        "respond": responding(body),
        "return": lambda request: body,
        "Response": lambda request: bb.Response(body),
    }
    response = ask(answers[how])
    assert (response.status, response.body, response.headers["content-type"]) == (200, sent, content_type)
    assert response.headers["content-length"] == str(len(sent))


@pytest.mark.parametrize("entry", [np.float64(1.5), np.int32(7)])
def test_a_numpy_scalar_is_its_bytes(entry: Any) -> None:
    assert ask(lambda request: entry).body == entry.tobytes()


def test_subclasses_of_bytes_and_str_are_what_they_are() -> None:
    class Bytes(bytes):
        pass

    class Str(str):
        __slots__ = ()

    assert ask(lambda request: Bytes(b"b")).body == b"b"
    assert ask(lambda request: Str("s")).headers["content-type"] == TEXT


@pytest.mark.parametrize("body", [1, 1.5, object(), [b"x"], {"a": 1}, ("a",), memoryview(b"abcdef")[::2], "\ud800"])
@pytest.mark.parametrize("how", ["respond", "return", "Response"])
def test_what_is_no_body_is_500(how: str, body: Any, failures: list[str]) -> None:
    answers: dict[str, Answer] = {
        "respond": responding(body),
        "return": lambda request: body,
        "Response": lambda request: bb.Response(body),
    }
    assert ask(answers[how]).status == 500


def test_an_entry_that_is_none_leaves_its_item_unanswered() -> None:
    assert ask(lambda request: None).status == 500


# --- what belongs to it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [200, 201, 202, 206, 226, 299, 300, 400, 404, 418, 429, 451, 500, 503, 599])
def test_any_final_status_can_be_sent(status: int) -> None:
    assert ask(responding(b"x", status=status)).status == status
    assert ask(lambda request: bb.Response(b"x", status)).status == status


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_has_none(status: int) -> None:
    response = ask(responding(b"lost", status=status, headers=[("ETag", '"e"')]))
    assert (response.status, response.body, response.headers["etag"]) == (status, b"", '"e"')
    assert "content-length" not in response.headers
    assert response.raw.endswith(b"\r\n\r\n")


@pytest.mark.parametrize("status", [-1, 0, 99, 100, 101, 199, 600, 999, 2**20])
def test_no_other_status_can(status: int) -> None:
    errors: list[Exception] = []

    def answer(request: bb.Request) -> str:
        with pytest.raises(ValueError, match=f"{status} is not a final status") as caught:
            request.respond(b"x", status=status)
        errors.append(caught.value)
        assert not request.answered
        return "answered otherwise"

    assert ask(answer).text == "answered otherwise"
    assert errors


@pytest.mark.parametrize(
    "headers",
    [
        [("X-One", "1"), ("x-two", "2")],
        {"X-One": "1", "x-two": "2"},
        (pair for pair in [("X-One", "1"), ("x-two", "2")]),
        [(b"X-One", b"1"), (b"x-two", b"2")],
        {b"X-One": "1", "x-two": 2},
    ],
)
def test_headers_are_pairs_or_a_mapping_of_str_or_bytes(headers: Any) -> None:
    response = ask(responding(b"x", headers=headers))
    assert response.raw.partition(b"\r\n\r\n")[0].endswith(b"\r\nX-One: 1\r\nx-two: 2")


def test_a_header_may_come_twice() -> None:
    response = ask(responding(b"", headers=[("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]))
    assert response.headers.getall("set-cookie") == ["a=1", "b=2"]


@pytest.mark.parametrize(
    ("value", "sent"), [("  a b\t", b"a b"), ("", b""), ("\u00e4", b"\xe4"), ('"q", w', b'"q", w')]
)
def test_values_are_sent_without_the_space_around_them(value: str, sent: bytes) -> None:
    assert b"\r\nX: " + sent + b"\r\n" in ask(responding(b"", headers={"X": value})).raw


@pytest.mark.parametrize("name", ["", " ", "a b", "a:", "a\r\n", "\u00e4", "a\0", "(", "a/b", '"', "a,b", "{a}"])
def test_a_name_that_is_no_token_is_refused(name: str) -> None:
    with_names: list[str] = []

    def answer(request: bb.Request) -> str:
        with pytest.raises(ValueError, match="is not a header name") as caught:
            request.respond(b"x", headers={name: "1"})
        with_names.append(str(caught.value))
        return "x"

    assert ask(answer).status == 200
    assert repr(name) in with_names[0]


@pytest.mark.parametrize("value", ["a\r\nSet-Cookie: b", "a\nb", "a\rb", "a\0b", "\r\n", "\n"])
@pytest.mark.parametrize("where", ["headers", "content_type"])
def test_a_value_that_would_break_the_message_is_refused(where: str, value: str) -> None:
    def answer(request: bb.Request) -> str:
        with pytest.raises(ValueError, match="has a line end or a NUL"):
            request.respond(b"x", **{where: value if where == "content_type" else [("X", value)]})  # type: ignore[arg-type]
        return "x"

    response = ask(answer)
    assert (response.status, response.body) == (200, b"x")
    assert "set-cookie" not in response.headers


@pytest.mark.parametrize(
    "name", ["Content-Length", "CONNECTION", "transfer-encoding", "Date", "Server", "Keep-Alive", "Upgrade", "Trailer"]
)
def test_what_is_the_engines_to_say_is_refused(name: str) -> None:
    def answer(request: bb.Request) -> str:
        with pytest.raises(ValueError, match="is the engine's to set"):
            request.respond(b"x", headers={name: "1"})
        return "x"

    assert ask(answer).status == 200


def test_header_lines_have_a_limit() -> None:
    assert len(ask(responding(b"x", headers={"X": "y" * 16_000})).headers["x"]) == 16_000
    assert ask(responding(b"x", headers={"X": "y" * 17_000})).status == 500


@pytest.mark.parametrize("size", [0, 10, 20_000, 300_000])
@pytest.mark.parametrize("head", [10, 5000, 16_000])
def test_heads_and_bodies_of_all_sizes_arrive_together(size: int, head: int) -> None:
    response = ask(responding(b"z" * size, headers={"X-Long": "y" * head}, status=201))
    assert (response.status, response.headers["x-long"], response.body) == (201, "y" * head, b"z" * size)


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ({"content_type": "text/html"}, "text/html"),
        ({"headers": {"content-TYPE": "text/css"}}, "text/css"),
        ({"headers": {"content-type": "text/css"}, "content_type": "text/html"}, "text/css"),
        ({"content_type": ""}, None),
        ({"content_type": None}, BYTES),
        ({"headers": {"X": "1"}}, BYTES),
    ],
)
def test_the_content_type_is_what_was_said_once(given: dict[str, Any], sent: str | None) -> None:
    response = ask(responding(b"x", **given))
    assert response.headers.getall("content-type") == ([sent] if sent is not None else [])


def test_the_engine_adds_its_own_lines_once() -> None:
    response = ask(responding(b"x", headers={"X": "1"}))
    assert [name for name, _ in response.headers.items()] == ["date", "server", "content-length", "content-type", "x"]
    assert all(len(response.headers.getall(name)) == 1 for name in response.headers)


def test_head_gets_everything_but_the_body() -> None:
    response = ask(responding(b"x" * 30_000, status=203, headers={"X": "1"}), method="HEAD")
    assert (response.status, response.body, response.headers["content-length"]) == (203, b"", "30000")


@pytest.mark.parametrize(
    "answer", [b"x", "x", bytearray(b"x"), bb.Response("x"), bb.HTTPError(404), bb.HTTPError(404, "d")]
)
def test_a_route_that_varies_says_so_in_every_answer(answer: Any) -> None:
    response = ask(lambda request: answer, vary=["Accept", "X-Tenant"])
    if not isinstance(answer, bb.HTTPError) or answer.detail:
        assert response.headers["vary"] == "Accept, X-Tenant"


def test_arrays_of_a_route_that_varies_say_so_too() -> None:
    server = bb.Server(handler_threads=0)
    server.batch("/h", vary=["Accept"])(lambda batch: np.zeros((len(batch), 2), "u1"))
    with server.test_client() as client:
        assert client.get("/h").headers["vary"] == "Accept"


# --- once, and in time ------------------------------------------------------------------------------------------------


def test_a_second_answer_is_refused_whatever_it_is() -> None:
    def answer(request: bb.Request) -> str:
        assert not request.answered
        request.respond(b"first")
        assert request.answered
        for again in (responding(b"x"), responding("x", status=404), responding(b"x", headers={"X": "1"})):
            with pytest.raises(bb.AlreadyAnsweredError, match=r"item 0 of the batch for /h was answered before"):
                again(request)
        return "ignored, since it has its answer"

    assert ask(answer).body == b"first"


def test_what_was_refused_does_not_count_as_an_answer() -> None:
    def answer(request: bb.Request) -> None:
        for bad in (
            responding(b"x", status=99),
            responding(b"x", headers={"": ""}),
            responding(1),
            responding(b"", cache_ttl_s=9, tags=5),
        ):
            with pytest.raises((ValueError, TypeError)):
                bad(request)
        request.respond(b"at last")

    assert ask(answer).body == b"at last"


# --- exceptions as answers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "body"),
    [
        (bb.HTTPError(404), b"404 Not Found\n"),
        (bb.HTTPError(429, "slow down", [("Retry-After", "7")]), b"slow down\n"),
        (bb.HTTPError(429, headers=[("Retry-After", "7")]), None),
        (bb.HTTPError(503, "\u00e4"), "\u00e4\n".encode()),
        (bb.HTTPError(599), None),
    ],
)
def test_an_http_error_is_its_status_detail_and_headers(
    error: bb.HTTPError, body: bytes | None, failures: list[str]
) -> None:
    response = ask(lambda request: error)
    assert response.status == error.status
    assert body is None or (response.body, response.headers["content-type"]) == (body, TEXT)
    assert [response.headers.get(name) for name, _ in error.headers] == [value for _, value in error.headers]
    assert failures == []


@pytest.mark.parametrize("error", [ValueError("secret"), KeyError("secret"), SystemExit("secret"), OSError()])
def test_another_exception_is_500_and_stays_at_home(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    response = ask(lambda request: error)
    assert (response.status, response.body) == (500, b"500 Internal Server Error\n")
    (record,) = [record for record in caplog.records if record.name == "batchbridge.handlers"]
    assert record.levelno == logging.ERROR
    assert "handler test_responses.ask" in record.getMessage() or "ask.<locals>" in record.getMessage()
    assert " of /h failed" in record.getMessage()


def test_an_http_error_that_cannot_be_sent_is_500(caplog: pytest.LogCaptureFixture) -> None:
    assert ask(lambda request: bb.HTTPError(400, "x", [("Content-Length", "5")])).status == 500
    assert "is the engine's to set" in caplog.text


def test_a_response_can_be_looked_at() -> None:
    response = bb.Response(b"abc", 201, content_type="a/b", headers={"X": "1"}, cache_ttl_s=3, tags="t", public=True)
    assert repr(response) == "<Response 201, 3 bytes>"
    assert (response.body, response.status, response.content_type, response.headers) == (b"abc", 201, "a/b", {"X": "1"})
    assert (response.cache_ttl_s, response.tags, response.public) == (3, "t", True)
    with pytest.raises(AttributeError):
        response.colour = "red"  # type: ignore[attr-defined]
