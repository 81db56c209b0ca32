"""How large the batches were: for each arm, the share of its batches by size."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from ..measure.results import Results, Run
from .groups import Group, collect, evidence_note, label_of, spread_of, varying
from .sheet import NothingToDrawError, Sheet, footnotes_of
from .style import COLOURS, styled
from .throughput_latency import bars

PANELS_MAX = 16


def draw(results: Sequence[Results]) -> dict[str, Sheet]:
    """The sheet, a panel an arm. Raises NothingToDrawError without a run that has batch sizes."""
    groups = [
        group for one in results for group in collect(one, "capacity") if any(run.batch_sizes for run in group.runs)
    ]
    if not groups:
        raise NothingToDrawError("no valid run has batch sizes")
    names = varying(groups)
    # The order in which they ran is a shuffled one.
    groups.sort(key=lambda group: ([str(group.parameters.get(name, 0)).rjust(12) for name in names], group.arm))
    step = -(-len(groups) // PANELS_MAX)
    shown = groups[::step]
    notes = [evidence_note(results, groups, "columns: medians of the runs, bars: {}")]
    if len(shown) < len(groups):
        notes.append(f"{len(shown)} of {len(groups)} shown, evenly taken.")
    columns = min(4 if len(shown) > 9 else 3, len(shown))
    rows = -(-len(shown) // columns)
    size = (2.7, 2.2) if len(shown) > 1 else (5.4, 3.4)
    sheet = Sheet("Achieved batch sizes", columns=columns, rows=rows, size_inches=size, notes=notes,
                  footnotes=footnotes_of(results), share_y=True)  # fmt: skip
    powers = 1 + max(power_of(size) for group in shown for run in group.runs for size, _ in run.batch_sizes)
    with styled():
        for number, axis in enumerate(sheet.panels):
            if number >= len(shown):
                axis.set_visible(False)
                continue
            draw_panel(axis, shown[number], powers)
            axis.set_title(wrapped(label_of(shown[number], groups)), fontsize=9)
            if number % columns == 0:
                axis.set_ylabel("share of batches (%)")
            if number + columns >= len(shown):
                axis.set_xlabel("batch size (requests)")
    return {"": sheet}


def wrapped(label: str) -> str:
    """A label that fits above a small panel."""
    return "\n".join(textwrap.wrap(label, 32)[:3])


def draw_panel(axis: Any, group: Group, powers: int) -> None:
    """Bars by powers of two, each the median of the runs' shares with their spread."""
    shares = [shares_of(run, powers) for run in group.runs if run.batch_sizes]
    spreads = [spread_of([100 * share[power] for share in shares]) for power in range(powers)]
    axis.bar(
        range(powers), [at.middle for at in spreads], yerr=bars(spreads), width=0.8, color=COLOURS[0],
        error_kw={"elinewidth": 1, "capsize": 2.0, "ecolor": "#333333"},
    )  # fmt: skip
    axis.set_ylim(0, 122)
    axis.set_yticks(range(0, 101, 25))
    axis.set_xlim(-0.7, powers - 0.3)
    axis.grid(visible=False, axis="x")
    # Where there are many sizes, every second one has its name.
    step = 1 if powers <= 6 else 2
    axis.set_xticks(range(0, powers, step), [interval_of(power) for power in range(0, powers, step)], fontsize=8)
    mean = group.values(lambda run: run.mean_batch_size)
    if mean:
        axis.text(0.98, 0.99, f"mean {spread_of(mean).middle:.3g}", transform=axis.transAxes, ha="right", va="top",
                  fontsize=8.5, color="#444444")  # fmt: skip


def power_of(size: int) -> int:
    """The power of two that a batch size is counted under: 1, 2, 3 to 4, 5 to 8 and so on."""
    return max(0, size - 1).bit_length()


def interval_of(power: int) -> str:
    """The sizes that are counted there."""
    return f"{1 << power}" if power < 2 else f"{(1 << (power - 1)) + 1}–{1 << power}"


def shares_of(run: Run, powers: int) -> list[float]:
    """Which share of a run's batches each power of two has."""
    counts = [0] * powers
    for size, batches in run.batch_sizes:
        counts[power_of(size)] += batches
    total = max(1, sum(counts))
    return [count / total for count in counts]
