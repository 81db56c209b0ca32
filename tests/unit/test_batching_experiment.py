"""The question's experiment: which runs are made in which order, which arms exist where, and what the runs say."""

import json
from dataclasses import replace

import pytest

from batchbridge import doctor
from batchbridge.measure import arms as arms_module
from batchbridge.measure import experiment as experiment_module
from batchbridge.measure import workload
from batchbridge.measure.arms import QuestionArms, policy
from batchbridge.measure.batching import FULL, QUICK, Plan, perform, phases, slowest_capacity, suits, summarise
from batchbridge.measure.cost import CostError
from batchbridge.measure.experiment import (
    Arm,
    Counted,
    Experiment,
    ExperimentError,
    Phase,
    Site,
    counted_in,
    difference,
    fault_of,
    fill,
    notes_of,
    shuffled,
)
from batchbridge.measure.results import Results, Run
from batchbridge.measure.statistics import Interval
from support.samples import StillWatch, client_figures


def report(**available):
    engines = [
        doctor.Engine(name, available.get(name, False), f"{name}, so") for name in ("kernel", "io_uring", "epoll")
    ]
    return doctor.Report((), tuple(engines), "epoll", "")


def capacity(arm, block, requests_per_s, cost=None, **more):
    parameters = {"phase": "capacity", "connections": 64, "work_us": 0, **more.pop("parameters", {})}
    return Run(
        arm, block, parameters, seconds=1.0, responses=int(requests_per_s), requests_per_s=requests_per_s,
        server_cpu_us_per_request=cost, client_idle_share=0.5, latency_us={"p50": 100.0, "p99": 500.0}, **more,
    )  # fmt: skip


# --- arms -------------------------------------------------------------------------------------------------------------


