"""``batchbridge doctor``: what each engine needs, what this machine has, what is chosen."""

from __future__ import annotations

from dataclasses import replace

import click

from ..doctor import Report, diagnose, judge_running
from ..values import Address
from .cache import ask, parse_admin


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option(
    "--admin", metavar="URL", callback=lambda _context, _parameter, value: value and parse_admin(value),
    help="Also say what a running server has registered; its admin address (its --admin).",
)  # fmt: skip
def command(as_json: bool, admin: Address | None) -> None:
    """Say which engines run on this machine, and why."""
    running = judge_running(ask(admin, "GET", "/stats")) if admin is not None else []
    report = diagnose()
    report = replace(report, findings=(*report.findings, *running))
    if as_json:
        import json

        click.echo(json.dumps(report.as_dict(), indent=2))
    else:
        _print(report)


def _print(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    findings = Table("", "looked at", "found", "needed for", box=None, pad_edge=False, header_style="bold")
    for finding in report.findings:
        # What is missing matters where an engine cannot do without it; the rest only costs speed.
        mark = "[green]ok[/]" if finding.ok else "[red]no[/]" if finding.needed_for else "[yellow]--[/]"
        findings.add_row(mark, finding.name, finding.detail, ", ".join(finding.needed_for))
    engines = Table("", "engine", "why", box=None, pad_edge=False, header_style="bold")
    for engine in report.engines:
        engines.add_row("[green]ok[/]" if engine.available else "[red]no[/]", engine.name, engine.reason)
    console = Console(highlight=False)
    console.print(findings)
    console.print()
    console.print(engines)
    console.print(f"\n--engine auto takes [bold]{report.chosen}[/]: {report.reason}.")
