"""A real sweep, small: of an app and of a running server, interrupted and resumed, to goals that hold and others."""

import json
import signal
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

from batchbridge.cli import main
from batchbridge.cython_ext import ring
from batchbridge.measure.results import load
from batchbridge.tune.run import RATE_SHARE
from batchbridge.tune.targets import RunningTarget, cpu_s_of, pid_of_listener
from batchbridge.values import parse_address
from support.serving import Command, command_line, run_command
from support.skips import skip_if

pytestmark = skip_if(
    bool(ring.probe()["ring_error"]), "no-io-uring", "the load generator sends and receives by io_uring"
)

EXAMPLES = Path(__file__).parents[2] / "examples"
APP = f"{EXAMPLES}/score.py:server"
ROUTE = "/score/{model}"
SMALL = [
    "--route", ROUTE, "--requests", f"{EXAMPLES}/score.requests", "--rate", "400", "--seconds", "0.2",
    "--warmup", "0.05", "--blocks", "1", "--sizes", "1,16", "--delays", "0,200", "--connections", "8",
]  # fmt: skip
#: An answer takes that long nowhere, so each setting holds it.
EASY = ["--p99-us", "8s"]

#: Answers differ each time, so what was learnt is wrong the next time.
MOODY = """
import itertools
import batchbridge as bb
server = bb.Server()
count = itertools.count()

@server.batch("/moody")
def moody(batch):
    return [b"%09d" % next(count) for request in batch]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def tune(capsys, folder):
    def tune(*arguments):
        status = main(["tune", *map(str, arguments)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return tune


def keys(path):
    runs = load(path).runs
    return [(run.block, run.parameters["max_batch_size"], run.parameters["max_queue_delay_us"]) for run in runs]


def policy_of(command):
    path = f"{command.admin}/policy?path={urllib.parse.quote(ROUTE, safe='')}"
    with urllib.request.urlopen(path, timeout=5) as answer:
        return json.load(answer)


def running(command):
    return ["--admin", command.admin, "--url", command.url]


@pytest.fixture
def score(folder):
    with Command("--app", APP, "--admin", "127.0.0.1:0", "--access-log", "off", folder=folder) as command:
        yield command


def test_an_app_interrupted_resumed_and_served_with_what_was_found(tune, folder):
    arguments = ["--app", APP, *SMALL, *EASY]
    process = subprocess.Popen(
        command_line("tune", *arguments), cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 40
    while not (folder / "results.msgpack").exists() or len(keys("results.msgpack")) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until, "no run was kept"
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 1 and out == "", (out, err)
    assert "runs are in results.msgpack: the same command with --resume goes on" in err and "Traceback" not in err
    assert not (folder / "tuned.toml").exists()
    before = keys("results.msgpack")
    assert len(before) >= 2

    status, _, err = tune(*arguments, "--blocks", "2", "--resume")
    assert status == 1 and "was begun with another blocks (1, now 2)" in err
    status, out, err = tune(*arguments, "--resume")
    assert status == 0, err
    after = keys("results.msgpack")
    assert after[: len(before)] == before and len(after) == len(set(after)) and len(after) > 5
    assert {key[1:] for key in after if key[0] == 0} == {(1, 0), (1, 200), (16, 0), (16, 200), (64, 200)}
    assert all(run.valid and run.server_cpu_us_per_request > 0 for run in load("results.msgpack").runs)
    assert "Pareto front" in out and "No evidence: " in out and "Written: results.msgpack and tuned.toml" in out
    again, out_again, _ = tune(*arguments, "--resume")
    assert again == 0 and out_again == out and keys("results.msgpack") == after, "nothing is left to do"

    checked = run_command("check", "--app", APP, "--config", "tuned.toml", folder=folder)
    assert checked.returncode == 0, checked.stderr
    with Command("--app", APP, "--config", "tuned.toml", "--admin", "127.0.0.1:0", folder=folder) as command:
        policy = policy_of(command)
    found = f"max_batch_size {policy['max_batch_size']}, max_queue_delay_us {policy['max_queue_delay_us']}."
    assert f"Recommended for {ROUTE}: {found}" in out


def test_a_running_server_has_its_policy_back(tune, score, folder):
    before = policy_of(score)
    status, out, err = tune(*running(score), *SMALL, *EASY, "--no-refine", "--json")
    assert status == 0, err
    told = json.loads(out)
    assert policy_of(score) == before
    assert len(told["tried"]) == 5 and told["recommendation"]["margin"] > 0
    assert all(each["cpu_us"] for each in told["tried"]), "the server is on this machine"
    assert told["settings"]["rate_per_s"] == 400.0 and told["files"]["config"] == "tuned.toml"
    batches = load("results.msgpack").of("tune", max_batch_size=1)
    assert batches and all(run.mean_batch_size == 1.0 and run.batch_sizes[0][0] == 1 for run in batches)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_policy_is_put_back_after_an_interruption(score, folder, number):
    before = policy_of(score)
    arguments = [*running(score), *SMALL, *EASY, "--blocks", "50"]
    process = subprocess.Popen(command_line("tune", *arguments), cwd=folder, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 40
    while policy_of(score) == before or not (folder / "results.msgpack").exists():
        assert process.poll() is None and time.monotonic() < until, "no setting was tried"
        time.sleep(0.01)
    process.send_signal(number)
    assert process.wait(30) == 1
    assert "interrupted" in process.communicate()[1]
    assert policy_of(score) == before


def test_an_impossible_goal_says_what_was_the_best(tune, score, folder):
    before = policy_of(score)
    status, out, err = tune(*running(score), *SMALL, "--p99-us", "1", "--no-refine")
    assert (status, out) == (1, "") and "no setting holds a p99 of 1 µs; the best was " in err
    assert policy_of(score) == before
    assert not (folder / "tuned.toml").exists() and len(keys("results.msgpack")) == 3, "delays of 200 µs are hopeless"


def test_the_capacity_is_measured_where_no_rate_is_given(tune, folder):
    """Which figures come out is not looked at: on a busy machine the client may be what is measured, and is refused."""
    without_rate = [part for part in SMALL if part not in ("--rate", "400")]
    one = ["--seconds", "0.5", "--sizes", "16", "--delays", "0", "--no-refine"]
    status, _, err = tune("--app", APP, *without_rate, *one, "--p99-us", "1")
    assert status == 1 and Path("results.msgpack").exists(), err
    found = load("results.msgpack").settings
    assert found["capacity_per_s"] > 100 and found["rate_per_s"] == pytest.approx(
        RATE_SHARE * found["capacity_per_s"], abs=1
    )


def test_wrong_answers_are_no_figures(tune, folder):
    (folder / "moody.py").write_text(MOODY)
    (folder / "moody.requests").write_text('{"path": "/moody"}\n')
    arguments = ["--app", "moody.py:server", "--min-cpu", *SMALL, "--route", "/moody", "--requests", "moody.requests"]
    status, out, err = tune(*arguments)
    assert (status, out) == (1, "") and "no setting has only valid runs: " in err and "answers were wrong" in err
    assert not any(run.valid for run in load("results.msgpack").runs)
    status, _, err = tune(*arguments, "--any-body", "--no-refine", "--output", "again.msgpack")
    assert status == 0, err


def test_a_server_that_dies_ends_the_sweep_and_keeps_what_was_done(folder):
    with Command("--app", APP, "--admin", "127.0.0.1:0", "--access-log", "off", folder=folder) as command:
        arguments = [*running(command), *SMALL, *EASY, "--blocks", "50"]
        process = subprocess.Popen(command_line("tune", *arguments), cwd=folder, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 40
        while not (folder / "results.msgpack").exists() or len(keys("results.msgpack")) < 1:
            assert process.poll() is None and time.monotonic() < until, "no run was kept"
            time.sleep(0.02)
    errors = process.communicate(timeout=30)[1]
    assert process.returncode == 1 and "cannot ask http://127.0.0.1:" in errors and "Traceback" not in errors
    assert keys("results.msgpack")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--route", "/none"], "'/none' is not a route of the server; there are /score/{model}"),
        (["--sizes", "2000"], "the server makes 1024 of max_batch_size 2000: one of its limits is lower"),
    ],
)
def test_what_the_server_refuses_is_known_before_any_run(tune, score, folder, changes, words):
    before = policy_of(score)
    for target in (["--app", APP], running(score)):
        status, out, err = tune(*target, *SMALL, *EASY, *changes)
        assert (status, out) == (1, "") and words in err and err.count("\n") == 1, err
        assert not (folder / "results.msgpack").exists()
    assert policy_of(score) == before


def test_requests_that_the_app_refuses_are_known_before_any_run(tune, folder):
    (folder / "short.requests").write_text('{"method": "POST", "path": "/score/sum", "body": "short"}\n')
    status, _, err = tune("--app", APP, *SMALL, *EASY, "--requests", "short.requests")
    assert status == 1 and "POST /score/sum is answered with status 422" in err
    assert not (folder / "results.msgpack").exists()


# --- a server that was not started here -------------------------------------------------------------------------------


def test_the_cpu_time_of_a_running_server(score):
    admin = parse_address(score.admin.removeprefix("http://"), "admin")
    assert pid_of_listener(admin) == score.process.pid
    target = RunningTarget(admin, "127.0.0.1", 1, ROUTE)
    exact = target.cpu_s()
    assert exact == pytest.approx(cpu_s_of(score.process.pid), abs=0.2)
    target._pid = None  # as if it were on another machine: the metrics tell, in hundredths of a second
    assert target.cpu_s() == pytest.approx(exact, abs=0.2)
    assert pid_of_listener(parse_address("192.0.2.1:80", "admin")) is None
    assert pid_of_listener(parse_address("127.0.0.1:1", "admin")) is None
