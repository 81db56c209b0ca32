"""``batchbridge states``: the state table of a role, or of an app's server."""

from __future__ import annotations

from typing import Any

import click

from ..config import BY_NAME, ROLES
from .settings import load_server


def _role(_context: click.Context, _parameter: click.Parameter, value: str | None) -> str | None:
    role: str | None = None if value is None else BY_NAME["role"].parse(value, "--role")
    return role


@click.command()
@click.option("--role", callback=_role, metavar="|".join(ROLES), help="Whose table.  [standalone]")
@click.option("--app", metavar="MODULE_OR_FILE:OBJECT", help="The table of an app's server, with what it changed.")
@click.option("--dot", is_flag=True, help="Print a graph for Graphviz.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(role: str | None, app: str | None, dot: bool, as_json: bool) -> None:
    """Print which state follows on which event."""
    if dot and as_json:
        raise click.UsageError("--dot and --json exclude each other")
    machine = _machine(role, app)
    if dot:
        click.echo(machine.to_dot().rstrip("\n"))
    elif as_json:
        import json

        rows = [{"state": state, "event": event, "next": after} for (state, event), after in machine.table.items()]
        click.echo(json.dumps({"role": machine.role, "transitions": rows}, indent=2))
    else:
        click.echo(machine.to_text().rstrip("\n"))


def _machine(role: str | None, app: str | None) -> Any:
    from .. import Config, Server

    if app is None:
        return Server(config=Config(role=role or "standalone")).machine
    server = load_server(app)
    if role is not None:
        server.configure({"role": role})
    return server.machine
