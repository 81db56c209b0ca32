"""An object's payload in fragments is the same payload: what is pinned stays as it was, whatever head the next send
writes before it, and however often the object is held, replaced and removed meanwhile (law 4)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchbridge.cython_ext.cache_testing import ALL, Store

KEY = b"/large"
SIZES = [1, 100, 4096, 65_023, 65_024, 65_025, 65_536, 131_072, 131_073, 300_000, 1 << 20]


def pattern(size_bytes: int, first: int = 0) -> bytes:
    return b"".join(b"%07x\n" % place for place in range(first, first + size_bytes // 8 + 1))[:size_bytes]


@pytest.mark.parametrize("size_bytes", SIZES)
def test_what_goes_in_comes_out(size_bytes: int) -> None:
    store = Store(4 << 20)
    assert store.insert(KEY, pattern(size_bytes), is_fragmented=True)
    assert store.find(KEY) == (pattern(size_bytes), False)
    fragments, arena = store.stats()["fragments"], store.stats()["arena"]
    assert fragments["living"] == fragments["present"] == arena["pieces"] == -(-(512 + size_bytes) // 65_536)
    assert store.stats()["size_bytes"] >= arena["size_bytes"] > size_bytes, "all that it takes is accounted for"
    store.remove(KEY)
    assert store.stats()["arena"]["size_bytes"] == store.stats()["fragments"]["living"] == 0


def test_a_fragment_is_pinned_by_itself() -> None:
    store = Store(4 << 20)
    store.insert(KEY, pattern(200_000), is_fragmented=True)
    held = store.hold(KEY)
    places = [store.pin(held, position) for position in (0, 70_000, 70_001, 199_999)]
    assert len(set(places)) == 3 and store.stats()["fragments"]["pins"] == 4
    store.purge(ALL)
    store.insert(KEY, b"another", is_fragmented=True)
    assert b"".join(store.pinned(held, place) for place in (places[0], places[1])) == pattern(131_072 - 512)
    for place in places:
        assert place is not None
        store.unpin(held, place)
    assert store.stats()["fragments"]["pins"] == 0
    assert store.drop(held) == pattern(200_000)
    assert store.find(KEY) == (b"another", False)


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(0, 9)), max_size=40))
def test_a_head_never_changes_under_a_send(steps: list[tuple[int, bool, int]]) -> None:
    """Sends that begin with one of four heads, and end in any order."""
    store = Store(4 << 20)
    payload = pattern(70_000)
    store.insert(KEY, payload, is_fragmented=True)
    held = store.hold(KEY)
    sends: list[tuple[int, bytes]] = []
    for which, ends, number in steps:
        if ends and sends:
            place, head = sends.pop(number % len(sends))
            assert store.pinned(held, place, len(head)) == head + payload[: 65_536 - 512]
            store.unpin(held, place)
        else:
            head = b"HTTP/1.1 200 OK\r\nDate: %d\r\n\r\n" % 10**which
            place_or_none = store.pin(held, 0, head)
            if place_or_none is not None:
                sends.append((place_or_none, head))
        heads = {head for _, head in sends}
        assert len(heads) <= 2, "there are two copies at most"
        assert store.stats()["arena"]["pieces"] <= 2 + max(1, len(heads))
    for place, head in sends:
        assert store.pinned(held, place, len(head)) == head + payload[: 65_536 - 512]
        store.unpin(held, place)
    assert store.stats()["arena"]["pieces"] == 2 == store.stats()["fragments"]["present"]
    assert store.find(KEY) == (payload, False)
    store.remove(KEY)
    assert store.drop(held) == payload
    assert store.stats()["arena"]["pieces"] == 0


def test_a_head_without_room_goes_by_itself() -> None:
    store = Store(4 << 20)
    store.insert(KEY, pattern(100_000), is_fragmented=True)
    held = store.hold(KEY)
    assert store.pin(held, 0, bytes(513)) is None
    place = store.pin(held, 0, bytes(512))
    assert place is not None
    store.unpin(held, place)
    store.drop(held)


def test_where_the_arena_is_full_fragments_lie_in_plain_memory() -> None:
    store = Store(2 << 20)
    held = []
    for number in range(40):
        # Removed at once and still referred to, as objects are that are sent slowly while others come.
        key = b"/%d" % number
        assert store.insert(key, pattern(120_000, number), is_fragmented=True)
        held.append(store.hold(key))
        store.remove(key)
    stats = store.stats()
    assert stats["arena"]["refused"] > 0 and stats["plain_memory"]["pieces"] > 0
    assert stats["arena"]["pieces"] + stats["plain_memory"]["pieces"] == stats["fragments"]["living"] == 80
    for number, reference in enumerate(held):
        assert store.drop(reference) == pattern(120_000, number)
    stats = store.stats()
    assert (stats["arena"]["size_bytes"], stats["plain_memory"]["size_bytes"], stats["plain_memory"]["pieces"]) == (
        0,
        0,
        0,
    )


def test_without_an_arena_all_of_it_lies_in_plain_memory() -> None:
    store = Store(0)
    assert not store.insert(KEY, pattern(100), is_fragmented=True), "nothing is kept"
    assert store.stats()["plain_memory"]["pieces"] == 0
