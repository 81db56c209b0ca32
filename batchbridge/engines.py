"""A server's engines: what they need to know, the threads that they and their handlers run on, their figures."""

from __future__ import annotations

import mimetypes
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from .config import Config
from .errors import EngineError
from .handlers import Handler, HandlerThread
from .zero_copy import size_for

if TYPE_CHECKING:
    import socket

    from .cython_ext.engine import EngineThread

__all__ = ["Threads", "make_engines", "settings_of", "stats_of"]

#: Batches that a worker is given before it has ended the first: one where it runs them one after the other, more where
#: an event loop lets them overlap.
LANE_BATCHES = {False: 1, True: 32}

#: How long an engine may take to start or, after its drain, to end.
ENGINE_PATIENCE_S = 10.0


def settings_of(config: Config, engine: str, handlers: Sequence[Handler]) -> dict[str, Any]:
    """What an engine of that name needs to know, as far as configuration, handlers and the machine say it."""
    types = {
        extension[1:].lower().encode(): name.encode()
        for extension, name in [*mimetypes.MimeTypes(()).types_map[True].items(), *config.mime.items()]
    }
    if engine in ("kernel", "io_uring"):
        from .cython_ext import ring

        features = ring.probe()
    else:
        features = {}
    zero_copy_size_bytes_min, zero_copy_size_from = size_for(config.zero_copy_size_bytes_min, features)
    return {
        **{option: getattr(config, option) for option in config.__dataclass_fields__},
        "zero_copy_size_bytes_min": zero_copy_size_bytes_min,
        "zero_copy_size_from": zero_copy_size_from,
        "types": types,
        "default_type": b"application/octet-stream",
        "index_files": tuple(name.encode() for name in config.index_files),
        "lane_batches_max": LANE_BATCHES[any(handler.is_async for handler in handlers)],
        "has_kernel_side": engine == "kernel",
        "has_socket_command": features.get("socket_cmd", False),
        "has_zero_copy": features.get("send_zc", False),
    }


def make_engines(
    engine: str, settings: dict[str, Any], handlers: Sequence[Handler], listeners: Sequence[list[socket.socket]]
) -> list[EngineThread]:
    """An engine of that name for each list of listeners. Raises EngineError."""
    kind: type[EngineThread]
    if engine in ("kernel", "io_uring"):
        from .cython_ext.uring import UringEngine

        kind = UringEngine
    else:
        from .cython_ext.epoll import EpollEngine

        kind = EpollEngine
    lanes = max(1, settings["handler_threads"]) if handlers else 0
    routes = [handler.settings() for handler in handlers]
    if engine == "kernel" and len(listeners) > 1:
        from concurrent.futures import ThreadPoolExecutor

        # Each loads the kernel side for itself, and the kernel verifies them side by side.
        with ThreadPoolExecutor(min(len(listeners), os.cpu_count() or 1)) as pool:
            return list(pool.map(lambda those: kind(settings, routes, lanes, those), listeners))
    return [kind(settings, routes, lanes, those) for those in listeners]


class Threads:
    """The threads of one run: of engines, and of the workers that call their handlers.

    `entered()` enters the lifespan, once for each thread that handlers run on. `errors` is what threads ended by;
    `ended` is set when an engine has ended by an error, or all have ended.
    """

    def __init__(self, entered: Callable[[], AbstractContextManager[Any]]) -> None:
        self.errors: list[BaseException] = []
        self.ended = threading.Event()
        self._entered = entered
        self._of_engines: list[threading.Thread] = []
        self._of_handlers: list[HandlerThread] = []

    def start(self, kind: str, engines: list[EngineThread], handlers: list[Handler], handler_threads: int) -> None:
        """Starts all, workers first, and waits until they are ready. `kind` is the engines' name.

        With handler_threads=0 handlers run on the engines' threads. Raises EngineError, or what a thread ended by.
        """
        if handlers and handler_threads:
            self._start_workers(engines, handlers, handler_threads)
        inline = [] if handler_threads else handlers
        for number, engine in enumerate(engines):
            name = f"batchbridge-engine-{number}"
            thread = threading.Thread(target=self._run_engine, args=(engine, engines, inline), name=name, daemon=True)
            self._of_engines.append(thread)
            thread.start()
        for engine in engines:
            if not engine.ready.wait(ENGINE_PATIENCE_S):
                raise EngineError(f"the {kind} engine did not start within {ENGINE_PATIENCE_S:.0f} s")
        if self.errors:
            raise self.errors[0]

    def _start_workers(self, engines: list[EngineThread], handlers: list[Handler], count: int) -> None:
        from .cython_ext.worker import Worker

        for engine in engines:
            for number in range(count):
                thread = HandlerThread(Worker(engine, number, handlers), self._entered, len(self._of_handlers))
                self._of_handlers.append(thread)
                thread.start()
        for thread in self._of_handlers:
            thread.started_up.wait()
            if thread.error is not None:
                raise thread.error

    def _run_engine(self, engine: EngineThread, engines: list[EngineThread], inline_handlers: list[Handler]) -> None:
        """An engine thread's life; where it runs handlers, the lifespan is entered here."""
        try:
            if inline_handlers:
                from .cython_ext.worker import Worker

                worker = Worker(engine, 0, inline_handlers)
                engine.set_inline_worker(worker)
                with self._entered() as state:
                    worker.state = state
                    engine.run()
            else:
                engine.run()
        except BaseException as error:
            self.errors.append(error)
        finally:
            engine.ready.set()
            if self.errors or all(not other.running for other in engines):
                self.ended.set()

    def end(self, engines: list[EngineThread], drain_timeout_s: float) -> None:
        """Waits for engines that drain, for `drain_timeout_s` at most, then ends them, and the workers behind them."""
        until = time.monotonic() + drain_timeout_s
        for thread in self._of_engines:
            thread.join(max(0.0, until - time.monotonic()))
        for engine in engines:
            engine.stop()
        for thread in self._of_engines:
            thread.join(ENGINE_PATIENCE_S)
        for handler_thread in self._of_handlers:
            handler_thread.worker.close()
        for handler_thread in self._of_handlers:
            handler_thread.join(ENGINE_PATIENCE_S)
        self._of_engines.clear()
        self._of_handlers.clear()


def stats_of(engines: Sequence[EngineThread]) -> dict[str, Any]:
    """Counters of engines together, as nested dicts."""
    total: dict[str, Any] = {}
    for engine in engines:
        add_up(total, engine.stats())
    return total


def add_up(total: dict[str, Any], part: Mapping[str, Any]) -> None:
    """Adds the numbers of `part` to those of `total`, at every depth."""
    for name, value in part.items():
        if isinstance(value, Mapping):
            add_up(total.setdefault(name, {}), value)
        elif isinstance(value, list):
            total[name] = [a + b for a, b in zip(total.get(name, [0] * len(value)), value, strict=True)]
        else:
            total[name] = total.get(name, 0) + value
