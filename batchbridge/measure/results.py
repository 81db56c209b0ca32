"""Results files: what was measured, where, and by which commands, so that a figure can be made again anywhere.

A file is one msgpack map:

========  ==========================================================================================================
schema    "batchbridge.results"
version   1
kind      one of `KINDS`
created   when it was begun, ISO 8601, UTC
machine   facts of the machine (``batchbridge.measure.machine.facts``)
commands  the exact commands of servers and clients, each a list of arguments
settings  what was asked for
runs      a list of maps, the fields of `Run`
note      a sentence for the reader, or ""
checksum  SHA-256, in hexadecimal, of the map without this key as msgpack packs it; checked where it is there
========  ==========================================================================================================

A run is one fresh run of one arm in one block. One that is not valid has a reason, and its figures mean nothing.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgpack

from ..errors import BatchBridgeError

__all__ = ["KINDS", "LATENCIES", "PROFILE_PARTS", "SCHEMA", "VERSION", "Results", "ResultsError", "Run", "load"]

SCHEMA = "batchbridge.results"
VERSION = 1
KINDS = ("load", "versus", "batching", "sweep", "targets", "overload", "latency", "confounders")
LATENCIES = ("p50", "p90", "p99", "p999", "max", "mean")
PROFILE_PARTS = ("ipi", "tcp_ip", "io_uring", "bpf", "engine", "python", "other")

#: A file larger than this is none of ours: runs × buckets of a long experiment come to a few megabytes.
SIZE_BYTES_MAX = 1 << 30


class ResultsError(BatchBridgeError, ValueError):
    """A results file cannot be read, or what shall become one is not as the schema says. One sentence."""


@dataclass
class Run:
    """One fresh run of one arm in one block. Raises ResultsError where a field is not as the schema says."""

    arm: str
    block: int
    parameters: dict[str, float | str] = field(default_factory=dict)
    """What the run was made with, such as max_batch_size, rate_per_s, connections."""
    valid: bool = True
    invalid_reason: str | None = None
    """A sentence; None exactly where the run is valid."""
    seconds: float = 0.0
    responses: int = 0
    requests_per_s: float = 0.0
    offered_per_s: float | None = None
    """Open loop: the rate that was asked for."""
    latency_us: dict[str, float] = field(default_factory=dict)
    """By `LATENCIES`."""
    histogram: list[tuple[int, int]] = field(default_factory=list)
    """(least latency of the bucket in microseconds, count), in rising order."""
    server_cpu_us_per_request: float | None = None
    client_core_us_per_request: float | None = None
    """All that the client's core was busy with, where an idle loop ran there too."""
    client_idle_share: float | None = None
    steal_share: float | None = None
    ipis_per_request: float | None = None
    asked: int = 0
    """Requests sent in the whole run, and in an open loop those that never were."""
    errors: dict[str, int] = field(default_factory=dict)
    """Where errors are figures (overload): how many of these were refused, unanswered, unissued."""
    server_threads_share: float | None = None
    """Of the server's core, what its threads had, with the interrupts that came meanwhile."""
    loops_per_s: float | None = None
    """Turns of the engine's loop, where the server is ours."""
    batch_sizes: list[tuple[int, int]] = field(default_factory=list)
    """(batch size, batches) as achieved, in rising order."""
    mean_batch_size: float | None = None
    profile: dict[str, float] | None = None
    """Shares of the server core's samples, by `PROFILE_PARTS`."""

    def __post_init__(self) -> None:
        for name, check in _RUN_CHECKS.items():
            setattr(self, name, check(f"{name} of a run", getattr(self, name)))
        if self.valid != (self.invalid_reason is None):
            raise ResultsError("a run is valid, or has a reason why it is not: invalid_reason says otherwise")

    @property
    def client_cpu_us_per_request(self) -> float | None:
        """Microseconds of the client's core by request.

        All that was busy there, where an idle loop told it; else the time of the client's thread, which leaves out what
        the kernel did on that core while the thread slept.
        """
        if self.client_core_us_per_request is not None:
            return self.client_core_us_per_request
        if self.client_idle_share is None or not self.responses:
            return None
        return (1 - self.client_idle_share) * self.seconds * 1e6 / self.responses

    @classmethod
    def from_dict(cls, content: Any) -> Run:
        """A run out of a file. Raises ResultsError, also for unknown and missing keys."""
        _check_keys("a run", content, known={each.name for each in fields(cls)}, needed={"arm", "block", "valid"})
        return cls(**content)

    def to_dict(self) -> dict[str, Any]:
        """All fields, as they go into a file."""
        return {each.name: getattr(self, each.name) for each in fields(self)}


