"""Whatever the bytes, the parser neither crashes nor reads outside them, and what it says about them is consistent.

By hand, with coverage to guide it (`pip install atheris`), from a folder that is filled with `SEEDS` when it is empty:

    python tests/fuzz/fuzz_parse.py CORPUS_FOLDER [-max_len=1024] [other libFuzzer options]

A module built with `CC=clang CFLAGS=-fsanitize=address,fuzzer-no-link` lets the fuzzer see into the parser; then
`LD_PRELOAD=$(python -c "import atheris; print(atheris.path())")/asan_with_fuzzer.so` has to be set.

`tests/unit/test_parse_fuzz.py` runs the same checks over a bounded number of mutations, the same ones each time.
"""

import random
import sys
from pathlib import Path

from batchbridge.cython_ext import parse_testing

# Where mutations start: each shape of request, and words that mean something to the parser.
SEEDS = (
    b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n",
    b"\r\nHEAD /a/../b%20c?d=e HTTP/1.0\r\nConnection: keep-alive, close\r\n\r\n",
    b'GET http://[::1]:80/x HTTP/1.1\r\nHost: a\r\nRange: bytes=0-\r\nIf-None-Match: "a", "b"\r\nCookie: a=b\r\n\r\n',
    b"OPTIONS * HTTP/1.1\r\nHost:\r\nX:\t\xff y \r\n\r\n",
    b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com\r\nUpgrade: x\r\n\r\n",
    b"POST /a HTTP/1.1\r\nHost: a:8080\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
    b"PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=0, no-cache\r\n\r\n"
    b'5;a="b"\r\nhello\r\n0\r\nA: b\r\n\r\nGET / HTTP/1.1\r\n',
    b"10\r\n0123456789abcdef\r\n1;x\r\na\r\n0\r\n\r\n",
    b"/a/%2e%2e//b/./c%2Fd%00/../..",
)
WORDS = (
    *map(bytes, zip(b"\r\n \t:,\x00\x7f\x80%#@[/?*", strict=True)),
    *(b"\r\n", b"\r\n\r\n", b"0\r\n", b"..", b"//", b"%2f", b"http://", b"HTTP/1.1", b"HTTP/2.0", b"65536"),
    *(b"chunked", b"ffffffffffffffff", b"Host: b\r\n", b"Content-Length: 3\r\n", b"Transfer-Encoding: chunked\r\n"),
)
LIMITS = {"head_size_bytes": 300, "target_size_bytes": 40, "header_count": 6}


def check(data: bytes) -> None:
    """All checks on one input; its own bytes decide where it is cut."""
    cuts = sorted(byte * (len(data) + 1) // 256 for byte in data[-5:])
    check_head(data, cuts, {})
    check_head(data, cuts, LIMITS)
    check_chunked(data, cuts)
    check_path(data)


def check_head(data: bytes, cuts: list[int], limits: dict[str, int]) -> None:
    head = parse_testing.parse_request(data, **limits)
    assert parse_testing.parse_request(data, at_start=True, **limits) == head
    assert parse_testing.parse_request(data, cuts=cuts, **limits) == head
    if len(data) < 100:
        assert parse_testing.parse_request(data, cuts=range(len(data)), **limits) == head
    if isinstance(head, int):
        assert head in (0, -400, -414, -417, -431, -501, -505)
        # What is refused stays refused, and what is whole is never incomplete.
        assert head == 0 or parse_testing.parse_request(data + b"x", **limits) == head
        return
    length = head["head_length"]
    assert data[:length].endswith(b"\r\n\r\n")
    lines = data[:length].lstrip(b"\r\n").split(b"\r\n")
    method, target, version = lines[0].split(b" ")
    assert (head["method_name"], head["target"]) == (method, target)
    assert version.startswith(b"HTTP/1.")
    named = [line.split(b":", 1) for line in lines[1:-2]]
    assert head["headers"] == [(name, value.strip(b" \t")) for name, value in named]
    assert head["header_count"] == len(head["headers"])
    assert parse_testing.parse_request(data[:length], **limits) == head
    assert parse_testing.parse_request(data[: length - 1], **limits) == 0


def check_chunked(data: bytes, cuts: list[int]) -> None:
    body = parse_testing.decode_chunked_body(data)
    assert parse_testing.decode_chunked_body(data, in_place=True) == body
    assert parse_testing.decode_chunked_body(data, cuts=cuts) == body
    assert parse_testing.decode_chunked_body(data, cuts=cuts, in_place=True) == body
    if isinstance(body, int):
        assert body in (0, -400)
        return
    payload, consumed = body
    assert parse_testing.decode_chunked_body(data, cuts=cuts, room=len(payload)) == body
    assert parse_testing.decode_chunked_body(data[: consumed - 1]) == 0
    if payload:
        assert parse_testing.decode_chunked_body(data, cuts=cuts, room=len(payload) - 1) == -413


def check_path(data: bytes) -> None:
    path = parse_testing.decode_request_path(data)
    assert parse_testing.decode_request_path(data, in_place=True) == path
    if isinstance(path, int):
        assert path == -400
        return
    assert path.startswith(b"/")
    assert b"\x00" not in path
    assert b"//" not in path
    assert not {b".", b".."} & set(path.split(b"/"))
    # An already normal path, escaped, decodes to itself.
    assert parse_testing.decode_request_path(path.replace(b"%", b"%25")) == path


def mutate(chance: random.Random) -> bytes:
    """A seed, or two joined, with a few bytes or words changed."""
    data = bytearray(chance.choice(SEEDS))
    if chance.random() < 0.2:
        data += chance.choice(SEEDS)
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 8))):
        start = chance.randrange(len(data) + 1)
        end = start + chance.choice((0, 0, 1, 1, 2, 9))
        word = chance.choice((chance.choice(WORDS), bytes([chance.randrange(256)]), b""))
        data[start:end] = word
    return bytes(data)


def main() -> None:
    import atheris

    folder = Path(sys.argv[1])
    if not any(folder.iterdir()):
        for index, seed in enumerate(SEEDS):
            (folder / f"seed-{index}").write_bytes(seed)
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
