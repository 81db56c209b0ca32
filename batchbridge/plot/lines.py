"""A line of an arm's groups over a number: medians with bars, hollow where the client was the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..measure.experiment import is_client_limited
from ..measure.results import Run
from .groups import Group, spread_of
from .style import COLOURS, LINES, MARKERS
from .throughput_latency import bars

__all__ = ["draw_line", "in_ms", "is_hollow"]


def is_hollow(group: Group) -> bool:
    """Whether the client was the limit in half of the runs."""
    return sum(is_client_limited(run) for run in group.runs) * 2 >= len(group.runs)


def in_ms(figure: Callable[[Run], float | None]) -> Callable[[Run], float | None]:
    """Microseconds to milliseconds; nothing where nothing was answered."""
    return lambda run: value / 1e3 if (value := figure(run)) else None


def draw_line(
    axis: Any,
    groups: Sequence[Group],
    place_of: Callable[[Group], float],
    figure: Callable[[Run], float | None],
    number: int,
) -> Any:
    """An arm in one panel, in the style of that number; returns the legend's handle."""
    known = [(group, spread_of(values)) for group in groups if (values := group.values(figure))]
    spreads = [spread for _, spread in known]
    style = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": LINES[number]}
    handle = axis.errorbar(
        [place_of(group) for group, _ in known], [spread.middle for spread in spreads], yerr=bars(spreads),
        capsize=2.5, elinewidth=1, **style,
    )  # fmt: skip
    hollow = [(place_of(group), spread.middle) for group, spread in known if is_hollow(group)]
    axis.plot(
        [place for place, _ in hollow], [height for _, height in hollow], linestyle="none", marker=MARKERS[number],
        markerfacecolor="white", markeredgecolor=COLOURS[number], markeredgewidth=1.6, zorder=5,
    )  # fmt: skip
    return handle
