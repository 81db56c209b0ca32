"""What the commands that measure in blocks share: where runs are made, what is seen meanwhile, how it is told."""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import click

if TYPE_CHECKING:
    from ...measure.experiment import Arm, Experiment, Site
    from ...measure.links import Link
    from ...measure.results import Results, Run
    from ...measure.statistics import Interval

__all__ = [
    "ABOVE_0",
    "FILE",
    "INTERRUPTED",
    "NEW_FILE",
    "RATE",
    "SERVERS",
    "blocks_flag",
    "duration",
    "end",
    "finish",
    "handler_threads_flag",
    "heading",
    "json_flag",
    "measuring",
    "missing_notes",
    "place_flags",
    "print_invalid",
    "print_json",
    "print_profiles",
    "profile_notes",
    "progress",
    "results_into",
    "seconds_flag",
    "spread",
    "table",
    "tell",
    "wide_console",
]

Callback = TypeVar("Callback", bound=Callable[..., Any])

FILE_WIDTH = 160
INTERRUPTED = "Interrupted: not all runs were made."

NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
MTU = click.IntRange(1280, 65_535)
ABOVE_0 = click.FloatRange(min=0, min_open=True, max=3600)
RATE = click.FloatRange(min=0, min_open=True, max=10_000_000)

#: Servers that the commands know by name: `measure.servers.NAMES`.
SERVERS = ("epoll", "io_uring", "kernel", "nginx")

json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")

# Of those that have a quick plan, which says what is not given.
blocks_flag = click.option(
    "--blocks", type=click.IntRange(1, 1000), metavar="N", help="Each has every run.  [20, quick: 3]"
)
seconds_flag = click.option("--seconds", type=ABOVE_0, metavar="S", help="Measured time of a run.  [5, quick: 1.5]")

handler_threads_flag = click.option(
    "--handler-threads", type=click.IntRange(0, 1), metavar="N", default=0, show_default=True,
    help="0: handlers run on the engine's thread; 1: on another, as serve does by default.",
)  # fmt: skip


PLACE_WORDS = {
    "namespaces": "Server and client in two network namespaces (root).  [where that can be]",
    "loopback": "Over loopback, where the costs of server and client mix.",
    "one-core": "Over loopback, both on one core: no interrupts between cores, costs and rates of both together.",
}


LINK_WORDS = {
    "tso": "segments are cut after they have left, or before.",
    "gso": "segments are cut just before they leave, or at once.",
    "tx_checksums": "checksums of what is sent are left to the (virtual) card, or computed.",
    "steering": "the kernel receives on the receiver's core, or on the sender's.  [on]",
}


def place_flags(function: Callback) -> Callback:
    """Flags for where server and client run: the command gets `place`, None or a place's name, and `link`, a Link."""

    @functools.wraps(function)
    def with_link(*arguments: Any, **asked: Any) -> Any:
        from ...measure.links import Link

        given = {name: asked.pop(name) for name in ("mtu_bytes", *LINK_WORDS)}
        link = Link(**{name: value for name, value in given.items() if value is not None})
        return function(*arguments, link=link, **asked)

    command: Any = with_link
    for name, words in reversed(LINK_WORDS.items()):
        flag = name.replace("_", "-")
        command = click.option(f"--{flag}/--no-{flag}", name, default=None, help=f"Of the namespaces' link: {words}")(
            command
        )
    command = click.option("--mtu", "mtu_bytes", type=MTU, metavar="BYTES", help="Of the namespaces' link.  [1500]")(
        command
    )
    for place, words in reversed(PLACE_WORDS.items()):
        command = click.option(f"--{place}", "place", flag_value=place, default=None, help=words)(command)
    flagged: Callback = command
    return flagged


class Told(Protocol):
    """Figures of an arm, of any experiment."""

    @property
    def arm(self) -> str: ...
    @property
    def invalid(self) -> list[str]: ...


def results_into(kind: str, settings: dict[str, Any], output: Path) -> Results:
    """Empty results that save themselves. Raises click.UsageError where they could not be."""
    from ...measure.machine import facts
    from ...measure.results import Results

    folder = output.resolve().parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise click.UsageError(f"--output: {folder} is no folder that may be written to")
    return Results(kind, machine=facts(), settings=json.loads(json.dumps(settings)), path=output)


@contextmanager
def measuring(results: Results, place: str | None, link: Link) -> Iterator[tuple[Site, str]]:
    """The site. Ctrl-C, once there are runs, ends the measuring and not the command: what is done is shown."""
    from ...measure.experiment import site
    from ...measure.processes import pinned

    try:
        with site(place, link) as (where, said), pinned(where.client_cpu):
            results.settings.update(where.facts)
            yield where, said
    except KeyboardInterrupt:
        if not results.runs:
            raise
        results.note = INTERRUPTED


