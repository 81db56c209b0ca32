"""What a sweep's figures say about a goal: the Pareto front, what lies within noise, and what to recommend. Pure.

A figure is a median over blocks. Two settings differ where the 95% interval of their ratio, paired within blocks,
leaves out 1; otherwise the difference lies within noise. A p99 is held *firmly* where its whole interval is at or below
the goal. A setting with an invalid run is never recommended.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from ..errors import BatchBridgeError
from ..measure.results import Run
from ..measure.statistics import Interval, bootstrap_interval, by_block, ratio_interval
from .space import Candidate

__all__ = ["Goal", "GoalError", "Outcome", "Verdict", "judge", "outcomes_of", "pareto_front", "within_noise"]

Objective = Literal["cpu", "throughput"]
Figure = Literal["cpu_us", "requests_per_s", "p99_us"]
ByBlock = dict[int, float]

#: An open loop's rate is answered where at least this share of it is: the last requests may come after the end.
KEPT_UP_SHARE = 0.95

#: A median that is worse by no more than this is as good, where the difference lies within noise too.
AS_GOOD_SHARE = 0.05


class GoalError(BatchBridgeError):
    """A goal that makes no sense, or that no setting met: one sentence, with the best that there was."""


@dataclass(frozen=True)
class Goal:
    """What is wanted: a p99 latency to hold, in microseconds, and what shall be best beside it."""

    objective: Objective
    p99_us: int | None = None

    def __str__(self) -> str:
        best = {"cpu": "least server CPU per request", "throughput": "most requests/s"}[self.objective]
        return best if self.p99_us is None else f"p99 of at most {self.p99_us:,} µs, then {best}"


@dataclass(frozen=True)
class Outcome:
    """What the runs of one setting showed, each figure by block."""

    candidate: Candidate
    p99_us: ByBlock = field(default_factory=dict)
    cpu_us: ByBlock = field(default_factory=dict)
    """Server CPU by request; empty where it cannot be known."""
    requests_per_s: ByBlock = field(default_factory=dict)
    kept_up_share: float = 1.0
    """Open loop: the answered rate by the offered one, median over blocks."""
    invalid_reason: str | None = None
    """Why an invalid run was one; its figures are in none of the others."""

    def middle(self, figure: Figure) -> float:
        """The median over blocks; infinite (or 0 for throughput) where it is unknown, so never the best."""
        values: ByBlock = getattr(self, figure)
        if not values:
            return 0.0 if figure == "requests_per_s" else math.inf
        return median(values.values())

    def interval(self, figure: Figure) -> Interval:
        """The median with its 95% interval; infinite with one block. Raises ValueError without a value."""
        return bootstrap_interval(list(getattr(self, figure).values()), median)


@dataclass(frozen=True)
class Verdict:
    """What to take, and how sure that is."""

    goal: Goal
    best: Outcome
    is_firm: bool
    """The p99's whole interval holds the goal; True without such a goal."""
    equals: list[Outcome]
    """Other settings that hold the goal and whose objective differs from the best one's only within noise."""
    front: list[Outcome]
    """The Pareto front, in rising order of p99."""
    left_out: list[Outcome]
    """Settings with an invalid run."""

    @property
    def margin(self) -> float | None:
        """By which share of the goal the p99 stays below it; None without such a goal."""
        if self.goal.p99_us is None:
            return None
        return 1 - self.best.middle("p99_us") / self.goal.p99_us


def outcomes_of(runs: Iterable[Run]) -> list[Outcome]:
    """The runs of a sweep by setting, in the order in which settings were tried first."""
    found: dict[Candidate, list[Run]] = {}
    for run in runs:
        found.setdefault(candidate_of(run), []).append(run)
    return [
        Outcome(
            candidate,
            by_block(runs_of_it, "latency_us.p99"),
            by_block(runs_of_it, "server_cpu_us_per_request"),
            by_block(runs_of_it, "requests_per_s"),
            median(by_block(runs_of_it, _kept_up_share).values() or [1.0]),
            next((run.invalid_reason for run in runs_of_it if not run.valid), None),
        )
        for candidate, runs_of_it in found.items()
    ]


def _kept_up_share(run: Run) -> float | None:
    return run.requests_per_s / run.offered_per_s if run.offered_per_s else None


def candidate_of(run: Run) -> Candidate:
    """The setting that a run of a sweep was made with. Raises GoalError where it does not say."""
    try:
        return Candidate(int(run.parameters["max_batch_size"]), int(run.parameters["max_queue_delay_us"]))
    except (KeyError, ValueError):
        raise GoalError("the results hold a run without max_batch_size and max_queue_delay_us: no sweep") from None


