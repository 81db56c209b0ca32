"""A sheet of paper with panels: title, notes above, legend and footnotes below, none of which touches another.

Text is wrapped to the width, and the room that it takes is counted in inches before the panels get the rest, so a long
name or many notes make the sheet taller and nothing collides.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ..errors import BatchBridgeError
from ..measure.machine import sentence
from ..measure.results import Results
from .style import styled

__all__ = ["FORMATS", "NothingToDrawError", "Sheet", "footnotes_of", "is_open_loop", "load_words"]

FORMATS = ("png", "svg", "pdf")

TITLE_POINTS, NOTE_POINTS, LEGEND_POINTS = 12.5, 8.5, 9.0
LINE_SPACING = 1.35
MARGIN_INCHES = 0.14
POINTS_PER_INCH = 72
#: How wide a character is, against its height: a mean for the text here, on the safe side.
CHARACTER_WIDTH = 0.56
LEGEND_HANDLE_INCHES = 0.62
LEGEND_LABEL_CHARACTERS_MAX = 60


class Sheet:
    """Rows × columns of panels under a title. `panels` are matplotlib's axes, row by row.

    `notes` stand under the title, `footnotes` at the foot. `size_inches` is one panel's.
    """

    def __init__(
        self,
        title: str,
        *,
        columns: int = 1,
        rows: int = 1,
        size_inches: tuple[float, float] = (4.1, 3.3),
        notes: Sequence[str] = (),
        footnotes: Sequence[str] = (),
        share_y: bool = False,
    ) -> None:
        self.title, self.notes, self.footnotes = title, list(notes), list(footnotes)
        self.rows, self.columns, self.size_inches = rows, columns, size_inches
        self._is_laid_out = False
        self._legend: list[tuple[Any, str]] = []
        with styled():
            self.figure = Figure(dpi=150, layout="constrained")
            axes = self.figure.subplots(rows, columns, squeeze=False, sharey=share_y)
        self.panels: list[Any] = list(axes.flat)

    def legend(self, handles: Sequence[Any], labels: Sequence[str]) -> None:
        """One legend for all panels, below them."""
        self._legend = [
            (handle, shortened(label, LEGEND_LABEL_CHARACTERS_MAX))
            for handle, label in zip(handles, labels, strict=True)
        ]

    def save(self, path: Path) -> None:
        """Writes the sheet in the format that the name ends with. Raises OSError."""
        with styled():
            if not self._is_laid_out:
                self._lay_out()
                self._is_laid_out = True
            nothing = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
            self.figure.savefig(path, metadata=nothing.get(path.suffix.lstrip("."), {}))

    def _lay_out(self) -> None:
        width = max(self.columns * self.size_inches[0], 5.2)
        title = _lines([self.title], width, TITLE_POINTS)
        notes = _lines(self.notes, width, NOTE_POINTS)
        footnotes = _lines(self.footnotes, width, NOTE_POINTS)
        above = MARGIN_INCHES + _height(title, TITLE_POINTS) + _height(notes, NOTE_POINTS) + MARGIN_INCHES / 2
        legend_columns = self._legend_columns(width)
        legend_rows = -(-len(self._legend) // legend_columns)
        legend = legend_rows * LEGEND_POINTS * 1.5 / POINTS_PER_INCH + MARGIN_INCHES if self._legend else 0.0
        below = legend + MARGIN_INCHES + _height(footnotes, NOTE_POINTS)
        height = above + self.rows * self.size_inches[1] + below
        self.figure.set_size_inches(width, height)
        engine: Any = self.figure.get_layout_engine()
        engine.set(rect=(0, below / height, 1, 1 - (above + below) / height), w_pad=0.09)

        at = height - MARGIN_INCHES
        for line in title:
            self._text(line, width / 2, at, TITLE_POINTS, fontweight="bold", color="black")
            at -= TITLE_POINTS * LINE_SPACING / POINTS_PER_INCH
        for line in notes:
            self._text(line, width / 2, at, NOTE_POINTS)
            at -= NOTE_POINTS * LINE_SPACING / POINTS_PER_INCH
        at = below - legend - MARGIN_INCHES / 3
        for line in footnotes:
            self._text(line, width / 2, at, NOTE_POINTS)
            at -= NOTE_POINTS * LINE_SPACING / POINTS_PER_INCH
        if self._legend:
            self.figure.legend(
                [handle for handle, _ in self._legend],
                [label for _, label in self._legend],
                loc="upper center",
                bbox_to_anchor=(0.5, below / height),
                ncols=legend_columns,
                frameon=False,
                fontsize=LEGEND_POINTS,
                borderaxespad=0.2,
                handlelength=2.6,
            )

    def _text(self, line: str, x_inches: float, y_inches: float, points: float, **more: Any) -> None:
        width, height = self.figure.get_size_inches()
        style = {"color": "#444444", **more}
        self.figure.text(x_inches / width, y_inches / height, line, ha="center", va="top", fontsize=points, **style)

    def _legend_columns(self, width_inches: float) -> int:
        """As many as fit beside each other, each as wide as the longest label."""
        if not self._legend:
            return 1
        longest = max(len(label) for _, label in self._legend)
        each = LEGEND_HANDLE_INCHES + longest * LEGEND_POINTS * CHARACTER_WIDTH / POINTS_PER_INCH
        return max(1, min(len(self._legend), int((width_inches - 2 * MARGIN_INCHES) / each)))


def shortened(label: str, most: int) -> str:
    """A label of at most so many characters: what is left out is in its middle, since its end may tell it apart."""
    if len(label) <= most:
        return label
    end = most * 2 // 5
    return f"{label[: most - end - 1].rstrip()}…{label[len(label) - end :].lstrip()}"


def _lines(texts: Sequence[str], width_inches: float, points: float) -> list[str]:
    """The sentences of all texts on lines of that width; one is broken only where it does not fit by itself."""
    characters = max(20, int((width_inches - 2 * MARGIN_INCHES) * POINTS_PER_INCH / (points * CHARACTER_WIDTH)))
    lines: list[str] = []
    for text in texts:
        for part in text.replace(". ", ".\n").splitlines():
            if lines and len(lines[-1]) + 1 + len(part) <= characters:
                lines[-1] += f" {part}"
            else:
                lines += textwrap.wrap(part, characters)
    return lines


def _height(lines: Sequence[str], points: float) -> float:
    return len(lines) * points * LINE_SPACING / POINTS_PER_INCH


class NothingToDrawError(BatchBridgeError):
    """Results lack what a figure shows. One sentence."""


def footnotes_of(results: Sequence[Results]) -> list[str]:
    """The machines that the figures belong to, when they were measured, and what has to be said of that."""
    machines = [f"{sentence(one.machine)}; {one.created[:10]}." for one in results]
    said = [part for one in results for part in one.note.replace(". ", ".\n").splitlines()]
    # How many blocks there are, and what that is worth, stands under the title.
    notes = [part for part in said if part and not part.startswith("No evidence")]
    return list(dict.fromkeys([*machines, *notes]))


def is_open_loop(results: Results) -> bool:
    """Whether the sweep was run at a rate, and not to saturation."""
    return isinstance(results.settings.get("rate_per_s"), (int, float))


def load_words(results: Results) -> list[str]:
    """Under which load the sweep was run, if the file says so."""
    if is_open_loop(results):
        return [f"Open loop, {results.settings['rate_per_s']:,.0f} requests/s offered."]
    return ["Closed loop, to saturation."] if "rate_per_s" in results.settings else []
