"""The question's experiment: which runs are made, in which order, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from .arms import SIZES, QuestionArms
from .cost import slopes_by_block
from .experiment import (
    CAPACITY,
    COST,
    LATENCY,
    LONE,
    OVERHEAD_S,
    Arm,
    Experiment,
    ExperimentError,
    Phase,
    are_client_limited,
    shuffled,
)
from .results import Run
from .statistics import Interval, bootstrap_interval, by_block, closed_gap, middle, ratio_interval
from .workload import work_of

__all__ = ["FULL", "QUICK", "ArmFigures", "Plan", "asked_for", "estimate_s", "perform", "summarise"]

UNBATCHED, UNBATCHED_AGAIN, KERNEL_ARMS = "U1", "B(1,1)", ("K0", "K1")


@dataclass(frozen=True)
class Plan:
    """What is asked for."""

    blocks: int
    seconds: float
    connections: tuple[int, ...]
    """Of the closed loops; open loops have the largest of them."""
    pairs: tuple[tuple[int, int], ...]
    """(in, out) of the batched arms."""
    works_us: tuple[int, ...] = (0,)
    """The handler's work a request, in microseconds."""
    rate_shares: tuple[float, ...] = ()
    """Open loops that tell the cost, as shares of the slowest arm's capacity; none: the cost is that at saturation."""
    latency_share: float | None = None
    """Open loop without the idle loop that tells latencies."""
    lone: bool = False
    """Also one connection alone."""
    handler: str = "python"
    handler_threads: int = 0
    with_profile: bool = False
    arms: tuple[str, ...] = ()
    """Only these; none: all that exist here."""


FULL = Plan(
    blocks=20, seconds=5.0, connections=(64, 1024), pairs=tuple((i, o) for i in SIZES for o in SIZES),
    works_us=(0, 10, 100), rate_shares=(0.2, 0.4, 0.6, 0.8), latency_share=0.4, lone=True,
)  # fmt: skip
QUICK = Plan(blocks=3, seconds=1.5, connections=(256,), pairs=((1, 1), (8, 8), (64, 64), (256, 256)))


def phases(plan: Plan, slowest_per_s: float | None) -> list[Phase]:
    """All phases, or only the closed loops as long as the slowest arm's capacity is not known."""
    found = [Phase(CAPACITY, connections) for connections in plan.connections]
    if plan.lone:
        found.append(Phase(LONE, 1, idle_loop=False))
    if slowest_per_s:
        most = max(plan.connections)
        found += [
            Phase(COST, most, share * slowest_per_s, parameters={"rate_share": share}) for share in plan.rate_shares
        ]
        if plan.latency_share is not None:
            found.append(Phase(LATENCY, most, plan.latency_share * slowest_per_s, idle_loop=False))
    return found


def estimate_s(plan: Plan, runs: int) -> float:
    """About how long so many runs take."""
    return runs * (plan.seconds + OVERHEAD_S)


def perform(
    plan: Plan, experiment: Experiment, arms: QuestionArms, on_plan: Callable[[int, Iterable[Arm]], None]
) -> None:
    """Makes all runs. `on_plan` is told how many there will be, and of which arms, before the first."""
    works = {work_us: work_of(work_us, plan.handler) for work_us in plan.works_us}
    of = asked_for({work_us: arms.of(work_us, work) for work_us, work in works.items()}, plan.arms)
    experiment.results.settings["work"] = {str(work_us): work for work_us, work in works.items()}
    pairs = [(arm, phase) for work_us in of for arm in of[work_us] for phase in phases(plan, 1.0) if suits(arm, phase)]
    on_plan(plan.blocks * len(pairs), [arm for work_us in of for arm in of[work_us]])
    slowest: dict[int, float] = {}
    for block in range(plan.blocks):
        for work_us, those in of.items():
            if block == 0:
                closed = [(arm, phase) for phase in phases(plan, None) for arm in those]
                for arm, phase in shuffled(closed, block):
                    experiment.run(arm, phase, block)
                slowest[work_us] = slowest_capacity(experiment.results.runs, work_us)
                left = [phase for phase in phases(plan, slowest[work_us]) if phase.rate_per_s is not None]
            else:
                left = phases(plan, slowest[work_us])
            rest = [(arm, phase) for phase in left for arm in those if suits(arm, phase)]
            for arm, phase in shuffled(rest, block, seed=2):
                experiment.run(arm, phase, block)


