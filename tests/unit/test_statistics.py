"""Intervals, ratios, slopes and the share of the gap, on made data whose true values are known."""

import math
import random
from statistics import median

import pytest

from batchbridge.measure.results import Run
from batchbridge.measure.statistics import (
    Interval,
    at_least,
    bootstrap_interval,
    by_block,
    closed_gap,
    difference_interval,
    evidence_sentence,
    is_evidence,
    log_ratio_interval,
    ratio_interval,
    slope,
)


def drifting(seed, blocks=20, spread=0.3):
    """A factor for each block, which all arms of the block share: other programs, a warmer processor."""
    chance = random.Random(seed)
    return [math.exp(chance.gauss(0, spread)) for _ in range(blocks)]


def runs(arm, values, figure="requests_per_s"):
    return [Run(arm, block, **{figure: value}) for block, value in enumerate(values)]


def test_an_interval_holds_the_true_mean_as_often_as_it_says():
    chance = random.Random(7)
    held = sum(bootstrap_interval([chance.gauss(10, 2) for _ in range(20)], draws=500).contains(10) for _ in range(200))
    # 95% of 200 is 190; percentiles of 20 blocks fall a little short of it, by 2 points.
    assert 176 <= held <= 199


def test_an_interval_narrows_with_the_blocks():
    chance = random.Random(1)
    values = [chance.gauss(0, 1) for _ in range(400)]
    few, many = bootstrap_interval(values[:20]), bootstrap_interval(values)
    assert 3 < (few.high - few.low) / (many.high - many.low) < 7  # the root of 20 is 4.5


def test_an_interval_is_the_same_each_time_and_around_its_figure():
    values = [1.0, 2.0, 3.0, 10.0]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    low, mid, high = bootstrap_interval(values)
    assert mid == 4.0 and 1 <= low < mid < high <= 10
    assert bootstrap_interval(values, median).mid == 2.5
    assert bootstrap_interval([5.0] * 20) == Interval(5.0, 5.0, 5.0)


def test_one_value_tells_no_spread_and_none_nothing():
    assert bootstrap_interval([3.0]) == Interval(-math.inf, 3.0, math.inf)
    with pytest.raises(ValueError, match="no value"):
        bootstrap_interval([])


def test_pairing_within_blocks_takes_the_drift_out():
    chance = random.Random(3)
    factors = drifting(3)
    slow = runs("slow", [1000 * f for f in factors])
    fast = runs("fast", [1500 * f * math.exp(chance.gauss(0, 0.01)) for f in factors])
    low, mid, high = log_ratio_interval(fast, slow)
    assert low < 1.5 < high and high - low < 0.03 and mid == pytest.approx(1.5, rel=0.01)
    inverse = log_ratio_interval(slow, fast)
    assert inverse.mid == pytest.approx(1 / mid) and inverse.low == pytest.approx(1 / high)


def test_the_same_arm_twice_has_a_ratio_of_one():
    chance = random.Random(5)
    factors = drifting(5)
    one, two = ([1000 * f * math.exp(chance.gauss(0, 0.02)) for f in factors] for _ in range(2))
    interval = log_ratio_interval(runs("a", one), runs("a again", two))
    assert interval.contains(1.0) and not at_least(interval, 1.0)


def test_blocks_without_a_pair_and_invalid_runs_count_for_nothing():
    a = [*runs("a", [2.0, 4.0, 8.0]), Run("a", 3, requests_per_s=1e9, valid=False, invalid_reason="Wrong answers.")]
    b = [Run("b", 1, requests_per_s=2.0), Run("b", 2, requests_per_s=4.0), Run("b", 3, requests_per_s=1.0)]
    assert log_ratio_interval(a, b) == Interval(2.0, 2.0, 2.0)
    assert log_ratio_interval(a, []) is None
    assert ratio_interval({0: 0.0}, {0: 1.0}) is None
    assert difference_interval({0: 5.0, 1: 7.0}, {1: 4.0, 0: 2.0}) == Interval(3.0, 3.0, 3.0)
    assert difference_interval({0: 1.0}, {1: 1.0}) is None


