"""The distribution of latencies, as the share of requests that took longer: a logarithmic tail shows the slow few."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np
from matplotlib.ticker import FuncFormatter

from ..measure.results import Results, Run
from .groups import Group, collect, evidence_note, label_of
from .sheet import NothingToDrawError, Sheet, footnotes_of
from .style import COLOURS, LINES, logarithmic, styled

#: Places on the latency axis between the least and the largest latency of any run.
PLACES = 400
PERCENTILES = ((0.5, "p50"), (0.1, "p90"), (0.01, "p99"), (0.001, "p99.9"), (0.0001, "p99.99"))
LEAST_LATENCY_US = 1.0
#: More lines than this have no bands: one could not tell which is whose.
BANDS_MAX = 4


def draw(results: Sequence[Results]) -> dict[str, Sheet]:
    """The sheet. Raises NothingToDrawError without a run that has a histogram."""
    groups = [
        group
        for one in results
        for group in collect(one, "latency", "capacity")
        if any(run.histogram for run in group.runs)
    ]
    if not groups:
        raise NothingToDrawError("no valid run has a histogram of latencies")
    shown = chosen(groups)
    has_bands = len(shown) <= BANDS_MAX
    bands = ", bands: the least and the largest" if has_bands else ""
    notes = [evidence_note(results, groups, f"lines: medians of the runs{bands}")]
    if len(shown) < len(groups):
        notes.append(f"{len(shown)} of {len(groups)} shown, from the least p99 to the largest.")
    sheet = Sheet("Distribution of latency", size_inches=(6.6, 4.4), notes=notes, footnotes=footnotes_of(results))
    axis = sheet.panels[0]
    with styled():
        handles = [draw_line(axis, group, number, has_band=has_bands) for number, group in enumerate(shown)]
        axis.set_xlabel("latency (ms)")
        axis.set_ylabel("share of requests that took longer")
        logarithmic(axis, "x")
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value * 100:.10g}%"))
        rarest = min(1 / max(1, sum(count for _, count in run.histogram)) for group in shown for run in group.runs)
        axis.set_ylim(max(rarest, 1e-6) * 0.8, 1.25)
        name_percentiles(axis)
    if len(shown) > 1:
        sheet.legend(handles, [label_of(group, groups) for group in shown])
    return {"": sheet}


def name_percentiles(axis: Any) -> None:
    """Writes the percentiles' names at the right edge, where the share is what they leave."""
    bottom, _ = axis.get_ylim()
    for share, name in PERCENTILES:
        if share > bottom:
            axis.annotate(
                name, (1, share), xycoords=("axes fraction", "data"), xytext=(4, 0), textcoords="offset points",
                va="center", fontsize=8.5, color="#444444", annotation_clip=False,
            )  # fmt: skip


def chosen(groups: Sequence[Group], most: int = len(COLOURS)) -> list[Group]:
    """At most as many as can be told apart, evenly from the least p99 to the largest."""
    if len(groups) <= most:
        return list(groups)
    ranked = sorted(groups, key=lambda group: median(group.values(lambda run: run.latency_us.get("p99")) or [0.0]))
    places = sorted({round(number * (len(ranked) - 1) / (most - 1)) for number in range(most)})
    return [ranked[place] for place in places]


def draw_line(axis: Any, group: Group, number: int, *, has_band: bool) -> Any:
    """One arm: the median of its runs' shares at each latency, and perhaps a band from the least to the largest."""
    runs = [run for run in group.runs if run.histogram]
    first = min(max(LEAST_LATENCY_US, run.histogram[0][0]) for run in runs)
    last = max(run.histogram[-1][0] for run in runs)
    latencies_us = np.geomspace(first, max(last, first * 1.01), PLACES)
    shares = np.array([slower_shares(run, latencies_us) for run in runs])
    middle = np.median(shares, axis=0)
    (handle,) = axis.plot(
        latencies_us / 1e3, positive(middle), color=COLOURS[number], linestyle=LINES[number], linewidth=1.6
    )
    if has_band and len(runs) > 1:
        axis.fill_between(
            latencies_us / 1e3, positive(shares.min(axis=0), 1e-9), positive(shares.max(axis=0), 1e-9),
            color=COLOURS[number], alpha=0.15, linewidth=0,
        )  # fmt: skip
    return handle


def slower_shares(run: Run, latencies_us: Any) -> Any:
    """Which share of the run's requests took longer than each latency."""
    least = np.array([bucket for bucket, _ in run.histogram], dtype=float)
    counts = np.array([count for _, count in run.histogram], dtype=float)
    above = np.concatenate([np.cumsum(counts[::-1])[::-1], [0.0]])
    return above[np.searchsorted(least, latencies_us, side="right")] / counts.sum()


def positive(shares: Any, least: float = np.nan) -> Any:
    """Nothing where a share is 0: a logarithmic axis has no place for it."""
    return np.where(shares > 0, shares, least)
