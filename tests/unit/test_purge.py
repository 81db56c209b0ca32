"""Law 3 in the cache itself: a purge has hit, when it returns, all that it names and nothing else, however many; says
how many; softly purged objects are stale and not gone; whoever serves copies learns of each that must go.
"""

import time
from typing import Any

import pytest

import batchbridge as bb
from batchbridge.cython_ext.cache_testing import ALL, PREFIX, TAG, URL, Store
from support.loop import Loop, get, looping, make_server

MANY = 20_000
"""More than a purge reclaims at once."""


def stocked(*keys: bytes, **how: Any) -> Store:
    store = Store(1 << 24)
    for key in keys:
        assert store.insert(key, key, **how)
    return store


def left(store: Store, *keys: bytes) -> list[bytes]:
    return [key for key in keys if store.find(key)]


# --- what a purge names -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prefix", "gone"),
    [
        (b"/a/", [b"/a/", b"/a/1", b"/a/1/2", b"/a/b/c/d", b"/a/1?x/"]),
        (b"/a/1", [b"/a/1", b"/a/1/2", b"/a/1?x/"]),
        (b"/a/1?x/", [b"/a/1?x/"]),
        (b"/a/b/c/", [b"/a/b/c/d"]),
        (b"/a", [b"/a/", b"/a/1", b"/a/1/2", b"/a/b/c/d", b"/a", b"/ab", b"/a/1?x/"]),
        (b"/b/", []),
        (b"/ab/", []),
    ],
)
def test_a_prefix_is_one_of_bytes(prefix: bytes, gone: list[bytes]) -> None:
    keys = [b"/a/", b"/a/1", b"/a/1/2", b"/a/b/c/d", b"/a", b"/ab", b"/", b"/c/a/", b"/a/1?x/"]
    store = stocked(*keys)
    assert store.purge(PREFIX, prefix) == len(gone)
    assert left(store, *keys) == [key for key in keys if key not in gone]
    assert store.purge(PREFIX, prefix) == 0


@pytest.mark.parametrize("depth", [1, 15, 16, 17, 40])
def test_directories_may_lie_deep(depth: int) -> None:
    inner = b"/" + b"".join(b"%d/" % level for level in range(depth))
    store = stocked(inner + b"x", inner + b"y/z", b"/other")
    assert store.purge(PREFIX, inner) == 2
    assert left(store, inner + b"x", inner + b"y/z", b"/other") == [b"/other"]


def test_counts_are_right_however_purges_of_directories_overlap() -> None:
    store = stocked(b"/a/b/1", b"/a/b/2", b"/a/3", b"/c/4")
    assert store.purge(PREFIX, b"/a/b/") == 2
    store.insert(b"/a/b/5")
    assert store.purge(PREFIX, b"/a/") == 2
    assert store.purge(PREFIX, b"/a/b/") == 0
    store.insert(b"/a/b/6")
    assert store.purge(PREFIX, b"/") == 2
    assert store.purge(PREFIX, b"/a/b/") == store.purge(PREFIX, b"/a/") == store.purge(ALL) == 0


VARIANTS = [b"/a\0host\0", b"/a\0host\0\1gzip\0", b"/a\0Other:80\0"]


@pytest.mark.parametrize(
    ("url", "gone"),
    [
        (b"/a", [*VARIANTS, b"/a"]),
        (b"/a\0host", [*VARIANTS[:2], b"/a"]),  # a file's object is for all hosts
        (b"/a\0HOST", [*VARIANTS[:2], b"/a"]),
        (b"/a\0other:80", [VARIANTS[2], b"/a"]),
        (b"/a\0hos", [b"/a"]),
        (b"/a\0hosts", [b"/a"]),
        (b"/a?q", [b"/a", b"/a?q\0host\0"]),  # a file answers whatever query is put behind it
        (b"/a?other", [b"/a"]),
        (b"/", []),
        (b"", []),
        (b"\0host", []),
        (b"?", []),
    ],
)
def test_a_url_has_variants(url: bytes, gone: list[bytes]) -> None:
    store = stocked(*VARIANTS, b"/a?q\0host\0", b"/ab\0host\0")
    store.insert(b"/a", is_file=True)
    keys = [*VARIANTS, b"/a", b"/a?q\0host\0", b"/ab\0host\0"]
    assert store.purge(URL, url) == len(gone)
    assert left(store, *keys) == [key for key in keys if key not in gone]


