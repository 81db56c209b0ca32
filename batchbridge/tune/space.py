"""Which settings a sweep tries: a coarse grid first, then what lies around its best. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from random import Random
from typing import NamedTuple

from ..policy import INTEGERS

__all__ = ["DELAYS_US", "SIZES", "Candidate", "coarse_grid", "order", "refinement"]

SIZES = (1, 4, 16, 64, 256)
DELAYS_US = (0, 100, 400, 1600)

SIZE_MIN, SIZE_MAX, _ = INTEGERS["max_batch_size"]
DELAY_US_MIN, DELAY_US_MAX, _ = INTEGERS["max_queue_delay_us"]


class Candidate(NamedTuple):
    """One setting of a route's batch policy."""

    max_batch_size: int
    max_queue_delay_us: int

    def __str__(self) -> str:
        return f"max_batch_size {self.max_batch_size}, max_queue_delay_us {self.max_queue_delay_us}"


def coarse_grid(
    sizes: Iterable[int], delays_us: Iterable[int], *, present: Candidate | None = None, p99_us: int | None = None
) -> list[Candidate]:
    """Every size with every delay, in rising order, and the present setting with them, so that there is a gain to tell.

    With a p99 to hold, delays as long as it are left out: waiting alone would use it up. The least delay stays.
    """
    delays = sorted(set(delays_us))
    if p99_us is not None:
        delays = [delay for delay in delays if delay < p99_us] or delays[:1]
    grid = {Candidate(size, delay) for size in set(sizes) for delay in delays}
    if present is not None:
        grid.add(present)
    return sorted(grid)


def refinement(tried: Iterable[Candidate], best: Candidate) -> list[Candidate]:
    """What lies halfway between the best and its neighbours on the grid, along each axis; none that was tried.

    Halfway is the geometric mean, since sizes and delays matter by their ratios; above a delay of 0, the half.
    """
    done = set(tried)
    sizes = sorted({candidate.max_batch_size for candidate in done} | {best.max_batch_size})
    delays = sorted({candidate.max_queue_delay_us for candidate in done} | {best.max_queue_delay_us})
    found = {Candidate(size, best.max_queue_delay_us) for size in _around(sizes, best.max_batch_size)}
    found |= {Candidate(best.max_batch_size, delay) for delay in _around(delays, best.max_queue_delay_us)}
    return sorted(found - done)


def _around(values: Sequence[int], middle: int) -> list[int]:
    """Between `middle` and the values next to it, where there is room."""
    place = values.index(middle)
    pairs = zip(values[max(0, place - 1) : place + 1], values[max(0, place - 1) + 1 : place + 2], strict=False)
    return [halfway for low, high in pairs if (halfway := _halfway(low, high)) not in (low, high)]


def _halfway(low: int, high: int) -> int:
    return round(math.sqrt(low * high)) if low > 0 else high // 2


def order(candidates: Sequence[Candidate], blocks: Iterable[int], seed: int) -> list[tuple[int, Candidate]]:
    """All runs: every candidate once in each block, each block in an order of its own that `seed` repeats.

    So what drifts with time falls on all candidates alike.
    """
    return [
        (block, candidate)
        for block in blocks
        for candidate in Random(f"{seed} {block}").sample(sorted(candidates), len(candidates))
    ]
