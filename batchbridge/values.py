"""Text and plain data to checked values: sizes, durations, addresses and the like, for :mod:`batchbridge.config`.

Each function takes a value (text with a unit, or already the right type) and a label, the name that an error calls it
by, and returns the checked value or raises ConfigError with one sentence.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from .errors import ConfigError
from .policy import check_field, one_of

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

#: What an engine has room for, of names such as those of index files.
FILE_NAMES_MAX, FILE_NAME_SIZE_BYTES_MAX = 8, 63

#: A size that is to be found out.
AUTO = "auto"

#: Content codings that a file's siblings can have.
CODINGS = ("br", "zstd", "gzip")

SIZE_UNITS = {
    "": 1, "b": 1,
    "k": KIB, "kib": KIB, "m": MIB, "mib": MIB, "g": GIB, "gib": GIB,
    "kb": 10**3, "mb": 10**6, "gb": 10**9,
}  # fmt: skip
DURATION_UNITS_US = {
    "us": 1, "µs": 1, "ms": 10**3, "s": 10**6, "min": 60 * 10**6, "h": 3600 * 10**6,
}  # fmt: skip


def _split_unit(text: str) -> tuple[str, str]:
    text = text.strip()
    end = len(text.rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZµ"))
    return text[:end].strip(), text[end:].lower()


def _number(text: str) -> float | int | None:
    """What `text` says in plain decimal notation (digits may be grouped by "_"), or None."""
    if not text or text.strip("0123456789._") or text.count(".") > 1:
        return None
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return None


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def parse_size(value: Any, label: str) -> int:
    """Bytes from a whole number or text such as "64k" or "256MiB". Raises ConfigError, which calls it `label`."""
    amount: float | None = value if _is_number(value) else None
    if isinstance(value, str):
        number, unit = _split_unit(value)
        parsed = _number(number)
        if parsed is not None and unit in SIZE_UNITS:
            amount = parsed * SIZE_UNITS[unit]
    if amount is None or amount < 0 or amount == float("inf") or amount != int(amount):
        raise ConfigError(f"{label}: {value!r} is not a size; give bytes, or a unit with it, such as 64k or 2MiB")
    return int(amount)


def _size_or_auto(value: Any, label: str) -> int | str:
    if isinstance(value, str) and value.strip().lower() == AUTO:
        return AUTO
    try:
        return parse_size(value, label)
    except ConfigError as error:
        raise ConfigError(f"{error}, or auto") from None


def _parse_duration(value: Any, label: str, unit: str) -> float | int:
    amount: float | None = value if _is_number(value) else None
    if isinstance(value, str):
        number, given = _split_unit(value)
        parsed = _number(number)
        factor_us = DURATION_UNITS_US.get(given or unit)
        if parsed is not None and factor_us is not None:
            amount = parsed if (given or unit) == unit else parsed * factor_us / DURATION_UNITS_US[unit]
    if amount is None or amount < 0 or amount == float("inf"):
        name = {"s": "seconds", "us": "microseconds"}[unit]
        example = {"s": "500ms or 75s", "us": "200us or 10ms"}[unit]
        raise ConfigError(f"{label}: {value!r} is not a duration; give {name}, or a unit with it, such as {example}")
    return amount


def parse_duration(value: Any, label: str) -> float:
    """Seconds from a number or text such as "10ms" or "75s". Raises ConfigError, which calls it `label`."""
    return float(_parse_duration(value, label, "s"))


def parse_duration_us(value: Any, label: str) -> int:
    """Whole microseconds from a number or text such as "200us" or "10ms". Raises ConfigError."""
    amount = _parse_duration(value, label, "us")
    if amount != int(amount):
        raise ConfigError(f"{label}: {value!r} is not a whole number of microseconds")
    return int(amount)


def format_size(size_bytes: int) -> str:
    """Bytes as people say them: 262144 is "256 KiB"."""
    for unit, name in ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")):
        if size_bytes >= unit:
            return f"{round(size_bytes / unit, 1):g} {name}"
    return f"{size_bytes} B"


def format_duration(duration_s: float) -> str:
    """Seconds as people say them: 0.01 is "10 ms"."""
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        if duration_s >= unit:
            return f"{round(duration_s / unit, 3):g} {name}"
    return f"{round(duration_s * 1e6, 3):g} µs"


class Address(NamedTuple):
    """Where to listen or connect: a host name or IP address (an IPv6 one without brackets), and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(value: Any, label: str, default_port: int | None = None) -> Address:
    """An address from "HOST:PORT" or "[IPV6]:PORT"; port 0 lets the system choose. Raises ConfigError."""
    if isinstance(value, Address):
        value = str(value)
    wrong = f"{label}: {value!r} is not HOST:PORT; give for example 127.0.0.1:8080 or [::1]:8080"
    if not isinstance(value, str):
        raise ConfigError(wrong)
    if default_port is not None and (":" not in value or value.endswith("]")):
        value = f"{value}:{default_port}"
    host, colon, port = value.rpartition(":")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
        import socket

        try:
            socket.inet_pton(socket.AF_INET6, host.partition("%")[0])
        except OSError:
            raise ConfigError(f"{label}: {value!r} holds no IPv6 address in its brackets") from None
    elif ":" in host:
        raise ConfigError(f"{label}: {value!r} is not HOST:PORT; put an IPv6 address in brackets, as in [::1]:8080")
    if not colon or not host or any(c in host for c in " /@[]") or not (port.isascii() and port.isdigit()):
        raise ConfigError(wrong)
    if int(port) > 65_535:
        raise ConfigError(f"{label}: port {port} is out of range; 0 to 65535 are allowed")
    return Address(host, int(port))


