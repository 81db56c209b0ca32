# Content codings, and which of them a client takes (RFC 9110 sections 8.4.1 and 12.5.3), as pure functions.
from libc.stdint cimport uint8_t, uint32_t

from batchbridge.cython_ext.parse cimport Head


cpdef enum Coding:
    CODING_IDENTITY = 0         # as it is: always there
    CODING_BR
    CODING_ZSTD
    CODING_GZIP
    CODING_COUNT


# What a client takes, the best first. Of two that it likes as much, the server's preference counts, identity last.
cdef struct Ranking:
    uint32_t count
    uint8_t codings[4]


# Ranks `preferred` (each once) and identity by a request's Accept-Encoding. Without one, identity is all there is; what
# it refuses (q=0) is not in the ranking. `data` is the head's first byte.
cdef void rank_codings(const char *data, const Head *head, const uint8_t *preferred, uint32_t preferred_count,
                       Ranking *ranking) noexcept nogil

# The best of those that are there: a bit by Coding each. Identity where none is wanted (section 12.4.1: a server may
# disregard the field, rather than answer 406).
cdef int choose_coding(const Ranking *ranking, uint32_t available) noexcept nogil

# As Content-Encoding has it; what the name of a file has behind the original's (".br").
cdef const char *coding_name(int coding) noexcept nogil
cdef const char *coding_suffix(int coding) noexcept nogil
