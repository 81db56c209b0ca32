"""Servers as they are usually run, all with the same answers: our engines by name, and nginx where it is installed.

Ours answer from files, or by a handler for every request (`workload`), a batch at a time; nginx has the answers as
files.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import doctor
from . import workload
from .arms import NO_WORK, QuestionArms
from .experiment import Arm, ExperimentError, Phase
from .namespaces import Place
from .processes import MeasuredProcess, ServerProcess

__all__ = ["NAMES", "NGINX", "UsualServers"]

ENGINES = ("epoll", "io_uring", "kernel")
NGINX = "nginx"
NAMES = (*ENGINES, NGINX)


class UsualServers:
    """The arms of those names that exist here; `missing` says why the others do not. Holds files while it is entered.

    `handler`: one of `workload`'s, None for files; `work_us` is its work a request, `handler_threads` where it runs.
    """

    def __init__(
        self,
        names: Sequence[str] = NAMES,
        *,
        handler: str | None = None,
        work_us: int = 0,
        handler_threads: int = 0,
        report: doctor.Report | None = None,
    ) -> None:
        self.names, self.handler, self.work_us, self.handler_threads = tuple(names), handler, work_us, handler_threads
        report = report or doctor.diagnose()
        self._engines = {engine.name: engine for engine in report.engines}
        # The question's arms have the files and nginx.
        self._files = QuestionArms("python", handler_threads, (), report)
        self.missing: dict[str, str] = {}

    def __enter__(self) -> UsualServers:
        self._files.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._files.__exit__(*error)

    def arms(self) -> list[Arm]:
        """All that exist here. Raises ExperimentError where none does."""
        work = workload.work_of(self.work_us)
        rivals = {arm.name: arm for arm in self._files.of(0, 0)}
        found = []
        for name in self.names:
            if name == NGINX and name in rivals:
                found.append(rivals[name])
            elif name == NGINX:
                self.missing[name] = self._files.missing[name]
            elif self._engines[name].available:
                found.append(self._ours(name, work))
            else:
                self.missing[name] = self._engines[name].reason
        if not found:
            raise ExperimentError("; ".join(f"{name} cannot be run: {why}" for name, why in self.missing.items()))
        return found

    def _ours(self, engine: str, work: int) -> Arm:
        handler = self.handler

        def start(place: Place, cpu: int, _phase: Phase) -> MeasuredProcess:
            if handler is None:
                return ServerProcess(None, root=self._files.root, engine=engine, cpu=cpu, place=place, access_log="off")
            return ServerProcess(
                workload.app(handler, work), engine=engine, cpu=cpu, place=place, access_log="off",
                handler_threads=self.handler_threads,
            )  # fmt: skip

        if handler is None:
            return Arm(engine, f"our {engine} engine, files", start, workload.exchanges("python"), NO_WORK)
        parameters: dict[str, float | str] = {"work_us": self.work_us}
        return Arm(
            engine, f"our {engine} engine, every request in Python", start, workload.exchanges(handler), parameters,
            workload.route(handler),
        )  # fmt: skip
