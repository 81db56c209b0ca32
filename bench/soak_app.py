"""What the soak serves beside files: handlers of every kind, among them bad ones.

Each answer depends on its request in a way that the client knows.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

import batchbridge as bb

#: So long an answer leaves without being copied.
BIG_SIZE_BYTES = 40_000
VECTOR_SIZE = 16
LATE_TIMEOUT_US = 50_000
LATE_S = 0.15
HOLD_S = 0.3


@contextlib.contextmanager
def quiet(_server: bb.Server) -> Iterator[None]:
    """Thousands of failures a second are meant; the soak looks at their answers, not at their tracebacks."""
    logging.getLogger("batchbridge.handlers").setLevel(logging.CRITICAL)
    yield


server = bb.Server(lifespan=quiet)

Answer = str | bytes | bb.Response | Exception


@server.batch("/add/{a}/{b}", max_queue_size=4096)
def add(batch: bb.Batch) -> Sequence[Answer]:
    return [str(int(request.params["a"]) + int(request.params["b"])) for request in batch]


@server.batch("/later/{n}", concurrency=4, max_queue_size=4096)
async def later(batch: bb.Batch) -> Sequence[Answer]:
    """Several batches at a time, in an event loop."""
    await asyncio.sleep(0.001)
    return [f"later {request.params['n']}" for request in batch]


@server.batch("/raise/{n}", max_queue_size=4096)
def fail(batch: bb.Batch) -> Sequence[Answer]:
    """n % 4: 0 fails the whole call, 1 is refused, 2 fails by itself, 3 is answered."""
    answers: list[Answer] = []
    for request in batch:
        number = int(request.params["n"])
        if number % 4 == 0:
            raise RuntimeError(f"the number {number} fails everything")
        if number % 4 == 1:
            answers.append(bb.HTTPError(422, f"not {number}"))
        else:
            answers.append(ValueError(f"not {number}") if number % 4 == 2 else f"fine {number}")
    return answers


@server.batch("/within/{n}")
def fail_within(batch: bb.Batch) -> None:
    """Odd numbers raise, each by itself; a number that can be divided by four is left unanswered."""
    for request in batch:
        with request:
            number = int(request.params["n"])
            if number % 2:
                raise KeyError(number)
            if number % 4:
                request.respond(f"within {number}".encode(), headers=[("X-Number", str(number))])


@server.batch("/late/{n}", timeout_us=LATE_TIMEOUT_US, concurrency=8)
async def late(batch: bb.Batch) -> Sequence[Answer]:
    """Odd numbers take longer than their time-out."""
    if any(int(request.params["n"]) % 2 for request in batch):
        await asyncio.sleep(LATE_S)
    return [f"late {request.params['n']}" for request in batch]


@server.batch("/hold/{n}", concurrency=8)
async def hold(batch: bb.Batch) -> Sequence[Answer]:
    """For clients that do not wait."""
    await asyncio.sleep(HOLD_S)
    return ["held" for _ in batch]


@server.batch("/crowd/{n}", max_queue_size=4, max_batch_size=2)
def crowd(batch: bb.Batch) -> Sequence[Answer]:
    """Its queue is always full."""
    time.sleep(0.0005)
    return [f"crowd {request.params['n']}" for request in batch]


@server.batch("/same/{n}", coalesce=True, max_queue_delay_us=2000, policy="fixed")
def same(batch: bb.Batch) -> Sequence[Answer]:
    return [f"same {request.params['n']}" for request in batch]


@server.batch("/kept/{n}", max_queue_size=4096)
def kept(batch: bb.Batch) -> Sequence[Answer]:
    """Answered from the cache for a second each."""
    return [bb.Response(f"kept {request.params['n']}", cache_ttl_s=1, tags=["kept"]) for request in batch]


@server.batch("/big/{n}", max_batch_size=16)
def big(batch: bb.Batch) -> Sequence[Answer]:
    return [big_body(int(request.params["n"])) for request in batch]


def big_body(number: int) -> bytes:
    return f"{number:08}".encode() * (BIG_SIZE_BYTES // 8)


@server.batch("/echo", methods=["POST", "PUT"], max_batch_size=16, idempotent=True)
def echo(batch: bb.Batch) -> Sequence[Answer]:
    return [bytes(request.body) for request in batch]


@server.batch("/vector", methods=["POST"], decode=bb.Array("<i4", (VECTOR_SIZE,)), max_queue_size=4096)
def vector(batch: bb.Batch) -> np.ndarray[Any, Any]:
    sums: np.ndarray[Any, Any] = batch.as_array().astype("<i8").sum(axis=1)
    return sums


@server.batch("/json", methods=["POST"], decode=bb.Json())
def from_json(batch: bb.Batch) -> Sequence[Answer]:
    return [str(request.json()["n"] * 2) for request in batch]
