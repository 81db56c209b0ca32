"""``batchbridge bench load``: load on any HTTP server, every answer verified, and what it came to."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from ...cython_ext.load import Exchange
    from ...measure.load import LoadFigures
    from ...measure.traffic import Target

__all__ = ["command"]

VERIFICATIONS = {
    "learn": "status, length and checksum",
    "length": "status and length",
    "none": "status, and what the requests expect",
}

#: Settings that run_load() has by the same name.
SAME_NAMES = ("connections", "seconds", "arrivals", "pipeline", "close", "cpu", "seed")

#: Latencies to which a client adds more than this of its own are not left without a word.
LATE_US_MAX = 1000

ABOVE_0 = click.FloatRange(min=0, min_open=True)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
NEW_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)


@click.command()
@click.argument("url")
@click.option("--connections", type=click.IntRange(1, 32768), default=64, show_default=True, help="Kept at once.")
@click.option("--rate", type=ABOVE_0, metavar="PER_S", help="Open loop: requests a second, whatever the server does.")
@click.option(
    "--arrivals",
    type=click.Choice(["poisson", "constant"]),
    default="poisson",
    show_default=True,
    help="Gaps between the requests of an open loop: exponential, or all the same.",
)
@click.option("--seconds", type=ABOVE_0, default=5.0, show_default=True, help="Measured time.")
@click.option("--warmup", type=click.FloatRange(min=0), default=0.5, show_default=True, help="Seconds before it.")
@click.option(
    "--pipeline", type=click.IntRange(1, 1024), default=1, show_default=True, help="Requests under way on a connection."
)
@click.option("--close", is_flag=True, help="A connection for each request.")
@click.option("--requests", type=FILE, help="JSON lines of requests, instead of the URL's path.")
@click.option("--urls", type=FILE, help="Lines of PATH or WEIGHT PATH, instead of the URL's path.")
@click.option(
    "--verify",
    type=click.Choice(list(VERIFICATIONS)),
    default="learn",
    show_default=True,
    help="Compare each answer with that to the first asking: status, length and checksum (learn), without the "
    "checksum (length); or only with what the file of requests expects, and status 200 (none).",
)
@click.option("--timeout", type=ABOVE_0, default=10.0, show_default=True, help="Seconds without a byte of an answer.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of the order of requests, and of their moments.")
@click.option("--cpu", type=click.IntRange(min=0), help="Core that the client is kept on.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--output", type=NEW_FILE, metavar="FILE.msgpack", help="Save the results, for `batchbridge plot`.")
@click.option("--hgrm", type=NEW_FILE, metavar="FILE.hgrm", help="Save the latencies as a table of percentiles.")
def command(url: str, verify: str, as_json: bool, output: Path | None, hgrm: Path | None, **settings: Any) -> None:
    """Load the server at URL, verify each answer, and print rates and latencies.

    Without --rate each connection sends its next request when it has its answer (closed loop). With --rate requests
    are due at moments drawn beforehand, and latencies count from these (open loop).
    """
    from ...measure.load import LoadError, LoadInterrupted, run_load
    from ...measure.traffic import learn, parse_url

    target = parse_url(url)
    exchanges = _exchanges(target, settings.pop("requests"), settings.pop("urls"), settings["seed"])
    if settings["close"] and settings["pipeline"] > 1:
        raise click.UsageError("--pipeline needs connections that go on, and --close ends them")
    if verify != "none":
        exchanges = learn(target.host, target.port, exchanges, bodies=verify == "learn", timeout_s=settings["timeout"])
    interruption = None
    try:
        figures = run_load(
            target.host,
            target.port,
            exchanges,
            rate_per_s=settings["rate"],
            warmup_s=settings["warmup"],
            timeout_s=settings["timeout"],
            **{name: settings[name] for name in SAME_NAMES},
        )
    except LoadInterrupted as early:
        # What was measured until then is as good as that of a shorter run.
        figures, interruption = early.figures, early
    if output is not None:
        _save(output, figures, {"url": url, "verify": verify, **settings})
    if as_json:
        click.echo(json.dumps(_as_dict(figures), indent=2))
    if not figures.is_valid:
        raise LoadError(f"this is no result: {figures.invalid_reason}")
    if hgrm is not None:
        from ...measure.histogram import to_hgrm
        from ...measure.results import write_atomically

        write_atomically(hgrm, to_hgrm(figures.histogram).encode())
    if not as_json:
        _print(figures, url, VERIFICATIONS[verify], settings)
    if interruption is not None:
        raise interruption


def _exchanges(target: Target, requests: Path | None, urls: Path | None, seed: int) -> list[Exchange]:
    from ...measure.traffic import get, read_requests, read_urls

    if requests is None and urls is None:
        return get(target.path, host=target.authority)
    if requests is not None and urls is not None:
        raise click.UsageError("--requests and --urls are two sources of requests; give one")
    if target.path != "/":
        raise click.UsageError(f"the paths come from the file; give the URL without {target.path}")
    if requests is not None:
        return read_requests(requests, host=target.authority, seed=seed)
    assert urls is not None
    return read_urls(urls, host=target.authority)


def _save(path: Path, figures: LoadFigures, settings: dict[str, Any]) -> None:
    from ...measure.machine import facts
    from ...measure.results import Results, Run

    named = ("connections", "rate", "pipeline", "close")
    parameters = {name: settings[name] for name in named if settings[name] is not None}
    run = Run(
        arm="load",
        block=0,
        parameters={name: float(value) for name, value in parameters.items()},
        valid=figures.is_valid,
        invalid_reason=figures.invalid_reason,
        **figures.run_fields(),
    )
    Results("load", machine=facts(), commands=[figures.command], settings=settings, runs=[run]).save(path)


def _as_dict(figures: LoadFigures) -> dict[str, Any]:
    """The figures; of a run that is no result, only what went wrong."""
    found = dataclasses.asdict(figures)
    if figures.is_valid:
        return found
    kept = ("is_valid", "invalid_reason", "requests", "wrong", "failures", "unanswered", "unissued", "command")
    return {name: found[name] for name in kept}


# --- as a table ------------------------------------------------------------------------------------------------------


def _print(figures: LoadFigures, url: str, verified: str, settings: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]{url}[/]: {_how(settings)}", soft_wrap=True)
    console.print()
    rows = Table(box=None, show_header=False, pad_edge=False)
    at_least = "at least " if figures.saturated and figures.offered_per_s is None else ""
    rows.add_row("requests/s", f"[bold]{at_least}{figures.requests_per_s:,.0f}[/]")
    if figures.offered_per_s is not None:
        rows.add_row("offered/s", f"{figures.offered_per_s:,.0f}")
    rows.add_row("answers", f"{figures.responses:,} in {figures.seconds:.2f} s, all right ({verified})")
    rows.add_row("received", f"{figures.received_bytes / figures.seconds / 1e6:,.1f} MB/s")
    rows.add_row("client", f"{figures.idle_share:.0%} idle, {figures.client_us_per_request:.2f} µs a request")
    if figures.late_us is not None:
        rows.add_row("late", f"p99 {_time(figures.late_us['p99'])}, at most {_time(figures.late_us['max'])}")
    console.print(rows)
    console.print()
    console.print(_latencies(figures))
    for note in _notes(figures):
        console.print(f"\n{note}", soft_wrap=True)


def _how(settings: dict[str, Any]) -> str:
    kept = "one request each" if settings["close"] else "kept"
    words = [f"{settings['connections']:,} connections, {kept}"]
    if settings["pipeline"] > 1:
        words.append(f"up to {settings['pipeline']} requests under way on each")
    loop = "closed loop" if settings["rate"] is None else f"open loop, {settings['rate']:,g}/s {settings['arrivals']}"
    return ", ".join([*words, loop, f"{settings['seconds']:g} s after {settings['warmup']:g} s"])


def _latencies(figures: LoadFigures) -> Any:
    from rich.table import Table

    names = {"p50": "p50", "p90": "p90", "p99": "p99", "p999": "p99.9", "max": "max", "mean": "mean"}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for title in names.values():
        table.add_column(title, justify="right")
    table.add_row("latency", *(_time(figures.latency_us[name]) for name in names))
    if figures.service_us is not None:
        table.add_row("from the sending", *(_time(figures.service_us[name]) for name in names))
    return table


def _time(time_us: float) -> str:
    if time_us < 10_000:
        return f"{time_us:,.0f} µs"
    return f"{time_us / 1e3:,.1f} ms" if time_us < 10_000_000 else f"{time_us / 1e6:,.1f} s"


def _notes(figures: LoadFigures) -> list[str]:
    found = []
    if figures.saturated:
        server = "the server can do at least this" if figures.offered_per_s is None else "the server may be faster"
        found.append(
            f"The client was idle for only {figures.idle_share:.0%} of the time, so these figures may be its own: "
            f"{server}."
        )
    if figures.late_us is not None and figures.late_us["p99"] > LATE_US_MAX:
        found.append(
            f"The client was up to {_time(figures.late_us['p99'])} late (p99), which the latencies include: its core "
            "had other work to do."
        )
    if figures.unissued:
        found.append(
            f"{figures.unissued:,} requests of the schedule were never sent, since no connection was free: the server "
            "did not keep up, and the true latencies are higher."
        )
    return found
