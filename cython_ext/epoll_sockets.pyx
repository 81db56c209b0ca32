"""Connections' sockets, as the epoll driver has them.

The rules:

- Level-triggered, so nothing is missed. What epoll watches a socket for is put right only when an event shows it to be
  wrong: most connections are over before it would have mattered (behind a FIN comes our close, behind a full socket
  buffer an empty one).
- A driver's function makes its system call at once, but what it has to report waits in a list until the loop delivers
  it: so sent, output_step and send_reported never nest, and a client that takes a lot gets a bounded share of a turn.
  Only send_fell_short is called at once, which flush expects.
- A connection that is torn down loses its descriptor at once, its record at the turn's end: whoever is working on it
  further up the stack still finds the record, and that it is closed.
"""
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int64_t, uint32_t, uint64_t

from batchbridge.cython_ext.connection cimport connection_closed, connection_lost
from batchbridge.cython_ext.core cimport Answer, Connection, Engine
from batchbridge.cython_ext.output cimport sent
from batchbridge.cython_ext.send cimport send_fell_short
from batchbridge.cython_ext.system cimport (
    EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT, MSG_DONTWAIT, MSG_MORE, MSG_NOSIGNAL, SHUT_WR, close, epoll_ctl,
    epoll_event, shutdown, socket_send)


# --- what epoll watches ----------------------------------------------------------------------------------------------

cdef int watch(const Epoll *driver, int operation, int fd, uint32_t events, uint64_t name) noexcept nogil:
    """0, or -errno."""
    cdef epoll_event event
    event.events = events
    event.data.u64 = name
    return -errno if epoll_ctl(driver.fd, operation, fd, &event) < 0 else 0


cdef void watch_for(Engine *engine, Connection *connection, uint32_t events) noexcept nogil:
    cdef Socket *socket = socket_of(engine, connection)
    if socket.watched == events or socket.is_closing:
        return
    socket.watched = events
    watch(<Epoll *>engine.driver_data, EPOLL_CTL_MOD, connection.fd, events, name_of(connection))


# --- sends -----------------------------------------------------------------------------------------------------------

cdef int64_t send_now(const Connection *connection, const char *data, uint64_t length, int flags) noexcept nogil:
    """Bytes that the socket took, or -errno."""
    cdef ssize_t count
    while True:
        count = socket_send(connection.fd, data, length, flags | MSG_NOSIGNAL | MSG_DONTWAIT)
        if count >= 0:
            return count
        if errno != EINTR:
            return -errno


cdef void driver_send(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    cdef int64_t result = send_now(connection, data, length, 0)
    if result != length:
        send_fell_short(engine, connection, result)


cdef void driver_send_last(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    # MSG_MORE keeps the last segment back until shutdown lets it leave together with the FIN. Not until close: that
    # would drop it, if the client sent anything that was not read.
    cdef int64_t result = send_now(connection, data, length, MSG_MORE)
    if result != length:
        send_fell_short(engine, connection, result)
        return
    shutdown(connection.fd, SHUT_WR)
    driver_tear_down(engine, connection)


cdef void driver_finish(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    cdef int64_t result = send_now(connection, data, length, MSG_MORE) if length else 0
    if result != length:
        send_fell_short(engine, connection, result)
        return
    shutdown(connection.fd, SHUT_WR)
    driver_resume(engine, connection)


cdef void report(Engine *engine, Connection *connection, int64_t result) noexcept nogil:
    """Lets the loop tell the engine what was sent."""
    cdef Epoll *driver = <Epoll *>engine.driver_data
    cdef Socket *socket = socket_of(engine, connection)
    socket.has_report = 1
    socket.result = result
    if not socket.is_reported:
        socket.is_reported = 1
        socket.next_report = driver.reports
        driver.reports = socket


cdef void driver_send_reported(Engine *engine, Connection *connection, const char *data, uint64_t length, bint more,
                               Answer *answer, uint32_t place) noexcept nogil:
    # The kernel copies the bytes, so nobody has to hold the answer for it.
    cdef Socket *socket = socket_of(engine, connection)
    cdef int64_t result = send_now(connection, data, length, MSG_MORE if more else 0)
    if result != -EAGAIN:
        report(engine, connection, result)
        return
    socket.data = data
    socket.length = length
    socket.more = more
    watch_for(engine, connection, socket.watched | EPOLLOUT)


cdef void send_waiting(Engine *engine, Connection *connection) noexcept nogil:
    cdef Socket *socket = socket_of(engine, connection)
    cdef int64_t result
    if socket.length:
        result = send_now(connection, socket.data, socket.length, MSG_MORE if socket.more else 0)
        if result != -EAGAIN:
            socket.length = 0
            sent(engine, connection, result)
    elif not socket.has_report:
        watch_for(engine, connection, socket.watched & ~<uint32_t>EPOLLOUT)


cdef void deliver_reports(Engine *engine, Epoll *driver) noexcept nogil:
    cdef Socket *socket = driver.reports
    cdef Socket *following
    cdef bint has_report
    driver.reports = NULL
    while socket is not NULL:
        following = socket.next_report
        has_report = socket.has_report
        socket.is_reported = 0
        socket.has_report = 0
        if has_report:
            sent(engine, socket.connection, socket.result)
        socket = following


# --- back-pressure ---------------------------------------------------------------------------------------------------

cdef void driver_pause(Engine *engine, Connection *connection) noexcept nogil:
    # The next event finds that it is paused.
    pass


cdef void driver_resume(Engine *engine, Connection *connection) noexcept nogil:
    if not is_deaf(connection):
        watch_for(engine, connection, socket_of(engine, connection).watched | EPOLLIN)


# --- ends ------------------------------------------------------------------------------------------------------------

cdef void driver_tear_down(Engine *engine, Connection *connection) noexcept nogil:
    cdef Epoll *driver = <Epoll *>engine.driver_data
    cdef Socket *socket = socket_of(engine, connection)
    if socket.is_closing:
        return
    socket.is_closing = 1
    socket.has_report = 0
    socket.length = 0
    connection_lost(engine, connection)
    # Closing removes it from epoll only where no other process has the descriptor.
    watch(driver, EPOLL_CTL_DEL, connection.fd, 0, 0)
    close(connection.fd)
    connection.fd = -1
    socket.next_closing = driver.closing
    driver.closing = socket


cdef void free_closed(Engine *engine, Epoll *driver) noexcept nogil:
    cdef Socket *socket
    while driver.closing is not NULL:
        socket = driver.closing
        driver.closing = socket.next_closing
        socket.is_closing = 0
        connection_closed(engine, socket.connection)
        driver.accept_again_us = 0      # there is a descriptor again
