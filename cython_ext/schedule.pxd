# When the requests of an open loop are due: drawn beforehand from a seed, whatever the server does meanwhile.
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef enum:
    WAITING_MAX = 1048576           # requests that may wait for a free connection; a power of two


cdef struct Schedule:
    double gap_ns                   # on average; 0: there is no schedule
    uint8_t is_poisson              # exponential gaps, else all the same
    uint64_t state                  # of the random numbers
    double due_ns                   # of the next request, from the schedule's beginning
    # Those that are due and have not left, in order.
    uint64_t *moments_us            # a ring of WAITING_MAX places, the caller's
    uint64_t first
    uint64_t waiting


cdef void schedule_begin(Schedule *schedule, double rate_per_s, bint is_poisson, uint64_t seed) noexcept nogil
# Goes on to the request after the next one.
cdef void schedule_next(Schedule *schedule) noexcept nogil
# False: too many wait already.
cdef bint schedule_push(Schedule *schedule, uint64_t moment_us) noexcept nogil
cdef uint64_t schedule_pop(Schedule *schedule) noexcept nogil       # there must be one
