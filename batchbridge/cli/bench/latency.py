"""``batchbridge bench latency``: how long servers take to answer, alone and at fixed rates."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .shared import (
    NEW_FILE,
    RATE,
    SERVERS,
    blocks_flag,
    finish,
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
    from ...measure.latency import LatencyFigures
    from ...measure.links import Link


@click.command()
@click.option("--arm", "names", type=click.Choice(SERVERS), multiple=True,
              help="The first is what others are set beside. Repeatable.  [all, epoll first]")  # fmt: skip
@click.option("--python", "in_python", is_flag=True, help="Ours answer by a handler, and not from files.")
@click.option("--quick", is_flag=True, help="Three blocks of short runs: a screening.")
@click.option("--rate", "rates", type=RATE, metavar="PER_S", multiple=True,
              help="Of an open loop. Repeatable.  [20, 50 and 80% of what the slowest can do]")  # fmt: skip
@click.option("--connections", type=click.IntRange(1, 32_768), metavar="N", default=64, show_default=True,
              help="Of the open loops.")  # fmt: skip
@blocks_flag
@seconds_flag
@click.option("--output", type=NEW_FILE, default=Path("latency.msgpack"), show_default=True, help="The results.")
@place_flags
@json_flag
def command(
    names: tuple[str, ...], in_python: bool, quick: bool, rates: tuple[float, ...], connections: int,
    blocks: int | None, seconds: float | None, output: Path, place: str | None, link: Link, as_json: bool,
) -> None:  # fmt: skip
    """One connection alone, and open loops at fixed rates, with the server's core free to sleep.

    Latencies of open loops count from when a request was due. Every answer is compared. Ctrl-C keeps what is done.
    """
    from ...measure.experiment import Experiment
    from ...measure.latency import FULL, QUICK, estimate_s, perform, summarise
    from ...measure.servers import UsualServers

    plan = QUICK if quick else FULL
    plan = replace(
        plan, connections=connections, rates_per_s=tuple(sorted(set(rates))), blocks=blocks or plan.blocks,
        seconds=seconds or plan.seconds,
    )  # fmt: skip
    results = results_into("latency", {"quick": quick, "python": in_python, **asdict(plan)}, output)
    with (
        measuring(results, place, link) as (where, said),
        UsualServers(names or SERVERS, handler="python" if in_python else None) as servers,
    ):
        experiment = Experiment(where, results, plan.seconds)
        with progress(experiment, quiet=as_json) as announce:
            perform(plan, experiment, servers.arms(), lambda runs, those: announce(runs, those, estimate_s(plan, runs)))
    finish(results, [said, *missing_notes(servers.missing)])
    base = next(name for name in (*names, *SERVERS) if name not in servers.missing)
    figures = summarise(results.runs, base)
    tell(results, [asdict(one) for one in figures], output, as_json, lambda console: _print(console, figures, base))


def _print(console: Any, figures: Sequence[LatencyFigures], base: str) -> None:
    from ...measure.latency import PERCENTILES

    for rate in dict.fromkeys(one.rate_per_s for one in figures):
        chosen = [one for one in figures if one.rate_per_s == rate]
        titles = [f"{name.replace('p999', 'p99.9')} µs" for name in PERCENTILES]
        rows = table(["server", *titles, f"p50 × {base}", f"p99 × {base}"])
        for one in chosen:
            rows.add_row(
                one.arm,
                *(spread(one.latency_us.get(name), "{:,.0f}") for name in PERCENTILES),
                *(spread(one.ratios.get(name), "{:.2f}") for name in ("p50", "p99")),
            )
        console.print(f"\n[bold]{'one connection alone' if rate is None else f'{rate:,.0f} requests/s'}[/]")
        console.print(rows)
        print_invalid(console, chosen)
