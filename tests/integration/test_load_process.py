"""Load from a process of its own: every request is accounted for, a stall is seen, and a fault is never a figure."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import batchbridge as bb
from batchbridge.cython_ext import ring
from batchbridge.cython_ext.load import Exchange, Load
from batchbridge.measure.load import LoadError, run_load
from support.scripted import Scripted
from support.skips import skip_if

pytestmark = skip_if(
    bool(ring.probe()["ring_error"]), "no-io-uring", "the load generator sends and receives by io_uring"
)

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"
HELLO_CLOSE = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello"

QUICK = {"seconds": 0.4, "warmup_s": 0.0}


def hello() -> list[Exchange]:
    return [Exchange(b"GET /a HTTP/1.1\r\nHost: t\r\n\r\n", body=b"hello", name="GET /a")]


def answer_hello(_number: int, _request: bytes) -> bytes:
    return HELLO


def run(server, exchanges=None, **options):
    options = {"connections": 4, "timeout_s": 5.0, **QUICK, **options}
    return run_load(server.host, server.port, exchanges or hello(), **options)


def histogram_count(figures) -> int:
    return sum(count for _, count in figures.histogram)


def slower_than(figures, least_us: int) -> int:
    return sum(count for latency_us, count in figures.histogram if latency_us >= least_us)


# --- what a run tells -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"pipeline": 4}, {"close": True}], ids=str)
@pytest.mark.parametrize("rate", [{}, {"rate_per_s": 400.0}, {"rate_per_s": 400, "arrivals": "constant"}], ids=str)
def test_every_request_is_accounted_for(options, rate):
    closes = options.get("close", False)
    with Scripted(lambda _n, _r: HELLO_CLOSE if closes else HELLO, closes=closes) as server:
        figures = run(server, **options, **rate)
        assert figures.is_valid and figures.invalid_reason is None
        assert figures.requests == len(server.requests)
        assert figures.unanswered == figures.unissued == figures.wrong["answers"] == 0 and figures.failures == {}
        assert server.connections == figures.requests if closes else server.connections == 4
        assert all((b"Connection: close" in request) == closes for request in server.requests)
    assert 0 < figures.responses <= figures.requests
    assert figures.requests_per_s == pytest.approx(figures.responses / figures.seconds)
    assert figures.ended_us - figures.began_us == pytest.approx(figures.seconds * 1e6)
    latency = figures.latency_us
    assert 0 < latency["p50"] <= latency["p90"] <= latency["p99"] <= latency["p999"] <= latency["max"]
    assert latency["mean"] <= latency["max"]
    assert 0 <= figures.idle_share <= 1 and figures.client_us_per_request > 0
    assert figures.command[:4] == [sys.executable, "-P", "-m", "batchbridge.measure.load"]
    if rate:
        # Every request that was due in the measured time is in the histogram, whenever its answer came.
        assert histogram_count(figures) == figures.requests == round(figures.offered_per_s * figures.seconds)
        assert figures.requests == pytest.approx(160, abs=1 if "arrivals" in rate else 5 * 160**0.5)
        assert figures.service_us["mean"] <= latency["mean"]
        assert 0 <= figures.late_us["p99"] <= figures.late_us["max"]
    else:
        assert histogram_count(figures) == figures.responses
        assert figures.offered_per_s is figures.late_us is figures.service_us is None


def test_the_warm_up_does_not_count():
    with Scripted(answer_hello) as server:
        figures = run(server, rate_per_s=500, arrivals="constant", warmup_s=0.4, seconds=0.2)
        assert len(server.requests) == figures.requests == pytest.approx(300, abs=2)
    assert histogram_count(figures) == pytest.approx(100, abs=2)


def test_the_same_seed_asks_the_same():
    def asked(seed: int) -> list[bytes]:
        with Scripted(answer_hello) as server:
            assert run(server, exchanges, connections=1, seed=seed, rate_per_s=300).is_valid
            return server.requests

    exchanges = [Exchange(b"GET /%d HTTP/1.1\r\nHost: t\r\n\r\n" % number) for number in range(50)]
    first = asked(5)
    assert len(first) > 50
    assert first == asked(5) != asked(6)


def test_free_connections_take_turns():
    with Scripted(answer_hello) as server:
        figures = run(server, rate_per_s=200, arrivals="constant", connections=5)
        assert sum(server.counts) == figures.requests and len(server.counts) == 5
        assert max(server.counts) - min(server.counts) <= 0.2 * sum(server.counts)


# --- coordinated omission ---------------------------------------------------------------------------------------------


class Stalls:
    """Answers at once, but for one pause in which nobody gets an answer."""

    def __init__(self, at: int, pause_s: float) -> None:
        self.at, self.pause_s = at, pause_s

    def __call__(self, number: int, _request: bytes) -> bytes:
        if number == self.at:
            time.sleep(self.pause_s)
        return HELLO


def test_an_open_loop_shows_a_stall_that_a_closed_one_hides():
    rate_per_s = 500
    with Scripted(Stalls(200, 0.2)) as server:
        opened = run(server, rate_per_s=rate_per_s, seconds=1.0)
    with Scripted(Stalls(200, 0.2)) as server:
        closed = run(server, seconds=1.0)
    assert opened.is_valid and closed.is_valid
    # Of those that were due in 200 ms, all but the last 50 ms' waited for more than 50.
    assert slower_than(opened, 50_000) >= rate_per_s * 0.1
    assert opened.latency_us["p99"] >= 50_000
    assert opened.service_us["mean"] < opened.latency_us["mean"]
    assert slower_than(closed, 50_000) < rate_per_s * 0.1 <= closed.responses / 4


def test_a_stall_at_the_end_is_not_forgotten():
    with Scripted(Stalls(100, 0.5)) as server:
        figures = run(server, rate_per_s=250, arrivals="constant", seconds=0.5)
    assert figures.is_valid
    assert histogram_count(figures) == figures.requests == pytest.approx(125, abs=1)
    assert slower_than(figures, 300_000) >= 10


@pytest.mark.parametrize("options", [{}, {"close": True}], ids=str)
def test_a_server_that_does_not_keep_up(options):
    def slow(_number: int, _request: bytes) -> bytes:
        time.sleep(0.02)
        return HELLO_CLOSE if options else HELLO

    with Scripted(slow, closes=bool(options)) as server:
        load = Load(
            server.host, server.port, hello(), 2, 0.5, rate_per_s=2000, arrivals="constant", drain_s=0.2, **options
        )
        figures = load.run()
    offered = round(figures["offered_per_s"] * figures["seconds"])
    assert figures["sent"] + figures["unissued"] == offered == pytest.approx(1000, abs=1)
    assert figures["unissued"] > 800 and figures["unanswered"] == 0
    # Those that never left count with the time that they have waited: half were due in the first quarter second.
    assert figures["latency_us"]["p50"] >= 250_000
    assert sum(count for _, count in load.histogram()) == offered


def test_a_schedule_beyond_all_limits_is_told():
    with Scripted(answer_hello) as server:
        figures = run(server, rate_per_s=10_000_000, seconds=0.3)
    offered = round(figures.offered_per_s * figures.seconds)
    assert figures.requests + figures.unissued == offered > 1 << 20
    assert figures.requests_per_s < figures.offered_per_s
    assert histogram_count(figures) == offered


# --- what makes no result ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [{}, {"rate_per_s": 200.0}], ids=["closed", "open"])
@pytest.mark.parametrize(
    ("kind", "answer", "reason"),
    [
        ("status", b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n", "GET /a: status 500 instead of 200"),
        ("length", b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nhell", "GET /a: 4 bytes instead of 5"),
        ("body", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhullo", "GET /a: the body is not the right one"),
    ],
)
def test_one_wrong_answer_is_enough(rate, kind, answer, reason):
    with Scripted(lambda number, _request: answer if number == 9 else HELLO) as server:
        figures = run(server, **rate)
    assert not figures.is_valid
    assert figures.wrong == {"answers": 1, "status": 0, "length": 0, "body": 0, kind: 1}
    assert figures.invalid_reason == f"1 of the server's answers were wrong, the first of them: {reason}"


@pytest.mark.parametrize("rate", [{}, {"rate_per_s": 200.0, "pipeline": 3}], ids=["closed", "open"])
@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("closed_early", None),
        ("timed_out", b"HTTP/1.1 200 OK\r\nContent-Le"),
        ("malformed", b"NONSENSE\r\n\r\n"),
        ("malformed", HELLO + b"more"),
    ],
)
def test_one_failure_is_enough(rate, kind, answer):
    with Scripted(lambda number, _request: answer if number == 9 else HELLO) as server:
        figures = run(server, seconds=1.0, timeout_s=0.4, **rate)
    assert not figures.is_valid
    # What follows a cut answer on its connection is taken for the rest of it; a busy machine may be late.
    assert figures.failures and set(figures.failures) <= {kind, "timed_out", "malformed", "reset"}
    assert figures.invalid_reason.startswith("connections failed: ")
    assert figures.requests > 9  # it went on


def closed_port() -> tuple[str, int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()


@pytest.mark.parametrize("rate", [{}, {"rate_per_s": 200.0}, {"rate_per_s": 200.0, "close": True}], ids=str)
def test_nobody_listens(rate):
    figures = run_load(*closed_port(), hello(), connections=2, **QUICK, **rate)
    assert not figures.is_valid and figures.responses == 0
    assert set(figures.failures) == {"refused"}
    assert figures.invalid_reason.startswith("connections failed: refused ")


@pytest.mark.parametrize("rate", [{}, {"rate_per_s": 100.0}, {"rate_per_s": 100.0, "close": True}], ids=str)
def test_silence(rate):
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        figures = run_load(*listener.getsockname(), hello(), connections=2, timeout_s=0.2, **QUICK, **rate)
    assert not figures.is_valid
    assert set(figures.failures) == {"timed_out"}


def test_a_reset():
    def reset(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            connection.recv(1)  # the rest stays unread, so closing resets
            connection.close()

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        thread = threading.Thread(target=reset, args=(listener,))
        thread.start()
        figures = run_load(*listener.getsockname(), hello(), connections=1, timeout_s=0.2, **QUICK)
        thread.join()
    assert figures.failures["reset"] == 2 and not figures.is_valid


def test_connections_that_idle_are_opened_again():
    """A server may close what nobody uses; that is no failure of an open loop, nor a reason to connect in a frenzy."""
    with Scripted(answer_hello, idle_s=0.05) as server:
        figures = run(server, rate_per_s=4, arrivals="constant", connections=3, seconds=0.9)
        connections = server.connections
    assert figures.requests == 3
    assert 3 < connections < 3 * 0.9 / 0.05
    assert set(figures.failures) <= {"reset", "closed_early"}  # a request may meet the server's FIN


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"connections": 0}, "connections: 0 is not 1 to 32768"),
        ({"pipeline": 0}, "pipeline: 0 is not 1 to 1024"),
        ({"pipeline": 2, "close": True}, "pipelining needs a connection that goes on"),
        ({"seconds": 0}, "must be above 0"),
        ({"seconds": float("nan")}, "seconds: nan is not a number from 0 to 86400"),
        ({"warmup_s": float("inf")}, "warmup_s: inf is not a number from 0 to 86400"),
        ({"timeout_s": -1}, "timeout_s: -1 is not a number from 0 to 86400"),
        ({"rate_per_s": 0}, "rate_per_s: 0.0 is not above 0"),
        ({"rate_per_s": 1e9}, "rate_per_s: 1000000000.0 is not above 0 and up to 10000000"),
        ({"rate_per_s": float("nan")}, "rate_per_s: nan is not above 0"),
        ({"rate_per_s": 1, "arrivals": "never"}, "arrivals: 'never' is neither of poisson, constant"),
        ({"cpu": 100_000}, "cannot be kept on core 100000"),
    ],
)
def test_what_cannot_be_run(options, message):
    with pytest.raises(LoadError, match=re.escape(message)) as caught:
        run_load("127.0.0.1", 9, hello(), **{**QUICK, **options})
    assert "\n" not in str(caught.value)


def test_no_requests_and_no_address():
    with pytest.raises(LoadError, match="0 exchanges are not 1 to 65536"):
        run_load("127.0.0.1", 9, [], **QUICK)
    with pytest.raises(LoadError, match=r"nothing\.invalid has no address"):
        run_load("nothing.invalid", 9, hello(), **QUICK)


def test_it_is_kept_on_its_core_and_leaves_the_caller_alone():
    before = os.sched_getaffinity(0)
    core = max(before)
    with Scripted(answer_hello) as server:
        figures = run(server, cpu=core)
    assert figures.is_valid and f"--cpu={core}" in figures.command
    assert os.sched_getaffinity(0) == before


def processes_with(word: str) -> list[int]:
    """The processes that have this among their arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if word.encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                found.append(int(folder.name))
    return found


