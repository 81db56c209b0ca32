"""The targets, and what runs say of them. Pure: no clock, no servers.

A target is a ratio of two servers of one scene, paired within blocks, or a share of one. It is met where the whole 95%
interval is on the right side of the bound, and missed where the whole interval is on the other; between them nothing
is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from batchbridge.measure.cost import slopes_by_block
from batchbridge.measure.experiment import COST, are_client_limited
from batchbridge.measure.results import Run
from batchbridge.measure.statistics import Interval, bootstrap_interval, by_block, ratio_interval

__all__ = ["MARKS", "TARGETS", "Finding", "Target", "judge", "own_share"]

MET, MISSED, OPEN, NOT_MEASURED, NOT_ASKED = "met", "missed", "open", "not measured", ""
MARKS = {MET: "✓", MISSED: "✗", OPEN: "?", NOT_MEASURED: "–", NOT_ASKED: ""}

THROUGHPUT, CPU, CLIENT_CPU = "throughput", "server CPU", "client CPU"
MEDIAN, OWN = "p50", "own share of the core"

#: Parts of a profile that are no engine's: TCP/IP, and the interrupts by which cores wake each other.
FOREIGN_PARTS = ("tcp_ip", "ipi")


@dataclass(frozen=True)
class Target:
    """What is asked for. Without a `bound` nothing is, and the figure stands there for the reader."""

    number: str
    scene: str
    arm: str
    figure: str
    base: str | None
    """Whose figure it is divided by; None: the figure itself."""
    bound: float | None
    at_least: bool = True
    """Whether the bound is the least that is asked for, or the most."""

    @property
    def asked(self) -> str:
        """The bound in writing."""
        if self.bound is None:
            return ""
        return (
            f"{'≥' if self.at_least else '≤'} {self.bound:.0%}"
            if self.base is None
            else (f"{'≥' if self.at_least else '≤'} {self.bound:g}")
        )

    @property
    def words(self) -> str:
        """What is measured, in writing."""
        return f"{self.arm}: {self.figure}" + (f" ÷ {self.base}" if self.base else "")


def _at_least(number: str, scene: str, arm: str, figure: str, base: str | None, bound: float | None) -> Target:
    return Target(number, scene, arm, figure, base, bound)


def _at_most(number: str, scene: str, arm: str, figure: str, base: str | None, bound: float | None) -> Target:
    return Target(number, scene, arm, figure, base, bound, at_least=False)


#: Those of the house plan that are measured by servers under load, numbered as there.
TARGETS = (
    _at_least("P1", "hits", "kernel", THROUGHPUT, "nginx", 3.8),
    _at_most("P1", "hits", "kernel", CPU, "nginx", 0.26),
    _at_most("P1", "hits", "kernel", CPU, "io_uring", 0.75),
    _at_least("P2", "hits", "io_uring", THROUGHPUT, "nginx", 2.7),
    _at_least("P2", "hits", "io_uring", THROUGHPUT, "h2o", 1.6),
    _at_least("P3", "python", "io_uring", THROUGHPUT, "granian", 2.7),
    _at_least("P3", "python", "kernel", THROUGHPUT, "granian", 3.5),
    _at_most("P5", "lone", "io_uring", MEDIAN, "baseline", 1.05),
    _at_most("P5", "lone", "io_uring", MEDIAN, "epoll", 1.05),
    _at_most("P5", "lone", "kernel", MEDIAN, "baseline", 1.15),
    _at_most("P5", "lone", "kernel", MEDIAN, "epoll", 1.15),
    _at_most("P6", "large", "kernel", CPU, "nginx", 0.25),
    _at_most("P6", "large", "io_uring", CPU, "nginx", 0.25),
    _at_most("P6", "both", "kernel", CLIENT_CPU, "nginx", None),
    _at_most("P6", "both", "io_uring", CLIENT_CPU, "nginx", None),
    _at_least("P7", "closing", "kernel", THROUGHPUT, "nginx", 1.6),
    _at_least("P7", "closing", "io_uring", THROUGHPUT, "nginx", 1.6),
    _at_least("P7", "closing", "kernel", THROUGHPUT, "apache", 3.0),
    _at_least("P7", "closing", "io_uring", THROUGHPUT, "apache", 3.0),
    _at_most("P7", "closing", "kernel", CPU, "nginx", 0.55),
    _at_most("P7", "closing", "io_uring", CPU, "nginx", 0.55),
    _at_least("P7", "mix", "kernel", THROUGHPUT, "nginx", 1.6),
    _at_least("P7", "mix", "io_uring", THROUGHPUT, "nginx", 1.6),
    _at_least("P7", "mix", "kernel", THROUGHPUT, "apache", 3.0),
    _at_least("P7", "mix", "io_uring", THROUGHPUT, "apache", 3.0),
    _at_most("P7", "mix", "kernel", CPU, "nginx", 0.55),
    _at_most("P7", "mix", "io_uring", CPU, "nginx", 0.55),
    _at_most("P9", "python", "kernel", CPU, "io_uring", 0.85),
    _at_most("P11", "profile", "kernel", OWN, None, 0.15),
    _at_most("P11", "profile", "io_uring", OWN, None, 0.15),
    _at_least("A/A", "hits", "A/A", THROUGHPUT, "io_uring", None),
    _at_most("A/A", "hits", "A/A", CPU, "io_uring", None),
)


def own_share(run: Run) -> float | None:
    """The share of the server core's busy time that was neither TCP/IP's nor interrupts'."""
    return None if run.profile is None else 1 - sum(run.profile[part] for part in FOREIGN_PARTS)


