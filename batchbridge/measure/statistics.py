"""What figures of several blocks say together: ratios and shares with their intervals, by bootstrap.

Every run of an arm stands in a block, and every block has a run of every arm, so what drifts with time falls on all
arms alike. Therefore arms are compared within blocks, and it is whole blocks that are drawn again, with replacement,
for an interval: 95% of the figures computed from such draws lie within it. A seed makes all of this repeatable.

Plain functions over lists of numbers: no clock, no files.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean, median
from typing import NamedTuple

from .results import Run

__all__ = [
    "BLOCKS_MIN",
    "Interval",
    "at_least",
    "bootstrap_interval",
    "by_block",
    "closed_gap",
    "difference_interval",
    "evidence_sentence",
    "is_evidence",
    "log_ratio_interval",
    "middle",
    "ratio_interval",
    "slope",
]

#: Blocks below which figures are a screening, and no claim.
BLOCKS_MIN = 20
CONFIDENCE = 0.95
DRAWS = 4_000
SEED = 1

Statistic = Callable[[Sequence[float]], float]


class Interval(NamedTuple):
    """A figure and where it lies with the confidence asked for. Without a spread (one value, no draws) infinite."""

    low: float
    mid: float
    high: float

    def contains(self, value: float) -> bool:
        """Whether the figure may as well be `value`."""
        return self.low <= value <= self.high


def is_evidence(blocks: int) -> bool:
    """Whether so many blocks are enough for a claim."""
    return blocks >= BLOCKS_MIN


def evidence_sentence(blocks: int) -> str:
    """What has to be said beside figures of so many blocks; "" where they are enough for a claim."""
    if is_evidence(blocks):
        return ""
    count = f"{blocks} block{'' if blocks == 1 else 's'}"
    return f"no evidence: {count} of the {BLOCKS_MIN} that a claim takes; the figures are a screening"


def at_least(interval: Interval, bound: float) -> bool:
    """Whether the figure is `bound` or more: the whole interval is."""
    return interval.low >= bound


def bootstrap_interval(
    values: Sequence[float],
    statistic: Statistic = fmean,
    *,
    confidence: float = CONFIDENCE,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval:
    """The statistic (mean, unless another is given) of one value per block, with its percentile interval.

    Raises ValueError without any value.
    """
    if not values:
        raise ValueError("there is no value to make an interval of")
    return _interval_of_draws(len(values), lambda drawn: statistic([values[i] for i in drawn]), confidence, draws, seed)


def by_block(runs: Iterable[Run], figure: str | Callable[[Run], float | None]) -> dict[int, float]:
    """One value per block: the figure of its valid runs, their mean where a block has several.

    `figure` is a field of `Run`, a latency as "latency_us.p99", or a function. Runs without the figure are left out.
    """
    found: dict[int, list[float]] = {}
    for run in runs:
        if run.valid and (value := _value_of(run, figure)) is not None:
            found.setdefault(run.block, []).append(value)
    return {block: fmean(values) for block, values in sorted(found.items())}


def log_ratio_interval(
    runs_a: Iterable[Run],
    runs_b: Iterable[Run],
    figure: str | Callable[[Run], float | None] = "requests_per_s",
    *,
    confidence: float = CONFIDENCE,
) -> Interval | None:
    """How many times a's figure is b's: the geometric mean of the ratios within blocks, with its interval.

    The figure is as in `by_block`. None where no block has both.
    """
    return ratio_interval(by_block(runs_a, figure), by_block(runs_b, figure), confidence=confidence)


def ratio_interval(
    a: Mapping[int, float], b: Mapping[int, float], *, confidence: float = CONFIDENCE
) -> Interval | None:
    """As `log_ratio_interval`, of values by block. Blocks where a value is not above 0 have no ratio."""
    common = [block for block in sorted(a.keys() & b.keys()) if a[block] > 0 and b[block] > 0]
    logarithms = [math.log(a[block] / b[block]) for block in common]
    if not logarithms:
        return None
    low, mid, high = bootstrap_interval(logarithms, confidence=confidence)
    return Interval(math.exp(low), math.exp(mid), math.exp(high))


def middle(values: Iterable[float | None]) -> float | None:
    """The median of those that are known; None without any."""
    known = [value for value in values if value is not None]
    return median(known) if known else None


def difference_interval(
    a: Mapping[int, float], b: Mapping[int, float], *, confidence: float = CONFIDENCE
) -> Interval | None:
    """By how much a is more than b, of values by block: the mean difference within blocks. None without any."""
    differences = [a[block] - b[block] for block in sorted(a.keys() & b.keys())]
    return bootstrap_interval(differences, confidence=confidence) if differences else None


def closed_gap(
    unbatched: Mapping[int, float],
    batched: Mapping[int, float],
    kernel: Mapping[int, float],
    *,
    confidence: float = CONFIDENCE,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval | None:
    """The share of the gap between unbatched user mode and kernel mode that batching closes.

    G = (c_unbatched - c_batched) / (c_unbatched - c_kernel), out of the mean costs of the blocks that have all three;
    1 is kernel mode's cost, 0 the unbatched one's. None where the gap itself may be nothing, or less (its interval is
    not above 0, or one block alone cannot tell), since a share of that means nothing.
    """
    blocks = sorted(unbatched.keys() & batched.keys() & kernel.keys())
    if not blocks:
        return None
    gaps = [unbatched[block] - kernel[block] for block in blocks]
    if bootstrap_interval(gaps, confidence=confidence, draws=draws, seed=seed).low <= 0.0:
        return None
    gains = [unbatched[block] - batched[block] for block in blocks]

    def share(drawn: Sequence[int]) -> float:
        gap = sum(gaps[i] for i in drawn)
        return sum(gains[i] for i in drawn) / gap if gap else math.nan

    return _interval_of_draws(len(blocks), share, confidence, draws, seed)


def slope(
    rates: Sequence[float],
    busy: Sequence[float],
    *,
    confidence: float = CONFIDENCE,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval:
    """How much more is busy for one more: the least-squares slope of `busy` on `rates`, pairs drawn again.

    With rates in requests/s and busy in microseconds/s, it is microseconds a request, free of what is busy without any
    request. Raises ValueError where the two differ in length, or there are fewer than two different rates.
    """
    if len(rates) != len(busy):
        raise ValueError(f"{len(rates)} rates cannot be paired with {len(busy)} busy times")
    if len(set(rates)) < 2:
        raise ValueError("a slope takes two different rates")

    def of(drawn: Sequence[int]) -> float:
        x, y = [rates[i] for i in drawn], [busy[i] for i in drawn]
        x_mean, y_mean = fmean(x), fmean(y)
        spread = sum((each - x_mean) ** 2 for each in x)
        # The same rate drawn each time has no slope: that draw tells nothing.
        return sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True)) / spread if spread else math.nan

    return _interval_of_draws(len(rates), of, confidence, draws, seed)


def _interval_of_draws(
    count: int, statistic: Callable[[Sequence[int]], float], confidence: float, draws: int, seed: int
) -> Interval:
    """The statistic of all `count` indices, and the percentiles of it over draws of as many with replacement."""
    mid = statistic(range(count))
    if count < 2 or draws == 0:
        return Interval(-math.inf, mid, math.inf)
    choose = random.Random(seed).choices
    everything = range(count)
    drawn = sorted(value for _ in range(draws) if not math.isnan(value := statistic(choose(everything, k=count))))
    beyond = (1 - confidence) / 2
    return Interval(_percentile(drawn, beyond), mid, _percentile(drawn, 1 - beyond))


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _value_of(run: Run, figure: str | Callable[[Run], float | None]) -> float | None:
    if callable(figure):
        return figure(run)
    name, _, part = figure.partition(".")
    value = getattr(run, name)
    if part:
        value = (value or {}).get(part)
    return None if value is None else float(value)