@dataclass
class Results:
    """A results file, in memory. With a `path`, `append` saves it there after every run.

    Raises ResultsError where a field is not as the schema says.
    """

    kind: str
    machine: dict[str, Any] = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    runs: list[Run] = field(default_factory=list)
    note: str = ""
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    path: Path | None = field(default=None, compare=False)
    """Where `append` saves; no part of the file."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ResultsError(f"kind: {self.kind!r} is not known; there are {', '.join(KINDS)}")
        _check_map("machine", self.machine)
        _check_map("settings", self.settings)
        self.commands = [_check_command("commands", command) for command in _check_list("commands", self.commands)]
        _check_text("note", self.note)
        try:
            datetime.fromisoformat(_check_text("created", self.created))
        except ValueError:
            raise ResultsError(f"created: {self.created!r} is not a time in ISO 8601") from None

    def append(self, run: Run) -> None:
        """Adds a run and, with a path, saves: what is done is kept, whatever comes after. Raises ResultsError."""
        self.runs.append(run)
        if self.path is not None:
            self.save(self.path)

    def add_command(self, command: Sequence[str]) -> None:
        """Keeps an exact command, once."""
        if list(command) not in self.commands:
            self.commands.append(list(command))

    def arms(self) -> list[str]:
        """The names of the arms, in the order in which they first ran."""
        return list(dict.fromkeys(run.arm for run in self.runs))

    def of(self, arm: str, **parameters: float | str) -> list[Run]:
        """The valid runs of `arm` whose parameters include these."""
        return [
            run
            for run in self.runs
            if run.arm == arm
            and run.valid
            and all(run.parameters.get(name) == value for name, value in parameters.items())
        ]

    def to_dict(self) -> dict[str, Any]:
        """The file's map, without its checksum."""
        return {
            "schema": SCHEMA,
            "version": VERSION,
            "kind": self.kind,
            "created": self.created,
            "machine": self.machine,
            "commands": self.commands,
            "settings": self.settings,
            "runs": [run.to_dict() for run in self.runs],
            "note": self.note,
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the file in one step: a reader, or a crash, finds the old one or the new one. Raises ResultsError."""
        content = self.to_dict()
        try:
            content["checksum"] = _checksum(content)
            packed = msgpack.packb(content)
        except (TypeError, ValueError, OverflowError) as error:
            raise ResultsError(f"the results cannot be written as msgpack: {error}") from None
        write_atomically(Path(path), packed)

    def to_json(self) -> str:
        """The file's map as JSON."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def to_csv(self) -> str:
        """A line for each run, under a line of names. Lists (histogram, batch_sizes) are left out.

        Parameters, latencies and the profile become columns: `parameter_NAME`, `latency_NAME_us`, `profile_NAME`.
        """
        parameters = list(dict.fromkeys(name for run in self.runs for name in run.parameters))
        rows = io.StringIO()
        writer = csv.writer(rows, lineterminator="\n")
        writer.writerow([
            *("arm", "block"), *(f"parameter_{name}" for name in parameters), *_CSV_COLUMNS,
            *(f"latency_{name}_us" for name in LATENCIES), *(f"profile_{name}" for name in PROFILE_PARTS),
        ])  # fmt: skip
        for run in self.runs:
            writer.writerow([
                *(run.arm, run.block), *(run.parameters.get(name) for name in parameters),
                *(getattr(run, name) for name in _CSV_COLUMNS),
                *(run.latency_us.get(name) for name in LATENCIES),
                *((run.profile or {}).get(name) for name in PROFILE_PARTS),
            ])  # fmt: skip
        return rows.getvalue()


def load(path: str | os.PathLike[str]) -> Results:
    """The results of a file.

    Raises ResultsError where it cannot be read, is cut short or damaged, is none of ours, or of another version.
    """
    name = os.fspath(path)
    try:
        if os.stat(name).st_size > SIZE_BYTES_MAX:
            raise ResultsError(f"{name} is larger than any results file ({SIZE_BYTES_MAX:,} bytes)")
        packed = Path(name).read_bytes()
    except OSError as error:
        raise ResultsError(f"{name} cannot be read: {(error.strerror or str(error)).lower()}") from None
    try:
        return _from_packed(packed)
    except ResultsError as error:
        raise ResultsError(f"{name} is not a results file that can be used: {error}") from None


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces `path` by a file with `content` in one step. Raises ResultsError."""
    try:
        descriptor, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(scratch, 0o666 & ~_umask())
            os.replace(scratch, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(scratch)
            raise
    except OSError as error:
        raise ResultsError(f"{path} cannot be written: {(error.strerror or str(error)).lower()}") from None


def _umask() -> int:
    # There is no way to read it but to set it; this is asked between runs, when no thread creates files.
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


# --- what a file may say ----------------------------------------------------------------------------------------------


def _from_packed(packed: bytes) -> Results:
    if not packed:
        raise ResultsError("it is empty")
    try:
        content = msgpack.unpackb(packed, strict_map_key=True)
    except msgpack.ExtraData:
        raise ResultsError("more follows where it should end") from None
    except (ValueError, RecursionError) as error:
        if "incomplete" in str(error):
            raise ResultsError("it is cut short, or not msgpack") from None
        raise ResultsError("it is not msgpack, or damaged") from None
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise ResultsError(f"it does not say that its schema is {SCHEMA}")
    version = content.get("version")
    if version != VERSION or isinstance(version, bool):
        raise ResultsError(f"its version is {version!r}, and this batchbridge reads version {VERSION}")
    checksum = content.pop("checksum", None)
    if checksum is not None and checksum != _checksum(content):
        raise ResultsError("it is damaged: its checksum is not that of its content")
    known = {"schema", "version", "kind", "created", "machine", "commands", "settings", "runs", "note"}
    _check_keys("the file", content, known=known, needed=known)
    del content["schema"], content["version"]
    runs = [Run.from_dict(run) for run in _check_list("runs", content.pop("runs"))]
    return Results(runs=runs, **content)


def _checksum(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(msgpack.packb(content)).hexdigest()


def _check_keys(what: str, content: Any, known: set[str], needed: set[str]) -> None:
    if not isinstance(content, dict):
        raise ResultsError(f"{what} is not a map")
    if unknown := sorted(str(key) for key in content.keys() - known):
        raise ResultsError(f"{what} has the unknown key {unknown[0]!r}")
    if missing := sorted(needed - content.keys()):
        raise ResultsError(f"{what} lacks the key {missing[0]!r}")


def _check_text(what: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ResultsError(f"{what}: {value!r} is not a text")
    return value


def _check_optional_text(what: str, value: Any) -> str | None:
    return None if value is None else _check_text(what, value)


def _check_switch(what: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise ResultsError(f"{what}: {value!r} is not true or false")
    return value


def _check_count(what: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ResultsError(f"{what}: {value!r} is not a whole number from 0 on")
    return value


def _check_number(what: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ResultsError(f"{what}: {value!r} is not a number")
    return value


def _check_optional_number(what: str, value: Any) -> float | None:
    return None if value is None else _check_number(what, value)


def _check_list(what: str, value: Any) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        raise ResultsError(f"{what}: {value!r} is not a list")
    return list(value)


def _check_map(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not all(isinstance(key, str) for key in value):
        raise ResultsError(f"{what}: {value!r} is not a map with texts as keys")
    return value


def _check_command(what: str, value: Any) -> list[str]:
    return [_check_text(what, argument) for argument in _check_list(what, value)]


def _check_parameters(what: str, value: Any) -> dict[str, float | str]:
    return {
        name: each if isinstance(each, str) else _check_number(f"{what}, {name}", each)
        for name, each in _check_map(what, value).items()
    }


def _check_latencies(what: str, value: Any) -> dict[str, float]:
    return _check_numbers(what, value, LATENCIES)


def _check_profile(what: str, value: Any) -> dict[str, float] | None:
    return None if value is None else _check_numbers(what, value, PROFILE_PARTS)


def _check_numbers(what: str, value: Any, names: Sequence[str]) -> dict[str, float]:
    found = _check_map(what, value)
    if unknown := sorted(found.keys() - set(names)):
        raise ResultsError(f"{what} has the unknown key {unknown[0]!r}")
    return {name: _check_number(f"{what}, {name}", each) for name, each in found.items()}


def _check_counts(what: str, value: Any) -> dict[str, int]:
    return {name: _check_count(f"{what}, {name}", each) for name, each in _check_map(what, value).items()}


def _check_pairs(what: str, value: Any) -> list[tuple[int, int]]:
    pairs = []
    for pair in _check_list(what, value):
        if len(both := _check_list(what, pair)) != 2:
            raise ResultsError(f"{what}: {pair!r} is not a pair")
        pairs.append((_check_count(what, both[0]), _check_count(what, both[1])))
    return pairs


_RUN_CHECKS: dict[str, Any] = {
    "arm": _check_text,
    "block": _check_count,
    "parameters": _check_parameters,
    "valid": _check_switch,
    "invalid_reason": _check_optional_text,
    "seconds": _check_number,
    "responses": _check_count,
    "requests_per_s": _check_number,
    "offered_per_s": _check_optional_number,
    "latency_us": _check_latencies,
    "histogram": _check_pairs,
    "server_cpu_us_per_request": _check_optional_number,
    "client_core_us_per_request": _check_optional_number,
    "client_idle_share": _check_optional_number,
    "steal_share": _check_optional_number,
    "ipis_per_request": _check_optional_number,
    "asked": _check_count,
    "errors": _check_counts,
    "server_threads_share": _check_optional_number,
    "loops_per_s": _check_optional_number,
    "batch_sizes": _check_pairs,
    "mean_batch_size": _check_optional_number,
    "profile": _check_profile,
}
_CSV_COLUMNS = (
    "valid", "invalid_reason", "seconds", "responses", "requests_per_s", "offered_per_s", "server_cpu_us_per_request",
    "client_cpu_us_per_request", "client_idle_share", "steal_share", "ipis_per_request", "server_threads_share",
    "loops_per_s", "mean_batch_size",
)  # fmt: skip
