"""``batchbridge bench``: measures, and says how sure it is."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .documents import command as documents
from .load import command as load

if TYPE_CHECKING:
    from ..cython_ext.load import Exchange
    from ..measure.batching import ArmFigures, Plan
    from ..measure.experiment import Arm, Experiment
    from ..measure.results import Results, Run
    from ..measure.statistics import Interval
    from ..measure.versus import ServerFigures

FILE_WIDTH = 160
INTERRUPTED = "Interrupted: not all runs were made."

NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
ABOVE_0 = click.FloatRange(min=0, min_open=True, max=3600)


@click.group()
def command() -> None:
    """Measure servers: load on one, several against each other, or what batching gains."""


command.add_command(load, "load")
command.add_command(documents, "documents")

place_flag = click.option(
    "--namespaces/--loopback",
    "namespaced",
    default=None,
    help="Server and client in two network namespaces (root), or over loopback, where their costs mix.  "
    "[namespaces, where that can be]",
)
json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


# --- the question -----------------------------------------------------------------------------------------------------


@command.command()
@click.option("--quick", is_flag=True, help="Fewer arms, two minutes: a screening.")
@click.option("--blocks", type=click.IntRange(1, 1000), metavar="N", help="Blocks; each has every arm.  [20, quick: 3]")
@click.option("--seconds", type=ABOVE_0, metavar="S", help="Measured time of a run.  [5, quick: 1.5]")
@click.option(
    "--connections", type=click.IntRange(1, 32_768), metavar="N", multiple=True,
    help="Of the closed loops. Repeatable.  [64 and 1024, quick: 256]",
)  # fmt: skip
@click.option(
    "--size", "sizes", type=click.IntRange(1, 1024), metavar="N", multiple=True,
    help="Batch sizes: every pair of them is an arm. Repeatable.  [1, 8, 64 and 256]",
)  # fmt: skip
@click.option(
    "--work-us", "works_us", type=click.IntRange(0, 1_000_000), metavar="N", multiple=True,
    help="Work of the handler a request. Repeatable.  [0, 10 and 100, quick: 0]",
)  # fmt: skip
@click.option(
    "--handler", type=click.Choice(["python", "vector"]), default="python", show_default=True,
    help="One by one in Python, or one array operation a batch.",
)  # fmt: skip
@click.option(
    "--handler-threads", type=click.IntRange(0, 1), metavar="N", default=0, show_default=True,
    help="0: handlers run on the engine's thread; 1: on another, as serve does by default.",
)  # fmt: skip
@click.option("--profile", "with_profile", is_flag=True, help="Also sample the server's core (perf).")
@click.option("--output", type=NEW_FILE, default=Path("batching.msgpack"), show_default=True, help="The results.")
@place_flag
@json_flag
def batching(quick: bool, output: Path, namespaced: bool | None, as_json: bool, **asked: Any) -> None:
    """How close does batching get to kernel-mode performance?

    Unbatched user mode (U0, U1), batches of every size (B), the same from inside the kernel (BK) and kernel mode (K0,
    K1) where this machine has it, and nginx where it is installed: each a fresh process on one core, in random order
    within blocks, every answer compared. Ctrl-C keeps what is done.
    """
    from ..measure import profile
    from ..measure.arms import QuestionArms
    from ..measure.batching import FULL, QUICK, estimate_s, perform, summarise
    from ..measure.experiment import Experiment

    plan = _plan(QUICK if quick else FULL, asked)
    notes = []
    if plan.with_profile and (reason := profile.why_not()) is not None:
        notes.append(f"{reason[0].upper()}{reason[1:]}.")
        plan = replace(plan, with_profile=False)
    results = _results("batching", {"quick": quick, **asdict(plan)}, output)
    with (
        _measuring(results, namespaced) as (where, said),
        QuestionArms(plan.handler, plan.handler_threads, plan.pairs) as arms,
    ):
        experiment = Experiment(where, results, plan.seconds, with_profile=plan.with_profile)
        with _progress(experiment, quiet=as_json) as announce:
            perform(plan, experiment, arms, lambda runs, those: announce(runs, those, estimate_s(plan, runs)))
    notes += [said, *(f"Not run: {arm}, since {reason}." for arm, reason in arms.missing.items())]
    figures = summarise(results.runs)
    _finish(results, [note for note in notes if note], as_json, [one.as_dict() for one in figures])
    if not as_json:
        _print_batching(figures, results.runs)
    _end(results, output, as_json)


def _plan(default: Plan, asked: dict[str, Any]) -> Plan:
    sizes = asked.pop("sizes")
    changes = {name: value for name, value in asked.items() if value not in (None, ())}
    if sizes:
        # The pair (1, 1) is always among them: it is the A/A arm.
        pairs = {(1, 1), *((size_in, size_out) for size_in in sizes for size_out in sizes)}
        changes["pairs"] = tuple(sorted(pairs))
    for name in ("connections", "works_us"):
        if name in changes:
            changes[name] = tuple(sorted(set(changes[name])))
    return replace(default, **changes)


def _print_batching(figures: Sequence[ArmFigures], runs: Sequence[Run]) -> None:
    console = _console()
    for work_us, connections in dict.fromkeys((one.work_us, one.connections) for one in figures):
        chosen = [one for one in figures if (one.work_us, one.connections) == (work_us, connections)]
        kernels = list(dict.fromkeys(kernel for one in chosen for kernel in one.gaps))
        titles = ["arm", "mean batch", "1,000/s", "× U1", "CPU µs", *(f"G ({kernel})" for kernel in kernels)]
        rows = _table([*titles, "client µs", "IPIs", "p50 µs", "p99 µs"])
        for one in chosen:
            rows.add_row(
                one.arm,
                "" if one.mean_batch_size is None else f"{one.mean_batch_size:.1f}",
                ("≥ " if one.is_client_limited else "") + _spread(one.requests_per_s, "{:,.1f}", 1e-3),
                _spread(one.ratio_to_u1, "{:.2f}"),
                _spread(one.cost_us, "{:.2f}"),
                *(_gap(one, kernel) for kernel in kernels),
                *("" if each is None else f"{each:.2f}" for each in (one.client_cost_us, one.ipis_per_request)),
                *("" if each is None else f"{each:,.0f}" for each in (one.latency_p50_us, one.latency_p99_us)),
            )
        work = f", {work_us:g} µs of work a request" if work_us else ""
        console.print(f"\n[bold]{connections:,.0f} connections{work}[/]")
        console.print(rows)
        _print_invalid(console, chosen)
    _print_profiles(console, runs)


def _gap(one: ArmFigures, kernel: str) -> str:
    if kernel not in one.gaps:
        return ""
    gap = one.gaps[kernel]
    return "undefined" if gap is None else _spread(gap, "{:.0%}")


def _print_profiles(console: Any, runs: Sequence[Run]) -> None:
    from statistics import median

    from ..measure.results import PROFILE_PARTS

    profiles: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        if run.valid and run.profile is not None:
            profiles.setdefault(run.arm, []).append(run.profile)
    if not profiles:
        return
    rows = _table(["busy with, %", *(part.replace("_", " ") for part in PROFILE_PARTS)])
    for arm, found in profiles.items():
        rows.add_row(arm, *(f"{100 * median(one[part] for one in found):.0f}" for part in PROFILE_PARTS))
    console.print()
    console.print(rows)


# --- any servers ------------------------------------------------------------------------------------------------------


@command.command()
@click.argument("commands", metavar="COMMAND...", nargs=-1, required=True)
@click.option("--path", default="/", show_default=True, help="What to ask for.")
@click.option("--requests", type=FILE, help="JSON lines of requests, instead of the path.")
@click.option("--urls", type=FILE, help="Lines of PATH or WEIGHT PATH, instead of the path.")
@click.option(
    "--port", type=click.IntRange(1, 65_535), metavar="N", help="Where all listen, if their commands do not say {port}."
)
@click.option(
    "--connections", type=click.IntRange(1, 32_768), metavar="N", default=64, show_default=True, help="Kept at once."
)
@click.option("--close", is_flag=True, help="A connection for each request.")
@click.option(
    "--blocks", type=click.IntRange(1, 1000), metavar="N", default=5, show_default=True, help="Each has every server."
)
@click.option("--seconds", type=ABOVE_0, metavar="S", default=3.0, show_default=True, help="Measured time of a run.")
@click.option("--profile", "with_profile", is_flag=True, help="Also sample the server's core (perf).")
@click.option("--output", type=NEW_FILE, default=Path("versus.msgpack"), show_default=True, help="The results.")
@place_flag
@json_flag
def versus(
    commands: tuple[str, ...], path: str, requests: Path | None, urls: Path | None, port: int | None, connections: int,
    close: bool, blocks: int, seconds: float, with_profile: bool, output: Path, namespaced: bool | None, as_json: bool,
) -> None:  # fmt: skip
    """Run servers in turn, each COMMAND a fresh process on one core, and set each beside the last.

    A command is quoted as one argument; {host} and {port} in it are filled in. It must stay in the foreground. What a
    server says first to each request is what it has to say later. The last one also runs a second time (A/A), which
    shows what noise alone does. Ctrl-C keeps what is done.
    """
    from ..measure import profile
    from ..measure.experiment import CAPACITY, Experiment, Phase
    from ..measure.versus import arms_of, perform, summarise

    notes = []
    if with_profile and (reason := profile.why_not()) is not None:
        notes.append(f"{reason[0].upper()}{reason[1:]}.")
        with_profile = False
    arms = arms_of(commands, _asked(path, requests, urls), port)
    settings = {"commands": list(commands), "path": path, "connections": connections, "close": close,
                "blocks": blocks, "seconds": seconds}  # fmt: skip
    results = _results("versus", settings, output)
    with _measuring(results, namespaced) as (where, said):
        experiment = Experiment(where, results, seconds, with_profile=with_profile)
        with _progress(experiment, quiet=as_json) as announce:
            announce(blocks * len(arms), arms, 0.0)
            perform(experiment, arms, Phase(CAPACITY, connections, close=close), blocks)
    figures = summarise(results.runs, commands[-1])
    _finish(results, [note for note in (*notes, said) if note], as_json, [asdict(one) for one in figures])
    if not as_json:
        _print_versus(figures, results.runs)
    _end(results, output, as_json)


def _asked(path: str, requests: Path | None, urls: Path | None) -> list[Exchange]:
    from ..measure.traffic import get, read_requests, read_urls

    if sum((path != "/", requests is not None, urls is not None)) > 1:
        raise click.UsageError("--path, --requests and --urls are three sources of requests; give one")
    if requests is not None:
        return read_requests(requests)
    return get(path) if urls is None else read_urls(urls)


def _print_versus(figures: Sequence[ServerFigures], runs: Sequence[Run]) -> None:
    console = _console()
    rows = _table(["server", "1,000/s", "× last", "CPU µs", "× last", "p50 µs", "p99 µs"])
    for one in figures:
        rows.add_row(
            one.arm,
            ("≥ " if one.is_client_limited else "") + _spread(one.requests_per_s, "{:,.1f}", 1e-3),
            _spread(one.ratio, "{:.2f}"),
            _spread(one.cost_us, "{:.2f}"),
            _spread(one.cost_ratio, "{:.2f}"),
            *("" if each is None else f"{each:,.0f}" for each in (one.latency_p50_us, one.latency_p99_us)),
        )
    console.print()
    console.print(rows)
    _print_invalid(console, figures)
    _print_profiles(console, runs)


# --- what both do -----------------------------------------------------------------------------------------------------


def _results(kind: str, settings: dict[str, Any], output: Path) -> Results:
    import os

    from ..measure.machine import facts
    from ..measure.results import Results

    folder = output.resolve().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise click.UsageError(f"--output: {folder} is no folder that may be written to")
    return Results(kind, machine=facts(), settings=json.loads(json.dumps(settings)), path=output)


@contextmanager
def _measuring(results: Results, namespaced: bool | None) -> Iterator[tuple[Any, str]]:
    """The site. Ctrl-C, once there are runs, ends the measuring and not the command: what is done is shown."""
    from ..measure.experiment import site
    from ..measure.processes import pinned

    try:
        with site(namespaced=namespaced) as (where, said), pinned(where.client_cpu):
            results.settings["namespaces"] = not where.pair.is_loopback
            yield where, said
    except KeyboardInterrupt:
        if not results.runs:
            raise
        results.note = INTERRUPTED


@contextmanager
def _progress(experiment: Experiment, *, quiet: bool) -> Iterator[Any]:
    """A bar with the time left, on standard error; gives a function that is told of the runs to come."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=None)

        def announce(runs: int, arms: Sequence[Arm], estimate_s: float) -> None:
            bar.update(task, total=runs)
            if not quiet and console.is_terminal:
                for arm in {arm.name: arm for arm in arms}.values():
                    bar.print(f"{arm.name:10} {arm.what}")
                if estimate_s:
                    bar.print(f"{runs:,} runs, about {_duration(estimate_s)}; Ctrl-C keeps what is done")

        def made(run: Run) -> None:
            bar.update(task, advance=1, description=f"block {run.block + 1}, {run.arm}")
            if not run.valid:
                bar.print(f"{run.arm}: invalid, {run.invalid_reason}", soft_wrap=True)

        experiment.on_run = made
        yield announce


