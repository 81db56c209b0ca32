"""Running a sweep: which runs are missing, making each, and keeping it at once.

The order of runs, the second stage and so the whole set of runs follow from the plan and from the figures of the first
stage. A sweep that was interrupted therefore goes on with exactly the runs that its file lacks.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..cython_ext.load import Exchange
from ..errors import BatchBridgeError
from ..measure.cost import CoreWatch, CostError
from ..measure.load import LoadFigures, run_load
from ..measure.results import Results, Run
from .goals import Goal, GoalError, judge, outcomes_of
from .space import Candidate, coarse_grid, order, refinement
from .targets import Serving, Target

__all__ = ["ARM", "Plan", "SweepError", "check_resumable", "measure_capacity", "missing_runs", "run_once", "sweep"]

ARM = "tune"
#: Of the capacity, where no rate is given: loaded, but not so near to the edge that each hiccup grows into a queue. The
#: capacity is a closed loop's, which comes in step with the server; requests that come one by one cost it more.
RATE_SHARE = 0.5


class SweepError(BatchBridgeError):
    """A sweep cannot begin or go on. One sentence."""


@dataclass(frozen=True)
class Plan:
    """What a sweep is asked to do."""

    target: str
    """The app, or the admin address and the URL."""
    route: str
    goal: Goal
    sizes: tuple[int, ...]
    delays_us: tuple[int, ...]
    blocks: int
    seconds: float
    warmup_s: float
    connections: int
    rate_asked_per_s: float | None
    """None: a share of the capacity, which is measured first."""
    requests_sha256: str
    """Of the requests as they are sent."""
    refined: bool = True
    engine: str = "auto"
    """Of an app that is served here."""
    compares_bodies: bool = True
    """Answers are compared with what was learnt byte by byte, and not by their length alone."""
    seed: int = 1

    @property
    def to_saturation(self) -> bool:
        """A closed loop, in which the server is never without work."""
        return self.goal.objective == "throughput"

    def settings(self) -> dict[str, Any]:
        """As a results file keeps it."""
        plain = asdict(self)
        goal = plain.pop("goal")
        return {**plain, "goal_objective": goal["objective"], "goal_p99_us": goal["p99_us"],
                "sizes": list(self.sizes), "delays_us": list(self.delays_us)}  # fmt: skip


def fingerprint(exchanges: Sequence[Exchange]) -> str:
    """What requests are sent, and how often against each other, as a checksum."""
    digest = hashlib.sha256()
    for exchange in exchanges:
        digest.update(f"{exchange.weight!r} {len(exchange.data)} ".encode() + exchange.data)
    return digest.hexdigest()


def check_resumable(plan: Plan, results: Results, path: Path) -> None:
    """Raises SweepError where the file is of another sweep: what differs, in a sentence."""
    if results.kind != "sweep":
        raise SweepError(f"--resume: {path} holds results of kind {results.kind!r}, and not a sweep")
    wanted = plan.settings()
    for name, value in wanted.items():
        found = results.settings.get(name)
        if found != value:
            raise SweepError(
                f"--resume: {path} was begun with another {name} ({found!r}, now {value!r}); "
                "use the same settings, or begin anew with another --output"
            )


# --- one run ----------------------------------------------------------------------------------------------------------


def run_once(
    plan: Plan,
    target: Target,
    exchanges: Sequence[Exchange],
    rate_per_s: float | None,
    block: int,
    candidate: Candidate,
    keep_command: Callable[[list[str]], None],
) -> Run:
    """One run of one setting. Wrong answers, failures and lost counts make it invalid; raises where it cannot be made.

    `keep_command` is given the exact commands of client and server.
    """
    with target.serving(candidate) as serving:
        before, cpu_before_s = serving.stats(), serving.cpu_s()
        with CoreWatch(watched_cores(target)) as watch:
            figures = _load(plan, serving, target, exchanges, rate_per_s, seed=plan.seed + block)
        reason = figures.invalid_reason
        try:
            after, cpu_after_s = serving.stats(), serving.cpu_s()
        except BatchBridgeError as error:
            after, cpu_after_s, reason = before, None, reason or str(error)
        if serving.command:
            keep_command(serving.command)
    keep_command(figures.command)
    parameters: dict[str, float | str] = {**candidate._asdict(), "connections": plan.connections}
    if rate_per_s is not None:
        parameters["rate_per_s"] = rate_per_s
    read = after["requests"]["read"] - before["requests"]["read"]
    if reason is None and read < figures.requests:
        reason = f"the server counted {read:,} requests, of {figures.requests:,} that were sent"
    if reason is None and figures.saturated:
        reason = f"the client was idle for only {figures.idle_share:.0%} of the time, so the figures may be its own"
    sizes, mean_size = batches_between(before, after, plan.route)
    usage = None
    with contextlib.suppress(CostError):  # a load that failed has no measured time
        usage = watch.between(figures.began_us, figures.ended_us)
    cpu_us = None
    if cpu_before_s is not None and cpu_after_s is not None and read > 0:
        cpu_us = (cpu_after_s - cpu_before_s) * 1e6 / read
    return Run(
        arm=ARM,
        block=block,
        parameters=parameters,
        valid=reason is None,
        invalid_reason=reason,
        **figures.run_fields(),
        server_cpu_us_per_request=cpu_us,
        steal_share=None if usage is None else usage.steal_share,
        ipis_per_request=usage.ipis_per_request(figures.responses) if usage and target.server_cpu is not None else None,
        batch_sizes=sizes,
        mean_batch_size=mean_size,
    )


def _load(
    plan: Plan,
    serving: Serving,
    target: Target,
    exchanges: Sequence[Exchange],
    rate_per_s: float | None,
    seed: int,
) -> LoadFigures:
    return run_load(
        serving.host,
        serving.port,
        exchanges,
        connections=plan.connections,
        seconds=plan.seconds,
        warmup_s=plan.warmup_s,
        rate_per_s=rate_per_s,
        cpu=target.client_cpu,
        seed=seed,
    )


def watched_cores(target: Target) -> list[int]:
    """Cores of this machine that the run may be on, the server's first."""
    known = [cpu for cpu in (target.server_cpu, target.client_cpu) if cpu is not None]
    return known or sorted(os.sched_getaffinity(0))


