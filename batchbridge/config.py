"""Every limit and default of batchbridge, in one table: the fields of :class:`Config`.

A field is declared once, with its section, kind, default, bounds and help sentence. The constructor's checks, the keys
of a configuration file, the flags of ``batchbridge serve`` and what ``batchbridge check`` prints are derived from it.

Precedence: flags, then the TOML file, then the defaults. Values take units as text: sizes ``"64k"``, ``"256MiB"``;
durations ``"200us"``, ``"10ms"``, ``"75s"``. A plain number is in the unit that the name ends with.

A configuration file::

    [server]
    root = "site"                     # relative paths start at the folder of the file
    bind = ["127.0.0.1:8080", "[::1]:8080"]

    [limits]
    body_size_bytes_max = "4MiB"

    [route."/score/{model}"]          # changes the batch policy that the handler was declared with
    max_batch_size = 128
    max_queue_delay_us = 200
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from .errors import ConfigError
from .policy import one_of
from .values import (
    AUTO,
    CODINGS,
    GIB,
    KIB,
    MIB,
    PARSERS,
    Address,
    format_duration,
    format_size,
    parse_address,
    parse_duration,
    parse_size,
)

__all__ = [
    "DEFAULT_ADMIN",
    "OPTIONS",
    "Address",
    "Config",
    "Option",
    "format_duration",
    "format_size",
    "parse_address",
    "parse_duration",
    "parse_size",
]

#: Where the commands that talk to a running server look for its admin address, when they are not told.
DEFAULT_ADMIN = "127.0.0.1:9180"

ENGINES = ("auto", "kernel", "io_uring", "epoll")
ROLES = ("standalone", "colocated", "frontend")

DAY_S = 86_400.0

#: It stands in each response's head, for which the engine keeps a fixed room.
SERVER_NAME_SIZE_MAX = 100


@dataclass(frozen=True)
class Option:
    """One row of the table: a setting's name (unit last), and all that its checks, flag, key and help need."""

    name: str
    section: str
    """Its table in a configuration file."""
    kind: str
    """What it holds, and so how text becomes it: a key of PARSERS."""
    default: Any
    help: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    power_of_two: bool = False
    flag: str | None = None
    """Its flag on the command line; None where it has none (ROOT is an argument, routes are only in files)."""
    command_default: Any = None
    """What the command takes instead of the default, if anything."""

    @property
    def repeated(self) -> bool:
        """The flag may be given more than once, and its values are collected."""
        return self.kind in ("addresses", "codings", "file_names", "mime")

    def holds_size(self, value: Any) -> bool:
        """Whether `value` is a number of bytes."""
        return self.kind == "size" or (self.kind == "size_or_auto" and value != AUTO)

    @property
    def metavar(self) -> str:
        """What the help shows in the value's place."""
        names = {
            "address": "HOST:PORT", "addresses": "HOST:PORT", "app": "MODULE_OR_FILE:OBJECT",
            "codings": "|".join(CODINGS), "core": "CPU", "count": "N", "file_names": "NAME", "log": "PATH|-|off",
            "mime": "EXT=TYPE", "path": "PATH", "seconds": "DURATION", "size": "SIZE", "size_or_auto": "SIZE|auto",
            "token": "NAME", "url": "URL",
        }  # fmt: skip
        return "|".join(self.choices) or names.get(self.kind, "TEXT")

    def format(self, value: Any) -> str:
        """The value as a person reads it, with its unit."""
        if value is None:
            return "none"
        if self.holds_size(value):
            return format_size(value)
        if self.kind == "seconds":
            return format_duration(value)
        if isinstance(value, Mapping):
            return ", ".join(f"{name}={item}" for name, item in value.items()) or "none"
        if isinstance(value, tuple):
            return ", ".join(value) or "none"
        if self.kind == "switch":
            return "yes" if value else "no"
        return str(value) or "none"

    def parse(self, value: Any, label: str | None = None) -> Any:
        """Checks `value` (text with a unit, or already the right type) and returns it as the field's type.

        Raises ConfigError: one sentence with `label` (the name, unless given), the value, and what is allowed.
        """
        label = label or self.name
        if value is None and self.default is None:
            return None
        parsed = PARSERS[self.kind](value, label)
        if self.choices and parsed not in self.choices:
            raise ConfigError(f"{label}: {value!r} is not known; choose {one_of(self.choices)}")
        if self.kind == "size_or_auto" and parsed == AUTO:
            return parsed
        if self.minimum is not None and parsed < self.minimum:
            raise ConfigError(f"{label}: {value} is too small; the least is {self._bound(self.minimum)}")
        if self.maximum is not None and parsed > self.maximum:
            raise ConfigError(f"{label}: {value} is too large; the most is {self._bound(self.maximum)}")
        if self.power_of_two and parsed & (parsed - 1):
            raise ConfigError(f"{label}: {value} is not a power of two; the next are {_powers_around(parsed)}")
        return parsed

    def _bound(self, bound: float) -> str:
        is_size = self.holds_size(bound)
        spoken = self.format(int(bound) if is_size else bound)
        return f"{int(bound)} ({spoken})" if is_size and bound >= KIB else spoken