FIGURES: Mapping[str, str | Callable[[Run], float | None]] = {
    THROUGHPUT: "requests_per_s", CPU: "server_cpu_us_per_request", CLIENT_CPU: "client_cpu_us_per_request",
    MEDIAN: "latency_us.p50", OWN: own_share,
}  # fmt: skip


@dataclass(frozen=True)
class Finding:
    """What runs say of a target."""

    target: Target
    measured: Interval | None
    blocks: int
    verdict: str
    """One of `MARKS`."""
    note: str = ""
    """Half a sentence, or nothing."""


def judge(target: Target, runs: Sequence[Run]) -> Finding:
    """What the runs of all scenes say of one target."""
    runs = [run for run in runs if run.parameters.get("scene") == target.scene]
    of_arm, of_base = ([run for run in runs if run.arm == name] for name in (target.arm, target.base))
    values, base = values_of(target.figure, of_arm, of_base)
    if target.base is None:
        measured = bootstrap_interval(list(values.values()), median) if values else None
        blocks = len(values)
    else:
        measured, blocks = ratio_interval(values, base), len(values.keys() & base.keys())
    if measured is None:
        return Finding(target, None, 0, NOT_MEASURED, _why_not([*of_arm, *of_base]))
    if target.bound is None:
        return Finding(target, measured, blocks, NOT_ASKED)
    verdict = _verdict(target, measured)
    if target.figure == THROUGHPUT:
        closed = ([run for run in each if run.parameters["phase"] != COST] for each in (of_arm, of_base))
        return _with_limits(Finding(target, measured, blocks, verdict), *closed)
    return Finding(target, measured, blocks, verdict)


def values_of(figure: str, of_arm: Sequence[Run], of_base: Sequence[Run]) -> tuple[dict[int, float], dict[int, float]]:
    """The figure of both, block by block. A server's cost is the slope over offered rates, where both have one."""
    if figure == CPU:
        slopes = slopes_by_block(_offered(of_arm)), slopes_by_block(_offered(of_base))
        if all(slopes):
            return slopes
    closed = ([run for run in runs if run.parameters["phase"] != COST] for runs in (of_arm, of_base))
    arm, base = (by_block(runs, FIGURES[figure]) for runs in closed)
    return arm, base


def _offered(runs: Sequence[Run]) -> list[Run]:
    return [run for run in runs if run.parameters["phase"] == COST]


def _verdict(target: Target, measured: Interval) -> str:
    assert target.bound is not None
    worst, best = (measured.low, measured.high) if target.at_least else (-measured.high, -measured.low)
    bound = target.bound if target.at_least else -target.bound
    return MET if worst >= bound else MISSED if best < bound else OPEN


def _with_limits(found: Finding, of_arm: Sequence[Run], of_base: Sequence[Run]) -> Finding:
    """Where the client was the limit, the server may be faster: less may be no miss, and more of it no proof."""
    if found.verdict != MET and are_client_limited(of_arm):
        return Finding(found.target, found.measured, found.blocks, OPEN, "at least: the client was the limit")
    if found.verdict != MISSED and are_client_limited(of_base):
        return Finding(found.target, found.measured, found.blocks, OPEN,
                       f"at most: the client was the limit of {found.target.base}")  # fmt: skip
    return found


def _why_not(runs: Sequence[Run]) -> str:
    reasons = [run.invalid_reason for run in runs if run.invalid_reason is not None]
    return f"invalid: {reasons[0]}" if reasons else ""
