"""The admin server: health check, metrics, statistics, run-time policy and purging, over plain HTTP.

It is started only where `admin` is configured, serves a few clients at a time from threads of its own, and never
touches the engine's loops. It knows no users: bind it to loopback or a private network.

===========================  =========================================================================================
GET /healthz                 200 "ok"; 503 "draining" once a shutdown has begun
GET /metrics                 Prometheus' text format
GET /stats                   ``server.stats()`` as JSON
GET /policy?path=P           the batch policy of route P as JSON; without path, of all routes
POST /policy?path=P          changes it: a JSON object of policy fields; answers with the policy as it is then
GET /cache/stats             the cache's part of the statistics
POST /cache/purge            a JSON object with one of url, prefix and tag, and perhaps ``"soft": true``; answers
                             with it, and how many objects it hit as "purged"
===========================  =========================================================================================

A POST must say ``Content-Type: application/json``. That is what keeps web pages that an operator's browser shows from
purging: a browser asks before it sends that type to another origin, and is not answered.
"""

from __future__ import annotations

import errno
import json
import logging
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Unpack
from urllib.parse import parse_qs, urlsplit

from .errors import BatchBridgeError, BindError, HTTPError
from .policy import BatchPolicy, PolicyFields
from .values import Address, parse_address

__all__ = ["AdminServer", "Administered", "start"]

logger = logging.getLogger("batchbridge.admin")

BODY_SIZE_BYTES_MAX = 64 * 1024
CLIENTS_MAX = 16
CLIENT_TIMEOUT_S = 10.0
OUT_OF_RESOURCES_PAUSE_S = 0.1
JSON, TEXT = "application/json", "text/plain; charset=utf-8"


class Cache(Protocol):
    """What is asked of a server's cache."""

    def purge(
        self, *, url: str | None = None, prefix: str | None = None, tag: str | None = None, soft: bool = False
    ) -> int:
        """Makes what matches unusable and returns the number of objects. Raises PurgeError."""


class Administered(Protocol):
    """What is asked of the server."""

    @property
    def draining(self) -> bool:
        """A shutdown has begun."""

    @property
    def cache(self) -> Cache:
        """The cache."""

    def stats(self) -> Mapping[str, Any]:
        """The counters; routes under "routes", by path."""

    def policy(self, path: str) -> BatchPolicy:
        """A route's policy. Raises KeyError for a path that is no route."""

    def set_policy(self, path: str, **changes: Unpack[PolicyFields]) -> Any:
        """Changes it. Raises ConfigError."""


def start(server: Administered, address: str | Address) -> AdminServer:
    """Starts serving `server`'s admin interface on `address` (HOST:PORT, port 0 lets the system choose).

    Raises BindError when the address cannot be listened on.
    """
    return AdminServer(server, address)


