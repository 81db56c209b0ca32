"""What a sweep runs against: a server that runs already, or an app that is served here for each run.

Both give, for one run with one setting, a `Serving`: where requests go, and what the server tells of itself.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from ..errors import BatchBridgeError
from ..measure.processes import ServerProcess, cores
from ..values import Address
from .space import Candidate

__all__ = ["AppTarget", "RunningTarget", "Serving", "Target", "TargetError"]

ADMIN_PATIENCE_S = 10.0
LISTENING = "0A"


class TargetError(BatchBridgeError):
    """A server cannot be asked, or refuses what it is asked for. One sentence."""


@dataclass(frozen=True)
class Serving:
    """A server, set for one run."""

    host: str
    port: int
    stats: Callable[[], dict[str, Any]]
    """Its counters, as ``server.stats()`` has them."""
    cpu_s: Callable[[], float | None]
    """Seconds that it has spent on processors, None where that cannot be known."""
    command: list[str]
    """What it was started with; empty where it was not started here."""


class Target(Protocol):
    """What the sweep asks of either kind."""

    server_cpu: int | None
    """The core that the server is kept on, None where that is not known."""
    client_cpu: int | None
    """The core for the client, None for any."""

    def policy(self) -> dict[str, Any]:
        """The route's batch policy as it is, before anything was changed. Raises BatchBridgeError."""

    def serving(self, candidate: Candidate) -> contextlib.AbstractContextManager[Serving]:
        """A server with this setting, while the context lasts. Raises BatchBridgeError."""

    def put_back(self, policy: dict[str, Any]) -> None:
        """Restores what the sweep changes of the policy, where there is a server to restore. Raises TargetError."""


def settings_of(candidate: Candidate) -> dict[str, int]:
    """The fields of a batch policy that the sweep changes."""
    return candidate._asdict()


def change_policy(ask: Callable[[str, Any], Any], route: str, changes: dict[str, int]) -> None:
    """Changes the route's policy through the admin interface that `ask` asks.

    Raises TargetError where the server takes another value instead: its own limits bound it, and what would be
    measured is not what was asked for.
    """
    policy = ask(f"/policy?path={quote(route, safe='')}", changes)
    for name, value in changes.items():
        if policy.get(name) != value:
            raise TargetError(f"the server makes {policy.get(name)} of {name} {value}: one of its limits is lower")


class AppTarget:
    """``batchbridge serve --app APP`` on loopback, a fresh process for each run, kept on one core."""

    def __init__(self, app: str, route: str, *, engine: str = "auto") -> None:
        self.app, self.route, self.engine = app, route, engine
        self.server_cpu, self.client_cpu = cores()

    def policy(self) -> dict[str, Any]:
        """As Target says; the server is started for it, so an app that cannot be served is known at once."""
        with self._started() as server:
            return dict(_known_policy(server.ask("/policy"), self.route))

    @contextlib.contextmanager
    def serving(self, candidate: Candidate) -> Iterator[Serving]:
        """As Target says."""
        with self._started() as server:
            change_policy(server.ask, self.route, settings_of(candidate))
            yield Serving(server.host, server.port, server.stats, server.cpu_s, server.command)

    def put_back(self, policy: dict[str, Any]) -> None:
        """Nothing: each server ended with its run."""

    @contextlib.contextmanager
    def _started(self) -> Iterator[ServerProcess]:
        with ServerProcess(self.app, engine=self.engine, cpu=self.server_cpu, access_log="off") as server:
            yield server


