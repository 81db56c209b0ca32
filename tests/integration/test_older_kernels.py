"""Where the kernel lacks what is newer than Linux 6.1 (socket commands, zero-copy sends), answers are the same."""

from collections.abc import Callable
from pathlib import Path

import pytest

import batchbridge as bb
from batchbridge.cython_ext import ring
from support.skips import skip_if
from support.wire import Client, head

FEATURES = ring.probe()
needs_ring = skip_if(bool(FEATURES["ring_error"]), "no-io-uring", f"io_uring: {FEATURES['ring_error']}")


@pytest.fixture(params=["socket_cmd", "send_zc"])
def lacking(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """One feature that the probe does not find."""
    probe: Callable[[], dict[str, bool | str]] = ring.probe
    monkeypatch.setattr(ring, "probe", lambda: {**probe(), request.param: False})
    return request.param


@needs_ring
def test_answers_are_the_same_without_newer_features(lacking: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("a file\n")
    server = bb.Server(root=tmp_path, bind="127.0.0.1:0", engine="io_uring")
    clients = []

    @server.batch("/big")
    def big(batch: bb.Batch) -> None:
        for request in batch:
            clients.append(request.client)
            request.respond(b"y" * 300_000)

    with server.running():
        for _ in range(3):
            with Client(server.url) as client:
                mine = client.socket.getsockname()
                client.send(head("GET", "/a.txt"), head("GET", "/big", "Connection: close"))
                first, second = client.replies("GET", "GET")
                assert (first.status, first.body) == (200, b"a file\n")
                assert (second.status, second.body) == (200, b"y" * 300_000)
                assert clients[-1] == mine
    assert server.stats()["connections"] == {"accepted": 3, "open": 0, "closed": 3, "refused": 0, "timed_out": 0}
    assert (server.stats()["sends"]["zero_copy"] > 0) == (lacking != "send_zc")
