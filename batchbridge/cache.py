"""A server's cache, as Python steers it: purges and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from .errors import PurgeError

if TYPE_CHECKING:
    from .cython_ext.engine import EngineThread

__all__ = ["Cache"]

#: What the engines call them (cython_ext/cache.pxd: PurgeKind).
PURGE_KINDS = {"url": 0, "prefix": 1, "tag": 2}


class Purged(Protocol):
    """What is asked of the server."""

    @property
    def engines(self) -> Sequence[EngineThread]:
        """Those that run, each with a cache of its own."""

    def stats(self) -> Mapping[str, Any]:
        """The counters of all together."""


class Cache:
    """A server's cache, as far as Python steers it."""

    def __init__(self, server: Purged) -> None:
        self._server = server

    def purge(
        self, *, url: str | None = None, prefix: str | None = None, tag: str | None = None, soft: bool = False
    ) -> int:
        """Makes objects unusable: those of a URL in all variants, those whose path begins so, or those with a tag.

        `url` is a path with its query, as requested, for all hosts; or http://HOST/PATH, for one, as requests name it.
        When it returns, no engine answers with the old bytes any more. `soft`: they become stale instead. A stale file
        is compared with what is on the disk before it is used; of a stale answer a new one is asked for by the first
        who wants it, while others are given the old one for at most a second.

        Returns how many objects it hit. (One that an earlier purge hit in a cache of thousands may be counted again.)
        Tags, URLs, and prefixes that end with "/" take the same time however many these are; for other prefixes every
        object is looked at. Raises ValueError unless one of the three is given, PurgeError for what can be no URL,
        prefix or tag.
        """
        given = {name: text for name, text in (("url", url), ("prefix", prefix), ("tag", tag)) if text is not None}
        if len(given) != 1:
            raise ValueError(f"purge takes one of url, prefix and tag, not {len(given)} of them")
        (name, text), *_ = given.items()
        wanted = _purge_text(name, text)
        return sum(engine.purge(PURGE_KINDS[name], wanted, soft) for engine in self._server.engines)

    def stats(self) -> dict[str, Any]:
        """Objects, bytes, hits, misses and so on, of all engines together."""
        return dict(self._server.stats()["cache"])


def _purge_text(name: str, text: str) -> bytes:
    """What an engine calls the URL, prefix or tag; a host's name goes behind a NUL."""
    try:
        wanted = text.encode()
    except UnicodeEncodeError:
        raise PurgeError(f"{name}: {text!r} cannot be written as UTF-8") from None
    if b"\0" in wanted:
        raise PurgeError(f"{name}: {text!r} contains a NUL")
    if name == "tag" or not text.startswith(("http://", "https://")):
        return wanted
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise PurgeError(f"{name}: {text!r} is not a URL: {error}") from None
    if name == "prefix":
        raise PurgeError(f"prefix: {text!r} names a host; a prefix is that of a path, such as {parts.path or '/'!r}")
    target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return target.encode() + b"\0" + parts.netloc.encode()
