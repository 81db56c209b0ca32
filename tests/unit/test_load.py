"""The load generator reads responses cut anywhere, notices every wrong one, and counts each request once."""

import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchbridge.cython_ext import ring
from batchbridge.cython_ext.load import Exchange, Load, sequence
from batchbridge.cython_ext.verify import crc32_of, read_all
from batchbridge.measure.load import is_saturated
from support.scripted import Scripted
from support.skips import skip_if

needs_ring = skip_if(
    bool(ring.probe()["ring_error"]), "no-io-uring", "the load generator sends and receives by io_uring"
)

STATUS, LENGTH, BODY = 1, 2, 4
GET = b"GET /a HTTP/1.1\r\nHost: t\r\n\r\n"
HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


# --- reading responses ------------------------------------------------------------------------------------------------


def right(body_length: int, status: int = 200, closes: bool = False) -> tuple[int, int, int, bool]:
    return status, 0, body_length, closes


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (HELLO, [right(5)]),
        (HELLO * 3, [right(5)] * 3),
        (b"HTTP/1.1 200\r\nContent-Length: 5\r\n\r\nhello", [right(5)]),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO, [right(5)]),
        (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 100 C\r\n\r\n" + HELLO, [right(5)]),
        (b"HTTP/1.1 200 OK\r\ncOnTeNt-lEnGtH:  5 \r\nConnection: x, Close\r\n\r\nhello", [right(5, closes=True)]),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello", [right(5, closes=True)]),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\nhello", [right(5)]),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\nT: t\r\n\r\n",
            [right(5)],
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", [right(5, closes=True)]),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_reads_a_response_however_it_is_cut(data, found, size):
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert read_all(pieces, body=b"hello") == found
    assert read_all(pieces, length=5, crc=zlib.crc32(b"hello")) == found


@given(st.binary(max_size=3000), st.lists(st.integers(1, 400), max_size=30), st.booleans())
def test_compares_any_body(body, cuts, chunked):
    head = b"HTTP/1.1 200 OK\r\n"
    if chunked:
        middle = len(body) // 2
        parts = [part for part in (body[:middle], body[middle:]) if part]
        coded = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
        data = head + b"Transfer-Encoding: chunked\r\n\r\n" + coded
    else:
        data = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    pieces, at = [], 0
    for cut in cuts:
        pieces.append(data[at : at + cut])
        at += cut
    pieces.append(data[at:])
    assert read_all(pieces, body=body, crc=zlib.crc32(body)) == [right(len(body))]
    for wrong in {bytes([body[0] ^ 1]) + body[1:], body[:-1] + bytes([body[-1] ^ 1])} if body else ():
        assert read_all(pieces, body=wrong) == [(200, BODY, len(body), False)]
        assert read_all(pieces, length=len(body), crc=zlib.crc32(wrong)) == [(200, BODY, len(body), False)]


@pytest.mark.parametrize(
    ("data", "expectation", "wrong"),
    [
        (HELLO, {"statuses": (204, 404)}, STATUS),
        (HELLO, {"body": b"hell"}, LENGTH),
        (HELLO, {"body": b"hello!"}, LENGTH),
        (HELLO, {"body": b"hellO"}, BODY),
        (HELLO, {"length": 6}, LENGTH),
        (HELLO, {"crc": 1}, BODY),
        (HELLO, {"statuses": (404, 200), "body": b"something else"}, 0),  # that is the body of the 404
        (b"HTTP/1.1 200 OK\r\n\r\nhell", {"body": b"hello"}, LENGTH),
    ],
)
def test_notices_a_wrong_response(data, expectation, wrong):
    for pieces in ([data], [bytes([byte]) for byte in data]):
        assert [found[1] for found in read_all(pieces, **expectation)] == [wrong]


def test_a_head_without_a_body():
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    assert read_all([head * 2], is_head=True, length=5) == [right(0)] * 2
    assert read_all([head], is_head=True, length=6) == [(200, LENGTH, 0, False)]
    unchanged = b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"
    assert read_all([unchanged + HELLO], statuses=(200, 304), body=b"hello") == [right(0, 304), right(5)]
    assert read_all([b"HTTP/1.1 204 No Content\r\n\r\n" * 2], statuses=(204,)) == [right(0, 204)] * 2


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2.0 200 OK\r\n\r\n",
        b"HTTP/1.1 20x OK\r\n\r\n",
        b"HTTP/1.1 600 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 9000,
    ],
)
def test_what_is_no_response_is_malformed(data):
    assert read_all([data])[-1:] == ["malformed"]
    assert read_all([bytes([byte]) for byte in data])[-1:] == ["malformed"]


