"""Bodies that a route decodes: what is good reaches the handler decoded, what is bad is answered before the handler is
called, and the rest of its batch does not notice.
"""

import json
from typing import Any

import msgpack
import numpy as np
import pytest

import batchbridge as bb
from support.loop import get, looping, make_server, post

DEEP = 100_000


def posted(decode: Any, *bodies: bytes, content_type: str | None = None, call: str | None = None) -> list[Any]:
    """What becomes of these bodies, posted together: the handler's view of each, or the status it got; and the sizes of
    the batches that the handler was called with, last."""
    server = bb.Server(handler_threads=0)
    values: list[Any] = []
    sizes: list[int] = []

    @server.batch("/h", methods=["POST"], decode=decode)
    def handler(batch: bb.Batch) -> list[str]:
        sizes.append(len(batch))
        for request in batch:
            values.append(getattr(request, call or "json")())
        return [f"{len(values) - len(batch) + n}" for n in range(len(batch))]

    headers = {} if content_type is None else {"Content-Type": content_type}
    with server.test_client() as client:
        responses = client.batch([("POST", "/h", body, headers) for body in bodies])
    return [values[int(r.text)] if r.status == 200 else r.status for r in responses] + [sizes]


# --- JSON -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "", "\u00e4\U0001f600", [], [1, [2]], {}, {"a": {"b": None}}])
def test_json_that_is_good(value: Any) -> None:
    assert posted(bb.Json(), json.dumps(value).encode()) == [value, [1]]
    assert posted(None, json.dumps(value).encode()) == [value, [1]]
    assert posted(bb.Json(), json.dumps(value).encode("utf-16")) == [value, [1]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nul",
        b"'a'",
        b"[1,]",
        b"\xff",
        b'"\xff"',
        b"{} {}",
        b"[" * DEEP,
        b'{"a":' * DEEP,
        b"1" * 5000,
        b"\0",
        b"[1] x",
    ],
)
def test_json_that_is_bad_is_400_and_no_others_business(body: bytes) -> None:
    assert posted(bb.Json(), b"1", body, b"[2]") == [1, 400, [2], [2]]


def test_a_handler_that_asks_for_json_itself_gets_an_http_error() -> None:
    server = bb.Server(handler_threads=0)
    errors: list[bb.HTTPError] = []

    @server.batch("/h", methods=["POST"])
    def handler(batch: bb.Batch) -> list[Any]:
        answers: list[Any] = []
        for request in batch:
            with pytest.raises(bb.HTTPError) as caught:
                request.json()
            errors.append(caught.value)
            answers.append(caught.value)
        return answers

    with server.test_client() as client:
        response = client.post("/h", b"{bad")
    assert (response.status, errors[0].status) == (400, 400)
    assert response.text.startswith("the body is not JSON: ")


def test_what_was_decoded_is_decoded_once() -> None:
    server = bb.Server(handler_threads=0)

    @server.batch("/h", methods=["POST"], decode=bb.Json())
    def handler(batch: bb.Batch) -> list[str]:
        assert all(request.json() is request.json() for request in batch)
        batch[0].json().append("kept")
        return [json.dumps(request.json()) for request in batch]

    with server.test_client() as client:
        assert client.post("/h", json=["a"]).json() == ["a", "kept"]


@pytest.mark.parametrize(
    ("decode", "content_type", "is_taken"),
    [
        (bb.Json(), None, True),
        (bb.Json(), "application/json", True),
        (bb.Json(), "Application/JSON; charset=utf-8", True),
        (bb.Json(), "application/problem+json", True),
        (bb.Json(), "application/ld+JSON;x=y", True),
        (bb.Json(), "text/json", False),
        (bb.Json(), "application/jsonl", False),
        (bb.Json(), "application/msgpack", False),
        (bb.Json(), "text/plain; x=application/json", False),
        (bb.Json(), "", False),
        (bb.Msgpack(), None, True),
        (bb.Msgpack(), "application/msgpack", True),
        (bb.Msgpack(), "application/x-msgpack", True),
        (bb.Msgpack(), "application/vnd.msgpack", True),
        (bb.Msgpack(), "application/json", False),
    ],
)
def test_another_content_type_is_415(decode: Any, content_type: str | None, is_taken: bool) -> None:
    body = b"1" if isinstance(decode, bb.Json) else msgpack.packb(1)
    call = "json" if isinstance(decode, bb.Json) else "msgpack"
    result = posted(decode, body, body, content_type=content_type, call=call)
    if content_type == "":
        assert result in ([1, 1, [2]], [415, 415, []])
    else:
        assert result == ([1, 1, [2]] if is_taken else [415, 415, []])


