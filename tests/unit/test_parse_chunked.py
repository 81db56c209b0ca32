"""A chunked body decodes to its payload, the same however it is cut and wherever it is written, or it is refused.

RFC 9112 section 7.1, read strictly. Each row is decoded whole and byte by byte, to another place and in place, with the
input and the room for the output before unmapped pages.
"""

import pytest

from batchbridge.cython_ext import parse_testing


def decode(data, **more):
    whole = parse_testing.decode_chunked_body(data, **more)
    for cuts in ((), range(len(data)), range(0, len(data), 3)):
        assert parse_testing.decode_chunked_body(data, cuts=cuts, **more) == whole
        assert parse_testing.decode_chunked_body(data, cuts=cuts, in_place=True, **more) == whole
    return whole


@pytest.mark.parametrize(
    ("body", "payload"),
    [
        (b"0\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n", b"abc"),
        (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"0010\r\n0123456789abcdef\r\n000\r\n\r\n", b"0123456789abcdef"),
        (b"4\r\n\r\n\r\n\r\n0\r\n\r\n", b"\r\n\r\n"),
        (b"5\r\n0\r\n\r\n\r\n0\r\n\r\n", b"0\r\n\r\n"),
        (b"2\r\n\x00\xff\r\n0\r\n\r\n", b"\x00\xff"),
        (b'1;a\r\nx\r\n1;a=b;c="d;e"\r\ny\r\n0;z\r\n\r\n', b"xy"),
        (b"1; a = b\r\nx\r\n0; \r\n\r\n", b"x"),
        (b"1\r\nx\r\n0\r\nA: b\r\nC:\r\nD:\t\xff \r\n\r\n", b"x"),
        (b"0\r\nContent-Lengt: 5\r\nContent-Lengthy: 5\r\nXontent-Length: 5\r\nContent_Length: 5\r\n\r\n", b""),
        (b"0\r\nTransfer-Encodin: a\r\nTransfer-Encodings: a\r\nContent-Encoding: a\r\n\r\n", b""),
    ],
)
def test_valid_bodies(body, payload):
    assert decode(body) == (payload, len(body))
    # What follows is another request's.
    for rest in (b"\r", b"\n", b"0", b"GET / HTTP/1.1\r\n"):
        assert decode(body + rest) == (payload, len(body))
    for length in range(len(body)):
        assert decode(body[:length]) == 0


@pytest.mark.parametrize(
    "body",
    [
        b"\r\n",
        b"\n",
        b";a\r\n",
        b"g\r\n",
        b"-1\r\n",
        b"+1\r\n",
        b"0x1\r\n",
        b" 1\r\n",
        b"\t1\r\n",
        b"1 \r\n",
        b"1\t\r\n",
        b"1 ;a\r\n",
        b"1,\r\n",
        b"1.0\r\n",
        b"1_0\r\n",
        b"1\n",
        b"1\rx",
        b"1\r\r\n",
        b"1;a\n",
        b"1;a\rb\r\n",
        b"1;a\x00\r\n",
        b"1;a\x7f\r\n",
        b"1\x00\r\n",
        b"\xb2\r\n",
        b"1\r\nxy\r\n",
        b"1\r\nx\n",
        b"1\r\nx0\r\n\r\n",
        b"1\r\nx\r0",
        b"1\r\nx\r\r\n",
        b"1\r\nx\r\n\r\n",
        b"2\r\nx\r\n0",
        b"0\r\n\n",
        b"0\r\n\r\r",
        b"0\r\n\rx",
        b"0\n\r\n",
        b"0\r\n: a\r\n",
        b"0\r\na\r\n",
        b"0\r\na b: c\r\n",
        b"0\r\na : b\r\n",
        b"0\r\n a: b\r\n",
        b"0\r\nA: b\r\n c\r\n",
        b"0\r\nA: b\n",
        b"0\r\nA: b\rc\r\n",
        b"0\r\nA: \x00\r\n",
        b"0\r\nA\x00: b\r\n",
        b"0\r\n0\r\n\r\n",
        b"0\r\nContent-Length: 5\r\n\r\n",
        b"0\r\nA: b\r\ntransfer-ENCODING:\r\n\r\n",
        b"8000000000000000\r\n",
        b"10000000000000000\r\n",
        b"ffffffffffffffff\r\n",
        b"100000000000000000001\r\n",
        b"G",
        b"\x16\x03\x01",
    ],
)
def test_bad_coding_is_refused(body):
    assert decode(body) == -400
    assert decode(b"3\r\nabc\r\n" + body) == -400


def test_a_chunk_may_be_as_large_as_a_signed_length():
    assert decode(b"7fffffffffffffff\r\nabc") == 0
    assert decode(b"0" * 100 + b"7FFFFFFFFFFFFFFF\r\nabc") == 0


def test_room_is_needed_for_the_payload_alone():
    body = b"3;x\r\nabc\r\n2\r\nde\r\n0\r\nA: b\r\n\r\n"
    assert decode(body, room=5) == (b"abcde", len(body))
    for room in range(5):
        assert decode(body, room=room) == -413
    assert decode(b"0\r\n\r\n", room=0) == (b"", 5)
    # A size alone takes no room, and what is wrong before the room is used up is told first.
    assert decode(b"ffff\r\nabc", room=3) == 0
    assert decode(b"3\r\nabcd", room=3) == -400
    assert decode(b"4\r\nabcd\r\nx", room=3) == -413


def test_a_size_line_has_at_most_4096_bytes():
    for line in (b"1;" + b"x" * 4092 + b"\r\n", b"0" * 4093 + b"1\r\n"):
        assert len(line) == 4096
        body = (line + b"a\r\n") * 2 + b"0\r\n\r\n"
        assert decode(body) == (b"aa", len(body))
        assert decode(line[:1] + line) == -400
    assert parse_testing.decode_chunked_body(b"1;" + b"x" * 4094) == 0
    assert parse_testing.decode_chunked_body(b"1;" + b"x" * 4095) == -400


def test_a_trailer_line_has_at_most_4096_bytes():
    line = b"A:" + b"x" * 4092 + b"\r\n"
    assert decode(b"0\r\n" + line + b"\r\n") == (b"", 3 + 4096 + 2)
    assert decode(b"0\r\nA" + line + b"\r\n") == -400


def test_trailers_have_at_most_8192_bytes():
    line = b"A:" + b"x" * 60 + b"\r\n"
    body = b"0\r\n" + line * 128 + b"\r\n"
    assert decode(body) == (b"", len(body))
    assert decode(b"0\r\nA" + line * 128 + b"\r\n") == -400
    assert decode(b"0\r\n" + line * 128 + b"A:\r\n\r\n") == -400


def test_many_small_chunks_do_not_add_up_to_a_long_line():
    body = b"1;x\r\na\r\n" * 5000 + b"0\r\n\r\n"
    assert parse_testing.decode_chunked_body(body) == (b"a" * 5000, len(body))
    assert parse_testing.decode_chunked_body(body, in_place=True) == (b"a" * 5000, len(body))
