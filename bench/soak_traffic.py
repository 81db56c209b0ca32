"""The soak's regular traffic: requests of every kind, what they are answered, and which outcome each answer counts as.

An outcome here is what a client can know: "file" is `hit` or `file` of the server's counters, "kept" may be `hit` or
`batch`, and the others are the server's own.
"""

from __future__ import annotations

import http.client
import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from batchbridge.cython_ext.load import Exchange, Load
from batchbridge.measure.processes import ServerProcess
from batchbridge.measure.traffic import request_bytes

from . import soak_app

SMALL_FILES = 60
#: Files of several fragments each; together more than the cache may hold, so that they come and go.
MEDIUM_FILES = 40
MEDIUM_SIZE_BYTES_MIN, MEDIUM_SIZE_BYTES_MAX = 70_000, 900_000
LARGE_SIZE_BYTES = 1_600_000
HUGE_SIZE_BYTES = 16_000_000

FILE, BATCH, KEPT, LOCAL, REFUSED, FAILED = "file", "batch", "kept", "local", "error_4xx", "error_5xx"
#: Responses with a status that was none of the right ones.
UNEXPECTED = "unexpected"


@dataclass
class Tally:
    """What clients have sent and received."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """Responses, by what they count as."""
    abandoned: int = 0
    """Whole requests whose client did not wait for the answer."""
    acts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    """What went wrong, in sentences."""

    @property
    def responses(self) -> int:
        return self.outcomes.total()

    def add(self, other: Tally) -> None:
        self.outcomes += other.outcomes
        self.abandoned += other.abandoned
        self.acts += other.acts
        self.faults += other.faults


@dataclass(frozen=True)
class Case:
    """A request, with the outcome that each of its statuses counts as."""

    exchange: Exchange
    outcomes: tuple[str, ...]

    def counted(self, answered: dict[int, int]) -> Counter[str]:
        """The outcomes of so many answers by status."""
        found = Counter({UNEXPECTED: answered.get(0, 0)})
        for status, outcome in zip(self.exchange.statuses, self.outcomes, strict=True):
            found[outcome] += answered.get(status, 0)
        return found


def get(target: str, outcome: str, *, method: str = "GET", status: int = 200, **more: Any) -> Case:
    """A request that has one right status; `headers` and a request's `content` apart, `more` goes to the Exchange."""
    parts = {
        "headers": more.pop("headers", None),
        "body": more.pop("content", None),
        "chunks": more.pop("chunks", None),
    }
    data = request_bytes(method, target, **parts)
    return Case(Exchange(data, statuses=(status,), **more), (outcome,))


# --- the documents ----------------------------------------------------------------------------------------------------


def make_site(root: Path, seed: int = 1) -> None:
    """Files of all sizes."""
    chance = random.Random(seed)
    (root / "small").mkdir(parents=True)
    (root / "folder").mkdir()
    (root / "folder" / "index.html").write_text("<p>an index\n")
    (root / "empty.txt").write_bytes(b"")
    for number in range(SMALL_FILES):
        (root / "small" / f"{number:03}.html").write_bytes(chance.randbytes(int(chance.lognormvariate(7.5, 1.2)) + 1))
    (root / "medium").mkdir()
    for number in range(MEDIUM_FILES):
        size_bytes = chance.randrange(MEDIUM_SIZE_BYTES_MIN, MEDIUM_SIZE_BYTES_MAX)
        (root / "medium" / f"{number:03}.bin").write_bytes(chance.randbytes(size_bytes))
    (root / "large.bin").write_bytes(chance.randbytes(LARGE_SIZE_BYTES))
    (root / "huge.bin").write_bytes(chance.randbytes(HUGE_SIZE_BYTES))


def validators(server: ServerProcess, target: str, tally: Tally) -> tuple[str, str]:
    """The ETag and Last-Modified of a file, asked for."""
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    connection.request("GET", target)
    with connection.getresponse() as response:
        response.read()
        tally.outcomes[FILE] += 1
        return response.headers["ETag"], response.headers["Last-Modified"]