# --- msgpack ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, True, 0, -1.5, "", "\u00e4", b"\0\xff", [], [1, [2]], {}, {"a": {"b": None}}])
def test_msgpack_that_is_good(value: Any) -> None:
    assert posted(bb.Msgpack(), msgpack.packb(value), call="msgpack") == [value, [1]]


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"\x92\x01", b"\x01\x01", b"\xd9\x01\xff", b"\x91" * 5000, b"\xdd\xff\xff\xff\xff", b"\xc7\xff"],
)
def test_msgpack_that_is_bad_is_400_and_no_others_business(body: bytes) -> None:
    good = msgpack.packb([1])
    assert posted(bb.Msgpack(), good, body, good, call="msgpack") == [[1], 400, [1], [2]]


# --- arrays -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("<f4", (16,)),
        ("<f8", ()),
        (">i2", (3,)),
        ("<u1", (64,)),
        ("<u1", (65,)),
        ("<c8", (2, 3)),
        ("?", (5,)),
        ("<f4", (2, 3, 4)),
        ("S3", (2,)),
        ("<M8[s]", (1,)),
        ("<f2", (1, 1)),
    ],
)
def test_array_bodies_lie_side_by_side_as_one_array(dtype: str, shape: tuple[int, ...]) -> None:
    server = bb.Server(handler_threads=0)
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    bodies = [bytes((n * 7 + place) % 2 for place in range(size)) for n in range(5)]
    checked = []

    @server.batch("/h", methods=["POST"], decode=bb.Array(dtype, shape))
    def handler(batch: bb.Batch) -> list[bytes]:
        array = batch.as_array()
        assert (array.shape, array.dtype) == ((5, *shape), np.dtype(dtype))
        assert (
            [array[n].tobytes() for n in range(5)]
            == bodies
            == [bytes(request.body) for request in batch]
            == batch.bodies
        )
        assert not array.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            array[0] = array[1]
        with pytest.raises(ValueError, match="WRITEABLE"):
            array.flags.writeable = True
        assert array.__array_interface__["data"][0] % 64 == 0
        assert array.strides[0] == (size + 63) // 64 * 64
        assert array.flags.c_contiguous == (size % 64 == 0)
        copy = batch.as_array(copy=True)
        assert copy.flags.writeable and copy.flags.c_contiguous and copy.base is None
        assert copy.tobytes() == b"".join(bodies)
        copy[0] = copy[1]
        assert array[0].tobytes() == bodies[0]
        checked.append(True)
        return [row.tobytes() for row in array]

    with server.test_client() as client:
        responses = client.batch([("POST", "/h", body) for body in bodies])
        assert [response.body for response in responses] == bodies
        assert client.engine.stats()["bridge"]["body_copies"] == 5
    assert checked == [True]


@pytest.mark.parametrize("length", [0, 1, 7, 9, 16, 8000])
def test_a_body_of_another_length_is_422_before_the_handler(length: int) -> None:
    server = bb.Server(handler_threads=0)
    server.batch("/h", methods=["POST"], decode=bb.Array("<u4", (2,)))(lambda batch: batch.as_array()[:, ::-1])
    one, two = bytes([1, 0, 0, 0, 2, 0, 0, 0]), bytes([3, 0, 0, 0, 4, 0, 0, 0])
    with server.test_client() as client:
        responses = client.batch([("POST", "/h", body) for body in (one, b"x" * length, two)])
        assert [response.status for response in responses] == [200, 422, 200]
        assert [responses[0].body, responses[2].body] == [one[4:] + one[:4], two[4:] + two[:4]]
        assert client.engine.stats()["bridge"]["items"] == 2


