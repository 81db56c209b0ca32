"""What becomes of a server when more is asked of it than it can do.

The paper's fear is livelock: interrupts that bring requests take the core from the user mode that would answer them, so
that less is answered the more is offered. Here every server's capacity is measured in a closed loop; then requests are
offered at multiples of it, in an open loop that does not wait. What counts is *goodput* (right answers), what was
refused, lost or never sent, how long answers took, and the server's progress: the core that its threads got, and for
ours the turns of the engine's loop and the batches of its handler.

In these runs errors are figures and make nothing invalid. A wrong answer does, other than 503, and a server that ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from .experiment import CAPACITY, OVERHEAD_S, OVERLOAD, Arm, Experiment, Phase, shuffled
from .results import Run
from .statistics import Interval, bootstrap_interval, by_block, middle, ratio_interval

__all__ = ["FULL", "QUICK", "OverloadFigures", "Plan", "estimate_s", "perform", "summarise"]

#: Connections of the closed loop that tells the capacity, at most: more would only wait.
CAPACITY_CONNECTIONS_MAX = 256

Announce = Callable[[int, Iterable[Arm]], None]


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    blocks: int
    seconds: float
    shares: tuple[float, ...]
    """Offered load, as multiples of each server's capacity."""
    connections: int = 8192
    """The most that may be open at once. What finds none free waits with the client."""
    close: bool = True
    """A connection for each request: what is offered reaches the server, ready or not. Kept ones hold it back."""


FULL = Plan(blocks=20, seconds=5.0, shares=(0.5, 0.75, 0.9, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0))
QUICK = Plan(blocks=3, seconds=1.5, shares=(0.5, 1.0, 1.5, 2.0, 3.0))


def phases(plan: Plan, capacity_per_s: float | None) -> list[Phase]:
    """The closed loop, and with a capacity the offered loads."""
    closed = Phase(CAPACITY, min(plan.connections, CAPACITY_CONNECTIONS_MAX), close=plan.close, watch_server=True)
    if capacity_per_s is None:
        return [closed]
    return [
        closed,
        *(
            Phase(
                OVERLOAD, plan.connections, share * capacity_per_s, idle_loop=False, close=plan.close,
                parameters={"load": share}, watch_server=True,
            )
            for share in plan.shares
        ),
    ]  # fmt: skip


def estimate_s(plan: Plan, runs: int) -> float:
    """About how long so many runs take."""
    return runs * (plan.seconds + OVERHEAD_S)


def perform(plan: Plan, experiment: Experiment, arms: Sequence[Arm], on_plan: Announce) -> None:
    """Makes all runs. Rates are multiples of each arm's own capacity in the first block; an arm without one is left."""
    on_plan(plan.blocks * len(arms) * (1 + len(plan.shares)), arms)
    capacities: dict[str, float] = {}
    for arm, phase in shuffled([(arm, phases(plan, None)[0]) for arm in arms], 0):
        run = experiment.run(arm, phase, 0)
        if run.valid:
            capacities[arm.name] = run.requests_per_s
    able = [arm for arm in arms if arm.name in capacities]
    for block in range(plan.blocks):
        those = [(arm, phase) for arm in able for phase in phases(plan, capacities[arm.name])]
        for arm, phase in shuffled(those, block, seed=2):
            if block or phase.name != CAPACITY:
                experiment.run(arm, phase, block)


# --- what the runs say ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OverloadFigures:
    """An arm under one offered load: medians, and intervals over blocks. None: not known."""

    arm: str
    load: float
    """As a share of the capacity; 0: the closed loop that tells it."""
    offered_per_s: float | None
    blocks: int
    invalid: list[str]
    goodput_per_s: Interval | None
    goodput_share: Interval | None
    """Of the capacity, paired within blocks."""
    errors_share: Mapping[str, float] = field(default_factory=dict)
    """By kind, as shares of what was offered."""
    server_share: Interval | None = None
    """Of the core that the server's threads had, with the interrupts that came meanwhile."""
    loops_per_s: float | None = None
    batches_per_s: float | None = None
    client_idle_share: float | None = None
    latency_p50_us: float | None = None
    latency_p99_us: float | None = None


def load_of(run: Run) -> float:
    """The offered load of a run."""
    return float(run.parameters.get("load", 0.0))


def summarise(runs: Sequence[Run]) -> list[OverloadFigures]:
    """The figures of every arm, by offered load; the first of each is its closed loop."""
    found = []
    for arm in dict.fromkeys(run.arm for run in runs):
        of_arm = [run for run in runs if run.arm == arm]
        capacity = by_block([run for run in of_arm if load_of(run) == 0], "requests_per_s")
        for load in sorted({load_of(run) for run in of_arm}):
            found.append(_figures(arm, load, [run for run in of_arm if load_of(run) == load], capacity))
    return found


def _figures(arm: str, load: float, runs: Sequence[Run], capacity: Mapping[int, float]) -> OverloadFigures:
    valid = [run for run in runs if run.valid]
    goodput = by_block(valid, "requests_per_s")
    shares = by_block(valid, "server_threads_share")
    kinds = dict.fromkeys(kind for run in valid for kind in run.errors)
    return OverloadFigures(
        arm=arm,
        load=load,
        offered_per_s=middle(run.offered_per_s for run in valid),
        blocks=len(goodput),
        invalid=list(dict.fromkeys(run.invalid_reason for run in runs if run.invalid_reason is not None)),
        goodput_per_s=bootstrap_interval(list(goodput.values()), median) if goodput else None,
        goodput_share=share_of(goodput, capacity) if load else None,
        errors_share={kind: median(error_share(run, kind) for run in valid) for kind in kinds},
        server_share=bootstrap_interval(list(shares.values()), median) if shares else None,
        loops_per_s=middle(run.loops_per_s for run in valid),
        batches_per_s=middle(batches_per_s(run) for run in valid),
        client_idle_share=middle(run.client_idle_share for run in valid),
        latency_p50_us=middle(run.latency_us.get("p50") for run in valid),
        latency_p99_us=middle(run.latency_us.get("p99") for run in valid),
    )


def share_of(goodput: Mapping[int, float], capacity: Mapping[int, float]) -> Interval | None:
    """Goodput by capacity, paired within blocks. Where nothing was answered it is 0, which has no logarithm."""
    if any(value == 0 for value in goodput.values()):
        shares = [goodput[block] / capacity[block] for block in sorted(goodput.keys() & capacity.keys())]
        return bootstrap_interval(shares, median) if shares else None
    return ratio_interval(goodput, capacity)


def error_share(run: Run, kind: str) -> float:
    """Errors of a kind by requests asked for, over all of the run."""
    return run.errors.get(kind, 0) / run.asked if run.asked else 0.0


def batches_per_s(run: Run) -> float | None:
    """Batches that a handler got, by second."""
    return run.requests_per_s / run.mean_batch_size if run.mean_batch_size else None
