"""Measures the targets of the house plan in one go, and sets each beside what is asked for.

    python -m bench.targets --quick                 every target, three blocks: a screening of some minutes
    python -m bench.targets --only P1,P5 --slopes   twenty blocks of these, their costs as slopes
    python -m bench.targets --read targets.msgpack  the page again, out of its results

P1, P2, P3, P5, P6, P7, P9 and P11. Each server is a fresh process on one core, its load on another; servers of a block
stand in random order; every answer is compared. Ratios are paired within blocks. CPU is that at saturation, or with
--slopes the slope of busy time over offered rates. Rivals that are not installed are left out, and said. Exit status 1:
a target was missed, or a run was invalid.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import click

from batchbridge.cli.bench.shared import (
    ABOVE_0,
    FILE,
    NEW_FILE,
    end,
    finish,
    heading,
    json_flag,
    measuring,
    missing_notes,
    place_flags,
    print_json,
    print_profiles,
    progress,
    results_into,
    spread,
    table,
    wide_console,
)
from batchbridge.cli.bench.versus import print_servers
from batchbridge.errors import BatchBridgeError
from batchbridge.measure.experiment import COST, OVERHEAD_S, Arm, Experiment, Phase, shuffled
from batchbridge.measure.links import Link
from batchbridge.measure.results import Results, Run, load
from batchbridge.measure.versus import summarise

from .target_scenes import AGAIN, SCENES, Scene, Servers
from .target_verdicts import MARKS, MISSED, TARGETS, Finding, Target, judge

QUICK_BLOCKS, QUICK_SECONDS = 3, 2.0
FULL_BLOCKS, FULL_SECONDS = 20, 5.0
#: Offered loads that a cost is the slope over, as shares of the slowest server's capacity.
RATE_SHARES = (0.2, 0.4, 0.6, 0.8)

NUMBERS = tuple(dict.fromkeys(target.number for target in TARGETS if target.bound is not None))


def chosen(_context: click.Context, _parameter: click.Parameter, value: str | None) -> tuple[str, ...]:
    """The numbers that --only names."""
    if value is None:
        return NUMBERS
    asked = tuple(word.strip().upper() for word in value.split(","))
    for word in asked:
        if word not in NUMBERS:
            raise click.BadParameter(f"{word!r} is none of {', '.join(NUMBERS)}")
    return asked


@click.command(help=(__doc__ or "").replace("\n\n    python", "\n\n\b\n    python"))
@click.option("--quick", is_flag=True, help="Three blocks of short runs: a screening.")
@click.option("--only", callback=chosen, metavar="P1,P5", help="Only these.")
@click.option("--blocks", type=click.IntRange(1, 1000), metavar="N", help="Each has every server.  [20, quick: 3]")
@click.option("--seconds", type=ABOVE_0, metavar="S", help="Measured time of a run.  [5, quick: 2]")
@click.option("--slopes", is_flag=True, help="Costs by open loops at four rates: five times as many runs.")
@click.option("--output", type=NEW_FILE, default=Path("targets.msgpack"), show_default=True, help="The results.")
@click.option("--read", type=FILE, help="Measure nothing: tell what these results say.")
@place_flags
@json_flag
def command(
    quick: bool, only: tuple[str, ...], blocks: int | None, seconds: float | None, slopes: bool, output: Path,
    read: Path | None, place: str | None, link: Link, as_json: bool,
) -> int:  # fmt: skip
    if read is not None:
        results = load(read)
        return tell(results, targets_of(only), read, as_json)
    blocks = blocks or (QUICK_BLOCKS if quick else FULL_BLOCKS)
    seconds = seconds or (QUICK_SECONDS if quick else FULL_SECONDS)
    targets = targets_of(only)
    scenes = [scene for scene in SCENES if any(target.scene == scene.name for target in targets)]
    shares = RATE_SHARES if slopes else ()
    settings = {"only": only, "blocks": blocks, "seconds": seconds, "rate_shares": shares}
    results = results_into("targets", settings, output)
    with measuring(results, place, link) as (where, said), Servers() as servers:
        experiment = Experiment(where, results, seconds)
        with progress(experiment, quiet=as_json) as announce:
            planned = plan(scenes, targets, servers)
            runs = blocks * (len(planned) + len(shares) * sum(scene.has_cost for scene, _ in planned))
            announce(runs, (), runs * (seconds + OVERHEAD_S))
            perform(experiment, planned, blocks, shares)
    notes = [said, *missing_notes(servers.missing)]
    finish(results, notes)
    return tell(results, targets, output, as_json)


def targets_of(numbers: Iterable[str]) -> list[Target]:
    """The targets of these numbers, with the A/A arm where its scene is measured."""
    asked = [target for target in TARGETS if target.number in numbers]
    scenes = {target.scene for target in asked}
    return [*asked, *(target for target in TARGETS if target.number == AGAIN and target.scene in scenes)]


def plan(scenes: Sequence[Scene], targets: Sequence[Target], servers: Servers) -> list[tuple[Scene, Arm]]:
    """The runs of a block: of each scene the servers that a target names."""
    named = {(target.scene, name) for target in targets for name in (target.arm, target.base)}
    return [(scene, arm) for scene in scenes for arm in servers.of(scene) if (scene.name, arm.name) in named]


def perform(
    experiment: Experiment, planned: Sequence[tuple[Scene, Arm]], blocks: int, shares: Sequence[float] = ()
) -> None:
    """Makes all runs. Scenes stand one after the other, in random order; so do the servers of each.

    `shares` of the slowest server's capacity are offered too, in each scene that tells costs.
    """
    sampled = replace(experiment, with_profile=True)
    capacities: dict[str, float] = {}
    for block in range(blocks):
        order = shuffled([(arm, scene) for scene, arm in planned], block)
        for scene in {scene.name: scene for _, scene in order}.values():
            arms = [arm for arm, each in order if each.name == scene.name]
            runs = [(sampled if scene.with_profile else experiment).run(arm, scene.phase, block) for arm in arms]
            if not scene.has_cost:
                continue
            slowest = capacities.setdefault(
                scene.name, min((run.requests_per_s for run in runs if run.valid), default=0.0)
            )
            offered = [(arm, offered_phase(scene, share, slowest)) for share in shares if slowest for arm in arms]
            for arm, phase in shuffled(offered, block, seed=2):
                experiment.run(arm, phase, block)


def offered_phase(scene: Scene, share: float, capacity_per_s: float) -> Phase:
    """An open loop at a share of a capacity."""
    known: dict[str, float | str] = {**scene.phase.parameters, "rate_share": share}
    return replace(scene.phase, name=COST, rate_per_s=share * capacity_per_s, parameters=known)


# --- the page ---------------------------------------------------------------------------------------------------------


def tell(results: Results, targets: Sequence[Target], path: Path, as_json: bool) -> int:
    """Prints the page, and returns the exit status."""
    findings = [judge(target, results.runs) for target in targets]
    if as_json:
        print_json(results, [asdict(found) for found in findings])
    else:
        print_findings(findings, results)
        print_scenes(results.runs)
    end(results, path, as_json)
    is_bad = any(found.verdict == MISSED for found in findings) or not all(run.valid for run in results.runs)
    return 1 if is_bad else 0


def print_findings(findings: Sequence[Finding], results: Results) -> None:
    """The targets, a line each."""
    console = wide_console()
    rows = table(["target", "load", "what", "asked", "measured", "", "blocks", ""])
    titles = {scene.name: scene.title for scene in SCENES}
    for found in findings:
        target = found.target
        rows.add_row(
            target.number, titles[target.scene], target.words, target.asked,
            spread(found.measured, "{:.0%}" if target.base is None else "{:.2f}"), MARKS[found.verdict],
            str(found.blocks), found.note,
        )  # fmt: skip
    for column in (1, 2, 7):
        rows.columns[column].justify = "left"
    console.print(f"[bold]Targets[/], {results.created[:10]}, {heading(results)}")
    console.print(rows)
    console.print("✓ the whole interval meets it, ✗ none of it does, ? neither is known, – not measured.")


def print_scenes(runs: Sequence[Run]) -> None:
    """What the ratios come from."""
    console = wide_console()
    for scene in SCENES:
        chosen = [run for run in runs if run.parameters.get("scene") == scene.name and run.parameters["phase"] != COST]
        if chosen and not scene.with_profile:
            console.print(f"\n[bold]{scene.title}[/]")
            base = next(name for name in reversed(scene.arms) if any(run.arm == name for run in chosen))
            print_servers(console, summarise(chosen, base), base)
    print_profiles(console, runs)


def main() -> int:
    """The command."""
    try:
        status = command.main(prog_name="python -m bench.targets", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        print("targets: interrupted", file=sys.stderr)
        return 1
    except BatchBridgeError as error:
        print(f"targets: {error}", file=sys.stderr)
        return 1
    return status if isinstance(status, int) else 0


if __name__ == "__main__":
    sys.exit(main())
