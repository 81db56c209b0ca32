"""Load on our server: its counts are the client's and those of others' generators; the command says what it found."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

import batchbridge as bb
from batchbridge.cli.bench.load import command
from batchbridge.cython_ext import ring
from batchbridge.cython_ext.load import Exchange
from batchbridge.measure import results
from batchbridge.measure.histogram import from_hgrm
from batchbridge.measure.load import run_load
from batchbridge.measure.traffic import get, learn, read_requests, request_bytes
from support.serving import make_server, running
from support.skips import skip, skip_if

pytestmark = skip_if(
    bool(ring.probe()["ring_error"]), "no-io-uring", "the load generator sends and receives by io_uring"
)

QUICK = {"seconds": 0.4, "warmup_s": 0.0}


@pytest.fixture(scope="module")
def served():
    server = make_server("io_uring", handler_threads=0)

    @server.batch("/f")
    def f(batch: bb.Batch) -> list[bytes]:
        return [b"x" * 64] * len(batch)

    @server.batch("/sum", methods=["POST"])
    def add(batch: bb.Batch) -> list[bytes]:
        return [str(sum(bytes(request.body))).encode() for request in batch]

    @server.batch("/count")
    def count(batch: bb.Batch) -> list[bytes]:
        return [str(time.monotonic_ns()).zfill(20).encode() for _ in batch]

    with running(server):
        yield server


def port_of(server) -> int:
    return int(server.url.rpartition(":")[2])


@pytest.mark.parametrize("options", [{}, {"pipeline": 8}, {"close": True}], ids=str)
@pytest.mark.parametrize("rate", [{}, {"rate_per_s": 2_000.0}], ids=["closed", "open"])
def test_our_server_has_read_as_many_requests_as_were_sent(served, options, rate):
    exchanges = learn("127.0.0.1", port_of(served), get("/f"))
    before = served.stats()["requests"]["read"]
    figures = run_load("127.0.0.1", port_of(served), exchanges, connections=16, **QUICK, **options, **rate)
    assert figures.is_valid
    assert served.stats()["requests"]["read"] - before == figures.requests > 100


def test_more_clients_than_receive_buffers(served):
    """They have to wait for each other's buffers, and must not do so by asking forever."""
    either = Exchange(request_bytes("GET", "/f"), statuses=(200, 503))  # more than the queue of a route holds
    figures = run_load("127.0.0.1", port_of(served), [either], connections=6000, **QUICK)
    assert figures.requests >= 6000 and figures.wrong["answers"] == 0


def test_bodies_of_a_file_of_requests(served, tmp_path):
    path = tmp_path / "asked"
    path.write_text(
        '{"method": "POST", "path": "/sum", "body_random": {"dtype": "u1", "shape": [32], "count": 20}}\n'
        '{"method": "POST", "path": "/sum", "body": "AB", "expect": {"body": "131"}}\n'
    )
    exchanges = learn("127.0.0.1", port_of(served), read_requests(path))
    figures = run_load("127.0.0.1", port_of(served), exchanges, **QUICK)
    assert figures.is_valid, figures.invalid_reason


# --- the command ------------------------------------------------------------------------------------------------------


def invoke(*arguments: object):
    return CliRunner().invoke(command, [str(argument) for argument in arguments])


SHORT = ("--seconds=0.3", "--warmup=0.1", "--connections=4")


def test_the_command_prints_a_table(served):
    done = invoke(f"{served.url}/f", *SHORT)
    assert done.exit_code == 0, done.output
    assert f"{served.url}/f: 4 connections, kept, closed loop, 0.3 s after 0.1 s" in done.stdout
    assert re.search(r"requests/s +(at least )?[\d,]+", done.stdout)
    assert "all right (status, length and checksum)" in done.stdout
    assert re.search(r"p50 +p90 +p99 +p99.9 +max +mean", done.stdout)
    done = invoke(f"{served.url}/f", *SHORT, "--rate=500", "--verify=length", "--pipeline=2")
    assert "up to 2 requests under way on each, open loop, 500/s poisson" in done.stdout
    assert re.search(r"late +p99 ", done.stdout) and "from the sending" in done.stdout


def test_the_command_saves_results(served, tmp_path):
    output, hgrm, urls = tmp_path / "r.msgpack", tmp_path / "r.hgrm", tmp_path / "urls"
    urls.write_text("3 /f\n/f?x\n")
    done = invoke(served.url, *SHORT, f"--urls={urls}", f"--output={output}", f"--hgrm={hgrm}", "--json", "--rate=500")
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    saved = results.load(output)
    (run,) = saved.runs
    assert saved.kind == "load" and saved.commands == [told["command"]]
    assert saved.settings["url"] == served.url and saved.settings["rate"] == 500
    assert run.valid and run.responses == told["responses"] and run.requests_per_s == told["requests_per_s"]
    assert run.parameters["connections"] == 4 and run.client_idle_share == told["idle_share"]
    assert [list(pair) for pair in run.histogram] == told["histogram"]
    assert from_hgrm(hgrm.read_text()) == list(map(tuple, run.histogram))


