# The epoll driver's data, and what it does with connections' sockets: what epoll watches them for, sends, and what
# became of them; ends.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from batchbridge.cython_ext.core cimport CONNECTION_OPEN, IS_EOF, IS_PAUSED, Answer, Connection, Engine
from batchbridge.cython_ext.readers cimport Job, Readers
from batchbridge.cython_ext.system cimport epoll_event


cdef enum:
    EVENTS_MAX = 512                # taken with one call
    LISTENERS_MAX = 64
    RECEIVE_SIZE_BYTES = 65536


# What the driver knows of a connection: one for each record, in the same order.
cdef struct Socket:
    Connection *connection
    Socket *next_report
    Socket *next_closing
    uint32_t watched                # events that epoll watches it for
    uint8_t has_report              # of a send, which is told in the next turn: `result`
    uint8_t is_reported             # it is in the list of reports
    uint8_t is_closing              # it is in the list of those whose record is freed at the turn's end
    uint8_t more
    int64_t result
    const char *data                # a reported send that waits until the socket takes bytes again
    uint64_t length                 # 0: none waits


cdef struct Epoll:
    int fd
    uint8_t has_pwait2
    uint8_t is_accepting
    uint8_t is_log_watched
    int listener_count
    int listeners[LISTENERS_MAX]
    uint64_t accept_again_us        # 0: no such moment
    Socket *sockets
    Socket *reports
    Socket *closing
    Readers *readers
    Job *jobs                       # one for each record of a fill, by its index; made when it is first needed
    const char *log_text            # lines that were not yet taken
    uint32_t log_left
    uint32_t log_length
    epoll_event events[EVENTS_MAX]
    char buffer[RECEIVE_SIZE_BYTES]


# Changes what epoll watches a descriptor for; `name` is what its events will carry. 0, or -errno.
cdef int watch(const Epoll *driver, int operation, int fd, uint32_t events, uint64_t name) noexcept nogil
# The same for a connection's socket, where it is not so already.
cdef void watch_for(Engine *engine, Connection *connection, uint32_t events) noexcept nogil

# The driver's (core.Driver).
cdef void driver_send(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil
cdef void driver_send_last(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil
cdef void driver_send_reported(Engine *engine, Connection *connection, const char *data, uint64_t length, bint more,
                               Answer *answer, uint32_t place) noexcept nogil
cdef void driver_pause(Engine *engine, Connection *connection) noexcept nogil
cdef void driver_resume(Engine *engine, Connection *connection) noexcept nogil
cdef void driver_finish(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil
cdef void driver_tear_down(Engine *engine, Connection *connection) noexcept nogil

# The socket takes bytes again.
cdef void send_waiting(Engine *engine, Connection *connection) noexcept nogil
# Tells the engine what was sent; what that leads to is told in the next turn.
cdef void deliver_reports(Engine *engine, Epoll *driver) noexcept nogil
# At the turn's end: the records of connections that were torn down.
cdef void free_closed(Engine *engine, Epoll *driver) noexcept nogil


cdef inline Socket *socket_of(const Engine *engine, const Connection *connection) noexcept nogil:
    return (<Epoll *>engine.driver_data).sockets + connection.index


cdef inline uint64_t name_of(const Connection *connection) noexcept nogil:
    return connection.index | <uint64_t>connection.generation << 32


cdef inline bint is_deaf(const Connection *connection) noexcept nogil:
    """Whether nothing is to be received: the client has sent all, or is to be slowed down.

    One that lingers is read in any case: unread bytes would turn our close into a reset.
    """
    return connection.flags & IS_EOF or (connection.flags & IS_PAUSED and connection.state == CONNECTION_OPEN)
