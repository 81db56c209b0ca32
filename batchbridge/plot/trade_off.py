"""What a sweep has to choose from: p99 against server CPU, with the points that nothing beats joined."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..measure.results import Results
from ..tune.goals import pareto_front
from .groups import Group, Spread, collect, evidence_note, spread_of
from .sheet import NothingToDrawError, Sheet, footnotes_of, load_words
from .style import COLOURS, logarithmic, styled
from .throughput_latency import bars, latency

#: Points of the front that get their names: more would touch each other.
NAMES_MAX = 8


def draw(results: Sequence[Results]) -> dict[str, Sheet]:
    """The sheet of one sweep. Raises NothingToDrawError where no run has both p99 and server CPU."""
    groups = [group for group in collect(results[0]) if group.values(latency("p99")) and group.values(cpu_us)]
    if not groups:
        raise NothingToDrawError("no valid run has both a p99 latency and the server's CPU")
    costs = [spread_of(group.values(cpu_us)) for group in groups]
    tails = [spread_of([value / 1e3 for value in group.values(latency("p99"))]) for group in groups]
    front = pareto_front([(cost.middle, tail.middle) for cost, tail in zip(costs, tails, strict=True)])
    sheet = Sheet(
        "What the sweep has to choose from", size_inches=(6.2, 4.2),
        notes=[evidence_note(results, groups), *load_words(results[0])], footnotes=footnotes_of(results),
    )  # fmt: skip
    axis = sheet.panels[0]
    with styled():
        others = [place for place in range(len(groups)) if place not in front]
        handles = [draw_points(axis, costs, tails, others, "#9a9a9a", "s", "none")] if others else []
        handles.append(draw_points(axis, costs, tails, sorted(front, key=lambda at: costs[at].middle), COLOURS[0],
                                   "o", "-"))  # fmt: skip
        axis.set_xlabel("server CPU (µs/request)")
        axis.set_ylabel("p99 latency (ms)")
        logarithmic(axis, "y")
        name_points(axis, groups, costs, tails, front)
    sheet.legend(handles, (["beaten by another"] if others else []) + ["Pareto front (max_batch_size, delay)"])
    return {"": sheet}


def cpu_us(run: Any) -> float | None:
    """The figure of a run: server CPU in microseconds a request."""
    value: float | None = run.server_cpu_us_per_request
    return value


def draw_points(
    axis: Any, x: Sequence[Spread], y: Sequence[Spread], places: Sequence[int], colour: str, marker: str, line: str
) -> Any:
    """Some of the points, with their bars."""
    across, up = [x[place] for place in places], [y[place] for place in places]
    return axis.errorbar(
        [at.middle for at in across], [at.middle for at in up], xerr=bars(across), yerr=bars(up), color=colour,
        marker=marker, linestyle=line, capsize=2, elinewidth=0.8, markersize=5,
    )  # fmt: skip


def name_points(
    axis: Any, groups: Sequence[Group], x: Sequence[Spread], y: Sequence[Spread], front: Sequence[int]
) -> None:
    """Writes the settings beside the front's points; where they are many, evenly along it."""
    ordered = sorted(front, key=lambda place: x[place].middle)
    step = -(-len(ordered) // NAMES_MAX)
    box = {"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6}
    for place in ordered[::step]:
        values = groups[place].parameters
        name = f"{values.get('max_batch_size', '?')}, {values.get('max_queue_delay_us', '?')} µs"
        axis.annotate(name, (x[place].middle, y[place].middle), xytext=(6, 5), textcoords="offset points", fontsize=8,
                      color="#333333", bbox=box)  # fmt: skip
