"""The flags of a server's settings, made from the table in :mod:`batchbridge.config`, and the server made from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ..config import BY_NAME, OPTIONS, Option, read_toml
from ..errors import AppError

if TYPE_CHECKING:
    from .. import Server

__all__ = ["load_server", "make_server", "settings_flags"]


def settings_flags(function: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command ROOT, --config and a flag for each setting.

    The function is called with `changes`, the settings that were named (flags go before the file), and `sources`,
    which says for each of them where: "flag" or the file's name.
    """

    @wraps(function)
    def command(config: str | None, **parameters: Any) -> Any:
        flags = {name: parameters.pop(name) for name in list(parameters) if name in BY_NAME}
        given = {name: value for name, value in flags.items() if value is not None}
        file = read_toml(config) if config is not None else {}
        sources = {**dict.fromkeys(file, config), **dict.fromkeys(given, "flag")}
        return function(changes={**file, **given}, sources=sources, **parameters)

    flags = [_flag(option, option.flag) for option in OPTIONS if option.flag is not None]
    flags.insert(0, click.argument("root", required=False, callback=_parser(BY_NAME["root"], "ROOT")))
    flags.append(click.option("--config", metavar="FILE.toml", help="Settings from a file; flags go before it."))
    decorated: Callable[..., Any] = command
    for flag in reversed(flags):
        decorated = flag(decorated)
    return decorated


def _flag(option: Option, flag: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    default = option.default if option.command_default is None else option.command_default
    spoken = "" if default is None or default == {} else f"  [{option.format(default)}]"
    common: dict[str, Any] = {"default": None, "help": f"{option.help}{spoken}"}
    if option.kind == "switch":
        return click.option(f"{flag}/--no-{flag[2:]}", option.name, **common)
    parse = _parser(option, flag)
    return click.option(flag, option.name, multiple=option.repeated, metavar=option.metavar, callback=parse, **common)


def _parser(option: Option, label: str) -> Callable[[click.Context, click.Parameter, Any], Any]:
    def parse(_context: click.Context, _parameter: click.Parameter, value: Any) -> Any:
        return None if value is None or value == () else option.parse(value, label)

    return parse


def make_server(changes: dict[str, Any]) -> Server:
    """The server that `changes` describe: the app's, with its own settings changed by them, or one without an app.

    Where neither they nor the app say where the access log goes, it goes to standard output.
    Raises AppError when the app cannot be loaded or is no server, ConfigError when it has nothing to serve.
    """
    from .. import Config, Server

    app = changes.get("app")
    access_log = BY_NAME["access_log"]
    if app is None:
        server = Server(config=Config(**{access_log.name: access_log.command_default, **changes}))
    else:
        server = load_server(app)
        if server.config.access_log == access_log.default:
            changes = {access_log.name: access_log.command_default, **changes}
        server.configure(changes)
    server.config.check_serving(len(server.routes))
    return server


def load_server(app: str) -> Server:
    """The server that --app names. Raises AppError when it cannot be loaded, or is something else."""
    from .. import Server
    from ..loading import load

    server = load(app)
    if not isinstance(server, Server):
        raise AppError(f"{app!r} is of type {type(server).__name__}; it must be a batchbridge.Server")
    return server
