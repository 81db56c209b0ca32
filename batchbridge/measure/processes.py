"""Servers to be measured, each a process of its own on a core of its own, with what the kernel tells of them.

All stay in the session of their parent. Where the kernel groups processes by session (autogroup), an idle-priority loop
yields only to those of its own group: a server in another session would share its core with the loop that measures it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

from ..errors import BatchBridgeError
from .namespaces import LOOPBACK, Place

__all__ = ["CommandProcess", "ServerError", "ServerProcess", "cores", "free_port", "pinned", "port_at"]

START_PATIENCE_S = 20.0
ADMIN_PATIENCE_S = 10.0
PROBE_PATIENCE_S = 2.0
#: What ran before in a namespace of ours may still be ending: a ring, or a worker, lets go of its listener late.
RELEASE_PATIENCE_S = 3.0
#: A free port is looked up and then given away; another program may take it meanwhile.
START_ATTEMPTS = 3
#: In a namespace of ours nobody else listens.
NAMESPACE_PORT, NAMESPACE_ADMIN_PORT = 8080, 9180

START_LINE = re.compile(r"^batchbridge \S+ serving .* on (http://[^\s,]+).* with ([a-z_]+), ", re.M)


class ServerError(BatchBridgeError):
    """The server did not start, did not answer its admin interface, or did not end. One sentence."""


class MeasuredProcess:
    """A server's process, from when it is ready until it has ended: what both kinds below share."""

    def __init__(self, place: Place = LOOPBACK) -> None:
        self.place = place
        self.host, self.port = place.host, 0
        self.command: list[str] = []
        """The exact command."""
        self._errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed with the process
        self.process: subprocess.Popen[bytes]

    def _start(self, command: Sequence[str], cpu: int | None, environment: Mapping[str, str] | None = None) -> None:
        self.command = [*self.place.prefix, *command]
        self._errors.truncate(0)
        try:
            with pinned(cpu):  # a child runs where its parent was allowed to when it was made
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    env=None if environment is None else {**os.environ, **environment},
                    # Ctrl-C is for the one who measures; it then ends the server. No session of its own: see above.
                    process_group=0,
                )
        except OSError as error:
            self._errors.close()
            reason = (error.strerror or str(error)).lower()
            raise ServerError(f"{command[0]} cannot be run: {reason}") from None

    @property
    def errors(self) -> str:
        """What it has written to standard error."""
        with open(f"/proc/self/fd/{self._errors.fileno()}", "rb") as again:
            return again.read().decode(errors="replace")

    @property
    def url(self) -> str:
        """Where it is reached, from its client's place."""
        return f"http://{self.host}:{self.port}"

    # --- what the kernel tells ---

    def family(self) -> list[int]:
        """The ids of the process and of all that come from it."""
        found = [self.process.pid]
        for pid in found:
            with contextlib.suppress(OSError):
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += [int(child) for child in children.read_text().split()]
        return found

    def cpu_s(self) -> float:
        """Seconds on a processor, of all its threads and children, to the nanosecond: /proc/PID/stat counts hundredths.

        Not what the kernel does for it in interrupts; see `cost`.
        """
        total_ns = 0
        for pid in self.family():
            with contextlib.suppress(OSError):
                for schedule in Path(f"/proc/{pid}/task").glob("*/schedstat"):
                    total_ns += int(schedule.read_text().split()[0])
        return total_ns / 1e9

    def memory_bytes(self) -> dict[str, int]:
        """Resident memory by kind: anon (the heap), shmem (slabs and arenas, whose size is a setting), file."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = dict(re.findall(r"^Rss(Anon|Shmem|File):\s+(\d+) kB$", status, re.M))
        return {name.lower(): int(size) * 1024 for name, size in found.items()}

    def open_descriptors(self) -> int:
        """Open files and sockets that have a descriptor (the io_uring engine's connections have none)."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    # --- its end ---

    def signal(self, number: int) -> None:
        """Sends a signal to the process alone."""
        self.process.send_signal(number)

    def stop(self, patience_s: float = 40.0) -> int:
        """SIGTERM; the exit status, once it has drained. Raises ServerError where it does not end."""
        if self.process.poll() is None:
            self.signal(signal.SIGTERM)
            try:
                self.process.wait(patience_s)
            except subprocess.TimeoutExpired:
                self.kill()
                raise ServerError(f"the server had not ended {patience_s:.0f} s after SIGTERM") from None
        return self.process.returncode

    def kill(self) -> None:
        """Ends it at once, with its children."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.kill()
        self._errors.close()


class CommandProcess(MeasuredProcess):
    """Any server: `command` as it stands, ready when `port` takes connections at `place`'s address.

    `cpu` pins it to one core. Raises ServerError where it does not start, or somebody listens there already.
    """

    def __init__(
        self,
        command: Sequence[str],
        port: int,
        *,
        cpu: int | None = None,
        place: Place = LOOPBACK,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(place)
        self.port = port
        until = time.monotonic() + (RELEASE_PATIENCE_S if place.namespace is not None else 0.0)
        while (is_taken := self._listens()) and time.monotonic() < until:
            time.sleep(0.05)
        if is_taken:
            self._errors.close()
            raise ServerError(f"another program listens on {self.host}:{port} already")
        self._start(command, cpu, environment)
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def _wait_until_ready(self) -> None:
        until = time.monotonic() + START_PATIENCE_S
        while not self._listens():
            if self.process.poll() is not None:
                told = self.errors.strip().splitlines()
                raise ServerError(
                    f"{self.command[len(self.place.prefix)]} ended with status {self.process.returncode} before it "
                    f"listened on port {self.port}" + (f": {told[-1]}" if told else "")
                )
            if time.monotonic() > until:
                raise ServerError(
                    f"{self.command[len(self.place.prefix)]} did not listen on port {self.port} within "
                    f"{START_PATIENCE_S:.0f} s"
                )
            time.sleep(0.02)

    def _listens(self) -> bool:
        try:
            self.place.connect(self.host, self.port, PROBE_PATIENCE_S).close()
        except OSError:
            return False
        return True


class ServerProcess(MeasuredProcess):
    """``batchbridge serve``, ready when it says so.

    `app` is what --app takes, None where there is only a root; `settings` are further flags with their values, and
    `cpu` pins the process to one core. Raises ServerError where it does not start.
    """

    def __init__(
        self,
        app: str | None,
        *,
        root: str | Path | None = None,
        engine: str = "auto",
        cpu: int | None = None,
        place: Place = LOOPBACK,
        environment: Mapping[str, str] | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(place)
        self.engine = ""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        served = ([] if root is None else [str(root)]) + ([] if app is None else [f"--app={app}"])
        for attempt in range(1, START_ATTEMPTS + 1):
            self.admin_port = free_port() if place.namespace is None else NAMESPACE_ADMIN_PORT
            command = [sys.executable, "-P", "-m", "batchbridge", "serve", *served, f"--engine={engine}"]
            command += [f"--bind={place.host}:0", f"--admin={self.admin}", *flags]
            self._start(command, cpu, environment)
            try:
                if self._has_started(is_last=attempt == START_ATTEMPTS):
                    break
            except BaseException:
                self.__exit__(None, None, None)
                raise

    def _has_started(self, is_last: bool) -> bool:
        until = time.monotonic() + START_PATIENCE_S
        while (found := START_LINE.search(self.errors)) is None:
            if self.process.poll() is not None:
                if not is_last and self.admin in self.errors:
                    return False
                raise ServerError(f"the server did not start: {self.errors.strip() or self.process.returncode}")
            if time.monotonic() > until:
                raise ServerError(f"the server was not ready after {START_PATIENCE_S:.0f} s")
            time.sleep(0.02)
        self.port = int(found[1].rpartition(":")[2])
        self.engine = found[2]
        return True

    # --- its admin interface ---

    @property
    def admin(self) -> str:
        """The address of its admin interface, within its place."""
        return f"127.0.0.1:{self.admin_port}"

    def ask(self, path: str, content: Any = None) -> Any:
        """The JSON that the admin interface answers with; `content` makes it a POST. Raises ServerError."""
        body = None if content is None else json.dumps(content).encode()
        # Closed by the server, at once: nothing of this question is left in what is looked at next.
        fields = {"Connection": "close"} | ({} if body is None else {"Content-Type": "application/json"})
        connection = HTTPConnection("127.0.0.1", self.admin_port)
        try:
            connection.sock = self.place.connect("127.0.0.1", self.admin_port, ADMIN_PATIENCE_S)
            connection.request("GET" if body is None else "POST", path, body, fields)
            answer = connection.getresponse()
            told = json.load(answer)
        except (OSError, HTTPException, ValueError) as error:
            raise ServerError(f"the server does not answer {path}: {error}; {self.errors[-500:].strip()}") from None
        finally:
            connection.close()
        if answer.status != 200:
            raise ServerError(f"the server answers {path} with {answer.status}: {told}")
        return told

    def stats(self) -> dict[str, Any]:
        """Its counters."""
        return dict(self.ask("/stats"))

    def set_policy(self, route: str, **changes: Any) -> None:
        """Changes a route's batch policy, in effect from the next batch. Raises ServerError."""
        self.ask(f"/policy?path={quote(route, safe='')}", changes)


def free_port() -> int:
    """A port of loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_at(place: Place) -> int:
    """A port for a server that does not choose its own."""
    return free_port() if place.namespace is None else NAMESPACE_PORT


def cores() -> tuple[int | None, int | None]:
    """A core for the server and one for the client; None, None where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else (None, None)


@contextlib.contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Keeps the calling thread, and threads it starts, on one core meanwhile; None: wherever it was."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
