"""``batchbridge check``: configuration and app, without serving."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import click

from ..config import OPTIONS, Config
from ..doctor import choose_engine
from .settings import make_server, settings_flags


@click.command()
@settings_flags
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of TOML.")
def command(changes: dict[str, Any], sources: dict[str, str], as_json: bool) -> None:
    """Check what `serve` would be given, and print the settings in effect.

    Takes the arguments of `serve`. The output is a configuration file that says the same.
    """
    server = make_server(changes)
    server.apply_policies()
    engine, reason = choose_engine(server.config.engine)
    policies = {path: asdict(server.policy(path)) for path in server.routes}
    if as_json:
        import json

        settings = server.config.as_dict()
        result = {
            "config": settings,
            "sources": {**_sources_beside(server.config), **sources},
            "engine": {"name": engine, "reason": reason},
            "routes": policies,
        }
        click.echo(json.dumps(result, indent=2))
        return
    click.echo(server.config.to_toml(), nl=False)
    click.echo(f"batchbridge: all is right. The engine would be {engine}: {reason}.", err=True)
    for path, policy in policies.items():
        words = f"up to {policy['max_batch_size']} a batch, policy {policy['policy']}"
        delay = f", waiting up to {policy['max_queue_delay_us']} µs" if policy["max_queue_delay_us"] else ""
        click.echo(f"batchbridge: {path}: {words}{delay}", err=True)


def _sources_beside(config: Config) -> dict[str, str]:
    """Where settings come from that neither a flag nor a file named: the default (the command's own), or the app."""
    return {
        option.name: "default" if getattr(config, option.name) in (option.default, option.command_default) else "app"
        for option in OPTIONS
    }
