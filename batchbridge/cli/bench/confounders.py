"""What ``--confounders`` does in the commands that compare arms: the same arms, under each setting of the link."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .shared import INTERRUPTED, finish, progress, results_into, spread, table, tell

if TYPE_CHECKING:
    from ...measure.confounders import Change
    from ...measure.experiment import Arm, Phase
    from ...measure.links import Link

__all__ = ["compare", "confounders_flag", "refuse_place"]

confounders_flag = click.option(
    "--confounders", is_flag=True,
    help="Repeat it with other MTUs, without segmentation, checksums and packet steering, and on one core; say where "
    "the ratios change.",
)  # fmt: skip


def refuse_place(place: str | None, link: Link) -> None:
    """Raises click.UsageError where a place was asked for: --confounders makes all of them."""
    if place is not None or link.words:
        raise click.UsageError("--confounders measures in places of its own; leave out the flags for place and link")


def compare(
    arms: Sequence[Arm], phase: Phase, *, base: str, again: str, blocks: int, seconds: float, settings: dict[str, Any],
    notes: Sequence[str], output: Path, as_json: bool,
) -> None:  # fmt: skip
    """Measures, prints and keeps. `base` is the arm that ratios are to, and `again` the one that is it once more."""
    from ...measure.confounders import changes, estimate_s, perform
    from ...measure.experiment import Experiment, Site, site

    results = results_into("confounders", {**settings, "base": base, "again": again}, output)
    # The site is another one for each setting.
    experiment = Experiment(Site(0, 0), results, seconds)
    try:
        with progress(experiment, quiet=as_json) as announce:
            perform(
                experiment,
                arms,
                phase,
                blocks,
                site,
                lambda runs, those: announce(runs, those, estimate_s(runs, seconds)),
            )
    except KeyboardInterrupt:
        if not results.runs:
            raise
        results.note = INTERRUPTED
    found = changes(results.runs, base, again)
    finish(results, [*notes, sentence_of(found)])
    tell(results, [asdict(change) for change in found], output, as_json, lambda console: _print(console, found, base))


def sentence_of(found: Sequence[Change]) -> str:
    """In which settings a ratio is another one, beyond noise."""
    real = [change for change in found if change.is_beyond_noise]
    if not real:
        return "No setting changes a ratio beyond noise."
    settings = dict.fromkeys(change.setting for change in real)
    told = [
        f"{setting} ({'; '.join(change.words for change in real if change.setting == setting)})" for setting in settings
    ]
    return f"Ratios change beyond noise under: {', '.join(told)}."


def _print(console: Any, found: Sequence[Change], base: str) -> None:
    """A table for each arm: how it stands to the base, and that as a share of what it is usually."""
    figures = list(dict.fromkeys(change.figure for change in found))
    console.print(f"Ratios to {base}", soft_wrap=True)
    for arm in dict.fromkeys(change.arm for change in found):
        of = {(change.setting, change.figure): change for change in found if change.arm == arm}
        rows = table(["setting", *(title for figure in figures for title in (figure, "× usual", ""))])
        for setting in dict.fromkeys(setting for setting, _ in of):
            chosen = [of[setting, figure] for figure in figures]
            cells = (
                (spread(one.ratio, "{:.2f}"), spread(one.change, "{:.2f}"), "*" if one.is_beyond_noise else "")
                for one in chosen
            )
            rows.add_row(setting, *(cell for three in cells for cell in three))
        console.print(f"\n[bold]{arm}[/]", soft_wrap=True)
        console.print(rows)
    console.print("\n*: not the ratio of the usual setting, beyond noise.")
    for reason in dict.fromkeys(f"{change.arm}, {change.setting}: {why}" for change in found for why in change.invalid):
        console.print(f"[red]invalid[/] {reason}", soft_wrap=True)
