"""Log-linear histograms of times: one addition to count, and a known bound on what is lost."""
from libc.stdint cimport uint32_t, uint64_t


cdef uint32_t bucket_of(uint64_t time_us) noexcept nogil:
    cdef uint32_t shift = 0
    while time_us >> shift >= EXACT:
        shift += 1
    return min(<uint32_t>(BUCKETS - 1), <uint32_t>(shift * (EXACT // 2) + (time_us >> shift)))


cdef uint64_t bucket_least(uint32_t bucket) noexcept nogil:
    cdef uint32_t shift = 0 if bucket < EXACT else bucket // (EXACT // 2) - 1
    return <uint64_t>(bucket - shift * (EXACT // 2)) << shift


cdef void histogram_add(Histogram *histogram, uint64_t time_us) noexcept nogil:
    histogram.count += 1
    histogram.sum_us += time_us
    histogram.max_us = max(histogram.max_us, time_us)
    histogram.buckets[bucket_of(time_us)] += 1


# --- as Python sees them ---------------------------------------------------------------------------------------------

def bucket_bounds(uint64_t time_us):
    """The least and the largest time that are counted together with this one."""
    cdef uint32_t bucket = bucket_of(time_us)
    return bucket_least(bucket), bucket_least(bucket + 1) - 1


def count_all(times_us):
    """The histogram of some times: (the least of a bucket, how many it counts), in rising order."""
    counts = {}
    for time_us in times_us:
        least = bucket_least(bucket_of(time_us))
        counts[least] = counts.get(least, 0) + 1
    return sorted(counts.items())


def percentile(histogram, share):
    """The time that `share` (0 to 1) of all do not exceed; 0 where there are none.

    `histogram`: pairs of a time and how many took it, in rising order.
    """
    total = sum(count for _, count in histogram)
    seen = 0
    for time_us, count in histogram:
        seen += count
        if seen >= total * share:
            return time_us
    return 0
