"""``batchbridge bench overload``: what becomes of a server when more is asked of it than it can do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .shared import (
    NEW_FILE,
    SERVERS,
    blocks_flag,
    finish,
    handler_threads_flag,
    json_flag,
    measuring,
    missing_notes,
    place_flags,
    print_invalid,
    progress,
    results_into,
    seconds_flag,
    spread,
    table,
    tell,
)

if TYPE_CHECKING:
    from ...measure.links import Link
    from ...measure.overload import OverloadFigures


@click.command()
@click.option("--arm", "names", type=click.Choice(SERVERS), multiple=True, help="Repeatable.  [all that are here]")
@click.option("--quick", is_flag=True, help="Fewer loads, three blocks: a screening of some minutes.")
@click.option(
    "--load", "shares", type=click.FloatRange(0.01, 20), metavar="X", multiple=True,
    help="Offered load, as a multiple of the capacity. Repeatable.  [0.5 to 3]",
)  # fmt: skip
@click.option(
    "--kept/--close", "kept", default=False, help="Connections are kept, or each is for one request.  [close]"
)
@click.option(
    "--connections", type=click.IntRange(1, 32_768), metavar="N", default=8192, show_default=True,
    help="Open at once, at most; what finds none free waits with the client.",
)  # fmt: skip
@click.option(
    "--work-us", type=click.IntRange(0, 1_000_000), metavar="N", default=0, show_default=True,
    help="Work of our handler a request.",
)  # fmt: skip
@handler_threads_flag
@blocks_flag
@seconds_flag
@click.option("--output", type=NEW_FILE, default=Path("overload.msgpack"), show_default=True, help="The results.")
@place_flags
@json_flag
def command(
    names: tuple[str, ...], quick: bool, shares: tuple[float, ...], kept: bool, connections: int, work_us: int,
    handler_threads: int, blocks: int | None, seconds: float | None, output: Path, place: str | None, link: Link,
    as_json: bool,
) -> None:  # fmt: skip
    """Offer servers multiples of what they can answer, and tell goodput, errors, latencies, and their own progress.

    Ours answer every request in Python, nginx from files. Each server's capacity is measured in a closed loop first;
    then requests come at multiples of it, whatever becomes of them (open loop). Ctrl-C keeps what is done.
    """
    from ...measure.experiment import Experiment
    from ...measure.overload import FULL, QUICK, estimate_s, perform, summarise
    from ...measure.servers import UsualServers

    plan = QUICK if quick else FULL
    plan = replace(
        plan, connections=connections, close=not kept, blocks=blocks or plan.blocks, seconds=seconds or plan.seconds,
        shares=tuple(sorted(set(shares))) or plan.shares,
    )  # fmt: skip
    settings = {"quick": quick, "work_us": work_us, "handler_threads": handler_threads, **asdict(plan)}
    results = results_into("overload", settings, output)
    with (
        measuring(results, place, link) as (where, said),
        UsualServers(names or SERVERS, handler="python", work_us=work_us, handler_threads=handler_threads) as servers,
    ):
        experiment = Experiment(where, results, plan.seconds)
        with progress(experiment, quiet=as_json) as announce:
            perform(plan, experiment, servers.arms(), lambda runs, those: announce(runs, those, estimate_s(plan, runs)))
    finish(results, [said, *missing_notes(servers.missing)])
    figures = summarise(results.runs)
    tell(results, [asdict(one) for one in figures], output, as_json, lambda console: _print(console, figures))


def _print(console: Any, figures: Sequence[OverloadFigures]) -> None:
    for arm in dict.fromkeys(one.arm for one in figures):
        chosen = [one for one in figures if one.arm == arm]
        rows = table([
            "load", "offered, 1,000/s", "answered", "of capacity", "refused", "lost", "not sent", "threads' share",
            "loops/s", "batches/s", "client idle", "p50 ms", "p99 ms",
        ])  # fmt: skip
        for one in chosen:
            rows.add_row(
                f"{one.load:g}" if one.load else "closed loop",
                "" if one.offered_per_s is None else f"{one.offered_per_s / 1e3:,.1f}",
                spread(one.goodput_per_s, "{:,.1f}", 1e-3),
                spread(one.goodput_share, "{:.2f}"),
                *(f"{one.errors_share[kind]:.1%}" if kind in one.errors_share else ""
                  for kind in ("refused", "unanswered", "unissued")),
                spread(one.server_share, "{:.0%}"),
                *("" if each is None else f"{each:,.0f}" for each in (one.loops_per_s, one.batches_per_s)),
                "" if one.client_idle_share is None else f"{one.client_idle_share:.0%}",
                *("" if each is None else f"{each / 1e3:,.1f}" for each in (one.latency_p50_us, one.latency_p99_us)),
            )  # fmt: skip
        console.print(f"\n[bold]{arm}[/]")
        console.print(rows)
        print_invalid(console, chosen)
