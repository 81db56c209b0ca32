"""What becomes of servers when more is asked than they can do: goodput, the server's progress, and the tail.

Over the offered load, as a multiple of each server's own capacity. A server that livelocks has a goodput that falls
behind 1; one that only queues keeps it, and its latencies grow with the run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.ticker import PercentFormatter

from ..measure.experiment import CAPACITY
from ..measure.overload import load_of
from ..measure.results import Results, Run
from ..measure.statistics import by_block
from .groups import Group, collect, evidence_note
from .lines import draw_arms, in_ms, is_hollow, name_axes
from .sheet import NothingToDrawError, Sheet, footnotes_of
from .style import COLOURS, logarithmic, styled
from .throughput_latency import latency


def draw(results: Sequence[Results]) -> dict[str, Sheet]:
    """The sheet. Raises NothingToDrawError without a valid run under an offered load."""
    one = results[0]
    groups = [group for group in collect(one) if load_of(group.runs[0]) > 0]
    if not groups:
        raise NothingToDrawError("no valid run has an offered load")
    notes = [evidence_note(results, groups), words_of(one)]
    if any(is_hollow(group) for group in groups):
        notes.append("Hollow: the client had no time left, so less was offered than it says.")
    sheet = Sheet("Under overload", columns=3, size_inches=(3.9, 3.5), notes=notes, footnotes=footnotes_of(results))
    arms = list(dict.fromkeys(group.arm for group in groups))[: len(COLOURS)]
    with styled():
        goodput, progress, tail = sheet.panels
        handles = draw_arms(
            sheet.panels, groups, arms, place_of,
            lambda arm: (share_of_capacity(one, arm), lambda run: run.server_threads_share, in_ms(latency("p99"))),
        )  # fmt: skip
        draw_ideal(goodput, max(place_of(group) for group in groups))
        name_axes(sheet.panels, "offered load (multiples of capacity)", (
            ("Goodput", "goodput (% of capacity)"),
            ("Progress of the server", "its threads' share of the core (%)"),
            ("Tail latency", "p99 latency (ms)"),
        ))  # fmt: skip
        for axis in (goodput, progress):
            axis.set_ylim(bottom=0, top=max(1.05, axis.get_ylim()[1]))
            axis.yaxis.set_major_formatter(PercentFormatter(1, decimals=0, symbol=""))
        logarithmic(tail, "y")
    sheet.legend(handles, arms)
    return {"": sheet}


def words_of(results: Results) -> str:
    """How requests were offered."""
    how = "a connection for each request" if results.settings.get("close", True) else "connections kept"
    return f"Open loop, {how}; each server's capacity is that of its closed loop."


def place_of(group: Group) -> float:
    """Where a group stands."""
    return load_of(group.runs[0])


def share_of_capacity(results: Results, arm: str) -> Callable[[Run], float | None]:
    """Goodput by the capacity of the same block."""
    closed = [run for run in results.of(arm) if run.parameters.get("phase") == CAPACITY]
    capacity = by_block(closed, "requests_per_s")
    return lambda run: run.requests_per_s / capacity[run.block] if capacity.get(run.block) else None


def draw_ideal(axis: Any, furthest: float) -> None:
    """What a server would do that loses nothing: all that is offered, and never less than it can."""
    axis.plot([0, 1, furthest], [0, 1, 1], color="#9a9a9a", linewidth=0.9, linestyle="--", zorder=1)
