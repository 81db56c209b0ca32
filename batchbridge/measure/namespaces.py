"""Two network namespaces for two hosts, so that a server's whole cost lands on the server's core.

Over loopback, what the kernel does to receive a request runs where the client sent it: the two sides' costs mix. Here a
pair of virtual interfaces joins a server's and a client's namespace, and packet steering (RPS) moves each side's
receiving to that side's core, as an interrupt of a network card would. What it is not: a network card. Steering costs
inter-processor interrupts, checksums are not computed, and segmentation is late. Each of these can be set otherwise
(`links.Link`), to see what it does to a figure.

It takes root, `ip` and `nsenter`. All of it is removed at the end; what a killed run left is removed by the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..errors import BatchBridgeError
from . import links
from .interrupts import termination_as_interrupt

__all__ = ["CLIENT", "LOOPBACK", "LOOPBACK_CAVEAT", "SERVER", "NamespaceError", "Pair", "Place", "why_not", "within"]

SERVER, CLIENT = "bbm-srv", "bbm-cli"
SERVER_HOST, CLIENT_HOST, PREFIX_LENGTH = "10.98.0.1", "10.98.0.2", 24
SERVER_LINK, CLIENT_LINK = "bbm-s0", "bbm-c0"
LOCK = "/run/batchbridge-measure.lock"
FOLDER = "/run/netns"

LOOPBACK_CAVEAT = (
    "over loopback the kernel's receiving for the server runs on the client's core, so the two sides' costs mix"
)

#: In each namespace. A client that connects for each request runs through ports quickly; a server's backlog is short.
SETTINGS = {
    "net/core/somaxconn": "8192",
    "net/ipv4/tcp_max_syn_backlog": "8192",
    "net/ipv4/ip_local_port_range": "1024 65000",
    "net/ipv4/tcp_tw_reuse": "1",
}

COMMAND_PATIENCE_S = 20.0

Result = TypeVar("Result")
CLONE_NEWNET = 0x40000000


class NamespaceError(BatchBridgeError):
    """The namespaces cannot be set up, or cannot be entered. One sentence."""


@dataclass(frozen=True)
class Place:
    """Where a process runs: on this machine as it is, or in a namespace."""

    host: str = "127.0.0.1"
    """The address at which a server here is reached."""
    namespace: str | None = None

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before a command so that it runs here. The process is the command's: no other one in between."""
        return () if self.namespace is None else ("nsenter", f"--net={FOLDER}/{self.namespace}")

    def call(self, function: Callable[[], Result]) -> Result:
        """What the function returns, or raises, when it is called here: the sockets that it makes are of this place.

        Raises OSError where the namespace is gone.
        """
        if self.namespace is None:
            return function()
        outcome: list[Result] = []
        errors: list[Exception] = []

        def run(namespace: str) -> None:
            try:
                _enter(namespace)
                outcome.append(function())
            except Exception as error:
                errors.append(error)

        # A thread of its own: one that has entered a namespace does not find back.
        thread = threading.Thread(target=run, args=(self.namespace,), name="batchbridge-namespace", daemon=True)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return outcome[0]

    def connect(self, host: str, port: int, timeout_s: float) -> socket.socket:
        """A connection made from here. Raises OSError."""
        return self.call(lambda: socket.create_connection((host, port), timeout_s))


LOOPBACK = Place()


@dataclass(frozen=True)
class Pair:
    """Both ends: where the server runs, and where its client does."""

    server: Place = LOOPBACK
    client: Place = LOOPBACK
    link: Mapping[str, int | bool] = field(default_factory=dict)
    """What the interfaces between them do, by `links.read`; nothing over loopback."""

    @property
    def is_loopback(self) -> bool:
        """Whether both are this machine as it is, so that their costs mix."""
        return self.server.namespace is None


