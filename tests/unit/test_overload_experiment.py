"""Under overload errors are figures: what was refused, lost or never sent is counted, and only a wrong answer voids.
Loads are multiples of each server's own capacity; goodput is its share of that.
"""

import pytest

from batchbridge.measure.experiment import Arm, Phase, count_errors, overload_fault_of
from batchbridge.measure.overload import FULL, Plan, perform, phases, summarise
from batchbridge.measure.results import Results, Run
from support.samples import StillWatch, client_figures, overload_results


def test_phases_are_a_closed_loop_and_multiples_of_its_rate():
    plan = Plan(blocks=1, seconds=1.0, shares=(0.5, 3.0), connections=1000)
    assert [phase.name for phase in phases(plan, None)] == ["capacity"]
    closed, half, most = phases(plan, 2000.0)
    assert closed.connections == 256 and closed.idle_loop and closed.close
    assert (half.rate_per_s, most.rate_per_s) == (1000.0, 6000.0) and most.connections == 1000
    assert most.is_overload and most.watch_server and most.close and not most.idle_loop
    assert min(FULL.shares) == 0.5 and max(FULL.shares) == 3.0, "as the protocol asks for"


class Recorded:
    def __init__(self, **capacities):
        self.capacities, self.made, self.results = capacities, [], Results("overload")

    def run(self, arm, phase, block):
        self.made.append((block, arm.name, phase.name, phase.rate_per_s))
        capacity = self.capacities[arm.name]
        return Run(arm.name, block, {}, valid=capacity > 0, invalid_reason=None if capacity else "It died.",
                   requests_per_s=float(capacity))  # fmt: skip


def test_each_server_is_offered_multiples_of_its_own_capacity():
    arms = [Arm(name, "", None, []) for name in ("fast", "slow", "dead")]
    experiment, planned = Recorded(fast=1000, slow=100, dead=0), []
    plan = Plan(blocks=2, seconds=1.0, shares=(0.5, 2.0))
    perform(plan, experiment, arms, lambda runs, _arms: planned.append(runs))
    assert planned == [2 * 3 * 3]
    offered = {(arm, rate) for _, arm, phase, rate in experiment.made if phase == "overload"}
    assert offered == {("fast", 500.0), ("fast", 2000.0), ("slow", 50.0), ("slow", 200.0)}
    closed = [(block, arm) for block, arm, phase, _ in experiment.made if phase == "capacity"]
    assert sorted(closed) == [(0, "dead"), (0, "fast"), (0, "slow"), (1, "fast"), (1, "slow")]


def test_errors_are_counted_and_leave_the_rate():
    figures = client_figures(requests=1000, requests_per_s=800.0)
    figures.statuses, figures.unanswered, figures.unissued = {200: 600, 503: 200}, 50, 150
    figures.wrong = {"answers": 200}
    run = Run("kernel", 0)
    count_errors(run, figures)
    assert run.requests_per_s == 600.0 and run.errors == {"refused": 200, "unanswered": 50, "unissued": 150}
    assert overload_fault_of(figures, StillWatch()) is None
    figures.wrong = {"answers": 201}
    assert "1 of the server's answers were wrong" in overload_fault_of(figures, StillWatch())
    figures.wrong = {"answers": 200}
    assert "took 5.0% of a core" in overload_fault_of(figures, StillWatch(0.05))


def test_goodput_is_a_share_of_the_capacity_of_the_same_block():
    found = {(one.arm, one.load): one for one in summarise(overload_results().runs)}
    assert found["kernel", 0.0].goodput_share is None and found["kernel", 0.0].goodput_per_s.mid > 0
    assert found["kernel", 0.5].goodput_share.mid == pytest.approx(0.5, rel=0.05)
    assert found["nginx", 3.0].goodput_share.mid == pytest.approx(0.4, rel=0.05), "it livelocks"
    assert found["nginx", 3.0].errors_share["unanswered"] == pytest.approx(0.5)
    assert found["kernel", 3.0].batches_per_s == pytest.approx(found["kernel", 3.0].goodput_per_s.mid / 8, rel=0.05)
    assert found["kernel", 3.0].server_share.mid == pytest.approx(0.8)


def test_a_server_that_answers_nothing_has_a_share_of_nothing():
    runs = [Run("a", block, {"phase": "capacity"}, requests_per_s=100.0) for block in range(3)]
    runs += [Run("a", block, {"phase": "overload", "load": 3.0}, requests_per_s=0.0) for block in range(3)]
    assert summarise(runs)[1].goodput_share.mid == 0.0


def test_only_the_phase_of_that_name_forgives_errors():
    assert not Phase("capacity", 1).is_overload and Phase("overload", 1).is_overload
