"""`bench batching` and `bench versus` measure real servers: what is right has figures, what is wrong has a reason, and
an interruption keeps what is done. Short runs on shared cores: nothing is said of how fast anything is.
"""

import json
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from batchbridge.cython_ext import ring
from batchbridge.measure.arms import QuestionArms
from batchbridge.measure.experiment import Arm, Phase, Site, measure_once
from batchbridge.measure.processes import CommandProcess, cores, free_port, pinned
from batchbridge.measure.results import load
from batchbridge.measure.traffic import get
from support import measuring
from support.skips import skip_if

pytestmark = [
    skip_if(bool(ring.probe()["ring_error"]), "no-io-uring", "the load generator sends and receives by io_uring"),
    skip_if(cores() == (None, None), "one-core", "a server and its client take a core each"),
]

#: {answer} is what it says to everything, a Python expression.
SERVER = """
import http.server, itertools, sys
numbers = itertools.count()
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = {answer}
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def bench(*arguments, timeout_s=55.0):
    return subprocess.run(
        [sys.executable, "-P", "-m", "batchbridge", "bench", *arguments],
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


undisturbed = partial(measuring.undisturbed, bench)


@pytest.fixture
def command_of(tmp_path):
    def make(name, answer):
        path = tmp_path / f"{name}.py"
        path.write_text(SERVER.replace("{answer}", answer))
        return f"{sys.executable} {path} {{port}}"

    return make


def test_the_question_is_answered_in_small(tmp_path):
    path = tmp_path / "results.msgpack"
    done, made = undisturbed(path, "batching", "--quick", "--blocks=1", "--seconds=0.3", "--size=8", "--connections=32",
                             "--loopback", "--handler=vector", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert "No evidence: 1 block of the 20" in told["note"] and "two sides' costs mix" in told["note"]
    results = load(path)
    assert results.note == told["note"] and results.kind == "batching" and results.machine["kernel"]
    runs = {run.arm: run for run in made}
    assert {"U0", "U1", "B(8,8)"} <= set(runs), done.stderr
    for run in runs.values():
        assert run.valid, run.invalid_reason
        assert run.responses > 0 and run.histogram and run.client_idle_share is not None
        assert run.parameters["connections"] == 32 and run.parameters["phase"] == "capacity"
    assert runs["U1"].mean_batch_size == 1.0 < runs["B(8,8)"].mean_batch_size <= 8
    assert sum(batches for _, batches in runs["B(8,8)"].batch_sizes) > 0
    assert {one["arm"] for one in told["figures"]} == set(runs)
    programs = {" ".join(command) for command in results.commands}
    assert any("--engine=epoll" in command for command in programs)
    assert any("batchbridge.measure.load" in command for command in programs)


@pytest.mark.parametrize("handler", ["native", "python"])
def test_open_loops_fill_batches_and_costs_and_latencies_are_told_apart(handler):
    server_cpu, client_cpu = cores()
    phases = [Phase("cost", 32, 400.0), Phase("cost", 32, 800.0), Phase("latency", 32, 400.0, idle_loop=False)]
    with QuestionArms(handler, 1, [(8, 8)]) as arms, pinned(client_cpu):
        (arm,) = (arm for arm in arms.of(0, 0) if arm.name == "B(8,8)")
        slow, fast, latency = (
            measure_once(Site(server_cpu, client_cpu), arm, phase, 0, seconds=0.5, warmup_s=0.2)[0] for phase in phases
        )
    assert slow.parameters["rate_per_s"] == 400.0 and 0 < slow.offered_per_s < fast.offered_per_s
    # So low a rate would leave batches of one, if they did not wait to be filled.
    assert slow.mean_batch_size > 2 < fast.mean_batch_size
    assert latency.server_cpu_us_per_request is None, "the core may sleep where latencies are told"
    assert latency.latency_us["p50"] > 0


def test_servers_are_set_beside_the_last(command_of, tmp_path):
    one, two = command_of("one", "b'one'"), command_of("two", "b'two'")
    done, _ = undisturbed(
        tmp_path / "f", "versus", one, two, "--blocks=1", "--seconds=0.2", "--connections=4", "--loopback", "--json"
    )
    assert done.returncode == 0, done.stderr
    first, last, again = json.loads(done.stdout)["figures"]
    assert (first["arm"], last["arm"], again["arm"]) == (one, two, f"A/A {two}")
    assert first["ratio"]["mid"] > 0 and last["ratio"] is None and again["ratio"]["mid"] > 0


def test_one_connection_alone_is_told_by_its_latency(command_of, tmp_path):
    one, two = command_of("one", "b'one'"), command_of("two", "b'two'")
    done, made = undisturbed(tmp_path / "f", "versus", one, two, "--blocks=1", "--seconds=0.2", "--connections=1",
                             "--may-sleep", "--loopback", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert {run.parameters["phase"] for run in made} == {"lone"}
    assert all(run.server_cpu_us_per_request is None for run in made), "no idle loop keeps the core awake"
    first, last, again = json.loads(done.stdout)["figures"]
    assert first["latency_p50_ratio"]["mid"] > 0 and last["latency_p50_ratio"] is None and again["latency_p50_ratio"]


def test_both_sides_on_one_core_have_a_cost_together(command_of, tmp_path):
    done, made = undisturbed(tmp_path / "f", "versus", command_of("one", "b'one'"), "--blocks=1", "--seconds=0.3",
                             "--connections=4", "--one-core")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "one-core" in done.stdout and "server and client on one core" in done.stdout and "≥ " not in done.stdout
    assert all(run.client_idle_share is None for run in made), "who waits for its core is not busy"
    assert load(tmp_path / "f").settings["place"] == "one-core"


def test_overload_counts_what_it_loses(tmp_path):
    path = tmp_path / "f"
    done, made = undisturbed(path, "overload", "--arm=epoll", "--arm=io_uring", "--load=0.5", "--load=2", "--blocks=1",
                             "--seconds=0.3", "--connections=64", "--work-us=300", "--loopback", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = {(one["arm"], one["load"]): one for one in json.loads(done.stdout)["figures"]}
    assert set(figures) == {(arm, each) for arm in ("epoll", "io_uring") for each in (0.0, 0.5, 2.0)}
    for run in made:
        assert run.valid, run.invalid_reason
        # On a core that others use, nothing may be answered within so short a time.
        assert run.server_threads_share is not None and run.loops_per_s is not None and run.mean_batch_size >= 1
        if run.parameters["phase"] == "overload":
            assert run.offered_per_s > 0 and run.asked > 0 and set(run.errors) == {"refused", "unanswered", "unissued"}
    assert figures["epoll", 2.0]["goodput_share"] is not None and figures["epoll", 0.0]["goodput_share"] is None


def test_latencies_are_told_alone_and_at_rates(tmp_path):
    path = tmp_path / "f"
    done, made = undisturbed(path, "latency", "--arm=io_uring", "--arm=epoll", "--rate=200", "--blocks=1",
                             "--seconds=0.3", "--connections=8", "--loopback", "--json")  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)["figures"]
    assert {(one["arm"], one["rate_per_s"]) for one in figures} == {
        ("epoll", None), ("epoll", 200.0), ("io_uring", None), ("io_uring", 200.0),
    }  # fmt: skip
    assert all(one["latency_us"]["p50"]["mid"] > 0 for one in figures)
    assert all(("p50" in one["ratios"]) == (one["arm"] == "epoll") for one in figures), "the first is the base"
    assert {run.parameters["phase"] for run in made} == {"lone", "latency"}
    assert all(run.server_cpu_us_per_request is None for run in made), "the core may sleep"


def test_a_server_that_answers_wrongly_has_no_figures(command_of, tmp_path):
    fickle = command_of("fickle", "b'%d' % (next(numbers) % 10)")
    done = bench("versus", fickle, "--blocks=1", "--seconds=0.2", "--connections=4", "--loopback",
                 f"--output={tmp_path / 'f'}")  # fmt: skip
    assert done.returncode == 1 and "no run was valid" in done.stderr
    assert "answers were wrong" in done.stdout
    runs = load(tmp_path / "f").runs
    assert len(runs) == 2 and not any(run.valid for run in runs)


def test_a_server_that_dies_under_load_is_invalid(command_of, tmp_path):
    dying = command_of("dying", "b'x' if next(numbers) < 50 else __import__('os')._exit(3)")
    done, made = undisturbed(tmp_path / "f", "versus", dying, command_of("well", "b'x'"), "--blocks=1", "--seconds=0.3",
                             "--connections=4", "--loopback")  # fmt: skip
    assert done.returncode == 0, done.stderr
    runs = {run.arm: run for run in made}
    assert not runs[dying].valid and runs[dying].invalid_reason
    assert "invalid" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["versus", "server"], "does not say {port}"),
        (["versus", "'unclosed {port}"], "is not a command: no closing quotation"),
        (["versus", "", "--port=8080"], "a command is empty"),
        (["versus", "x {port}", "--path=/a", "--urls=/dev/null"], "three sources of requests"),
        (["versus", "x {port}", "--mtu=9000"], "MTU 9000: that is a setting of the link between namespaces"),
        (["versus", "x {port}", "--confounders"], "--confounders measures in places of its own"),
        (["overload", "--arm=apache"], "'apache' is not one of"),
        (["latency", "--rate=0"], "0.0 is not in the range"),
        (["batching", "--handler=cobol"], "'cobol' is not one of"),
        (["batching", "--rate-share=1.5"], "1.5 is not in the range"),
        (["batching", "--rate-share=0.5"], "a slope takes two rates"),
        (["batching", "--arm=U7", "--arm=U1"], "no such arm here: U7; there are U0"),
        (["batching", "--output=/no/such/folder/f"], "/no/such/folder is no folder that may be written to"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(arguments, reason, tmp_path):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "batchbridge", "bench", *arguments, "--loopback"],
        capture_output=True, text=True, timeout=30, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode in (1, 2) and reason in done.stderr and "Traceback" not in done.stderr, done.stderr


def test_an_interruption_keeps_what_is_done(tmp_path, command_of):
    path = tmp_path / "f"
    command = [sys.executable, "-P", "-m", "batchbridge", "bench", "versus", command_of("one", "b'one'"),
               "--blocks=1000", "--seconds=0.2", "--connections=4", "--loopback", f"--output={path}"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + 30
        while not path.exists():
            assert process.poll() is None and time.monotonic() < until
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        output, errors = process.communicate(timeout=20)
    assert process.returncode == 1 and "interrupted" in errors and "Traceback" not in errors, errors
    assert "Interrupted: not all runs were made." in output
    assert load(path).runs and "Interrupted" in load(path).note


def test_a_server_that_does_not_start_makes_its_run_invalid():
    server_cpu, client_cpu = cores()

    def start(place, cpu, _phase):
        return CommandProcess([sys.executable, "-c", "raise SystemExit('no')"], free_port(), cpu=cpu, place=place)

    arm = Arm("none", "", start, get("/"))
    run, commands = measure_once(Site(server_cpu, client_cpu), arm, Phase("capacity", 1), 0, seconds=0.1, warmup_s=0.0)
    assert not run.valid and "ended with status 1" in run.invalid_reason and commands == []
