# Sends of the io_uring driver. Last ones are in uring_close.
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.core cimport Answer, Connection, Engine
from batchbridge.cython_ext.uring_operations cimport Uring


# A table of fixed buffers: the lanes' arenas now, chunks of the cache's arena as they are opened. Where the limit of
# locked memory ends it, what lies in the rest is copied instead. forget_memory: before the ring is closed.
cdef void register_memory(Engine *engine, Uring *driver) noexcept nogil
cdef void forget_memory(Engine *engine) noexcept nogil

# The driver's (core.Driver).
cdef void driver_send(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil
cdef void driver_send_reported(Engine *engine, Connection *connection, const char *data, uint64_t length, bint more,
                               Answer *answer, uint32_t place) noexcept nogil

# A completion of a zero-copy send of an answer's bytes, named by the answer's index.
cdef void on_zero_copy(Engine *engine, uint32_t index, uint32_t place, int result, uint32_t flags) noexcept nogil
