"""The arms of the question: how close does batching get to kernel-mode performance?

========== =========================================================================================================
K0         kernel mode: the kernel side answers published hits, a kernel thread sends; user mode does nothing
K1         the kernel side derives and answers published hits, a user thread submits the sends in batches
B(in,out)  user mode: requests handed up in batches of up to `in`, responses handed back in batches of up to `out`
BK(in,out) the same, by the kernel engine: it is the kernel side that hands the requests up, as the paper proposed
U1         the same without batches, by io_uring: one request, one response. B(1,1) is this a second time (A/A)
U0         the same without batches, by epoll: our epoll engine, so that it does the same work as U1
nginx      files with the same answers
========== =========================================================================================================

U0, U1 and B take the whole way: route, bridge, handler (native, Python one by one or vectorised), counters; the access
log is off in all arms. In a closed loop their policy is `idle`: what waits leaves. In an open loop below capacity
little would wait, so there it is `fixed`: a batch leaves when it is full, or after a while.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import doctor
from ..config import BY_NAME
from . import workload
from .experiment import Arm, Phase
from .namespaces import Place
from .processes import CommandProcess, MeasuredProcess, ServerProcess, port_at

__all__ = ["SIZES", "QuestionArms", "policy"]

SIZES = (1, 8, 64, 256)

#: The longest that a batch waits to be full in an open loop.
FILL_DELAY_US = 20_000
#: Files take no work, so they stand beside the arms that have none.
NO_WORK: dict[str, float | str] = {"work_us": 0}

#: The setting that has a kernel thread send, on that core.
SQPOLL = "sqpoll"


NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log stderr crit; {user}
events {{ worker_connections 16384; }}
http {{
  access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000000;
  open_file_cache max=10000 inactive=600s; open_file_cache_valid 600s; default_type text/plain;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  server {{ listen {host}:{port} backlog=4096; root {root}; }}
}}
"""


class QuestionArms:
    """The arms that exist here, for a handler and its work; `missing` says why the others do not.

    Holds a folder of files while it is entered. `sizes` are those of the factorial; `pairs` chooses from it.
    """

    def __init__(
        self,
        handler: str,
        handler_threads: int,
        pairs: Sequence[tuple[int, int]],
        report: doctor.Report | None = None,
    ) -> None:
        self.handler, self.handler_threads, self.pairs = handler, handler_threads, tuple(pairs)
        self.missing: dict[str, str] = {}
        self._engines = {engine.name: engine for engine in (report or doctor.diagnose()).engines}
        self._scratch = tempfile.TemporaryDirectory(prefix="batchbridge-arms-")
        self.root = Path(self._scratch.name, "root")

    def __enter__(self) -> QuestionArms:
        self.root.mkdir()
        workload.write_files(self.root)
        # nginx's worker is another user, and the folder is its maker's alone.
        for folder in (Path(self._scratch.name), self.root, self.root / "v"):
            folder.chmod(0o755)
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def of(self, work_us: int, work: int) -> list[Arm]:
        """All arms with that much work a request; those of files have none, and are there for 0 alone."""
        arms = [self._user("U0", "epoll", 1, 1, work_us, work, "unbatched user mode, our epoll engine")]
        if self._has("io_uring", "U1, B"):
            arms.append(self._user("U1", "io_uring", 1, 1, work_us, work, "unbatched user mode, io_uring"))
            arms += [self._batched("B", "io_uring", *pair, work_us, work) for pair in self.pairs]
        if self._has("kernel", "BK, K0, K1"):
            arms += [self._batched("BK", "kernel", *pair, work_us, work) for pair in self.pairs if pair[0] == pair[1]]
        return arms if work_us else [*arms, *self._kernel(), *self._rivals()]

    def _has(self, engine: str, arms: str) -> bool:
        found = self._engines[engine]
        if not found.available:
            self.missing[arms] = found.reason
        return found.available

    # --- user mode ---

    def _batched(self, family: str, engine: str, size_in: int, size_out: int, work_us: int, work: int) -> Arm:
        what = f"batched user mode, {engine}"
        if family == "B" and size_in == size_out == 1:
            what = "the same as U1 once more (A/A)"
        arm = self._user(f"{family}({size_in},{size_out})", engine, size_in, size_out, work_us, work, what)
        arm.parameters.update({"in": size_in, "out": size_out})
        return arm

    def _user(self, name: str, engine: str, size_in: int, size_out: int, work_us: int, work: int, what: str) -> Arm:
        route = workload.route(self.handler)

        def start(place: Place, cpu: int, phase: Phase) -> MeasuredProcess:
            server = ServerProcess(
                workload.app(self.handler, work), engine=engine, cpu=cpu, place=place, access_log="off",
                handler_threads=self.handler_threads,
            )  # fmt: skip
            try:
                server.set_policy(route, **policy(size_in, size_out, phase))
            except BaseException:
                server.__exit__(None, None, None)
                raise
            return server

        return Arm(name, what, start, workload.exchanges(self.handler), {"work_us": work_us}, route)

    # --- kernel mode ---

    def _kernel(self) -> list[Arm]:
        if not self._engines["kernel"].available:
            return []
        arms = []
        for name, what, spins in (
            ("K1", "kernel-derived hits, submitted by a user thread", False),
            ("K0", "kernel mode, a kernel thread sends (spins)", True),
        ):
            if spins and SQPOLL not in BY_NAME:
                self.missing[name] = "this build's kernel engine has no kernel thread that sends (--sqpoll)"
                continue
            start, requests = self._file_server(spins), workload.exchanges("python")
            arms.append(Arm(name, what, start, requests, NO_WORK, spins=spins, hits_in_kernel=True))
        return arms

    def _file_server(self, spins: bool) -> Callable[[Place, int, Phase], MeasuredProcess]:
        def start(place: Place, cpu: int, _phase: Phase) -> MeasuredProcess:
            settings: dict[str, Any] = {SQPOLL: cpu} if spins else {}
            return ServerProcess(
                None, root=self.root, engine="kernel", cpu=cpu, place=place, access_log="off", **settings
            )

        return start

    # --- rivals ---

    def _rivals(self) -> list[Arm]:
        if shutil.which("nginx") is None:
            self.missing["nginx"] = "nginx is not installed"
            return []
        what = "files with the same answers, everything cached that it caches"
        return [Arm("nginx", what, self._nginx, workload.exchanges("python"), NO_WORK, program="nginx")]

    def _nginx(self, place: Place, cpu: int, _phase: Phase) -> MeasuredProcess:
        port = port_at(place)
        folder = Path(self._scratch.name)
        # Another user's worker could not read a folder below one that is its maker's alone.
        user = "user root;" if Path("/proc/self").owner() == "root" else ""
        configuration = folder / "nginx.conf"
        configuration.write_text(NGINX.format(folder=folder, user=user, host=place.host, port=port, root=self.root))
        return CommandProcess(["nginx", "-c", str(configuration)], port, cpu=cpu, place=place)


def policy(size_in: int, size_out: int, phase: Phase) -> dict[str, Any]:
    """The route's batch policy of an arm in a phase."""
    sizes: dict[str, Any] = {"max_batch_size": size_in, "response_batch_size": size_out}
    if phase.rate_per_s is None or size_in == 1:
        return {**sizes, "policy": "idle", "max_queue_delay_us": 0}
    return {**sizes, "policy": "fixed", "max_queue_delay_us": FILL_DELAY_US}