def _text(value: Any, label: str) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ConfigError(f"{label}: {value!r} is not a text")
    return value


def _path(value: Any, label: str) -> str:
    if isinstance(value, os.PathLike):
        value = os.fspath(value)
    if not isinstance(value, str) or not value or "\0" in value:
        raise ConfigError(f"{label}: {value!r} is not a path")
    return value


def _app(value: Any, label: str) -> str:
    where, colon, what = _text(value, label).rpartition(":")
    if not colon or not where or not all(part.isidentifier() for part in what.split(".")):
        raise ConfigError(f"{label}: {value!r} is not MODULE_OR_FILE:OBJECT, such as examples/hello.py:server")
    return str(value)


def _upstream(value: Any, label: str) -> str:
    text = _text(value, label)
    rest = text.removeprefix("http://").removesuffix("/")
    if not text.startswith("http://") or "/" in rest:
        raise ConfigError(f"{label}: {value!r} is not http://HOST:PORT (no path, no https)")
    parse_address(rest, label, default_port=80)
    return f"http://{rest}"


def _token(value: Any, label: str) -> str:
    """The Server header's value; the empty text means none."""
    if not isinstance(value, str) or not all(32 < ord(c) < 127 for c in value):
        raise ConfigError(f"{label}: {value!r} is not a server name; use printable ASCII without spaces, or nothing")
    return value


def _items(value: Any, label: str) -> Iterator[Any]:
    if isinstance(value, (str, Address)):
        return iter((value,))
    if not isinstance(value, (list, tuple)):
        raise ConfigError(f"{label}: {value!r} is not a list")
    return iter(value)


def _addresses(value: Any, label: str) -> tuple[str, ...]:
    addresses = tuple(str(parse_address(item, label)) for item in _items(value, label))
    if not addresses:
        raise ConfigError(f"{label}: the list is empty; give at least one HOST:PORT")
    return addresses