def test_a_response_cut_short():
    for end in range(1, len(HELLO)):
        assert read_all([HELLO[:end]]) == ["cut"]
    assert read_all([]) == []
    assert read_all([HELLO]) == [right(5)]


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_crc32_is_that_of_zlib(first, second):
    assert crc32_of(first + second) == zlib.crc32(first + second) == crc32_of(second, crc32_of(first))


# --- requests, and their order ----------------------------------------------------------------------------------------


def test_a_sequence_has_the_weights_and_is_the_same_each_time():
    exchanges = [Exchange(GET, weight=weight) for weight in (1, 2, 5, 1e-9)]
    order = sequence(exchanges, 7)
    assert order == sequence(exchanges, 7) != sequence(exchanges, 8)
    shares = [order.count(number) / len(order) for number in range(4)]
    assert shares[:3] == pytest.approx([1 / 8, 2 / 8, 5 / 8], abs=1e-3)
    assert shares[3] > 0


def test_an_exchange_asks_to_close_where_it_does_not_yet():
    assert Exchange(GET).closing() == b"GET /a HTTP/1.1\r\nConnection: close\r\nHost: t\r\n\r\n"
    for data in (b"GET /a HTTP/1.0\r\n\r\n", b"GET /a HTTP/1.1\r\nHost: t\r\nconnection: Close\r\n\r\n"):
        assert Exchange(data).closing() == data
    body = b"POST /a HTTP/1.1\r\nHost: t\r\nContent-Length: 19\r\n\r\n\r\nConnection: close"
    assert Exchange(body).closing().count(b"Connection: close") == 2


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Exchange(b"GET / HTTP/1.1"), "do not end"),
        (lambda: Exchange(GET, weight=0), "not above 0"),
        (lambda: Exchange(GET, weight=float("nan")), "not above 0"),
        (lambda: Exchange(GET, statuses=()), "one to 8"),
        (lambda: Exchange(GET, statuses=(100,)), "200 to 599"),
        (lambda: Load("127.0.0.1", 1, []), "0 exchanges"),
        (lambda: Load("127.0.0.1", 1, [Exchange(GET)], 0), "connections: 0"),
        (lambda: Load("127.0.0.1", 1, [Exchange(GET)], pipeline=0), "pipeline: 0"),
        (lambda: Load("127.0.0.1", 1, [Exchange(GET)], pipeline=2, close=True), "pipelining"),
        (lambda: Load("127.0.0.1", 1, [Exchange(GET)], retries=-1), "retries: -1"),
        (lambda: Load("127.0.0.1", 1, [Exchange(GET)], seconds=0), "seconds"),
        (lambda: Load("127.0.0.1", 1, [Exchange(GET)], rate_per_s=0), "rate_per_s: 0 is not"),
        (lambda: Load("127.0.0.1", 1, [Exchange(GET)], rate_per_s=float("inf")), "rate_per_s: inf is not"),
        (lambda: Load("127.0.0.1", 1, [Exchange(GET)], arrivals="bursts"), "arrivals: 'bursts' is neither"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- on the wire ------------------------------------------------------------------------------------------------------


def load(server, exchanges=None, connections=4, **options):
    options = {"seconds": 20.0, "requests_max": 200, "timeout_s": 5.0, **options}
    return Load(server.host, server.port, exchanges or [Exchange(GET, body=b"hello")], connections, **options)


def sums(figures):
    return figures["sent"], figures["responses"], figures["unanswered"], figures["wrong"]["answers"]


def failures(figures):
    return {kind: count for kind, count in figures["errors"].items() if count}


@needs_ring
@pytest.mark.parametrize("pipeline", [1, 8])
def test_every_request_is_sent_once_and_answered(pipeline):
    with Scripted(lambda _n, _request: HELLO) as server:
        figures = load(server, pipeline=pipeline).run()
        assert sums(figures) == (200, 200, 0, 0)
        assert failures(figures) == {}
        assert figures["requests"] == 200 == len(server.requests)
        assert figures["statuses"] == {200: 200}
        assert figures["bytes"] == 200 * len(HELLO)
        assert server.connections == figures["connections"]["opened"] == 4
        latency = figures["latency_us"]
        assert 0 < latency["p50"] <= latency["p99"] <= latency["p999"] <= latency["max"]
        assert 0 <= figures["client"]["idle_share"] <= 1 and figures["client"]["cpu_s"] > 0


@needs_ring
def test_a_connection_for_each_request():
    with Scripted(lambda _n, _request: HELLO, closes=True) as server:
        figures = load(server, close=True).run()
        assert sums(figures) == (200, 200, 0, 0)
        assert failures(figures) == {}
        assert server.connections == 200
        assert all(b"\r\nConnection: close\r\n" in request for request in server.requests)


@needs_ring
def test_a_connection_that_the_server_says_it_closes():
    closing = HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with Scripted(lambda _n, _request: closing, closes=True) as server:
        figures = load(server).run()
        assert sums(figures) == (200, 200, 0, 0)
        assert failures(figures) == {}
    with Scripted(lambda _n, _request: closing, closes=True) as server:
        figures = load(server, pipeline=4).run()
        assert figures["responses"] + figures["unanswered"] == figures["sent"] == 200
        assert figures["responses"] == server.connections
        assert failures(figures) in ({}, {"reset": failures(figures).get("reset")})  # what was sent behind the last


@needs_ring
def test_by_ipv6():
    try:
        server = Scripted(lambda _n, _request: HELLO, family=socket.AF_INET6)
    except OSError:
        pytest.xfail("this machine has no ::1")
    with server:
        assert sums(load(server).run()) == (200, 200, 0, 0)


@needs_ring
def test_large_requests_and_responses():
    body = random.Random(1).randbytes(3_000_000)
    answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    request = GET[:-2] + b"X: " + b"x" * 300_000 + b"\r\n\r\n"
    for pipeline in (1, 2):
        with Scripted(lambda _n, _request: answer) as server:
            exchanges = [Exchange(request, body=body, crc32=zlib.crc32(body))]
            figures = load(server, exchanges, 2, requests_max=6, pipeline=pipeline).run()
            assert sums(figures) == (6, 6, 0, 0)
            assert [len(received) for received in server.requests] == [len(request) - 4] * 6


@needs_ring
def test_wrong_answers_are_counted_by_kind_and_the_first_is_told():
    answers = {
        b"/status": b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n",
        b"/length": b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell",
        b"/body": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhullo",
        b"/right": HELLO,
    }
    exchanges = [Exchange(GET.replace(b"/a", path), body=b"hello") for path in answers]
    with Scripted(lambda _n, request: answers[request.split()[1]]) as server:
        run = load(server, exchanges)
        figures = run.run()
        counts = run.answered()
    assert sums(figures)[:3] == (200, 200, 0)
    assert [counts[0][0], counts[1][200], counts[2][200]] == [
        figures["wrong"][kind] for kind in ("status", "length", "body")
    ]
    assert figures["wrong"]["answers"] == 200 - counts[3][200]
    assert figures["wrong_example"].split(": ")[1].startswith(("status 500", "4 bytes", "the body"))


@needs_ring
def test_failures_are_counted_and_the_client_connects_anew():
    def answer(number, _request):
        return {10: None, 20: HELLO[:20] + b"\0", 30: b"BAD\r\n\r\n"}.get(number, HELLO)

    with Scripted(answer) as server:
        figures = load(server, connections=1, retries=3).run()
    # The 20th answer never comes to an end: what follows it is taken for the rest of its head.
    assert figures["errors"]["closed_early"] == 1
    assert figures["errors"]["malformed"] >= 1
    assert figures["responses"] + figures["unanswered"] == figures["sent"] == 200
    assert figures["unanswered"] == sum(figures["errors"].values())


@needs_ring
def test_a_reset_is_counted():
    def serve(listener):
        connection, _ = listener.accept()
        with connection:
            connection.recv(1)  # the rest stays unread, so closing resets

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        run = Load(*listener.getsockname(), [Exchange(GET)], 1, 5.0, requests_max=1)
        figures = run.run()
        thread.join()
    assert failures(figures) == {"reset": 1}
    assert sums(figures) == (1, 0, 1, 0)


@needs_ring
def test_a_refused_connection_is_tried_again_and_then_given_up():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        started = time.monotonic()
        figures = Load(*unused.getsockname(), [Exchange(GET)], 3, 20.0, retries=2).run()
    assert time.monotonic() - started < 5
    assert failures(figures) == {"refused": 9}
    assert figures["connections"] == {"opened": 9, "gave_up": 3}
    assert figures["responses"] == figures["requests"] == 0 and figures["unanswered"] == figures["sent"]


@needs_ring
def test_silence_is_timed_out():
    gate = threading.Event()

    def answer(number, _request):
        if number == 3:
            gate.wait(10)
        return HELLO

    with Scripted(answer) as server:
        figures = load(server, connections=1, requests_max=5, timeout_s=0.3, retries=1).run()
        gate.set()
    assert failures(figures) == {"timed_out": 1} or failures(figures) == {"timed_out": 2}
    assert figures["responses"] + figures["unanswered"] == figures["sent"]


@needs_ring
def test_what_was_sent_is_still_answered_when_the_time_is_over():
    def answer(_number, _request):
        time.sleep(0.02)
        return HELLO

    with Scripted(answer) as server:
        figures = load(server, connections=8, seconds=0.3, warmup_s=0.1, requests_max=0).run()
    assert figures["unanswered"] == 0
    assert figures["requests"] < figures["responses"] == figures["sent"] == len(server.requests)
    assert figures["seconds"] == pytest.approx(0.3, abs=0.1)


@needs_ring
def test_it_can_be_stopped_and_run_again():
    with Scripted(lambda _n, _request: HELLO) as server:
        run = load(server, seconds=30.0, requests_max=0)
        threading.Timer(0.3, run.stop).start()
        started = time.monotonic()
        first = run.run()
        assert time.monotonic() - started < 5
        assert first["responses"] == first["sent"] > 0
        threading.Timer(0.2, run.stop).start()
        assert run.run()["responses"] > 0


@needs_ring
def test_ctrl_c_ends_it_and_keeps_what_was_measured():
    with Scripted(lambda _n, _request: HELLO) as server:
        run = load(server, seconds=30.0, requests_max=0)
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        with pytest.raises(KeyboardInterrupt):
            run.run()
        figures = run.results()
        assert figures["requests"] > 0 and figures["unanswered"] == 0


@needs_ring
def test_waiting_for_its_core_is_not_being_idle():
    allowed = os.sched_getaffinity(0)
    core = min(allowed)
    with Scripted(lambda _n, _request: HELLO) as server:
        os.sched_setaffinity(0, {core})
        try:
            other = subprocess.Popen([sys.executable, "-c", "while True: pass"])  # on the same core, as its parent is
            client = load(server, seconds=0.5, requests_max=0).run()["client"]
        finally:
            os.sched_setaffinity(0, allowed)
            other.kill()
            other.wait()
    assert client["core_wait_s"] > 0
    assert client["idle_share"] <= max(0, 1 - (client["cpu_s"] + client["core_wait_s"]) / 0.6)


@needs_ring
def test_nothing_stays_open():
    with Scripted(lambda _n, _request: HELLO) as server:
        load(server).run()
        before = len(os.listdir("/proc/self/fd"))
        for options in ({}, {"pipeline": 4}, {"close": True, "requests_max": 20}):
            load(server, **options, drain_s=0.2, timeout_s=0.2).run()
        until = time.monotonic() + 5
        while len(os.listdir("/proc/self/fd")) > before and time.monotonic() < until:
            time.sleep(0.02)
        assert len(os.listdir("/proc/self/fd")) <= before


def test_a_client_of_an_open_loop_may_be_busier():
    # It wakes for each request that is due, as long as it can: a busy core is no limit yet.
    assert [is_saturated(share, is_open=False) for share in (0.14, 0.15)] == [True, False]
    assert [is_saturated(share, is_open=True) for share in (0.04, 0.05, 0.14)] == [True, False, False]
