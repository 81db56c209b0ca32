"""Requests as bytes, with what is expected of their responses: made here, read from files, or learnt from a server.

A file of URLs has a line for each: ``PATH``, or ``WEIGHT PATH``. A file of requests has a JSON object on each line:

    {"path": "/a"}
    {"method": "POST", "path": "/score/sum", "weight": 3, "headers": {"Accept": "*/*"},
     "body_random": {"dtype": "<f4", "shape": [16], "count": 64}, "expect": {"status": 200, "length": 4}}

(on one line). There is at most one of `body` (text), `body_file` (a path, from the file's folder), `body_base64`, and
`body_random`: `count` requests that share the weight, whose bodies are arrays of small whole numbers. `expect` has
`status` (one, or a list of up to 8), `length` of the body in bytes, `body` (text), `body_crc32` (as zlib has it); they
are compared where the first status comes. In both files, empty lines and lines that begin with # are passed over.
"""

from __future__ import annotations

import base64
import binascii
import json
import random
import re
import socket
import zlib
from collections.abc import Iterable, Iterator, Mapping
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from ..cython_ext.load import Exchange
from ..errors import BatchBridgeError

__all__ = [
    "EXCHANGES_MAX",
    "Target",
    "TrafficError",
    "document_exchanges",
    "get",
    "learn",
    "parse_url",
    "random_bodies",
    "read_requests",
    "read_urls",
    "request_bytes",
]

#: How often the next document is asked for, against the one before it in rank: web popularity is Zipf's.
ZIPF_EXPONENT = 0.8

#: Different requests of one load.
EXCHANGES_MAX = 65536
#: A single body, and all bodies of a file that are not read from other files.
BODY_SIZE_BYTES_MAX = 1 << 28

FIELDS = {"method", "path", "headers", "weight", "expect", "body", "body_file", "body_base64", "body_random"}
BODIES = ("body", "body_file", "body_base64", "body_random")
EXPECTATIONS = {"status", "length", "body", "body_crc32"}
#: They follow from the body.
OWN_HEADERS = {"content-length", "transfer-encoding"}

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
TARGET = re.compile(r"/[\x21-\x7e]*")
VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")


class TrafficError(BatchBridgeError):
    """A file of requests, or a URL, makes no sense, or a server does not answer as it must. One sentence."""


class Target(NamedTuple):
    """What a URL names."""

    host: str
    port: int
    path: str
    """With the query."""

    @property
    def authority(self) -> str:
        """As the field Host has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == 80 else f"{host}:{self.port}"


def parse_url(url: str) -> Target:
    """The parts of ``http://HOST[:PORT][/PATH]``. Raises TrafficError."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise TrafficError(f"{url!r} is not a URL: {error}") from None
    if parts.scheme != "http" or not parts.hostname or parts.username is not None or port == 0:
        raise TrafficError(f"{url!r} is not a URL of the form http://HOST[:PORT][/PATH]")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    if not TARGET.fullmatch(path):
        raise TrafficError(f"{url!r} has a space or another character in its path that has to be percent-encoded")
    return Target(parts.hostname, port or 80, path)


# --- made ------------------------------------------------------------------------------------------------------------


def request_bytes(
    method: str,
    target: str,
    *,
    host: str = "127.0.0.1",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    chunks: Iterable[bytes] | None = None,
) -> bytes:
    """A request as it goes over the wire; `body` with its Content-Length, or `chunks` in chunked coding.

    Of `headers`, a Host, User-Agent or Accept replaces ours.
    """
    ours = {"host": ("Host", host), "user-agent": ("User-Agent", "batchbridge-bench"), "accept": ("Accept", "*/*")}
    given = {name.lower() for name in headers or ()}
    fields = [field for name, field in ours.items() if name not in given] + list((headers or {}).items())
    lines = [f"{method} {target} HTTP/1.1", *(f"{name}: {value}" for name, value in fields)]
    payload = b""
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
        payload = body
    elif chunks is not None:
        lines.append("Transfer-Encoding: chunked")
        payload = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + payload


def get(*paths: str, host: str = "127.0.0.1") -> list[Exchange]:
    """GET requests, all equally often, that must be answered with 200 unless learn() finds another status."""
    return [Exchange(request_bytes("GET", path, host=host), name=f"GET {path}") for path in paths]


