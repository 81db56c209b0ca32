# Requests that go to user mode, the engine's side: into a route's queue, off in batches, back as answers.
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.core cimport Connection, Deferred, Engine, Request
from batchbridge.cython_ext.bridge cimport Lane, Slab


cdef enum DeferResult:
    DEFER_TAKEN = 0
    DEFER_FULL = -1             # the route's queue, the slabs or the records are all in use


# Puts a request into its route's queue and onto its connection's list of what is owed.
cdef int defer_request(Engine *engine, Connection *connection, Request *request) noexcept nogil

# Lets every batch leave that may leave now; sets engine.batch_deadline_us for those that may leave later. Returns how
# many left.
cdef uint32_t dispatch_batches(Engine *engine) noexcept nogil

# Takes what workers have answered: marks requests ready, and their connections to be looked at. Returns how many
# batches ended.
cdef uint32_t collect_answers(Engine *engine) noexcept nogil

# Answers what has waited too long (time-outs of routes); the next such moment goes into engine.next_deadline_us.
cdef void expire_deferred(Engine *engine) noexcept nogil

# The record of an answered request is done with; takes it off its connection's list, whose first one it must be.
cdef void deferred_finish(Engine *engine, Deferred *deferred) noexcept nogil

# The connection is gone: nobody waits for its answers any more. Returns how many were owed.
cdef uint32_t abandon_deferred(Engine *engine, Connection *connection) noexcept nogil

cdef void defer_free(Engine *engine) noexcept nogil

# Bytes by which the cache knows an answer, or by which two requests are identical: path and query, NUL, authority, NUL,
# the values of the headers that the route varies by. Returns their number, or 0 when `room` is too small.
cdef uint32_t request_key(const Engine *engine, const Request *request, char *out, uint32_t room) noexcept nogil
