# Counts of times in microseconds: exact up to EXACT, then EXACT/2 steps for each power of two, so that what is read
# back is at most 1/1024 (0.1%) above what was counted; up to 2**36 µs (19 hours), with all that is longer in the last.
from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    EXACT = 2048
    BUCKETS = 2048 + 25 * 1024


cdef struct Histogram:
    uint64_t *buckets               # BUCKETS of them, the caller's
    uint64_t count
    uint64_t sum_us
    uint64_t max_us


cdef void histogram_add(Histogram *histogram, uint64_t time_us) noexcept nogil

cdef uint32_t bucket_of(uint64_t time_us) noexcept nogil
# The least time that a bucket counts; the least of the next one is beyond it.
cdef uint64_t bucket_least(uint32_t bucket) noexcept nogil