def document_exchanges(root: Path, count: int, size_bytes_max: int, weight: float, seed: int = 1) -> list[Exchange]:
    """GET requests of up to `count` files below `root`, none larger than `size_bytes_max`.

    Which files, and in which rank, is a matter of `seed`; their weights fall by Zipf's law and add up to `weight`.
    """
    found = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not path.is_symlink() and 0 < path.stat().st_size <= size_bytes_max
    )
    chosen = random.Random(seed).sample(found, min(count, len(found)))
    shares = [1 / rank**ZIPF_EXPONENT for rank in range(1, len(chosen) + 1)]
    return [
        Exchange(
            request_bytes("GET", "/" + quote(path.relative_to(root).as_posix())),
            weight=weight * share / sum(shares),
            body=path.read_bytes(),
        )
        for path, share in zip(chosen, shares, strict=True)
    ]


def random_bodies(dtype: str, shape: Iterable[int], count: int, seed: int) -> list[bytes]:
    """`count` arrays of whole numbers from -100 to 100 (from 0 where there is no sign), whose sums floats keep exactly.

    Raises ValueError for what is no array of numbers.
    """
    try:
        import numpy as np
    except ModuleNotFoundError:
        raise ValueError("random bodies need numpy, which is not installed") from None
    try:
        kind = np.dtype(dtype)
    except TypeError:
        raise ValueError(f"dtype {dtype!r} is none of numpy's") from None
    if kind.kind not in "iuf":
        raise ValueError(f"dtype {dtype!r} is not one of whole or floating-point numbers")
    shape = tuple(shape)
    size_bytes = kind.itemsize * int(np.prod(shape, dtype=object)) * count
    if size_bytes > BODY_SIZE_BYTES_MAX:
        raise ValueError(f"its bodies have {size_bytes} bytes, and at most {BODY_SIZE_BYTES_MAX} are allowed")
    numbers = np.random.default_rng(seed).integers(0 if kind.kind == "u" else -100, 101, (count, *shape))
    return [array.astype(kind).tobytes() for array in numbers]


# --- read from files -------------------------------------------------------------------------------------------------


def read_urls(path: str | Path, *, host: str = "127.0.0.1") -> list[Exchange]:
    """GET requests of a file of paths, each with its weight. Raises TrafficError, which names file and line."""
    found = []
    for where, line in _lines(path):
        first, _, rest = line.partition(" ")
        weight, target = (first, rest.strip()) if rest else ("1", first)
        if not TARGET.fullmatch(target):
            raise TrafficError(f"{where}: {line!r} is neither PATH nor WEIGHT PATH, where PATH begins with /")
        try:
            data = request_bytes("GET", target, host=host)
            found.append(Exchange(data, weight=float(weight), name=f"GET {target}"))
        except ValueError:
            raise TrafficError(f"{where}: the weight {weight!r} is not a number above 0") from None
    return _some(found, path)


def read_requests(path: str | Path, *, host: str = "127.0.0.1", seed: int = 1) -> list[Exchange]:
    """Requests of a file of JSON lines, as this module says. `seed`: of the random bodies.

    Raises TrafficError, which names file and line.
    """
    found: list[Exchange] = []
    for number, (where, line) in enumerate(_lines(path)):
        try:
            asked = json.loads(line)
            if not isinstance(asked, dict):
                raise ValueError("is not a JSON object")
            found += _requests_of(asked, Path(path).parent, host, seed + number)
        except json.JSONDecodeError as error:
            raise TrafficError(f"{where}: this is not JSON: {error.msg} at column {error.colno}") from None
        except (ValueError, RecursionError) as error:
            raise TrafficError(f"{where}: {error}") from None
        if len(found) > EXCHANGES_MAX:
            raise TrafficError(f"{where}: these are more than {EXCHANGES_MAX} different requests")
    return _some(found, path)


