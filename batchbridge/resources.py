"""What a server takes from the system: listening sockets, open files, the access log's descriptor."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .config import Address, Config
from .errors import BindError, ConfigError

__all__ = ["fit_descriptors", "listen", "open_log", "url_of", "woken_by_signals"]

logger = logging.getLogger("batchbridge.server")

#: Descriptors that a server needs beside its connections': files being sent, bells, memory, what the application has.
DESCRIPTORS_BESIDE = 256
#: What TCP takes of a connection's responses beyond what it may send now. More would be memory that a slow reader
#: holds, and would hide for seconds that it reads: a send goes on when the half of this has left (Linux 3.12).
UNSENT_SIZE_BYTES_MAX = 256 * 1024


def fit_descriptors(config: Config) -> Config:
    """Raises the process's soft limit of open files as far as `max_connections` needs and the hard limit lets it.

    Where that is not enough, `max_connections` is lowered, with a warning: further clients then wait in the backlog,
    instead of finding out under load.
    """
    needed = config.max_connections + DESCRIPTORS_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return config
    if hard == resource.RLIM_INFINITY or hard >= needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        return config
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    lowered = max(1, hard - DESCRIPTORS_BESIDE)
    if lowered >= config.max_connections:
        return config
    logger.warning("the limit of %d open files allows %d connections, not %d", hard, lowered, config.max_connections)
    return config.replace(max_connections=lowered)


def open_log(where: str) -> int:
    """The access log's descriptor: -1 for "off", 1 for "-". Raises ConfigError."""
    if where == "off":
        return -1
    if where == "-":
        return 1
    try:
        return os.open(where, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(f"access_log: {where!r} cannot be opened: {error.strerror}") from None


def listen(config: Config) -> list[list[socket.socket]]:
    """Listening sockets: for each engine thread a list, of one socket an address (SO_REUSEPORT shares them out)."""
    groups: list[list[socket.socket]] = [[] for _ in range(config.engine_threads)]
    try:
        for address in config.addresses:
            port = address.port
            for group in groups:
                group.append(listen_at(address, port, config))
                port = group[-1].getsockname()[1]
    except BaseException:
        for group in groups:
            for listener in group:
                listener.close()
        raise
    return groups


def listen_at(address: Address, port: int, config: Config) -> socket.socket:
    """One listening socket. Raises BindError."""
    spoken = str(address)
    try:
        family, _, _, _, where = socket.getaddrinfo(
            address.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    except OSError as error:
        raise BindError.of(spoken, error) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if config.engine_threads > 1:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        # Accepted sockets inherit both.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_SIZE_BYTES_MAX)
        # A connection is accepted together with its first request: nothing has to wait for that in between.
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, math.ceil(config.accept_defer_s))
        listener.bind(where)
        listener.listen(config.accept_backlog)
    except OSError as error:
        listener.close()
        raise BindError.of(spoken, error) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """http://HOST:PORT of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Wake:
    """A pair of sockets: recv() on one end sleeps until a signal has come, or send() was called."""

    def __init__(self) -> None:
        self._reading, self._writing = socket.socketpair()
        self._writing.setblocking(False)
        self.recv = self._reading.recv
        self.send = self._writing.send
        self.fileno = self._writing.fileno

    def close(self) -> None:
        """Closes both ends."""
        self._reading.close()
        self._writing.close()


@contextlib.contextmanager
def woken_by_signals(numbers: Sequence[int], handler: Callable[[int, Any], None]) -> Iterator[Wake]:
    """Handles signals, and yields what the main thread may sleep on: any of them wakes it.

    The kernel may hand a signal to any thread, which would leave a main thread asleep in another call asleep; the byte
    that Python writes for it does not.
    """
    wake = Wake()
    previous = {number: signal.signal(number, handler) for number in numbers}
    previous_fd = signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    try:
        yield wake
    finally:
        signal.set_wakeup_fd(previous_fd)
        for number, before in previous.items():
            signal.signal(number, before)
        wake.close()
