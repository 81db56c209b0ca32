"""Sockets' cookies and what each stands for: a table of 64-bit numbers, by open addressing.

The rules:

- It has room for twice as many as are ever in it.
- What was taken out leaves a mark, unless nothing may have been reached over its place; when most places are in use,
  marks among them, the table is made anew without them.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free


cdef extern from "shared.h" nogil:
    uint64_t bb_fold(uint64_t, uint64_t) noexcept


cdef enum:
    SIZE_MIN = 1024
    FORGOTTEN = 1                   # a number that was taken out


cdef int cookies_prepare(CookieTable *table, uint32_t count_max) noexcept nogil:
    cdef uint32_t size = SIZE_MIN
    while size < 2 * count_max:
        size *= 2
    return make_empty(table, size)


cdef int make_empty(CookieTable *table, uint32_t size) noexcept nogil:
    """A table of so many places, a power of two. 0, or -ENOMEM; cookies_free takes it down in either case."""
    table.cookies = <uint64_t *>calloc(size, 8)
    table.values = <uint32_t *>calloc(size, 4)
    table.mask = size - 1
    table.used = 0
    return -ENOMEM if table.cookies is NULL or table.values is NULL else 0


cdef void cookies_free(CookieTable *table) noexcept nogil:
    free(table.cookies)
    free(table.values)
    table.cookies = NULL
    table.values = NULL


cdef uint32_t place_of(uint64_t cookie, uint32_t mask) noexcept nogil:
    return <uint32_t>(bb_fold(0, cookie) >> 32) & mask


cdef bint cookies_find(const CookieTable *table, uint64_t cookie, uint32_t *value) noexcept nogil:
    cdef uint32_t place = place_of(cookie, table.mask)
    while table.cookies[place]:
        if table.cookies[place] == cookie:
            value[0] = table.values[place]
            return True
        place = (place + 1) & table.mask
    return False


cdef void cookies_put(CookieTable *table, uint64_t cookie, uint32_t value) noexcept nogil:
    cdef uint32_t place
    if table.used * 4 > table.mask * 3:
        cookies_rebuild(table)
    place = place_of(cookie, table.mask)
    while table.cookies[place] > FORGOTTEN:
        place = (place + 1) & table.mask
    table.used += table.cookies[place] == 0
    table.cookies[place] = cookie
    table.values[place] = value


cdef void cookies_remove(CookieTable *table, uint64_t cookie) noexcept nogil:
    cdef uint32_t place = place_of(cookie, table.mask)
    while table.cookies[place]:
        if table.cookies[place] == cookie:
            # Places behind it may have been reached over this one, unless there are none.
            if table.cookies[(place + 1) & table.mask] == 0:
                table.cookies[place] = 0
                table.used -= 1
            else:
                table.cookies[place] = FORGOTTEN
            return
        place = (place + 1) & table.mask


cdef void cookies_rebuild(CookieTable *table) noexcept nogil:
    """Drops what was taken out. Where there is no memory for it, finding takes longer."""
    cdef CookieTable rebuilt
    cdef uint32_t place
    if make_empty(&rebuilt, table.mask + 1) < 0:
        cookies_free(&rebuilt)
        return
    for place in range(table.mask + 1):
        if table.cookies[place] > FORGOTTEN:
            cookies_put(&rebuilt, table.cookies[place], table.values[place])
    cookies_free(table)
    table[0] = rebuilt
