"""Histograms lose no more than their bound says, agree with numpy, and leave in HdrHistogram's forms and come back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchbridge.cython_ext.histogram import bucket_bounds, count_all, percentile
from batchbridge.measure.histogram import HistogramError, decode, encode, from_hgrm, to_hgrm

SHARES = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0)

times = st.lists(st.integers(0, 2**35), min_size=1, max_size=300)


@given(st.integers(0, 2**35))
def test_a_bucket_is_narrow(time_us):
    least, largest = bucket_bounds(time_us)
    assert least <= time_us <= largest
    assert largest - least < max(1, time_us / 1024)
    assert bucket_bounds(largest + 1)[0] == largest + 1


def test_what_is_longer_than_all_buckets_is_in_the_last():
    assert bucket_bounds(2**60) == bucket_bounds(2**36 - 1)


def test_percentiles():
    histogram = [(10, 90), (20, 9), (30, 1)]
    assert [percentile(histogram, share) for share in (0.5, 0.9, 0.95, 0.99, 1.0)] == [10, 10, 20, 20, 30]
    assert percentile([], 0.5) == 0


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "draw",
    [
        lambda random: random.exponential(700, 20_000),
        lambda random: random.lognormal(7, 2, 20_000),
        lambda random: np.concatenate([random.uniform(50, 90, 9_900), random.uniform(2e5, 2.2e5, 100)]),
        lambda random: random.integers(0, 5, 1_000),
    ],
)
def test_percentiles_are_those_of_numpy(seed, draw):
    values = draw(np.random.default_rng(seed)).astype(int)
    histogram = [(bucket_bounds(least_us)[1], count) for least_us, count in count_all(values.tolist())]
    for share in SHARES:
        exact = np.quantile(values, share, method="inverted_cdf")
        assert exact <= percentile(histogram, share) <= exact * (1 + 1 / 1024)


@given(times)
def test_every_time_is_counted_once(values):
    histogram = count_all(values)
    assert sum(count for _, count in histogram) == len(values)
    assert histogram == sorted(histogram)


@given(times)
def test_the_table_of_percentiles_is_read_again(values):
    histogram = count_all(values)
    assert from_hgrm(to_hgrm(histogram)) == histogram


def test_a_table_of_percentiles():
    text = to_hgrm([(100, 90), (200, 9), (5000, 1)])
    lines = text.splitlines()
    assert lines[0].split() == ["Value", "Percentile", "TotalCount", "1/(1-Percentile)"]
    assert lines[2].split() == ["100.000", "0.900000000000", "90", "10.00"]
    assert lines[4].split() == ["5003.000", "1.000000000000", "100"]
    assert lines[5].startswith("#[Mean    =      158.0")
    assert from_hgrm(to_hgrm([])) == []


@given(times)
def test_the_encoded_form_is_read_again(values):
    histogram = count_all(values)
    assert decode(encode(histogram)) == histogram


def test_the_library_agrees():
    from hdrh.histogram import HdrHistogram

    values = np.random.default_rng(3).lognormal(6, 2, 5_000).astype(int).tolist()
    theirs = HdrHistogram(1, 2**36 - 1, 3)
    for value in values:
        theirs.record_value(value)
    assert decode(theirs.encode().decode()) == count_all(values)
    ours = [(bucket_bounds(least_us)[1], count) for least_us, count in count_all(values)]
    for share in (0.5, 0.9, 0.99, 1.0):
        assert percentile(ours, share) == theirs.get_value_at_percentile(share * 100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "its first line"),
        ("Value Count\n1 2\n", "its first line"),
        (to_hgrm([(1, 5), (2, 5)]).replace("10", "3"), "line 4 is no row"),
        (to_hgrm([(1, 5)]).replace("1.000", "one"), "line 3 is no row"),
        (to_hgrm([(1, 5)]).replace("       5", "      -5"), "line 3 is no row"),
    ],
)
def test_what_is_no_table_is_refused(text, message):
    with pytest.raises(HistogramError, match=message):
        from_hgrm(text)


@pytest.mark.parametrize("text", ["", "not base64!", "HISTFAAAAAB4nJNp", encode([(1, 1)])[:-9]])
def test_what_is_not_encoded_is_refused(text):
    with pytest.raises(HistogramError, match="no encoded histogram"):
        decode(text)
