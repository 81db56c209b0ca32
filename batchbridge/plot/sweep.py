"""A sweep as heat maps: max_batch_size × max_queue_delay_us, with p99, server CPU and throughput as colours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
from matplotlib.colors import LogNorm, Normalize
from matplotlib.patches import Rectangle

from ..measure.results import Results, Run
from .groups import Group, collect, evidence_note
from .sheet import NothingToDrawError, Sheet, footnotes_of, is_open_loop, load_words
from .style import styled, write_out

#: Even steps look even, in grey print and to the colour-blind as well.
COLOUR_MAP = "cividis"
#: Where the largest value is more than so many times the least, colours follow the logarithm, or the rest look alike.
LOGARITHMIC_RATIO = 4


@dataclass(frozen=True)
class Panel:
    """One figure of the runs."""

    title: str
    unit: str
    figure: Callable[[Run], float | None]
    best: Callable[[Any], Any]
    """Where the best value is: the least, or the largest."""


PANELS = (
    Panel("p99 latency", "ms", lambda run: _scaled(run.latency_us.get("p99"), 1e-3), np.nanargmin),
    Panel("Server CPU", "µs/request", lambda run: run.server_cpu_us_per_request, np.nanargmin),
    Panel("Throughput", "1,000 requests/s", lambda run: run.requests_per_s * 1e-3, np.nanargmax),
)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def draw(results: Sequence[Results]) -> dict[str, Sheet]:
    """The sheet of one sweep. Raises NothingToDrawError where no run names both parameters."""
    groups = [
        group for group in collect(results[0]) if {"max_batch_size", "max_queue_delay_us"} <= group.parameters.keys()
    ]
    if not groups:
        raise NothingToDrawError("no valid run names its max_batch_size and max_queue_delay_us")
    sizes = sorted({group.parameters["max_batch_size"] for group in groups})
    delays = sorted({group.parameters["max_queue_delay_us"] for group in groups})
    panels = [panel for panel in PANELS if any(group.values(panel.figure) for group in groups)]
    notes = [
        evidence_note(results, groups, "cells: medians, framed: the best, hatched: not run, or no valid run"),
    ]
    notes += load_words(results[0])
    missing = [panel.title for panel in PANELS if panel not in panels]
    if missing:
        notes.append(f"Not measured: {', '.join(missing)}.")
    size = (max(2.6, 0.5 * len(sizes) + 1.4), max(2.6, 0.4 * len(delays) + 1.2))
    sheet = Sheet("Sweep of the batch policy", columns=len(panels), size_inches=size, notes=notes,
                  footnotes=footnotes_of(results))  # fmt: skip
    with styled():
        for number, (axis, panel) in enumerate(zip(sheet.panels, panels, strict=True)):
            # What an open loop is answered is what it offers: the rest is noise, or did not keep up.
            has_best = panel.title != "Throughput" or not is_open_loop(results[0])
            draw_panel(sheet, axis, panel, table_of(groups, sizes, delays, panel.figure), has_best=has_best)
            axis.set_title(panel.title)
            axis.set_xticks(range(len(sizes)), [f"{size:g}" for size in sizes])
            axis.set_yticks(range(len(delays)), [f"{delay:g}" for delay in delays])
            axis.set_xlabel("max_batch_size (requests)")
            if number == 0:
                axis.set_ylabel("max_queue_delay_us (µs)")
    return {"": sheet}


def table_of(
    groups: Sequence[Group], sizes: Sequence[Any], delays: Sequence[Any], figure: Callable[[Run], float | None]
) -> Any:
    """Medians by delay and size; not-a-number where nothing was measured."""
    table = np.full((len(delays), len(sizes)), np.nan)
    for group in groups:
        if values := group.values(figure):
            row = delays.index(group.parameters["max_queue_delay_us"])
            table[row, sizes.index(group.parameters["max_batch_size"])] = median(values)
    return table


def draw_panel(sheet: Sheet, axis: Any, panel: Panel, table: Any, *, has_best: bool) -> None:
    """One heat map, its cells labelled, and its best one framed, if there is such a thing."""
    axis.grid(visible=False)
    norm = LogNorm() if np.nanmax(table) > LOGARITHMIC_RATIO * np.nanmin(table) > 0 else Normalize()
    image = axis.imshow(np.ma.masked_invalid(table), cmap=COLOUR_MAP, norm=norm, aspect="auto", origin="lower")
    axis.spines[:].set_visible(False)
    axis.tick_params(length=0)
    for (row, column), value in np.ndenumerate(table):
        if np.isnan(value):
            axis.add_patch(
                Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, hatch="////", edgecolor="#c8c8c8", linewidth=0)
            )
            continue
        brightness = _brightness(image.cmap(image.norm(value)))
        colour = "black" if brightness > 0.5 else "white"
        axis.text(column, row, short(value), ha="center", va="center", fontsize=8, color=colour)
    if has_best:
        row, column = np.unravel_index(panel.best(table), table.shape)
        axis.add_patch(
            Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=2.2)
        )
    bar = sheet.figure.colorbar(image, ax=axis, pad=0.02, fraction=0.06)
    bar.set_label(f"{panel.title} ({panel.unit})", fontsize=9)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8)
    if isinstance(norm, LogNorm):
        write_out(bar.ax.yaxis)


def _brightness(colour: tuple[float, ...]) -> float:
    red, green, blue = colour[:3]
    return 0.299 * red + 0.587 * green + 0.114 * blue


def short(value: float) -> str:
    """Three digits, which is more than the noise allows."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
