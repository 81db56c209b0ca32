# Records of requests in user mode: made, found again by identical requests, let go of, ended.
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.bridge cimport Slab
from batchbridge.cython_ext.core cimport Connection, Deferred, Engine


cdef Deferred *deferred_at(Engine *engine, uint32_t index) noexcept nogil

# A record that is not yet in any list; NULL: there are too many, or there is no memory.
cdef Deferred *deferred_new(Engine *engine) noexcept nogil

# The record of an answered request is done with; takes it off its connection's list, whose first one it must be.
cdef void deferred_finish(Engine *engine, Deferred *deferred) noexcept nogil

# Reuses a slab when nothing refers to it any more: in place while it is its route's open one, else for any route.
cdef void settle(Engine *engine, Slab *slab) noexcept nogil

# The record whose item an identical request (of the same key) shares; NULL: none.
cdef Deferred *find_identical(Engine *engine, uint64_t hash, int route, const char *key,
                              uint32_t length) noexcept nogil
cdef void bucket_add(Engine *engine, Deferred *deferred, uint64_t hash) noexcept nogil
cdef void bucket_remove(Engine *engine, Deferred *deferred) noexcept nogil

# Its answer is there; its connection is looked at again, if it is this one's turn.
cdef void mark_ready(Engine *engine, Deferred *deferred) noexcept nogil

# Answers a waiting request without its handler; its item, unless others share it, is no longer wanted.
cdef void answer_by_status(Engine *engine, Deferred *deferred, int status) noexcept nogil

# The connection is gone: nobody waits for its answers any more. Returns how many were owed.
cdef uint32_t abandon_deferred(Engine *engine, Connection *connection) noexcept nogil

cdef void defer_free(Engine *engine) noexcept nogil
