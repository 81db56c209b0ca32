"""Every byte and object of the cache is accounted for: after any amount of coming and going (a day's churn, compressed:
files and answers, of all sizes, evicted, expired, replaced, purged and sent slowly) nothing is left once it is cleared,
and the process has not grown.
"""

import gc
import random
from pathlib import Path
from typing import Any

import pytest

import batchbridge as bb
from batchbridge.cython_ext.cache_testing import ALL, PREFIX, TAG, URL, Store
from support.loop import Loop, get, make_server

ROUNDS = 4
STEPS = 20_000
GROWTH_BYTES_MAX = 8 << 20


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


def assert_no_memory_is_left(stats: Any) -> None:
    """Every fragment, pin and byte was given back, wherever it lay."""
    names = ("living", "present", "pins", "files")
    assert [stats["fragments"][name] for name in names] == [0] * len(names), stats["fragments"]
    assert [stats["arena"][name] for name in ("size_bytes", "pieces", "faults")] == [0] * 3, stats["arena"]
    assert [stats["plain_memory"][name] for name in ("size_bytes", "pieces")] == [0] * 2
    assert stats["page_cache"]["pieces"] == 0
    # What was mapped is given back, too, but for one chunk.
    assert stats["arena"]["open_size_bytes"] <= 2 << 20


def churn(store: Store, chance: random.Random, held: list[int]) -> None:
    for step in range(STEPS):
        number = int(chance.paretovariate(0.4)) % 5000
        key = b"/d%d/%d\0host\0%d\0" % (number % 40, number, step % 3)
        what = chance.random()
        if store.find(key, step) is None:
            tags = [b"t%d" % (number % 10), b"n%d" % number][: chance.randrange(3)]
            store.insert(
                key, bytes(chance.randrange(3000)), tags=tags, expires_us=step + chance.randrange(1, 9000),
                is_fragmented=what < 0.5,
            )  # fmt: skip
        elif what < 0.01:
            held.append(store.hold(key))
        elif what < 0.02:
            store.remove(key)
        if what > 0.99 and held:
            store.drop(held.pop(chance.randrange(len(held))))
        if what > 0.997:
            soft = step % 2 == 0
            store.purge(TAG, b"t%d" % chance.randrange(10), soft)
            store.purge(PREFIX, b"/d%d/" % chance.randrange(40), soft)
            store.purge(URL, key.partition(b"\0")[0], soft)


def test_nothing_leaks_under_random_operations() -> None:
    chance = random.Random(1)
    sizes = []
    for _ in range(ROUNDS):
        store = Store(500_000)
        held: list[int] = []
        churn(store, chance, held)
        stats = store.stats()
        assert min(stats["evictions"], stats["expired"], stats["purged"]) > 50, stats
        assert stats["leaving"] <= len(held)
        store.purge(ALL)
        while store.sweep(100):
            pass
        for number in held:
            store.drop(number)
        stats = store.stats()
        left = ("objects", "size_bytes", "unreclaimed", "groups", "leaving", "leaving_size_bytes")
        assert [stats[name] for name in left] == [0] * len(left)
        assert_no_memory_is_left(stats)
        assert stats["insertions"] >= stats["evictions"] + stats["expired"]
        del store
        gc.collect()
        sizes.append(resident_bytes())
    assert sizes[-1] - sizes[0] < GROWTH_BYTES_MAX, sizes


def test_a_million_urls_that_are_asked_for_once_stay_within_bounds() -> None:
    store = Store(4_000_000)
    store.fill(0, 1_000_000, 100, b"once")
    stats = store.stats()
    assert stats["size_bytes"] <= 4_000_000 and stats["groups"] == 3
    assert stats["insertions"] == stats["objects"] + stats["evictions"] == 1_000_000
    store.purge(ALL)
    while store.sweep(100):
        pass
    assert store.stats()["size_bytes"] == 0


@pytest.mark.parametrize("seed", [1, 2])
def test_the_engines_cache_is_empty_after_all_was_purged(tmp_path: Any, seed: int) -> None:
    chance = random.Random(seed)
    for number in range(30):
        (tmp_path / f"{number}.txt").write_bytes(bytes(chance.randrange(6000)))
    server = make_server(root=str(tmp_path), cache_size_bytes=60_000, zero_copy_size_bytes_min=2048)

    @server.batch("/h/{n}")
    def handler(batch: bb.Batch) -> list[bb.Response]:
        return [
            bb.Response(bytes(int(r.params["n"]) * 97 % 7000), cache_ttl_s=chance.randrange(4), tags=["t"])
            for r in batch
        ]

    with Loop(server) as loop:
        for step in range(1500):
            number = int(chance.paretovariate(0.5)) % 100
            client = loop.connect(get(f"/{number % 30}.txt" if step % 2 else f"/h/{number}"))
            loop.engine.send_limit(client, None if step % 5 else 1000)
            loop.settle(chance.randrange(100_000))
            if step % 100 == 0:
                server.cache.purge(
                    **chance.choice([{"tag": "t"}, {"prefix": "/h/"}, {"url": "/3.txt"}]), soft=step % 3 == 0
                )
            if step % 7 == 0:
                loop.engine.feed_end(client)
        assert loop.stats["cache"]["evictions"] > 10 and loop.stats["cache"]["size_bytes"] <= 60_000
        server.cache.purge(prefix="")
        loop.close_all()
        stats = loop.stats["cache"]
        left = ("objects", "size_bytes", "unreclaimed", "groups", "leaving", "leaving_size_bytes")
        assert [stats[name] for name in left] == [0] * len(left)
        assert_no_memory_is_left(stats)