def test_an_interruption_ends_the_run_and_keeps_its_figures(tmp_path):
    script = tmp_path / "asks.py"
    script.write_text(
        "import sys\n"
        "from batchbridge.measure.load import LoadInterrupted, run_load\n"
        "from batchbridge.measure.traffic import get\n"
        "try:\n"
        "    run_load('127.0.0.1', int(sys.argv[1]), get('/a'), seconds=30, warmup_s=0)\n"
        "except LoadInterrupted as early:\n"
        "    print(early.figures.is_valid, early.figures.responses, early.figures.seconds)\n"
    )
    with Scripted(answer_hello) as server:
        command = [sys.executable, "-P", script, str(server.port)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while len(server.requests) < 100:
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        valid, responses, seconds = process.communicate(timeout=15)[0].split()
        assert valid == "True" and 100 - 64 <= int(responses) <= len(server.requests) and float(seconds) < 10
        assert processes_with(str(server.port)) == []


def test_the_process_ends_with_the_call():
    """Whatever ends it: here a signal that Python turns into an exception which is no interruption."""

    class EnoughError(Exception):
        pass

    def enough(*_: object) -> None:
        raise EnoughError

    with Scripted(answer_hello) as server:
        before = signal.signal(signal.SIGALRM, enough)
        try:
            signal.setitimer(signal.ITIMER_REAL, 1.0)
            with pytest.raises(EnoughError):
                run(server, seconds=30)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert processes_with(str(server.port)) == []


def test_the_checkout_has_no_file_of_that_name():
    """`python -P -m batchbridge.measure.load` must be the installed one."""
    assert Path(sys.modules["batchbridge.measure.load"].__file__).parent.parent == Path(bb.__file__).parent
