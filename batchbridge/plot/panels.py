"""Panels side by side over the same axis of batch sizes, as the demo draws them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib.figure import Figure

from .style import COLOURS, LINES, MARKERS, batch_axis, styled

Panel = tuple[str, str, "list[Series]"]


@dataclass(frozen=True)
class Series:
    """A line: for each place on the x-axis, the values of all runs there."""

    label: str
    runs: list[list[float]]
    at_least: Sequence[bool] = ()
    """Where the value is a lower bound; such points are hollow."""


def draw_panels(
    path: Path,
    *,
    title: str,
    subtitle: str,
    x_label: str,
    x: list[list[float]],
    x_names: Sequence[str],
    panels: Sequence[Panel],
    footnote: str,
) -> None:
    """Panels side by side over the same logarithmic x-axis: (title, unit of y, series). Medians, with the spread."""
    with styled():
        figure = Figure(figsize=(4.1 * len(panels), 4.6), dpi=150, layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        places = [median(values) for values in x]
        for axis, (name, unit, series) in zip(axes, panels, strict=True):
            for number, line in enumerate(series):
                draw_line(axis, places, line, number)
            if len(series) == 1:
                name_points(axis, places, [median(values) for values in series[0].runs], x_names)
            axis.set_title(name)
            axis.set_ylabel(f"{name} ({unit})")
            axis.set_xlabel(x_label)
            axis.set_ylim(bottom=0, top=axis.get_ylim()[1] * 1.06)
            batch_axis(axis, max(places))
            if len(series) > 1:
                axis.legend(frameon=False)
        figure.suptitle(f"{title}\n", fontsize=12.5, fontweight="bold")
        figure.text(0.5, 0.925, subtitle, ha="center", fontsize=9, color="#444444")
        figure.supxlabel(footnote, fontsize=8.5, color="#444444")
        figure.savefig(path)


def draw_line(axis: Any, places: list[float], line: Series, number: int) -> None:
    middle = [median(values) for values in line.runs]
    below = [m - min(values) for m, values in zip(middle, line.runs, strict=True)]
    above = [max(values) - m for m, values in zip(middle, line.runs, strict=True)]
    axis.errorbar(
        places,
        middle,
        yerr=[below, above],
        label=line.label or None,
        color=COLOURS[number],
        marker=MARKERS[number],
        linestyle=LINES[number],
        capsize=2.5,
        elinewidth=1,
    )
    hollow = [place for place, is_bound in enumerate(line.at_least) if is_bound]
    axis.plot(
        [places[place] for place in hollow],
        [middle[place] for place in hollow],
        linestyle="none",
        marker=MARKERS[number],
        markerfacecolor="white",
        markeredgecolor=COLOURS[number],
        markeredgewidth=1.6,
        zorder=5,
    )


def name_points(axis: Any, places: list[float], heights: list[float], names: Sequence[str]) -> None:
    beside = (5, -11) if heights[-1] > heights[0] else (5, 5)  # where the line does not run
    for place, height, name in zip(places, heights, names, strict=True):
        axis.annotate(name, (place, height), textcoords="offset points", xytext=beside, fontsize=8, color="#444444")
