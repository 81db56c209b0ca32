"""A server finds out by itself from which size on it sends without a copy, says so, and sends the same bytes anyway."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

import batchbridge as bb
from batchbridge import zero_copy
from batchbridge.cython_ext import calibrate
from batchbridge.doctor import judge_running
from support.serving import Command, command_line, config, require_engine, running
from support.skips import skip
from support.wire import Client

SIZES = (0, 100, 4_000, 9_000, 20_000, 65_536, 300_000)


def content(size: int) -> bytes:
    return bytes(place * 31 % 251 for place in range(size))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for size in SIZES:
        (folder / f"{size}").write_bytes(content(size))
    return folder


def make(engine: str, folder: Path, **settings: object) -> bb.Server:
    server = bb.Server(config=config(engine=engine, root=str(folder), **settings))

    @server.batch("/answer/{size}")
    def answer(batch: bb.Batch) -> None:
        for request in batch:
            request.respond(content(int(request.params["size"])))

    return server


def ask_for_all(url: str) -> None:
    with Client(url) as client:
        for _ in range(2):
            for size in SIZES:
                assert client.ask("GET", f"/{size}").body == content(size)
                assert client.ask("GET", f"/answer/{size}").body == content(size)


@pytest.mark.parametrize("ratio", [0.5, 2.0], ids=["cheap", "dear"])
def test_the_bytes_are_the_same_whatever_was_found(
    engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch, ratio: float
) -> None:
    costs_us = dict.fromkeys(zero_copy.SIZES_BYTES, (4.0, 4.0 * ratio))
    told = {"costs_us": costs_us, "rounds": 5, "took_us": 1, "error": ""}
    monkeypatch.setattr(calibrate, "measure", lambda *_: told)
    monkeypatch.setattr(zero_copy, "_found", None)
    with running(make(engine, folder)) as server:
        ask_for_all(server.url)
        sends = server.stats()["sends"]
    if engine == "epoll":
        assert (sends["zero_copy_size_from"], sends["zero_copy"]) == ("none", 0)
        assert server.zero_copy_size_bytes_min is None
        return
    assert sends["zero_copy_size_from"] == "calibration"
    assert sends["zero_copy_size_bytes_min"] == (4096 if ratio < 1 else 65_536) == server.zero_copy_size_bytes_min
    # Of 300,000 bytes the pieces in the middle are whole fragments; those of 20,000 leave so only where it is cheap.
    assert 0 < sends["zero_copy"] < sends["pieces"]


def test_it_is_measured_for_real_once_for_all_engine_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_engine("io_uring")
    calls = []

    def measure(*arguments: object) -> object:
        calls.append(arguments)
        return measured(*arguments)

    measured = calibrate.measure
    monkeypatch.setattr(calibrate, "measure", measure)
    monkeypatch.setattr(zero_copy, "_found", None)
    for _ in range(2):
        with running(make("io_uring", folder, engine_threads=2)) as server:
            ask_for_all(server.url)
            sends = server.stats()["sends"]
        assert sends["zero_copy_size_bytes_min"] in zero_copy.SIZES_BYTES
        # A busy machine may not let it end in time, and then it is as usual.
        assert sends["zero_copy_size_from"] in ("calibration", "default")
    assert len(calls) == 1


def test_a_size_that_was_set_goes_first(engine: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(*_: object) -> object:
        raise AssertionError("nobody asked for it")

    monkeypatch.setattr(calibrate, "measure", measure)
    monkeypatch.setattr(zero_copy, "_found", None)
    with running(make(engine, folder, zero_copy_size_bytes_min="1k")) as server:
        ask_for_all(server.url)
        sends = server.stats()["sends"]
    assert sends["zero_copy_size_bytes_min"] == 1024
    assert sends["zero_copy_size_from"] == ("none" if engine == "epoll" else "setting")


def test_what_is_registered_is_told(folder: Path) -> None:
    require_engine("io_uring")
    with running(make("io_uring", folder, response_arena_size_bytes="1MiB")) as server:
        ask_for_all(server.url)
        stats = server.stats()
    assert stats["bridge"]["response_arena_size_bytes"] == 1 << 20
    assert stats["cache"]["arena"]["open_size_bytes"] > 0
    found = {finding.name: finding for finding in judge_running(stats)}
    assert set(found) == {"its zero copy", "its cache's arena", "its handlers' arenas"}
    assert "of 1 MiB are registered" in found["its handlers' arenas"].detail


@pytest.fixture
def little_memory() -> tuple[str, ...]:
    """What to put before a command so that it may lock 4 MiB and no more: its rings, and a chunk of the arena."""
    require_engine("io_uring")
    if shutil.which("prlimit") is None or shutil.which("setpriv") is None or os.geteuid() != 0:
        skip("no-setpriv", "it takes root, prlimit and setpriv to try")
    return ("prlimit", f"--memlock={4 << 20}", "setpriv", "--bounding-set=-ipc_lock,-sys_admin,-bpf")


def test_a_running_server_is_looked_at_by_the_doctor(folder: Path, little_memory: tuple[str, ...]) -> None:
    flags = ("--access-log", "off", "--engine", "io_uring", "--admin", "127.0.0.1:0")
    with Command(str(folder), *flags, folder=folder, before=little_memory) as command:
        with Client(command.url) as client:
            for size in SIZES:
                assert client.ask("GET", f"/{size}").body == content(size)
        line = next(line for line in command.errors.splitlines() if line.startswith("batchbridge "))
        found = re.search(r" with io_uring, .*, zero copy from (4|8|16|32|64) KiB, admin on (\S+)$", line)
        assert found is not None, line
        done = subprocess.run(
            command_line("doctor", "--json", "--admin", found[2]), capture_output=True, text=True, timeout=30,
            check=True,
        )  # fmt: skip
        told = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
        assert re.match(r"It sends without a copy from \d+ KiB on, as ", told["its zero copy"]["detail"])
        assert "2 MiB of 2 MiB are registered with the kernel" in told["its cache's arena"]["detail"]
        assert "its handlers' arenas" not in told, "it has no handlers"
        assert command.terminate() == 0


def test_the_doctor_tells_the_limit_of_locked_memory(little_memory: tuple[str, ...], folder: Path) -> None:
    command = [*little_memory, *command_line("doctor", "--json")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=True)
    told = {finding["name"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert not told["locked memory"]["ok"]
    assert told["locked memory"]["detail"].startswith("4 MiB may be locked by this user (ulimit -l), without CAP_IPC")
    assert re.match(r"From \d+ KiB on", told["zero copy"]["detail"])


def test_the_doctor_says_where_no_server_runs(folder: Path) -> None:
    done = subprocess.run(
        command_line("doctor", "--admin", "127.0.0.1:1"), cwd=folder, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "is a server running with --admin 127.0.0.1:1?" in done.stderr
