# Purges of a cache: on the engine's own thread, between two turns (law 3).
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.cache cimport Cache


cdef enum PurgeKind:
    PURGE_URL = 0               # all variants of a target; with NUL and an authority behind it, of that host
    PURGE_PREFIX                # "/a/": O(1); "/a/b": looks at every object
    PURGE_TAG
    PURGE_ALL

# Purges; how many objects became unusable, or with `is_soft` stale. None of them is found (as fresh) from now on; the
# memory of a tag's or directory's objects is given back in steps.
cdef uint64_t cache_purge(Cache *cache, int kind, bint is_soft, const char *text, uint32_t length) noexcept nogil