def test_arms_that_cannot_be_are_said_to_be_missing(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with QuestionArms("python", 0, [(1, 1), (8, 64)], report(io_uring=True)) as arms:
        assert [arm.name for arm in arms.of(0, 0)] == ["U0", "U1", "B(1,1)", "B(8,64)"]
    assert arms.missing == {"BK, K0, K1": "kernel, so", "nginx": "nginx is not installed"}


def test_arms_without_io_uring_or_a_sending_kernel_thread_are_missing(monkeypatch):
    monkeypatch.setattr(arms_module, "BY_NAME", {})
    with QuestionArms("python", 0, [(8, 8)], report(kernel=True)) as arms:
        names = [arm.name for arm in arms.of(0, 0)]
    assert names[:3] == ["U0", "BK(8,8)", "K1"] and "B(8,8)" not in names
    assert arms.missing["U1, B"] == "io_uring, so" and "--sqpoll" in arms.missing["K0"]


def test_kernel_arms_exist_as_soon_as_the_kernel_engine_does(monkeypatch):
    monkeypatch.setattr(arms_module, "BY_NAME", {"sqpoll": None})
    with QuestionArms("python", 0, [], report(kernel=True, io_uring=True)) as arms:
        found = {arm.name: arm for arm in arms.of(0, 0)}
        assert found["K0"].spins and found["K0"].hits_in_kernel and not found["K1"].spins
        assert not {"K0", "K1", "nginx"} & {arm.name for arm in arms.of(10, 50)}, "files take no work"
        assert all(arm.parameters["work_us"] == 0 for arm in found.values())
        assert (arms.root / "v" / "0017").read_bytes() == workload.answer(17)
    assert not arms.root.exists()


def test_batches_are_filled_where_load_is_offered_and_not_where_it_waits():
    closed, offered = Phase("capacity", 64), Phase("cost", 64, 1000.0)
    assert policy(8, 4, closed)["policy"] == "idle" and policy(1, 1, offered)["policy"] == "idle"
    assert policy(8, 4, offered) == {
        "max_batch_size": 8, "response_batch_size": 4, "policy": "fixed", "max_queue_delay_us": 20_000,
    }  # fmt: skip


def test_each_answer_depends_on_the_request():
    answers = {workload.answer(number) for number in range(workload.NUMBERS)}
    assert len(answers) == workload.NUMBERS and {len(each) for each in answers} == {64}
    for handler in workload.HANDLERS:
        assert len({exchange.body for exchange in workload.exchanges(handler)}) == workload.NUMBERS
    with pytest.raises(AttributeError, match="such as python_10"):
        _ = workload.cobol_10


def test_native_and_python_handlers_give_the_answers_that_files_have():
    for handler in ("native", "python"):
        with workload.server(handler, 1).test_client() as client:
            for number in (0, 7, 255):
                assert client.get(f"/v/{number:04}").body == workload.answer(number)
    with workload.server("native", 0).test_client() as client:
        assert [client.get(f"/v/{text}").status for text in ("x", "1x", "-1", "9" * 20)] == [404] * 4


@pytest.mark.parametrize("handler", workload.HANDLERS)
def test_work_is_counted_in_what_the_handler_does(handler):
    assert workload.work_of(0, handler) == 0
    assert 1 <= workload.work_of(10, handler) <= workload.work_of(1000, handler)


# --- the order of runs ------------------------------------------------------------------------------------------------


def test_the_full_plan_is_the_protocols():
    assert len(FULL.pairs) == 16 and FULL.works_us == (0, 10, 100) and FULL.connections == (64, 1024)
    names = [(phase.name, phase.connections, phase.rate_per_s) for phase in phases(FULL, 1000.0)]
    assert names == [
        ("capacity", 64, None), ("capacity", 1024, None), ("lone", 1, None),
        ("cost", 1024, 200.0), ("cost", 1024, 400.0),
        ("cost", 1024, 600.0), ("cost", 1024, 800.0), ("latency", 1024, 400.0),
    ]  # fmt: skip
    assert not any(phase.idle_loop for phase in phases(FULL, 1000.0) if phase.name in ("lone", "latency"))
    assert [phase.name for phase in phases(QUICK, 1000.0)] == ["capacity"]


class Recorded:
    """An experiment that measures nothing: each arm has the capacity that its name says."""

    def __init__(self):
        self.results = Results("batching")
        self.made = []

    def run(self, arm, phase, block):
        self.made.append((block, arm.name, phase.name, phase.rate_per_s))
        self.results.append(capacity(arm.name, block, float(arm.name), parameters={"phase": phase.name}))


class Arms:
    def __init__(self, *names, spinning=()):
        self.arms = [Arm(name, "", None, [], spins=name in spinning) for name in names]

    def of(self, _work_us, _work):
        return self.arms


def test_every_block_has_every_arm_in_random_order_and_rates_are_shares_of_the_slowest():
    plan = Plan(blocks=3, seconds=1.0, connections=(64,), pairs=(), rate_shares=(0.2, 0.8), latency_share=0.4)
    experiment, planned = Recorded(), []
    perform(plan, experiment, Arms("500", "2000", "8000", spinning=["8000"]), lambda runs, _arms: planned.append(runs))
    assert planned == [len(experiment.made)] == [3 * (4 + 4 + 2)]
    blocks = [[each[1:] for each in experiment.made if each[0] == block] for block in range(3)]
    assert sorted(blocks[0], key=str) == sorted(blocks[1], key=str) == sorted(blocks[2], key=str)
    assert blocks[1] != blocks[2]
    assert {phase for _, phase, _ in blocks[0][:3]} == {"capacity"}, "the first capacities tell the rates"
    assert {rate for _, phase, rate in blocks[0] if phase == "cost"} == {100.0, 400.0}
    assert not any(arm == "8000" and phase == "cost" for arm, phase, _ in blocks[0]), "what spins has no slope"


def test_only_the_arms_that_are_asked_for_are_run():
    plan, experiment = Plan(blocks=2, seconds=1.0, connections=(64,), pairs=(), arms=("8000", "500")), Recorded()
    perform(plan, experiment, Arms("500", "2000", "8000"), lambda *_: None)
    assert {name for _, name, *_ in experiment.made} == {"500", "8000"} and len(experiment.made) == 4
    with pytest.raises(ExperimentError, match="no such arm here: 9; there are 500, 2000, 8000"):
        perform(replace(plan, arms=("9", "500")), experiment, Arms("500", "2000", "8000"), lambda *_: None)


@pytest.mark.parametrize(("steals", "made"), [([0.2, 0.2, 0.001], 3), ([0.2] * 9, 3), ([0.001], 1)])
def test_a_run_that_the_hypervisor_disturbed_is_made_again(monkeypatch, steals, made):
    stolen = iter(steals)

    def measured(_site, arm, _phase, block, **_settings):
        share = next(stolen)
        fault = "it was answered too late" if share > 0.1 else None
        return capacity(arm.name, block, 5.0, steal_share=share, valid=fault is None, invalid_reason=fault), []

    monkeypatch.setattr(experiment_module, "measure_once", measured)
    experiment = Experiment(Site(0, 1), Results("batching"), 1.0)
    run = experiment.run(Arm("U1", "", None, []), Phase("capacity", 64), 0)
    assert experiment.results.runs == [run] and run.valid == (steals[-1] < 0.1)
    assert len(steals) - len(list(stolen)) == made


def test_an_order_is_the_same_each_time():
    plan = [(Arm(str(number), "", None, []), Phase("capacity", 1)) for number in range(20)]
    assert shuffled(plan, 4) == shuffled(plan, 4) != shuffled(plan, 5)
    assert sorted(arm.name for arm, _ in shuffled(plan, 4)) == sorted(arm.name for arm, _ in plan)
    assert suits(*plan[0])


def test_an_invalid_arm_is_not_the_slowest():
    runs = [capacity("a", 0, 1000), capacity("a", 0, 900), capacity("c", 0, 10, valid=False, invalid_reason="Wrong.")]
    assert slowest_capacity(runs, 0) == 1000
    assert slowest_capacity(runs, 10) == 0.0


# --- what they say ----------------------------------------------------------------------------------------------------


ARMS = {"U1": (100e3, 8.0, None), "B(64,64)": (160e3, 5.4, None), "K1": (170e3, 5.2, None), "B(8,8)": (120e3, 6.0, 7.5)}


def made(blocks=20):
    """Runs of a machine that is slower in some blocks than in others."""
    return [
        capacity(arm, block, rate / drift, cost * drift, mean_batch_size=size)
        for block, drift in ((block, 1 + 0.02 * (block % 5)) for block in range(blocks))
        for arm, (rate, cost, size) in ARMS.items()
    ]


def test_arms_are_set_beside_each_other():
    figures = summarise(made())
    assert [one.arm for one in figures] == ["U1", "B(8,8)", "B(64,64)", "K1"]
    by_arm = {one.arm: one for one in figures}
    assert by_arm["B(64,64)"].ratio_to_u1.mid == pytest.approx(1.6) and by_arm["U1"].ratio_to_u1 is None
    assert by_arm["B(64,64)"].gaps["K1"].mid == pytest.approx(2.6 / 2.8)
    assert by_arm["B(8,8)"].mean_batch_size == 7.5 and by_arm["U1"].gaps == {}
    assert by_arm["B(64,64)"].kernel_ratios["K1"].mid == pytest.approx(5.2 / 5.4) and by_arm["K1"].kernel_ratios == {}
    assert by_arm["K1"].cost_us.mid == pytest.approx(5.2 * 1.04)
    assert by_arm["U1"].client_cost_us == pytest.approx(5.2, rel=1e-3) and by_arm["U1"].ipis_per_request is None
    assert not by_arm["U1"].is_client_limited and by_arm["U1"].latency_p99_us == 500.0


def test_figures_are_plain_data():
    told = json.loads(json.dumps([one.as_dict() for one in summarise(made(1))], allow_nan=False))
    assert told[0]["requests_per_s"] == {"low": None, "mid": 100e3, "high": None}
    assert told[1]["gaps"] == {"K1": None}, "one block tells nothing of the gap"


def test_costs_are_slopes_where_there_are_rates_and_latencies_are_those_of_the_latency_phase():
    runs = made(2)
    for block in range(2):
        for rate in (20e3, 40e3):
            runs.append(capacity("U1", block, rate, (5e4 + 7 * rate) / rate, parameters={"phase": "cost"}))
        slow = capacity("U1", block, 20e3, parameters={"phase": "latency"})
        slow.latency_us = {"p50": 40.0, "p99": 90.0}
        runs.append(slow)
    found = next(one for one in summarise(runs) if one.arm == "U1")
    assert found.cost_us.mid == pytest.approx(7.0) and found.latency_p99_us == 90.0
    assert found.requests_per_s.mid == pytest.approx(100e3, rel=0.02), "offered rates are no capacity"


def test_costs_are_told_at_each_rate_with_the_gap_there():
    runs = made(3)
    for block in range(3):
        for share, costs in ((0.2, {"U1": 20.0, "B(8,8)": 9.0, "K1": 15.0}), (0.8, {"U1": 9.0, "B(8,8)": 8.0})):
            for arm, cost in costs.items():
                at = {"phase": "cost", "rate_share": share}
                run = capacity(arm, block, share * 1e5, cost + block / 10, parameters=at, offered_per_s=share * 1e5)
                runs.append(run)
    figures = {one.arm: one.at_rates for one in summarise(runs)}
    low, high = figures["B(8,8)"]
    assert (low.rate_share, low.rate_per_s, high.rate_per_s) == (0.2, 2e4, 8e4)
    assert low.cost_us.mid == pytest.approx(9.1) and low.gaps["K1"].mid == pytest.approx(11 / 5)
    assert low.ratio_to_u1.mid == pytest.approx(9.1 / 20.1, rel=1e-3) and high.gaps == {}
    assert figures["U1"][0].ratio_to_u1 is None and [at.rate_share for at in figures["K1"]] == [0.2]
    assert figures["B(64,64)"] == []


def test_invalid_runs_are_reasons_and_no_numbers():
    runs = [*made(2), *(capacity("B(1,1)", block, 1e9, valid=False, invalid_reason="It died.") for block in range(2))]
    found = next(one for one in summarise(runs) if one.arm == "B(1,1)")
    assert found.invalid == ["It died."] and found.blocks == 0
    assert (found.requests_per_s, found.cost_us, found.ratio_to_u1, found.latency_p50_us) == (None,) * 4


def test_arms_stand_beside_those_with_the_same_work_and_connections():
    runs = [capacity("U1", 0, 5.0), capacity("nginx", 0, 9.0), capacity("U1", 0, 4.0, parameters={"work_us": 10}),
            capacity("U1", 0, 3.0, parameters={"connections": 1024})]  # fmt: skip
    assert [(one.work_us, one.connections, one.arm) for one in summarise(runs)] == [
        (0, 64, "U1"), (0, 64, "nginx"), (0, 1024, "U1"), (10, 64, "U1"),
    ]  # fmt: skip
    assert summarise([]) == []


def test_what_has_to_be_said_is_said():
    assert notes_of(made(20)) == []
    few = [capacity("U1", block, 5.0) for block in range(3)]
    evidence, cost = notes_of(few)
    assert evidence.startswith("No evidence: 3 blocks of the 20") and cost.startswith("In 3 of 3 runs other programs")


def test_a_single_block_has_no_interval():
    assert summarise(made(1))[0].requests_per_s == Interval(float("-inf"), 100e3, float("inf"))


# --- what voids a run -------------------------------------------------------------------------------------------------


def test_a_run_is_void_where_counts_differ_load_is_not_met_or_time_is_stolen():
    assert fault_of(client_figures(), StillWatch(), Counted(1000)) is None
    assert fault_of(client_figures(), StillWatch(), Counted(None)) is None, "a server that is not ours counts nothing"
    assert (
        fault_of(client_figures(), StillWatch(), Counted(999))
        == "the server counted 999 requests, the client sent 1,000"
    )
    assert fault_of(client_figures(offered_per_s=1040.0), StillWatch(), Counted(None)) is None
    assert "of 1,100 requests/s offered, 1,000" in fault_of(
        client_figures(offered_per_s=1100.0), StillWatch(), Counted(None)
    )
    assert "took 5.0% of a core" in fault_of(client_figures(), StillWatch(0.05), Counted(1000))


def test_both_cores_costs_are_told_unless_the_client_never_came_to_measuring():
    class Unwatched(StillWatch):
        def between(self, began_us, ended_us):
            raise CostError("the measured time was not watched")

    run = Run("a", 0)
    fill(run, client_figures(), Unwatched(), Unwatched())
    assert (run.server_cpu_us_per_request, run.client_core_us_per_request) == (None, None)
    fill(run, replace(client_figures(), began_us=1_000_000, ended_us=2_000_000), StillWatch(), StillWatch())
    assert run.client_core_us_per_request == pytest.approx(0.5e6 / 900) == run.server_cpu_us_per_request


# --- counters ---------------------------------------------------------------------------------------------------------

STATS = {
    "requests": {"read": 10},
    "kernel_side": {"hits": 1},
    "routes": {"/v": {"items": 8, "batches": 3, "batch_size_histogram": [1, 0, 2, 0]}},
}


def test_what_was_counted_in_between():
    later = json.loads(json.dumps(STATS))
    later["requests"]["read"] = 30
    later["kernel_side"]["hits"] = 5
    later["routes"]["/v"] = {"items": 28, "batches": 8, "batch_size_histogram": [1, 1, 4, 2]}
    found = difference(counted_in(later, "/v"), counted_in(STATS, "/v"))
    assert (found.read, found.kernel_hits, found.mean_size) == (20, 4, 4.0)
    assert found.sizes == [(2, 1), (4, 2), (8, 2)]
    assert counted_in({"requests": {"read": 3}, "routes": {}}, None).kernel_hits == 0
    later["sends"], sends = {"pieces": 9, "zero_copy": 5}, {"pieces": 2, "zero_copy": 1}
    for route in ("/v", None):
        found = difference(counted_in(later, route), counted_in({**STATS, "sends": sends}, route))
        assert (found.pieces, found.zero_copy) == (7, 4)
    assert counted_in(STATS, None).mean_size is None and counted_in(STATS, "/other").sizes == []
