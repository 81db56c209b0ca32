"""An open loop's schedule has the rate and the arrivals that were asked for, and is the same for the same seed."""

import numpy as np
import pytest

from batchbridge.cython_ext.schedule import moments

COUNT = 100_000


def gaps(rate_per_s: float, arrivals: str, seed: int = 1) -> np.ndarray:
    return np.diff([0.0, *moments(rate_per_s, arrivals, seed, COUNT)])


@pytest.mark.parametrize("rate_per_s", [0.5, 3, 1_000, 70_000, 3_000_000])
def test_constant_gaps_add_up_to_the_rate(rate_per_s):
    due = moments(rate_per_s, "constant", 1, COUNT)
    assert due[0] == pytest.approx(1e9 / rate_per_s)
    assert due[-1] == pytest.approx(COUNT * 1e9 / rate_per_s, rel=1e-9)
    assert np.ptp(gaps(rate_per_s, "constant")) <= 1e-6 * due[-1] / COUNT + 1


@pytest.mark.parametrize("rate_per_s", [10, 50_000])
@pytest.mark.parametrize("seed", [0, 1, 2, 2**64 - 1])
def test_poisson_gaps_are_exponential(rate_per_s, seed):
    mean_ns = 1e9 / rate_per_s
    drawn = gaps(rate_per_s, "poisson", seed)
    # Five standard errors: of the mean 1/√n, of the variance √8/√n.
    assert drawn.mean() == pytest.approx(mean_ns, rel=5 / COUNT**0.5)
    assert drawn.var() == pytest.approx(mean_ns**2, rel=5 * (8 / COUNT) ** 0.5)
    assert drawn.min() >= 0
    # The whole distribution (Kolmogorov and Smirnov, at 1 in a million), and no memory from one gap to the next.
    heights = 1 - np.exp(-np.sort(drawn) / mean_ns)
    assert np.abs(heights - (np.arange(COUNT) + 0.5) / COUNT).max() < 2.7 / COUNT**0.5
    assert abs(np.corrcoef(drawn[:-1], drawn[1:])[0, 1]) < 5 / COUNT**0.5


def test_arrivals_in_a_window_vary_as_poisson_has_it():
    due = np.array(moments(1_000, "poisson", 3, COUNT))
    counts = np.bincount((due // 1e8).astype(int))[:-1]  # a hundred each, in a thousand windows
    assert counts.var() / counts.mean() == pytest.approx(1, abs=5 * (2 / len(counts)) ** 0.5)


def test_a_seed_decides():
    assert moments(1_000, "poisson", 7, 100) == moments(1_000, "poisson", 7, 100)
    assert moments(1_000, "poisson", 7, 100) != moments(1_000, "poisson", 8, 100)
    assert moments(1_000, "constant", 7, 100) == moments(1_000, "constant", 8, 100)
