# What handlers see: batches and requests, as Python objects over the bridge's shared memory.
from libc.stdint cimport uint8_t, uint32_t

from batchbridge.cython_ext.bridge cimport Dispatch, Item, Slab
from batchbridge.cython_ext.lane_end cimport LaneEnd


cdef class Batch:
    cdef LaneEnd end
    cdef Slab *slab
    cdef Item *items                            # of the batch: items[0] is its first
    cdef uint32_t first                         # the slab's number of it
    cdef uint32_t size                          # items of the range
    cdef uint32_t reason_number
    cdef uint32_t number                        # of the route, as the engine counts
    cdef uint32_t unanswered
    cdef uint32_t show_after                    # responses that are shown to the engine together; 0: all at the end
    cdef bint varies                            # the route names headers that answers vary by
    cdef uint8_t *answered                      # by the item's place in the range
    cdef list order                             # places of the range that make up the batch; None: all of them
    cdef list requests                          # made so far, by place; None: none
    cdef Batch whole                            # of which this is a part (isolation); None
    cdef readonly object state
    cdef readonly object route

    cdef Request request_at(self, uint32_t place)
    cdef int answer(self, uint32_t place, object entry) except -1
    cdef int answer_plain(self, uint32_t place, const char *body, Py_ssize_t length, bytes lines) except -1
    cdef int answer_full(self, uint32_t place, body, int status, content_type, headers, cache_ttl_s, tags,
                         bint public) except -1
    cdef int put(self, uint32_t place, int status, bytes lines, const char *body, Py_ssize_t length, uint32_t ttl_s,
                 uint32_t flags, bytes tags) except -1
    cdef void answer_status(self, uint32_t place, int status) noexcept
    cdef int answer_failure(self, uint32_t place, error) except -1


cdef class Request:
    cdef Batch batch
    cdef Item *item
    cdef uint32_t place
    cdef object known_headers
    cdef object known_value

    cdef bytes text(self, uint32_t offset, uint32_t length)


# Bytes of shared memory, for as long as somebody looks at them.
cdef class View:
    cdef Batch batch
    cdef char *start
    cdef Py_ssize_t length


cdef Batch open_batch(LaneEnd end, const Dispatch *dispatch, object route, object state)