def _finish(results: Results, notes: Sequence[str], as_json: bool, figures: Sequence[Any]) -> None:
    """Keeps the notes in the file; with --json prints all."""
    from ..measure.batching import plain
    from ..measure.experiment import notes_of

    results.note = " ".join([*notes_of(results.runs), *([results.note] if results.note else []), *notes])
    if results.path is not None:
        results.save(results.path)
    if as_json:
        told = {"kind": results.kind, "machine": results.machine, "settings": results.settings, "note": results.note}
        click.echo(json.dumps({**told, "figures": plain(list(figures))}, indent=2))


def _print_invalid(console: Any, figures: Sequence[ArmFigures | ServerFigures]) -> None:
    for one in figures:
        if one.invalid:
            more = f" (and {len(one.invalid) - 1} more reasons)" if one.invalid[1:] else ""
            console.print(f"[red]invalid[/] {one.arm}: {one.invalid[0]}{more}", soft_wrap=True)


def _end(results: Results, output: Path, as_json: bool) -> None:
    """Says how to read the tables. Raises where no run was valid, or not all were made, so that the status tells."""
    from ..measure.experiment import ExperimentError

    if not as_json:
        console = _console()
        console.print("\nMedians, with 95% intervals over blocks where there are several. ≥: the client was the limit.")
        for line in (results.note, f"Results: {output}"):
            console.print(line, soft_wrap=True)
    if INTERRUPTED in results.note:
        raise click.Abort
    if not any(run.valid for run in results.runs):
        raise ExperimentError("no run was valid, so there are no figures")


def _console() -> Any:
    """Standard output; wide where it is no terminal, so that a file has whole tables."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=FILE_WIDTH)


def _table(titles: Sequence[str]) -> Any:
    """A table whose cells are folded where the terminal is narrow: no digit is left out."""
    from rich.table import Table

    rows = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(titles):
        rows.add_column(title, justify="right" if number else "left", no_wrap=number == 0, overflow="fold")
    return rows


def _spread(interval: Interval | None, form: str, scale: float = 1.0) -> str:
    """The middle, and the interval where there is one."""
    if interval is None:
        return ""
    low, middle, high = (form.format(value * scale) for value in interval)
    return middle if math.isinf(interval.high) else f"{middle} [dim]{low}–{high}[/]"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
