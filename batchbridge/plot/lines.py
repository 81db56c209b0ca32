"""A line of an arm's groups over a number: medians with bars, hollow where the client was the limit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..measure.experiment import are_client_limited
from ..measure.results import Run
from .groups import Group, spread_of
from .style import COLOURS, LINES, MARKERS
from .throughput_latency import bars

__all__ = ["draw_arms", "in_ms", "is_hollow", "name_axes"]


def is_hollow(group: Group) -> bool:
    """Whether the client was the limit in half of the runs."""
    return are_client_limited(group.runs)


def in_ms(figure: Callable[[Run], float | None]) -> Callable[[Run], float | None]:
    """Microseconds to milliseconds; nothing where nothing was answered."""
    return lambda run: value / 1e3 if (value := figure(run)) else None


def draw_arms(
    panels: Sequence[Any],
    groups: Sequence[Group],
    arms: Sequence[str],
    place_of: Callable[[Group], float],
    figures_of: Callable[[str], Sequence[Callable[[Run], float | None]]],
) -> list[Any]:
    """A line for each arm in each panel, of the figures that an arm has for them; returns the legend's handles."""
    handles = []
    for number, arm in enumerate(arms):
        of_arm = sorted((group for group in groups if group.arm == arm), key=place_of)
        drawn = [
            draw_line(panel, of_arm, place_of, figure, number)
            for panel, figure in zip(panels, figures_of(arm), strict=True)
        ]
        handles.append(drawn[0])
    return handles


def name_axes(panels: Sequence[Any], x_label: str, words: Sequence[tuple[str, str]]) -> None:
    """Panels over the same x-axis, which begins at 0; `words` are a panel's title, and what its y-axis says."""
    for axis, (title, unit) in zip(panels, words, strict=True):
        axis.set_title(title)
        axis.set_xlabel(x_label)
        axis.set_ylabel(unit)
        axis.set_xlim(left=0)


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
