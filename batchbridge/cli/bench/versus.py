"""``batchbridge bench versus``: any servers against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .confounders import compare, confounders_flag, refuse_place
from .shared import (
    ABOVE_0,
    FILE,
    NEW_FILE,
    RATE,
    finish,
    json_flag,
    measuring,
    place_flags,
    print_invalid,
    print_profiles,
    profile_notes,
    progress,
    results_into,
    spread,
    table,
    tell,
)

if TYPE_CHECKING:
    from ...cython_ext.load import Exchange
    from ...measure.links import Link
    from ...measure.versus import ServerFigures


@click.command()
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
@click.option("--rate", type=RATE, metavar="PER_S", help="Open loop, Poisson; latencies count from when one was due.")
@click.option("--may-sleep", is_flag=True, help="Let the server's core sleep: latencies as they are, and no costs.")
@click.option(
    "--blocks", type=click.IntRange(1, 1000), metavar="N", default=5, show_default=True, help="Each has every server."
)
@click.option("--seconds", type=ABOVE_0, metavar="S", default=3.0, show_default=True, help="Measured time of a run.")
@click.option("--profile", "with_profile", is_flag=True, help="Also sample the server's core (perf).")
@click.option("--output", type=NEW_FILE, default=Path("versus.msgpack"), show_default=True, help="The results.")
@confounders_flag
@place_flags
@json_flag
def command(
    commands: tuple[str, ...], path: str, requests: Path | None, urls: Path | None, port: int | None, connections: int,
    close: bool, rate: float | None, may_sleep: bool, blocks: int, seconds: float, with_profile: bool, output: Path,
    confounders: bool, place: str | None, link: Link, as_json: bool,
) -> None:  # fmt: skip
    """Run servers in turn, each COMMAND a fresh process on one core, and set each beside the last.

    A command is quoted as one argument; {host} and {port} in it are filled in. It must stay in the foreground. What a
    server says first to each request is what it has to say later. The last one also runs a second time (A/A), which
    shows what noise alone does. Ctrl-C keeps what is done.
    """
    from ...measure.experiment import Experiment
    from ...measure.versus import AGAIN, arms_of, perform, phase_of, summarise

    notes = profile_notes(with_profile)
    with_profile = with_profile and not notes
    arms = arms_of(commands, _asked(path, requests, urls), port)
    settings = {
        "commands": list(commands), "path": path, "connections": connections, "close": close, "rate_per_s": rate,
        "may_sleep": may_sleep, "blocks": blocks, "seconds": seconds,
    }  # fmt: skip
    phase = phase_of(connections, close=close, rate_per_s=rate, may_sleep=may_sleep)
    if confounders:
        refuse_place(place, link)
        compare(arms, phase, base=commands[-1], again=f"{AGAIN} {commands[-1]}", blocks=blocks, seconds=seconds,
                settings=settings, notes=notes, output=output, as_json=as_json)  # fmt: skip
        return
    results = results_into("versus", settings, output)
    with measuring(results, place, link) as (where, said):
        experiment = Experiment(where, results, seconds, with_profile=with_profile)
        with progress(experiment, quiet=as_json) as announce:
            announce(blocks * len(arms), arms, 0.0)
            perform(experiment, arms, phase, blocks)
    figures = summarise(results.runs, commands[-1])
    finish(results, [*notes, said])

    def print_tables(console: Any) -> None:
        print_servers(console, figures, "last")
        print_profiles(console, results.runs)

    tell(results, [asdict(one) for one in figures], output, as_json, print_tables)


def _asked(path: str, requests: Path | None, urls: Path | None) -> list[Exchange]:
    from ...measure.traffic import get, read_requests, read_urls

    if sum((path != "/", requests is not None, urls is not None)) > 1:
        raise click.UsageError("--path, --requests and --urls are three sources of requests; give one")
    if requests is not None:
        return read_requests(requests)
    return get(path) if urls is None else read_urls(urls)


def print_servers(console: Any, figures: Sequence[ServerFigures], base: str) -> None:
    """A line for each server; `base` is what the ratios' column calls the one that they are to."""
    rows = table([
        "server", "1,000/s", f"× {base}", "CPU µs", f"× {base}", "client µs", "IPIs", "p50 µs", f"× {base}", "p99 µs",
    ])  # fmt: skip
    for one in figures:
        rows.add_row(
            one.arm,
            ("≥ " if one.is_client_limited else "") + spread(one.requests_per_s, "{:,.1f}", 1e-3),
            spread(one.ratio, "{:.2f}"),
            spread(one.cost_us, "{:.2f}"),
            spread(one.cost_ratio, "{:.2f}"),
            *("" if each is None else f"{each:.2f}" for each in (one.client_cost_us, one.ipis_per_request)),
            "" if one.latency_p50_us is None else f"{one.latency_p50_us:,.0f}",
            spread(one.latency_p50_ratio, "{:.2f}"),
            "" if one.latency_p99_us is None else f"{one.latency_p99_us:,.0f}",
        )
    console.print()
    console.print(rows)
    print_invalid(console, figures)
