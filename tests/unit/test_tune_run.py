"""A sweep that is interrupted anywhere goes on with exactly what is missing; what a run counts must add up."""

import contextlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchbridge.cython_ext.load import Exchange
from batchbridge.measure.load import LoadFigures
from batchbridge.measure.results import Results, Run, load
from batchbridge.tune import run as tuning
from batchbridge.tune.goals import Goal
from batchbridge.tune.run import (
    Plan,
    SweepError,
    batches_between,
    check_resumable,
    fingerprint,
    measure_capacity,
    missing_runs,
    run_once,
    stages,
    sweep,
)
from batchbridge.tune.space import Candidate
from batchbridge.tune.targets import Serving, TargetError

PRESENT = Candidate(64, 200)


def make_plan(**changes):
    plain = {
        "target": "app.py:server", "route": "/r", "goal": Goal("cpu", 2000), "sizes": (1, 16), "delays_us": (0, 400),
        "blocks": 2, "seconds": 1.0, "warmup_s": 0.1, "connections": 8, "rate_asked_per_s": 100.0,
        "requests_sha256": "0",
    }  # fmt: skip
    return Plan(**{**plain, **changes})


def fake(block, candidate):
    """A run whose figures follow from its setting: the best size is 8, and delays cost."""
    size, delay = candidate
    parameters = {"max_batch_size": size, "max_queue_delay_us": delay}
    latency = {"p99": 500.0 + delay + 3 * abs(size - 8) + block}
    return Run("tune", block, parameters, latency_us=latency, requests_per_s=100.0, offered_per_s=100.0,
               server_cpu_us_per_request=5 + 0.1 * abs(size - 8) + 0.001 * block)  # fmt: skip


def made(plan, results=None, after=None):
    """All runs of a sweep, or as many as come before it is interrupted."""
    results = results or Results("sweep", settings=plan.settings())
    left = [after]

    def measure(block, candidate):
        if left[0] is not None:
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
        return fake(block, candidate)

    with contextlib.suppress(KeyboardInterrupt):
        sweep(plan, results, PRESENT, measure)
    return results


def keys(results):
    return [(run.block, run.parameters["max_batch_size"], run.parameters["max_queue_delay_us"]) for run in results.runs]


WHOLE = keys(made(make_plan()))


def test_a_sweep_is_coarse_and_then_refined():
    assert len(WHOLE) == len(set(WHOLE))
    coarse = [key for key in WHOLE if key[0] < 2]
    assert {key[1:] for key in coarse} == {(1, 0), (1, 400), (16, 0), (16, 400), PRESENT}
    refined = {key[1:] for key in WHOLE if key[0] >= 2}
    assert refined == {(1, 0), PRESENT, (4, 0), (1, 100)}, "the best, the present one, and the new ones around it"
    assert {key[0] for key in WHOLE} == {0, 1, 2, 3}
    assert {key[0] for key in keys(made(make_plan(refined=False)))} == {0, 1}


@given(st.integers(0, len(WHOLE)), st.integers(0, len(WHOLE)))
@settings(max_examples=20)
def test_any_interruption_loses_nothing_and_repeats_nothing(first, second):
    plan = make_plan()
    results = made(plan, after=first)
    assert keys(results) == WHOLE[:first]
    results = made(plan, results, after=second)
    assert keys(made(plan, results)) == WHOLE


@given(st.sets(st.integers(0, len(WHOLE) - 1)))
@settings(max_examples=20)
def test_any_runs_that_are_there_are_not_made_again(places):
    """Whatever is in the file, such as runs that somebody took out: what is missing is made, once."""
    plan = make_plan()
    kept = [fake(WHOLE[place][0], Candidate(*WHOLE[place][1:])) for place in sorted(places)]
    assert sorted(keys(made(plan, Results("sweep", runs=kept)))) == sorted(WHOLE)


def test_progress_is_told():
    plan, told = make_plan(), []
    sweep(plan, made(plan, after=3), PRESENT, fake, on_stage=lambda planned, missing: told.append((planned, missing)),
          on_run=lambda block, candidate: told.append("run"), after_run=lambda: told.append("done"))  # fmt: skip
    assert told[0] == (10, 7) and told[1:15] == ["run", "done"] * 7 and told[15] == (8, 8)


def test_with_nothing_valid_there_is_no_second_stage():
    plan = make_plan()
    results = Results("sweep")

    def broken(block, candidate):
        return Run("tune", block, candidate._asdict(), valid=False, invalid_reason="it failed")

    sweep(plan, results, PRESENT, broken)
    assert len(results.runs) == 10
    assert [missing_runs(stage, results) for stage in stages(plan, results, PRESENT)] == [[]]


def test_a_goal_that_nothing_holds_is_looked_for_near_the_least_p99():
    plan = make_plan(goal=Goal("cpu", 1))
    refined = {key[1:] for key in keys(made(plan)) if key[0] >= 2}
    assert refined == {(1, 0), PRESENT, (4, 0), (1, 100)}


