"""What a hit costs sent without a copy, and with one, by size: ``python -P -m bench.zero_copy``.

The same server, whose settings make the arms; cached files, and the same code above the socket:

- *zero copy*: every response leaves from the arena without a copy, in pieces of 64 KiB at most (the last piece of a
  response may be shorter than a KiB, and is copied then);
- *one copy*: the same sends, which the kernel copies into the socket;
- *two copies*, up to 8 KiB: what the server does with small responses, which are copied into the scratch first, so that
  those of one connection leave with one send.

A run whose counters say something else than its arm is called is invalid. Fresh processes, in random order within
blocks; CPU by an idle loop on each core (README, "Figures"). The client's core counts, too: between two namespaces and
over loopback the kernel copies at the receiver what the sender did not, and where packets are steered to the client's
core it pays for that. Its loop also keeps that core awake: a core that sleeps is woken by the server, at the server's
cost, and an arm that keeps the client busier would seem cheaper for it. How often the server's core is interrupted by
the other, and how many turns the server makes, is told beside the costs. `--quick` takes three minutes and is a screen;
`--draw FILE` draws results that were kept.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import click

from batchbridge.cython_ext.load import Exchange
from batchbridge.measure import machine
from batchbridge.measure.experiment import (
    COST,
    PLACES,
    Arm,
    Counted,
    Experiment,
    Phase,
    is_client_limited,
    notes_of,
    shuffled,
    site,
)
from batchbridge.measure.namespaces import Place
from batchbridge.measure.processes import MeasuredProcess, ServerProcess
from batchbridge.measure.results import Results, Run, load

KIB = 1024
SIZES = tuple(KIB << power for power in range(11))
QUICK_SIZES = tuple(size * KIB for size in (1, 4, 8, 16, 32, 64, 256, 1024))
ZERO, ONE, TWO = "zero copy", "one copy", "two copies"
#: The settings by which each arm is made: from which size on nothing is copied, and up to which size twice.
MODES = {
    ZERO: {"zero_copy_size_min": KIB, "copied_size_max": KIB},
    ONE: {"zero_copy_size_min": 1024 * KIB, "copied_size_max": KIB},
    TWO: {"zero_copy_size_min": 1024 * KIB, "copied_size_max": 16 * KIB},
}
#: Larger files are not in one piece of plain memory, and are never copied twice.
TWO_COPIES_SIZE_BYTES_MAX = 8 * KIB
CONNECTIONS = 16
#: Of the requests, those that may be answered in another way: the first ones, whose file is being read.
STRAYS_MAX = 0.01


def content(size_bytes: int) -> bytes:
    """What the file of that size holds."""
    return (b"%015x\n" * (size_bytes // 16) % tuple(range(size_bytes // 16)))[:size_bytes]


def mode_fault(mode: str, counted: Counted) -> str | None:
    """Why these counters are not those of a run of that mode; None: they are."""
    requests, pieces, without = counted.read or 0, counted.pieces, counted.zero_copy
    few = STRAYS_MAX * requests
    told = f"of {requests:,} answers {pieces:,} pieces were sent by themselves, {without:,} of them without a copy"
    # Each answer's last piece may be too short.
    if mode == ZERO and (pieces < requests - few or without < max(requests, pieces - requests) - few):
        return f"this was not {ZERO}: {told}"
    if mode == ONE and (pieces < requests - few or without):
        return f"this was not {ONE}: {told}"
    if mode == TWO and (pieces > few or without):
        return f"these were not {TWO}: {told}"
    return None


def arms(root: Path, engine: str, sizes: Sequence[int]) -> Iterator[Arm]:
    """All modes that there are for each size, whose files are below `root`."""

    def start(place: Place, cpu: int, _phase: Phase, settings: dict[str, Any]) -> MeasuredProcess:
        return ServerProcess(
            None, root=root, engine=engine, cpu=cpu, place=place, access_log="off", cached_file_size_max=4 << 20,
            **settings,
        )  # fmt: skip

    for size_bytes in sizes:
        body = content(size_bytes)
        (root / f"{size_bytes}").write_bytes(body)
        asked = [Exchange(b"GET /%d HTTP/1.1\r\nHost: bench\r\n\r\n" % size_bytes, statuses=[200], body=body)]
        for mode, settings in MODES.items():
            if mode != TWO or size_bytes <= TWO_COPIES_SIZE_BYTES_MAX:
                yield Arm(
                    mode, f"cached files, {mode}", partial(start, settings=settings), asked,
                    {"size_bytes": size_bytes}, check=partial(mode_fault, mode),
                )  # fmt: skip


def measure(results: Results, engine: str, sizes: Sequence[int], blocks: int, seconds: float, place: str | None,
            on_run: Any) -> None:  # fmt: skip
    """Makes all runs, each size and mode in every block."""
    phase = Phase(COST, CONNECTIONS, client_loop=True)
    with (
        tempfile.TemporaryDirectory(prefix="batchbridge-zero-copy-") as folder,
        site(place) as (at, note),
    ):
        results.note = note
        results.settings.update(at.facts)
        experiment = Experiment(at, results, seconds, on_run=on_run)
        plan = [(arm, phase) for arm in arms(Path(folder), engine, sizes)]
        for block in range(blocks):
            for arm, each in shuffled(plan, block):
                experiment.run(arm, each, block)


# What is told --------------------------------------------------------------------------------------------------------


def server_cost(run: Run) -> float | None:
    """Microseconds of the server's core by request."""
    return run.server_cpu_us_per_request


