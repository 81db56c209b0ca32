"""Targets are met where the whole interval meets them, missed where none of it does, and open in between; a client that
was the limit proves nothing, and what was not measured is not called either.
"""

import zlib
from dataclasses import replace

import pytest

from batchbridge import doctor
from batchbridge.measure.experiment import Arm
from batchbridge.measure.results import Run
from batchbridge.measure.statistics import Interval
from bench import rivals
from bench.target_scenes import AGAIN, DIRECTORIES, SCENES, Servers
from bench.target_verdicts import MET, MISSED, NOT_ASKED, NOT_MEASURED, OPEN, TARGETS, Target, judge, own_share
from bench.targets import perform, plan, targets_of

AT_LEAST_2 = Target("P0", "hits", "kernel", "throughput", "nginx", 2.0)
AT_MOST_HALF = Target("P0", "hits", "kernel", "server CPU", "nginx", 0.5, at_least=False)
SHARE = Target("P0", "hits", "kernel", "own share of the core", None, 0.15, at_least=False)


def run(arm, block, *, rate=100.0, cost=10.0, idle=0.5, scene="hits", **more):
    return Run(
        arm, block, {"scene": scene, "phase": "capacity"}, seconds=1.0, responses=100, requests_per_s=rate,
        server_cpu_us_per_request=cost, client_idle_share=idle, latency_us={"p50": 50.0}, **more,
    )  # fmt: skip


def runs(rates=(), costs=(), **more):
    """The kernel arm's figures, a block each, beside an nginx that always does 100 at 10 µs."""
    count = max(len(rates), len(costs))
    found = [run("nginx", block) for block in range(count)]
    for block in range(count):
        figures = {"rate": rates[block]} if rates else {"cost": costs[block]}
        found.append(run("kernel", block, **figures, **more))
    return found


@pytest.mark.parametrize(
    ("rates", "verdict"),
    [((210, 220, 230), MET), ((150, 160, 170), MISSED), ((180, 210, 240), OPEN), ((300,), OPEN)],
)
def test_a_ratio_is_judged_by_its_whole_interval(rates, verdict):
    found = judge(AT_LEAST_2, runs(rates))
    assert found.verdict == verdict and found.blocks == len(rates)


@pytest.mark.parametrize(
    ("costs", "verdict"), [((4.0, 4.1, 4.2), MET), ((6.0, 6.1, 6.2), MISSED), ((4.0, 5.0, 6.0), OPEN)]
)
def test_at_most_is_judged_from_the_other_side(costs, verdict):
    assert judge(AT_MOST_HALF, runs(costs=costs)).verdict == verdict


def test_a_client_that_was_the_limit_proves_no_miss_and_no_lead():
    missed = judge(AT_LEAST_2, runs((150, 151, 152), idle=0.01))
    assert missed.verdict == OPEN and "at least" in missed.note
    assert judge(AT_LEAST_2, runs((250, 251, 252), idle=0.01)).verdict == MET, "a faster server would meet it as well"
    limited_base = [run("nginx", block, idle=0.01) for block in range(3)]
    lead = judge(AT_LEAST_2, [*limited_base, *(run("kernel", block, rate=250.0) for block in range(3))])
    assert lead.verdict == OPEN and "nginx" in lead.note


def test_what_was_not_measured_says_why():
    assert judge(AT_LEAST_2, []).verdict == NOT_MEASURED
    broken = [run("nginx", 0), run("kernel", 0, valid=False, invalid_reason="It died.")]
    found = judge(AT_LEAST_2, broken)
    assert (found.verdict, found.measured, found.note) == (NOT_MEASURED, None, "invalid: It died.")
    other_scene = [run(arm, 0, scene="python") for arm in ("kernel", "nginx")]
    assert judge(AT_LEAST_2, other_scene).verdict == NOT_MEASURED


def test_the_own_share_is_all_but_tcp_ip_and_interrupts():
    profile = {"ipi": 0.2, "tcp_ip": 0.7, "io_uring": 0.04, "bpf": 0.01, "engine": 0.03, "python": 0.0, "other": 0.02}
    sampled = [run("kernel", block, profile=profile) for block in range(3)]
    assert own_share(sampled[0]) == pytest.approx(0.1)
    found = judge(SHARE, sampled)
    assert found.verdict == MET and found.measured.mid == pytest.approx(0.1)
    assert own_share(run("kernel", 0)) is None


