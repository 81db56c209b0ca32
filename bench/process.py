"""A server to be measured: ``batchbridge serve`` as a process of its own, with what the kernel tells of it."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

START_PATIENCE_S = 20.0
ADMIN_PATIENCE_S = 10.0
#: A free port is looked up and then given away; another program may take it meanwhile.
START_ATTEMPTS = 3

START_LINE = re.compile(r"^batchbridge \S+ serving .* on (http://[^\s,]+).* with ([a-z_]+), ", re.M)


class ServerError(Exception):
    """The server did not start, or did not answer its admin interface. One sentence."""


class ServerProcess:
    """The command, from when it is ready until it has ended.

    `app` is what --app takes, `settings` are further flags with their values. `cpu` pins the process to one core.
    Raises ServerError where it does not start.
    """

    def __init__(
        self, app: str, *, root: str | Path | None = None, engine: str = "auto", cpu: int | None = None, **settings: Any
    ) -> None:
        self.host, self.port = "127.0.0.1", 0
        self.engine = ""
        self._errors = tempfile.TemporaryFile("w+b")  # noqa: SIM115 - closed with the process
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        roots = [] if root is None else [str(root)]
        for attempt in range(1, START_ATTEMPTS + 1):
            self.admin = f"127.0.0.1:{free_port()}"
            command = [sys.executable, "-P", "-m", "batchbridge", "serve", *roots, f"--app={app}", f"--engine={engine}"]
            command += ["--bind=127.0.0.1:0", f"--admin={self.admin}", *flags]
            self._errors.truncate(0)
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                preexec_fn=None if cpu is None else lambda: os.sched_setaffinity(0, {cpu}),
            )
            if self._has_started(is_last=attempt == START_ATTEMPTS):
                break

    def _has_started(self, is_last: bool) -> bool:
        until = time.monotonic() + START_PATIENCE_S
        while (found := START_LINE.search(self.errors)) is None:
            if self.process.poll() is not None:
                if not is_last and self.admin in self.errors:
                    return False
                raise ServerError(f"the server did not start: {self.errors.strip() or self.process.returncode}")
            if time.monotonic() > until:
                self.kill()
                raise ServerError(f"the server was not ready after {START_PATIENCE_S:.0f} s")
            time.sleep(0.02)
        self.port = int(found[1].rpartition(":")[2])
        self.engine = found[2]
        return True

    @property
    def errors(self) -> str:
        """What it has written to standard error."""
        with open(f"/proc/self/fd/{self._errors.fileno()}", "rb") as again:
            return again.read().decode(errors="replace")

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    # --- its admin interface ---

    def ask(self, path: str, content: Any = None) -> Any:
        """The JSON that the admin interface answers with; `content` makes it a POST. Raises ServerError."""
        body = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(
            f"http://{self.admin}{path}", body, {"Content-Type": "application/json"} if body else {}
        )
        try:
            with urllib.request.urlopen(request, timeout=ADMIN_PATIENCE_S) as answer:
                return json.load(answer)
        except OSError as error:
            raise ServerError(f"the server does not answer {path}: {error}; {self.errors[-500:].strip()}") from None

    def stats(self) -> dict[str, Any]:
        """Its counters."""
        return dict(self.ask("/stats"))

    def set_policy(self, route: str, **changes: Any) -> None:
        """Changes a route's batch policy, in effect from the next batch."""
        self.ask(f"/policy?path={quote(route, safe='')}", changes)

    # --- what the kernel tells ---

    def cpu_s(self) -> float:
        """Seconds on a processor, of all its threads, to the nanosecond: /proc/PID/stat counts hundredths."""
        total_ns = 0
        for task in Path(f"/proc/{self.process.pid}/task").iterdir():
            total_ns += int((task / "schedstat").read_text().split()[0])
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
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _at: TracebackType | None
    ) -> None:
        self.kill()
        self._errors.close()


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def cores() -> tuple[int | None, int | None]:
    """A core for the server and one for the client; None, None where there is only one."""
    allowed = sorted(os.sched_getaffinity(0))
    return (allowed[0], allowed[1]) if len(allowed) > 1 else (None, None)