def client_cost(run: Run) -> float | None:
    """Microseconds of the client's core by request, all that the kernel did there included; None without its loop."""
    return run.client_core_us_per_request


def both_cost(run: Run) -> float | None:
    """The sum of both."""
    server, client = server_cost(run), client_cost(run)
    return None if server is None or client is None else server + client


Cost = Callable[[Run], float | None]


def costs(results: Results, mode: str, cost: Cost = server_cost) -> dict[int, list[float]]:
    """The cost of a request in microseconds, of the valid runs, by size."""
    found: dict[int, list[float]] = {}
    for run in results.of(mode):
        if (value := cost(run)) is not None:
            found.setdefault(int(run.parameters["size_bytes"]), []).append(value)
    return dict(sorted(found.items()))


def ratios(results: Results, cost: Cost, mode: str = ZERO, other: str = ONE) -> dict[int, float]:
    """What one mode costs ÷ what the other does, by size, where both are known: of medians."""
    these, those = costs(results, mode, cost), costs(results, other, cost)
    return {size: median(these[size]) / median(those[size]) for size in these if median(those.get(size, [0.0])) > 0}


def turns_words(runs: Sequence[Run]) -> str:
    """What explains differences that copies do not: turns of the server's loop, and interrupts, by request."""
    turns = [run.loops_per_s / run.requests_per_s for run in runs if run.loops_per_s and run.requests_per_s]
    interrupts = [run.ipis_per_request for run in runs if run.ipis_per_request is not None]
    words = [
        f"{median(values):.2f} {name}" for values, name in ((turns, "turns"), (interrupts, "interrupts")) if values
    ]
    return f" ({', '.join(words)} a request)" if words else ""


def table(results: Results) -> Iterator[str]:
    """For each size its costs, server's + client's core, a line for each mode, and the ratios to one copy."""
    sides = (server_cost, client_cost)
    for size in sorted(ratios(results, server_cost)):
        told = [
            f"{name} {ratio[size]:.2f}"
            for name, ratio in (("server", ratios(results, server_cost)), ("both", ratios(results, both_cost)))
            if size in ratio
        ]
        yield f"{size // KIB:>5,} KiB  {ZERO} ÷ {ONE}, {', '.join(told)}"
        for mode in MODES:
            runs = [run for run in results.of(mode) if run.parameters["size_bytes"] == size]
            found = [costs(results, mode, cost).get(size) for cost in sides]
            words = " + ".join(f"{median(values):.1f}" for values in found if values)
            if words:
                yield f"           {mode:10}  {words} µs{turns_words(runs)}"


