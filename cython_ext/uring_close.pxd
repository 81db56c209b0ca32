# How connections of the io_uring driver end.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.core cimport CONNECTION_CLOSES, Connection, Engine
from batchbridge.cython_ext.uring_operations cimport Uring


# The driver's (core.Driver).
cdef void driver_send_last(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil
cdef void driver_finish(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil
cdef void driver_tear_down(Engine *engine, Connection *connection) noexcept nogil

# Closes a connection's descriptor; an accepted one that is no connection's.
cdef void close_slot(Engine *engine, Uring *driver, Connection *connection) noexcept nogil
cdef void close_unserved(Uring *driver, int fd) noexcept nogil

# A close's completion. ECANCELED: what it was linked to fell short.
cdef void on_close(Engine *engine, Connection *connection, int result) noexcept nogil
# The last completion of a closed connection has come: its record is free.
cdef void connection_over(Engine *engine, Connection *connection) noexcept nogil


# Behind each completion of a connection, when it was counted.
cdef inline void close_if_over(Engine *engine, Connection *connection) noexcept nogil:
    if connection.state == CONNECTION_CLOSES and connection.operations == 0:
        connection_over(engine, connection)
