"""Connections and the kernel side's rows: every one is given back, and nothing else on the machine is touched."""

import contextlib
import ctypes
import os
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

import batchbridge as bb
from support.serving import Command, make_server, running
from support.skips import skip_if
from support.wire import Client, ask, await_true, head

from .conftest import FILES, echoing, side


def test_rows_are_given_back(root: Path) -> None:
    with running(make_server("kernel", root=str(root), max_connections=16)) as server:
        for number in range(400):
            client = Client(server.url)
            client.send(head("GET", "/a", *([("Connection", "close")] if number % 3 == 0 else [])))
            if number % 2:
                assert client.reply().body == FILES["a"]
            if number % 5 == 0:
                client.reset()
            else:
                client.close()
        await_true(lambda: server.stats()["connections"]["open"] == 0)
        # There are twice as many rows as connections; each was used many times.
        await_true(lambda: ask(server.url, "GET", "/a").body == FILES["a"] and side(server)["untracked"] == 0)
        assert side(server)["connections"] >= 350


def test_connections_without_a_row_are_served_too(root: Path) -> None:
    """With more connections waiting than there are rows, the rest are ordinary ones."""
    with running(make_server("kernel", root=str(root), max_connections=4)) as server:
        clients = [Client(server.url) for _ in range(24)]
        for client in clients:
            client.send(head("GET", "/a", ("Connection", "close")))
        assert [client.reply().body for client in clients] == [FILES["a"]] * 24
        assert side(server)["untracked"] > 0
        for client in clients:
            client.close()


def test_what_came_before_the_accept_is_answered(root: Path) -> None:
    with Command(str(root), "--admin", "127.0.0.1:0", folder=root, engine="kernel") as command:
        command.signal(signal.SIGSTOP)
        clients = [Client(command.url) for _ in range(20)]
        for number, client in enumerate(clients):
            client.send(head("GET", "/a") + head("GET", "/b"))
            if number % 4 == 1:
                client.end_sending()
            elif number % 4 == 2:
                client.reset()
        time.sleep(0.1)
        command.signal(signal.SIGCONT)
        for number, client in enumerate(clients):
            if number % 4 != 2:
                assert [client.reply().body, client.reply().body] == [FILES["a"], FILES["b"]]
            client.close()
        await_true(lambda: command.stats()["connections"]["open"] == 0)
        assert command.stats()["kernel_side"]["connections"] == 20
        assert command.terminate() == 0


def test_other_servers_are_left_alone(server: bb.Server) -> None:
    """Another program's listener on the same port, at another address, too."""
    port = int(server.url.rpartition(":")[2])
    before = side(server)["connections"]
    address = ("127.0.0.2", port)
    with socket.create_server(address) as listener, socket.create_connection(address) as client:
        accepted, _ = listener.accept()
        client.sendall(b"for somebody else")
        assert accepted.recv(100) == b"for somebody else"
        accepted.close()
    assert ask(server.url, "GET", "/a").body == FILES["a"]
    assert side(server)["connections"] == before + 1


def test_addresses_are_told(server: bb.Server) -> None:
    seen: list[str] = []
    server_ = make_server("kernel", bind=("127.0.0.1:0", "[::1]:0"))

    @server_.batch("/who")
    def who(batch: bb.Batch) -> list[str]:
        seen.extend(str(request.client) for request in batch)
        return [str(request.client) for request in batch]

    with running(server_):
        for url in server_.urls:
            with Client(url) as client:
                own = client.socket.getsockname()
                told = client.ask("GET", "/who").body.decode()
                assert own[0] in told and str(own[1]) in told


def test_connections_of_few_requests_are_left_to_user_mode(root: Path) -> None:
    """They are served as any others, and their addresses told; where few come again, they get rows again."""
    server = make_server("kernel", root=str(root), kernel_requests_min=8)
    server.batch("/who")(lambda batch: [str(request.client) for request in batch])

    def short() -> None:
        for _ in range(40):
            with Client(server.url) as client:
                assert client.ask("GET", "/a", ("Connection", "close")).body == FILES["a"]

    def gets_a_row() -> bool:
        before = side(server)["connections"]
        with Client(server.url) as client:
            assert client.ask("GET", "/b").body == FILES["b"]
        return side(server)["connections"] > before

    with running(server):
        await_true(lambda: short() or side(server)["left"] > 0)
        with Client(server.url) as client:
            assert client.socket.getsockname()[0] in client.ask("GET", "/who").body.decode()
            seen = side(server)
            assert seen["connections"] + seen["left"] == server.stats()["connections"]["accepted"]
        await_true(lambda: time.sleep(0.6) or gets_a_row())


