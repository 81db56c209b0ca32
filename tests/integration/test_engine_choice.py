"""Which engine ``auto`` takes: kernel where its part can be loaded, else io_uring, with one sentence that says why."""

import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from batchbridge.doctor import choose_engine, diagnose
from support.serving import Command, command_line, config, require_engine
from support.skips import skip
from support.wire import Client, ask

WHY = "missing CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON: run as root, or give the process these capabilities"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a").write_bytes(b"a")
    return tmp_path


@pytest.fixture
def unprivileged() -> tuple[str, ...]:
    """What to put before a command so that it may load nothing into the kernel."""
    require_engine("io_uring")
    if choose_engine("auto")[0] != "kernel" and WHY not in choose_engine("auto")[1]:
        skip("no-kernel", "here it is not for lack of privilege that the kernel engine does not run")
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        skip("no-setpriv", "root may load anything, and setpriv is not installed")
    return ("setpriv", "--bounding-set=-bpf,-net_admin,-perfmon,-sys_admin")


def test_the_kernel_engine_without_privilege_is_one_sentence(unprivileged: tuple[str, ...], folder: Path) -> None:
    command = [*unprivileged, *command_line("serve", ".", "--bind", "127.0.0.1:0", "--engine", "kernel")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"batchbridge: the engine kernel cannot run: {WHY}; --engine auto takes what can\n"


def test_auto_goes_on_without_privilege_and_says_so(unprivileged: tuple[str, ...], folder: Path) -> None:
    with Command(".", "--access-log", "off", folder=folder, before=unprivileged) as command:
        assert command.engine == "io_uring"
        assert ask(command.url, "GET", "/a").body == b"a"
        said = [line for line in command.errors.splitlines() if "kernel" in line]
        assert len(said) == 1 and said[0].endswith(
            f"--engine auto takes io_uring: the kernel engine cannot run here: {WHY}"
        )
        assert command.terminate() == 0


def test_doctor_agrees_with_auto(unprivileged: tuple[str, ...], folder: Path) -> None:
    command = [*unprivileged, *command_line("doctor")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0
    assert "--engine auto takes io_uring: the kernel engine cannot run here" in done.stdout


def test_doctor_tries_the_kernel_side() -> None:
    require_engine("kernel")
    report = diagnose()
    assert report.chosen == "kernel"
    assert report.reason.startswith("it was tried: ") and "were recognised" in report.reason


@pytest.mark.parametrize("loaded", [0, 1])
def test_auto_goes_on_where_loading_fails(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, loaded: int
) -> None:
    """Also where one engine thread has its kernel side already, and a client was there for it."""
    require_engine("kernel")
    from batchbridge.cython_ext import bpf

    load, calls = bpf.KernelSide, []

    def fail(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) > loaded:
            raise bb.EngineError("the kernel side cannot be loaded: no room")
        return load(*arguments)

    monkeypatch.setattr(bpf, "KernelSide", fail)
    server = bb.Server(config=config("auto", root=str(folder), engine_threads=2))
    with caplog.at_level(logging.INFO, "batchbridge"), server.running():
        assert server.engine == "io_uring" and "kernel_side" not in server.stats()
        for _ in range(20):
            with Client(server.url) as client:
                assert client.ask("GET", "/a").body == b"a"
    told = [record.getMessage() for record in caplog.records if "auto" in record.getMessage()]
    assert told == [
        "--engine auto takes io_uring: the kernel engine cannot run here: the kernel side cannot be loaded: no room"
    ]


@pytest.mark.parametrize("settings", [{"engine": "kernel"}, {"engine": "auto", "sqpoll": 0}], ids=str)
def test_a_kernel_engine_that_was_asked_for_does_not_give_way(
    folder: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    require_engine("kernel")
    from batchbridge.cython_ext import bpf

    def fail(*arguments: Any) -> Any:
        raise bb.EngineError("the kernel side cannot be loaded: no room")

    monkeypatch.setattr(bpf, "KernelSide", fail)
    with (
        pytest.raises(bb.EngineError, match="no room"),
        bb.Server(config=config(**settings, root=str(folder))).running(),
    ):
        pass


def test_three_capabilities_are_enough(folder: Path) -> None:
    """Where the cgroup tree is mounted; without CAP_SYS_ADMIN it cannot be mounted anew."""
    require_engine("kernel")
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        skip("no-setpriv", "it takes root and setpriv to try")
    from batchbridge.cython_ext.bpf import CGROUP_FOLDERS

    is_mounted = any(Path(place, "cgroup.controllers").exists() for place in CGROUP_FOLDERS)
    before = ("setpriv", "--bounding-set=-all,+bpf,+net_admin,+perfmon")
    with Command(".", "--admin", "127.0.0.1:0", folder=folder, before=before) as command:
        assert command.engine == ("kernel" if is_mounted else "io_uring")
        assert ask(command.url, "GET", "/a").body == b"a"
        assert command.stats().get("kernel_side", {}).get("connections", 0) == (1 if is_mounted else 0)
        assert command.terminate() == 0


#: Starts a server with ever more descriptors to spare, each time in a fork, since a hard limit cannot be raised again.
STARVED = """
import os, resource, sys
import batchbridge as bb

def attempt(spare):
    server = bb.Server(config=bb.Config(bind=("127.0.0.1:0",), root=".", engine=sys.argv[1], max_connections=1))
    limit = len(os.listdir("/proc/self/fd")) - 1 + spare
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    try:
        with server.running():
            said = "served"
    except (bb.BatchBridgeError, OSError) as error:
        said = str(error)
    os.fstat(0)
    return said

for spare in range(30):
    child = os.fork()
    if child == 0:
        print(attempt(spare), flush=True)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(f"with {spare} descriptors to spare")
"""


def test_without_descriptors_it_says_so_and_closes_nobody_elses(engine: str, folder: Path) -> None:
    command = [sys.executable, "-P", "-c", STARVED, engine]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    said = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert len(said) == 30 and said[-1] == "served"
    refused = said[: said.index("served")]
    assert refused and set(said[len(refused) :]) == {"served"}
    assert all("many open files" in line or "Invalid argument" in line for line in refused), refused
