"""Which runs belong together in a figure, and what is said of them: medians, spread, how many. Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, NamedTuple

from ..measure.results import Results, Run
from ..measure.statistics import bootstrap_interval, is_evidence

__all__ = ["Group", "Spread", "collect", "counted", "evidence_note", "label_of", "of_phase", "spread_of", "varying"]

#: Below this many values a bootstrap has nothing to draw from: the bars are then the least and the largest value.
BOOTSTRAP_VALUES_MIN = 3

#: Words and units for the parameters that labels show.
PARAMETER_WORDS = {
    "max_batch_size": "batch ≤ {}",
    "max_queue_delay_us": "delay ≤ {} µs",
    "rate_per_s": "{} requests/s",
    "rate": "{} requests/s",
    "connections": "{} connections",
    "work_us": "{} µs of work",
    "in": "in {}",
    "out": "out {}",
    "pipeline": "pipeline {}",
}


class Spread(NamedTuple):
    """A median with what the values around it do; `low` and `high` are in the unit of the values."""

    low: float
    middle: float
    high: float


@dataclass
class Group:
    """The valid runs of one arm with the same parameters."""

    arm: str
    parameters: dict[str, Any]
    runs: list[Run] = field(default_factory=list)

    def values(self, figure: Callable[[Run], float | None]) -> list[float]:
        """What the runs have of a figure; those without it are left out."""
        found = (figure(run) for run in self.runs)
        return [value for value in found if value is not None and math.isfinite(value)]

    @property
    def blocks(self) -> int:
        """In how many blocks it was run."""
        return len({run.block for run in self.runs})


def of_phase(runs: Iterable[Run], *names: str) -> list[Run]:
    """The runs of the first of these phases that has any valid one; those that name no phase belong to each.

    An experiment has runs for throughput, for costs and for latencies, which are not to be mixed.
    """
    runs = list(runs)
    for name in names:
        chosen = [run for run in runs if run.parameters.get("phase", name) == name]
        if any(run.valid for run in chosen):
            return chosen
    return runs


def collect(results: Results, *phases: str) -> list[Group]:
    """The groups, in the order in which their first run was made. Invalid runs are in none.

    Of an experiment with phases, those of the first of `phases` that was run.
    """
    found: dict[tuple[Any, ...], Group] = {}
    for run in of_phase(results.runs, *phases):
        if run.valid:
            key = (run.arm, *sorted(run.parameters.items()))
            found.setdefault(key, Group(run.arm, dict(run.parameters))).runs.append(run)
    return list(found.values())


def varying(groups: Iterable[Group]) -> list[str]:
    """The parameters that tell groups of the same arm apart."""
    names: dict[str, dict[str, set[Any]]] = {}
    for group in groups:
        for name, value in group.parameters.items():
            names.setdefault(name, {}).setdefault(group.arm, set()).add(value)
    return [name for name, by_arm in names.items() if any(len(values) > 1 for values in by_arm.values())]


def label_of(group: Group, groups: Sequence[Group]) -> str:
    """How a legend calls the group: its arm, where there are several, and the parameters that tell it apart."""
    words = [group.arm] if len({other.arm for other in groups}) > 1 or not group.parameters else []
    words += [spoken(name, group.parameters[name]) for name in varying(groups) if name in group.parameters]
    return ", ".join(words) or group.arm


def spoken(name: str, value: Any) -> str:
    """A parameter in words, with its unit."""
    shown = f"{value:,.0f}" if isinstance(value, (int, float)) and abs(value) >= 10_000 else value
    shown = f"{shown:g}" if isinstance(shown, float) else f"{shown}"
    return PARAMETER_WORDS[name].format(shown) if name in PARAMETER_WORDS else f"{name.replace('_', ' ')} {shown}"


def spread_of(values: Sequence[float]) -> Spread:
    """The median of at least one value, with its 95% bootstrap interval, or with the extremes of one or two values."""
    middle = median(values)
    if len(values) < BOOTSTRAP_VALUES_MIN:
        return Spread(min(values), middle, max(values))
    interval = bootstrap_interval(values, median)
    return Spread(min(interval.low, middle), middle, max(interval.high, middle))


def counted(groups: Iterable[Group]) -> str:
    """How many blocks stand behind each point: "n = 3 blocks", or "n = 2 to 3 blocks"."""
    found = sorted({group.blocks for group in groups}) or [0]
    several = f"{found[0]} to {found[-1]}" if len(found) > 1 else f"{found[0]}"
    return f"n = {several} block{'' if found == [1] else 's'}"


def evidence_note(results: Iterable[Results], groups: Sequence[Group], marks: str = "points: medians, bars: {}") -> str:
    """What a reader has to know of the runs: how many, whether they are evidence, which were left out.

    `marks` tells what the figure's marks are; {} becomes the kind of spread that `spread_of` gives so many runs.
    """
    fewest = min((len(group.runs) for group in groups), default=0)
    spread = "95% bootstrap intervals" if fewest >= BOOTSTRAP_VALUES_MIN else "least and largest run"
    note = f"{counted(groups)}; {marks.format(spread)}."
    if all(len(group.runs) == 1 for group in groups):
        note = f"{counted(groups)}, so no spread is known."
    if not is_evidence(min((group.blocks for group in groups), default=0)):
        note += " A screen: no evidence."
    runs = [run for one in results for run in one.runs]
    invalid = sum(not run.valid for run in runs)
    if invalid:
        note += f" {invalid} of {len(runs)} runs invalid, left out."
    return note
