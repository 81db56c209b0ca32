"""``batchbridge plot``: pictures, JSON or CSV out of results files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..plot.figures import FIGURES, figures_of

if TYPE_CHECKING:
    from ..measure.results import Results

FORMATS = ("png", "svg", "pdf")
FORMAT = FORMATS[0]
#: Under the help: what each figure shows.
EPILOG = "\b\nFigures:\n" + "\n".join(f"  {name:20}{figure.help}" for name, figure in FIGURES.items())


@click.command(epilog=EPILOG)
@click.argument("files", metavar="RESULTS...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="DIR|FILE", type=click.Path(path_type=Path),
              help="Folder for the pictures, or one picture's name.  [the current folder]")  # fmt: skip
@click.option("--format", "picture_format", type=click.Choice(FORMATS), help=f"Of the pictures.  [{FORMAT}]")
@click.option("--figure", "figures", multiple=True, type=click.Choice(tuple(FIGURES)), metavar="NAME",
              help="Only this figure. Repeatable.  [all that the file has]")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON instead.")
@click.option("--csv", "as_csv", is_flag=True, help="Print the runs as CSV instead.")
def command(
    files: tuple[Path, ...],
    output: Path | None,
    picture_format: str | None,
    figures: tuple[str, ...],
    as_json: bool,
    as_csv: bool,
) -> None:
    """Draw what results files have: throughput against latency, distributions, heat maps, the batching figure.

    Several files of kind "load" are compared in one figure; others are drawn one by one.
    """
    from ..measure.results import load

    if as_json and as_csv:
        raise click.UsageError("--json and --csv exclude each other")
    if as_csv and len(files) > 1:
        raise click.UsageError("--csv takes one file: the columns of two need not be the same")
    results = [load(path) for path in files]
    if as_json:
        texts = [one.to_json() for one in results]
        click.echo(texts[0] if len(texts) == 1 else f"[{','.join(texts)}]")
    elif as_csv:
        click.echo(results[0].to_csv(), nl=False)
    else:
        _draw(results, files, output, picture_format, figures)


def _draw(
    results: Sequence[Results],
    files: Sequence[Path],
    output: Path | None,
    picture_format: str | None,
    figures: Sequence[str],
) -> None:
    from ..plot.figures import PlotError, draw, save

    named = output is not None and output.suffix.lstrip(".") in FORMATS and not output.is_dir()
    if named and output is not None and picture_format not in (None, output.suffix.lstrip(".")):
        raise click.UsageError(f"--format {picture_format} and --output {output} contradict each other")
    pictures = []
    reasons = []
    for name, together in _together(results, files):
        for drawing in draw(together, figures or figures_of(together[0].kind)):
            if drawing.reason and figures:
                reasons.append(f"{name}: {drawing.figure} is not drawn, since {drawing.reason}")
            for suffix, sheet in drawing.sheets.items():
                words = [name, drawing.figure, *([suffix] if suffix else [])]
                pictures.append(("-".join(words), sheet))
    if not pictures:
        raise PlotError("; ".join(reasons) or "there is nothing to draw")
    if named and output is not None:
        if len(pictures) > 1:
            raise click.UsageError(
                f"{len(pictures)} pictures do not fit into one file: give --figure NAME, or a folder as --output"
            )
        paths = [output]
    else:
        folder = output or Path()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PlotError(f"{folder} cannot be made: {(error.strerror or str(error)).lower()}") from None
        paths = [folder / f"{stem}.{picture_format or FORMAT}" for stem, _ in pictures]
    for reason in reasons:
        click.echo(f"batchbridge: {reason}", err=True)
    for (_, sheet), path in zip(pictures, paths, strict=True):
        save(sheet, path)
        click.echo(str(path))


def _together(results: Sequence[Results], files: Sequence[Path]) -> Iterator[tuple[str, list[Results]]]:
    """What belongs into one figure, with the beginning of its pictures' names: all of kind load, else each file.

    The arms of several loads are called as their files are.
    """
    stems = _stems(files)
    loads = [(stem, one) for stem, one in zip(stems, results, strict=True) if one.kind == "load"]
    if len(loads) > 1:
        yield "compared", [_renamed(one, stem) for stem, one in loads]
    for stem, one in zip(stems, results, strict=True):
        if one.kind != "load" or len(loads) == 1:
            yield stem, [one]


def _renamed(results: Results, name: str) -> Results:
    runs = [replace(run, arm=name if len(results.arms()) == 1 else f"{name}, {run.arm}") for run in results.runs]
    return replace(results, runs=runs)


def _stems(files: Sequence[Path]) -> list[str]:
    """The files' names without their ends; two of the same name get a number."""
    stems: list[str] = []
    for path in files:
        stem, number = path.stem, 2
        while stem in stems:
            stem, number = f"{path.stem}-{number}", number + 1
        stems.append(stem)
    return stems
