"""One connection alone and fixed rates, the same for every server; ratios of percentiles are paired within blocks."""

import pytest

from batchbridge.measure.experiment import Arm, ExperimentError
from batchbridge.measure.latency import FULL, Plan, perform, phases, summarise
from batchbridge.measure.results import Results, Run


def latencies(arm, block, p50, rate=None):
    parameters = {"phase": "latency", "rate_per_s": rate} if rate else {"phase": "lone"}
    return Run(arm, block, parameters, seconds=1.0, requests_per_s=100.0,
               latency_us={"p50": p50, "p90": 2 * p50, "p99": 9 * p50, "p999": 20 * p50})  # fmt: skip


class Recorded:
    def __init__(self, **capacities):
        self.capacities, self.made, self.results = capacities, [], Results("latency")

    def run(self, arm, phase, block):
        self.made.append((block, arm.name, phase.name, phase.rate_per_s, phase.connections))
        capacity = self.capacities[arm.name]
        return Run(arm.name, block, valid=capacity > 0, invalid_reason=None if capacity else "It died.",
                   requests_per_s=float(capacity))  # fmt: skip


def test_the_core_may_sleep_in_every_phase():
    found = phases(FULL, (10.0, 20.0))
    assert [(phase.name, phase.connections, phase.rate_per_s) for phase in found] == [
        ("lone", 1, None), ("latency", 64, 10.0), ("latency", 64, 20.0),
    ]  # fmt: skip
    assert not any(phase.idle_loop for phase in found)


def test_rates_are_the_same_for_all_and_shares_of_the_slowest():
    experiment, planned = Recorded(fast=1000, slow=100), []
    arms = [Arm(name, "", None, []) for name in ("fast", "slow")]
    perform(Plan(2, 1.0, rate_shares=(0.2, 0.8)), experiment, arms, lambda runs, _arms: planned.append(runs))
    assert planned == [len(experiment.made)] == [2 + 2 * 2 * 3]
    assert {(arm, rate) for _, arm, phase, rate, _ in experiment.made if phase == "latency"} == {
        ("fast", 20.0), ("fast", 80.0), ("slow", 20.0), ("slow", 80.0),
    }  # fmt: skip


def test_given_rates_need_no_capacity_and_no_capacity_is_an_error():
    arms = [Arm("dead", "", None, [])]
    experiment = Recorded(dead=0)
    perform(Plan(1, 1.0, rates_per_s=(5.0,)), experiment, arms, lambda _runs, _arms: None)
    assert [each[2] for each in sorted(experiment.made)] == ["latency", "lone"]
    with pytest.raises(ExperimentError, match="give --rate"):
        perform(Plan(1, 1.0), experiment, arms, lambda _runs, _arms: None)


def test_figures_stand_beside_the_bases_of_the_same_rate():
    runs = [latencies("epoll", block, 50.0 + block) for block in range(3)]
    runs += [latencies("kernel", block, 60.0 + 1.2 * block) for block in range(3)]
    runs += [latencies("kernel", block, 80.0, rate=500.0) for block in range(3)]
    runs.append(Run("kernel", 0, {"phase": "capacity"}, latency_us={"p50": 1.0}))
    epoll, kernel, offered = summarise(runs, "epoll")
    assert (epoll.arm, epoll.rate_per_s, epoll.ratios) == ("epoll", None, {}) and epoll.latency_us["p50"].mid == 51.0
    assert kernel.ratios["p50"].mid == pytest.approx(1.2) and kernel.blocks == 3
    assert offered.rate_per_s == 500.0 and offered.ratios == {}, "epoll was not run at that rate"


def test_an_invalid_run_is_a_reason():
    broken = Run("epoll", 0, {"phase": "lone"}, valid=False, invalid_reason="It died.")
    (found,) = summarise([broken], "epoll")
    assert found.invalid == ["It died."] and found.latency_us == {} and found.blocks == 0
