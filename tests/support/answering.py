"""What tests of the kernel side's own answers share: a core for its thread, and responses read byte by byte."""

import os
import re
import socket
import time
from collections.abc import Callable
from typing import Any

import batchbridge as bb

from .serving import make_server

DATE = re.compile(rb"\r\nDate: ([^\r]*)")
LENGTH = re.compile(rb"\r\nContent-Length: ([0-9]+)", re.I)


def core() -> int:
    """A core that this process may use."""
    return max(os.sched_getaffinity(0))


def make_answering(**settings: Any) -> bb.Server:
    """A server of the kernel engine whose kernel side answers by itself."""
    return make_server("kernel", sqpoll=core(), **settings)


class Reader:
    """Responses off a socket, one after the other, with all of their bytes; `count` of these in all."""

    def __init__(self, given: socket.socket) -> None:
        self.socket, self.rest, self.count = given, b"", 0

    def bytes(self, count: int) -> bytes:
        """Exactly so many bytes."""
        while len(self.rest) < count:
            self._more()
        taken, self.rest = self.rest[:count], self.rest[count:]
        return taken

    def response(self) -> bytes:
        """All bytes of the next response, which must have a Content-Length."""
        while b"\r\n\r\n" not in self.rest:
            self._more()
        head = self.rest.partition(b"\r\n\r\n")[0]
        found = LENGTH.search(head)
        assert found is not None, head
        return self.bytes(len(head) + 4 + int(found[1]))

    def body(self) -> bytes:
        """The body of the next response."""
        return self.response().partition(b"\r\n\r\n")[2]

    def _more(self) -> None:
        more = self.socket.recv(1 << 16)
        if not more:
            raise EOFError(f"the connection ended behind {self.rest!r}")
        self.rest += more
        self.count += len(more)


def until_answered(answered: Callable[[], int], ask: Callable[[], object], patience_s: float = 8.0) -> int:
    """Asks until the kernel side has answered once more than before; how often that took."""
    until, before, asked = time.monotonic() + patience_s, answered(), 0
    while answered() == before:
        assert time.monotonic() < until, f"the kernel side answered none of {asked} requests"
        ask()
        asked += 1
    return asked
