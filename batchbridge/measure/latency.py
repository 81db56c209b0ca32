"""How long servers take to answer: one connection alone, and open loops at fixed rates.

No idle loop runs: the server's core may sleep, and waking it is a part of what a lone client sees. Latencies of open
loops count from when a request was due (no coordinated omission). Rates are the same for all servers: shares of what
the slowest can do, unless they are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from .experiment import CAPACITY, LATENCY, LONE, OVERHEAD_S, Arm, Experiment, ExperimentError, Phase, shuffled
from .results import Run
from .statistics import Interval, bootstrap_interval, by_block, ratio_interval

__all__ = ["FULL", "PERCENTILES", "QUICK", "LatencyFigures", "Plan", "estimate_s", "perform", "summarise"]

PERCENTILES = ("p50", "p90", "p99", "p999")

Announce = Callable[[int, Iterable[Arm]], None]


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    blocks: int
    seconds: float
    rates_per_s: tuple[float, ...] = ()
    """Of the open loops; none: they are `rate_shares` of the slowest server's capacity."""
    rate_shares: tuple[float, ...] = (0.2, 0.5, 0.8)
    connections: int = 64
    """Of the open loops, and of the closed one that tells the capacity."""


FULL = Plan(blocks=20, seconds=5.0)
QUICK = Plan(blocks=3, seconds=1.5)


def phases(plan: Plan, rates_per_s: Sequence[float]) -> list[Phase]:
    """One connection alone, and the open loops."""
    return [
        Phase(LONE, 1, idle_loop=False),
        *(Phase(LATENCY, plan.connections, rate, idle_loop=False) for rate in rates_per_s),
    ]


def estimate_s(plan: Plan, runs: int) -> float:
    """About how long so many runs take."""
    return runs * (plan.seconds + OVERHEAD_S)


def perform(plan: Plan, experiment: Experiment, arms: Sequence[Arm], on_plan: Announce) -> None:
    """Makes all runs. Raises ExperimentError where the capacities have to be known first, and none can be measured."""
    count = len(plan.rates_per_s or plan.rate_shares)
    on_plan((0 if plan.rates_per_s else len(arms)) + plan.blocks * len(arms) * (1 + count), arms)
    rates = plan.rates_per_s or rates_of(plan, experiment, arms)
    for block in range(plan.blocks):
        for arm, phase in shuffled([(arm, phase) for phase in phases(plan, rates) for arm in arms], block):
            experiment.run(arm, phase, block)


def rates_of(plan: Plan, experiment: Experiment, arms: Sequence[Arm]) -> tuple[float, ...]:
    """Shares of the slowest server's capacity, which is measured."""
    runs = [experiment.run(arm, Phase(CAPACITY, plan.connections), 0) for arm in arms]
    capacities = [run.requests_per_s for run in runs if run.valid]
    if not capacities:
        raise ExperimentError("no server's capacity could be measured, so no rate is known; give --rate")
    return tuple(float(round(share * min(capacities))) for share in plan.rate_shares)


# --- what the runs say ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LatencyFigures:
    """A server at a rate: medians and intervals over blocks, in microseconds. None: not known."""

    arm: str
    rate_per_s: float | None
    """None: one connection alone, its next request when it has its answer."""
    blocks: int
    invalid: list[str]
    latency_us: Mapping[str, Interval]
    """By `PERCENTILES`."""
    ratios: Mapping[str, Interval]
    """The same to the base's, paired within blocks."""


def summarise(runs: Sequence[Run], base: str) -> list[LatencyFigures]:
    """The figures of every server, one connection alone first, then by rate; ratios are to `base`."""
    told = [run for run in runs if run.parameters.get("phase") in (LONE, LATENCY)]
    found = []
    for rate in sorted({_rate_of(run) for run in told}):
        chosen = [run for run in told if _rate_of(run) == rate]
        to = [run for run in chosen if run.arm == base]
        for arm in dict.fromkeys(run.arm for run in runs):
            of_arm = [run for run in chosen if run.arm == arm]
            if of_arm:
                found.append(_figures(arm, rate or None, of_arm, to if arm != base else []))
    return found


def _rate_of(run: Run) -> float:
    """0 for one connection alone."""
    return float(run.parameters.get("rate_per_s", 0.0))


def _figures(arm: str, rate_per_s: float | None, runs: Sequence[Run], base: Sequence[Run]) -> LatencyFigures:
    values = {name: by_block(runs, f"latency_us.{name}") for name in PERCENTILES}
    ratios = {name: ratio_interval(values[name], by_block(base, f"latency_us.{name}")) for name in PERCENTILES}
    return LatencyFigures(
        arm=arm,
        rate_per_s=rate_per_s,
        blocks=len(by_block(runs, "requests_per_s")),
        invalid=list(dict.fromkeys(run.invalid_reason for run in runs if run.invalid_reason is not None)),
        latency_us={name: bootstrap_interval(list(of.values()), median) for name, of in values.items() if of},
        ratios={name: ratio for name, ratio in ratios.items() if ratio is not None},
    )
