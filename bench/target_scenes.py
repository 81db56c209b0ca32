"""What the targets are measured in: servers, and loads on them.

A *scene* is a load and the servers that it is put on. All answer with the same bytes, which are known beforehand and
compared. Every run starts its server anew.
"""

from __future__ import annotations

import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from batchbridge import doctor
from batchbridge.cython_ext.load import Exchange
from batchbridge.measure import profile, specweb96
from batchbridge.measure.experiment import CAPACITY, LONE, Arm, Phase
from batchbridge.measure.namespaces import Place
from batchbridge.measure.processes import CommandProcess, MeasuredProcess, ServerProcess, port_at
from batchbridge.measure.traffic import request_bytes

from . import rivals

__all__ = ["AGAIN", "SCENES", "Scene", "Servers"]

CONNECTIONS = 64

#: A server once more: its ratio to itself is what noise alone does.
AGAIN = "A/A"

SMALL, KIBIBYTE, LARGE, MIX = "/f", "/k1", "/k16", "SPECweb96"
BODIES = {SMALL: b"x" * 64, KIBIBYTE: b"y" * 1024, LARGE: b"z" * 16_384}

#: Every request of it reaches the handler, which answers as the file `f` and Granian do.
HELLO = Path(__file__).parent.parent / "examples" / "hello.py"
ENGINES = ("kernel", "io_uring", "epoll")
#: Of SPECweb96's mix: 51 MB, which every server's caches hold.
DIRECTORIES = 10


@dataclass(frozen=True)
class Scene:
    """A load, and the names of the servers that it is put on; the last of them is what others are set beside."""

    name: str
    title: str
    phase: Phase
    asked: str
    """A path of `BODIES`, or `MIX`."""
    arms: tuple[str, ...]
    in_python: bool = False
    """Our servers answer by a handler, a batch at a time, and not from a file."""
    in_kernel: bool = False
    """The kernel engine is to recognise nearly all requests; else its run is invalid."""
    with_profile: bool = False
    """Samples the server's core, which costs it something: nothing else is told by such runs."""

    @property
    def has_cost(self) -> bool:
        """Whether it tells what a request costs the server, and nothing disturbs that."""
        return self.phase.idle_loop and not self.with_profile and not self.phase.client_loop


def _scene(name: str, title: str, asked: str, arms: str, *, close: bool = False, lone: bool = False,
           both_cores: bool = False, in_python: bool = False, in_kernel: bool = False,
           with_profile: bool = False) -> Scene:  # fmt: skip
    """A closed loop on as many connections as all have, or on one alone, whose core may sleep."""
    known: dict[str, float | str] = {"scene": name}
    phase = Phase(CAPACITY, CONNECTIONS, close=close, client_loop=both_cores, parameters=known)
    if lone:
        phase = Phase(LONE, 1, idle_loop=False, parameters=known)
    return Scene(name, title, phase, asked, tuple(arms.split()), in_python, in_kernel, with_profile)


SCENES = (
    _scene("hits", "64 B hits", SMALL, "kernel io_uring A/A h2o nginx", in_kernel=True),
    _scene("python", "64 B from Python", SMALL, "kernel io_uring granian", in_python=True),
    _scene("lone", "one connection, 64 B hits", SMALL, "kernel io_uring epoll baseline", lone=True),
    _scene("large", "16 KiB hits", LARGE, "kernel io_uring nginx"),
    _scene("both", "16 KiB hits, both cores watched", LARGE, "kernel io_uring nginx", both_cores=True),
    _scene("closing", "a connection per request, 1 KiB", KIBIBYTE, "kernel io_uring apache nginx", close=True),
    _scene("mix", "a connection per request, SPECweb96", MIX, "kernel io_uring apache nginx", close=True),
    _scene("profile", "64 B hits, sampled", SMALL, "kernel io_uring", in_kernel=True, with_profile=True),
)

#: Our engine that the A/A arm is a second run of.
AGAIN_ENGINE = "io_uring"
#: What a rival is called among the arms.
BASELINE = "baseline"


class Servers:
    """The arms of scenes; `missing` says why some of them do not exist here. Holds a folder while it is entered."""

    def __init__(self, report: doctor.Report | None = None) -> None:
        self.missing: dict[str, str] = {}
        self._engines = {engine.name: engine for engine in (report or doctor.diagnose()).engines}
        self._scratch = tempfile.TemporaryDirectory(prefix="batchbridge-targets-")
        self.folder = Path(self._scratch.name)
        self.root = self.folder / "root"
        self._mix: list[Exchange] = []

    def __enter__(self) -> Servers:
        self.root.mkdir()
        for path, body in BODIES.items():
            (self.root / path[1:]).write_bytes(body)
        # Some rivals' workers are another user, and the folder is its maker's alone.
        for folder in (self.folder, self.root):
            folder.chmod(0o755)
        return self

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()

    def of(self, scene: Scene) -> list[Arm]:
        """The arms of a scene that exist here."""
        if scene.with_profile and (reason := profile.why_not()) is not None:
            self.missing[f"profiles ({scene.title})"] = reason
            return []
        found = []
        for name in scene.arms:
            engine = AGAIN_ENGINE if name == AGAIN else name
            reason = self._reason(engine)
            if reason is None:
                found.append(self._ours(name, engine, scene) if engine in ENGINES else self._rival(name, scene))
            else:
                self.missing[engine] = reason
        return found

    def exchanges(self, scene: Scene) -> list[Exchange]:
        """The requests of a scene, with their answers. The files of the mix are made when it is first asked for."""
        if scene.asked != MIX:
            body = BODIES[scene.asked]
            return [Exchange(request_bytes("GET", scene.asked), body=body, name=f"GET {scene.asked}")]
        if not self._mix:
            specweb96.write_root(self.root, DIRECTORIES)
            self._mix = [
                Exchange(
                    request_bytes("GET", document.path), weight=document.weight, length=document.size_bytes,
                    crc32=zlib.crc32((self.root / document.path[1:]).read_bytes()), name=f"GET {document.path}",
                )
                for document in specweb96.documents(DIRECTORIES)
            ]  # fmt: skip
        return self._mix

    def _reason(self, name: str) -> str | None:
        if name in ENGINES:
            return None if self._engines[name].available else self._engines[name].reason
        return rivals.why_not(_rival_of(name))

    def _ours(self, name: str, engine: str, scene: Scene) -> Arm:
        app, root = (f"{HELLO}:server", None) if scene.in_python else (None, self.root)

        def start(place: Place, cpu: int, _phase: Phase) -> MeasuredProcess:
            return ServerProcess(app, root=root, engine=engine, cpu=cpu, place=place, access_log="off")

        return Arm(
            name, f"our {engine} engine", start, self.exchanges(scene), route=SMALL if scene.in_python else None,
            hits_in_kernel=scene.in_kernel and engine == "kernel",
        )  # fmt: skip

    def _rival(self, name: str, scene: Scene) -> Arm:
        rival = _rival_of(name)

        def start(place: Place, cpu: int, _phase: Phase) -> MeasuredProcess:
            port = port_at(place)
            command = rivals.command_of(rival, self.root, port, self.folder)
            return CommandProcess(command, port, cpu=cpu, place=place)

        program = rivals.PROGRAMS.get(rival) if name != BASELINE else name
        return Arm(name, f"{rival}, for comparison", start, self.exchanges(scene), program=program)


def _rival_of(name: str) -> str:
    return "epoll" if name == BASELINE else name