def asked_for(of: dict[int, list[Arm]], names: Sequence[str]) -> dict[int, list[Arm]]:
    """Those arms, by work, that have these names, or all without any. Raises ExperimentError where one is missing."""
    there = dict.fromkeys(arm.name for arms in of.values() for arm in arms)
    missing = [name for name in names if name not in there]
    if missing:
        raise ExperimentError(f"no such arm here: {', '.join(missing)}; there are {', '.join(there)}")
    return {work_us: [arm for arm in arms if not names or arm.name in names] for work_us, arms in of.items()}


def suits(arm: Arm, phase: Phase) -> bool:
    """Whether the phase tells anything of the arm: what spins has no slope."""
    return not (arm.spins and phase.name == COST)


def slowest_capacity(runs: Iterable[Run], work_us: int) -> float:
    """Requests/s of the slowest arm that was valid, at its best number of connections; 0 where none was."""
    best: dict[str, float] = {}
    for run in runs:
        if run.valid and run.parameters["phase"] == CAPACITY and run.parameters["work_us"] == work_us:
            best[run.arm] = max(best.get(run.arm, 0.0), run.requests_per_s)
    return min(best.values(), default=0.0)


# --- what the runs say ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RateFigures:
    """An arm at an offered rate: medians, and intervals over blocks. None: not known."""

    rate_share: float
    """Of the slowest arm's capacity."""
    rate_per_s: float | None
    cost_us: Interval | None = None
    """Server CPU by request, all that was busy; a slope over rates leaves out what they share."""
    mean_batch_size: float | None = None
    gaps: dict[str, Interval | None] = field(default_factory=dict)
    """G at this rate, against each kernel arm that has a cost here."""
    ratio_to_u1: Interval | None = None
    """Of server CPU, paired within blocks."""
    latency_p50_us: float | None = None
    latency_p99_us: float | None = None
    """Of a core that never sleeps."""


@dataclass(frozen=True)
class ArmFigures:
    """An arm with so many connections and so much work: medians, and intervals over blocks. None: not known."""

    arm: str
    work_us: float
    connections: float
    blocks: int
    """Blocks with a valid closed-loop run."""
    invalid: list[str] = field(default_factory=list)
    """Why runs were, each reason once."""
    mean_batch_size: float | None = None
    requests_per_s: Interval | None = None
    is_client_limited: bool = False
    """The client was too busy in half of the runs: the server may be able to do more."""
    ratio_to_u1: Interval | None = None
    """Of requests/s, paired within blocks."""
    cost_us: Interval | None = None
    """Server CPU by request: the slope, or at saturation where there is none."""
    gaps: dict[str, Interval | None] = field(default_factory=dict)
    """G against each kernel arm that was run."""
    kernel_ratios: dict[str, Interval | None] = field(default_factory=dict)
    """Server CPU of each kernel arm over this arm's, paired within blocks: 1 where it costs what the kernel does."""
    client_cost_us: float | None = None
    """Client CPU by request: a copy that the server saves may be made there."""
    ipis_per_request: float | None = None
    """Inter-processor interrupts that the server's core took: part of the cost, and batching makes fewer of them."""
    latency_p50_us: float | None = None
    latency_p99_us: float | None = None
    """Of the latency phase, else of the closed loop."""
    at_rates: list[RateFigures] = field(default_factory=list)
    """In rising order; none without open loops."""

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, where an infinite bound is null."""
        return {name: plain(value) for name, value in asdict(self).items()}


def plain(value: Any) -> Any:
    """Without tuples and infinities."""
    if isinstance(value, dict):
        return {name: plain(each) for name, each in value.items()}
    if isinstance(value, Interval):
        return {"low": plain(value.low), "mid": value.mid, "high": plain(value.high)}
    if isinstance(value, (list, tuple)):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def summarise(runs: Sequence[Run]) -> list[ArmFigures]:
    """The figures of every arm, for each amount of work and number of connections that had a closed loop."""
    capacity = [run for run in runs if run.parameters.get("phase") == CAPACITY]
    found = []
    for work_us in sorted({float(run.parameters["work_us"]) for run in capacity}):
        for connections in sorted({float(run.parameters["connections"]) for run in capacity}):
            chosen = [
                run
                for run in runs
                if run.parameters["work_us"] == work_us and run.parameters["connections"] == connections
            ]
            of = {arm: [run for run in chosen if run.arm == arm] for arm in dict.fromkeys(run.arm for run in chosen)}
            found += [figures_of(arm, of, work_us, connections) for arm in sorted(of, key=place_of)]
    return found


def place_of(arm: str) -> tuple[int, list[int], str]:
    """The order of the arms in a table: U, B by sizes, K, rivals."""
    kind = "UBK".find(arm[:1]) if arm[1:2].isdigit() or arm[1:2] == "(" else 3
    sizes = [int(size) for size in arm[2:-1].split(",")] if kind == 1 else []
    return kind, sizes, arm


def figures_of(arm: str, of: dict[str, list[Run]], work_us: float, connections: float) -> ArmFigures:
    """One arm's, out of the runs of all arms."""
    runs = of[arm]
    closed = [run for run in runs if run.valid and run.parameters["phase"] == CAPACITY]
    rates = by_block(closed, "requests_per_s")
    costs = costs_by_block(runs)
    unbatched = of.get(UNBATCHED, [])
    slow = [run for run in runs if run.valid and run.parameters["phase"] == LATENCY] or closed
    unbatched_rates = by_block(
        [run for run in unbatched if run.parameters["phase"] == CAPACITY], "requests_per_s"
    )  # fmt: skip
    kernels = {kernel: costs_by_block(of[kernel]) for kernel in KERNEL_ARMS if kernel in of and arm.startswith("B")}
    return ArmFigures(
        arm=arm,
        work_us=work_us,
        connections=connections,
        blocks=len(rates),
        invalid=list(dict.fromkeys(run.invalid_reason for run in runs if run.invalid_reason is not None)),
        mean_batch_size=middle(run.mean_batch_size for run in closed),
        requests_per_s=bootstrap_interval(list(rates.values()), median) if rates else None,
        is_client_limited=are_client_limited(closed),
        ratio_to_u1=None if arm == UNBATCHED else ratio_interval(rates, unbatched_rates),
        cost_us=bootstrap_interval(list(costs.values()), median) if costs else None,
        gaps={kernel: closed_gap(costs_by_block(unbatched), costs, of_kernel) for kernel, of_kernel in kernels.items()},
        kernel_ratios={kernel: ratio_interval(of_kernel, costs) for kernel, of_kernel in kernels.items()},
        client_cost_us=middle(run.client_cpu_us_per_request for run in closed),
        ipis_per_request=middle(run.ipis_per_request for run in closed),
        latency_p50_us=percentile(slow, "p50"),
        latency_p99_us=percentile(slow, "p99"),
        at_rates=[at_rate(arm, of, share) for share in shares_of(runs)],
    )


