# Conditional requests (RFC 9110 section 13), as pure functions over header values and validators.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from batchbridge.cython_ext.parse cimport Head
from batchbridge.cython_ext.ranges cimport Ranges


# What a request's conditions say of a representation.
cpdef enum Verdict:
    VERDICT_SEND = 0            # send the whole of it (200)
    VERDICT_NOT_MODIFIED        # 304
    VERDICT_FAILED              # 412
    VERDICT_RANGE               # 206: one range
    VERDICT_RANGES              # 206: several
    VERDICT_UNSATISFIABLE       # 416


cdef struct Validators:
    const char *etag            # as in ETag: with its quotes, and W/ before them if it is weak; NULL: none
    uint32_t etag_length
    int64_t modified_s          # seconds since 1970, as Last-Modified says; negative: none
    uint64_t length             # of the representation, in bytes


# Evaluates a request's preconditions in the order of RFC 9110 section 13.2.2, then its Range (only of GET; with
# If-Range; more than `ranges_max` are answered with the whole, as section 14.2 allows). `data` is the head's first
# byte, `now_s` the wall clock, which decides whether a date may be a validator. A conditional header that came more
# than once (head.known_repeated) is read line by line with next_header.
# Returns a Verdict; `ranges` is written where the Range was looked at. Asked for methods that change things, it says
# VERDICT_FAILED where GET and HEAD have VERDICT_NOT_MODIFIED.
cdef int evaluate(const char *data, const Head *head, const Validators *validators, int64_t now_s,
                  uint32_t ranges_max, Ranges *ranges) noexcept nogil
