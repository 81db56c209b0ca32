# One engine: one thread, one loop. What all drivers share: the turn of the loop, and Python's way in.
#
# A driver's loop is:
#
#     while turn_goes_on(engine):
#         wait for events, at most turn_wait_us(engine) (0: only look; -1: until something happens)
#         turn_begin(engine)
#         for each event: received, received_end, sent, send_fell_short, fragment_read, log_written, ...
#         turn_end(engine)            # answers, batches, time-outs, and everything that was posted goes to the driver
from libc.stdint cimport int64_t, uint32_t, uint64_t

from batchbridge.cython_ext.core cimport Engine, Route
from batchbridge.cython_ext.machine cimport Protocol


# False when the engine was stopped, or has drained.
cdef bint turn_goes_on(Engine *engine) noexcept nogil
# How long the driver may wait. Unless it is 0, workers have been told that they must ring the bell.
cdef int64_t turn_wait_us(Engine *engine) noexcept nogil
cdef void turn_begin(Engine *engine) noexcept nogil
cdef void turn_end(Engine *engine) noexcept nogil


# Memory that engine and workers share: a memfd, mapped.
cdef class SharedMemory:
    cdef char *address
    cdef readonly uint64_t size_bytes
    cdef readonly int fd


cdef class EngineThread:
    cdef Engine *engine
    cdef readonly list listeners            # sockets, listening, non-blocking
    cdef readonly object routes             # paths in the order of the routes' numbers
    cdef readonly list lanes                # SharedMemory of each worker
    cdef readonly list worker_bells         # their eventfds
    cdef readonly SharedMemory slabs
    cdef readonly object settings
    cdef readonly Protocol protocol
    cdef object lock
    cdef object inline_worker
    cdef int reply_bell
    cdef int command                        # 0: none; else 1 + PurgeKind; the text and the count that went
    cdef bytes command_text
    cdef bint command_is_soft
    cdef uint64_t command_result
    cdef readonly bint running
    cdef readonly object ready              # threading.Event: the loop begins, or run() has ended

    cdef set_limits(self, settings)
    cdef set_memory(self, settings)
    cdef set_routes(self, routes)
    cdef set_vary(self, Route *route, list names)
    cdef set_lanes(self, settings, int lane_count)
    cdef carry_out(self)
    cdef set_clock_offset(self, uint64_t offset_us)
    cdef route_stats(self, uint32_t index)

    # Drivers' subclasses: run() has prepared nothing but this; it fills engine.driver and runs the loop.
    cdef int run_loop(self) except -1