def shares_of(runs: Iterable[Run]) -> list[float]:
    """The rates that were offered, as shares of the slowest arm's capacity."""
    return sorted({float(run.parameters["rate_share"]) for run in runs if "rate_share" in run.parameters})


def at_rate(arm: str, of: dict[str, list[Run]], share: float) -> RateFigures:
    """One arm's at an offered rate, out of the runs of all arms."""

    def there(name: str) -> list[Run]:
        return [run for run in of.get(name, []) if run.valid and run.parameters.get("rate_share") == share]

    def costs(name: str) -> dict[int, float]:
        return by_block(there(name), "server_cpu_us_per_request")

    runs, own, unbatched = there(arm), costs(arm), costs(UNBATCHED)
    kernels = {name: found for name in KERNEL_ARMS if arm.startswith("B") and (found := costs(name))}
    return RateFigures(
        rate_share=share,
        rate_per_s=middle(run.offered_per_s for run in runs),
        cost_us=bootstrap_interval(list(own.values()), median) if own else None,
        mean_batch_size=middle(run.mean_batch_size for run in runs),
        gaps={kernel: closed_gap(unbatched, own, of_kernel) for kernel, of_kernel in kernels.items()},
        ratio_to_u1=None if arm == UNBATCHED else ratio_interval(own, unbatched),
        latency_p50_us=percentile(runs, "p50"),
        latency_p99_us=percentile(runs, "p99"),
    )


def costs_by_block(runs: Iterable[Run]) -> dict[int, float]:
    """Microseconds of the server's core by request: the slope where blocks have several rates, else at saturation."""
    runs = list(runs)
    slopes = slopes_by_block(run for run in runs if run.parameters["phase"] == COST)
    return slopes or by_block((run for run in runs if run.parameters["phase"] == CAPACITY), "server_cpu_us_per_request")


def percentile(runs: Iterable[Run], name: str) -> float | None:
    """The median over runs of a latency."""
    return middle(run.latency_us.get(name) for run in runs)