def judge(outcomes: Sequence[Outcome], goal: Goal) -> Verdict:
    """The recommendation. Raises GoalError: no setting is valid or holds the goal, or what it needs is unknown.

    Of the settings that hold the goal (firmly, where any does), the best is looked for; of those that lie within noise
    of it, and whose median is nearly as good, the one with the least p99 is taken: it leaves the widest margin. With
    few blocks much lies within noise, so noise alone would let a much worse one pass.
    """
    left_out = [outcome for outcome in outcomes if outcome.invalid_reason is not None]
    measured = [outcome for outcome in outcomes if outcome.invalid_reason is None and outcome.p99_us]
    if not measured:
        raise GoalError(f"no setting has only valid runs: {left_out[0].invalid_reason if left_out else 'none ran'}")
    valid = [outcome for outcome in measured if outcome.kept_up_share >= KEPT_UP_SHARE]
    if not valid:
        nearest = max(measured, key=lambda outcome: outcome.kept_up_share)
        raise GoalError(
            f"no setting keeps up with the rate offered; the best answered {nearest.kept_up_share:.0%} of it "
            f"({nearest.middle('requests_per_s'):,.0f} requests/s) with {nearest.candidate}"
        )
    figure: Figure = "requests_per_s" if goal.objective == "throughput" else "cpu_us"
    if figure == "cpu_us" and not any(outcome.cpu_us for outcome in valid):
        if goal.p99_us is None:
            raise GoalError("the server's CPU time cannot be known from here, so there is no least of it to look for")
        figure = "p99_us"
    holding, is_firm = _holding(valid, goal)
    top = _best(holding, figure)
    near = [outcome for outcome in holding if outcome is top or within_noise(outcome, top, figure)]
    as_good = [outcome for outcome in near if _worse_by(outcome, top, figure) <= AS_GOOD_SHARE]
    best = min(as_good, key=lambda outcome: (outcome.middle("p99_us"), outcome.candidate))
    return Verdict(
        goal=goal,
        best=best,
        is_firm=is_firm,
        equals=[outcome for outcome in near if outcome is not best],
        front=front_of(valid, figure),
        left_out=left_out,
    )


def _holding(valid: Sequence[Outcome], goal: Goal) -> tuple[list[Outcome], bool]:
    """The settings that hold the goal's p99, and whether firmly."""
    limit = goal.p99_us
    if limit is None:
        return list(valid), True
    firm = [outcome for outcome in valid if outcome.interval("p99_us").high <= limit]
    loose = [outcome for outcome in valid if outcome.middle("p99_us") <= limit]
    if not loose and not firm:
        nearest = min(valid, key=lambda outcome: outcome.middle("p99_us"))
        raise GoalError(
            f"no setting holds a p99 of {limit:,} µs; the best was {nearest.middle('p99_us'):,.0f} µs with "
            f"{nearest.candidate}"
        )
    return (firm, True) if firm else (loose, False)


def _best(outcomes: Sequence[Outcome], figure: Figure) -> Outcome:
    sign = -1 if figure == "requests_per_s" else 1
    return min(outcomes, key=lambda outcome: (sign * outcome.middle(figure), outcome.candidate))


def _worse_by(outcome: Outcome, top: Outcome, figure: Figure) -> float:
    """By which share the median is worse than the top's."""
    if outcome is top:
        return 0.0
    a, b = outcome.middle(figure), top.middle(figure)
    return b / a - 1 if figure == "requests_per_s" else a / b - 1


def front_of(outcomes: Sequence[Outcome], figure: Figure) -> list[Outcome]:
    """The settings that no other beats in both p99 and `figure`, in rising order of p99."""
    sign = -1 if figure == "requests_per_s" else 1
    places = pareto_front([(outcome.middle("p99_us"), sign * outcome.middle(figure)) for outcome in outcomes])
    return sorted((outcomes[place] for place in places), key=lambda outcome: outcome.middle("p99_us"))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points that no other is as good as in both and better than in one; less is better.

    In rising order of place. Of equal points all are in, or none.
    """
    front = []
    best_before = math.inf
    ordered = sorted(range(len(points)), key=lambda place: points[place])
    at = 0
    while at < len(ordered):
        # Those with the same first coordinate: only the least second one counts, and only if it beats all before.
        first = points[ordered[at]][0]
        alike = [place for place in ordered[at:] if points[place][0] == first]
        least = points[alike[0]][1]
        if least < best_before:
            front += [place for place in alike if points[place][1] == least]
            best_before = least
        at += len(alike)
    return sorted(front)


def within_noise(a: Outcome, b: Outcome, figure: Figure) -> bool:
    """Whether what two settings show of a figure may be the same.

    Compared within the blocks that both ran in. Without a common one, by whether their own intervals overlap.
    """
    of_a, of_b = getattr(a, figure), getattr(b, figure)
    if not of_a or not of_b:
        return False
    ratio = ratio_interval(of_a, of_b)
    if ratio is not None:
        return ratio.contains(1.0)
    one, other = a.interval(figure), b.interval(figure)
    return one.low <= other.high and other.low <= one.high