def file_cases(root: Path, server: ServerProcess, tally: Tally) -> list[Case]:
    """Whole files and parts, conditions that hold and that fail, what is not there, what may not be."""
    large = (root / "large.bin").read_bytes()
    small = sorted((root / "small").iterdir())
    cases = [get(f"/small/{path.name}", FILE, body=path.read_bytes(), weight=4 / len(small)) for path in small]
    cases += [
        get("/folder/", FILE, body=b"<p>an index\n", weight=0.2),
        get("/folder/?query=1", FILE, body=b"<p>an index\n", weight=0.2),
        get("/small/../folder/%69ndex.html", FILE, body=b"<p>an index\n", weight=0.2),
        get("/empty.txt", FILE, body=b"", weight=0.2),
        get("/large.bin", FILE, body=large, weight=0.02),
        get("/large.bin", FILE, method="HEAD", length=len(large), weight=0.2),
        get(f"/small/{small[0].name}", FILE, method="HEAD", length=small[0].stat().st_size, weight=0.2),
        get("/folder", LOCAL, status=301, weight=0.2),
        get("/small/000.html", LOCAL, method="OPTIONS", status=204, weight=0.1),
        get("/none.html", REFUSED, status=404, weight=0.3),
        get("/small/000.html", REFUSED, method="DELETE", status=405, weight=0.1),
        get("/small/%2e%2e/%2e%2e/etc/passwd", REFUSED, status=400, weight=0.1),
    ]
    for path, content in (("/large.bin", large), (f"/small/{small[0].name}", small[0].read_bytes())):
        etag, modified = validators(server, path, tally)
        size = len(content)
        cases += [
            get(path, FILE, status=206, headers={"Range": f"bytes={size // 3}-{size // 2}"}, weight=0.05,
                body=content[size // 3 : size // 2 + 1]),
            get(path, FILE, status=206, headers={"Range": "bytes=-7"}, body=content[-7:], weight=0.1),
            get(path, FILE, status=206, headers={"Range": "bytes=0-0", "If-Range": etag}, body=content[:1], weight=0.1),
            get(path, REFUSED, status=416, headers={"Range": f"bytes={size}-"}, weight=0.1),
            get(path, FILE, status=304, headers={"If-None-Match": etag}, weight=0.1),
            get(path, FILE, status=304, headers={"If-Modified-Since": modified}, weight=0.1),
            get(path, REFUSED, status=412, headers={"If-Match": '"another"'}, weight=0.1),
        ]  # fmt: skip
    return cases


def fragment_cases(root: Path, seed: int = 1) -> list[Case]:
    """Cached files in fragments, whole and in parts that begin and end within any of them."""
    chance = random.Random(seed)
    cases = []
    for path in sorted((root / "medium").iterdir()):
        content, target = path.read_bytes(), f"/medium/{path.name}"
        first = chance.randrange(len(content))
        last = chance.randrange(first, len(content))
        part = {"Range": f"bytes={first}-{last}"}
        cases += [
            get(target, FILE, body=content),
            get(target, FILE, status=206, headers=part, body=content[first : last + 1]),
        ]
    return cases


# --- the handlers -----------------------------------------------------------------------------------------------------


def handler_cases() -> list[Case]:
    """All handlers that answer in time."""
    numbers = range(16)
    cases = [get(f"/add/{n}/{n * n}", BATCH, body=b"%d" % (n + n * n), weight=0.3) for n in numbers]
    cases += [get(f"/later/{n}", BATCH, body=b"later %d" % n, weight=0.1) for n in numbers]
    cases += [get(f"/kept/{n}", KEPT, body=b"kept %d" % n, weight=0.05) for n in numbers]
    cases += [get(f"/same/{n}", BATCH, body=b"same %d" % n, weight=0.1) for n in numbers[:4]]
    cases += [get(f"/big/{n}", BATCH, body=soak_app.big_body(n), weight=0.02) for n in numbers]
    cases += [get(f"/add/{n}/1", BATCH, method="HEAD", length=len(str(n + 1)), weight=0.05) for n in numbers[:4]]
    for n in numbers:
        if n % 4 == 3:
            cases.append(get(f"/raise/{n}", BATCH, body=b"fine %d" % n, weight=0.1))
        elif n % 4 == 1:
            cases.append(get(f"/raise/{n}", REFUSED, status=422, weight=0.02))
        else:
            cases.append(get(f"/raise/{n}", FAILED, status=500, weight=0.02))
        if n % 4 == 2:
            cases.append(get(f"/within/{n}", BATCH, body=b"within %d" % n, weight=0.1))
        else:
            cases.append(get(f"/within/{n}", FAILED, status=500, weight=0.02))
    return cases + body_cases()


def body_cases(seed: int = 1) -> list[Case]:
    """Bodies with their length and in chunks, right and wrong."""
    chance = np.random.default_rng(seed)
    cases = []
    for size in (0, 1, 100, 3_000, 70_000):
        content = chance.bytes(size)
        cases.append(get("/echo", BATCH, method="POST", content=content, body=content, weight=0.1))
        pieces = [content[at : at + 1 + size // 5] for at in range(0, size, 1 + size // 5)]
        cases.append(get("/echo", BATCH, method="PUT", chunks=pieces, body=content, weight=0.1))
    for _ in range(8):
        numbers = chance.integers(-(2**31), 2**31, soak_app.VECTOR_SIZE).astype("<i4")
        answer = numbers.astype("<i8").sum().tobytes()
        cases.append(get("/vector", BATCH, method="POST", content=numbers.tobytes(), body=answer, weight=0.2))
    as_json = {"Content-Type": "application/json"}
    json_body = json.dumps({"n": 21}).encode()
    cases += [
        get("/vector", REFUSED, method="POST", content=b"short", status=422, weight=0.1),
        get("/echo", REFUSED, status=405, weight=0.1),
        get("/json", BATCH, method="POST", content=json_body, headers=as_json, body=b"42", weight=0.3),
        get("/json", REFUSED, method="POST", content=b"{", headers=as_json, status=400, weight=0.1),
        get("/json", REFUSED, method="POST", content=b"{}", headers={"Content-Type": "a/b"}, status=415, weight=0.1),
    ]
    return cases


def overload_cases() -> list[Case]:
    """Handlers that are too slow, and a queue that is too short."""
    late = [
        Case(
            Exchange(request_bytes("GET", f"/late/{n}"), statuses=(200, 504), body=b"late %d" % n, weight=0.1),
            (BATCH, FAILED),
        )
        for n in range(8)
    ]
    crowd = [
        Case(
            Exchange(request_bytes("GET", f"/crowd/{n}"), statuses=(200, 503), body=b"crowd %d" % n, weight=0.1),
            (BATCH, FAILED),
        )
        for n in range(8)
    ]
    return late + crowd


# --- the loads --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Group:
    """Connections that send the same mix in the same way."""

    name: str
    cases: list[Case]
    connections: int
    options: dict[str, Any] = field(default_factory=dict)

    def run(self, server: ServerProcess, seconds: float, seed: int) -> Tally:
        """Runs it and counts; what went wrong is in the tally, too."""
        tally = Tally()
        exchanges = [case.exchange for case in self.cases]
        load = Load(server.host, server.port, exchanges, self.connections, seconds, seed=seed, **self.options)
        figures = load.run()
        for case, answered in zip(self.cases, load.answered(), strict=True):
            tally.outcomes += case.counted(answered)
        tally.acts[self.name] += figures["responses"]
        if figures["wrong_example"]:
            tally.faults.append(f"{self.name}: {figures['wrong']['answers']} wrong answers, {figures['wrong_example']}")
        failed = {kind: count for kind, count in figures["errors"].items() if count}
        if failed or figures["unanswered"]:
            tally.faults.append(f"{self.name}: {figures['unanswered']} requests without an answer; failures: {failed}")
        return tally


def groups(root: Path, server: ServerProcess, tally: Tally) -> list[Group]:
    """The regular traffic."""
    files, handlers = file_cases(root, server, tally), handler_cases()
    mixed = [
        case for case in files + handlers if "large.bin" not in case.exchange.name and len(case.exchange.data) < 4096
    ]
    return [
        Group("files", files, 16),
        Group("fragments", fragment_cases(root), 8),
        Group("handlers", handlers, 48),
        Group("pipelined", mixed, 4, {"pipeline": 16}),
        Group("one each", mixed, 8, {"close": True}),
        Group("overload", overload_cases(), 24),
    ]
