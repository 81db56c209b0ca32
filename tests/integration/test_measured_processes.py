"""Servers under measurement: ready when they say so, pinned, asked, and gone at the end with all that came from them;
one that does not start says why. The same within network namespaces, which leave nothing behind.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from batchbridge.measure import namespaces
from batchbridge.measure.processes import CommandProcess, ServerError, ServerProcess, cores, free_port, pinned
from support.skips import skip_if

LISTENER = (
    "import http.server as h, sys; h.HTTPServer(('', int(sys.argv[1])), h.SimpleHTTPRequestHandler).serve_forever()"
)
PARENT = "import subprocess, sys; subprocess.run([sys.executable, *sys.argv[1:]])"

HOLDER = """
import time
from batchbridge.measure.namespaces import within
with within(0, 0):
    print("in", flush=True)
    time.sleep(60)
"""

APP = """
import batchbridge as bb
server = bb.Server()

@server.batch("/x", max_batch_size=8)
def x(batch):
    return [b"hello"] * len(batch)
"""

needs_namespaces = skip_if(
    namespaces.why_not() is not None or subprocess.run(["unshare", "-n", "true"], check=False).returncode != 0,
    "no-namespaces", "network namespaces cannot be made here",
)  # fmt: skip


@pytest.fixture
def app(tmp_path):
    path = tmp_path / "measured_app.py"
    path.write_text(APP)
    return f"{path}:server"


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(condition, seconds=5.0):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.02)


def test_our_server_is_pinned_asked_and_stopped(app):
    cpu, _ = cores()
    with ServerProcess(app, engine="epoll", cpu=cpu) as server:
        assert server.engine == "epoll" and server.url == f"http://127.0.0.1:{server.port}"
        if cpu is not None:
            assert os.sched_getaffinity(server.process.pid) == {cpu}
        assert os.sched_getaffinity(0) >= {each for each in cores() if each is not None}, "the caller is not pinned"
        server.set_policy("/x", max_batch_size=3)
        assert server.ask("/policy?path=/x")["max_batch_size"] == 3
        assert server.stats()["requests"]["read"] == 0
        assert server.cpu_s() > 0 and server.memory_bytes()["anon"] > 0 and server.open_descriptors() > 2
        with pytest.raises(ServerError, match=r"/policy\?path=%2Fx with 400.*max_batch_size: 0 is out of range"):
            server.set_policy("/x", max_batch_size=0)
        assert server.stop() == 0
        with pytest.raises(ServerError, match="does not answer /stats"):
            server.stats()


def test_any_command_is_ready_when_it_listens_and_ends_with_its_children():
    port = free_port()
    command = [sys.executable, "-c", PARENT, "-c", LISTENER, str(port)]
    with CommandProcess(command, port) as server:
        assert server.command == command
        parent, child = server.family()
        assert parent == server.process.pid and is_running(child)
        assert os.getsid(parent) == os.getsid(0), "an idle loop yields only to its own session"
        used_s = server.cpu_s()
        assert used_s > 0
    wait_until(lambda: not is_running(parent) and not is_running(child))


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (["/no/such/server"], "/no/such/server cannot be run: no such file or directory"),
        (
            [sys.executable, "-c", "raise SystemExit('no licence')"],
            "ended with status 1 .*no licence",
        ),
    ],
)
def test_a_command_that_does_not_start_says_why(command, reason):
    with pytest.raises(ServerError, match=reason):
        CommandProcess(command, free_port())


def test_somebody_elses_server_is_not_taken_for_ours():
    port = free_port()
    with (
        CommandProcess([sys.executable, "-c", LISTENER, str(port)], port),
        pytest.raises(ServerError, match=f"another program listens on 127.0.0.1:{port}"),
    ):
        CommandProcess([sys.executable, "-c", "pass"], port)


def test_pinning_is_undone():
    before = os.sched_getaffinity(0)
    with contextlib.suppress(KeyboardInterrupt), pinned(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
        raise KeyboardInterrupt
    assert os.sched_getaffinity(0) == before


# --- namespaces -------------------------------------------------------------------------------------------------------


def names():
    return {each.name for each in Path(namespaces.FOLDER).glob("bbm-*")}


def test_a_core_is_a_bit_of_a_mask():
    assert [namespaces.cpu_mask(cpu) for cpu in (0, 1, 31)] == ["00000001", "00000002", "80000000"]
    assert namespaces.cpu_mask(32) == "00000001,00000000"
    assert namespaces.cpu_mask(70) == "00000040,00000000,00000000"


def test_without_root_a_sentence_says_so(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(namespaces.NamespaceError, match="take root"), namespaces.within(0, 0):
        pass


@needs_namespaces
def test_a_server_in_its_namespace_is_reached_from_the_clients(app):
    with namespaces.within(0, 1 % (os.cpu_count() or 1)) as pair:
        assert names() == {"bbm-srv", "bbm-cli"} and not pair.is_loopback
        with ServerProcess(app, engine="epoll", place=pair.server) as server:
            assert server.host == "10.98.0.1" and server.stats()["connections"]["open"] == 0
            with pair.client.connect(server.host, server.port, 5.0) as client:
                client.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(4096).endswith(b"hello")
                assert server.stats()["connections"]["open"] == 1
            assert server.stop() == 0
        with pytest.raises(namespaces.NamespaceError, match="another process measures"), namespaces.within(0, 0):
            pass
        assert names() == {"bbm-srv", "bbm-cli"}, "the one refused has not removed them"
    assert names() == set()


@needs_namespaces
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_nothing_is_left_after_an_interruption(number):
    with subprocess.Popen(
        [sys.executable, "-P", "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout.readline() == b"in\n" and names() == {"bbm-srv", "bbm-cli"}
        process.send_signal(number)
        process.wait(20)
    assert names() == set()


@needs_namespaces
def test_what_a_killed_run_left_is_removed_by_the_next():
    with subprocess.Popen([sys.executable, "-P", "-c", HOLDER], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"in\n"
        process.kill()
        process.wait()
    assert names() == {"bbm-srv", "bbm-cli"}
    with namespaces.within(0, 0):
        pass
    assert names() == set()
