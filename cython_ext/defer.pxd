# Requests into queues: a route's slabs, and what a request leaves in them.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.core cimport Connection, Engine, Request, Route


cdef enum DeferResult:
    DEFER_TAKEN = 0
    DEFER_FULL = -1             # the route's queue, the slabs or the records are all in use


# Puts a request into its route's queue and onto its connection's list of what is owed.
cdef int defer_request(Engine *engine, Connection *connection, Request *request) noexcept nogil

# Takes slabs off a queue's front that have no waiting item and will get no more.
cdef void queue_trim(Engine *engine, Route *route) noexcept nogil

# Bytes by which the cache knows an answer, or by which two requests are identical: path and query, NUL, authority, NUL,
# the values of the headers that the route varies by. Returns their number, or 0 when `room` is too small.
cdef uint32_t request_key(const Engine *engine, const Request *request, char *out, uint32_t room) noexcept nogil