def test_a_figure_by_block_is_a_field_a_latency_or_a_function():
    made = [
        Run("a", 1, latency_us={"p99": 20.0}, responses=4),
        Run("a", 0, latency_us={"p99": 10.0}, server_cpu_us_per_request=3.0),
        Run("a", 1, latency_us={"p99": 40.0}),
    ]
    assert by_block(made, "latency_us.p99") == {0: 10.0, 1: 30.0}
    assert by_block(made, "latency_us.p50") == {}
    assert by_block(made, "server_cpu_us_per_request") == {0: 3.0}
    assert by_block(made, lambda run: run.responses or None) == {1: 4.0}


def test_at_least_asks_the_whole_interval():
    assert at_least(Interval(1.2, 1.3, 1.4), 1.2)
    assert not at_least(Interval(1.19, 1.3, 1.4), 1.2)


def test_evidence_takes_twenty_blocks():
    assert is_evidence(20) and not is_evidence(19)
    assert evidence_sentence(20) == ""
    assert "no evidence: 3 blocks of the 20" in evidence_sentence(3) and "1 block of" in evidence_sentence(1)


def costs(true, factors, noise, seed):
    chance = random.Random(seed)
    return {block: true * f * (1 + chance.gauss(0, noise)) for block, f in enumerate(factors)}


def test_the_share_of_the_gap_is_found():
    factors = drifting(9)
    gap = closed_gap(costs(8.0, factors, 0.01, 1), costs(5.4, factors, 0.01, 2), costs(5.2, factors, 0.01, 3))
    true = (8.0 - 5.4) / (8.0 - 5.2)
    assert gap.low < true < gap.high and gap.high - gap.low < 0.1
    exact = closed_gap({0: 8.0, 1: 8.0}, {0: 6.0, 1: 6.0}, {0: 4.0, 1: 4.0})
    assert exact == Interval(0.5, 0.5, 0.5)


def test_batching_beyond_kernel_mode_or_worse_than_none_is_told_as_it_is():
    factors = drifting(2)
    u1, k = costs(8.0, factors, 0.01, 1), costs(5.0, factors, 0.01, 2)
    assert closed_gap(u1, costs(4.0, factors, 0.01, 3), k).low > 1
    assert closed_gap(u1, costs(9.0, factors, 0.01, 4), k).high < 0


def test_the_share_of_no_gap_is_undefined():
    factors = drifting(4)
    same = costs(5.0, factors, 0.05, 1), costs(4.0, factors, 0.05, 2), costs(5.0, factors, 0.05, 3)
    assert closed_gap(*same) is None
    assert closed_gap({0: 8.0}, {0: 6.0}, {0: 4.0}) is None, "one block tells nothing of the spread"
    assert closed_gap({0: 8.0}, {1: 6.0}, {0: 4.0}) is None
    dearer = costs(5.0, factors, 0.01, 1), costs(4.0, factors, 0.01, 2), costs(6.0, factors, 0.01, 3)
    assert closed_gap(*dearer) is None, "there is no gap where kernel mode costs more"


def test_a_slope_is_free_of_what_is_busy_without_load():
    chance = random.Random(6)
    rates = [20_000.0, 40_000.0, 60_000.0, 80_000.0] * 5
    busy = [30_000 + 5.4 * rate + chance.gauss(0, 3000) for rate in rates]
    found = slope(rates, busy)
    assert found.low < 5.4 < found.high and found.high - found.low < 0.5
    exact = slope([1.0, 2.0, 3.0], [10.0, 12.0, 14.0])
    assert exact == pytest.approx((2.0, 2.0, 2.0))


def test_a_slope_takes_two_rates():
    with pytest.raises(ValueError, match="two different rates"):
        slope([5.0, 5.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="cannot be paired"):
        slope([1.0], [1.0, 2.0])
