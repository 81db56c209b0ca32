"""A decoded path begins with "/", has no segment "", "." or "..", and never leaves the root, or there is none.

The input ends before an unmapped page, and so does the room for the output; decoding in place gives the same.
"""

import os
from urllib.parse import unquote_to_bytes

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchbridge.cython_ext import parse_testing


def decode(path):
    decoded = parse_testing.decode_request_path(path)
    assert parse_testing.decode_request_path(path, in_place=True) == decoded
    return decoded


@pytest.mark.parametrize(
    ("path", "decoded"),
    [
        (b"/", b"/"),
        (b"/a", b"/a"),
        (b"/a/", b"/a/"),
        (b"/a/b.html", b"/a/b.html"),
        (b"//", b"/"),
        (b"///a///b///", b"/a/b/"),
        (b"/.", b"/"),
        (b"/./", b"/"),
        (b"/a/.", b"/a/"),
        (b"/a/./b", b"/a/b"),
        (b"/a/..", b"/"),
        (b"/a/../", b"/"),
        (b"/a/../b", b"/b"),
        (b"/a/b/..", b"/a/"),
        (b"/a/b/../c", b"/a/c"),
        (b"/a/b/../../c", b"/c"),
        (b"/a//../b", b"/b"),
        (b"/a/./../b", b"/b"),
        (b"/...", b"/..."),
        (b"/.a", b"/.a"),
        (b"/..a/a..", b"/..a/a.."),
        (b"/%41%62%7a%7A", b"/Abzz"),
        (b"/a%20b", b"/a b"),
        (b"/a+b", b"/a+b"),
        (b"/%25", b"/%"),
        (b"/%2541", b"/%41"),
        (b"/%252e%252e/", b"/%2e%2e/"),
        (b"/%c3%a9\xff", b"/\xc3\xa9\xff"),
        (b"/%01%0a%5c", b"/\x01\n\\"),
        (b"/a/%2e%2E/b", b"/b"),
        (b"/a/.%2e/b", b"/b"),
        (b"/a/%2e/b", b"/a/b"),
        (b"/a/%2e", b"/a/"),
        (b"/%3f%23", b"/?#"),
    ],
)
def test_valid_paths(path, decoded):
    assert decode(path) == decoded


@pytest.mark.parametrize(
    "path",
    [
        b"",
        b"a",
        b"*",
        b"./a",
        b"%2f",
        b"/..",
        b"/../",
        b"/../a",
        b"/./..",
        b"//..",
        b"/a/../..",
        b"/a/../../a",
        b"/a//../..",
        b"/%2e%2e",
        b"/%2e./a",
        b"/%",
        b"/%4",
        b"/%4/",
        b"/%g0",
        b"/%0g",
        b"/%%41",
        b"/% 41",
        b"/a%2fb",
        b"/a%2Fb",
        b"/%2f..%2f",
        b"/a%00",
        b"/a\x00b",
    ],
)
def test_bad_paths_are_refused(path):
    assert decode(path) == -400


def test_the_length_of_the_path_is_room_enough_and_less_may_not_be():
    assert parse_testing.decode_request_path(b"/abc", room=4) == b"/abc"
    for room in range(4):
        assert parse_testing.decode_request_path(b"/abc", room=room) == -414
    assert parse_testing.decode_request_path(b"/%41%42", room=3) == b"/AB"
    assert parse_testing.decode_request_path(b"/%41%42/", room=3) == -414


SEGMENTS = st.one_of(
    st.sampled_from([b"", b".", b"..", b"%2e", b"%2E%2e", b"...", b"%", b"%2f", b"%00", b"a", b"%61"]),
    st.binary(max_size=4).map(lambda text: text.replace(b"/", b"")),
)


def reference(path):
    """The same by other means: split, decode, resolve."""
    if not path.startswith(b"/"):
        return -400
    names = []
    for segment in path.split(b"/")[1:]:
        escapes = segment.split(b"%")[1:]
        name = unquote_to_bytes(segment)
        if b"\x00" in name or b"/" in name:
            return -400
        if any(len(bytes_after) < 2 or not is_hexadecimal(bytes_after[:2]) for bytes_after in escapes):
            return -400
        if name == b"..":
            if not names:
                return -400
            names.pop()
        elif name not in (b"", b"."):
            names.append(name)
    directory = name in (b"", b".", b"..")
    return b"".join(b"/" + name for name in names) + (b"/" if directory or not names else b"")


def is_hexadecimal(text):
    return all(byte in b"0123456789abcdefABCDEF" for byte in text)


@settings(derandomize=True, deadline=None, max_examples=1000)
@given(st.lists(SEGMENTS, max_size=8))
def test_any_path_decodes_as_the_reference_does(segments):
    path = b"/" + b"/".join(segments)
    decoded = decode(path)
    assert decoded == reference(path)
    if isinstance(decoded, bytes):
        assert os.path.normpath(decoded).rstrip(b"/") == decoded.rstrip(b"/")


@settings(derandomize=True, deadline=None, max_examples=1000)
@given(st.binary(max_size=40), st.integers(0, 40))
def test_no_room_is_exceeded(path, room):
    for data in (path, b"/" + path):
        bounded, free = parse_testing.decode_request_path(data, room=room), decode(data)
        assert bounded in (free, -414)
        if room >= len(data):
            assert bounded == free
