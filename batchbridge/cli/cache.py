"""``batchbridge cache``: asks a running server about its cache, or purges it, through its admin address."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import click

from ..config import DEFAULT_ADMIN
from ..errors import BatchBridgeError, PurgeError
from ..values import Address, parse_address

TIMEOUT_S = 10.0


def parse_admin(value: str) -> Address:
    """A running server's admin address, as a URL or without its scheme. Raises ConfigError."""
    return parse_address(value.removeprefix("http://").rstrip("/"), "--admin", default_port=80)


admin_flag = click.option(
    "--admin", default=f"http://{DEFAULT_ADMIN}", show_default=True, metavar="URL",
    callback=lambda _context, _parameter, value: parse_admin(value),
    help="Admin address of the server (its --admin).",
)  # fmt: skip
json_flag = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


@click.group()
def command() -> None:
    """Look at, or purge, the cache of a running server."""


@command.command()
@admin_flag
@json_flag
def stats(admin: Address, as_json: bool) -> None:
    """Print the cache's figures."""
    figures = ask(admin, "GET", "/cache/stats")
    if as_json:
        click.echo(json.dumps(figures, indent=2))
        return
    lines = dict(flat(figures))
    width = max((len(name) for name in lines), default=0)
    for name, value in lines.items():
        click.echo(f"{name:{width}}  {value:,}" if isinstance(value, (int, float)) else f"{name:{width}}  {value}")


def flat(figures: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each figure with its name; what belongs together begins with the same word and a dot."""
    for name, value in figures.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


@command.command()
@admin_flag
@json_flag
@click.option("--url", metavar="URL", help="What is cached for this URL (http://HOST/PATH, or /PATH for any host).")
@click.option("--prefix", metavar="PREFIX", help="All whose path begins so, for any host.")
@click.option("--tag", metavar="TAG", help="All that carry this tag.")
@click.option("--soft", is_flag=True, help="Let them become stale: revalidated, or renewed, by the next request.")
def purge(admin: Address, as_json: bool, url: str | None, prefix: str | None, tag: str | None, soft: bool) -> None:
    """Remove objects. What was removed is not served again once the command has returned."""
    wanted = {name: value for name, value in (("url", url), ("prefix", prefix), ("tag", tag)) if value is not None}
    if len(wanted) != 1:
        raise click.UsageError("give exactly one of --url, --prefix and --tag")
    answer = ask(admin, "POST", "/cache/purge", {**wanted, "soft": True} if soft else wanted)
    if as_json:
        click.echo(json.dumps(answer))
        return
    count = answer.get("purged", 0)
    ((name, text),) = wanted.items()
    objects = f"{count:,} object{'' if count == 1 else 's'}"
    click.echo(f"{'made stale' if soft else 'purged'} {objects} by {name} {text}")


def ask(admin: Address, method: str, path: str, content: Any = None) -> dict[str, Any]:
    """The answer of a running server's admin interface, a JSON object.

    Raises PurgeError when it refuses, BatchBridgeError when it cannot be reached or is not batchbridge.
    """
    from http.client import HTTPConnection, HTTPException

    connection = HTTPConnection(admin.host, admin.port, timeout=TIMEOUT_S)
    body = None if content is None else json.dumps(content)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        status, text = response.status, response.read()
    except (OSError, HTTPException) as error:
        what = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
        raise BatchBridgeError(
            f"cannot ask http://{admin}: {what}; is a server running with --admin {admin}?"
        ) from None
    finally:
        connection.close()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise BatchBridgeError(f"http://{admin}{path} answered {status}, and not as a batchbridge admin server does")
    if status != 200:
        raise PurgeError(f"http://{admin} answered {status}: {answer.get('error', 'without a reason')}")
    return answer
