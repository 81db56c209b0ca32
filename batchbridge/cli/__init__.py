"""The command ``batchbridge``: a file per command, imported when the command is run.

Exit status 0 is success, 1 failure, 2 wrong usage or configuration. What goes wrong on purpose (BatchBridgeError) is
one line on standard error, ``batchbridge: …``, without a traceback.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

import click

from ..errors import BatchBridgeError, ConfigError

__all__ = ["COMMANDS", "cli", "main"]

#: In the order of the help. Each is a module of this package with a click command named `command`.
COMMANDS = ("serve", "check", "bench", "tune", "plot", "doctor", "states", "cache")


class LazyGroup(click.Group):
    """Knows its commands by name, and imports one when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """One of them."""
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(f"{__name__}.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does; an unknown name is answered with the nearest one."""
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            from difflib import get_close_matches

            close = get_close_matches(name, COMMANDS, 1)
            hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(COMMANDS)}"
            raise click.UsageError(f"{name} is not a command; {hint}", ctx)
        return super().resolve_command(ctx, args)


def version() -> str:
    """The version of the installed package."""
    import batchbridge

    found = getattr(batchbridge, "__version__", None)
    if found is None:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            found = installed("batchbridge")
        except PackageNotFoundError:
            found = "unknown"
    return str(found)


def _print_version(ctx: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted:
        click.echo(f"batchbridge {version()}")
        ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def cli() -> None:
    """Answers requests at the speed of the kernel, and hands the rest to Python in batches."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command with `arguments` (the process's own unless given) and returns its exit status."""
    try:
        result: Any = cli.main(list(arguments) if arguments is not None else None, "batchbridge", standalone_mode=False)
    except click.UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            click.echo(error.format_message(), err=True)
            return 2
        return _fail(error.format_message(), 2)
    except click.ClickException as error:
        return _fail(error.format_message(), 1)
    except ConfigError as error:
        return _fail(str(error), 2)
    except BatchBridgeError as error:
        return _fail(str(error), 1)
    except (click.Abort, KeyboardInterrupt):
        return _fail("interrupted", 1)
    return result if isinstance(result, int) else 0


def _fail(message: str, status: int) -> int:
    click.echo(f"batchbridge: {' '.join(message.split())}", err=True)
    return status
