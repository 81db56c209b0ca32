"""Responses to bytes on the wire: small ones leave together, large ones piece by piece, however little a client takes
at a time; whatever is behind a last response is read away, and nobody is cut off before all was sent.
"""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchbridge as bb
from support.loop import Loop, get, looping, make_server, post

S = 1_000_000
SIZES = [0, 1, 100, 1023, 1024, 1500, 5000, 70_000, 300_000]
KINDS = ["fresh", "kept", "file", "large file"]


def body_of(size: int) -> bytes:
    return (b"%07d\n" * (size // 8 + 1) % tuple(range(size // 8 + 1)))[:size]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("root")
    for size in SIZES:
        (root / f"{size}.txt").write_bytes(body_of(size))
    return root


def serving(root: Path, **settings: int) -> bb.Server:
    server = make_server(root=str(root), **{"zero_copy_size_bytes_min": 1024, **settings})
    server.batch("/fresh/{size}")(lambda batch: [body_of(int(request.params["size"])) for request in batch])
    server.batch("/kept/{size}")(
        lambda batch: [bb.Response(body_of(int(request.params["size"])), cache_ttl_s=99) for request in batch]
    )
    return server


def target_of(kind: str, size: int) -> str:
    return f"/{size}.txt" if "file" in kind else f"/{kind}/{size}"


def limits_of(kind: str) -> dict[str, int]:
    return {"cached_file_size_bytes_max": 0} if kind == "large file" else {}


@pytest.mark.parametrize("late_sends", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_a_response_is_whole_whatever_its_size_and_however_it_is_taken(
    root: Path, kind: str, size: int, late_sends: bool
) -> None:
    with looping(serving(root, **limits_of(kind)), late_sends=late_sends) as loop:
        if kind != "fresh":
            loop.ask(get(target_of(kind, size)))
        for step in (None, max(1, size // 7), 100_000):
            client = loop.connect(get(target_of(kind, size)) + get(target_of("fresh", 5), "Connection: close"))
            if step is not None:
                loop.engine.send_limit(client, 0)
            loop.settle()
            while step is not None and not loop.engine.is_closed(client):
                loop.engine.send_limit(client, step)
                loop.settle()
            replies = loop.replies(client)
            assert [reply.body for reply in replies] == [body_of(size), body_of(5)]
            assert loop.engine.is_closed(client)


@pytest.mark.parametrize("late_sends", [False, True])
def test_byte_by_byte(root: Path, late_sends: bool) -> None:
    with looping(serving(root), late_sends=late_sends) as loop:
        client = loop.connect(get("/fresh/1500") + get("/100.txt") + get("/nothing"))
        loop.engine.send_limit(client, 0)
        loop.settle()
        data = b""
        while data.count(b"404 Not Found\n") < 1:
            loop.engine.send_limit(client, 1)
            loop.settle()
            one = loop.engine.output(client)
            assert len(one) <= 1
            data += one
        loop.engine.send_limit(client, None)
        assert data.startswith(b"HTTP/1.1 200 OK")
        assert loop.stats["sends"]["short"] >= 1


takes = st.lists(st.integers(0, 4000), max_size=30)
asked = st.lists(st.tuples(st.sampled_from(KINDS[:3]), st.sampled_from(SIZES[:7])), min_size=1, max_size=8)


@given(asked, takes, st.booleans(), st.booleans())
def test_any_pipeline_taken_in_any_steps(
    root: Path, asked: list[tuple[str, int]], takes: list[int], late_sends: bool, closes: bool
) -> None:
    with looping(serving(root), late_sends=late_sends) as loop:
        requests = [get(target_of(kind, size)) for kind, size in asked]
        client = loop.connect(b"".join(requests) + (get("/nothing", "Connection: close") if closes else b""))
        loop.engine.send_limit(client, 0)
        loop.turn()
        for take in takes:
            loop.engine.send_limit(client, take)
            loop.work()
            loop.turn()
        loop.engine.send_limit(client, None)
        loop.settle()
        bodies = [reply.body for reply in loop.replies(client)]
        assert bodies == [body_of(size) for _, size in asked] + [b"404 Not Found\n"] * closes
        assert loop.engine.is_closed(client) == closes
        assert loop.stats["bytes"]["sent"] >= sum(size for _, size in asked)


def test_small_responses_of_a_turn_leave_with_one_send(root: Path) -> None:
    with looping(serving(root)) as loop:
        loop.ask(get("/100.txt"))
        client = loop.connect(get("/100.txt") * 20, get("/nothing") * 5)
        loop.settle()
        assert len(loop.replies(client)) == 25
        assert loop.engine.send_count(client) == 1


def test_many_clients_share_the_scratch(root: Path) -> None:
    """More bytes than it holds, and responses of several connections mixed in it."""
    with looping(serving(root, zero_copy_size_bytes_min=16384)) as loop:
        clients = [loop.connect() for _ in range(100)]
        for _ in range(10):
            for client in clients:
                loop.send(client, get("/5000.txt"))
        loop.settle()
        for client in clients:
            replies = loop.replies(client)
            assert len(replies) == 10
            assert all(reply.body == body_of(5000) for reply in replies)


@pytest.mark.parametrize("late_sends", [False, True])
def test_one_client_gets_no_more_than_its_share_of_a_turn(root: Path, late_sends: bool) -> None:
    server = serving(root, zero_copy_size_bytes_min=16384)
    with looping(server, late_sends=late_sends, pipelined_requests_max=4096) as loop:
        loop.ask(get("/5000.txt"))
        client = loop.connect(get("/5000.txt") * 300 + get("/fresh/5") + get("/5000.txt") * 100)
        loop.turn()
        loop.turn()
        assert 0 < len(loop.engine.output(client)) < 1_000_000
        other = loop.connect(get("/5000.txt"))
        loop.turn()
        loop.turn()
        assert loop.replies(other)[0].body == body_of(5000)
        client = loop.connect(get("/5000.txt") * 300 + get("/fresh/5") + get("/5000.txt") * 100)
        loop.settle()
        bodies = [reply.body for reply in loop.replies(client)]
        assert bodies == [body_of(5000)] * 300 + [body_of(5)] + [body_of(5000)] * 100


@pytest.mark.parametrize("late_sends", [False, True])
def test_bytes_sent_are_counted_once(root: Path, late_sends: bool) -> None:
    with looping(serving(root), late_sends=late_sends) as loop:
        total = 0
        for number, size in enumerate(SIZES):
            client = loop.connect(get(f"/fresh/{size}"))
            if number % 2:
                loop.engine.send_limit(client, 50)
            loop.settle()
            loop.engine.send_limit(client, None)
            loop.settle()
            total += len(loop.engine.output(client))
        assert loop.stats["bytes"]["sent"] == total


# --- the end of a connection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("late_sends", [False, True])
@pytest.mark.parametrize("size", [100, 5000, 300_000])
def test_a_last_response_is_sent_whole_before_the_connection_ends(root: Path, size: int, late_sends: bool) -> None:
    with looping(serving(root), late_sends=late_sends) as loop:
        client = loop.connect(get(f"/fresh/{size}", "Connection: close"))
        loop.engine.send_limit(client, 70)
        for _ in range(3):
            loop.settle()
            assert not loop.engine.is_finished(client) and not loop.engine.is_closed(client)
        loop.engine.send_limit(client, None)
        loop.settle()
        assert loop.engine.is_closed(client)
        (reply,) = loop.replies(client)
        assert (reply.headers["connection"], reply.body) == ("close", body_of(size))


@pytest.mark.parametrize(
    "request_",
    [
        get("/fresh/100", "Connection: close") + get("/fresh/5") * 3,
        get("/100.txt", version="1.0") + b"anything",
        post("/100.txt", b"x", "Connection: close") + b"more",
        b"bad\r\n\r\n" + get("/fresh/5"),
        get("/fresh/5", "Content-Length: 99999999") + b"body, as far as it has come",
    ],
)
def test_what_comes_behind_a_last_response_is_read_away_and_never_answered(root: Path, request_: bytes) -> None:
    with looping(serving(root)) as loop:
        client = loop.connect(request_)
        loop.settle()
        (reply,) = loop.replies(client)
        assert reply.headers["connection"] == "close"
        assert loop.engine.is_finished(client)
        assert not loop.engine.is_closed(client)  # a reset now could cost the client the response
        for _ in range(5):
            loop.send(client, get("/fresh/5"))
            loop.settle()
        assert loop.output(client) == b""
        assert loop.stats["bridge"]["items"] <= 1
        assert loop.stats["requests"]["read"] == 1
        loop.engine.feed_end(client)
        loop.settle()
        assert loop.engine.is_closed(client)


def test_requests_behind_a_last_one_in_user_mode_are_not_run(root: Path) -> None:
    with looping(serving(root)) as loop:
        client = loop.connect(get("/fresh/5"), get("/fresh/6", "Connection: close"), get("/fresh/7"), get("/fresh/8"))
        loop.turn()
        assert loop.stats["bridge"]["in_user_mode"] == 2
        loop.settle()
        assert [reply.body for reply in loop.replies(client)] == [body_of(5), body_of(6)]
        assert loop.stats["routes"]["/fresh/{size}"]["items"] == 2


def test_draining_answers_what_is_under_way_and_ends_what_idles(root: Path) -> None:
    with looping(serving(root)) as loop:
        idle, busy, half, slow = (
            loop.connect(),
            loop.connect(get("/fresh/5") * 2),
            loop.connect(b"GET /fre"),
            loop.connect(),
        )
        loop.send(slow, get("/fresh/300000"))
        loop.engine.send_limit(slow, 10)
        loop.turn()
        loop.engine.drain()
        loop.settle()
        assert loop.engine.is_closed(idle)
        first, second = loop.replies(busy)
        assert ("connection" in first.headers, second.headers["connection"]) == (False, "close")
        assert loop.engine.is_closed(busy)
        loop.send(half, b"sh/5 HTTP/1.1\r\nHost: x\r\n\r\n")
        loop.engine.send_limit(slow, None)
        loop.settle()
        assert [loop.replies(client)[0].status for client in (half, slow)] == [200, 200]
        assert all(loop.engine.is_closed(client) for client in (half, slow))
        assert loop.stats["connections"]["open"] == 0


def test_a_file_that_shrinks_while_it_is_sent_breaks_the_connection_off(tmp_path: Path) -> None:
    file = tmp_path / "f.bin"
    file.write_bytes(bytes(1_000_000))
    with looping(make_server(root=str(tmp_path), cached_file_size_bytes_max=0)) as loop:
        client = loop.connect(get("/f.bin"))
        loop.engine.send_limit(client, 200_000)
        loop.settle()
        file.write_bytes(b"")
        loop.engine.send_limit(client, None)
        loop.settle()
        assert loop.engine.is_closed(client)
        assert not loop.engine.is_finished(client)
        assert len(loop.engine.output(client)) < 1_000_000


def test_a_cached_file_that_changes_while_it_is_sent_is_sent_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "f.bin"
    file.write_bytes(b"a" * 500_000)
    with looping(make_server(root=str(tmp_path))) as loop:
        client = loop.connect(get("/f.bin"))
        loop.engine.send_limit(client, 100_000)
        loop.settle()
        file.write_bytes(b"b" * 600_000)
        assert loop.ask(get("/f.bin")).body == b"b" * 600_000
        loop.engine.send_limit(client, None)
        loop.settle()
        assert loop.replies(client)[0].body == b"a" * 500_000


def test_descriptors_of_files_are_closed(tmp_path: Path) -> None:
    import os

    for number in range(3):
        (tmp_path / f"{number}.bin").write_bytes(bytes(300_000))
    with looping(make_server(root=str(tmp_path), cached_file_size_bytes_max=0)) as loop:
        before = len(os.listdir("/proc/self/fd"))
        clients = []
        for number in range(30):
            method = ("GET", "HEAD")[number % 5 == 0]
            clients.append(loop.connect(get(f"/{number % 3}.bin", method=method), get("/1.bin", "If-None-Match: *")))
            loop.engine.send_limit(clients[-1], 1000)
        loop.settle()
        assert len(os.listdir("/proc/self/fd")) > before
        for number, client in enumerate(clients):
            if number % 2:
                loop.engine.reset(client)
            else:
                loop.engine.send_limit(client, None)
        loop.settle()
        assert len(os.listdir("/proc/self/fd")) == before


def test_loops_are_independent_of_each_other(root: Path) -> None:
    with Loop(serving(root)) as one, Loop(serving(root)) as other:
        first, second = one.connect(get("/fresh/5")), other.connect(get("/fresh/6"))
        one.settle()
        other.settle()
        assert one.replies(first)[0].body == body_of(5)
        assert other.replies(second)[0].body == body_of(6)