def _lines(path: str | Path) -> Iterator[tuple[str, str]]:
    """Lines that say something: FILE:NUMBER, and the line."""
    try:
        text = Path(path).read_text("utf-8")
    except OSError as error:
        raise TrafficError(f"cannot read {path}: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        raise TrafficError(f"{path} is not a file of UTF-8 text") from None
    for number, line in enumerate(text.split("\n"), 1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            yield f"{path}:{number}", stripped


def _some(found: list[Exchange], path: str | Path) -> list[Exchange]:
    if not found:
        raise TrafficError(f"{path} has no request in it")
    if len(found) > EXCHANGES_MAX:
        raise TrafficError(f"{path} has {len(found)} requests, and at most {EXCHANGES_MAX} are allowed")
    return found


def _requests_of(asked: dict[str, Any], folder: Path, host: str, seed: int) -> list[Exchange]:
    """The requests of one line. Raises ValueError."""
    _refuse_unknown(asked, FIELDS, "field")
    method, target = asked.get("method", "GET"), asked.get("path")
    if not isinstance(method, str) or not TOKEN.fullmatch(method):
        raise ValueError(f"method {method!r} is no method")
    if not isinstance(target, str) or not TARGET.fullmatch(target):
        raise ValueError(f"path {target!r} does not begin with /, or has a character that has to be percent-encoded")
    headers = _headers(asked.get("headers", {}))
    expected = _expectation(asked.get("expect", {}))
    weight = asked.get("weight", 1)
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        raise ValueError(f"weight {weight!r} is not a number above 0")
    bodies = _bodies(asked, folder, seed)
    name = f"{method} {target}"
    return [
        Exchange(
            request_bytes(method, target, host=host, headers=headers, body=body),
            weight=weight / len(bodies),
            name=name if len(bodies) == 1 else f"{name} with body {number}",
            **expected,
        )
        for number, body in enumerate(bodies, 1)
    ]


def _refuse_unknown(given: dict[str, Any], known: set[str], word: str) -> None:
    for name in given:
        if name not in known:
            raise ValueError(f"{name!r} is no {word}: there are {', '.join(sorted(known))}")


def _headers(headers: Any) -> dict[str, str]:
    if not isinstance(headers, dict):
        raise ValueError("headers is not an object of names and values")
    for name, value in headers.items():
        if not TOKEN.fullmatch(name) or not isinstance(value, str) or not VALUE.fullmatch(value):
            raise ValueError(f"the header line {name!r}: {value!r} cannot be sent")
        if name.lower() in OWN_HEADERS:
            raise ValueError(f"the header line {name!r} follows from the body, and cannot be given")
    return headers


def _bodies(asked: dict[str, Any], folder: Path, seed: int) -> list[bytes] | list[None]:
    given = [name for name in BODIES if name in asked]
    if len(given) > 1:
        raise ValueError(f"{given[0]} and {given[1]} are two bodies")
    if not given:
        return [None]
    value = asked[given[0]]
    if given[0] == "body_random":
        return _random(value, seed)
    if not isinstance(value, str):
        raise ValueError(f"{given[0]} is not text")
    if given[0] == "body":
        return [value.encode()]
    if given[0] == "body_base64":
        try:
            return [base64.b64decode(value, validate=True)]
        except binascii.Error as error:
            raise ValueError(f"body_base64 is not base64: {error}") from None
    try:
        if (folder / value).stat().st_size > BODY_SIZE_BYTES_MAX:
            raise ValueError(f"body_file {value!r} has more than {BODY_SIZE_BYTES_MAX} bytes")
        return [(folder / value).read_bytes()]
    except OSError as error:
        raise ValueError(f"body_file {value!r} cannot be read: {(error.strerror or str(error)).lower()}") from None


def _random(value: Any, seed: int) -> list[bytes]:
    if not isinstance(value, dict):
        raise ValueError("body_random is not an object with dtype, shape and count")
    _refuse_unknown(value, {"dtype", "shape", "count"}, "field of body_random")
    shape, count = value.get("shape", [1]), value.get("count", 1)
    if not isinstance(shape, list) or not all(_is_whole(length, 1, BODY_SIZE_BYTES_MAX) for length in shape):
        raise ValueError(f"shape {shape!r} is not a list of whole numbers above 0")
    if not _is_whole(count, 1, EXCHANGES_MAX):
        raise ValueError(f"count {count!r} is not a whole number from 1 to {EXCHANGES_MAX}")
    if not isinstance(value.get("dtype"), str):
        raise ValueError('body_random has no dtype, such as "<f4"')
    return random_bodies(value["dtype"], shape, count, seed)


def _is_whole(value: Any, least: int, largest: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= largest


def _expectation(expect: Any) -> dict[str, Any]:
    """What Exchange takes."""
    if not isinstance(expect, dict):
        raise ValueError("expect is not an object")
    _refuse_unknown(expect, EXPECTATIONS, "expectation")
    found: dict[str, Any] = {}
    if "status" in expect:
        statuses = expect["status"] if isinstance(expect["status"], list) else [expect["status"]]
        if not 1 <= len(statuses) <= 8 or not all(_is_whole(status, 200, 599) for status in statuses):
            raise ValueError(f"the status {expect['status']!r} is not one from 200 to 599, or a list of up to 8")
        found["statuses"] = tuple(statuses)
    if "body" in expect:
        if not isinstance(expect["body"], str):
            raise ValueError("the expected body is not text")
        found["body"] = expect["body"].encode()
    if "length" in expect:
        if not _is_whole(expect["length"], 0, 1 << 48):
            raise ValueError(f"the length {expect['length']!r} is not a whole number from 0")
        if "body" in found and expect["length"] != len(found["body"]):
            raise ValueError(f"the length {expect['length']} is not that of the expected body")
        found["length"] = expect["length"]
    if "body_crc32" in expect:
        if not _is_whole(expect["body_crc32"], 0, 0xFFFFFFFF):
            raise ValueError(f"body_crc32 {expect['body_crc32']!r} is not a whole number below 2**32")
        found["crc32"] = expect["body_crc32"]
    return found


# --- learnt from a server --------------------------------------------------------------------------------------------


def learn(
    host: str, port: int, exchanges: Iterable[Exchange], *, bodies: bool = True, timeout_s: float = 10.0
) -> list[Exchange]:
    """Asks each once, and takes what the server says as what it has to say later: status, length and checksum.

    What an exchange expects already stays, and is compared. `bodies`: learns checksums too, which answers that differ
    each time do not have. Raises TrafficError where the server does not answer, answers otherwise than expected, or
    with a status from 400 on that was not expected.
    """
    return [_learn_one(host, port, exchange, bodies, timeout_s) for exchange in exchanges]


def _learn_one(host: str, port: int, exchange: Exchange, bodies: bool, timeout_s: float) -> Exchange:
    status, length, crc32 = _ask(host, port, exchange, timeout_s)
    if exchange.is_status_given and status not in exchange.statuses:
        wanted = " or ".join(map(str, exchange.statuses))
        raise TrafficError(f"{exchange.name} is answered with status {status} instead of {wanted}")
    if not exchange.is_status_given and status >= 400:
        raise TrafficError(f"{exchange.name} is answered with status {status}; if that is meant, say it in `expect`")
    changes: dict[str, Any] = {"statuses": exchange.statuses if exchange.is_status_given else (status,)}
    # Only the first status's body is compared, so another one's tells nothing.
    if status == changes["statuses"][0]:
        wanted_crc32 = exchange.crc32 if exchange.body is None else zlib.crc32(exchange.body)
        if exchange.length is not None and length != exchange.length:
            raise TrafficError(f"{exchange.name} is answered with {length} bytes instead of {exchange.length}")
        if wanted_crc32 is not None and crc32 != wanted_crc32 and not exchange.data.startswith(b"HEAD "):
            raise TrafficError(f"{exchange.name} is answered with another body than the expected one")
        changes["length"] = length
        if bodies and exchange.body is None and not exchange.data.startswith(b"HEAD "):
            changes["crc32"] = crc32
    kept = {name: getattr(exchange, name) for name in ("weight", "body", "length", "crc32", "name")}
    return Exchange(exchange.data, **{**kept, **changes})


def _ask(host: str, port: int, exchange: Exchange, timeout_s: float) -> tuple[int, int | None, int]:
    """Status, length (of HEAD: what Content-Length says) and CRC-32 of an answer's body."""
    try:
        with socket.create_connection((host, port), timeout_s) as connection:
            connection.sendall(exchange.data)
            response = HTTPResponse(connection, method=exchange.data.partition(b" ")[0].decode("latin-1"))
            response.begin()
            told = response.length
            length = crc32 = 0
            while piece := response.read(1 << 16):
                length += len(piece)
                crc32 = zlib.crc32(piece, crc32)
            is_head = exchange.data.startswith(b"HEAD ")
            if is_head:
                content_length = response.headers.get("Content-Length", "")
                return response.status, int(content_length) if content_length.isdigit() else None, 0
            if told is not None and length != told:
                raise TrafficError(f"{exchange.name} is answered with {length} of {told} bytes")
            return response.status, length, crc32
    except TimeoutError:
        raise TrafficError(f"{host}:{port} did not answer {exchange.name} within {timeout_s:g} s") from None
    except (OSError, HTTPException, OverflowError) as error:
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error) or type(error).__name__
        raise TrafficError(f"{host}:{port} did not answer {exchange.name}: {what.lower()}") from None
