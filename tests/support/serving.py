"""Servers for tests: in this process (`served`), or the real command as a process of its own (`Command`).

A test that asks for the fixture `engine` runs once with each engine; one that cannot run here is skipped with a code.
"""

import contextlib
import functools
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb

from .skips import skip

ENGINES = ("kernel", "io_uring", "epoll")

#: Most tests have many connections of few requests, and are about the kernel side.
ALL_TAKEN_OVER = ("--kernel-requests-min", "0")

#: How long the command may take to start or, once told, to end.
COMMAND_PATIENCE_S = 20.0

START_LINE = re.compile(
    r"^batchbridge \S+ serving .* on (http://\S+?)(?:, http://\S+)* with (kernel|io_uring|epoll), ", re.M
)
ADMIN = re.compile(r", admin on (http://\S+)")


def require_engine(name: str) -> str:
    """The engine's name, where it runs here; else the test is skipped."""
    if name == "epoll" and importlib.util.find_spec("batchbridge.cython_ext.epoll") is None:
        skip("no-epoll-driver", "this build has no epoll driver")
    if name in ("kernel", "io_uring"):
        from batchbridge.doctor import choose_engine

        try:
            choose_engine(name)
        except bb.EngineError as error:
            skip(f"no-{name.replace('_', '-')}", str(error))
        if name == "kernel" and (fault := kernel_fault()):
            skip("no-kernel", fault)
    return name


@functools.cache
def kernel_fault() -> str:
    """What goes wrong with the kernel side here, though nothing forbids it; empty: it works."""
    from batchbridge.doctor import try_kernel_side

    tried = try_kernel_side()
    return "" if tried.ok else tried.detail


@pytest.fixture(params=ENGINES, scope="module")
def engine(request: pytest.FixtureRequest) -> str:
    return require_engine(request.param)


# --- in this process --------------------------------------------------------------------------------------------------


def config(engine: str, **settings: Any) -> bb.Config:
    defaults = {"bind": ("127.0.0.1:0",), "engine": engine, "drain_timeout_s": 5.0, "kernel_requests_min": 0}
    return bb.Config(**{**defaults, **settings})


def make_server(engine: str, *, lifespan: Any = None, **settings: Any) -> bb.Server:
    return bb.Server(config=config(engine, **settings), lifespan=lifespan)


@contextlib.contextmanager
def running(server: bb.Server, *, balanced: bool = True) -> Iterator[bb.Server]:
    """The server, running; when it has ended, each request that it read must have had its one outcome (law 7)."""
    with server.running():
        yield server
    stats = server.stats()
    if balanced:
        assert_balanced(stats)


def assert_balanced(stats: Any) -> None:
    assert stats["requests"]["read"] == sum(stats["requests"]["outcomes"].values()), stats["requests"]
    assert stats["connections"]["open"] == 0, stats["connections"]
    assert stats["connections"]["accepted"] == stats["connections"]["closed"], stats["connections"]
    assert stats["bridge"]["in_user_mode"] == 0, stats["bridge"]
    assert stats["bytes"]["input_waiting"] == 0, stats["bytes"]
    assert stats["sends"]["zero_copy_pending"] == 0, stats["sends"]
    assert stats["engine"]["table_faults"] == 0, stats["engine"]


class Gate:
    """Holds handlers back until opened, and tells how many wait at it; never for longer than a test may take."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = threading.Semaphore(0)

    def pass_through(self) -> None:
        self.reached.release()
        self.opened.wait(8.0)

    def await_arrival(self) -> None:
        assert self.reached.acquire(timeout=8.0), "no handler was called"

    def open(self) -> None:
        self.opened.set()

    def close(self) -> None:
        self.opened.clear()


# --- the command ------------------------------------------------------------------------------------------------------


class Command:
    """``batchbridge serve`` as a process: started, waited for until it tells that it is ready, and ended."""

    def __init__(
        self,
        *arguments: str | Path,
        folder: Path,
        engine: str | None = None,
        bind: str = "127.0.0.1:0",
        before: tuple[str, ...] = (),
        environment: dict[str, str] | None = None,
        preexec: Callable[[], None] | None = None,
    ) -> None:
        self.out, self.err = folder / "stdout", folder / "stderr"
        chosen = () if engine is None else ("--engine", engine)
        with self.out.open("wb") as out, self.err.open("wb") as err:
            self.process = subprocess.Popen(
                [*before, *command_line("serve"), *ALL_TAKEN_OVER, *map(str, arguments), "--bind", bind, *chosen],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                env={**os.environ, **(environment or {})},
                preexec_fn=preexec,
            )
        self.url = self.admin = self.engine = ""
        try:
            self._await_start()
        except BaseException:
            self.kill()
            raise

    def _await_start(self) -> None:
        until = time.monotonic() + COMMAND_PATIENCE_S
        while not (found := START_LINE.search(self.errors)):
            ended = self.process.poll()
            assert ended is None, f"ended with {ended}: {self.errors}"
            assert time.monotonic() < until, f"no start-up line: {self.errors!r}"
            time.sleep(0.01)
        self.url, self.engine = found.groups()
        if admin := ADMIN.search(self.errors):
            self.admin = admin[1]

    @property
    def errors(self) -> str:
        return self.err.read_text() if self.err.exists() else ""

    @property
    def output(self) -> str:
        return self.out.read_text()

    def stats(self) -> Any:
        """What the admin interface tells; needs --admin."""
        with urllib.request.urlopen(f"{self.admin}/stats", timeout=5) as answer:
            return json.load(answer)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def wait(self, timeout_s: float = COMMAND_PATIENCE_S) -> int:
        return self.process.wait(timeout_s)

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait()

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()

    def __enter__(self) -> "Command":
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def command_line(*arguments: str) -> list[str]:
    """The command, of the installed package whatever the current folder holds."""
    return [sys.executable, "-P", "-m", "batchbridge", *arguments]


def run_command(*arguments: str | Path, folder: Path, timeout_s: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Runs the command to its end."""
    return subprocess.run(
        command_line(*map(str, arguments)),
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
