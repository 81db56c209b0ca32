"""Requests as bytes, with what is expected of their responses."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from urllib.parse import quote

from batchbridge.cython_ext.load import Exchange

#: How often the next document is asked for, against the one before it in rank: web popularity is Zipf's.
ZIPF_EXPONENT = 0.8


def request_bytes(
    method: str,
    target: str,
    *,
    host: str = "127.0.0.1",
    headers: Mapping[str, str] | None = None,
    body: bytes | None = None,
    chunks: Iterable[bytes] | None = None,
) -> bytes:
    """A request as it goes over the wire; `body` with its Content-Length, or `chunks` in chunked coding."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", "User-Agent: batchbridge-bench", "Accept: */*"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    payload = b""
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
        payload = body
    elif chunks is not None:
        lines.append("Transfer-Encoding: chunked")
        payload = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + payload


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
