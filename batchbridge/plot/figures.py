"""The figures by name, and which of them a results file has: that follows from its kind."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import BatchBridgeError
from ..measure.results import Results

if TYPE_CHECKING:
    from .sheet import Sheet

__all__ = ["FIGURES", "Drawing", "Figure", "PlotError", "draw", "figures_of", "require_matplotlib", "save"]


class PlotError(BatchBridgeError):
    """Nothing can be drawn: matplotlib is missing, or the results lack what the figure shows. One sentence."""


@dataclass(frozen=True)
class Figure:
    """One figure: its name on the command line, its module, and the kinds of results that it is drawn of."""

    name: str
    kinds: tuple[str, ...]
    help: str

    @property
    def module(self) -> str:
        """Where its function `draw` is."""
        return f"{__package__}.{self.name.replace('-', '_')}"


FIGURES: dict[str, Figure] = {
    figure.name: figure
    for figure in (
        Figure("batching", ("batching",), "throughput, cost and G over the achieved batch size"),
        Figure("rates", ("batching",), "the server's core over offered rates, cost by request and p99"),
        Figure("sweep", ("sweep",), "heat maps over max_batch_size and max_queue_delay_us"),
        Figure("trade-off", ("sweep",), "p99 against server CPU"),
        Figure("throughput-latency", ("load", "versus", "sweep"), "throughput against latency"),
        Figure("overload", ("overload",), "goodput, the server's progress and p99 over offered load"),
        Figure("latency-cdf", ("load", "versus", "batching", "sweep", "latency"), "the distribution of latencies"),
        Figure("batch-sizes", ("load", "versus", "batching", "sweep"), "histograms of achieved batch sizes"),
    )
}


@dataclass(frozen=True)
class Drawing:
    """What was drawn of a figure: its sheets, by what tells them apart ("" for a single one), or why there is none."""

    figure: str
    sheets: dict[str, Sheet]
    reason: str = ""


def figures_of(kind: str) -> list[str]:
    """The names of the figures that results of this kind have."""
    return [name for name, figure in FIGURES.items() if kind in figure.kinds]


def draw(results: Sequence[Results], names: Sequence[str]) -> Iterator[Drawing]:
    """Draws the figures `names` of results that are of one kind and belong into one figure.

    Raises PlotError where matplotlib is missing, or the kind has no such figure.
    """
    require_matplotlib()
    from .sheet import NothingToDrawError

    kind = results[0].kind
    for name in names:
        if kind not in FIGURES[name].kinds:
            raise PlotError(
                f"results of kind {kind!r} have no figure {name}; they have {', '.join(figures_of(kind)) or 'none'}"
            )
        try:
            yield Drawing(name, importlib.import_module(FIGURES[name].module).draw(results))
        except NothingToDrawError as error:
            yield Drawing(name, {}, str(error))


def save(sheet: Sheet, path: Path) -> None:
    """Writes a sheet in the format that the name ends with. Raises PlotError."""
    try:
        sheet.save(path)
    except OSError as error:
        raise PlotError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from None


def require_matplotlib() -> None:
    """Raises PlotError, with what to do, where matplotlib is not installed."""
    try:
        importlib.import_module("matplotlib")
        importlib.import_module("numpy")
    except ImportError as error:
        raise PlotError(
            f"pictures need {error.name}, which is not installed: pip install 'batchbridge[plot]'"
        ) from None
