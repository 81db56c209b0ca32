# The body of a response to a request for several ranges (RFC 9110 section 15.3.7.2).
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.ranges cimport Ranges


# A text, and the bytes of the representation that come behind it.
cdef struct Part:
    const char *text
    uint32_t text_length
    uint64_t first
    uint64_t length             # 0: none; of the last part, which ends the body


cdef struct Multipart:          # one block of memory
    uint64_t length             # of the whole body
    const char *lines           # header lines of the response, with the empty last one
    uint32_t lines_length
    uint32_t count              # of parts
    Part parts[1]


# `lines`: those of the whole representation, with the empty last one; `whole`: its length; `boundary`: what tells parts
# apart, and cannot be foreseen by who wrote the bytes. NULL: no memory.
cdef Multipart *multipart_new(const char *lines, uint32_t lines_length, const Ranges *ranges, uint64_t whole,
                              uint64_t boundary) noexcept nogil
cdef void multipart_free(Multipart *multipart) noexcept nogil     # NULL: nothing