def test_a_url_may_have_very_many_variants() -> None:
    keys = [b"/a\0host\0\1%d\0" % number for number in range(3000)]
    store = stocked(*keys, b"/b")
    for key in keys[::3]:
        store.remove(key)
    assert store.purge(URL, b"/a") == 2000
    assert left(store, *keys, b"/b") == [b"/b"]


def test_an_object_goes_by_any_of_its_tags() -> None:
    store = Store(1 << 20)
    for number in range(6):
        store.insert(b"/%d" % number, tags=[b"even" if number % 2 == 0 else b"odd", b"all", b"n%d" % number, b"all"])
    assert store.purge(TAG, b"n0") == 1
    assert store.purge(TAG, b"even") == 2
    assert store.purge(TAG, b"al") == store.purge(TAG, b"") == 0
    assert store.purge(TAG, b"all") == 3
    assert store.stats()["objects"] == store.stats()["groups"] == 0


def test_an_object_that_comes_after_a_purge_is_not_hit_by_it() -> None:
    store = stocked(b"/a", tags=[b"t"])
    for kind, text in ((TAG, b"t"), (PREFIX, b"/"), (URL, b"/a"), (ALL, b"")):
        assert store.purge(kind, text) == 1
        assert store.find(b"/a") is None
        store.insert(b"/a", tags=[b"t"])
        assert store.find(b"/a") == (b"", False)


# --- many objects -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "text"), [(TAG, b"t"), (PREFIX, b"/numbers/"), (ALL, b"")])
def test_nothing_of_a_large_group_is_found_although_it_is_reclaimed_later(kind: int, text: bytes) -> None:
    store = Store(1 << 30)
    store.insert(b"/other/1", b"stays")
    assert store.fill(0, MANY, 100, b"t") == MANY
    assert store.purge(kind, text) == MANY + (kind == ALL)
    stats = store.stats()
    assert 0 < stats["unreclaimed"] < MANY
    assert stats["objects"] == (kind != ALL)
    for number in range(0, MANY, 97):
        assert store.find(b"/numbers/%08d" % number) is None
    rounds = 0
    while store.sweep(100):
        rounds += 1
    assert rounds > 10
    stats = store.stats()
    assert (stats["objects"], stats["unreclaimed"]) == (kind != ALL, 0)
    assert store.find(b"/other/1") == (None if kind == ALL else (b"stays", False))
    store.purge(URL, b"/other/1")
    assert store.stats()["size_bytes"] == 0


def test_what_died_with_a_directory_around_is_not_counted_again() -> None:
    store = Store(1 << 30)
    store.fill(0, MANY, 10)
    assert store.purge(PREFIX, b"/") == MANY
    assert store.stats()["unreclaimed"] > 0
    assert store.insert(b"/numbers/new") and store.insert(b"/numbers/newer")
    assert store.purge(PREFIX, b"/numbers/") == 2
    assert store.purge(PREFIX, b"/numbers/") == store.purge(PREFIX, b"/") == 0
    assert store.insert(b"/numbers/newest")
    assert store.purge(PREFIX, b"/") == 1
    while store.sweep(1000):
        pass
    assert store.stats()["size_bytes"] == 0


def test_insertions_reclaim_what_was_purged() -> None:
    store = Store(1 << 30)
    store.fill(0, MANY, 100, b"t")
    store.purge(TAG, b"t")
    store.fill(MANY, MANY, 100)
    stats = store.stats()
    assert (stats["objects"], stats["unreclaimed"]) == (MANY, 0)


def test_purges_may_follow_each_other_faster_than_they_are_reclaimed() -> None:
    store = Store(1 << 30)
    for _ in range(10):
        assert store.fill(0, MANY, 10, b"t") == MANY
        assert store.purge(TAG, b"t") >= MANY
        assert store.stats()["objects"] == 0
        assert store.purge(PREFIX, b"/numbers/") <= MANY  # those not reclaimed yet are counted once more
    while store.sweep(1000):
        pass
    stats = store.stats()
    assert (stats["objects"], stats["size_bytes"], stats["unreclaimed"], stats["groups"]) == (0, 0, 0, 0)


