"""What the gateways to other servers' interfaces share: header rules, the server's own address, and one answer's rules.

A gateway (:mod:`.wsgi`, :mod:`.asgi`, :mod:`.upstream`) takes an answer that was made for a server of its own kind, so
some of its header fields are about a connection that is not the client's.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from .errors import BatchBridgeError
from .values import Address

if TYPE_CHECKING:
    from .cython_ext.messages import Request
    from .server import Server

__all__ = ["HOP_BY_HOP", "ApplicationError", "Body", "Fields", "connection_options", "respond", "server_address"]

Fields = list[tuple[bytes, bytes]]

#: Fields about one connection (RFC 9110 section 7.6.1, and the older names that it lists), never passed on.
HOP_BY_HOP = frozenset(
    (
        b"connection", b"keep-alive", b"proxy-authenticate", b"proxy-authorization", b"proxy-connection", b"te",
        b"trailer", b"transfer-encoding", b"upgrade",
    )
)  # fmt: skip

#: Fields of a response that the engine writes itself.
ENGINE_FIELDS = HOP_BY_HOP | {b"content-length", b"date", b"server"}

#: Statuses whose responses have no content, whatever was given with them (RFC 9110 sections 15.3.5, 15.4.5).
WITHOUT_CONTENT = (204, 304)


class ApplicationError(BatchBridgeError):
    """An application broke the rules of its interface: this one request is answered 500, and the log tells why."""


class Body:
    """A response's body, collected from its pieces up to a limit. Raises ApplicationError beyond it."""

    def __init__(self, size_bytes_max: int) -> None:
        self.size_bytes_max = size_bytes_max
        self.size_bytes = 0
        self._pieces: list[bytes] = []

    def add(self, piece: bytes) -> None:
        """Takes one more piece."""
        self.size_bytes += len(piece)
        if self.size_bytes > self.size_bytes_max:
            raise ApplicationError(f"the response is larger than response_size_bytes_max, {self.size_bytes_max} bytes")
        if piece:
            self._pieces.append(piece)

    def whole(self) -> bytes:
        """All of it."""
        return self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)


def connection_options(values: Iterable[str | bytes]) -> set[bytes]:
    """The names in Connection fields, in lower case: further fields that are not passed on."""
    text = b",".join(value if isinstance(value, bytes) else value.encode("latin-1") for value in values)
    return {name.strip(b" \t").lower() for name in text.split(b",")}


def respond(request: Request, status: int, fields: Fields, body: bytes) -> None:
    """Answers a request with what a gateway was given, without the fields that are the engine's to set.

    Raises ApplicationError for a Content-Length that is no number or not the body's, and ValueError for a status or a
    field that cannot be sent. An answer to HEAD without content keeps its Content-Length: only its author knows it.
    """
    dropped = ENGINE_FIELDS | connection_options(value for name, value in fields if name.lower() == b"connection")
    passed = [(name, value) for name, value in fields if name.lower() not in dropped]
    lengths = {value.strip() for name, value in fields if name.lower() == b"content-length"}
    if lengths and status not in WITHOUT_CONTENT:
        length = lengths.pop()
        if lengths or not length.isdigit():
            raise ApplicationError(f"the response has a Content-Length that is no number: {length!r}")
        if body or request.method != "HEAD":
            if int(length) != len(body):
                raise ApplicationError(f"the response's Content-Length is {int(length)}, its body {len(body)} bytes")
        else:
            passed.append((b"Content-Length", length))
    # An empty content_type: no type is made up for content that its author gave none.
    request.respond(body, status=status, content_type="", headers=passed)


def server_address(server: Server) -> Address:
    """The address by which applications are told to know the server: the first that it listens on."""
    if not server.urls:
        return server.config.addresses[0]
    parts = urlsplit(server.urls[0])
    return Address(parts.hostname or "", parts.port or 80)
