"""Files that the page cache does not have are waited for, and by nobody but those who asked for them: each fragment is
read once, when it is first needed, whoever comes and goes meanwhile; and what cannot be read, or changes while it is
read, is given to nobody as if it were whole."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.loop import Loop, get, looping, make_server
from support.site import open_below, pattern

SIZES = {"tiny.txt": 5, "small.bin": 5_000, "one.bin": 60_000, "large.bin": 300_000, "window.bin": 3_000_000}
CACHED_MAX = 1 << 20


@contextmanager
def cold(root: Path, **more: object) -> Iterator[Loop]:
    """A loop with a disk that is as slow as the test lets it be; at its end nothing may be left of any file."""
    for name, size in SIZES.items():
        (root / name).write_bytes(pattern(size))
    with looping(make_server(root=str(root), cached_file_size_bytes_max=CACHED_MAX, **more)) as loop:
        loop.engine.pretend_cold(True)
        loop.engine.slow_disk = True
        yield loop
        loop.engine.slow_disk = False
        loop.settle()
        loop.close_all()
        stats = loop.stats["cache"]
        assert stats["fragments"]["pins"] == stats["fragments"]["files"] == stats["page_cache"]["pieces"] == 0
        assert loop.stats["fills"]["under_way"] == 0
        assert open_below(root) == 0
        loop.server.cache.purge(prefix="")
        assert loop.stats["cache"]["arena"]["pieces"] == loop.stats["cache"]["fragments"]["living"] == 0


@pytest.mark.parametrize("late_sends", [False, True])
@pytest.mark.parametrize("name", SIZES)
def test_who_asks_waits_and_nobody_else(tmp_path: Path, name: str, late_sends: bool) -> None:
    (tmp_path / "empty.txt").write_bytes(b"")
    with cold(tmp_path) as loop:
        loop.engine.late_sends = late_sends
        client = loop.connect(get(f"/{name}") + get("/nothing"))
        loop.settle()
        assert loop.engine.output(client) == b"" or name == "window.bin"
        assert loop.engine.reads_waiting == 1
        assert loop.ask(get("/empty.txt")).status == 200
        assert loop.ask(get(f"/{name}", method="HEAD"), method="HEAD").headers["content-length"] == str(SIZES[name])
        loop.engine.slow_disk = False
        loop.settle()
        bodies = [reply.body for reply in loop.replies(client)] if name != "window.bin" else None
        assert bodies in (None, [pattern(SIZES[name]), b"404 Not Found\n"])


def test_each_fragment_is_read_once_for_all(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        clients = [loop.connect(get("/large.bin")) for _ in range(5)]
        loop.settle()
        assert loop.engine.reads_waiting == 1
        goer = loop.connect(get("/large.bin"))
        loop.settle()
        loop.engine.reset(goer)
        loop.engine.slow_disk = False
        loop.settle()
        for client in clients:
            assert loop.replies(client)[0].body == pattern(300_000)
        assert loop.stats["cache"]["fragments"]["read_later"] == 5
        assert loop.outcomes == {"file": 1, "hit": 5}
        assert loop.ask(get("/large.bin")).body == pattern(300_000)
        assert loop.stats["cache"]["fragments"]["read_later"] == 5


def test_what_is_not_needed_is_not_read(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        loop.engine.slow_disk = False
        fragments = loop.stats["cache"]["fragments"]
        assert loop.ask(get("/large.bin", method="HEAD"), method="HEAD").status == 200
        assert loop.ask(get("/large.bin", "If-None-Match: *")).status == 304
        assert loop.stats["cache"]["fragments"]["read_later"] == fragments["read_later"] == 0
        for first, last, reads in ((200_000, 200_010, 1), (200_000, 200_100, 1), (140_000, 200_000, 2), (0, 9, 3)):
            reply = loop.ask(get("/large.bin", f"Range: bytes={first}-{last}"))
            assert (reply.status, reply.body) == (206, pattern(300_000)[first : last + 1])
            assert loop.stats["cache"]["fragments"]["read_later"] == reads
        assert loop.stats["cache"]["fragments"]["present"] == 3
        assert loop.stats["cache"]["fragments"]["files"] == 0, "nobody needs the file any more"
        assert loop.ask(get("/large.bin")).body == pattern(300_000)


def test_those_who_vanish_while_they_wait_leave_nothing(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        for name in SIZES:
            clients = [loop.connect(get(f"/{name}")) for _ in range(3)]
            loop.settle()
            for client in clients:
                loop.engine.reset(client)
            loop.settle()
        loop.engine.slow_disk = False
        loop.settle()
        assert loop.stats["connections"]["open"] == 0
        assert loop.ask(get("/large.bin")).body == pattern(300_000)


def test_a_disk_that_fails_breaks_off_those_who_wait(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        for name in SIZES:
            clients = [loop.connect(get(f"/{name}")) for _ in range(3)]
            loop.settle()
            loop.engine.fail_next_read(errno.EIO)
            loop.engine.slow_disk = False
            loop.settle()
            ended = [loop.engine.is_closed(client) for client in clients]
            # Each has its own window over a file that is not kept.
            assert sum(ended) == (1 if name == "window.bin" else 3)
            assert not any(loop.engine.is_finished(client) for client, end in zip(clients, ended, strict=True) if end)
            assert loop.ask(get(f"/{name}")).body == pattern(SIZES[name])
            loop.engine.slow_disk = True
        assert loop.stats["cache"]["fragments"]["reads_failed"] == len(SIZES)


@pytest.mark.parametrize("change", ["rewritten", "shorter", "longer", "truncated"])
def test_a_file_that_changes_while_it_is_waited_for(tmp_path: Path, change: str) -> None:
    fresh = {"rewritten": b"b" * 300_000, "shorter": b"b" * 9, "longer": b"b" * 400_000, "truncated": b""}[change]
    with cold(tmp_path) as loop:
        client = loop.connect(get("/large.bin"))
        loop.settle()
        (tmp_path / "large.bin").write_bytes(fresh)
        os.utime(tmp_path / "large.bin", (1, 1))
        loop.engine.slow_disk = False
        loop.settle()
        assert loop.engine.is_closed(client) and not loop.engine.is_finished(client)
        assert loop.ask(get("/large.bin")).body == fresh
        assert loop.ask(get("/large.bin")).body == fresh


def test_a_file_that_is_replaced_while_it_is_waited_for(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        old = loop.connect(get("/large.bin"))
        loop.settle()
        (tmp_path / "fresh").write_bytes(b"fresh")
        (tmp_path / "fresh").replace(tmp_path / "large.bin")
        new = loop.connect(get("/large.bin"))
        loop.settle()
        loop.engine.slow_disk = False
        loop.settle()
        assert loop.replies(old)[0].body == pattern(300_000), "it was that one that was asked for"
        assert loop.replies(new)[0].body == b"fresh"


def test_a_file_that_vanished_before_the_rest_of_it_was_read(tmp_path: Path) -> None:
    with cold(tmp_path, file_revalidate_s=999.0) as loop:
        loop.engine.slow_disk = False
        assert loop.ask(get("/large.bin", "Range: bytes=0-9")).status == 206
        (tmp_path / "large.bin").unlink()
        assert loop.ask(get("/large.bin")).status == 404


def test_a_purge_while_it_is_waited_for(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        client = loop.connect(get("/large.bin"))
        loop.settle()
        assert loop.server.cache.purge(prefix="/") == 1
        other = loop.connect(get("/large.bin"))
        loop.settle()
        assert loop.engine.reads_waiting == 2, "the purged object is not used again"
        loop.engine.slow_disk = False
        loop.settle()
        assert [loop.replies(one)[0].body for one in (client, other)] == [pattern(300_000)] * 2


def test_a_client_that_waits_too_long_is_cut_off(tmp_path: Path) -> None:
    with cold(tmp_path, send_timeout_s=5.0) as loop:
        client = loop.connect(get("/large.bin"))
        loop.settle()
        loop.settle(4_000_000)
        assert not loop.engine.is_closed(client)
        loop.settle(2_000_000)
        assert loop.engine.is_closed(client)


def test_a_file_too_large_to_be_kept_takes_little_memory(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        loop.engine.slow_disk = False
        client = loop.connect(get("/window.bin"))
        loop.engine.send_limit(client, 100)
        loop.settle()
        body = b""
        for _ in range(60):
            loop.engine.send_limit(client, 60_000)
            loop.settle()
            assert loop.stats["cache"]["page_cache"]["pieces"] <= 2
            body += loop.engine.output(client)
        assert body.endswith(pattern(3_000_000))
        assert loop.stats["cache"]["objects"] == 0


steps = st.lists(st.tuples(st.sampled_from(sorted(SIZES)), st.integers(0, 5), st.integers(0, 200_000)), max_size=25)


@given(steps)
def test_any_mixture_of_comers_and_goers(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]]
) -> None:
    with cold(tmp_path_factory.mktemp("root")) as loop:
        under_way: list[tuple[int, str]] = []
        for name, what, number in steps:
            if what <= 2:
                client = loop.connect(get(f"/{name}"))
                loop.engine.send_limit(client, None if what else number)
                under_way.append((client, name))
            elif what == 3 and under_way:
                client, _ = under_way.pop(number % len(under_way))
                loop.engine.reset(client)
            elif what == 4:
                loop.server.cache.purge(url=f"/{name}")
            else:
                loop.engine.slow_disk = not loop.engine.slow_disk
            loop.turn()
        loop.engine.slow_disk = False
        for client, _ in under_way:
            loop.engine.send_limit(client, None)
        loop.settle()
        for client, name in under_way:
            assert [reply.body for reply in loop.replies(client)] == [pattern(SIZES[name])]
