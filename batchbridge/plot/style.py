"""How pictures of measurements look: readable in print and by the colour-blind, with a unit on each axis."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

#: Okabe and Ito's: told apart by all kinds of colour vision. Markers and line styles tell them apart in grey print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1)), (0, (1, 1)), (0, (8, 2)))

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.grid": True,
    "grid.color": "#d9d9d9",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.5,
    # Text stays text, so that it can be searched, and set in another font.
    "svg.fonttype": "none",
    "pdf.fonttype": 42,
    # The same results make the same file.
    "svg.hashsalt": "batchbridge",
}


def styled() -> AbstractContextManager[None]:
    """What is drawn within has the style; nothing outside does."""
    return mpl.rc_context(STYLE)


def batch_axis(axis: Any, largest: float) -> None:
    """Powers of two, written out, up to the one that the largest batch is nearest to."""
    axis.set_xscale("log", base=2)
    axis.set_xlim(0.85, max(largest, 2 ** round(math.log2(largest))) * 1.3)
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.xaxis.set_minor_locator(NullLocator())


def logarithmic(axes: Any, which: Literal["x", "y"]) -> None:
    """Makes one axis of a panel logarithmic, its numbers written out."""
    {"x": axes.set_xscale, "y": axes.set_yscale}[which]("log")
    write_out({"x": axes.xaxis, "y": axes.yaxis}[which])


def write_out(axis: Any) -> None:
    """The numbers of a logarithmic axis (matplotlib's Axis) as they are, and not as powers of ten."""
    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
    axis.set_minor_locator(LogLocator(10, subs=tuple(range(1, 10))))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_formatter(NullFormatter())
