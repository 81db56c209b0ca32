"""The targets in small: servers run, ratios stand beside what is asked for, and the page can be made again out of the
file. Shared cores: nothing is said of what was met.
"""

import json
import os
import subprocess
import sys

import pytest

from batchbridge.cython_ext import ring
from batchbridge.measure.processes import cores
from batchbridge.measure.results import load
from support.measuring import undisturbed
from support.skips import skip_if

pytestmark = [
    skip_if(bool(ring.probe()["ring_error"]), "no-io-uring", "the load generator sends and receives by io_uring"),
    skip_if(cores() == (None, None), "one-core", "a server and its client take a core each"),
]


def targets(*arguments):
    return subprocess.run(
        [sys.executable, "-P", "-m", "bench.targets", *arguments], capture_output=True, text=True, timeout=55,
        check=False, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip


def test_chosen_targets_are_measured_and_told_again_from_the_file(tmp_path):
    path = tmp_path / "targets.msgpack"
    done, made = undisturbed(targets, path, "--only=p5", "--blocks=1", "--seconds=0.2", "--loopback", "--json")
    assert done.returncode in (0, 1), done.stderr
    assert not [run.invalid_reason for run in made if not run.valid]
    told = json.loads(done.stdout)
    assert "No evidence: 1 block of the 20" in told["note"]
    found = {one["target"]["arm"]: one for one in told["figures"] if one["target"]["base"] == "epoll"}
    assert found["io_uring"]["target"]["number"] == "P5" and found["io_uring"]["measured"]["mid"] > 0
    assert found["io_uring"]["verdict"] == "open", "one block tells no interval"
    results = load(path)
    assert results.kind == "targets" and {run.parameters["scene"] for run in results.runs} == {"lone"}
    again = targets(f"--read={path}", "--only=P5,P11")
    assert again.returncode == done.returncode, again.stderr
    assert "io_uring: p50 ÷ epoll" in again.stdout and "≤ 1.05" in again.stdout and "one connection" in again.stdout
    assert "P11" in again.stdout and "–" in again.stdout, "what was not measured is said to be so"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [(["--only=P4"], "'P4' is none of P1, P2"), (["--read=/dev/null"], "is not a results file"),
     (["--output=/no/such/folder/f"], "is no folder that may be written to")],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_in_a_sentence(arguments, reason):
    done = targets(*arguments, "--loopback")
    assert done.returncode in (1, 2) and reason in done.stderr and "Traceback" not in done.stderr, done.stderr
