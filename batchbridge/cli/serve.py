"""``batchbridge serve``: runs a server until it is told to stop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..config import Config, format_size, read_toml
from . import version
from .settings import make_server, settings_flags

if TYPE_CHECKING:
    from .. import Server


@click.command()
@settings_flags
def command(changes: dict[str, Any], sources: dict[str, str]) -> None:
    """Serve the files of ROOT, the handlers of --app, or both.

    SIGTERM and SIGINT drain: requests under way are answered first. SIGHUP reads --config again, SIGUSR1 reopens the
    access log.
    """
    import logging

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    server = make_server(changes)
    files = [source for source in sources.values() if source != "flag"]
    flags = {name: value for name, value in changes.items() if sources.get(name) == "flag"}
    reload = (lambda: {**read_toml(files[0]), **flags}) if files else None
    server.run(on_ready=announce, reload=reload)


def announce(server: Server) -> None:
    """Tells on standard error that the server is ready, and where."""
    line = start_line(
        server.config, server.urls, len(server.routes), server.engine, server.admin_url, server.zero_copy_size_bytes_min
    )
    click.echo(line, err=True)


def start_line(
    config: Config, urls: list[str], route_count: int, engine: str, admin_url: str | None = None,
    zero_copy_size_bytes_min: int | None = None,
) -> str:  # fmt: skip
    """What is served, where, and how: one line."""
    served = [] if config.root is None else [config.root]
    if route_count:
        served.append(_counted(route_count, "route"))
    what = " and ".join(served) or f"for {config.upstream}"
    threads = _counted(config.engine_threads, "engine thread")
    handlers = (
        "handlers on the engine's thread"
        if config.handler_threads == 0
        else _counted(config.handler_threads, "handler thread")
    )
    admin = f", admin on {admin_url}" if admin_url else ""
    zero_copy = "" if zero_copy_size_bytes_min is None else f", zero copy from {format_size(zero_copy_size_bytes_min)}"
    return (
        f"batchbridge {version()} serving {what} on {', '.join(urls)} with {engine}, {threads}, {handlers}{zero_copy}"
        f"{admin}"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
