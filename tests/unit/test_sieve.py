"""The cache evicts by SIEVE, keeps within its size, and forgets what it replaces: after any sequence of requests its
counters are those of a model in a few lines of Python, and who is asked again finds what the model says is there.
"""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchbridge as bb
from support.loop import Loop, get, make_server


class Sieve:
    """What SIEVE (Zhang et al., NSDI '24) is: a queue in the order of insertion, a visited bit, a hand that moves from
    old to new and spares, once, what was visited."""

    def __init__(self, size_bytes_max: int) -> None:
        self.size_bytes_max = size_bytes_max
        self.queue: list[str] = []  # from old to new
        self.sizes: dict[str, int] = {}
        self.visited: set[str] = set()
        self.hand: str | None = None
        self.hits = self.evictions = self.refused = 0

    def ask(self, key: str) -> bool:
        if key in self.sizes:
            self.hits += 1
            self.visited.add(key)
            return True
        return False

    def remove(self, key: str) -> None:
        place = self.queue.index(key)
        if self.hand == key:
            self.hand = self.queue[place + 1] if place + 1 < len(self.queue) else None
        del self.queue[place], self.sizes[key]
        self.visited.discard(key)

    def evict(self) -> None:
        place = self.queue.index(self.hand) if self.hand is not None else 0
        while self.queue[place] in self.visited:
            self.visited.remove(self.queue[place])
            place = (place + 1) % len(self.queue)
        victim = self.queue[place]
        self.hand = victim
        self.remove(victim)
        self.evictions += 1

    def insert(self, key: str, size: int) -> None:
        if size > self.size_bytes_max:
            self.refused += 1
            return
        if key in self.sizes:
            self.remove(key)
        while sum(self.sizes.values()) + size > self.size_bytes_max:
            self.evict()
        self.queue.append(key)
        self.sizes[key] = size


def serving(cache_size_bytes: int) -> Loop:
    server = make_server(cache_size_bytes=cache_size_bytes)
    server.batch("/{size}/{name}", on_error="fail")(
        lambda batch: [bb.Response(b"x" * int(request.params["size"]), cache_ttl_s=1000) for request in batch]
    )
    return Loop(server)


def overhead() -> int:
    """What an object takes beside its path and its body."""
    with serving(1 << 20) as loop:
        loop.ask(get("/0/a"))
        return int(loop.stats["cache"]["size_bytes"]) - len("/0/a")


OVERHEAD = overhead()


def size_of(path: str) -> int:
    return OVERHEAD + len(path) + int(path.split("/")[1])


def run(loop: Loop, model: Sieve, paths: list[str]) -> None:
    for path in paths:
        is_hit = model.ask(path)
        if not is_hit:
            model.insert(path, size_of(path))
        reply = loop.ask(get(path))
        assert ("age" in reply.headers) == is_hit, (path, model.queue)
        stats = loop.stats["cache"]
        assert stats["objects"] == len(model.queue)
        assert stats["size_bytes"] == sum(model.sizes.values()) <= model.size_bytes_max
        assert (stats["hits"], stats["evictions"], stats["refused"]) == (model.hits, model.evictions, model.refused)


paths = st.builds("/{}/{}".format, st.sampled_from([0, 100, 100, 1000, 5000]), st.sampled_from("abcdefgh"))


@given(st.lists(paths, max_size=60), st.integers(3, 9))
def test_the_cache_is_sieve(paths: list[str], objects: int) -> None:
    size = objects * (OVERHEAD + 110)
    with serving(size) as loop:
        run(loop, Sieve(size), paths)


@given(st.lists(st.tuples(paths, st.sampled_from(["ask", "ask", "ask", "purge", "expire"])), max_size=40))
def test_it_still_is_when_objects_go_for_other_reasons(steps: list[tuple[str, str]]) -> None:
    size = 5 * (OVERHEAD + 110)
    model = Sieve(size)
    with serving(size) as loop:
        for path, what in steps:
            if what == "ask":
                run(loop, model, [path])
            elif what == "purge":
                assert loop.server.cache.purge(url=path) == (path in model.sizes)
                if path in model.sizes:
                    model.remove(path)
            else:
                loop.turn(1001 * 1_000_000)
                for key in list(model.queue):  # each goes when it is asked for, or as a victim
                    model.remove(key)
                loop.server.cache.purge(prefix="/")


def test_what_was_hit_outlives_what_was_not() -> None:
    size = 4 * size_of("/100/a")
    with serving(size) as loop:
        model = Sieve(size)
        run(loop, model, [f"/100/{name}" for name in "abcd"])
        run(loop, model, ["/100/a", "/100/c"])  # hits
        run(loop, model, ["/100/e", "/100/f"])  # evict b and d
        assert model.queue == [f"/100/{name}" for name in "acef"]
        run(loop, model, ["/100/g", "/100/a"])


def test_an_object_as_large_as_the_cache_fits_and_one_byte_more_does_not() -> None:
    size = size_of("/5000/a")
    with serving(size) as loop:
        model = Sieve(size)
        run(loop, model, ["/5000/a", "/5000/a", "/5001/a", "/5000/a", "/5000/b", "/5000/a"])
        assert (model.hits, model.evictions, model.refused) == (2, 2, 1)


@pytest.mark.parametrize("count", [10, 1000])
def test_many_objects_share_buckets(count: int) -> None:
    size = count * (OVERHEAD + 20)
    with serving(size) as loop:
        for _ in range(2):
            for number in range(count):
                loop.ask(get(f"/0/{number}"))
        stats = loop.stats["cache"]
        assert (stats["objects"], stats["hits"], stats["evictions"]) == (count, count, 0)


def test_files_and_answers_share_the_cache(tmp_path: Any) -> None:
    (tmp_path / "file.txt").write_bytes(b"f" * 1000)
    server = make_server(root=str(tmp_path), cache_size_bytes=1000 + 3 * OVERHEAD)
    server.batch("/h/{n}")(lambda batch: [bb.Response(b"x" * 1000, cache_ttl_s=9) for _ in batch])
    with Loop(server) as loop:
        for _ in range(3):
            assert loop.ask(get("/file.txt")).body == b"f" * 1000
            assert loop.ask(get("/h/1")).body == b"x" * 1000
        stats = loop.stats["cache"]
        assert (stats["objects"], stats["hits"], stats["evictions"]) == (1, 0, 5)
