# Ranges of bytes (RFC 9110 section 14), as pure functions over a header's value.
from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    RANGES_MAX = 64             # the most that a caller may ask for


cdef struct Range:
    uint64_t first
    uint64_t last               # included


cdef struct Ranges:
    uint32_t count
    Range items[64]


cdef enum RangeResult:
    RANGES_IGNORED = 0          # another unit, malformed, or too many: the whole is to be sent
    RANGES_FOUND                # `ranges` has them, at least one
    RANGES_UNSATISFIABLE


# What a Range header selects of a representation of `whole` bytes: at most `count_max` (1 to RANGES_MAX) ranges, in the
# order that they were asked for. Those that overlap, or nearly touch, are joined; what lies behind the end is left out.
cdef int select_ranges(const char *text, uint32_t length, uint64_t whole, uint32_t count_max,
                       Ranges *ranges) noexcept nogil
