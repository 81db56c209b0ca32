# A set of 64-bit numbers (sockets' cookies) with what each stands for, by open addressing; 0 and 1 are no numbers.
from libc.stdint cimport uint32_t, uint64_t


cdef struct CookieTable:
    uint64_t *cookies
    uint32_t *values
    uint32_t mask
    uint32_t used                   # also by what was taken out again


# For so many at a time; -errno. cookies_free also where that failed.
cdef int cookies_prepare(CookieTable *table, uint32_t count_max) noexcept nogil
cdef void cookies_free(CookieTable *table) noexcept nogil

cdef bint cookies_find(const CookieTable *table, uint64_t cookie, uint32_t *value) noexcept nogil
cdef void cookies_put(CookieTable *table, uint64_t cookie, uint32_t value) noexcept nogil     # one that is not in it
cdef void cookies_remove(CookieTable *table, uint64_t cookie) noexcept nogil
