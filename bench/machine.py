"""The machine that figures belong to."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


def facts() -> str:
    """Processor, cores and kernel, in half a line."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    processor = " ".join((names[0] if names else os.uname().machine).split())
    count = len(os.sched_getaffinity(0))
    return f"{processor}, {count} core{'' if count == 1 else 's'}, Linux {os.uname().release}"


@contextlib.contextmanager
def pinned(cpu: int | None) -> Iterator[None]:
    """Keeps the calling thread, and threads it starts, on one core meanwhile; None: wherever it was."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