def test_what_asks_for_nothing_has_no_verdict():
    again = next(target for target in TARGETS if target.number == AGAIN)
    found = judge(again, [run(arm, block) for arm in (AGAIN, "io_uring") for block in range(3)])
    assert found.verdict == NOT_ASKED and found.measured == Interval(1.0, 1.0, 1.0) and again.asked == ""


def test_every_target_is_measured_in_a_scene_that_has_its_arms():
    arms = {scene.name: scene.arms for scene in SCENES}
    for target in TARGETS:
        assert target.arm in arms[target.scene] and target.base in (None, *arms[target.scene]), target
    sampled = {scene.name for scene in SCENES if scene.with_profile}
    assert all((target.scene in sampled) == (target.base is None) for target in TARGETS)


def test_a_choice_measures_what_it_takes_and_no_more(monkeypatch):
    monkeypatch.setattr(rivals, "why_not", lambda rival: "h2o is not installed" if rival == "h2o" else None)
    engines = [doctor.Engine(name, name != "kernel", "no BTF") for name in ("kernel", "io_uring", "epoll")]
    targets = targets_of(["P2"])
    with Servers(doctor.Report((), tuple(engines), "epoll", "")) as servers:
        planned = plan([scene for scene in SCENES if scene.name == "hits"], targets, servers)
        assert [arm.name for _, arm in planned] == ["io_uring", AGAIN, "nginx"]
    assert servers.missing == {"h2o": "h2o is not installed", "kernel": "no BTF"}
    assert {target.number for target in targets} == {"P2", "A/A"}
    assert {target.number for target in targets_of(["P3"])} == {"P3"}, "the A/A arm is of another scene"


class Recorded:
    """An experiment that measures nothing; `replace` makes another one of it."""

    def __init__(self):
        self.made = []

    def run(self, arm, phase, block):
        self.made.append((block, phase.parameters["scene"], arm.name, phase.name, phase.rate_per_s))
        return run(arm.name, block, rate={"kernel": 900.0, "nginx": 100.0}[arm.name])


def test_costs_are_slopes_over_shares_of_the_slowest_where_that_is_asked_for(monkeypatch):
    experiment = Recorded()
    monkeypatch.setattr(
        "bench.targets.replace", lambda of, **changes: of if of is experiment else replace(of, **changes)
    )
    arms = [Arm(name, "", None, []) for name in ("kernel", "nginx")]
    scenes = [scene for scene in SCENES if scene.name in ("hits", "lone")]
    perform(experiment, [(scene, arm) for scene in scenes for arm in arms], 2, (0.2, 0.8))
    offered = {(scene, arm, rate) for _, scene, arm, phase, rate in experiment.made if phase == "cost"}
    assert offered == {("hits", arm, rate) for arm in ("kernel", "nginx") for rate in (20.0, 80.0)}
    assert len(experiment.made) == 2 * (4 + 4) and len(set(experiment.made)) == len(experiment.made)


def test_a_slope_is_free_of_what_is_busy_anyway_and_offered_rates_are_no_throughput():
    found = runs(costs=(9.0, 9.0, 9.0))
    for block in range(3):
        for arm, slope in (("kernel", 4.0), ("nginx", 10.0)):
            for rate in (20.0, 80.0):
                each = run(arm, block, rate=rate, cost=slope + 50.0 / rate)
                each.parameters["phase"], each.responses = "cost", int(rate)
                found.append(each)
    ratio = judge(AT_MOST_HALF, found)
    assert ratio.measured.mid == pytest.approx(0.4) and ratio.verdict == MET
    assert judge(AT_LEAST_2, found).measured.mid == pytest.approx(1.0)


def test_the_mix_is_made_once_and_known_to_the_last_byte():
    mix = next(scene for scene in SCENES if scene.name == "mix")
    with Servers(doctor.Report((), (), "epoll", "")) as servers:
        exchanges = servers.exchanges(mix)
        assert servers.exchanges(mix) is exchanges and len(exchanges) == 36 * DIRECTORIES
        assert sum(exchange.weight for exchange in exchanges) == pytest.approx(1.0)
        first = exchanges[0]
        content = (servers.root / "dir00000" / "class0_1").read_bytes()
        assert (len(content), zlib.crc32(content)) == (first.length, first.crc32) and first.length == 102


def test_bounds_in_writing():
    assert (AT_LEAST_2.asked, AT_MOST_HALF.asked, SHARE.asked) == ("≥ 2", "≤ 0.5", "≤ 15%")
    assert AT_MOST_HALF.words == "kernel: server CPU ÷ nginx"