def test_a_purge_takes_no_longer_for_many() -> None:
    """Without a clock: a purge leaves what is beyond its step to others, whatever there is of it."""
    reclaimed = []
    for count in (MANY, 5 * MANY):
        store = Store(1 << 30)
        store.fill(0, count, 10, b"t")
        assert store.purge(TAG, b"t") == count
        reclaimed.append(count - store.stats()["unreclaimed"])
    assert max(reclaimed) < 2000


# --- softly -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "text"), [(TAG, b"t"), (PREFIX, b"/"), (PREFIX, b"/a"), (URL, b"/a"), (ALL, b"")])
def test_what_is_purged_softly_is_stale(kind: int, text: bytes) -> None:
    store = stocked(b"/a", tags=[b"t"])
    assert store.usable(b"/a")
    assert store.purge(kind, text, True) == 1
    assert store.find(b"/a") == (b"/a", True)
    assert not store.usable(b"/a")
    store.insert(b"/a", b"new", tags=[b"t"])
    assert store.find(b"/a") == (b"new", False)
    assert store.purge(kind, text) == 1
    assert store.find(b"/a") is None


def counting(**settings: Any) -> tuple[bb.Server, list[int]]:
    server = make_server(**settings)
    count = [0]

    @server.batch("/h/{name}")
    def handler(batch: bb.Batch) -> list[bb.Response]:
        count[0] += len(batch)
        return [bb.Response(str(count[0]), cache_ttl_s=100, tags=["t"]) for _ in batch]

    return server, count


@pytest.mark.parametrize("what", [{"tag": "t"}, {"url": "/h/a"}, {"url": "http://test/h/a"}, {"prefix": "/h/"}])
def test_a_stale_answer_is_renewed_by_the_first_and_given_to_others_meanwhile(what: dict[str, str]) -> None:
    server, count = counting()
    with looping(server) as loop:
        assert [loop.ask(get("/h/a")).text for _ in range(2)] == ["1", "1"]
        assert server.cache.purge(**what, soft=True) == 1
        first = loop.connect(get("/h/a"))
        loop.turn()
        others = [loop.connect(get("/h/a")) for _ in range(3)]
        loop.turn()
        assert [loop.replies(other)[0].text for other in others] == ["1"] * 3
        loop.settle()
        assert loop.replies(first)[0].text == "2"
        assert loop.ask(get("/h/a")).text == "2"
        assert count == [2]


def test_a_stale_answer_is_given_for_a_second_at_most() -> None:
    server, _ = counting()
    with looping(server) as loop:
        loop.ask(get("/h/a"))
        server.cache.purge(tag="t", soft=True)
        client = loop.connect(get("/h/a"))
        loop.turn()
        loop.engine.feed_end(client)  # it gives up, and so nothing is renewed
        loop.turn(999_000)
        other, third = loop.connect(get("/h/a")), loop.connect()
        loop.turn()
        assert loop.replies(other)[0].headers["age"] == "0"
        loop.turn(2_000)
        loop.send(third, get("/h/a"))
        loop.turn()
        assert loop.output(third) == b""  # it waits for the handler
        loop.settle()
        assert "age" not in loop.replies(third)[0].headers


def test_head_does_not_renew_and_gets_nothing_stale() -> None:
    server, _ = counting()
    with looping(server) as loop:
        loop.ask(get("/h/a"))
        server.cache.purge(tag="t", soft=True)
        reply = loop.ask(get("/h/a", method="HEAD"), method="HEAD")
        assert (reply.status, "age" in reply.headers) == (200, False)
        assert loop.ask(get("/h/a")).text == "3"


def test_a_hard_purge_ends_what_a_soft_one_left() -> None:
    server, _ = counting()
    with looping(server) as loop:
        loop.ask(get("/h/a"))
        server.cache.purge(tag="t", soft=True)
        client = loop.connect(get("/h/a"))
        loop.turn()
        assert server.cache.purge(tag="t") == 1
        other = loop.connect(get("/h/a"))
        loop.settle()
        assert {loop.replies(one)[0].text for one in (client, other)} == {"2", "3"}
        assert loop.ask(get("/h/a")).text == "3"  # what was asked for before the purge is not kept