class RunningTarget:
    """A server that runs already; its policy is changed through its admin interface."""

    def __init__(self, admin: Address, url_host: str, url_port: int, route: str) -> None:
        self.admin, self.route = admin, route
        self.host, self.port = url_host, url_port
        self.server_cpu: int | None = None
        self.client_cpu: int | None = None
        self._pid = pid_of_listener(admin)

    def policy(self) -> dict[str, Any]:
        """As Target says."""
        return dict(_known_policy(self.ask("/policy"), self.route))

    @contextlib.contextmanager
    def serving(self, candidate: Candidate) -> Iterator[Serving]:
        """As Target says. The setting stays when the context ends, until the next one or `put_back`."""
        change_policy(self.ask, self.route, settings_of(candidate))
        yield Serving(self.host, self.port, lambda: dict(self.ask("/stats")), self.cpu_s, [])

    def put_back(self, policy: dict[str, Any]) -> None:
        """As Target says."""
        change_policy(self.ask, self.route, {name: policy[name] for name in Candidate._fields})

    def ask(self, path: str, content: Any = None) -> Any:
        """The JSON that the admin interface answers with; `content` makes it a POST. Raises TargetError."""
        text = self._text(path, content)
        try:
            return json.loads(text)
        except ValueError:
            raise TargetError(f"http://{self.admin}{path} does not answer as a batchbridge admin server does") from None

    def cpu_s(self) -> float | None:
        """Seconds on processors: to the nanosecond for a server on this machine, else to the hundredth of a second."""
        if self._pid is not None:
            with contextlib.suppress(OSError):
                return cpu_s_of(self._pid)
        found = re.search(r"^process_cpu_seconds_total (\S+)$", self._text("/metrics"), re.M)
        return float(found[1]) if found else None

    def _text(self, path: str, content: Any = None) -> str:
        connection = HTTPConnection(self.admin.host, self.admin.port, timeout=ADMIN_PATIENCE_S)
        body = None if content is None else json.dumps(content)
        headers = {"Content-Type": "application/json"} if body else {}
        try:
            connection.request("GET" if body is None else "POST", path, body, headers)
            response = connection.getresponse()
            text = response.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            what = (getattr(error, "strerror", None) or str(error) or type(error).__name__).lower()
            raise TargetError(
                f"cannot ask http://{self.admin}: {what}; is a server running with --admin {self.admin}?"
            ) from None
        finally:
            connection.close()
        if response.status != 200:
            with contextlib.suppress(ValueError, AttributeError):
                text = json.loads(text).get("error", text)
            raise TargetError(f"http://{self.admin} answers {path.partition('?')[0]} with {response.status}: {text}")
        return text


def _known_policy(policies: Any, route: str) -> dict[str, Any]:
    """The route's policy out of all. Raises TargetError, which names the routes that there are."""
    if not isinstance(policies, dict):
        raise TargetError("the admin server does not answer /policy as batchbridge's does")
    if route not in policies:
        known = ", ".join(sorted(policies)) or "none"
        raise TargetError(f"--route: {route!r} is not a route of the server; there are {known}")
    policy: dict[str, Any] = policies[route]
    return policy


# --- a process that was not started here ------------------------------------------------------------------------------


def cpu_s_of(pid: int) -> float:
    """Seconds on processors of all threads of a process of this machine. Raises OSError once it is gone."""
    tasks = list(Path(f"/proc/{pid}/task").iterdir())
    total_ns = 0
    for task in tasks:
        with contextlib.suppress(FileNotFoundError):  # a thread may end meanwhile
            total_ns += int((task / "schedstat").read_text().split()[0])
    return total_ns / 1e9


def pid_of_listener(address: Address) -> int | None:
    """The process of this machine that listens there; None where it is another machine's, or cannot be found out.

    Only loopback addresses are looked for: any other might be another machine's that has the same port.
    """
    try:
        found = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)[0][4][0]
    except OSError:
        return None
    if not (str(found).startswith("127.") or found == "::1"):
        return None
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == address.port:
                    inodes.add(f"socket:[{fields[9]}]")
    holders = {pid for pid in _pids() if inodes & _descriptors(pid)}
    # A port that two processes share (SO_REUSEPORT) belongs to neither alone.
    return holders.pop() if len(holders) == 1 else None


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _descriptors(pid: int) -> set[str]:
    """What a process's descriptors are; nothing where this user may not know."""
    found: set[str] = set()
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                found.add(str(descriptor.readlink()))
    return found