@pytest.mark.parametrize("threads", [2, 3])
def test_engine_threads_have_a_kernel_side_each(root: Path, threads: int) -> None:
    with running(echoing(make_server("kernel", root=str(root), engine_threads=threads))) as server:
        clients = [Client(server.url) for _ in range(32)]
        for turn in range(20):
            for number, client in enumerate(clients):
                client.send(head("POST", f"/echo/{number}", body=b"%d" % turn) + head("GET", "/f"))
            for number, client in enumerate(clients):
                text = b"%d" % turn
                assert client.reply("POST").body == b"%d %d %b" % (number, len(text), text)
                assert client.reply().body == FILES["f"]
        for client in clients:
            client.close()
        assert side(server)["connections"] == 32 and side(server)["untracked"] == 0


# --- nothing stays ----------------------------------------------------------------------------------------------------

PROG_GET_NEXT_ID, PROG_GET_FD_BY_ID, OBJ_GET_INFO_BY_FD, SYS_BPF = 11, 13, 15, 321

needs_bpf_number = skip_if(os.uname().machine != "x86_64", "other-machine", "the number of bpf(2) is x86-64's")


#: Of the kernel side: one is held by its map of sockets, the other by its link to the cgroup tree.
NAMES = (b"on_data", b"on_connection")


def programs() -> set[int]:
    """The BPF programs of these names that are loaded on this machine, whoever has loaded them, by their ids."""
    libc = ctypes.CDLL(None, use_errno=True)

    def bpf(command: int, attributes: bytes) -> tuple[int, bytes]:
        buffer = ctypes.create_string_buffer(attributes.ljust(144, b"\0"), 144)
        return libc.syscall(SYS_BPF, command, buffer, 144), buffer.raw

    number, found = 0, set()
    while True:
        result, answer = bpf(PROG_GET_NEXT_ID, struct.pack("=II", number, 0))
        if result < 0:
            return found
        number = struct.unpack_from("=I", answer, 4)[0]
        fd, _ = bpf(PROG_GET_FD_BY_ID, struct.pack("=I", number))
        if fd < 0:
            continue
        info = ctypes.create_string_buffer(256)
        bpf(OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, 256, ctypes.addressof(info)))
        if info.raw[64:80].rstrip(b"\0") in NAMES:
            found.add(number)
        os.close(fd)


def programs_of(command: Command) -> set[int]:
    """Those that the command holds: another server on this machine may start or end meanwhile."""
    held = set()
    for path in Path(f"/proc/{command.process.pid}/fdinfo").iterdir():
        with contextlib.suppress(OSError):  # closed meanwhile
            held |= {int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith("prog_id:")}
    return held & programs()


@needs_bpf_number
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
@pytest.mark.parametrize("more", [(), ("--sqpoll", "0")], ids=["", "with a kernel thread that sends"])
def test_nothing_stays_behind(root: Path, end: signal.Signals, more: tuple[str, ...]) -> None:
    with Command(str(root), *more, folder=root, engine="kernel") as command:
        assert ask(command.url, "GET", "/a").body == FILES["a"]
        loaded = programs_of(command)
        assert len(loaded) == len(NAMES)
        command.signal(end)
        command.wait()
    await_true(lambda: not loaded & programs())


APP = """
import subprocess, sys
import batchbridge as bb

server = bb.Server()

@server.batch("/start")
def start(batch):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], close_fds=False)
    return [str(child.pid)] * len(batch)
"""


@needs_bpf_number
def test_programs_that_a_handler_starts_keep_nothing(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    with Command("--app", "app.py:server", folder=tmp_path, engine="kernel") as command:
        child = int(ask(command.url, "GET", "/start").body)
        loaded = programs_of(command)
        assert len(loaded) == len(NAMES)
        try:
            command.kill()
            await_true(lambda: not loaded & programs())
            assert subprocess.run(["kill", "-0", str(child)], check=False).returncode == 0
        finally:
            os.kill(child, signal.SIGKILL)