def _powers_around(number: int) -> str:
    below = 1 << (number.bit_length() - 1)
    return f"{below} and {below * 2}"


def _option(
    section: str,
    kind: str,
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    *,
    flag: str | None = "",
    **more: Any,
) -> Any:
    """Declares a field of Config; `flag` is made of the name, without its unit, unless given."""
    row = {"section": section, "kind": kind, "help": help, "minimum": minimum, "maximum": maximum, "flag": flag, **more}
    if isinstance(default, dict):
        return field(default_factory=dict, metadata=row)
    return field(default=default, metadata=row)


@dataclass(frozen=True, kw_only=True)
class Config:
    """The settings of a server, checked: constructing one raises ConfigError for a value that makes no sense.

    Sizes are bytes and durations seconds (the names say so); text with a unit is taken as well. Immutable:
    :meth:`replace` gives a changed copy.
    """

    root: str | None = _option("server", "path", None, "Folder whose files are served.", flag=None)
    bind: tuple[str, ...] = _option(
        "server", "addresses", ("127.0.0.1:8080",), "Address to listen on; port 0 lets the system choose. Repeatable."
    )
    app: str | None = _option("server", "app", None, "Python object (a batchbridge.Server) with the handlers.")
    engine: str = _option(
        "server", "choice", "auto", "How requests are received and sent; auto takes the best that runs here.",
        choices=ENGINES,
    )  # fmt: skip
    sqpoll: int | None = _option(
        "server", "core", None, "Core whose kernel thread sends what the engine kernel answers without user mode.",
        0, 4095,
    )  # fmt: skip
    engine_threads: int = _option("server", "count", 1, "Threads of the engine, each with its own listener.", 1, 256)
    handler_threads: int = _option(
        "server", "count", 1, "Threads that run handlers; 0 runs them on the engine's own thread.", 0, 256
    )
    role: str = _option(
        "server", "choice", "standalone", "Which state table is used: what a miss in the cache leads to.", choices=ROLES
    )
    upstream: str | None = _option("server", "url", None, "Server that the role frontend asks for what it lacks.")
    admin: str | None = _option(
        "server", "address", None, "Address for health check, metrics and purging; none unless given."
    )
    server_name: str = _option("server", "token", "batchbridge", "Value of the Server header; empty sends none.")
    directory_listing: bool = _option("server", "switch", False, "List the files of a folder without an index file.")
    index_files: tuple[str, ...] = _option(
        "server", "file_names", ("index.html",), "File that answers for its folder. Repeatable, the first one counts.",
        flag="--index-file",
    )  # fmt: skip
    precompressed: tuple[str, ...] = _option(
        "server", "codings", (), "Serve NAME.br, NAME.zst or NAME.gz beside a file to clients that take it: br, zstd, "
        "gzip. Repeatable, the first one is preferred.",
    )  # fmt: skip
    mime: Mapping[str, str] = _option(
        "server", "mime", {}, "Media type for a file name extension, before the built-in ones. Repeatable."
    )

    max_connections: int = _option(
        "limits", "count", 16_384, "Open connections; further ones wait in the backlog.", 1, 1_048_576
    )
    head_size_bytes_max: int = _option("limits", "size", 16 * KIB, "A longer request head is answered 431.", 256, MIB)
    target_size_bytes_max: int = _option("limits", "size", 8 * KIB, "A longer request target is answered 414.", 64, MIB)
    header_count_max: int = _option("limits", "count", 100, "More header lines are answered 431.", 1, 10_000)
    body_size_bytes_max: int = _option("limits", "size", MIB, "A longer request body is answered 413.", 0, GIB)
    pipelined_requests_max: int = _option(
        "limits", "count", 64, "Requests of one connection under way; reading pauses there.", 1, 4096
    )
    input_size_bytes_max: int = _option(
        "limits", "size", 256 * MIB, "Memory for unfinished requests; beyond it, 503.", MIB, 1 << 42,
        flag="--input-memory",
    )  # fmt: skip
    listing_entries_max: int = _option(
        "limits", "count", 10_000, "Entries in the listing of a folder; further ones are left out.", 1, 1_000_000
    )
    upstream_connections_max: int = _option(
        "limits", "count", 64, "Connections of one handler thread to the upstream; requests wait for one.", 1, 4096
    )
    ranges_max: int = _option(
        "limits", "count", 16, "Parts of an answer to a request for several ranges; more get the whole.", 1, 64
    )
    accept_backlog: int = _option("limits", "count", 4096, "Connections that may wait to be accepted.", 1, 65_535)
    kernel_requests_min: int = _option(
        "limits", "count", 8, "Where connections bring fewer requests on average, the engine kernel keeps new ones "
        "from its kernel side; 0: it never does.", 0, 1_000_000,
    )  # fmt: skip

    accept_defer_s: float = _option(
        "timeouts", "seconds", 1.0, "A connection that sends nothing is accepted after this, rounded up to a time-out "
        "of TCP's (1, 3, 7, 15 s, ...); 0 accepts it at once.", 0.0, 60.0,
    )  # fmt: skip
    idle_timeout_s: float = _option(
        "timeouts", "seconds", 75.0, "A connection without a request under way is closed after this.", 0.01, DAY_S
    )
    header_timeout_s: float = _option(
        "timeouts", "seconds", 10.0, "A request head that takes longer to come is answered 408.", 0.01, DAY_S
    )
    body_timeout_s: float = _option(
        "timeouts", "seconds", 30.0, "A request body that makes no progress for this long is answered 408.", 0.01, DAY_S
    )
    send_timeout_s: float = _option(
        "timeouts", "seconds", 30.0, "A client that takes nothing for this long is cut off; a file that a disk does "
        "not find for this long is answered 503.", 0.01, DAY_S,
    )  # fmt: skip
    upstream_connect_timeout_s: float = _option(
        "timeouts", "seconds", 5.0, "A connection to the upstream that takes longer is answered 504.", 0.01, DAY_S
    )
    upstream_timeout_s: float = _option(
        "timeouts", "seconds", 60.0, "An answer of the upstream that takes longer in all is answered 504.", 0.01, DAY_S
    )
    linger_timeout_s: float = _option(
        "timeouts", "seconds", 2.0, "How long a closed connection's last bytes are still read away.", 0.0, DAY_S
    )
    drain_timeout_s: float = _option(
        "timeouts", "seconds", 30.0, "How long a shutdown waits for requests under way.", 0.0, DAY_S
    )

    batch_size_max: int = _option("batch", "count", 1024, "Upper limit of any route's max_batch_size.", 1, 2048)
    handler_queue_slabs: int = _option(
        "batch", "count", 64, "Batches that may be under way between the engine and its handlers.", 2, 4096
    )
    response_arena_size_bytes: int = _option(
        "batch", "size", 16 * MIB, "Memory for the responses of one handler thread.", 64 * KIB, 4 * GIB,
        flag="--response-arena",
    )  # fmt: skip
    response_size_bytes_max: int = _option(
        "batch", "size", 8 * MIB, "A handler's longer response is refused and answered 500.", KIB, 4 * GIB
    )

    cache_size_bytes: int = _option("cache", "size", 256 * MIB, "Memory for cached objects; 0 means none.", 0, 1 << 42)
    cached_file_size_bytes_max: int = _option(
        "cache", "size", MIB, "Larger files are sent from the page cache instead.", 0, GIB
    )
    file_revalidate_s: float = _option(
        "cache", "seconds", 1.0, "How long a cached file is trusted before it is looked at again.", 0.0, DAY_S
    )

    receive_buffers: int = _option(
        "buffers", "count", 2048, "Receive buffers of one engine thread, a power of two.", 16, 32_768, power_of_two=True
    )
    receive_buffer_size_bytes: int = _option("buffers", "size", 2 * KIB, "Size of a receive buffer.", 512, MIB)
    kernel_ring_size_bytes: int = _option(
        "buffers", "size", 4 * MIB, "Ring from the kernel side to one engine thread, a power of two.", 64 * KIB, GIB,
        power_of_two=True, flag="--kernel-ring-size",
    )  # fmt: skip
    copied_size_bytes_max: int = _option(
        "buffers", "size", 16 * KIB, "Responses up to this size, with their head, leave together with others of their "
        "connection, which takes a copy more.", KIB, 16 * KIB,
    )  # fmt: skip
    zero_copy_size_bytes_min: int | str = _option(
        "buffers", "size_or_auto", AUTO, "What is sent at a time from this size on is not copied; auto measures at the "
        "start what is cheaper here.", KIB, MIB,
    )  # fmt: skip

    access_log: str = _option(
        "log", "log", "off", "Access log, Combined format: a path, - for standard output, or off.", command_default="-"
    )
    access_log_buffer_size_bytes: int = _option(
        "log", "size", 256 * KIB, "Log lines go out when this much has gathered, or each second.", 4096, 64 * MIB,
        flag="--access-log-buffer",
    )  # fmt: skip

    routes: Mapping[str, Mapping[str, Any]] = _option(
        "route", "routes", {}, "Changes of batch policies, by the path of their route.", flag=None
    )

    def __post_init__(self) -> None:
        for option in OPTIONS:
            object.__setattr__(self, option.name, option.parse(getattr(self, option.name)))
        if len(self.server_name) > SERVER_NAME_SIZE_MAX:
            raise ConfigError(f"server_name: {len(self.server_name)} characters are more than {SERVER_NAME_SIZE_MAX}")
        if self.sqpoll is not None and self.engine not in ("auto", "kernel"):
            raise ConfigError(f"sqpoll: only the engine kernel has a kernel thread send, and engine is {self.engine!r}")
        if self.sqpoll is not None and self.engine_threads > 1:
            raise ConfigError(
                f"sqpoll: one kernel thread sends for one engine thread, and engine_threads is {self.engine_threads}"
            )
        # What does not fit into the other has its size: so one limit can be set without knowing of the second.
        for small, large in (
            ("target_size_bytes_max", "head_size_bytes_max"),
            ("response_size_bytes_max", "response_arena_size_bytes"),
            ("cached_file_size_bytes_max", "cache_size_bytes"),
        ):
            object.__setattr__(self, small, min(getattr(self, small), getattr(self, large)))
        # A size that was set holds for all responses; what auto finds is about sends, and leaves this as it is.
        if self.zero_copy_size_bytes_min != AUTO:
            copied = min(self.copied_size_bytes_max, int(self.zero_copy_size_bytes_min))
            object.__setattr__(self, "copied_size_bytes_max", copied)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """`bind`, taken apart."""
        return tuple(parse_address(text, "bind") for text in self.bind)

    def replace(self, **changes: Any) -> Config:
        """A copy with these settings changed. Raises ConfigError, also for a name that is no setting."""
        for name in changes:
            if name not in BY_NAME:
                raise ConfigError(f"{name} is not a setting{_did_you_mean(name, BY_NAME)}")
        return replace(self, **changes)

    @classmethod
    def from_toml(cls, path: str | os.PathLike[str]) -> Config:
        """The defaults, changed by a configuration file. Raises ConfigError: no such file, bad TOML, key or value."""
        return cls(**read_toml(path))

    def check_serving(self, route_count: int = 0) -> None:
        """Raises ConfigError for what only matters to a server about to start: it has nothing to serve, its root is
        not a readable folder, or its role lacks the upstream. `route_count` is the number of handlers' routes."""
        if self.role == "frontend" and self.upstream is None:
            raise ConfigError("role: 'frontend' needs upstream, the server that it asks for what it lacks")
        if self.root is not None:
            if not os.path.isdir(self.root):
                problem = "is not a folder" if os.path.lexists(self.root) else "does not exist"
                raise ConfigError(f"root: {self.root!r} {problem}")
            if not os.access(self.root, os.R_OK | os.X_OK):
                raise ConfigError(f"root: {self.root!r} may not be read by this user")
        elif route_count == 0 and self.upstream is None:
            raise ConfigError("nothing to serve: give a root folder, an app with handlers, or an upstream")

    def as_dict(self) -> dict[str, Any]:
        """All settings as plain data, ready for JSON."""
        return json.loads(json.dumps({option.name: getattr(self, option.name) for option in OPTIONS}))  # type: ignore[no-any-return]

    def to_toml(self) -> str:
        """All settings as a configuration file that means the same, each with its help sentence."""
        lines: list[str] = []
        section = None
        for option in OPTIONS:
            value = getattr(self, option.name)
            if option.kind == "routes":
                for path, changes in value.items():
                    lines += ["", f"[route.{_toml(path)}]"]
                    lines += [f"{name} = {_toml(item)}" for name, item in changes.items() if item is not None]
                continue
            if option.section != section:
                section = option.section
                lines += ["", f"[{section}]"]
            spoken = f" ({option.format(value)})" if option.holds_size(value) and value >= KIB else ""
            assignment = f"# {option.name} is not set" if value is None else f"{option.name} = {_toml(value)}"
            lines.append(f"{assignment}  # {option.help}{spoken}")
        return "\n".join(lines).strip() + "\n"


