"""What a hit costs the server sent without a copy, and with one, by size: ``python -P -m bench.zero_copy``.

The same server twice, with `zero_copy_size_bytes_min` so low that all is sent without a copy, and so high that nothing
is. Fresh processes, in random order within blocks; server CPU by the idle loop (README, "Figures"). `--quick` takes
three minutes and is a screen; `--draw FILE` draws results that were kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import click

from batchbridge.cython_ext.load import Exchange
from batchbridge.measure import machine
from batchbridge.measure.experiment import COST, PLACES, Arm, Experiment, Phase, notes_of, shuffled, site
from batchbridge.measure.namespaces import Place
from batchbridge.measure.processes import MeasuredProcess, ServerProcess
from batchbridge.measure.results import Results, Run, load

KIB = 1024
SIZES = tuple(KIB << power for power in range(11))
QUICK_SIZES = tuple(size * KIB for size in (1, 4, 8, 16, 32, 64, 256, 1024))
#: The setting by which each arm is made.
MODES = {"zero copy": KIB, "one copy": 1024 * KIB}
CONNECTIONS = 16


def content(size_bytes: int) -> bytes:
    """What the file of that size holds."""
    return (b"%015x\n" * (size_bytes // 16) % tuple(range(size_bytes // 16)))[:size_bytes]


def arms(root: Path, engine: str, sizes: Sequence[int]) -> Iterator[Arm]:
    """Both modes for each size, whose files are below `root`."""
    for size_bytes in sizes:
        body = content(size_bytes)
        (root / f"{size_bytes}").write_bytes(body)
        asked = [Exchange(b"GET /%d HTTP/1.1\r\nHost: bench\r\n\r\n" % size_bytes, statuses=[200], body=body)]
        for mode, threshold in MODES.items():

            def start(place: Place, cpu: int, _phase: Phase, threshold: int = threshold) -> MeasuredProcess:
                settings: dict[str, Any] = {
                    "zero_copy_size_min": threshold,
                    "cached_file_size_max": 4 << 20,
                }
                return ServerProcess(
                    None, root=root, engine=engine, cpu=cpu, place=place, access_log="off", **settings
                )  # fmt: skip

            yield Arm(mode, f"cached files, {mode}", start, asked, {"size_bytes": size_bytes})


def measure(results: Results, engine: str, sizes: Sequence[int], blocks: int, seconds: float, place: str | None,
            on_run: Any) -> None:  # fmt: skip
    """Makes all runs, each size and mode in every block."""
    phase = Phase(COST, CONNECTIONS)
    with (
        tempfile.TemporaryDirectory(prefix="batchbridge-zero-copy-") as folder,
        site(place) as (at, note),
    ):
        results.note = note
        experiment = Experiment(at, results, seconds, on_run=on_run)
        plan = [(arm, phase) for arm in arms(Path(folder), engine, sizes)]
        for block in range(blocks):
            for arm, each in shuffled(plan, block):
                experiment.run(arm, each, block)


def costs(results: Results, mode: str) -> dict[int, list[float]]:
    """Server CPU of a request in microseconds, of the valid runs, by size."""
    found: dict[int, list[float]] = {}
    for run in results.of(mode):
        if run.server_cpu_us_per_request is not None:
            found.setdefault(int(run.parameters["size_bytes"]), []).append(run.server_cpu_us_per_request)
    return dict(sorted(found.items()))


def draw(results: Results, path: Path) -> None:
    """Cost by size of both, and their ratio below. Raises BatchBridgeError, OSError."""
    from batchbridge.plot.groups import spread_of
    from batchbridge.plot.sheet import NothingToDrawError, Sheet, footnotes_of
    from batchbridge.plot.style import COLOURS, LINES, MARKERS, logarithmic, styled

    found = {mode: costs(results, mode) for mode in MODES}
    common = sorted(set.intersection(*(set(of_mode) for of_mode in found.values())))
    if not common:
        raise NothingToDrawError("no size has a cost of both, with and without a copy")
    sheet = Sheet(
        "Hits sent without a copy, and with one", columns=2, size_inches=(4.1, 3.3),
        notes=[
            f"{results.settings.get('engine', 'io_uring')} engine, {CONNECTIONS} connections, cached files; medians of "
            f"{max(len(values) for values in found['one copy'].values())} runs with their spread.",
            *notes_of(results.runs),
        ],
        footnotes=footnotes_of([results]),
    )  # fmt: skip
    cost, ratio = sheet.panels
    with styled():
        for number, (mode, by_size) in enumerate(found.items()):
            spreads = [spread_of(values) for values in by_size.values()]
            bars = [[s.middle - s.low for s in spreads], [s.high - s.middle for s in spreads]]
            cost.errorbar(
                [size / KIB for size in by_size], [s.middle for s in spreads], yerr=bars, color=COLOURS[number],
                marker=MARKERS[number], linestyle=LINES[number], label=mode, capsize=2,
            )  # fmt: skip
        ratios = [median(found["zero copy"][size]) / median(found["one copy"][size]) for size in common]
        ratio.plot([size / KIB for size in common], ratios, color=COLOURS[2], marker=MARKERS[2])
        ratio.axhline(1.0, color="#888888", linewidth=1.0)
        for axis, label in ((cost, "server CPU (µs a request)"), (ratio, "zero copy ÷ one copy")):
            axis.set_xscale("log", base=2)
            axis.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
            axis.set_xlabel("body (KiB)")
            axis.set_ylabel(label)
        logarithmic(cost, "y")
        ratio.set_ylim(0, max(1.2, *ratios) * 1.05)
        sheet.legend(*cost.get_legend_handles_labels())
    sheet.save(path)


@click.command()
@click.option("--quick", is_flag=True, help="Fewer sizes, three blocks of short runs: a screen, in three minutes.")
@click.option("--blocks", type=click.IntRange(1, 1000), help="Blocks; each has every size with both.  [20, quick: 3]")
@click.option("--seconds", type=click.FloatRange(0.1, 3600), help="Measured time of a run.  [3, quick: 0.7]")
@click.option("--engine", type=click.Choice(["io_uring", "kernel"]), default="io_uring", show_default=True)
@click.option("--place", type=click.Choice(PLACES), help="Two network namespaces where they can be had, unless given.")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Keep the results in this file.")
@click.option("--plot", type=click.Path(path_type=Path, dir_okay=False), help="Draw into this file (png, svg, pdf).")
@click.option(
    "--draw", "drawn", type=click.Path(path_type=Path, exists=True), help="Measure nothing: draw these results."
)
def main(quick: bool, blocks: int | None, seconds: float | None, engine: str, place: str | None,
         output: Path | None, plot: Path | None, drawn: Path | None) -> None:  # fmt: skip
    """Measure what zero copy saves by size."""
    if drawn is not None:
        results = load(drawn)
    else:
        results = Results("versus", machine=machine.facts(), settings={"engine": engine}, path=output)
        sizes = QUICK_SIZES if quick else SIZES

        def tell(run: Run) -> None:
            cost = run.server_cpu_us_per_request
            figure = run.invalid_reason or ("no cost known" if cost is None else f"{cost:.2f} µs")
            click.echo(f"block {run.block}  {run.parameters['size_bytes']:>9,} B  {run.arm:9}  {figure}")

        measure(results, engine, sizes, blocks or (3 if quick else 20), seconds or (0.7 if quick else 3.0), place, tell)
    for size_bytes, values in costs(results, "one copy").items():
        without = costs(results, "zero copy").get(size_bytes)
        if without:
            click.echo(
                f"{size_bytes:>9,} B  one copy {median(values):8.2f} µs  zero copy {median(without):8.2f} µs  "
                f"ratio {median(without) / median(values):.2f}"
            )
    if plot is not None:
        draw(results, plot)


if __name__ == "__main__":
    main()
