"""``batchbridge tune``: finds the batch policy that meets a goal, by measuring."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..measure.interrupts import termination_as_interrupt
from ..policy import check_field
from ..tune.space import DELAYS_US, SIZES, Candidate
from ..values import Address, parse_address, parse_duration_us

if TYPE_CHECKING:
    from ..cython_ext.load import Exchange
    from ..measure.results import Results
    from ..tune.goals import Goal, Outcome, Verdict
    from ..tune.run import Plan
    from ..tune.targets import Target

OUTPUT, CONFIG = "results.msgpack", "tuned.toml"
#: Settings that the second stage is expected to have: the best, the present one, and those around the best.
REFINED_SETTINGS = 5
#: Characters in a line of what is not read on a terminal: enough for the table.
PIPE_WIDTH = 120


def _duration_us(_context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    return None if value is None else parse_duration_us(_number_or_text(value), f"--{_flag(parameter)}")


def _numbers(field: str, parse: Callable[[str, str], Any]) -> Callable[..., tuple[int, ...]]:
    def read(_context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, ...]:
        label = f"--{_flag(parameter)}"
        found = {int(check_field(field, parse(part.strip(), label), label)) for part in value.split(",")}
        return tuple(sorted(found))

    return read


def _flag(parameter: click.Parameter) -> str:
    return parameter.opts[0].lstrip("-")


def _number_or_text(value: str) -> Any:
    return int(value) if value.isascii() and value.isdigit() else value


def _admin(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Address | None:
    if value is None:
        return None
    return parse_address(value.removeprefix("http://").rstrip("/"), "--admin", default_port=80)


@click.command()
@click.option("--app", metavar="MODULE_OR_FILE:OBJECT", help="Serve this app here, a fresh process for each run.")
@click.option("--admin", metavar="HOST:PORT", callback=_admin, help="Or: the admin address of a running server.")
@click.option("--url", metavar="URL", help="With --admin: where that server answers, http://HOST:PORT.")
@click.option("--route", metavar="PATH", required=True, help="The route to tune, as the app declares it.")
@click.option("--requests", "requests_file", metavar="FILE", required=True, type=click.Path(path_type=Path),
              help="What to send: JSON lines, see examples/score.requests.")  # fmt: skip
@click.option("--p99-us", metavar="N", callback=_duration_us,
              help="Goal: a p99 latency of at most this, with the least server CPU.")  # fmt: skip
@click.option("--max-throughput", is_flag=True, help="Goal: the most requests/s, in a closed loop.")
@click.option("--min-cpu", is_flag=True, help="Goal: the least server CPU per request.")
@click.option("--rate", metavar="N", type=click.FloatRange(min=0, min_open=True),
              help="Requests/s to offer (Poisson).  [half of the capacity, which is measured]")  # fmt: skip
@click.option("--sizes", metavar="N,N...", default=",".join(map(str, SIZES)), show_default=True,
              callback=_numbers("max_batch_size", lambda text, label: _number_or_text(text)),
              help="max_batch_size to try.")  # fmt: skip
@click.option("--delays", metavar="US,US...", default=",".join(map(str, DELAYS_US)), show_default=True,
              callback=_numbers("max_queue_delay_us", lambda text, label: parse_duration_us(text, label)),
              help="max_queue_delay_us to try.")  # fmt: skip
@click.option("--refine/--no-refine", default=True, help="Look between the best and its neighbours too.  [refine]")
@click.option("--connections", metavar="N", type=click.IntRange(1, 65_536), default=64, show_default=True,
              help="Connections of the client.")  # fmt: skip
@click.option("--seconds", metavar="S", type=click.FloatRange(0.05, 3600), default=2.0, show_default=True,
              help="Length of a run.")  # fmt: skip
@click.option("--warmup", metavar="S", type=click.FloatRange(0, 3600), default=0.5, show_default=True,
              help="Before it, without counting.")  # fmt: skip
@click.option("--blocks", metavar="N", type=click.IntRange(1, 1000), default=3, show_default=True,
              help="Runs of each setting; a claim takes 20.")  # fmt: skip
@click.option("--any-body", is_flag=True, help="Answers may differ each time: compare status and length only.")
@click.option("--engine", metavar="NAME", default="auto", show_default=True, help="With --app: the server's engine.")
@click.option("--output", type=click.Path(path_type=Path), default=OUTPUT, show_default=True, metavar="FILE",
              help="Results, written after each run.")  # fmt: skip
@click.option("--config", type=click.Path(path_type=Path), default=CONFIG, show_default=True, metavar="FILE",
              help="The recommendation, for serve --config.")  # fmt: skip
@click.option("--resume", is_flag=True, help="Go on with the runs that --output lacks.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(**options: Any) -> None:
    """Find the max_batch_size and max_queue_delay_us that meet a goal.

    Each setting is loaded in shuffled blocks; the best is looked at more closely. The Pareto front and a recommendation
    are printed, and written as a configuration file. A running server's policy is put back at the end.
    """
    goal = _goal(options["p99_us"], options["max_throughput"], options["min_cpu"])
    if options["max_throughput"] and options["rate"] is not None:
        raise click.UsageError("--rate and --max-throughput exclude each other: a closed loop has no rate")
    target = _target(options)
    with termination_as_interrupt():
        _tune(options, goal, target)


def _goal(p99_us: int | None, max_throughput: bool, min_cpu: bool) -> Goal:
    from ..tune.goals import Goal

    if max_throughput and min_cpu:
        raise click.UsageError("--max-throughput and --min-cpu exclude each other")
    if p99_us is None and not max_throughput and not min_cpu:
        raise click.UsageError("give a goal: --p99-us N, --max-throughput or --min-cpu")
    if p99_us == 0:
        raise click.UsageError("--p99-us: no latency is 0; give microseconds, or a unit with it, such as 2ms")
    return Goal("throughput" if max_throughput else "cpu", p99_us)


def _target(options: dict[str, Any]) -> Target:
    from ..measure.traffic import parse_url
    from ..tune.targets import AppTarget, RunningTarget

    app, admin, url = options["app"], options["admin"], options["url"]
    if (app is None) == (admin is None):
        raise click.UsageError("give either --app, or --admin and --url of a running server")
    if app is not None:
        if url is not None:
            raise click.UsageError("--url belongs to --admin; an app is served here")
        return AppTarget(app, options["route"], engine=options["engine"])
    if url is None:
        raise click.UsageError("--admin needs --url, where the server answers")
    place = parse_url(url)
    return RunningTarget(admin, place.host, place.port, options["route"])


def _tune(options: dict[str, Any], goal: Goal, target: Target) -> None:
    from ..measure.namespaces import LOOPBACK_CAVEAT
    from ..measure.traffic import parse_url, read_requests
    from ..tune.report import check_toml_path
    from ..tune.run import Plan, SweepError, fingerprint, sweep

    path: Path = options["output"]
    check_toml_path(options["config"])
    for name in ("output", "config"):
        if not options[name].absolute().parent.is_dir():
            raise SweepError(f"--{name}: {options[name].parent} is not a folder")
    host = parse_url(options["url"]).authority if options["url"] else "127.0.0.1"
    exchanges = read_requests(options["requests_file"], host=host)
    plan = Plan(
        target=options["app"] or f"{options['admin']} {options['url']}",
        route=options["route"],
        goal=goal,
        sizes=options["sizes"],
        delays_us=options["delays"],
        blocks=options["blocks"],
        seconds=options["seconds"],
        warmup_s=options["warmup"],
        connections=options["connections"],
        rate_asked_per_s=options["rate"],
        requests_sha256=fingerprint(exchanges),
        refined=options["refine"],
        engine=options["engine"],
        compares_bodies=not options["any_body"],
    )
    results = _results(plan, path, options["resume"])
    if options["app"]:
        results.note = f"Measured on one machine: {LOOPBACK_CAVEAT}."
    policy = results.settings.get("policy") or target.policy()
    results.settings["policy"] = policy
    present = Candidate(policy["max_batch_size"], policy["max_queue_delay_us"])
    try:
        with _progress(plan, quiet=options["as_json"]) as watch:
            exchanges = _prepared(plan, target, results, exchanges)
            results.save(path)
            sweep(plan, results, present, _measure(plan, target, exchanges, results), **watch)
    except KeyboardInterrupt:
        kept = f"{len(results.runs)} runs are in {path}: the same command with --resume goes on"
        raise SweepError(f"interrupted; {kept if path.exists() else 'no run was made yet'}") from None
    finally:
        target.put_back(policy)
    _conclude(plan, results, present, options)


def _results(plan: Plan, path: Path, resume: bool) -> Results:
    """The file to go on with, or a new one."""
    from ..measure import machine
    from ..measure.results import Results, load
    from ..tune.run import SweepError, check_resumable

    if resume:
        results = load(path)
        check_resumable(plan, results, path)
        results.path = path
        return results
    if path.exists():
        raise SweepError(f"--output: {path} is there already; --resume goes on with it, or name another file")
    return Results("sweep", machine=machine.facts(), settings=plan.settings(), path=path)


def _prepared(plan: Plan, target: Target, results: Results, exchanges: list[Exchange]) -> list[Exchange]:
    """The requests with their right answers, and the rate, once the server takes all settings that are to be tried."""
    from ..measure.traffic import learn
    from ..tune.run import RATE_SHARE, measure_capacity

    with target.serving(Candidate(max(plan.sizes), max(plan.delays_us))):
        pass  # what the server would refuse, it refuses now
    with target.serving(Candidate(min(plan.sizes), min(plan.delays_us))) as serving:
        learnt = learn(serving.host, serving.port, exchanges, bodies=plan.compares_bodies)
    if plan.to_saturation:
        results.settings["rate_per_s"] = None
    elif plan.rate_asked_per_s is not None:
        results.settings["rate_per_s"] = plan.rate_asked_per_s
    elif "rate_per_s" not in results.settings:
        capacity_per_s = measure_capacity(plan, target, learnt, results.add_command)
        results.settings["capacity_per_s"] = capacity_per_s
        results.settings["rate_per_s"] = float(round(RATE_SHARE * capacity_per_s))
    return learnt


def _measure(
    plan: Plan, target: Target, exchanges: list[Exchange], results: Results
) -> Callable[[int, Candidate], Any]:
    from ..tune.run import run_once

    rate_per_s = results.settings["rate_per_s"]
    return lambda block, candidate: run_once(plan, target, exchanges, rate_per_s, block, candidate, results.add_command)


@contextmanager
def _progress(plan: Plan, *, quiet: bool) -> Iterator[dict[str, Any]]:
    """A bar with the time left, on standard error; what it yields are the callbacks of the sweep."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    console = Console(stderr=True)
    console.quiet = quiet or not console.is_terminal  # a log is not to be filled with bars
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("getting ready", total=None)
        made = stage = 0

        def on_stage(_planned: int, missing: int) -> None:
            nonlocal stage
            stage += 1
            # How many runs the second stage has is known when it begins.
            later = REFINED_SETTINGS * plan.blocks if stage == 1 and plan.refined else 0
            bar.update(task, total=made + missing + later)

        def on_run(block: int, candidate: Candidate) -> None:
            name = "coarse" if stage == 1 else "refined"
            bar.update(task, description=f"{name}, block {block + 1}: {candidate}")

        def after_run() -> None:
            nonlocal made
            made += 1
            bar.advance(task)

        yield {"on_stage": on_stage, "on_run": on_run, "after_run": after_run}


