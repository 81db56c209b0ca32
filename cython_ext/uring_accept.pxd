# How the io_uring driver comes to connections.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.core cimport Connection, Engine
from batchbridge.cython_ext.uring_operations cimport PEER_NAME_SIZE_BYTES, Uring


# One of LISTENERS_MAX at most, before accepting is started. An armed accept goes on until it is stopped.
cdef void add_listener(Uring *driver, int fd, int family) noexcept nogil
cdef void start_accepting(Uring *driver) noexcept nogil
cdef void stop_accepting(Engine *engine, Uring *driver) noexcept nogil
# In a turn, where `accept_retry_us` is not 0: accepts again if it is time.
cdef void retry_accepts(Engine *engine, Uring *driver) noexcept nogil
# Sockets that were accepted, though no connection was free for them.
cdef void close_surplus(Uring *driver) noexcept nogil

# A completion of that listener's accept.
cdef void on_accept(Engine *engine, uint32_t listener, int result, uint32_t flags) noexcept nogil

# A connection's peer, by a system call.
cdef void ask_peer_name(Connection *connection) noexcept nogil

# A connection's peer, as the ring has told it: from the first bytes on it is known.
cdef void take_peer_name(Connection *connection, const char *name) noexcept nogil


cdef inline char *peer_name(const Uring *driver, const Connection *connection) noexcept nogil:
    return driver.peer_names + <size_t>connection.index * PEER_NAME_SIZE_BYTES