def _rows() -> Iterator[Option]:
    for row in fields(Config):
        metadata = dict(row.metadata)
        if metadata["flag"] == "":
            words = [word for word in row.name.split("_") if word not in ("bytes", "s")]
            metadata["flag"] = "--" + "-".join(words)
        default = row.default if row.default is not MISSING else {}
        yield Option(name=row.name, default=default, **metadata)


#: The table, in the order of declaration.
OPTIONS: tuple[Option, ...] = tuple(_rows())
BY_NAME: dict[str, Option] = {option.name: option for option in OPTIONS}


def _did_you_mean(word: str, known: Any) -> str:
    from difflib import get_close_matches

    close = get_close_matches(word, list(known), 1, 0.5)
    return f"; did you mean {close[0]}?" if close else ""


def _toml(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{_toml(name)} = {_toml(item)}" for name, item in value.items()) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # TOML's basic strings escape as JSON's do, but for the one control character that JSON lets stand.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def read_toml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The settings that a configuration file names, checked one by one. Raises ConfigError with the file's name.

    Relative paths in it (root, app's file, access_log) start at the file's folder.
    """
    import tomllib

    name = os.fspath(path)
    try:
        with open(name, "rb") as file:
            data = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: is not TOML: {error}") from None

    sections: dict[str, list[str]] = {}
    for option in OPTIONS:
        sections.setdefault(option.section, []).append(option.name)
    values: dict[str, Any] = {}
    folder = os.path.dirname(name)
    for section, table in data.items():
        if section == "route":
            values["routes"] = PARSERS["routes"](table, f"{name}: route")
            continue
        if section not in sections:
            if section in BY_NAME:
                raise ConfigError(f"{name}: {section} belongs in the table [{BY_NAME[section].section}]")
            hint = _did_you_mean(section, sections) or f"; there are {', '.join(sections)}"
            raise ConfigError(f"{name}: [{section}] is not a table of the configuration{hint}")
        if not isinstance(table, Mapping):
            raise ConfigError(f"{name}: {section} is a table; write [{section}] and its keys below")
        for key, value in table.items():
            if key not in sections[section]:
                if key in BY_NAME:
                    raise ConfigError(f"{name}: {key} belongs in the table [{BY_NAME[key].section}], not [{section}]")
                hint = _did_you_mean(key, sections[section]) or _did_you_mean(key, BY_NAME)
                raise ConfigError(f"{name}: [{section}] {key} is not a setting{hint}")
            values[key] = _beside(folder, BY_NAME[key], BY_NAME[key].parse(value, f"{name}: [{section}] {key}"))
    return values


def _beside(folder: str, option: Option, value: str) -> Any:
    """A path of a configuration file, seen from the current folder."""
    is_path = option.kind == "path" or (option.kind == "log" and value not in ("-", "off"))
    is_file = option.kind == "app" and (value.rpartition(":")[0].endswith(".py") or "/" in value)
    return os.path.join(folder, value) if is_path or is_file else value