def _file_names(value: Any, label: str) -> tuple[str, ...]:
    names = tuple(_path(item, label) for item in _items(value, label))
    for name in names:
        if "/" in name or name in (".", ".."):
            raise ConfigError(f"{label}: {name!r} is not a file name")
        if len(name.encode()) > FILE_NAME_SIZE_BYTES_MAX:
            raise ConfigError(f"{label}: {name!r} is longer than {FILE_NAME_SIZE_BYTES_MAX} bytes")
    if len(names) > FILE_NAMES_MAX:
        raise ConfigError(f"{label}: {len(names)} names are too many; the most is {FILE_NAMES_MAX}")
    return names


def _codings(value: Any, label: str) -> tuple[str, ...]:
    names = tuple(_text(item, label) for item in _items(value, label))
    for name in names:
        if name not in CODINGS:
            raise ConfigError(f"{label}: {name!r} is not known; choose {one_of(CODINGS)}")
        if names.count(name) > 1:
            raise ConfigError(f"{label}: {name!r} is named twice")
    return names


def _mime(value: Any, label: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        pairs = [_text(item, label).partition("=") for item in _items(value, label)]
        value = {extension: media_type for extension, _, media_type in pairs}
    result = {}
    for extension, media_type in value.items():
        usable = isinstance(media_type, str) and media_type.isascii() and media_type.isprintable()
        if not usable or not all(media_type.partition("/")) or " " in media_type.partition(";")[0]:
            raise ConfigError(f"{label}: {media_type!r} for {extension!r} is not a media type, such as text/html")
        name = f".{_text(extension, label).lstrip('.').lower()}"
        if name == "." or "/" in name:
            raise ConfigError(f"{label}: {extension!r} is not a file name extension, such as .wasm")
        result[name] = media_type
    return result


def _switch(value: Any, label: str) -> bool:
    if not isinstance(value, bool):
        raise ConfigError(f"{label}: {value!r} is not true or false")
    return value


def _count(value: Any, label: str) -> int:
    number = _number(value.strip()) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int):
        raise ConfigError(f"{label}: {value!r} is not a whole number")
    return int(number)


def _routes(value: Any, label: str) -> dict[str, dict[str, Any]]:
    """Batch policy changes by route path: `{path: {field: value}}`, or a list of tables that name their `path`."""
    if isinstance(value, (list, tuple)):
        tables: dict[str, Any] = {}
        for table in value:
            path = table.get("path") if isinstance(table, Mapping) else None
            if not isinstance(path, str):
                raise ConfigError(f'{label}: a [[route]] table needs its path, such as path = "/score/{{model}}"')
            if path in tables:
                raise ConfigError(f"{label}: {path!r} is there twice")
            tables[path] = {name: setting for name, setting in table.items() if name != "path"}
        value = tables
    if not isinstance(value, Mapping):
        raise ConfigError(f"{label}: {value!r} is not a table of routes")
    routes = {}
    for path, table in value.items():
        if not isinstance(path, str) or not path.startswith("/"):
            raise ConfigError(f"{label}: {path!r} is not the path of a route; it begins with /")
        if not isinstance(table, Mapping):
            raise ConfigError(f"{label}: {path!r} needs a table of batch policy settings, not {table!r}")
        changes = {}
        for name, setting in table.items():
            where = f'{label}."{path}" {name}'
            if name.endswith("_us") and setting is not None:
                setting = parse_duration_us(setting, where)
            changes[name] = check_field(name, setting, where)
        routes[path] = changes
    return routes


#: What a setting holds, and so how a value becomes it.
PARSERS: dict[str, Callable[[Any, str], Any]] = {
    "address": lambda value, label: str(parse_address(value, label)),
    "addresses": _addresses,
    "app": _app,
    "choice": _text,
    "codings": _codings,
    "core": _count,
    "count": _count,
    "file_names": _file_names,
    "log": _path,
    "mime": _mime,
    "path": _path,
    "routes": _routes,
    "seconds": parse_duration,
    "size": parse_size,
    "size_or_auto": _size_or_auto,
    "switch": _switch,
    "token": _token,
    "url": _upstream,
}
