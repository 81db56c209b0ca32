"""The access log: one line a response in the Combined format, with everything escaped that a client could use to forge
lines or to confuse who reads them, cut where it is endless, written in large pieces, and never in anybody's way.
"""

import os
import re
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import batchbridge as bb
from support.loop import Loop, get, make_server, post

S = 1_000_000
LINE = re.compile(
    r'(?P<client>\S+) - - \[(?P<time>[^\]]+)\] "(?P<request>[^"]*)" (?P<status>\d{3}) (?P<size>\d+) '
    r'"(?P<referer>[^"]*)" "(?P<agent>[^"]*)"'
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


@pytest.fixture
def loop(tmp_path: Path, path: Path) -> Iterator[Loop]:
    (tmp_path / "a.txt").write_text("the file\n")
    server = make_server(root=str(tmp_path), access_log=str(path), access_log_buffer_size_bytes=4096)
    server.batch("/h", methods=["GET", "POST"], timeout_us=9 * S)(lambda batch: ["four"] * len(batch))
    server.batch("/same", coalesce=True)(lambda batch: ["same"] * len(batch))
    with Loop(server) as loop:
        yield loop


def lines(loop: Loop, path: Path) -> list[dict[str, str]]:
    """The fields of all lines; the log is flushed for it."""
    loop.turn(S)
    found = [LINE.fullmatch(line) for line in path.read_text("ascii").splitlines()]
    assert all(found), path.read_text("ascii")
    return [match.groupdict() for match in found if match]


def test_a_line_has_all_fields_of_the_combined_format(loop: Loop, path: Path) -> None:
    before = int(time.time()) - 1  # the clock that the engine looks at is a little late
    client = loop.connect(get("/h?q=1", "Referer: http://r/", "User-Agent: agent/1.0 (x)"), address="192.0.2.7")
    loop.settle()
    (line,) = lines(loop, path)
    moment = datetime.strptime(line.pop("time"), "%d/%b/%Y:%H:%M:%S %z").timestamp()
    assert before <= moment <= time.time()
    assert line == {
        "client": "192.0.2.7",
        "request": "GET /h?q=1 HTTP/1.1",
        "status": "200",
        "size": "4",
        "referer": "http://r/",
        "agent": "agent/1.0 (x)",
    }
    assert loop.engine.output(client)


@pytest.mark.parametrize(("address", "written"), [("::1", "::1"), ("2001:db8::a:1", "2001:db8::a:1"), (None, "-")])
def test_the_client_is_its_address(loop: Loop, path: Path, address: str | None, written: str) -> None:
    loop.connect(get("/h"), address=address)
    loop.settle()
    (line,) = lines(loop, path)
    assert (line["client"], line["referer"], line["agent"]) == (written, "-", "-")


@pytest.mark.parametrize(
    ("request_", "written", "status", "size"),
    [
        (get("/a.txt"), "GET /a.txt HTTP/1.1", 200, 9),
        (get("/a.txt", method="HEAD"), "HEAD /a.txt HTTP/1.1", 200, 0),
        (get("/a.txt", "If-None-Match: *"), "GET /a.txt HTTP/1.1", 304, 0),
        (get("/a.txt", "Range: bytes=2-4"), "GET /a.txt HTTP/1.1", 206, 3),
        (get("/h", method="HEAD"), "HEAD /h HTTP/1.1", 200, 0),
        (post("/h", b"body"), "POST /h HTTP/1.1", 200, 4),
        (get("/nothing", version="1.0"), "GET /nothing HTTP/1.0", 404, 14),
        (get("http://else/h"), "GET http://else/h HTTP/1.1", 200, 4),
        (get("*", method="OPTIONS"), "OPTIONS * HTTP/1.1", 204, 0),
        (get("/h", method="BREW"), "BREW /h HTTP/1.1", 501, None),
        (get("/%2e%2e/%00"), "GET /%2e%2e/%00 HTTP/1.1", 400, None),
        (get("/h", "Content-Length: 9999999999", method="POST"), "POST /h HTTP/1.1", 413, None),
        (b"nonsense\r\n\r\n", "nonsense", 400, None),
        (b"GET /h HTTP/1.1\r\nBad Header: x\r\n\r\n", "GET /h HTTP/1.1", 400, None),
        (b"\x16\x03\x01\x02\x00\x01", "\\x16\\x03\\x01\\x02\\x00\\x01", 400, None),
        (b'G"T / HTTP/1.1\r\n\r\n', "G\\x22T / HTTP/1.1", 400, None),
        (get("/" + "x" * 9000), "GET /" + "x" * 251, 414, None),
    ],
)
def test_every_kind_of_response_has_a_line(
    loop: Loop, path: Path, request_: bytes, written: str, status: int, size: int | None
) -> None:
    client = loop.connect(request_)
    loop.settle()
    loop.engine.feed_end(client)
    loop.settle()
    output = loop.engine.output(client)
    if not output:  # half of something that may yet be a request
        pytest.fail("there was no response")
    (line,) = lines(loop, path)
    assert (line["request"], line["status"]) == (written, f"{status}")
    body = output.partition(b"\r\n\r\n")[2]
    assert line["size"] == f"{len(body) if size is None else size}"


def test_time_outs_and_those_who_went_have_a_line(loop: Loop, path: Path) -> None:
    half, slow, gone = loop.connect(b"GET /half"), loop.connect(get("/h")), loop.connect(get("/h", "Referer: r"))
    loop.turn()
    loop.engine.reset(gone)
    loop.turn(20 * S)
    loop.settle()
    assert b" 408 " in loop.engine.output(half) and b" 504 " in loop.engine.output(slow)
    found = {(line["request"], line["status"], line["referer"]) for line in lines(loop, path)}
    assert found == {("GET /h HTTP/1.1", "499", "r"), ("GET /h HTTP/1.1", "504", "-"), ("-", "408", "-")}


def test_each_of_those_who_share_an_answer_has_a_line_of_its_own(loop: Loop, path: Path) -> None:
    for number in range(5):
        loop.connect(get("/same", f"User-Agent: {number}"))
    loop.settle()
    assert sorted(line["agent"] for line in lines(loop, path)) == ["0", "1", "2", "3", "4"]
    assert loop.stats["bridge"]["coalesced"] == 4


@pytest.mark.parametrize(
    ("sent", "written"),
    [
        (b'a"b', "a\\x22b"),
        (b"a\\b", "a\\x5cb"),
        (b"a\\x22b", "a\\x5cx22b"),
        (b"\xc3\xa4\xff", "\\xc3\\xa4\\xff"),
        (b"a\tb", "a\\x09b"),
        (b"~ !#[]", "~ !#[]"),
        (b'" 200 0 "-" "-', "\\x22 200 0 \\x22-\\x22 \\x22-"),
        (b"", "-"),
    ],
)
@pytest.mark.parametrize("header", ["Referer", "User-Agent"])
def test_what_could_forge_a_line_is_escaped(loop: Loop, path: Path, header: str, sent: bytes, written: str) -> None:
    loop.connect(b"GET /h HTTP/1.1\r\nHost: x\r\n" + header.encode() + b": " + sent + b"\r\n\r\n")
    loop.settle()
    (line,) = lines(loop, path)
    assert line["referer" if header == "Referer" else "agent"] == written


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.binary(max_size=60), st.binary(max_size=60), st.binary(max_size=40))
def test_whatever_is_sent_there_is_one_well_formed_line_a_request(
    loop: Loop, path: Path, target: bytes, agent: bytes, rest: bytes
) -> None:
    before = loop.stats["requests"]["read"]
    size = path.stat().st_size
    request = b"GET /" + target + b" HTTP/1.1\r\nHost: x\r\nUser-Agent: " + agent + b"\r\n\r\n"
    client = loop.connect(request, rest)
    loop.engine.feed_end(client)
    loop.settle()
    loop.turn(S)
    with path.open("rb") as file:
        file.seek(size)
        new = file.read().decode("ascii")
    assert new.endswith("\n") or not new
    assert all(LINE.fullmatch(line) and line.isprintable() for line in new.splitlines())
    assert len(new.splitlines()) == loop.stats["requests"]["read"] - before


