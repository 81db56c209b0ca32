"""What stands behind all routes: handlers that the configuration asks for, and no application declares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import ConfigError
from .handlers import Handler
from .policy import BatchPolicy

if TYPE_CHECKING:
    from .server import Server

__all__ = ["fallback_handlers"]

#: Batches that a gateway may work on at the same time, for each handler thread. Fewer than a thread is given in all, so
#: that an upstream or application that hangs leaves room for the routes' own handlers.
OVERLAPPING_BATCHES = 24


def fallback_handlers(server: Server) -> list[Handler]:
    """The handlers for folder listings, for a WSGI or ASGI application and for an upstream, as far as asked for.

    Each answers every item by itself, so its answers leave one by one and nothing of it ever runs twice. Raises
    ConfigError for what cannot be a handler.
    """
    config = server.config
    threads = max(1, config.handler_threads)
    overlapping = min(256, OVERLAPPING_BATCHES * threads)
    handlers = []
    if config.directory_listing and config.root is not None:
        from .listing import DirectoryListing

        handlers.append(fallback(server, "listing", "(listing)", DirectoryListing(server).run, concurrency=1))
    if server.wsgi is not None:
        from .wsgi import WsgiGateway

        # Small batches: one thread works through them, while another that is free might have taken a part.
        function = WsgiGateway(checked(server.wsgi, "wsgi"), server).run
        handlers.append(fallback(server, "fallback", "(wsgi)", function, max_batch_size=8, concurrency=threads))
    if server.asgi is not None:
        from .asgi import AsgiGateway

        asgi = AsgiGateway(checked(server.asgi, "asgi"), server)
        handlers.append(
            fallback(server, "fallback", "(asgi)", asgi.run, lifespan=asgi.lifespan, concurrency=overlapping)
        )
    if config.upstream is not None:
        from .upstream import UpstreamGateway

        upstream = UpstreamGateway(server)
        handlers.append(
            fallback(server, "remote", "(upstream)", upstream.run, lifespan=upstream.lifespan, concurrency=overlapping)
        )
    return handlers


def fallback(
    server: Server,
    kind: str,
    name: str,
    function: Any,
    *,
    lifespan: Any = None,
    max_batch_size: int = 64,
    **policy: Any,
) -> Handler:
    """One of them: `kind` tells the engine its place, `name` stands for its path in logs and figures."""
    size = min(max_batch_size, server.config.batch_size_max)
    batches = BatchPolicy(max_batch_size=size, response_batch_size=1, on_error="fail", **policy)
    return Handler(name, function, batches, methods=(), kind=kind, lifespan=lifespan)


def checked(application: Any, setting: str) -> Any:
    """The application, if it can be called. Raises ConfigError."""
    if not callable(application):
        raise ConfigError(f"{setting}: {application!r} is not an application; it cannot be called")
    return application
