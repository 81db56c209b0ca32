"""ASGI: an application (ASGI 3, HTTP connection scope 2.4) behind all routes.

All items of a batch run at the same time, as tasks of the handler thread's event loop, and batches overlap.

- A response is collected, up to ``response_size_bytes_max``, and leaves with its last piece: what an application gives
  piece by piece does not arrive so, and a stream without end fails. What an application does after the last piece
  (background tasks) keeps nobody waiting.
- ``receive()`` gives the whole body at once; then it waits, and gives ``http.disconnect`` when the response was sent or
  the client is gone. After that ``send()`` raises OSError (HTTP scope 2.4).
- The lifespan protocol runs once in each handler thread, which has an event loop of its own: started before the server
  answers anybody, and shut down after the last answer. An application that raises on it is run without (as the
  specification asks); ``lifespan.startup.failed`` keeps the server from starting. Its ``state`` is copied for each
  request.
- Content-Length, Date, Server, Connection and what else is about the connection are the engine's to write; an
  application's own are dropped. A Content-Length that does not fit the body is a failure (500).
- A failure costs the one request, which gets 500. WebSockets, trailers and the other extensions are not
  offered.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from .errors import AppError, HTTPError
from .gateway import ApplicationError, Body, Fields, respond, server_address

if TYPE_CHECKING:
    from .cython_ext.messages import Batch, Request
    from .server import Server

__all__ = ["AsgiGateway"]

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Application = Callable[[Scope, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]

logger = logging.getLogger("batchbridge.asgi")

VERSIONS = {"version": "3.0", "spec_version": "2.4"}

#: How often it is looked whether a client is gone, while an application waits for that.
DISCONNECT_POLL_S = 0.05

#: How long an application may take to shut down.
SHUTDOWN_TIMEOUT_S = 5.0


class AsgiGateway:
    """The handler that runs an ASGI application."""

    def __init__(self, application: Application, server: Server) -> None:
        self.application = application
        self.server = server
        self.size_bytes_max = server.config.response_size_bytes_max
        self._states: dict[asyncio.AbstractEventLoop, dict[str, Any]] = {}
        self._address: tuple[str, int] | None = None

    async def run(self, batch: Batch) -> None:
        """Answers the requests of a batch, all at the same time."""
        await asyncio.gather(*(self.answer(request) for request in batch))

    async def answer(self, request: Request) -> None:
        """Answers one, and lets no failure of it out."""
        with request:
            if request.cancelled:
                raise HTTPError(503)  # which nobody will see
            if request.method == "CONNECT":
                raise HTTPError(501)
            exchange = Exchange(request, self.size_bytes_max)
            try:
                await self.application(self.scope(request), exchange.receive, exchange.send)
            except ClientGoneError:
                raise HTTPError(503) from None
            except asyncio.CancelledError:
                if was_cancelled():
                    raise
                raise ApplicationError("the application cancelled itself") from None
            except Exception as error:
                if not request.answered:
                    raise
                logger.error("the application failed after its response: %s", error, exc_info=error)
            except SystemExit as error:
                # It would end the handler thread, and with it the other requests.
                raise ApplicationError("the application called exit()") from error
            if not request.answered:
                raise ApplicationError("the application returned without a whole response")

    def scope(self, request: Request) -> Scope:
        """The connection scope of one request."""
        if self._address is None:
            address = server_address(self.server)
            self._address = (address.host, address.port)
        headers = [
            (name.encode("latin-1"), value.encode("latin-1"))
            for name in request.headers
            for value in request.headers.getall(name)
            if name != "host"
        ]
        if request.authority:
            # Of an absolute target, else of Host; Host comes first, as a browser sends it.
            headers.insert(0, (b"host", request.authority.encode("latin-1")))
        scope = {
            "type": "http",
            "asgi": dict(VERSIONS),
            "http_version": request.http_version,
            "method": request.method,
            "scheme": "http",
            "path": request.path,
            "raw_path": request.raw_path,
            "query_string": request.query_string,
            "root_path": "",
            "headers": headers,
            "client": request.client,
            "server": self._address,
            "extensions": {},
        }
        state = self._states.get(asyncio.get_running_loop())
        if state is not None:
            scope["state"] = state.copy()
        return scope

    @contextlib.asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """The lifespan of the application in this event loop. Raises AppError where it says that it cannot start."""
        loop = asyncio.get_running_loop()
        state: dict[str, Any] = {}
        span = Lifespan()
        scope: Scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}
        task = loop.create_task(span.run(self.application, scope))
        try:
            if await span.startup():
                self._states[loop] = state
            yield
            await span.shutdown()
        finally:
            self._states.pop(loop, None)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def was_cancelled() -> bool:
    """Whether the running task itself was cancelled, not something that it waited for."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class ClientGoneError(OSError):
    """The client is gone: what send() raises then."""