@contextmanager
def progress(experiment: Experiment, *, quiet: bool) -> Iterator[Any]:
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
                    bar.print(f"{runs:,} runs, about {duration(estimate_s)}; Ctrl-C keeps what is done")

        def made(run: Run) -> None:
            bar.update(task, advance=1, description=f"block {run.block + 1}, {run.arm}")
            if not run.valid:
                bar.print(f"{run.arm}: invalid, {run.invalid_reason}", soft_wrap=True)

        experiment.on_run = made
        yield announce


def finish(results: Results, notes: Sequence[str]) -> None:
    """Keeps what has to be said of the runs, and these notes, in the file."""
    from ...measure.experiment import notes_of

    results.note = " ".join(note for note in (*notes_of(results.runs), results.note, *notes) if note)
    if results.path is not None:
        results.save(results.path)


def missing_notes(missing: Mapping[str, str]) -> list[str]:
    """Sentences about the arms that cannot be here, out of the reason for each."""
    return [f"Not run: {arm}, since {reason}." for arm, reason in missing.items()]


def profile_notes(asked_for: bool) -> list[str]:
    """Why the server's core cannot be sampled, as a sentence, where that is asked for; nothing where it can be."""
    from ...measure import profile

    reason = profile.why_not() if asked_for else None
    return [] if reason is None else [f"{reason[0].upper()}{reason[1:]}."]


def print_json(results: Results, figures: Sequence[Any]) -> None:
    """All that is known but for the runs, as JSON."""
    from ...measure.batching import plain

    told = {"kind": results.kind, "machine": results.machine, "settings": results.settings, "note": results.note}
    click.echo(json.dumps({**told, "figures": plain(list(figures))}, indent=2))


def heading(results: Results) -> str:
    """Which machine, and where on it: what stands above tables."""
    from ...measure.machine import sentence

    words = [sentence(results.machine), str(results.settings.get("place", ""))]
    link = results.settings.get("link", {})
    if link:
        words.append(f"MTU {link['mtu_bytes']}")
        named = {"tso": "TSO", "gso": "GSO", "tx_checksums": "tx checksums", "steering": "packet steering"}
        words += [f"{name} {'on' if link[key] else 'off'}" for key, name in named.items()]
    return f"[dim]{', '.join(word for word in words if word)}[/]"


def print_invalid(console: Any, figures: Sequence[Told]) -> None:
    """Says which arms had invalid runs, and why."""
    for one in figures:
        if one.invalid:
            more = f" (and {len(one.invalid) - 1} more reasons)" if one.invalid[1:] else ""
            console.print(f"[red]invalid[/] {one.arm}: {one.invalid[0]}{more}", soft_wrap=True)


def tell(
    results: Results, figures: Sequence[Any], output: Path, as_json: bool, print_tables: Callable[[Any], None]
) -> None:
    """Prints the figures: as JSON, or as the tables that a function prints on a console. Raises as :func:`end` does."""
    if as_json:
        print_json(results, figures)
    else:
        console = wide_console()
        console.print(heading(results))
        print_tables(console)
    end(results, output, as_json)


def end(results: Results, output: Path, as_json: bool) -> None:
    """Says how to read the tables. Raises where no run was valid, or not all were made, so that the status tells."""
    from ...measure.experiment import ExperimentError

    if not as_json:
        console = wide_console()
        console.print("\nMedians, with 95% intervals over blocks where there are several. ≥: the client was the limit.")
        for line in (results.note, f"Results: {output}"):
            console.print(line, soft_wrap=True)
    if INTERRUPTED in results.note:
        raise click.Abort
    if not any(run.valid for run in results.runs):
        raise ExperimentError("no run was valid, so there are no figures")


def wide_console() -> Any:
    """Standard output; wide where it is no terminal, so that a file has whole tables."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=FILE_WIDTH)


def table(titles: Sequence[str]) -> Any:
    """A table whose cells are folded where the terminal is narrow: no digit is left out."""
    from rich.table import Table

    rows = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(titles):
        rows.add_column(title, justify="right" if number else "left", no_wrap=number == 0, overflow="fold")
    return rows


def spread(interval: Interval | None, form: str, scale: float = 1.0) -> str:
    """The middle, and the interval where there is one."""
    if interval is None:
        return ""
    low, middle, high = (form.format(value * scale) for value in interval)
    return middle if math.isinf(interval.high) else f"{middle} [dim]{low}–{high}[/]"


def duration(seconds: float) -> str:
    """In words."""
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def print_profiles(console: Any, runs: Sequence[Run]) -> None:
    """Where the server's core spent its time, of those runs that were sampled."""
    from statistics import median

    from ...measure.results import PROFILE_PARTS

    profiles: dict[str, list[dict[str, float]]] = {}
    for run in runs:
        if run.valid and run.profile is not None:
            profiles.setdefault(run.arm, []).append(run.profile)
    if not profiles:
        return
    rows = table(["busy with, %", *(part.replace("_", " ") for part in PROFILE_PARTS)])
    for arm, found in profiles.items():
        rows.add_row(arm, *(f"{100 * median(one[part] for one in found):.0f}" for part in PROFILE_PARTS))
    console.print()
    console.print(rows)