def test_a_stale_file_is_looked_at_again_before_its_time(tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_bytes(b"old")
    server = make_server(root=str(tmp_path), file_revalidate_s=1000.0)
    with Loop(server) as loop:
        assert [loop.ask(get("/a.txt")).text for _ in range(2)] == ["old", "old"]
        assert server.cache.purge(url="/a.txt?any", soft=True) == 1
        assert loop.ask(get("/a.txt")).text == "old"
        assert loop.outcomes == {"file": 1, "hit": 2}
        (tmp_path / "b.txt").write_bytes(b"new")
        (tmp_path / "b.txt").rename(tmp_path / "a.txt")
        server.cache.purge(prefix="/", soft=True)
        assert loop.ask(get("/a.txt")).text == "new"


# --- copies elsewhere -------------------------------------------------------------------------------------------------


def test_whoever_serves_copies_is_told_of_each_that_must_go() -> None:
    store = Store(4000)
    went: list[bytes] = []

    def goes(key: bytes) -> None:
        went.append(key)
        assert store.withdrawn == went, (key, store.withdrawn)

    for what in ("replaced", "removed", "url", "expired", "soft"):
        store.insert(b"/a", expires_us=100)
        store.publish(b"/a")
        if what == "replaced":
            store.insert(b"/a")
        elif what == "removed":
            store.remove(b"/a")
        elif what == "expired":
            store.find(b"/a", 100)
        else:
            store.purge(URL, b"/a", what == "soft")
        goes(b"/a")
        store.insert(b"/a")
        store.remove(b"/a")  # not published: nobody is told
        assert store.withdrawn == went
    store.insert(b"/evicted")
    store.publish(b"/evicted")
    for number in range(100):
        store.insert(b"/%d" % number, bytes(1000))
        for _ in range(5):
            store.find(b"/%d" % number)
    goes(b"/evicted")


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize(("kind", "text"), [(TAG, b"t"), (PREFIX, b"/a/"), (ALL, b"")])
def test_a_purge_of_a_group_begins_a_new_epoch(kind: int, text: bytes, soft: bool) -> None:
    store = stocked(b"/a/b", tags=[b"t"])
    store.insert(b"/other")
    store.publish(b"/a/b")
    before = store.epoch
    assert store.purge(kind, text, soft) >= 1
    assert store.epoch > before
    assert store.find(b"/other") == (None if kind == ALL and not soft else (b"", kind == ALL and soft))
    assert store.find(b"/a/b") == ((b"/a/b", True) if soft else None)
    assert store.withdrawn == [b"/a/b"]


# --- by Python --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ({"prefix": "http://test/h/"}, "names a host"),
        ({"tag": "a\0b"}, "contains a NUL"),
        ({"url": "/a\0b"}, "contains a NUL"),
        ({"url": "\ud800"}, "cannot be written as UTF-8"),
        ({"url": "http://["}, "is not a URL"),
    ],
)
def test_what_can_name_nothing_is_refused(what: dict[str, str], words: str) -> None:
    with looping(counting()[0]) as loop, pytest.raises(bb.PurgeError, match=words):
        loop.server.cache.purge(**what)


@pytest.mark.parametrize(
    ("url", "count"),
    [
        ("http://test/h/a", 1),
        ("https://TEST/h/a", 1),
        ("http://other/h/a", 1),
        ("http://third/h/a", 0),
        ("http://test/h/a?q", 1),
        ("http://test", 0),
        ("/h/a", 2),
    ],
)
def test_a_url_may_name_its_host(url: str, count: int) -> None:
    server, _ = counting()
    with looping(server) as loop:
        for request in (get("/h/a"), get("/h/a?q"), get("/h/a").replace(b"Host: test", b"Host: other")):
            loop.ask(request)
        assert server.cache.purge(url=url) == count


def test_a_purge_of_a_hundred_thousand_returns_soon() -> None:
    """Far above what it takes, since this machine may be busy: it is `bench.lookups` that measures."""
    store = Store(1 << 30)
    store.fill(0, 100_000, 10, b"t")
    began = time.monotonic()
    assert store.purge(TAG, b"t") == 100_000
    assert time.monotonic() - began < 5
