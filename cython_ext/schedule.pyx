"""The schedule of an open loop.

The first request is due one gap after the beginning, each further one a gap after the one before it. Gaps are added in
nanoseconds as floating-point numbers, so that no rate is rounded to whole microseconds.
"""
from libc.math cimport log
from libc.stdint cimport uint64_t


cdef uint64_t random_bits(Schedule *schedule) noexcept nogil:
    """SplitMix64: a counter, and a mixture of its bits."""
    cdef uint64_t bits
    schedule.state += <uint64_t>0x9E3779B97F4A7C15
    bits = schedule.state
    bits = (bits ^ (bits >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    bits = (bits ^ (bits >> 27)) * <uint64_t>0x94D049BB133111EB
    return bits ^ (bits >> 31)


cdef void schedule_begin(Schedule *schedule, double rate_per_s, bint is_poisson, uint64_t seed) noexcept nogil:
    schedule.gap_ns = 1e9 / rate_per_s
    schedule.is_poisson = is_poisson
    schedule.state = seed
    schedule.due_ns = 0
    schedule.first = 0
    schedule.waiting = 0
    schedule_next(schedule)


cdef void schedule_next(Schedule *schedule) noexcept nogil:
    cdef double share
    if schedule.is_poisson:
        share = <double>((random_bits(schedule) >> 11) + 1) / <double>(<uint64_t>1 << 53)       # above 0, up to 1
        schedule.due_ns -= log(share) * schedule.gap_ns
    else:
        schedule.due_ns += schedule.gap_ns


cdef bint schedule_push(Schedule *schedule, uint64_t moment_us) noexcept nogil:
    if schedule.waiting == WAITING_MAX:
        return False
    schedule.moments_us[(schedule.first + schedule.waiting) & (WAITING_MAX - 1)] = moment_us
    schedule.waiting += 1
    return True


cdef uint64_t schedule_pop(Schedule *schedule) noexcept nogil:
    cdef uint64_t moment_us = schedule.moments_us[schedule.first & (WAITING_MAX - 1)]
    schedule.first += 1
    schedule.waiting -= 1
    return moment_us


def moments(double rate_per_s, arrivals, uint64_t seed, uint64_t count):
    """When the first `count` requests of a schedule are due, in nanoseconds from its beginning.

    `arrivals`: "poisson" or "constant".
    """
    cdef Schedule schedule
    cdef uint64_t _number
    schedule_begin(&schedule, rate_per_s, arrivals == "poisson", seed)
    found = []
    for _number in range(count):
        found.append(schedule.due_ns)
        schedule_next(&schedule)
    return found