@pytest.mark.parametrize("change", [
    {"target": "other.py:server"}, {"route": "/other"}, {"goal": Goal("cpu", 1)}, {"goal": Goal("throughput", 2000)},
    {"sizes": (1,)}, {"delays_us": (0,)}, {"blocks": 3}, {"seconds": 2.0}, {"warmup_s": 0.0}, {"connections": 9},
    {"rate_asked_per_s": None}, {"requests_sha256": "1"}, {"refined": False}, {"seed": 2},
    {"engine": "epoll"}, {"compares_bodies": False},
])  # fmt: skip
def test_another_setting_cannot_be_resumed(change, tmp_path):
    path = tmp_path / "results.msgpack"
    Results("sweep", settings=make_plan().settings()).save(path)
    results = load(path)
    check_resumable(make_plan(), results, path)
    with pytest.raises(SweepError, match="was begun with another"):
        check_resumable(make_plan(**change), results, path)
    with pytest.raises(SweepError, match="holds results of kind 'load'"):
        check_resumable(make_plan(), Results("load"), path)


def test_requests_have_a_fingerprint():
    one, other = Exchange(b"GET / HTTP/1.1\r\n\r\n"), Exchange(b"GET /a HTTP/1.1\r\n\r\n")
    heavier = Exchange(one.data, weight=2.0)
    found = {fingerprint(exchanges) for exchanges in ([one], [other], [heavier], [one, other], [other, one])}
    assert len(found) == 5 and fingerprint([one]) in found


# --- one run ----------------------------------------------------------------------------------------------------------


def figures(**changes):
    plain = {
        "requests": 120, "responses": 100, "seconds": 1.0, "requests_per_s": 100.0, "offered_per_s": 100.0,
        "latency_us": {"p99": 900.0}, "histogram": [(800, 100)], "idle_share": 0.9, "saturated": False,
        "late_us": None, "wrong": {}, "failures": {}, "is_valid": True, "invalid_reason": None, "command": ["load"],
    }  # fmt: skip
    return LoadFigures(**{**plain, **changes})


class FakeTarget:
    server_cpu = client_cpu = None

    def __init__(self, read=120, cpu=(1.0, 1.012), dies=False):
        self.read, self.cpu, self.dies = read, iter(cpu), dies
        self.asked = 0

    @contextlib.contextmanager
    def serving(self, candidate):
        yield Serving("127.0.0.1", 1, self.stats, lambda: next(self.cpu), ["serve"])

    def stats(self):
        self.asked += 1
        if self.dies and self.asked > 1:
            raise TargetError("the server does not answer /stats")
        later = self.asked - 1
        route = {
            "batches": 10 + 30 * later,
            "items": 10 + 90 * later,
            "batch_size_histogram": [10, 10 * later, 20 * later],
        }
        return {"requests": {"read": 7 + self.read * later}, "routes": {"/r": route}}


@pytest.fixture
def once(monkeypatch):
    def once(target, **changes):
        monkeypatch.setattr(tuning, "run_load", lambda *args, **more: figures(**changes))
        commands = []
        return run_once(make_plan(), target, [], 100.0, 0, Candidate(4, 0), commands.append), commands

    return once


def test_a_run_has_what_client_and_server_tell(once):
    run, commands = once(FakeTarget())
    assert run.valid and commands == [["serve"], ["load"]]
    assert run.server_cpu_us_per_request == pytest.approx(100.0), "by all requests, those of the warm-up too"
    assert run.batch_sizes == [(2, 10), (4, 20)] and run.mean_batch_size == 3.0
    assert run.parameters == {"max_batch_size": 4, "max_queue_delay_us": 0, "connections": 8, "rate_per_s": 100.0}
    assert (run.requests_per_s, run.offered_per_s, run.latency_us) == (100.0, 100.0, {"p99": 900.0})


@pytest.mark.parametrize(
    ("target", "changes", "words"),
    [
        (FakeTarget(read=119), {}, "the server counted 119 requests, of 120 that were sent"),
        (FakeTarget(), {"invalid_reason": "5 of the server's answers were wrong", "is_valid": False}, "were wrong"),
        (FakeTarget(), {"saturated": True, "idle_share": 0.1}, "idle for only 10%"),
        (FakeTarget(dies=True), {}, "does not answer /stats"),
        (FakeTarget(dies=True), {"invalid_reason": "connections failed: reset 3", "is_valid": False}, "reset 3"),
    ],
)
def test_a_run_that_does_not_add_up_is_invalid(once, target, changes, words):
    run, _ = once(target, **changes)
    assert not run.valid and words in run.invalid_reason


def test_cpu_time_that_cannot_be_known_is_none(once):
    run, _ = once(FakeTarget(cpu=(None, None)))
    assert run.valid and run.server_cpu_us_per_request is None


def test_no_batches_have_no_mean():
    same = {"routes": {"/r": {"batches": 1, "items": 2, "batch_size_histogram": [0, 1]}}}
    assert batches_between(same, same, "/r") == ([], None)
    assert batches_between({"routes": {}}, {"routes": {}}, "/r") == ([], None)


def test_the_capacity_is_no_figure_after_a_wrong_answer(monkeypatch):
    monkeypatch.setattr(tuning, "run_load", lambda *args, **more: figures(requests_per_s=5000.0))
    assert measure_capacity(make_plan(), FakeTarget(), [], list) == 5000.0
    monkeypatch.setattr(
        tuning, "run_load", lambda *args, **more: figures(is_valid=False, invalid_reason="it was wrong")
    )
    with pytest.raises(SweepError, match="the capacity cannot be measured: it was wrong"):
        measure_capacity(make_plan(), FakeTarget(), [], list)


def test_each_run_is_saved(tmp_path):
    path = Path(tmp_path / "results.msgpack")
    plan = make_plan()
    made(plan, Results("sweep", settings=plan.settings(), path=path), after=4)
    assert keys(load(path)) == WHOLE[:4]
