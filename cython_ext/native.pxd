# Native handlers: batches that compiled functions answer, without the interpreter. The face for handlers themselves is
# batchbridge.h.
from libc.stdint cimport uint8_t, uint32_t

from batchbridge.cython_ext.handler_abi cimport bb_function
from batchbridge.cython_ext.lane_end cimport WorkerLane


cdef struct NativeRoute:
    bb_function function            # NULL: the route's handler is Python's
    void *context
    const char *vary_line           # "Vary: ...", with its line end; NULL: none
    uint32_t vary_length


# What a worker needs of its native routes. `report` is told of batches with faults: items left unanswered, and answers
# that were refused, with why the first of them was.
cdef struct NativeWorker:
    WorkerLane *worker
    NativeRoute *routes             # by the engine's numbers
    uint8_t *answered               # of the batch under way
    void *owner
    void (*report)(void *owner, uint32_t route, uint32_t unanswered, uint32_t refused, int refusal) noexcept nogil


cdef enum NativeStep:
    NATIVE_NOTHING = 0              # the worker has been given no batch
    NATIVE_OTHER                    # the next one is for a Python handler
    NATIVE_RAN


# Runs the next batch of the worker's lane, where it is for a native handler.
cdef NativeStep native_step(NativeWorker *native) noexcept nogil

# The same until the next one is for a Python handler, or there is none.
cdef NativeStep native_run(NativeWorker *native) noexcept nogil


# A worker's NativeWorker, and what it points to.
cdef class NativeRoutes:
    cdef NativeWorker native
    cdef list kept