def why_not() -> str | None:
    """Why the namespaces cannot be had here, in half a sentence; None: they can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    for command in ("ip", "nsenter"):
        if shutil.which(command) is None:
            return f"the command {command} is not installed"
    return None


@contextlib.contextmanager
def within(server_cpu: int, client_cpu: int, link: links.Link = links.Link()) -> Iterator[Pair]:  # noqa: B008
    """Both namespaces, their receiving steered to these cores; all is removed at the end, also after Ctrl-C or SIGTERM.

    Raises NamespaceError where it cannot be, also while another process of this machine measures so, and LinkError for
    settings of the link that the kernel does not take.
    """
    if (reason := why_not()) is not None:
        raise NamespaceError(reason)
    with _alone(), termination_as_interrupt():
        _remove()
        try:
            _make(SERVER)
            _make(CLIENT)
            _run("ip", "-n", SERVER, "link", "add", SERVER_LINK, "type", "veth",
                 "peer", "name", CLIENT_LINK, "netns", CLIENT)  # fmt: skip
            server, client = Place(SERVER_HOST, SERVER), Place(CLIENT_HOST, CLIENT)
            server.call(lambda: links.apply(SERVER_LINK, link))
            client.call(lambda: links.apply(CLIENT_LINK, link))
            _bring_up(SERVER, SERVER_LINK, SERVER_HOST, server_cpu if link.steering else None)
            _bring_up(CLIENT, CLIENT_LINK, CLIENT_HOST, client_cpu if link.steering else None)
            found = server.call(lambda: links.read(SERVER_LINK))
            yield Pair(server, client, {**found, "steering": link.steering})
        finally:
            _remove()


def cpu_mask(cpu: int) -> str:
    """The core as a mask in the kernel's writing: hexadecimal, a comma between groups of 32."""
    groups = [f"{(1 << cpu) >> shift & 0xFFFFFFFF:08x}" for shift in range(cpu // 32 * 32, -1, -32)]
    return ",".join(groups)


def _make(namespace: str) -> None:
    _run("ip", "netns", "add", namespace)
    for name, value in SETTINGS.items():
        _write_within(namespace, f"/proc/sys/{name}", value, needed=name != "net/ipv4/tcp_tw_reuse")


def _bring_up(namespace: str, link: str, host: str, cpu: int | None) -> None:
    """`cpu`: where the kernel receives; None: where the other side sent."""
    _run("ip", "-n", namespace, "addr", "add", f"{host}/{PREFIX_LENGTH}", "dev", link)
    for name in ("lo", link):
        _run("ip", "-n", namespace, "link", "set", name, "up")
    if cpu is not None:
        _write_within(namespace, f"/sys/class/net/{link}/queues/rx-0/rps_cpus", cpu_mask(cpu))


def _write_within(namespace: str, path: str, value: str, needed: bool = True) -> None:
    # Not nsenter: /sys shows the interfaces of the namespace it was mounted in, and `ip netns exec` mounts it anew.
    _run("ip", "netns", "exec", namespace, "sh", "-c", 'printf %s "$1" > "$2"', "write", value, path, needed=needed)


def _remove() -> None:
    for namespace in (SERVER, CLIENT):
        if os.path.exists(f"{FOLDER}/{namespace}"):
            # The link goes first: a namespace whose processes are still ending lives on without its name.
            for link in (SERVER_LINK, CLIENT_LINK):
                _run("ip", "-n", namespace, "link", "del", link, needed=False)
            _run("ip", "netns", "del", namespace, needed=False)


def _run(*command: str, needed: bool = True) -> None:
    try:
        # A group of its own: Ctrl-C must not end the commands that remove what it interrupts.
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_PATIENCE_S,
            process_group=0,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        if needed:
            raise NamespaceError(f"{' '.join(command)} failed: {error}") from None
        return
    if needed and done.returncode:
        raise NamespaceError(f"{' '.join(command)} failed: {done.stderr.strip() or done.returncode}")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Holds the lock of this machine's namespaces; the kernel lets go of it when the process ends, however."""
    with Path(LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NamespaceError(f"another process measures in {SERVER} and {CLIENT} already") from None
        yield


def _enter(namespace: str) -> None:
    """Moves the calling thread."""
    with Path(FOLDER, namespace).open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"the namespace {namespace} cannot be entered: {os.strerror(number)}")
