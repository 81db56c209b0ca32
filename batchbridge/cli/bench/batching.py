"""``batchbridge bench batching``: the question's arms against each other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .confounders import compare, confounders_flag, refuse_place
from .shared import (
    NEW_FILE,
    finish,
    handler_threads_flag,
    json_flag,
    measuring,
    missing_notes,
    place_flags,
    print_invalid,
    print_profiles,
    profile_notes,
    progress,
    results_into,
    seconds_flag,
    spread,
    table,
    tell,
)

if TYPE_CHECKING:
    from rich.console import Console

    from ...measure.batching import ArmFigures, Plan, RateFigures
    from ...measure.links import Link
    from ...measure.results import Run


@click.command()
@click.option("--quick", is_flag=True, help="Fewer arms, two minutes: a screening.")
@click.option("--blocks", type=click.IntRange(1, 1000), metavar="N", help="Blocks; each has every arm.  [20, quick: 3]")
@seconds_flag
@click.option(
    "--connections", type=click.IntRange(1, 32_768), metavar="N", multiple=True,
    help="Of the closed loops. Repeatable.  [64 and 1024, quick: 256]",
)  # fmt: skip
@click.option(
    "--rate-share", "rate_shares", type=click.FloatRange(0, 1, min_open=True, max_open=True), metavar="S",
    multiple=True,
    help="Open loops, whose slope tells the cost, at this share of what the slowest arm can do. Repeatable, at least "
    "two.  [0.2, 0.4, 0.6 and 0.8, quick: none, and the cost is that at saturation]",
)  # fmt: skip
@click.option(
    "--arm", "arms", metavar="NAME", multiple=True, help="Only this arm, such as U1 or 'B(64,64)'. Repeatable.  [all]"
)
@click.option(
    "--size", "sizes", type=click.IntRange(1, 1024), metavar="N", multiple=True,
    help="Batch sizes: every pair of them is an arm. Repeatable.  [1, 8, 64 and 256]",
)  # fmt: skip
@click.option(
    "--work-us", "works_us", type=click.IntRange(0, 1_000_000), metavar="N", multiple=True,
    help="Work of the handler a request. Repeatable.  [0, 10 and 100, quick: 0]",
)  # fmt: skip
@click.option(
    "--handler", type=click.Choice(["native", "python", "vector"]), default="python", show_default=True,
    help="Compiled, one by one in Python, or one array operation a batch.",
)  # fmt: skip
@handler_threads_flag
@click.option("--profile", "with_profile", is_flag=True, help="Also sample the server's core (perf).")
@click.option("--output", type=NEW_FILE, default=Path("batching.msgpack"), show_default=True, help="The results.")
@confounders_flag
@place_flags
@json_flag
def command(
    quick: bool, output: Path, confounders: bool, place: str | None, link: Link, as_json: bool, **asked: Any
) -> None:
    """How close does batching get to kernel-mode performance?

    Unbatched user mode (U0, U1), batches of every size (B), the same from inside the kernel (BK) and kernel mode (K0,
    K1) where this machine has it, and nginx where it is installed: each a fresh process on one core, in random order
    within blocks, every answer compared. Ctrl-C keeps what is done.
    """
    from ...measure.arms import QuestionArms
    from ...measure.batching import (
        FULL,
        QUICK,
        UNBATCHED,
        UNBATCHED_AGAIN,
        asked_for,
        estimate_s,
        perform,
        summarise,
    )
    from ...measure.experiment import CAPACITY, Experiment, Phase

    plan = _plan(QUICK if quick else FULL, asked)
    notes = profile_notes(plan.with_profile)
    plan = replace(plan, with_profile=plan.with_profile and not notes)
    if confounders:
        refuse_place(place, link)
        with QuestionArms(plan.handler, plan.handler_threads, plan.pairs) as arms:
            phase, those = Phase(CAPACITY, max(plan.connections)), asked_for({0: arms.of(0, 0)}, plan.arms)[0]
            compare(
                those, phase, base=UNBATCHED, again=UNBATCHED_AGAIN, blocks=plan.blocks, seconds=plan.seconds,
                settings=asdict(plan), notes=notes, output=output, as_json=as_json,
            )  # fmt: skip
        return
    results = results_into("batching", {"quick": quick, **asdict(plan)}, output)
    with (
        measuring(results, place, link) as (where, said),
        QuestionArms(plan.handler, plan.handler_threads, plan.pairs) as arms,
    ):
        experiment = Experiment(where, results, plan.seconds, with_profile=plan.with_profile)
        with progress(experiment, quiet=as_json) as announce:
            perform(plan, experiment, arms, lambda runs, those: announce(runs, those, estimate_s(plan, runs)))
    notes += [said, *missing_notes(arms.missing)]
    figures = summarise(results.runs)
    finish(results, notes)
    tell(
        results, [one.as_dict() for one in figures], output, as_json,
        lambda console: _print_batching(console, figures, results.runs),
    )  # fmt: skip


def _plan(default: Plan, asked: dict[str, Any]) -> Plan:
    sizes = asked.pop("sizes")
    if len(set(asked["rate_shares"])) == 1:
        raise click.UsageError("a slope takes two rates: --rate-share is needed at least twice")
    changes = {name: value for name, value in asked.items() if value not in (None, ())}
    if sizes:
        # The pair (1, 1) is always among them: it is the A/A arm.
        pairs = {(1, 1), *((size_in, size_out) for size_in in sizes for size_out in sizes)}
        changes["pairs"] = tuple(sorted(pairs))
    for name in ("connections", "works_us", "rate_shares"):
        if name in changes:
            changes[name] = tuple(sorted(set(changes[name])))
    return replace(default, **changes)


def _print_batching(console: Console, figures: Sequence[ArmFigures], runs: Sequence[Run]) -> None:
    for work_us, connections in dict.fromkeys((one.work_us, one.connections) for one in figures):
        chosen = [one for one in figures if (one.work_us, one.connections) == (work_us, connections)]
        kernels = list(dict.fromkeys(kernel for one in chosen for kernel in one.gaps))
        titles = ["arm", "mean batch", "1,000/s", "× U1", "CPU µs", *(f"G ({kernel})" for kernel in kernels)]
        titles += [f"{kernel} ÷ CPU" for kernel in kernels]
        rows = table([*titles, "client µs", "IPIs", "p50 µs", "p99 µs"])
        for one in chosen:
            rows.add_row(
                one.arm,
                "" if one.mean_batch_size is None else f"{one.mean_batch_size:.1f}",
                ("≥ " if one.is_client_limited else "") + spread(one.requests_per_s, "{:,.1f}", 1e-3),
                spread(one.ratio_to_u1, "{:.2f}"),
                spread(one.cost_us, "{:.2f}"),
                *(_gap(one, kernel) for kernel in kernels),
                *(spread(one.kernel_ratios.get(kernel), "{:.2f}") for kernel in kernels),
                *("" if each is None else f"{each:.2f}" for each in (one.client_cost_us, one.ipis_per_request)),
                *("" if each is None else f"{each:,.0f}" for each in (one.latency_p50_us, one.latency_p99_us)),
            )
        work = f", {work_us:g} µs of work a request" if work_us else ""
        console.print(f"\n[bold]{connections:,.0f} connections{work}[/]")
        console.print(rows)
        _print_rates(console, chosen)
        print_invalid(console, chosen)
    print_profiles(console, runs)


def _print_rates(console: Console, figures: Sequence[ArmFigures]) -> None:
    """What each arm costs at each rate that was offered, where any was."""
    from ...measure.statistics import middle

    shares = list(dict.fromkeys(at.rate_share for one in figures for at in one.at_rates))
    for share in shares:
        chosen = [(one.arm, at) for one in figures for at in one.at_rates if at.rate_share == share]
        kernels = list(dict.fromkeys(kernel for _, at in chosen for kernel in at.gaps))
        rate = middle(at.rate_per_s for _, at in chosen) or 0.0
        console.print(f"\n{rate:,.0f} requests/s offered, {share:.0%} of what the slowest arm can do")
        rows = table(
            ["arm", "mean batch", "CPU µs", "CPU × U1", *(f"G ({kernel})" for kernel in kernels), "p50 µs", "p99 µs"]
        )
        for arm, at in chosen:
            rows.add_row(
                arm,
                "" if at.mean_batch_size is None else f"{at.mean_batch_size:.1f}",
                spread(at.cost_us, "{:.2f}"),
                spread(at.ratio_to_u1, "{:.2f}"),
                *(_gap(at, kernel) for kernel in kernels),
                *("" if each is None else f"{each:,.0f}" for each in (at.latency_p50_us, at.latency_p99_us)),
            )
        console.print(rows)


def _gap(one: ArmFigures | RateFigures, kernel: str) -> str:
    if kernel not in one.gaps:
        return ""
    gap = one.gaps[kernel]
    return "undefined" if gap is None else spread(gap, "{:.0%}")
