"""Throughput against latency: for each arm a line, over the rates or settings that it was run with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..measure.results import Results, Run
from .groups import Group, Spread, collect, evidence_note, spoken, spread_of, varying
from .sheet import NothingToDrawError, Sheet, footnotes_of, is_open_loop
from .style import COLOURS, LINES, MARKERS, logarithmic, styled

PANELS = (("p50", "Median latency", "p50 latency (ms)"), ("p99", "Tail latency", "p99 latency (ms)"))
#: A point below this share of the rate that was offered did not keep up.
KEPT_UP_SHARE = 0.95


def draw(results: Sequence[Results]) -> dict[str, Sheet]:
    """The sheet. Raises NothingToDrawError without a run that has both figures."""
    groups = [group for one in results for group in collect(one) if group.values(latency("p99"))]
    if not groups:
        raise NothingToDrawError("no valid run has a latency")
    if results[0].kind == "sweep" and is_open_loop(results[0]):
        raise NothingToDrawError("an open loop at one rate has one throughput; see the figure trade-off")
    lines = lines_of(groups)
    notes = [evidence_note(results, groups)]
    behind = any(is_behind(group) for group in groups)
    if behind:
        notes.append(f"Hollow: answered less than {KEPT_UP_SHARE:.0%} of the rate that was offered.")
    if len(lines) > len(COLOURS):
        notes.append(f"{len(COLOURS)} of {len(lines)} lines shown.")
    sheet = Sheet("Throughput against latency", columns=2, notes=notes, footnotes=footnotes_of(results))
    with styled():
        handles: list[Any] = []
        labels = list(lines)[: len(COLOURS)]
        for axis, (name, title, unit) in zip(sheet.panels, PANELS, strict=True):
            handles = [draw_line(axis, lines[label], name, number) for number, label in enumerate(labels)]
            axis.set_title(title)
            axis.set_xlabel("throughput (1,000 requests/s)")
            axis.set_ylabel(unit)
            axis.set_xlim(left=0, right=axis.get_xlim()[1] * 1.02)
            logarithmic(axis, "y")
    if len(labels) > 1:
        sheet.legend(handles, labels)
    return {"": sheet}


def lines_of(groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups by the line that they are points of: arm, and what was varied beside the rate (or the batch size).

    One parameter runs along the line: the rate where it varies, else the connections, else the batch size.
    """
    names = varying(groups)
    along = next(
        (name for name in ("rate_per_s", "rate", "connections", "max_batch_size", "in") if name in names), None
    )
    several_arms = len({group.arm for group in groups}) > 1
    lines: dict[str, list[Group]] = {}
    for group in groups:
        words = [group.arm] if several_arms or len(names) == 0 else []
        words += [spoken(name, group.parameters[name]) for name in names if name != along and name in group.parameters]
        lines.setdefault(", ".join(words), []).append(group)
    return lines


def draw_line(axis: Any, groups: Sequence[Group], percentile: str, number: int) -> Any:
    """One arm's points in one panel, joined in order of what was varied; returns the legend's handle."""
    rate = [spread_of([value / 1e3 for value in group.values(lambda run: run.requests_per_s)]) for group in groups]
    height = [spread_of([value / 1e3 for value in group.values(latency(percentile))]) for group in groups]
    style = {"color": COLOURS[number], "marker": MARKERS[number], "linestyle": LINES[number]}
    handle = axis.errorbar(
        [at.middle for at in rate],
        [at.middle for at in height],
        xerr=bars(rate),
        yerr=bars(height),
        capsize=2.5,
        elinewidth=1,
        **style,
    )
    hollow = [place for place, group in enumerate(groups) if is_behind(group)]
    axis.plot(
        [rate[place].middle for place in hollow],
        [height[place].middle for place in hollow],
        linestyle="none",
        marker=MARKERS[number],
        markerfacecolor="white",
        markeredgecolor=COLOURS[number],
        markeredgewidth=1.6,
        zorder=5,
    )
    return handle


def bars(spreads: Sequence[Spread]) -> list[list[float]]:
    """As matplotlib takes them: how far below, and how far above."""
    return [[at.middle - at.low for at in spreads], [at.high - at.middle for at in spreads]]


def latency(name: str) -> Any:
    """The figure of a run: a latency in microseconds, None where it was not measured."""

    def figure(run: Run) -> float | None:
        return run.latency_us.get(name)

    return figure


def is_behind(group: Group) -> bool:
    """Whether an open loop's median run answered clearly less than it was offered."""
    shares = group.values(lambda run: run.requests_per_s / run.offered_per_s if run.offered_per_s else None)
    return bool(shares) and spread_of(shares).middle < KEPT_UP_SHARE