def batches_between(
    before: dict[str, Any], after: dict[str, Any], route: str
) -> tuple[list[tuple[int, int]], float | None]:
    """The route's batches between two readings of the counters: (largest size of the bucket, batches), and the mean."""
    first, last = before["routes"].get(route, {}), after["routes"].get(route, {})
    counts = [
        now - then
        for then, now in zip(first.get("batch_size_histogram", ()), last.get("batch_size_histogram", ()), strict=False)
    ]
    batches, items = (last.get(name, 0) - first.get(name, 0) for name in ("batches", "items"))
    sizes = [(1 << power, count) for power, count in enumerate(counts) if count > 0]
    return sizes, items / batches if batches > 0 else None


def measure_capacity(
    plan: Plan, target: Target, exchanges: Sequence[Exchange], keep_command: Callable[[list[str]], None]
) -> float:
    """Requests/s that the server answers at most, with the largest batches and no delay: what a rate is a share of.

    Raises SweepError where a wrong answer or a failure makes that no figure.
    """
    with target.serving(Candidate(max(plan.sizes), min(plan.delays_us))) as serving:
        figures = _load(plan, serving, target, exchanges, None, seed=plan.seed)
    keep_command(figures.command)
    if not figures.is_valid:
        raise SweepError(f"the capacity cannot be measured: {figures.invalid_reason}")
    return figures.requests_per_s


# --- all of them ------------------------------------------------------------------------------------------------------

Measure = Callable[[int, Candidate], Run]


@dataclass
class Stage:
    """Runs that are planned together: every candidate in each of the blocks."""

    candidates: list[Candidate]
    blocks: range
    runs: list[tuple[int, Candidate]] = field(default_factory=list)


def stages(plan: Plan, results: Results, present: Candidate) -> Iterator[Stage]:
    """The stages, one by one; the second is decided when the first one's runs are in `results`.

    The second has new settings around the best of the first, in blocks of its own; the best and the present setting
    run in them again, so that what is compared has blocks in common.
    """
    candidates = coarse_grid(plan.sizes, plan.delays_us, present=present, p99_us=plan.goal.p99_us)
    blocks = range(plan.blocks)
    yield Stage(candidates, blocks, order(candidates, blocks, plan.seed))
    if not plan.refined:
        return
    best = best_so_far([run for run in results.runs if run.block in blocks], plan.goal)
    new = [] if best is None else refinement(candidates, best)
    if new and best is not None:
        candidates = sorted({best, present, *new})
        blocks = range(plan.blocks, 2 * plan.blocks)
        yield Stage(candidates, blocks, order(candidates, blocks, plan.seed))


def best_so_far(runs: Sequence[Run], goal: Goal) -> Candidate | None:
    """Where to look closer: the recommendation, or the least p99 where nothing holds the goal yet; None: nowhere."""
    outcomes = outcomes_of(runs)
    try:
        return judge(outcomes, goal).best.candidate
    except GoalError:
        valid = [outcome for outcome in outcomes if outcome.invalid_reason is None and outcome.p99_us]
        return min(valid, key=lambda outcome: outcome.middle("p99_us")).candidate if valid else None


def missing_runs(stage: Stage, results: Results) -> list[tuple[int, Candidate]]:
    """What of a stage is not in the results yet, in the order in which it is to be run."""
    done = {(run.block, run.parameters["max_batch_size"], run.parameters["max_queue_delay_us"]) for run in results.runs}
    return [(block, candidate) for block, candidate in stage.runs if (block, *candidate) not in done]


def sweep(
    plan: Plan,
    results: Results,
    present: Candidate,
    measure: Measure,
    *,
    on_stage: Callable[[int, int], None] = lambda _planned, _missing: None,
    on_run: Callable[[int, Candidate], None] = lambda _block, _candidate: None,
    after_run: Callable[[], None] = lambda: None,
) -> None:
    """Makes all runs that `results` lacks, and keeps each as soon as it is made.

    `on_stage` is told how many runs a stage has and how many are missing; `on_run` what is run next; `after_run` is
    called when that is kept.
    """
    for stage in stages(plan, results, present):
        missing = missing_runs(stage, results)
        on_stage(len(stage.runs), len(missing))
        for block, candidate in missing:
            on_run(block, candidate)
            results.append(measure(block, candidate))
            after_run()