def test_an_array_may_come_in_chunks_and_in_pieces() -> None:
    server = make_server()
    server.batch("/h", methods=["POST"], decode=bb.Array("<u4", (2,)))(lambda batch: batch.as_array())
    chunked = get("/h", "Transfer-Encoding: chunked", method="POST") + b"3\r\nabc\r\n1\r\nd\r\n4\r\nefgh\r\n0\r\n\r\n"
    pieces = [bytes([byte]) for byte in chunked]
    with looping(server) as loop:
        clients = [loop.connect(*pieces), loop.connect(post("/h", b"ABCDEFGH")), loop.connect(chunked)]
        loop.settle()
        assert [loop.replies(client)[0].body for client in clients] == [b"abcdefgh", b"ABCDEFGH", b"abcdefgh"]


def test_as_array_needs_a_route_of_arrays() -> None:
    server = bb.Server(handler_threads=0)
    raised: list[bool] = []

    @server.batch("/h", methods=["POST"], decode=bb.Json())
    def handler(batch: bb.Batch) -> list[str]:
        with pytest.raises(TypeError, match=r"the route /h has no decode=Array"):
            batch.as_array()
        raised.append(True)
        return ["x"]

    with server.test_client() as client:
        assert client.post("/h", json=1).status == 200
    assert raised


def test_more_arrays_than_a_slab_holds() -> None:
    server = bb.Server(handler_threads=0, config=bb.Config(body_size_bytes_max=200_000))
    server.batch("/h", methods=["POST"], decode=bb.Array("<u1", (200_000,)), max_batch_size=64)(
        lambda batch: batch.as_array()[:, :3]
    )
    with server.test_client() as client:
        responses = client.batch([("POST", "/h", bytes([n]) * 200_000) for n in range(30)])
        assert [response.body for response in responses] == [bytes([n]) * 3 for n in range(30)]


@pytest.mark.parametrize(
    ("result", "bodies"),
    [
        (np.array([1, 2, 3], "<i4"), [b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0"]),
        (np.array([[1, 2], [3, 4], [5, 6]], "u1"), [b"\1\2", b"\3\4", b"\5\6"]),
        (np.array([[1, 2], [3, 4], [5, 6]], "u1").T.copy().T, [b"\1\2", b"\3\4", b"\5\6"]),
        (np.arange(6, dtype="u1")[::2], [b"\0", b"\2", b"\4"]),
        (np.array([1, 2, 3], ">u2"), [b"\0\1", b"\0\2", b"\0\3"]),
        (np.zeros((3, 0)), [b"", b"", b""]),
        (np.zeros((3, 2, 2), "?"), [b"\0" * 4] * 3),
        (np.array(["a", "bc", ""]), [b"a", b"bc", b""]),
        (np.array([b"a", b"bc", b""]), [b"a", b"bc", b""]),
        (np.array([b"a", "b", bb.Response("c")], object), [b"a", b"b", b"c"]),
    ],
)
def test_each_row_of_a_returned_array_is_an_answer(result: Any, bodies: list[bytes]) -> None:
    server = bb.Server(handler_threads=0)
    server.batch("/h")(lambda batch: result)
    with server.test_client() as client:
        responses = client.batch(["/h"] * 3)
    assert [(response.status, response.body) for response in responses] == [(200, body) for body in bodies]
    kind = "application/octet-stream" if result.dtype.kind not in "UO" else responses[0].headers["content-type"]
    assert responses[0].headers["content-type"] == kind


def test_an_array_answers_only_what_has_no_answer() -> None:
    server = bb.Server(handler_threads=0)

    @server.batch("/h")
    def handler(batch: bb.Batch) -> Any:
        batch[1].respond(b"other", status=404)
        return np.arange(len(batch), dtype="u1")

    with server.test_client() as client:
        assert [response.body for response in client.batch(["/h"] * 3)] == [b"\0", b"other", b"\2"]


def test_decode_without_a_body_to_decode() -> None:
    """GET on a route that decodes: there is no JSON in no bytes."""
    server = bb.Server(handler_threads=0)
    server.batch("/h", methods=["GET", "POST"], decode=bb.Json())(lambda batch: ["x"] * len(batch))
    with server.test_client() as client:
        assert client.get("/h").status == 400
        assert client.post("/h", json=None, body=b"1").status == 200
