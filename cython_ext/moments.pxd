# Moments in microseconds of the engine's clock, where 0 is none.
#
# There is no module behind this face: all of it is inlined into whoever asks.
from libc.stdint cimport uint64_t


cdef inline uint64_t earliest(uint64_t one, uint64_t other) noexcept nogil:
    """The earlier of two moments."""
    if one == 0 or other == 0:
        return one + other
    return min(one, other)