class Exchange:
    """One request's receive() and send()."""

    def __init__(self, request: Request, size_bytes_max: int) -> None:
        self.request = request
        self.body = Body(size_bytes_max)
        self.status: int | None = None
        self.fields: Fields = []
        self.was_received = False
        self.is_complete = asyncio.Event()

    async def receive(self) -> Message:
        """The body, and then that it is over."""
        if not self.was_received:
            self.was_received = True
            return {"type": "http.request", "body": bytes(self.request.body), "more_body": False}
        while not self.request.cancelled and not self.is_complete.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.is_complete.wait(), DISCONNECT_POLL_S)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Takes the response's start and its body, piece by piece; answers with the last."""
        kind = message["type"]
        if self.is_complete.is_set():
            raise ApplicationError(f"{kind} was sent after the response's end")
        if self.request.cancelled:
            raise ClientGoneError("the client is gone")
        if kind == "http.response.start" and self.status is None:
            self.status = int(message["status"])
            self.fields = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        elif kind == "http.response.body" and self.status is not None:
            self.body.add(bytes(message.get("body", b"")))
            if not message.get("more_body", False):
                self.is_complete.set()
                respond(self.request, self.status, self.fields, self.body.whole())
        else:
            raise ApplicationError(f"{kind} was sent {'before' if self.status is None else 'after'} the start")


class Lifespan:
    """The lifespan protocol with one application, in one event loop."""

    def __init__(self) -> None:
        self.asked: asyncio.Queue[Message] = asyncio.Queue()
        self.told: asyncio.Queue[Message | BaseException | None] = asyncio.Queue()
        self.is_spoken = False

    async def run(self, application: Application, scope: Scope) -> None:
        """Runs the application until it has shut down, or raised, or been cancelled."""
        ending: BaseException | None = None
        try:
            await application(scope, self.asked.get, self.told.put)
        except (Exception, SystemExit) as error:
            ending = error
        await self.told.put(ending)

    async def startup(self) -> bool:
        """Whether the application speaks the protocol. Raises AppError where it says that it cannot start."""
        await self.asked.put({"type": "lifespan.startup"})
        told = await self.told.get()
        if isinstance(told, MutableMapping):
            if told["type"] != "lifespan.startup.complete":
                # The message is often a whole traceback, whose last line tells what it was.
                reason = str(told.get("message") or told["type"]).strip()
                logger.error("the application cannot start: %s", reason)
                raise AppError(f"the ASGI application cannot start: {reason.rpartition(chr(10))[2]}")
            self.is_spoken = True
        elif told is not None:
            logger.info("the application does not speak the lifespan protocol: %s: %s", type(told).__name__, told)
        return self.is_spoken

    async def shutdown(self) -> None:
        """Lets the application shut down; what goes wrong there is logged."""
        if not self.is_spoken:
            return
        await self.asked.put({"type": "lifespan.shutdown"})
        try:
            async with asyncio.timeout(SHUTDOWN_TIMEOUT_S):
                told = await self.told.get()
        except TimeoutError:
            logger.error("the application did not shut down within %g s", SHUTDOWN_TIMEOUT_S)
            return
        if isinstance(told, BaseException):
            logger.error("the application failed as it shut down: %s", told, exc_info=told)
        elif told is not None and told["type"] != "lifespan.shutdown.complete":
            logger.error("the application failed as it shut down: %s", told.get("message", told["type"]))