def _conclude(plan: Plan, results: Results, present: Candidate, options: dict[str, Any]) -> None:
    """Judges, prints, and writes the configuration file. Raises GoalError for a goal that nothing meets."""
    from ..tune.goals import judge, outcomes_of
    from ..tune.report import as_json, toml, write_toml

    outcomes = outcomes_of(results.runs)
    verdict = judge(outcomes, plan.goal)
    load_words = _load_words(results)
    write_toml(options["config"], toml(verdict, plan.route, load_words))
    if options["as_json"]:
        files = {"results": str(options["output"]), "config": str(options["config"])}
        click.echo(as_json(verdict, outcomes, results.settings, files))
        return
    _print(plan, verdict, outcomes, present, results)
    serve = f"batchbridge serve --app {options['app']} --config" if options["app"] else "batchbridge serve ... --config"
    click.echo(f"\nWritten: {options['output']} and {options['config']}. To use it: {serve} {options['config']}")


def _load_words(results: Results) -> str:
    rate, capacity = results.settings["rate_per_s"], results.settings.get("capacity_per_s")
    if rate is None:
        return "in a closed loop"
    share = f" ({rate / capacity:.0%} of the capacity, {capacity:,.0f})" if capacity else ""
    return f"at {rate:,.0f} requests/s offered{share}"


def _print(plan: Plan, verdict: Verdict, outcomes: list[Outcome], present: Candidate, results: Results) -> None:
    from rich.console import Console

    from ..tune.report import front_table, sentences, steal_sentences

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPE_WIDTH)
    console.print(f"Goal: {plan.goal}. Measured {_load_words(results)}; {len(outcomes)} settings.", soft_wrap=True)
    console.print(front_table(verdict, present))
    for line in [*sentences(verdict, outcomes, plan.route, present), *steal_sentences(results.runs)]:
        console.print(line, soft_wrap=True)
