"""Whatever is taken from the arena and given back, in whatever order: no two pieces overlap, none crosses a block, what
is written into one stays as it is, the room is bounded and all of it comes back, and a mistake is found out."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from batchbridge.cython_ext.arena_testing import BLOCK_SIZE_BYTES, UNIT_SIZE_BYTES, LoneArena

CHUNK_SIZE_BYTES = 2 << 20
BLOCKS_IN_CHUNK = CHUNK_SIZE_BYTES // BLOCK_SIZE_BYTES

sizes = st.one_of(
    st.integers(1, BLOCK_SIZE_BYTES),
    st.sampled_from([1, UNIT_SIZE_BYTES, UNIT_SIZE_BYTES + 1, 65_536, 65_537, BLOCK_SIZE_BYTES]),
)


def units_of(size_bytes: int) -> int:
    return -(-size_bytes // UNIT_SIZE_BYTES)


class ArenaModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.arena = LoneArena(2 * CHUNK_SIZE_BYTES)
        self.taken: dict[int, tuple[int, int]] = {}
        self.mark = 0

    @rule(size_bytes=sizes)
    def take(self, size_bytes: int) -> None:
        self.mark = self.mark % 255 + 1
        at = self.arena.take(size_bytes, self.mark)
        if at is None:
            # There may be no room only where every block is cut up or full.
            free = 2 * CHUNK_SIZE_BYTES // UNIT_SIZE_BYTES - self.arena.stats()["units"]
            assert free < 2 * BLOCKS_IN_CHUNK * units_of(size_bytes)
            return
        assert at % UNIT_SIZE_BYTES == 0
        assert at // BLOCK_SIZE_BYTES == (at + size_bytes - 1) // BLOCK_SIZE_BYTES, "it crosses a block"
        end = at + units_of(size_bytes) * UNIT_SIZE_BYTES
        for other, (other_size, _) in self.taken.items():
            assert end <= other or other + units_of(other_size) * UNIT_SIZE_BYTES <= at, "it overlaps another"
        self.taken[at] = (size_bytes, self.mark)

    @rule(chance=st.randoms(use_true_random=False))
    def give(self, chance: random.Random) -> None:
        if self.taken:
            at = chance.choice(sorted(self.taken))
            size_bytes, mark = self.taken.pop(at)
            assert self.arena.bytes_at(at, size_bytes) == bytes([mark]) * size_bytes
            assert self.arena.give(at)

    @rule(chance=st.randoms(use_true_random=False))
    def give_what_was_not_taken(self, chance: random.Random) -> None:
        at = chance.randrange(-5, 5 * CHUNK_SIZE_BYTES) if chance.random() < 0.5 else chance.randrange(100) * 4096
        if at >= 0 and at not in self.taken:
            before = self.arena.stats()["faults"]
            assert not self.arena.give(at)
            assert self.arena.stats()["faults"] == before + 1

    @invariant()
    def counts(self) -> None:
        stats = self.arena.stats()
        assert stats["pieces"] == len(self.taken)
        assert stats["units"] == sum(units_of(size_bytes) for size_bytes, _ in self.taken.values())
        assert stats["chunks_open"] == len(self.arena.opened) - len(self.arena.closed) <= 2
        assert stats["chunks_registered"] == stats["chunks_open"]
        used = {at // CHUNK_SIZE_BYTES for at in self.taken}
        assert len(used) <= stats["chunks_open"] <= len(used) + 1, "one empty chunk at most is kept"
        assert all(self.arena.registered_chunk(at) == at // CHUNK_SIZE_BYTES for at in self.taken)


TestArenaModel = ArenaModel.TestCase
TestArenaModel.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)


def test_all_of_it_can_be_taken_and_comes_back() -> None:
    arena = LoneArena(3 * CHUNK_SIZE_BYTES)
    for _ in range(3):
        taken = []
        while (at := arena.take(BLOCK_SIZE_BYTES // 2)) is not None:
            taken.append(at)
        assert len(set(taken)) == len(taken) == 3 * BLOCKS_IN_CHUNK * 2
        stats = arena.stats()
        assert stats["units"] * UNIT_SIZE_BYTES == stats["size_bytes"]
        random.Random(1).shuffle(taken)
        assert sum(arena.give(at) for at in taken) == len(taken)
        stats = arena.stats()
        assert (stats["units"], stats["pieces"], stats["chunks_open"], stats["chunks_registered"]) == (0, 0, 1, 1)
    assert arena.stats()["refused"] == 3


def test_a_piece_given_back_twice_is_found_out() -> None:
    arena = LoneArena(CHUNK_SIZE_BYTES)
    first, second = arena.take(10_000), arena.take(10_000)
    assert first is not None and second is not None
    assert arena.give(first)
    assert not arena.give(first)
    assert not arena.give(second + UNIT_SIZE_BYTES), "the middle of a piece is no piece"
    assert not arena.give(second + 1)
    assert arena.give(second)
    assert arena.stats()["faults"] == 3
    assert arena.stats()["units"] == 0


@given(st.lists(sizes, max_size=40))
def test_small_pieces_leave_whole_blocks_to_large_ones(small: list[int]) -> None:
    arena = LoneArena(2 * CHUNK_SIZE_BYTES)
    small = [size_bytes % 8192 + 1 for size_bytes in small]
    for size_bytes in small:
        arena.take(size_bytes)
    blocks = -(-sum(map(units_of, small)) // 32) + 1
    for _ in range(2 * BLOCKS_IN_CHUNK - blocks):
        assert arena.take(BLOCK_SIZE_BYTES) is not None


@pytest.mark.parametrize("size_bytes", [0, BLOCK_SIZE_BYTES + 1, 1 << 30])
def test_sizes_that_no_piece_can_have(size_bytes: int) -> None:
    arena = LoneArena(CHUNK_SIZE_BYTES)
    assert arena.take(0 if size_bytes == 0 else min(size_bytes, BLOCK_SIZE_BYTES + 1)) is None
    assert arena.stats()["chunks_open"] == 0


def test_an_arena_of_nothing_refuses_everything() -> None:
    arena = LoneArena(0)
    assert arena.take(1) is None
    assert not arena.give(0)


def test_a_chunk_that_is_not_registered_is_still_used() -> None:
    arena = LoneArena(CHUNK_SIZE_BYTES, registers=False)
    at = arena.take(100)
    assert at is not None and arena.registered_chunk(at) is None
    assert arena.give(at)
    assert arena.closed == []


def test_a_huge_arena_has_larger_chunks_and_costs_nothing_untouched() -> None:
    from pathlib import Path

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()
    arena = LoneArena(1 << 38)
    assert arena.stats()["size_bytes"] // arena.stats()["chunk_size_bytes"] <= 16_000
    assert arena.take(65_536) is not None
    assert resident_bytes() - before < 8 << 20