class AdminServer:
    """A running admin server; `url` says where, :meth:`close` ends it."""

    def __init__(self, server: Administered, address: str | Address) -> None:
        wanted = parse_address(address, "admin")
        try:
            family = socket.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)[0][0]
            self._http = _HTTPServer(wanted, family, server)
        except OSError as error:
            raise BindError.of(wanted, error) from None
        self.address = Address(wanted.host, self._http.server_address[1])
        self.url = f"http://{self.address}"
        self._thread = threading.Thread(target=self._http.accept_until_closed, name="batchbridge-admin", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stops listening, at once; requests under way end in their own time."""
        self._http.stop()
        self._thread.join()
        self._http.server_close()


class _HTTPServer(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, address: Address, family: int, server: Administered) -> None:
        self.address_family = family
        self.administered = server
        self._registry: Any = None
        self._places = threading.BoundedSemaphore(CLIENTS_MAX)
        self._stopping = False
        super().__init__((address.host, address.port), _Handler)

    def server_bind(self) -> None:
        # Not the base class's: it looks the host's name up, which may take seconds.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def accept_until_closed(self) -> None:
        """Blocks in accept, unlike serve_forever, which looks up twice a second: an idle server makes no call."""
        while not self._stopping:
            try:
                request, client_address = self.get_request()
            except OSError as error:
                if not self._stopping and error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    time.sleep(OUT_OF_RESOURCES_PAUSE_S)
                continue
            try:
                self.process_request(request, client_address)
            except Exception:  # no thread to be had: this client is lost, the next may be luckier
                logger.warning("a client of the admin server was turned away", exc_info=True)
                self.shutdown_request(request)

    def stop(self) -> None:
        """Wakes the thread in accept, for good."""
        self._stopping = True
        self.socket.shutdown(socket.SHUT_RDWR)

    def process_request(self, request: Any, client_address: Any) -> None:
        """Bounded: a client too many is closed, rather than given a thread."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        logger.debug("a client of the admin server went away", exc_info=True)

    def scrape(self) -> tuple[bytes, str]:
        """The metrics and their media type; prometheus_client is imported when they are asked for first."""
        from . import metrics

        if self._registry is None:
            self._registry = metrics.registry_for(self.administered.stats)
        return metrics.render(self._registry), metrics.CONTENT_TYPE_LATEST


class _Handler(BaseHTTPRequestHandler):
    server: _HTTPServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "batchbridge-admin", ""
    timeout = CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        self._answer({
            "/healthz": self._health,
            "/metrics": self._metrics,
            "/stats": lambda: (200, JSON, self.server.administered.stats()),
            "/policy": self._policy,
            "/cache/stats": lambda: (200, JSON, self.server.administered.stats().get("cache", {})),
        })  # fmt: skip

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._answer({"/policy": self._change_policy, "/cache/purge": self._purge})

    def log_message(self, format: str, *args: Any) -> None:
        logger.debug("admin: " + format, *args)

    def _answer(self, routes: Mapping[str, Any]) -> None:
        parts = urlsplit(self.path)
        self._query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        try:
            if parts.path not in routes:
                raise HTTPError(404, f"{self.command} {parts.path} is not there; see the documentation of --admin")
            status, media_type, content = routes[parts.path]()
        except HTTPError as error:
            status, media_type, content = error.status, JSON, {"error": error.detail}
        except BatchBridgeError as error:
            status, media_type, content = 400, JSON, {"error": str(error)}
        except Exception as error:
            logger.exception("%s %s", self.command, self.path)
            status, media_type, content = 500, JSON, {"error": f"{type(error).__name__}: {error}"}
        body = content if isinstance(content, bytes) else json.dumps(content, default=str).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        if status >= 400:  # what is left of a body that was not read must not be taken for a request
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _object(self) -> dict[str, Any]:
        """The body, a JSON object."""
        if self.headers.get_content_type() != JSON:
            raise HTTPError(415, f"send the object as Content-Type: {JSON}")
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            raise HTTPError(411, "send a Content-Length")
        if int(length) > BODY_SIZE_BYTES_MAX:
            raise HTTPError(413, f"the body is longer than {BODY_SIZE_BYTES_MAX} bytes")
        try:
            content = json.loads(self.rfile.read(int(length)))
        except ValueError as error:
            raise HTTPError(400, f"the body is not JSON: {error}") from None
        if not isinstance(content, dict):
            raise HTTPError(400, "the body is not a JSON object")
        return content

    def _health(self) -> tuple[int, str, bytes]:
        return (503, TEXT, b"draining\n") if self.server.administered.draining else (200, TEXT, b"ok\n")

    def _metrics(self) -> tuple[int, str, bytes]:
        body, media_type = self.server.scrape()
        return 200, media_type, body

    def _one_policy(self, path: str) -> dict[str, Any]:
        try:
            return asdict(self.server.administered.policy(path))
        except KeyError:
            raise HTTPError(404, f"{path!r} is not a route") from None

    def _policy(self) -> tuple[int, str, Any]:
        path = self._query.get("path")
        if path is not None:
            return 200, JSON, self._one_policy(path)
        return 200, JSON, {route: self._one_policy(route) for route in self.server.administered.stats()["routes"]}

    def _change_policy(self) -> tuple[int, str, Any]:
        path = self._query.get("path")
        if path is None:
            raise HTTPError(400, "name the route: /policy?path=PATH")
        self._one_policy(path)
        self.server.administered.set_policy(path, **self._object())
        return 200, JSON, self._one_policy(path)

    def _purge(self) -> tuple[int, str, Any]:
        wanted = self._object()
        soft = wanted.pop("soft", False)
        if len(wanted) != 1 or not wanted.keys() <= {"url", "prefix", "tag"}:
            raise HTTPError(400, "give exactly one of url, prefix and tag")
        ((name, value),) = wanted.items()
        if not isinstance(value, str) or not value:
            raise HTTPError(400, f"{name}: {value!r} is not a text")
        if not isinstance(soft, bool):
            raise HTTPError(400, f"soft: {soft!r} is neither true nor false")
        count = self.server.administered.cache.purge(**wanted, soft=soft)
        return 200, JSON, {"purged": count, **wanted, "soft": soft}
