"""Answers that the kernel side has posted and its thread has not sent yet: the server is stopped, and the kernel side
is not. What then comes behind them, or takes their connection's place, must not overtake or get them."""

import ctypes
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from support.answering import Reader, core, until_answered
from support.serving import Command
from support.skips import skip_if
from support.wire import Client, await_true, head

from .conftest import FILES

F, A = head("GET", "/f"), head("GET", "/a")
LONG = head("GET", "/f", ("X-Filler", "y" * 1500))  # its image has one of the last places
PIDFD_GETFD = 438

needs_pidfd = skip_if(os.uname().machine != "x86_64", "other-machine", "the number of pidfd_getfd(2) is x86-64's")


@contextmanager
def stopped(command: Command) -> Iterator[None]:
    """The server, and its thread that sends, stand still; what arrives is still seen by the kernel side."""
    tasks = Path(f"/proc/{command.process.pid}/task")
    command.signal(signal.SIGSTOP)
    await_true(lambda: all(state(task) == "T" for task in tasks.iterdir()), what="all threads are stopped")
    yield
    command.signal(signal.SIGCONT)


def state(task: Path) -> str:
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def command(root: Path) -> Iterator[Command]:
    arguments = (str(root), "--admin", "127.0.0.1:0", "--sqpoll", str(core()), "--access-log", "off")
    with Command(*arguments, folder=root, engine="kernel") as command:
        yield command
        assert command.terminate() == 0


def side(command: Command) -> Any:
    return command.stats()["kernel_side"]


def warmed(command: Command, client: Client, request: bytes = F) -> Reader:
    """Reads what comes to a connection that the kernel side answers this request for F's file on."""
    reader = Reader(client.socket)

    def ask() -> None:
        client.send(request)
        assert reader.body() == FILES["f"]

    # An answer is valid to the end of its second: not to be stopped in the middle.
    time.sleep(max(0.0, 1.01 - time.time() % 1) if time.time() % 1 > 0.6 else 0.0)
    until_answered(lambda: side(command)["answered"], ask)
    return reader


def until_held_up(command: Command, attempt: Callable[[], None], counter: str = "answered") -> None:
    """Tries until what was sent to the stopped server had been answered by the kernel side (or another counter says
    that it was as wanted); each attempt checks all that must be true in any case."""
    for _ in range(20):
        before = side(command)[counter]
        attempt()
        if side(command)[counter] > before:
            return
    raise AssertionError(f"nothing was held up: {side(command)}")


@pytest.mark.parametrize("behind", ["a", "fa", "af", "a" * 30, "fff"])
def test_nothing_overtakes_an_answer(command: Command, behind: str) -> None:
    with Client(command.url) as client:
        reader = warmed(command, client)

        def attempt() -> None:
            with stopped(command):
                client.send(F)
                for name in behind:
                    client.send(head("GET", f"/{name}"))
            assert reader.body() == FILES["f"]
            for name in behind:
                assert reader.body() == FILES[name]

        until_held_up(command, attempt)


def test_fin_behind_an_answer_waits_for_it(command: Command) -> None:
    def attempt() -> None:
        with Client(command.url) as client:
            reader = warmed(command, client)
            with stopped(command):
                client.send(F)
                client.end_sending()
            assert reader.body() == FILES["f"]
            assert client.socket.recv(1) == b""

    until_held_up(command, attempt)
    await_true(lambda: command.stats()["connections"]["open"] == 0)


def test_nobody_gets_the_answer_of_one_who_is_gone(command: Command) -> None:
    """The descriptor, and the row, of a connection that was reset are the next one's."""
    answered = 0
    for _ in range(6):
        gone = [Client(command.url) for _ in range(8)]
        for client in gone:
            warmed(command, client)
        warm = side(command)["answered"]
        with stopped(command):
            for client in gone:
                client.send(F)
                client.reset()
            clients = [Client(command.url) for _ in range(24)]
        for client in clients:
            assert client.is_silent(0.02)
        answered += side(command)["answered"] - warm
        for client in clients:
            assert client.ask("GET", "/a").body == FILES["a"]
            client.close()
    await_true(lambda: command.stats()["connections"]["open"] == 0)
    assert answered > 0 and side(command)["untracked"] == 0


@needs_pidfd
@pytest.mark.parametrize("request_", [F, LONG], ids=["small", "large"])
def test_what_the_thread_cannot_send_user_mode_does(command: Command, request_: bytes) -> None:
    """The send buffer fills up between the kernel side's look at it and the send."""

    def attempt() -> None:
        with Client(command.url, receive_buffer_bytes=65_536) as client:
            reader, filled = warmed(command, client, request_), 0
            own = server_end(command, client)
            own.setblocking(False)
            own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            with stopped(command):
                client.send(request_)
                try:
                    while True:
                        filled += own.send(b"z" * 4096)
                except BlockingIOError:
                    own.close()
            assert reader.bytes(filled) == b"z" * filled
            assert reader.body() == FILES["f"]
            client.send(A + F)
            assert [reader.body(), reader.body()] == [FILES["a"], FILES["f"]]

    until_held_up(command, attempt, "failed_sends")
    stats = command.stats()
    assert stats["requests"]["read"] == sum(stats["requests"]["outcomes"].values())


@needs_pidfd
def test_what_user_mode_still_has_to_send_goes_first(command: Command, root: Path) -> None:
    """A send of user mode's fell short, with nothing owed any more; there is room again, and a known request comes."""
    (root / "page").write_bytes(b"0123456789abcdef" * 500)
    page, count = (root / "page").read_bytes(), 30

    def attempt() -> None:
        with Client(command.url, receive_buffer_bytes=65_536) as client:
            reader = warmed(command, client)
            with server_end(command, client) as own:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 16_384)
            short = command.stats()["sends"]["short"]
            client.send(head("GET", "/page") * count)
            await_true(lambda: command.stats()["sends"]["short"] > short)
            with stopped(command):
                first = reader.response()
                while not client.is_silent(0.05):
                    reader.rest, client.rest = reader.rest + client.rest, b""
                client.send(F)
            assert first.endswith(page)
            assert [reader.body() for _ in range(count - 1)] == [page] * (count - 1)
            assert reader.body() == FILES["f"]

    until_held_up(command, attempt, "unsent")


@needs_pidfd
def test_a_send_that_fails_ends_the_connection(command: Command) -> None:
    def attempt() -> None:
        with Client(command.url) as client:
            warmed(command, client)
            own = server_end(command, client)
            with stopped(command):
                client.send(F)
                own.shutdown(socket.SHUT_WR)
                own.close()
            assert client.is_gone()

    until_held_up(command, attempt, "failed_sends")
    await_true(lambda: command.stats()["connections"]["open"] == 0)


def server_end(command: Command, client: Client) -> socket.socket:
    """The server's own socket of a connection."""
    libc = ctypes.CDLL(None, use_errno=True)
    process = os.pidfd_open(command.process.pid)
    try:
        for name in os.listdir(f"/proc/{command.process.pid}/fd"):
            if not os.readlink(f"/proc/{command.process.pid}/fd/{name}").startswith("socket:"):
                continue
            found = socket.socket(fileno=libc.syscall(PIDFD_GETFD, process, int(name), 0))
            try:
                if found.getpeername() == client.socket.getsockname():
                    return found
            except OSError:
                pass
            found.close()
    finally:
        os.close(process)
    raise AssertionError("the server has no such connection")
