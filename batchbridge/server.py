"""The server: routes, life and figures. What an application holds, and what the command runs."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from .cache import Cache
from .config import Config
from .engines import Threads, make_engines, settings_of, stats_of
from .errors import BatchBridgeError, ConfigError, EngineError
from .handlers import Array, Handler, Json, Msgpack, NativeHandler
from .machine import Machine
from .native import native_function
from .policy import BatchPolicy, PolicyFields
from .resources import Wake, fit_descriptors, listen, open_log, url_of, woken_by_signals
from .zero_copy import DEFAULT_SIZE_BYTES

if TYPE_CHECKING:
    from .cython_ext.engine import EngineThread
    from .messages import Batch
    from .testing import TestClient

__all__ = ["Cache", "Server"]

Lifespan = Callable[["Server"], "contextlib.AbstractContextManager[Any] | Iterator[Any]"]

logger = logging.getLogger("batchbridge.server")

#: A handler: called with a Batch; returns None, or one entry an item; may be `async def`.
Function = TypeVar("Function", bound="Callable[[Batch], Any]")

#: The engine's table of routes has a few places more, for what stands behind all routes.
ROUTES_MAX = 256


class Server:
    """An HTTP server: files below `root`, batch handlers, and whatever is behind them.

    Each parameter is optional, and goes before the same setting of `config` (a :class:`Config`, or the path of a TOML
    file). `lifespan(server)` is a context manager (or a generator function) entered once per handler thread; what it
    yields is `batch.state`. Raises ConfigError for settings that make no sense.
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        bind: str | Sequence[str] | None = None,
        asgi: Any = None,
        wsgi: Any = None,
        lifespan: Lifespan | None = None,
        handler_threads: int | None = None,
        engine: str | None = None,
        config: Config | str | os.PathLike[str] | None = None,
    ) -> None:
        if config is None:
            config = Config()
        elif not isinstance(config, Config):
            config = Config.from_toml(config)
        named = {
            "root": os.fspath(root) if root is not None else None,
            "bind": (bind,) if isinstance(bind, str) else bind,
            "handler_threads": handler_threads,
            "engine": engine,
        }
        if asgi is not None and wsgi is not None:
            raise ConfigError("asgi and wsgi: one application can take what has no route, not two")
        self.asgi = asgi
        self.wsgi = wsgi
        self.lifespan = lifespan
        self.config = self._with_role(config.replace(**{n: value for n, value in named.items() if value is not None}))
        self.cache = Cache(self)
        self.machine = Machine(self.config.role)
        self.handlers: dict[str, Handler] = {}
        self.engines: list[EngineThread] = []
        self.engine = ""
        self.draining = False
        self._listeners: list[list[socket.socket]] = []
        self._threads = Threads(self.entered)
        self._root_fd = -1
        self._log_fd = -1
        self._admin: Any = None
        self._final_stats: dict[str, Any] | None = None
        self._zero_copy = DEFAULT_SIZE_BYTES, "none"

    # --- routes ---

    def batch(
        self,
        path: str,
        *,
        methods: Sequence[str] = ("GET",),
        decode: Json | Msgpack | Array | None = None,
        vary: Sequence[str] = (),
        **policy: Unpack[PolicyFields],
    ) -> Callable[[Function], Function]:
        """Declares a batch handler for `path`, such as ``"/score/{model}"``; ``{name:path}`` takes the path's rest.

        The function is called with a :class:`Batch`, may be ``async def``, and answers each item: by `respond()`, or by
        returning one entry an item. `policy`: the fields of :class:`BatchPolicy`. `vary`: request headers that tell
        answers apart, for the cache and for coalescing. Raises ConfigError for what makes no sense.
        """
        self._check_addition(path)
        declared = BatchPolicy().changed(**policy)

        def declare(function: Function) -> Function:
            self.handlers[path] = Handler(path, function, declared, methods=methods, decode=decode, vary=vary)
            return function

        return declare

    def native(
        self,
        path: str,
        function: object,
        *,
        methods: Sequence[str] = ("GET",),
        decode: Array | None = None,
        vary: Sequence[str] = (),
        context: object = None,
        keep: object = None,
        abi: int | None = None,
        **policy: Unpack[PolicyFields],
    ) -> None:
        """Declares a compiled handler for `path`: a function that is called once a batch, without the interpreter.

        `function` is a capsule named "batchbridge.handler", a function of a ctypes library, a cffi pointer, anything
        with an integer ``address``, or an address; ``batchbridge.h`` in :func:`get_include` says
        what it may do. It runs on several threads at once where there are several. `context`, a ctypes object or an
        address, goes with each batch; `keep` is an object that must live as long. `abi` is the header's version that it
        was compiled with. The rest is as for :meth:`batch`. Raises ConfigError for what makes no sense.
        """
        self._check_addition(path)
        called = native_function(function, context=context, keep=keep, abi=abi, label=f"route {path!r}")
        declared = BatchPolicy().changed(**policy)
        self.handlers[path] = NativeHandler(path, called, declared, methods=methods, decode=decode, vary=vary)

    def _check_addition(self, path: str) -> None:
        if self.engines:
            raise ConfigError(f"the route {path!r} cannot be added while the server runs")
        if path in self.handlers:
            raise ConfigError(f"the route {path!r} is declared twice")
        if len(self.handlers) >= ROUTES_MAX:
            raise ConfigError(f"the route {path!r} is one more than the {ROUTES_MAX} that a server can have")

    @property
    def routes(self) -> Mapping[str, Handler]:
        """The declared routes, by path."""
        return self.handlers

    def policy(self, path: str) -> BatchPolicy:
        """The batch policy of a route, as it is now. Raises KeyError for an unknown path."""
        return self.handlers[path].policy

    def set_policy(self, path: str, **changes: Unpack[PolicyFields]) -> BatchPolicy:
        """Changes a route's batch policy, in effect from its next batch; returns the new one.

        Raises KeyError for an unknown path, ConfigError for a change that makes no sense.
        """
        return self._store_policy(path, self._bounded(self.handlers[path].policy.changed(**changes)))

    def _store_policy(self, path: str, policy: BatchPolicy) -> BatchPolicy:
        handler = self.handlers[path]
        handler.policy = policy
        for engine in self.engines:
            engine.set_policy(engine.routes.index(path), handler.settings()["policy"])
        return policy

    def _bounded(self, policy: BatchPolicy) -> BatchPolicy:
        return policy.changed(max_batch_size=min(policy.max_batch_size, self.config.batch_size_max))

    def configure(self, changes: Mapping[str, Any]) -> None:
        """Changes settings before the server starts. Raises ConfigError."""
        if self.engines:
            raise ConfigError("settings cannot be changed while the server runs")
        self.config = self._with_role(self.config.replace(**changes))
        if self.config.role != self.machine.role:
            self.machine = Machine(self.config.role)

    def _with_role(self, config: Config) -> Config:
        """The role that an application or an upstream asks for by being there: standalone would never reach it."""
        if config.role == "standalone" and config.upstream is not None:
            return config.replace(role="frontend")
        if config.role == "standalone" and (self.asgi is not None or self.wsgi is not None):
            return config.replace(role="colocated")
        return config

    # --- life ---

    def start(self) -> None:
        """Listens and serves, on threads of its own. Raises BindError, EngineError, ConfigError, or what the lifespan
        raised; then nothing was left running."""
        if self.engines:
            raise BatchBridgeError("the server runs already")
        self.config.check_serving(len(self._all_handlers()))
        self.draining = False
        self._threads = Threads(self.entered)
        self._final_stats = None
        try:
            self._start()
        except BaseException:
            self.stop(drain_timeout_s=0.0)
            raise

    def _start(self) -> None:
        from .doctor import choose_engine

        # Only the kernel engine can do what sqpoll asks for.
        wanted = "kernel" if self.config.sqpoll is not None else self.config.engine
        self.engine, reason = choose_engine(wanted)
        handlers = self._all_handlers()
        if self.config.handler_threads == 0:
            for handler in handlers:
                if handler.is_async:
                    raise ConfigError(
                        f"route {handler.path!r}: an async def handler needs handler_threads of at least 1; "
                        "with 0, handlers run on the engine's own thread, which cannot await"
                    )
        self.config = fit_descriptors(self.config)
        self._open_files()
        self._listeners = listen(self.config)
        try:
            self._make_engines(handlers)
        except EngineError as error:
            if wanted != "auto" or self.engine != "kernel":
                raise
            reason = self._make_engines_without_kernel(handlers, str(error))
        self._threads.start(self.engine, self.engines, handlers, self.config.handler_threads)
        if self.config.admin is not None:
            from . import admin

            self._admin = admin.start(self, self.config.admin)
        if wanted == "auto" and self.engine != "kernel":
            logger.info("--engine auto takes %s: %s", self.engine, reason)

    def apply_policies(self) -> None:
        """Gives the declared handlers the policies that the configuration names for their routes; run() does so itself.

        Raises ConfigError for a route that no handler has.
        """
        for path, changes in self.config.routes.items():
            if path not in self.handlers:
                raise ConfigError(f"route {path!r}: no handler has this path; there are {', '.join(self.handlers)}")
            self.handlers[path].policy = self.handlers[path].policy.changed(**changes)
        for handler in self.handlers.values():
            handler.policy = self._bounded(handler.policy)

    def _all_handlers(self) -> list[Handler]:
        """The declared handlers, with their policies, and those that stand behind all routes."""
        from .fallbacks import fallback_handlers

        self.apply_policies()

        return [*self.handlers.values(), *fallback_handlers(self)]

    def _open_files(self) -> None:
        config = self.config
        if config.root is not None:
            try:
                self._root_fd = os.open(config.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            except OSError as error:
                raise ConfigError(f"root: {config.root!r} cannot be opened: {error.strerror}") from None
        self._log_fd = open_log(config.access_log)

    def _make_engines(self, handlers: list[Handler]) -> None:
        settings = self.engine_settings(handlers)
        self.engines += make_engines(self.engine, settings, handlers, self._listeners)
        self.machine.table.listeners[:] = [engine.set_table for engine in self.engines]

    def _make_engines_without_kernel(self, handlers: list[Handler], why: str) -> str:
        """The same, now that the kernel side could not be loaded; returns why there is another engine."""
        from .doctor import choose_without_kernel

        self.engine, reason = choose_without_kernel(why)
        self.engines.clear()
        # An engine that did load may have been handed requests already: its clients get a reset, and not silence.
        self._close_listeners()
        self._listeners = listen(self.config)
        self._make_engines(handlers)
        return reason

    def engine_settings(self, handlers: list[Handler]) -> dict[str, Any]:
        """What an engine needs to know, as one dict."""
        settings = settings_of(self.config, self.engine, handlers)
        self._zero_copy = settings["zero_copy_size_bytes_min"], settings["zero_copy_size_from"]
        return {
            **settings,
            "table": dict(self.machine.table),
            "root_fd": self._root_fd,
            "access_log_fd": self._log_fd,
        }

    @contextlib.contextmanager
    def entered(self) -> Iterator[Any]:
        """The lifespan, entered: yields what `batch.state` will be."""
        if self.lifespan is None:
            yield None
            return
        given = self.lifespan(self)
        if isinstance(given, contextlib.AbstractContextManager):
            manager = given
        else:
            manager = contextlib.contextmanager(lambda: given)()
        with manager as state:
            yield state

    def stop(self, drain_timeout_s: float | None = None) -> None:
        """Accepts nothing more, answers what is under way, for `drain_timeout_s` at most, and ends."""
        timeout_s = self.config.drain_timeout_s if drain_timeout_s is None else drain_timeout_s
        self.draining = True
        for engine in self.engines:
            engine.drain()
        for listeners in self._listeners:
            for listener in listeners:
                # New connections are refused from now on; those in the backlog are reset.
                with contextlib.suppress(OSError):
                    listener.shutdown(socket.SHUT_RD)
        self._threads.end(self.engines, timeout_s)
        if self.engines:
            self._final_stats = self.stats()
        self._close()

    def _close(self) -> None:
        if self._admin is not None:
            self._admin.close()
            self._admin = None
        self._close_listeners()
        for fd in (self._root_fd, self._log_fd):
            if fd > 2:
                os.close(fd)
        self._root_fd = self._log_fd = -1
        self.machine.table.listeners.clear()
        self.engines = []

    def _close_listeners(self) -> None:
        for listeners in self._listeners:
            for listener in listeners:
                listener.close()
        self._listeners = []

    def run(
        self,
        *,
        on_ready: Callable[[Server], None] | None = None,
        reload: Callable[[], Mapping[str, Any]] | None = None,
    ) -> None:
        """Serves until SIGTERM or SIGINT, then drains. Only from the main thread.

        A second signal ends it at once. SIGUSR1 reopens the access log. SIGHUP asks `reload` for changed settings, and
        applies those that can be applied (:meth:`reload`). Raises what start() raises.
        """
        told: list[int] = []

        def on_signal(number: int, _frame: Any) -> None:
            if number == signal.SIGUSR1:
                self.reopen_log()
            elif number == signal.SIGHUP:
                if reload is not None:
                    self._reload_or_say(reload)
            else:
                told.append(number)
                if len(told) > 1:
                    for engine in self.engines:
                        engine.stop()

        with woken_by_signals((signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP), on_signal) as wake:
            self.start()
            if on_ready is not None:
                on_ready(self)
            watcher = threading.Thread(target=self._tell_end, args=(wake,), daemon=True)
            watcher.start()
            while not told and not self._threads.ended.is_set():
                wake.recv(64)
            self.stop()
            watcher.join()
        if self._threads.errors:
            raise self._threads.errors[0]

    def _tell_end(self, wake: Wake) -> None:
        self._threads.ended.wait()
        wake.send(b"x")

    def reopen_log(self) -> None:
        """Opens the access log's path anew, after it was renamed; lines go on without a gap."""
        if self._log_fd > 2:
            fresh = open_log(self.config.access_log)
            os.dup2(fresh, self._log_fd)
            os.close(fresh)

    def reload(self, changes: Mapping[str, Any]) -> list[str]:
        """Applies changed settings to the running server; returns the names of those that need a restart.

        Batch policies (`routes`) and `access_log` are applied at once. Raises ConfigError, and then changes nothing.
        """
        fresh = self.config.replace(**changes)
        policies = {}
        for path, policy in fresh.routes.items():
            if path not in self.handlers:
                raise ConfigError(f"route {path!r}: no handler has this path; there are {', '.join(self.handlers)}")
            policies[path] = self._bounded(self.handlers[path].policy.changed(**policy))
        differing = [name for name in fresh.__dataclass_fields__ if getattr(fresh, name) != getattr(self.config, name)]
        if "access_log" in differing and self._log_fd > 2 and fresh.access_log not in ("off", "-"):
            self.config = self.config.replace(access_log=fresh.access_log)
            self.reopen_log()
            differing.remove("access_log")
        for path, changed in policies.items():
            self._store_policy(path, changed)
        self.config = self.config.replace(routes=fresh.routes)
        return [name for name in differing if name != "routes"]

    def _reload_or_say(self, reload: Callable[[], Mapping[str, Any]]) -> None:
        try:
            left = self.reload(reload())
        except BatchBridgeError as error:
            logger.error("the configuration was not reloaded: %s", error)
            return
        logger.info("the configuration was reloaded%s", f"; a restart is needed for {', '.join(left)}" if left else "")

    @contextlib.contextmanager
    def running(self) -> Iterator[Server]:
        """Serves inside a with block, which it yields the server to."""
        self.start()
        try:
            yield self
        finally:
            self.stop()

    async def serve(self) -> None:
        """Serves until cancelled, in an asyncio program; drains before it returns."""
        import asyncio

        await asyncio.to_thread(self.start)
        try:
            # Without a time-out, so that an idle server wakes nobody; stop() lets the waiting thread go.
            await asyncio.to_thread(self._threads.ended.wait)
        finally:
            await asyncio.shield(asyncio.to_thread(self.stop))

    # --- figures ---

    @property
    def admin_url(self) -> str | None:
        """Where the admin interface listens, while the server runs; None where there is none."""
        return self._admin.url if self._admin is not None else None

    @property
    def urls(self) -> list[str]:
        """Where the server listens, while it runs."""
        return [url_of(listener) for listener in self._listeners[0]] if self._listeners else []

    @property
    def root_fd(self) -> int:
        """The descriptor of the root folder, while the server runs; -1 without one."""
        return self._root_fd

    @property
    def url(self) -> str:
        """The first of them. Raises BatchBridgeError while the server does not run."""
        if not self._listeners:
            raise BatchBridgeError("the server does not run, so it has no URL")
        return self.urls[0]

    @property
    def zero_copy_size_bytes_min(self) -> int | None:
        """From this size on, what is sent at a time is not copied; None where the engine copies everything."""
        size_bytes, source = self._zero_copy
        return None if source == "none" else size_bytes

    def stats(self) -> dict[str, Any]:
        """Counters of all engines together, as nested dicts; those of the last run once it is over."""
        if not self.engines:
            return self._final_stats or {}
        total = stats_of(self.engines)
        total["engine"]["name"] = self.engine
        total["engine"]["threads"] = len(self.engines)
        total["sends"]["zero_copy_size_bytes_min"], total["sends"]["zero_copy_size_from"] = self._zero_copy
        return total

    @contextlib.contextmanager
    def prepared(self) -> Iterator[list[Handler]]:
        """For an engine that somebody else runs (the test client): files are open, and all handlers known."""
        self.config.check_serving(len(self._all_handlers()))
        self._open_files()
        try:
            yield self._all_handlers()
        finally:
            self._close()

    def test_client(self) -> TestClient:
        """A client that calls the whole path (parser, machine, bridge, handlers) without a socket."""
        from .testing import TestClient

        return TestClient(self)