def limits_note(results: Results) -> list[str]:
    """What has to be said where the client had no time left: a sentence, or none."""
    valid = [run for run in results.runs if run.valid]
    limited = sum(is_client_limited(run) for run in valid)
    if not limited:
        return []
    return [f"In {limited} of {len(valid)} runs the client's core was the limit; costs are by request all the same."]


def draw(results: Results, path: Path) -> None:
    """Cost by size on both cores, and the ratio beside it. Raises BatchBridgeError, OSError."""
    from batchbridge.plot.groups import spread_of
    from batchbridge.plot.sheet import NothingToDrawError, Sheet, footnotes_of
    from batchbridge.plot.style import COLOURS, LINES, MARKERS, logarithmic, styled

    if not ratios(results, server_cost):
        raise NothingToDrawError("no size has a cost of both, with and without a copy")
    found = {mode: costs(results, mode) for mode in MODES}
    sheet = Sheet(
        "Hits sent without a copy, and with one", columns=3, size_inches=(3.7, 3.3),
        notes=[
            f"{results.settings.get('engine', 'io_uring')} engine, {CONNECTIONS} connections, cached files; medians of "
            f"{max(len(values) for values in found[ONE].values())} runs with their spread.",
            *limits_note(results),
            *notes_of(results.runs),
        ],
        footnotes=footnotes_of([results]),
    )  # fmt: skip
    *cost_panels, ratio_panel = sheet.panels
    with styled():
        for panel, cost, title in zip(cost_panels, (server_cost, client_cost), ("server", "client"), strict=True):
            panel.set_title(f"the {title}'s core")
            for number, mode in enumerate(MODES):
                by_size = costs(results, mode, cost)
                if not by_size:
                    continue
                spreads = [spread_of(values) for values in by_size.values()]
                bars = [[s.middle - s.low for s in spreads], [s.high - s.middle for s in spreads]]
                panel.errorbar(
                    [size / KIB for size in by_size], [s.middle for s in spreads], yerr=bars, color=COLOURS[number],
                    marker=MARKERS[number], linestyle=LINES[number], label=mode, capsize=2,
                )  # fmt: skip
            panel.set_ylabel("CPU (µs a request)")
            logarithmic(panel, "y")
        ratio_panel.set_title(f"{ZERO} ÷ {ONE}")
        largest = 1.0
        for number, (cost, label) in enumerate(
            ((server_cost, "server"), (client_cost, "client"), (both_cost, "both")), len(MODES)
        ):
            ratio = ratios(results, cost)
            if ratio:
                ratio_panel.plot(
                    [size / KIB for size in ratio], list(ratio.values()), color=COLOURS[number],
                    marker=MARKERS[number], linestyle=LINES[number - len(MODES)], label=label,
                )  # fmt: skip
                largest = max(largest, *ratio.values())
        ratio_panel.axhline(1.0, color="#888888", linewidth=1.0)
        ratio_panel.set_ylim(0, largest * 1.15)
        ratio_panel.set_ylabel("ratio of costs")
        for panel in sheet.panels:
            panel.set_xscale("log", base=2)
            panel.set_xticks([1, 4, 16, 64, 256, 1024], ["1", "4", "16", "64", "256", "1,024"])
            panel.set_xlabel("body (KiB)")
        legends = [panel.get_legend_handles_labels() for panel in (cost_panels[0], ratio_panel)]
        sheet.legend(*([each for legend in legends for each in legend[part]] for part in range(2)))
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
            told = [f"{cost:.2f}" for cost in (server_cost(run), client_cost(run)) if cost is not None]
            figure = run.invalid_reason or f"{' + '.join(told) or 'unknown'} µs{turns_words([run])}"
            click.echo(f"block {run.block}  {run.parameters['size_bytes']:>9,} B  {run.arm:10}  {figure}")

        measure(results, engine, sizes, blocks or (3 if quick else 20), seconds or (0.7 if quick else 3.0), place, tell)
    for line in table(results):
        click.echo(line)
    for note in limits_note(results):
        click.echo(note)
    if plot is not None:
        draw(results, plot)


if __name__ == "__main__":
    main()