def test_endless_fields_are_cut(loop: Loop, path: Path) -> None:
    loop.connect(get("/h?" + "q" * 5000, "Referer: " + '"' * 3000, "User-Agent: " + "u" * 2048))
    loop.settle()
    (line,) = lines(loop, path)
    assert line["request"] == "GET /h?" + "q" * (2048 - 7)
    assert line["referer"] == "\\x22" * 2048
    assert line["agent"] == "u" * 2048


# --- when it is written -----------------------------------------------------------------------------------------------


def test_lines_wait_for_company_but_not_for_long(loop: Loop, path: Path) -> None:
    loop.connect(get("/h"))
    loop.settle()
    assert path.read_bytes() == b""
    assert 0 < loop.wait_us() <= 200_000
    loop.turn(200_000)
    assert len(path.read_bytes().splitlines()) == 1
    assert loop.wait_us() > S  # nothing to write any more


def test_many_lines_are_written_together(loop: Loop, path: Path) -> None:
    for _ in range(1000):
        loop.connect(get("/h", "User-Agent: " + "u" * 100))
        loop.settle()
    written = path.read_bytes()
    assert 0 < written.count(b"\n") < 1000
    assert written.endswith(b"\n")
    loop.turn(S)
    assert path.read_bytes().count(b"\n") == 1000
    assert loop.stats["log"] == {"lines": 1000, "lines_lost": 0}


def test_the_last_lines_are_written_at_the_end(loop: Loop, path: Path) -> None:
    loop.connect(get("/h"))
    loop.settle()
    loop.engine.close()
    assert len(path.read_bytes().splitlines()) == 1


def test_without_a_log_there_are_no_lines() -> None:
    server = make_server(access_log="off")
    server.batch("/h")(lambda batch: ["x"] * len(batch))
    with Loop(server) as loop:
        loop.ask(get("/h"))
        assert loop.stats["log"] == {"lines": 0, "lines_lost": 0}


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    server = make_server(access_log="/dev/full")
    server.batch("/h")(lambda batch: ["x"] * len(batch))
    if not os.path.exists("/dev/full"):
        server.configure({"access_log": "off"})
    with Loop(server) as loop:
        for _ in range(3):
            assert loop.ask(get("/h")).status == 200
            loop.turn(S)
        assert loop.stats["log"]["lines_lost"] == 3


def test_a_log_that_cannot_be_opened_is_told_at_the_start() -> None:
    server = make_server(access_log="/nowhere/access.log")
    server.batch("/h")(lambda batch: ["x"] * len(batch))
    with pytest.raises(bb.ConfigError, match=r"access_log: '/nowhere/access\.log' cannot be opened"):
        server.test_client()
