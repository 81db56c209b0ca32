"""Every limit that the configuration has works at its least and at its most: the server starts, answers what the limit
allows, refuses the rest with the status that the limit's row in the table tells, and leaves nothing behind.
"""

from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from batchbridge.config import OPTIONS, Option
from batchbridge.values import AUTO
from support.loop import Loop, get, make_server, post

SECTIONS = ("limits", "timeouts", "batch", "cache", "buffers", "log")
BOUNDED = [option for option in OPTIONS if option.section in SECTIONS and option.minimum is not None]

EXTREMES = [
    pytest.param(option, bound, id=f"{option.name}={bound:.0f}")
    for option in BOUNDED
    for bound in (option.minimum, option.maximum)
    if bound is not None
]

#: What is refused where the limit is at its least: by a setting, the requests and the status.
REFUSED = {
    "head_size_bytes_max": {"long head": 431},
    "target_size_bytes_max": {"long target": 414, "long head": 414},
    "header_count_max": {"long head": 431, "small body": 431, "large body": 431},
    "body_size_bytes_max": {"small body": 413, "large body": 413},
    "response_size_bytes_max": {"large answer": 500},
    "response_arena_size_bytes": {"large answer": 500},
}


def requests(target_size: int) -> dict[str, bytes]:
    return {
        "file": get("/a.txt"),
        "handler": get("/h/1"),
        "kept": get("/kept"),
        "small body": post("/count", b"body"),
        "large body": post("/count", b"y" * 600_000),
        "large answer": get("/h/600000"),
        "long target": get("/h/5?" + "q" * target_size),
        "long head": get("/h/5?" + "q" * 100, "X: " + "y" * 200),
    }


def serving(root: Path, option: Option, bound: float) -> bb.Server:
    value: Any = int(bound) if option.kind in ("count", "size") else bound
    server = make_server(root=str(root), access_log=str(root / "access.log"), **{option.name: value})
    server.batch("/h/{size}")(lambda batch: [b"x" * int(request.params["size"]) for request in batch])
    server.batch("/count", methods=["POST"])(lambda batch: [f"{len(request.body)}" for request in batch])
    server.batch("/kept")(lambda batch: [bb.Response("kept", cache_ttl_s=9) for _ in batch])
    return server


@pytest.mark.parametrize(("option", "bound"), EXTREMES)
def test_a_server_works_with_each_limit_at_its_extremes(tmp_path: Path, option: Option, bound: float) -> None:
    (tmp_path / "a.txt").write_bytes(b"f" * 3000)
    refused = REFUSED.get(option.name, {}) if bound == option.minimum else {}
    with Loop(serving(tmp_path, option, bound)) as loop:
        for _ in range(2):
            for name, request in requests(100).items():
                reply = loop.ask(request)
                assert (name, reply.status) == (name, refused.get(name, 200))
        pipeline = loop.connect(get("/h/1") * 20 + get("/kept") * 20)
        loop.settle()
        assert [reply.status for reply in loop.replies(pipeline)] == [200] * 40
        loop.close_all()
        assert loop.stats["log"]["lines"] == loop.stats["requests"]["read"] == 56
    assert (tmp_path / "access.log").read_bytes().count(b"\n") == 56


def test_there_may_be_more_routes_than_slabs() -> None:
    server = make_server(handler_queue_slabs=2)
    for number in range(100):
        server.batch(f"/{number}")(lambda batch: [batch.route.path] * len(batch))
    with Loop(server) as loop:
        for _ in range(2):
            for number in range(100):
                assert loop.ask(get(f"/{number}")).text == f"/{number}"
        loop.close_all()


def test_each_limit_has_both_bounds_and_a_default_within() -> None:
    assert len(BOUNDED) > 20
    for option in BOUNDED:
        assert option.maximum is not None
        assert option.minimum is not None
        assert option.default == AUTO or option.minimum <= option.default <= option.maximum


def test_all_limits_at_their_least_together(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"f" * 100)
    least: dict[str, Any] = {
        option.name: int(option.minimum or 0) for option in BOUNDED if option.kind in ("count", "size")
    }
    server = make_server(root=str(tmp_path), **least)
    server.batch("/h", max_batch_size=1)(lambda batch: ["x"] * len(batch))
    with Loop(server) as loop:
        for _ in range(10):
            for target in ("/a.txt", "/h", "/nothing"):
                client = loop.connect(get(target) * 2)
                with pytest.raises(BlockingIOError):
                    loop.connect()  # there may be one
                loop.settle()
                assert [reply.status for reply in loop.replies(client)] == [404 if target == "/nothing" else 200] * 2
                loop.engine.feed_end(client)
                loop.settle()
        loop.close_all()


def test_all_limits_at_their_most_together(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"f" * 100)
    # Memory is mapped, not used; but a machine may not let so much of it be mapped at once.
    excepted = {"handler_queue_slabs", "response_arena_size_bytes"}
    most: dict[str, Any] = {
        option.name: int(option.maximum or 0)
        for option in BOUNDED
        if option.kind in ("count", "size") and option.name not in excepted
    }
    server = make_server(root=str(tmp_path), **most)
    server.batch("/h", max_batch_size=2048, max_queue_size=10_000, methods=["GET", "POST"])(lambda batch: batch.bodies)
    with Loop(server) as loop:
        clients = [loop.connect(get("/h") * 10 + post("/h", b"z" * 100_000) + get("/a.txt")) for _ in range(300)]
        loop.settle()
        for client in clients:
            assert [len(reply.body) for reply in loop.replies(client, *["GET"] * 12)] == [0] * 10 + [100_000, 100]
        loop.close_all()
