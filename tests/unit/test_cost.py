"""The cost's arithmetic on made samples and made /proc texts: busy time, steal and interrupts between two moments, and
the slope that is free of what is busy anyway.
"""

import os
import random

import pytest

from batchbridge.measure.cost import (
    CostError,
    Usage,
    _Sample,
    _ticks,
    interrupts,
    slope_of,
    slopes_by_block,
    usage_between,
)
from batchbridge.measure.results import Run

X86 = """           CPU0       CPU1       CPU2
 24:          1          0          0  IO-APIC   5-edge      ACPI:Ged
LOC:    7207597    6336322          5   Local timer interrupts
RES:        100        200        300   Rescheduling interrupts
CAL:       1000       2000       3000   Function call interrupts
TLB:         10         20         30   TLB shootdowns
ERR:          7
"""
ARM = """           CPU0       CPU1
IPI0:          5          6       Rescheduling interrupts
IPI1:         50         60       Function call interrupts
arch:         99         99       Something else
"""
STAT = """cpu  30 0 30 300 0 0 0 6 0 0
cpu0 10 1 10 100 2 3 4 2 50 50
cpu10 20 0 20 200 0 0 0 4 0 0
intr 5
"""


def test_interrupts_between_processors_are_counted_by_core():
    assert [interrupts(X86, cpu) for cpu in range(4)] == [1110, 2220, 3330, 0]
    assert [interrupts(ARM, cpu) for cpu in range(2)] == [55, 66]
    assert interrupts("", 0) == 0


def test_a_core_that_is_not_online_has_no_column():
    assert interrupts(X86.replace("CPU1 ", "CPU3 "), 3) == 2220


def test_ticks_leave_guest_time_out_which_is_in_user_time_already():
    assert _ticks(STAT, 0) == (2, 132)
    assert _ticks(STAT, 10) == (4, 244)
    assert _ticks(STAT, 1) == (0, 0)


def samples(idle_share, seconds=4, ipis_per_s=1000, steal_ticks=0):
    """Four a second; the loop gets `idle_share` of the core."""
    return [
        _Sample(
            at_us=5_000_000 + quarter * 250_000,
            own_ns=int(quarter * 250_000_000 * idle_share),
            ipis=quarter * ipis_per_s // 4,
            ticks=((quarter * steal_ticks, quarter * 25), (0, quarter * 25)),
        )
        for quarter in range(seconds * 4 + 1)
    ]


def test_busy_time_is_what_the_loop_lost_between_two_moments():
    usage = usage_between(samples(0.3), 5_600_000, 7_900_000, 1.0)
    assert usage.busy_share == pytest.approx(0.7) and usage.seconds == pytest.approx(2.3)
    assert usage.ipis == pytest.approx(2300)
    assert usage.us_per_request(230_000) == pytest.approx(7.0)
    assert usage.ipis_per_request(230_000) == pytest.approx(0.01)
    assert usage.us_per_request(0) is None and usage.ipis_per_request(0) is None


def test_the_share_that_the_servers_threads_had():
    watched = [_Sample(5_000_000 + 500_000 * half, 0, 0, ((0, 0),), threads_s=3.0 + 0.4 * half) for half in range(5)]
    assert usage_between(watched, 5_250_000, 6_750_000, None).threads_share == pytest.approx(0.8)


def test_what_an_idle_core_loses_is_not_the_servers():
    assert usage_between(samples(0.48), 5_000_000, 9_000_000, 0.96).busy_share == pytest.approx(0.5)
    assert usage_between(samples(0.97), 5_000_000, 9_000_000, 0.96).busy_share == 0.0


def test_a_core_that_others_use_has_no_cost():
    assert usage_between(samples(0.3), 5_000_000, 9_000_000, 0.5).busy_share is None
    assert usage_between(samples(0.3), 5_000_000, 9_000_000, None).us_per_request(5) is None


@pytest.mark.parametrize("time_us", [(4_999_999, 6_000_000), (6_000_000, 9_000_001), (6_000_000, 6_000_000)])
def test_a_time_that_was_not_watched_is_refused(time_us):
    with pytest.raises(CostError, match="not watched"):
        usage_between(samples(0.5), *time_us, 1.0)


def test_steal_above_one_hundredth_of_any_core_voids():
    stolen = usage_between(samples(0.5, steal_ticks=1), 5_100_000, 8_900_000, 1.0)
    assert stolen.steal_share == pytest.approx(0.04)
    assert "took 4.0% of a core" in stolen.steal_fault
    assert usage_between(samples(0.5), 5_100_000, 8_900_000, 1.0).steal_fault is None
    assert Usage(10.0, None, 0.01, 0).steal_fault is None and Usage(10.0, None, 0.011, 0).steal_fault is not None


def test_a_tick_or_two_void_no_short_run():
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    assert Usage(0.25, None, 2 / (0.25 * ticks_per_s), 0).steal_fault is None
    assert Usage(0.25, None, 3 / (0.25 * ticks_per_s), 0).steal_fault is not None


def cost_runs(us_per_request, base_share=0.02, noise=0.0, blocks=20):
    chance = random.Random(1)
    runs = []
    for block in range(blocks):
        for rate in (20_000, 40_000, 60_000, 80_000):
            busy_us_per_s = base_share * 1e6 + us_per_request * rate * (1 + chance.gauss(0, noise))
            runs.append(Run("a", block, {"rate_per_s": rate}, seconds=2.0, responses=rate * 2,
                            server_cpu_us_per_request=busy_us_per_s / rate))  # fmt: skip
    return runs


def test_the_slope_is_the_cost_without_what_is_busy_anyway():
    runs = cost_runs(5.4)
    assert runs[0].server_cpu_us_per_request == pytest.approx(6.4), "a single run has the base in it"
    assert slope_of(runs).mid == pytest.approx(5.4)
    noisy = slope_of(cost_runs(5.4, noise=0.03))
    assert noisy.mid == pytest.approx(5.4, rel=0.03) and 0.02 < noisy.high - noisy.low < 0.5


def test_each_block_has_a_slope_of_its_own():
    found = slopes_by_block(
        [*cost_runs(5.4, blocks=3), Run("a", 9, seconds=1.0, responses=5, server_cpu_us_per_request=1.0)]
    )
    assert found == {block: pytest.approx(5.4) for block in range(3)}


def test_without_two_rates_there_is_no_slope():
    assert slope_of([]) is None
    assert slope_of(cost_runs(5.4, blocks=1)[:1]) is None
    without_cost = [Run("a", 0, seconds=1.0, responses=count) for count in (5, 10)]
    assert slope_of(without_cost) is None
    void = [Run("a", 0, seconds=1.0, responses=count, server_cpu_us_per_request=1.0, valid=False, invalid_reason="No.")
            for count in (5, 10)]  # fmt: skip
    assert slope_of(void) is None and slopes_by_block(void) == {}
