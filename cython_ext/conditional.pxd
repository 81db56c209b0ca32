# Conditional requests and ranges (RFC 9110 sections 13 and 14), as pure functions over header values and validators.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from batchbridge.cython_ext.parse cimport Head


# What a request's conditions say of a representation.
cpdef enum Verdict:
    VERDICT_SEND = 0            # send the whole of it (200)
    VERDICT_NOT_MODIFIED        # 304
    VERDICT_FAILED              # 412
    VERDICT_RANGE               # 206: bytes [first, last]
    VERDICT_UNSATISFIABLE       # 416


cdef struct Validators:
    const char *etag            # as in ETag: with its quotes, and W/ before them if it is weak; NULL: none
    uint32_t etag_length
    int64_t modified_s          # seconds since 1970, as Last-Modified says; negative: none
    uint64_t length             # of the representation, in bytes


# Evaluates a request's preconditions in the order of RFC 9110 section 13.2.2, then its Range (only of GET; with
# If-Range; one range of bytes: several are answered with the whole, as section 14.2 allows; an invalid Range is
# ignored). `data` is the head's first byte, `now_s` the wall clock, which decides whether a date may be a validator.
# A conditional header that came more than once (head.known_repeated) is read line by line with next_header.
# Returns a Verdict; `first` and `last` are written with VERDICT_RANGE only. Asked for methods that change things, it
# says VERDICT_FAILED where GET and HEAD have VERDICT_NOT_MODIFIED.
cdef int evaluate(const char *data, const Head *head, const Validators *validators, int64_t now_s,
                  uint64_t *first, uint64_t *last) noexcept nogil

# An HTTP date in any of the three forms of RFC 9110 section 5.6.7, as seconds since 1970; -1 when it is none, or lies
# before 1970. `now_s` settles the century of a two-digit year.
cdef int64_t parse_http_date(const char *text, uint32_t length, int64_t now_s) noexcept nogil

# Writes "Sun, 06 Nov 1994 08:49:37 GMT", 29 bytes without a terminator. What lies outside the years 1970 to
# 9999 becomes their first or last second.
cdef void format_http_date(int64_t seconds, char *out) noexcept nogil
