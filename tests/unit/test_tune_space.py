"""The settings that a sweep tries are within bounds, none is tried twice, and blocks hold every one of them once."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchbridge.policy import BatchPolicy
from batchbridge.tune.space import DELAYS_US, SIZES, Candidate, coarse_grid, order, refinement

sizes = st.lists(st.integers(1, 65_536), min_size=1, max_size=6)
delays = st.lists(st.integers(0, 60_000_000), min_size=1, max_size=6)
candidates = st.builds(Candidate, st.integers(1, 65_536), st.integers(0, 60_000_000))


@given(sizes, delays, st.none() | candidates, st.none() | st.integers(1, 100_000))
def test_the_coarse_grid_is_every_size_with_every_delay(sizes, delays, present, p99_us):
    grid = coarse_grid(sizes, delays, present=present, p99_us=p99_us)
    assert grid == sorted(set(grid))
    assert present is None or present in grid
    rest = [candidate for candidate in grid if candidate != present]
    assert {candidate.max_batch_size for candidate in rest} <= set(sizes)
    for candidate in rest:
        assert candidate.max_queue_delay_us in delays
        # A delay as long as the goal leaves nothing for the work; the least one is tried all the same.
        assert p99_us is None or candidate.max_queue_delay_us < max(p99_us, min(delays) + 1)
    kept = {delay for delay in delays if p99_us is None or delay < p99_us} or {min(delays)}
    assert set(grid) - {present} == {Candidate(s, d) for s in sizes for d in kept} - {present}


@given(st.sets(candidates, min_size=1, max_size=20), st.data())
def test_refinement_is_new_and_between_the_neighbours(tried, data):
    best = data.draw(st.sampled_from(sorted(tried)))
    found = refinement(tried, best)
    assert len(found) <= 4 and not set(found) & tried and found == sorted(set(found))
    for candidate in found:
        BatchPolicy(**candidate._asdict())  # within the bounds of a policy
        along_sizes = candidate.max_queue_delay_us == best.max_queue_delay_us
        assert along_sizes or candidate.max_batch_size == best.max_batch_size
        field = 0 if along_sizes else 1
        low, high = sorted((candidate[field], best[field]))
        beyond = [other[field] for other in tried if low < other[field] < high]
        assert not beyond, "nothing that was tried lies between the best and what is new"
        assert min(c[field] for c in tried) < candidate[field] < max(c[field] for c in tried)


def test_refinement_of_the_grid_is_as_one_would_expect():
    grid = coarse_grid(SIZES, DELAYS_US)
    assert refinement(grid, Candidate(16, 400)) == [
        Candidate(8, 400), Candidate(16, 200), Candidate(16, 800), Candidate(32, 400),
    ]  # fmt: skip
    assert refinement(grid, Candidate(1, 0)) == [Candidate(1, 50), Candidate(2, 0)]
    assert refinement([Candidate(1, 0), Candidate(2, 0)], Candidate(2, 0)) == [], "no room between 1 and 2"
    assert refinement([Candidate(7, 7)], Candidate(7, 7)) == []


@given(st.sets(candidates, min_size=1, max_size=8), st.integers(1, 5), st.integers(0, 1000))
def test_each_block_has_every_setting_once(chosen, blocks, seed):
    runs = order(sorted(chosen), range(blocks), seed)
    assert runs == order(sorted(chosen, reverse=True), range(blocks), seed), "an interrupted sweep finds the same order"
    for block in range(blocks):
        assert sorted(candidate for at, candidate in runs if at == block) == sorted(chosen)
    assert [block for block, _ in runs] == sorted(block for block, _ in runs)


def test_blocks_are_shuffled_differently():
    grid = coarse_grid(SIZES, DELAYS_US)
    runs = order(grid, range(4), 1)
    orders = {tuple(candidate for at, candidate in runs if at == block) for block in range(4)}
    assert len(orders) == 4


@pytest.mark.parametrize("candidate", [Candidate(1, 0), Candidate(65_536, 60_000_000)])
def test_a_setting_says_what_it_is(candidate):
    assert str(candidate) == f"max_batch_size {candidate[0]}, max_queue_delay_us {candidate[1]}"