def test_a_run_that_is_no_result_is_an_error_of_the_command(served, tmp_path):
    output = tmp_path / "r.msgpack"
    done = invoke(f"{served.url}/count", *SHORT, "--json", f"--output={output}")
    assert done.exit_code == 1
    assert "this is no result: " in str(done.exception) and "the body is not the right one" in str(done.exception)
    told = json.loads(done.stdout)
    assert told["is_valid"] is False and told["wrong"]["body"] > 0
    assert "requests_per_s" not in told and "latency_us" not in told
    (run,) = results.load(output).runs
    assert not run.valid and run.invalid_reason == told["invalid_reason"]
    done = invoke(f"{served.url}/count", *SHORT)
    assert done.exit_code == 1 and done.stdout == ""
    assert invoke(f"{served.url}/count", *SHORT, "--verify=length").exit_code == 0


def test_an_interruption_shows_what_was_measured(served):
    script = "from batchbridge.cli.bench.load import command; command(standalone_mode=False)"
    words = [sys.executable, "-P", "-c", script, f"{served.url}/f", "--seconds=30", "--warmup=0"]
    before = served.stats()["requests"]["read"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while served.stats()["requests"]["read"] < before + 100:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=15)
    assert process.returncode != 0
    assert re.search(r"requests/s +(at least )?[\d,]+", printed)


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["URL/none"], 1, "GET /none is answered with status 404"),
        (["URL/none", "--verify=none"], 1, "status 404 instead of 200"),
        (["ftp://a/"], 1, "not a URL"),
        (["http://127.0.0.1:1/"], 1, "connection refused"),
        (["URL", "--urls=FILE"], 1, "FILE has no request"),
        (["URL/f", "--urls=FILE"], 2, "give the URL without /f"),
        (["URL/f", "--rate=0"], 2, "0"),
        (["URL/f", "--pipeline=2", "--close"], 2, "--close ends them"),
        (["URL/f", "--requests=FILE", "--urls=FILE"], 2, "give one"),
        (["URL/f", "--cpu=99999"], 1, "core 99999"),
    ],
)
def test_what_the_command_refuses(served, tmp_path, arguments, status, message):
    (tmp_path / "empty").write_text("")
    given = [argument.replace("URL", served.url).replace("FILE", str(tmp_path / "empty")) for argument in arguments]
    done = invoke(*given, *SHORT)
    assert done.exit_code == status, done.output
    said = done.output if status == 2 else str(done.exception)
    assert message.replace("FILE", str(tmp_path / "empty")) in said


# --- beside others' generators ----------------------------------------------------------------------------------------


@pytest.fixture
def counted(served):
    """Runs a command line on our server: what it printed, and how many requests the server has read meanwhile."""

    def counted(name: str, *arguments: object) -> tuple[str, int]:
        if shutil.which(name) is None:
            skip(f"no-{name}", f"{name} is not installed")
        before = served.stats()["requests"]["read"]
        done = subprocess.run([name, *map(str, arguments)], capture_output=True, text=True, timeout=30, check=True)
        return done.stdout, served.stats()["requests"]["read"] - before

    return counted


def number_of(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    assert found, text
    return int(found[1])


def test_h2load_counts_as_the_server_does(served, counted):
    printed, read = counted("h2load", "--h1", "-n500", "-c5", f"{served.url}/f")
    assert number_of(r"(\d+) succeeded", printed) == read == 500


def test_httperf_counts_as_the_server_does(served, counted):
    printed, read = counted(
        "httperf", "--hog", "--server=127.0.0.1", f"--port={port_of(served)}", "--uri=/f", "--num-conns=50",
        "--num-calls=4", "--rate=500",
    )  # fmt: skip
    assert number_of(r"replies (\d+)", printed) == read == 200


def test_wrk_counts_as_the_server_does(served, counted):
    printed, read = counted("wrk", "-t1", "-c4", "-d1", f"{served.url}/f")
    # It does not wait for what is under way at its end.
    assert 0 <= read - number_of(r"(\d+) requests in", printed) <= 4


def test_we_count_as_the_server_does(served):
    before = served.stats()["requests"]["read"]
    figures = run_load("127.0.0.1", port_of(served), get("/f"), connections=4, **QUICK)
    assert served.stats()["requests"]["read"] - before == figures.requests
    # Of those, the ones answered after the measured time are not among the responses.
    assert 0 <= figures.requests - figures.responses <= 4
