"""Tests of the kernel side by itself; all others run with the kernel engine, too. They need what it needs: root."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from support.serving import make_server, require_engine, running

FILES = {"a": b"the file a\n", "b": b"another, b\n", "f": b"x" * 64, "large": b"0123456789abcdef" * 20_000}


@pytest.fixture(scope="session", autouse=True)
def _kernel_engine() -> None:
    require_engine("kernel")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


@pytest.fixture
def server(root: Path) -> Iterator[bb.Server]:
    """Files, and POST /echo/{n}, which answers with the number and the body's length and bytes."""
    with running(echoing(make_server("kernel", root=str(root)))) as server:
        yield server


def echoing(server: bb.Server) -> bb.Server:
    @server.batch("/echo/{n}", methods=["POST"])
    def echo(batch: bb.Batch) -> list[bytes]:
        return [b"%b %d %b" % (request.params["n"].encode(), len(request.body), request.body) for request in batch]

    return server


def side(server: bb.Server) -> Any:
    """The kernel side's counters."""
    return server.stats()["kernel_side"]
