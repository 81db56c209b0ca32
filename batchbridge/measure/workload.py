"""What the arms of the question serve: 64 bytes that depend on the request, so that nothing is prepared by accident.

`server(handler, work)` answers GET /v/N one by one in Python ("python") or compiled ("native"), or POST /v, whose body
is N as a 64-bit integer, with one array operation for the whole batch ("vector"). Beside that each request takes some
work: so many checksums of a block, a fixed amount. (Waiting for a clock would not do: what interrupts it would cost
nothing.) As an app it is named by its attribute: ``batchbridge.measure.workload:python_10``. Servers of files are given
the same answers as files (`write_files`).
"""

from __future__ import annotations

import re
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from ..cython_ext.load import Exchange
from .traffic import request_bytes

if TYPE_CHECKING:
    from .. import Batch, Server

__all__ = ["HANDLERS", "NUMBERS", "answer", "app", "exchanges", "route", "server", "work_of", "write_files"]

HANDLERS = ("native", "python", "vector")
#: Different requests.
NUMBERS = 256
BODY_SIZE_BYTES = 64
QUEUE_SIZE_MAX = 4096

FACTOR = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1

BLOCK = bytes(1024)
TRIALS, TRIAL_WORK = 200, 100

_NAME = re.compile(rf"({'|'.join(HANDLERS)})_(\d{{1,8}})")


def answer(number: int) -> bytes:
    """What number N is answered with: 64 bytes, as text."""
    return b"%016x" % (number * FACTOR & MASK) * 4


def vector_answer(number: int) -> bytes:
    """The same of the vectorised handler: eight 64-bit integers."""
    return (number * FACTOR & MASK).to_bytes(8, "little") * 8


def route(handler: str) -> str:
    """The path of the handler's route."""
    return "/v" if handler == "vector" else "/v/{number}"


def app(handler: str, work: int) -> str:
    """What --app takes."""
    return f"{__name__}:{handler}_{work}"


def work_of(work_us: float, handler: str = "python") -> int:
    """How much of the handler's work takes so many microseconds on the core that this runs on, uninterrupted."""
    from ..cython_ext import native_workload

    worker = native_workload.compute if handler == "native" else compute
    if work_us <= 0:
        return 0
    fastest_ns = 1 << 62
    for _ in range(TRIALS):
        began_ns = time.perf_counter_ns()
        worker(TRIAL_WORK)
        fastest_ns = min(fastest_ns, time.perf_counter_ns() - began_ns)
    return max(1, round(work_us * 1000 * TRIAL_WORK / fastest_ns))


def exchanges(handler: str) -> list[Exchange]:
    """The requests, each with the answer that it must have."""
    if handler != "vector":
        return [
            Exchange(request_bytes("GET", f"/v/{number:04}"), body=answer(number), name=f"number {number}")
            for number in range(NUMBERS)
        ]
    return [
        Exchange(
            request_bytes("POST", "/v", body=number.to_bytes(8, "little")),
            body=vector_answer(number),
            name=f"number {number}",
        )
        for number in range(NUMBERS)
    ]


def write_files(root: Path) -> None:
    """The answers to GET /v/N as files below `root`, for servers that have no handler."""
    (root / "v").mkdir()
    for number in range(NUMBERS):
        (root / "v" / f"{number:04}").write_bytes(answer(number))


def compute(work: int) -> None:
    """So many checksums of a block."""
    checksum = zlib.crc32
    for _ in range(work):
        checksum(BLOCK)


def server(handler: str, work: int) -> Server:
    """A server with that handler; `work` a request, 0 for none."""
    from .. import Array, Server

    made = Server()
    if handler == "native":
        from ..cython_ext import native_workload

        made.native(route(handler), native_workload.handler(work), max_queue_size=QUEUE_SIZE_MAX)

    elif handler == "python":

        @made.batch(route(handler), max_queue_size=QUEUE_SIZE_MAX)
        def one_by_one(batch: Batch) -> list[bytes]:
            answers = []
            for request in batch:
                answers.append(answer(int(request.target[3:])))
                if work:
                    compute(work)
            return answers

    else:
        import numpy as np

        @made.batch(route(handler), methods=["POST"], decode=Array("<u8", ()), max_queue_size=QUEUE_SIZE_MAX)
        def at_once(batch: Batch) -> object:
            products = batch.as_array() * np.uint64(FACTOR)
            if work:
                compute(work * len(batch))
            return np.repeat(products[:, None], BODY_SIZE_BYTES // 8, axis=1)

    return made


def __getattr__(name: str) -> Server:
    if (found := _NAME.fullmatch(name)) is None:
        raise AttributeError(f"{name!r} is not a handler and its work, such as python_10")
    return server(found[1], int(found[2]))
