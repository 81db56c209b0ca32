"""Objects in the arena, in plain memory and over the page cache are the same to a client, with each engine: files that
shrink, vanish, are replaced or become unreadable while they are sent, files of nothing and of 10 GiB, an arena full of
what is still being sent, storms of purges. Afterwards every pin, fragment and byte was given back."""

import contextlib
import os
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from support.serving import make_server, running
from support.site import pattern as make_pattern
from support.wire import Client, ask, await_true, head, together

MIB = 1 << 20

pattern = cache(make_pattern)


@contextlib.contextmanager
def serving(engine: str, root: Path, *, is_cold: bool = False, **settings: Any) -> Iterator[bb.Server]:
    """A server of files; at its end nothing may be left of any of them."""
    server = make_server(engine, root=str(root), **{"file_revalidate_s": 0.0, **settings})
    with running(server):
        for thread in server.engines:
            thread.pretend_cold(is_cold)
        yield server
        await_true(lambda: server.stats()["connections"]["open"] == 0)
        await_true(lambda: server.stats()["fills"]["under_way"] == 0)
        await_true(lambda: server.stats()["cache"]["fragments"]["pins"] == 0, what=str(server.stats()["cache"]))
        server.cache.purge(prefix="")
        await_true(lambda: server.stats()["cache"]["fragments"]["living"] == 0)
        figures = server.stats()["cache"]
        assert figures["fragments"]["present"] == figures["fragments"]["files"] == 0
        assert (
            figures["arena"]["size_bytes"] == figures["arena"]["faults"] == figures["plain_memory"]["size_bytes"] == 0
        )
        assert figures["page_cache"]["pieces"] == figures["leaving_size_bytes"] == 0


