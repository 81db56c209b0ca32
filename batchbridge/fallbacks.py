"""What stands behind all routes: handlers that the configuration asks for, and no application declares."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .handlers import Handler

if TYPE_CHECKING:
    from .server import Server

__all__ = ["fallback_handlers"]


def fallback_handlers(server: Server) -> list[Handler]:
    """The handlers for directory listings, for a WSGI or ASGI application and for an upstream, as far as asked for."""
    return []
