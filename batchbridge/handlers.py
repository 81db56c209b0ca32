"""Handlers: routes with their functions and batch policies, and the threads that they run on."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import math
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, HTTPError
from .native import NativeFunction
from .policy import BatchPolicy

if TYPE_CHECKING:
    from .cython_ext.messages import Batch, Request
    from .cython_ext.worker import Worker

__all__ = ["Array", "Handler", "HandlerThread", "Json", "Msgpack", "NativeHandler"]

logger = logging.getLogger("batchbridge.handlers")

#: How long ``async def`` handlers may go on once the engine has ended; then they are cancelled.
CLOSING_PATIENCE_S = 2.0


# --- what bodies are decoded to ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Json:
    """Bodies are JSON: ``request.json()`` gives what was decoded. Another Content-Type is 415, bad JSON 400."""

    def __call__(self, request: Request) -> Any:
        check_content_type(request, "application/json", "+json")
        return request.json()


@dataclass(frozen=True)
class Msgpack:
    """Bodies are msgpack: ``request.msgpack()`` gives what was decoded. Another Content-Type is 415, bad data 400."""

    def __call__(self, request: Request) -> Any:
        check_content_type(request, "application/msgpack", "application/x-msgpack", "application/vnd.msgpack")
        return request.msgpack()


@dataclass(frozen=True)
class Array:
    """Bodies are arrays of ``dtype`` (a numpy dtype string with its byte order, such as ``"<f4"``) and ``shape``.

    A body of another length is 422. The engine lays the bodies of a batch side by side, so that ``batch.as_array()``
    is a view of shape (n, *shape).
    """

    dtype: str
    shape: tuple[int, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Bytes of one body."""
        import numpy

        return numpy.dtype(self.dtype).itemsize * math.prod(self.shape)


def check_content_type(request: Request, *allowed: str) -> None:
    """Raises HTTPError(415) for a Content-Type that is neither absent nor one of `allowed` ("+x": a suffix)."""
    given = request.headers.get("content-type")
    if given is None:
        return
    media_type = given.partition(";")[0].strip().lower()
    if not any(media_type.endswith(name) if name.startswith("+") else media_type == name for name in allowed):
        raise HTTPError(415, f"Content-Type {media_type} is not {allowed[0]}")


# --- routes -----------------------------------------------------------------------------------------------------------


class Handler:
    """A route: its template, its function, its policy. What a worker needs to run a batch of it."""

    #: The compiled function that is called instead.
    native: NativeFunction | None = None

    def __init__(
        self,
        path: str,
        function: Callable[[Batch], Any],
        policy: BatchPolicy,
        *,
        methods: Sequence[str] = ("GET",),
        decode: Json | Msgpack | Array | None = None,
        vary: Sequence[str] = (),
        kind: str | None = None,
        lifespan: Callable[[], contextlib.AbstractAsyncContextManager[Any]] | None = None,
    ) -> None:
        check_route(path, methods, vary, kind)
        self.path = path
        self.function = function
        self.policy = policy
        self.methods = tuple(method.upper() for method in methods)
        self.decode = decode
        self.decode_body = None if isinstance(decode, Array) else decode
        self.vary = tuple(vary)
        self.kind = kind
        #: Entered in the event loop of each handler thread before the server listens, left when it ends.
        self.lifespan = lifespan
        self.is_async = inspect.iscoroutinefunction(function)
        self.parameters = tuple(
            segment[1:-1].partition(":")[0] for segment in path.split("/") if segment.startswith("{")
        )

    def settings(self) -> dict[str, Any]:
        """What the engine needs of it."""
        return {
            "path": self.path,
            "methods": self.methods,
            "policy": {name: getattr(self.policy, name) for name in self.policy.__dataclass_fields__},
            "vary": self.vary,
            "array_size_bytes": self.decode.size_bytes if isinstance(self.decode, Array) else 0,
            "kind": self.kind,
        }

    @property
    def name(self) -> str:
        """How log lines call it."""
        return f"{getattr(self.function, '__module__', '?')}.{getattr(self.function, '__qualname__', self.function)}"

    def log_failure(self, error: BaseException) -> None:
        """One of its items failed: with a traceback, since the cause is in the handler's code."""
        logger.error("handler %s of %s failed: %s", self.name, self.path, error, exc_info=error)

    def log_unanswered(self, count: int) -> None:
        """It returned and left items unanswered."""
        logger.error("handler %s of %s left %d items unanswered; they get 500", self.name, self.path, count)


class NativeHandler(Handler):
    """A route whose batches a compiled function answers, without the interpreter."""

    native: NativeFunction

    def __init__(
        self,
        path: str,
        native: NativeFunction,
        policy: BatchPolicy,
        *,
        methods: Sequence[str] = ("GET",),
        decode: Array | None = None,
        vary: Sequence[str] = (),
    ) -> None:
        if decode is not None and not isinstance(decode, Array):
            raise ConfigError(f"route {path!r}: a native handler's bodies are bytes or decode=Array(...): {decode!r}")
        super().__init__(path, self._called, policy, methods=methods, decode=decode, vary=vary)
        self.native = native

    def _called(self, batch: Batch) -> Any:
        raise TypeError(f"the handler of {self.path} is not Python's to call")

    @property
    def name(self) -> str:
        """How log lines call it."""
        return self.native.name

    def log_refused(self, count: int, why: str) -> None:
        """Answers of one batch could not be taken; `why` tells of the first."""
        logger.error(
            "handler %s of %s gave %d answers that were refused; the first: %s", self.name, self.path, count, why
        )


METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE")

#: A header's name (RFC 9110 section 5.6.2).
TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")

VARY_MAX = 8


def check_route(path: str, methods: Sequence[str], vary: Sequence[str], kind: str | None) -> None:
    """Raises ConfigError for a template, a method or a header's name that makes no sense."""
    from .cython_ext.route import check_template

    if kind is None:
        try:
            check_template(path)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if isinstance(methods, str) or not methods:
            raise ConfigError(f"route {path!r}: methods is a list with at least one of {', '.join(METHODS)}")
    for method in methods:
        if method.upper() not in METHODS:
            raise ConfigError(f"route {path!r}: the method {method!r} is not one of {', '.join(METHODS)}")
    if isinstance(vary, str) or len(vary) > VARY_MAX:
        raise ConfigError(f"route {path!r}: vary is a list of at most {VARY_MAX} header names")
    for name in vary:
        if not TOKEN.fullmatch(name):
            raise ConfigError(f"route {path!r}: {name!r} in vary is not a header name")


# --- threads ----------------------------------------------------------------------------------------------------------


class HandlerThread(threading.Thread):
    """Runs one worker: its lifespan, then batch after batch, until the worker is closed.

    With an ``async def`` handler among the routes it runs an event loop, in which several batches may be under way;
    else it sleeps in the worker itself.
    """

    def __init__(self, worker: Worker, lifespan: Callable[[], contextlib.AbstractContextManager[Any]], number: int):
        super().__init__(name=f"batchbridge-handler-{number}", daemon=True)
        self.worker = worker
        self.lifespan = lifespan
        self.started_up = threading.Event()
        self.error: BaseException | None = None

    def run(self) -> None:
        """The thread's life; an error in the lifespan is kept in `error` for whoever started the thread."""
        try:
            with self.lifespan() as state:
                self.worker.state = state
                if any(handler.is_async for handler in self.worker.routes):
                    asyncio.run(run_async(self.worker, self.started_up.set))
                else:
                    self.started_up.set()
                    self.worker.run()
        except BaseException as error:
            self.error = error
            if self.started_up.is_set():
                logger.exception("a handler thread ended by an error")
        finally:
            self.started_up.set()


async def run_async(worker: Worker, started_up: Callable[[], None]) -> None:
    """Enters the handlers' lifespans and says so, then runs batches until the worker is closed."""
    async with contextlib.AsyncExitStack() as stack:
        for handler in worker.routes:
            if handler.lifespan is not None:
                await stack.enter_async_context(handler.lifespan())
        started_up()
        await run_batches_async(worker)


async def run_batches_async(worker: Worker) -> None:
    """Runs batches as tasks of this loop: ``async def`` handlers overlap, others run where they are."""
    loop = asyncio.get_running_loop()
    rung = asyncio.Event()
    tasks: set[asyncio.Task[None]] = set()
    with readable(loop, worker.bell, rung.set):
        while True:
            batch = worker.next_batch()
            if batch is not None:
                task = loop.create_task(run_batch_async(worker, batch))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
                batch = None
                await asyncio.sleep(0)
            elif worker.closed:
                break
            elif worker.prepare_sleep():
                await rung.wait()
                rung.clear()
                worker.awake()
        if tasks:
            # Nobody waits for their answers any more: the engine has ended.
            _, unfinished = await asyncio.wait(tasks, timeout=CLOSING_PATIENCE_S)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)


@contextlib.contextmanager
def readable(loop: asyncio.AbstractEventLoop, bell: int, call: Callable[[], None]) -> Iterator[None]:
    """Calls `call` whenever the eventfd `bell` was rung, and takes what was in it."""
    import os

    def on_bell() -> None:
        os.eventfd_read(bell)
        call()

    loop.add_reader(bell, on_bell)
    try:
        yield
    finally:
        loop.remove_reader(bell)


async def run_batch_async(worker: Worker, batch: Batch) -> None:
    """As Worker.run_batch, for a handler that may be a coroutine function."""
    try:
        if batch.route.decode_body is None or worker.admit(batch):
            worker.settle(batch, await called(batch))
    except asyncio.CancelledError:
        raise  # the worker is being closed
    except BaseException as error:  # SystemExit, too: a handler must not end its worker
        if worker.failed(batch, error):
            for part in worker.parts(batch):
                await run_part_async(worker, batch, part)
    finally:
        worker.end_batch(batch)


async def run_part_async(worker: Worker, batch: Batch, part: Batch) -> None:
    """As Worker.run_part."""
    try:
        worker.settle(part, await called(part))
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        worker.failed(part, error)
    finally:
        worker.merge(batch, part)


async def called(batch: Batch) -> Any:
    """What the batch's handler returns."""
    result = batch.route.function(batch)
    return await result if inspect.isawaitable(result) else result
