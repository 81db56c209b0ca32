"""``batchbridge bench``: measures, and says how sure it is. A file per command, imported when it is run."""

from __future__ import annotations

import importlib

import click

__all__ = ["COMMANDS", "command"]

#: In the order of the help. Each is a module of this package with a click command named `command`.
COMMANDS = ("load", "versus", "batching", "latency", "overload", "documents")


class LazyGroup(click.Group):
    """Knows its commands by name, and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        if cmd_name not in COMMANDS:
            return None
        found: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return found


@click.group(cls=LazyGroup)
def command() -> None:
    """Measure servers: load, comparisons, what batching gains, latencies, overload; and make documents for it."""