@pytest.mark.parametrize("is_cold", [False, True])
@pytest.mark.parametrize("cached_max", [0, "16MiB"])
def test_each_size(engine: str, tmp_path: Path, is_cold: bool, cached_max: object) -> None:
    sizes = [0, 1, 5000, 8192, 8193, 16_384, 64_512, 65_024, 65_536, 131_072, 200_000, MIB, 5 * MIB + 3]
    for size in sizes:
        (tmp_path / f"{size}.bin").write_bytes(pattern(size))
    with serving(engine, tmp_path, is_cold=is_cold, cached_file_size_bytes_max=cached_max) as server:
        with Client(server.url) as client:
            for size in sizes * 2:
                reply = client.ask("GET", f"/{size}.bin")
                assert reply.body == pattern(size) and reply["content-length"] == str(size)
            client.send(b"".join(head("GET", f"/{size}.bin") for size in sizes))
            assert [reply.body for reply in client.replies(*["GET"] * len(sizes))] == [pattern(size) for size in sizes]
            for size in sizes[3:]:
                reply = client.ask("GET", f"/{size}.bin", ("Range", f"bytes={size // 3}-{size - 2}"))
                assert (reply.status, reply.body) == (206, pattern(size)[size // 3 : size - 1])
        figures = server.stats()["cache"]
        assert figures["fragments"]["read_later" if is_cold else "read_at_once"] > 0
        for size in (MIB, 5 * MIB + 3):
            with Client(server.url) as client:
                assert client.ask("GET", f"/{size}.bin", ("Connection", "close")).body == pattern(size)
                client.assert_ended()


def test_large_hits_leave_without_a_copy(engine: str, tmp_path: Path) -> None:
    (tmp_path / "f.bin").write_bytes(pattern(300_000))
    with serving(engine, tmp_path) as server:
        with Client(server.url) as client:
            for _ in range(5):
                assert client.ask("GET", "/f.bin").body == pattern(300_000)
        stats = server.stats()
        assert (stats["sends"]["zero_copy"] > 0) == (engine != "epoll")
        assert (stats["cache"]["arena"]["registered_size_bytes"] > 0) == (engine != "epoll")
        await_true(lambda: server.stats()["sends"]["zero_copy_pending"] == 0)


def test_one_copy_for_many_whatever_head_they_get(engine: str, tmp_path: Path) -> None:
    """Hits of one object for over a second, so that their Date changes while others are still being sent."""
    (tmp_path / "f.bin").write_bytes(pattern(150_000))

    def several(place: int) -> int:
        count, until = 0, time.monotonic() + 1.3
        with Client(server.url, receive_buffer_bytes=65_536 if place % 2 else None) as client:
            while time.monotonic() < until:
                more = [("Connection", "keep-alive")] if place % 3 else [("Range", "bytes=0-149998")]
                reply = client.ask("GET", "/f.bin", *more)
                assert reply.body == pattern(150_000)[: len(reply.body)] and len(reply.body) >= 149_999
                assert abs(time.time() - http_time(reply["date"])) < 10
                count += 1
                time.sleep(0.01)
        return count

    with serving(engine, tmp_path) as server:
        together([lambda place=place: several(place) for place in range(6)])
        assert server.stats()["cache"]["objects"] == 1


def http_time(text: str) -> float:
    from email.utils import parsedate_to_datetime

    return parsedate_to_datetime(text).timestamp()


# --- files that change ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_cold", [False, True])
@pytest.mark.parametrize("size", [500_000, 12 * MIB])
@pytest.mark.parametrize("change", ["shrinks", "vanishes", "is replaced", "becomes unreadable"])
def test_a_file_that_changes_while_it_is_sent(
    engine: str, tmp_path: Path, size: int, is_cold: bool, change: str
) -> None:
    path = tmp_path / "f.bin"
    path.write_bytes(pattern(size))
    with serving(engine, tmp_path, is_cold=is_cold) as server:
        with Client(server.url, receive_buffer_bytes=65_536) as client:
            client.send(head("GET", "/f.bin"))
            client.rest = client.socket.recv(1000)
            if change == "shrinks":
                os.truncate(path, 1000)
            elif change == "vanishes":
                path.unlink()
            elif change == "is replaced":
                (tmp_path / "fresh").write_bytes(b"fresh")
                (tmp_path / "fresh").replace(path)
            else:
                path.chmod(0)
            got = drain(client, size)
            body = got.partition(b"\r\n\r\n")[2]
            assert pattern(size).startswith(body), "nothing but the file's bytes"
            if change != "shrinks":
                assert len(body) == size
        reply = ask(server.url, "GET", "/f.bin")
        if change == "vanishes":
            assert reply.status == 404
        else:
            assert (reply.status, reply.body) == (200, path.read_bytes())


def drain(client: Client, size: int) -> bytes:
    """All that comes: the whole response, or what there was when it broke off."""
    pieces = [client.rest]
    client.rest = b""
    client.socket.settimeout(3.0)
    have = len(pieces[0])
    with contextlib.suppress(ConnectionResetError):
        while have < size or b"".join(pieces).partition(b"\r\n\r\n")[2][size - 1 : size] == b"":
            more = client.socket.recv(1 << 20)
            if not more:
                break
            pieces.append(more)
            have += len(more)
    return b"".join(pieces)


@pytest.mark.parametrize("is_cold", [False, True])
def test_a_sparse_file_of_10_gib(engine: str, tmp_path: Path, is_cold: bool) -> None:
    size = 10 << 30
    with (tmp_path / "sparse.bin").open("wb") as file:
        file.truncate(size)
        file.seek(size - 5)
        file.write(b"end.\n")
    with serving(engine, tmp_path, is_cold=is_cold) as server:
        with Client(server.url) as client:
            assert client.ask("HEAD", "/sparse.bin")["content-length"] == str(size)
            reply = client.ask("GET", "/sparse.bin", ("Range", f"bytes={size - 100_000}-"))
            assert reply.body == bytes(99_995) + b"end.\n"
            assert client.ask("GET", "/sparse.bin", ("Range", "bytes=4294967290-4294967300")).body == bytes(11)
        with Client(server.url, receive_buffer_bytes=65_536) as client:
            client.send(head("GET", "/sparse.bin"))
            for _ in range(20):
                assert client.socket.recv(100_000)
            figures = server.stats()["cache"]
            assert figures["page_cache"]["pieces"] <= 33 and figures["arena"]["size_bytes"] < 4 * MIB
            client.reset()


# --- memory that runs out ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_cold", [False, True])
def test_an_arena_full_of_what_is_being_sent(engine: str, tmp_path: Path, is_cold: bool) -> None:
    """Slow readers hold more than the cache may have; whoever comes then is served all the same, within bounds."""
    count, size = 10, 3_500_000
    for number in range(count):
        (tmp_path / f"{number}.bin").write_bytes(pattern(size + number))
    with serving(engine, tmp_path, is_cold=is_cold, cache_size_bytes="4MiB",
                 cached_file_size_bytes_max="4MiB") as server:  # fmt: skip
        slow = [Client(server.url, receive_buffer_bytes=65_536) for _ in range(count)]
        for number, client in enumerate(slow):
            client.send(head("GET", f"/{number}.bin"))
            client.rest = client.socket.recv(100)
            server.cache.purge(url=f"/{number}.bin")
        figures = server.stats()["cache"]
        assert figures["leaving_size_bytes"] + figures["size_bytes"] < 3 * 4 * MIB
        held = figures["arena"]["size_bytes"] + figures["plain_memory"]["size_bytes"]
        assert held < 3 * 4 * MIB
        with Client(server.url) as client:
            for number in range(count):
                assert client.ask("GET", f"/{number}.bin").body == pattern(size + number)
        for number, client in enumerate(slow[:4]):
            assert drain(client, size + number).endswith(pattern(size + number))
        for client in slow:
            client.reset()


def test_a_storm_of_purges_while_all_is_being_sent(engine: str, tmp_path: Path) -> None:
    for number in range(6):
        (tmp_path / f"{number}.bin").write_bytes(pattern(200_000 + number))

    def several(place: int) -> None:
        with Client(server.url, receive_buffer_bytes=65_536 if place % 2 else None) as client:
            for turn in range(12):
                number = (place + turn) % 6
                assert client.ask("GET", f"/{number}.bin").body == pattern(200_000 + number)

    def storm() -> None:
        for turn in range(150):
            number = turn % 6
            server.cache.purge(**[{"url": f"/{number}.bin"}, {"prefix": "/"}, {"prefix": f"/{number}"}][turn % 3],
                               soft=turn % 4 == 0)  # fmt: skip

    with serving(engine, tmp_path, cache_size_bytes="2MiB") as server:
        together([*(lambda place=place: several(place) for place in range(5)), storm])
        assert server.stats()["cache"]["purged"] > 0


def test_answers_of_handlers_that_are_kept(engine: str, tmp_path: Path) -> None:
    server = make_server(engine)
    server.batch("/{size}")(lambda batch: [bb.Response(pattern(int(r.params["size"])), cache_ttl_s=99) for r in batch])
    with running(server), Client(server.url) as client:
        for _ in range(3):
            for size in (10, 8192, 9000, 20_000, 64_000, 65_536, 300_000):
                reply = client.ask("GET", f"/{size}")
                assert reply.body == pattern(size)
        stats = server.stats()
        assert stats["requests"]["outcomes"]["hit"] == 14
        assert stats["cache"]["fragments"]["present"] == 1 + 1 + 1 + 2 + 5
