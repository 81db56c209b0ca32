"""How the io_uring driver comes to connections: multishot accept, peers' addresses, rows of the kernel side.

The rules:

- Where all connections are in use, accepting is stopped, so that further clients wait in the backlog. What was accepted
  all the same waits here.
- Where there is no descriptor left, it is tried again when a connection has closed, and after a while in any case.
- What a new socket is asked is carried out while it is submitted, so before its first bytes are seen.
"""
from libc.errno cimport EMFILE, ENFILE, ENOBUFS, ENOMEM
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.connection cimport connection_open, connection_peer
from batchbridge.cython_ext.core cimport Connection, Engine
from batchbridge.cython_ext.ring cimport *
from batchbridge.cython_ext.tier cimport Tier
from batchbridge.cython_ext.uring_close cimport close_unserved
from batchbridge.cython_ext.uring_operations cimport *


cdef extern from "compat.h" nogil:
    int ECANCELED
    void bb_prep_peer_name(io_uring_sqe *, int, void *, uint32_t) noexcept
    void bb_prep_cookie(io_uring_sqe *, int, uint64_t *) noexcept


cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    int getpeername(int, sockaddr *, unsigned int *) noexcept
    int SOCK_CLOEXEC
    int MSG_DONTWAIT, MSG_PEEK, AF_INET, AF_INET6


cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(uint16_t) noexcept


cdef enum:
    SOCKADDR_IN_SIZE = 16
    SOCKADDR_IN6_SIZE = 28
    ACCEPT_RETRY_US = 100000


# --- listeners -------------------------------------------------------------------------------------------------------

cdef void add_listener(Uring *driver, int fd, int family) noexcept nogil:
    driver.listeners[driver.listener_count] = fd
    driver.name_lengths[driver.listener_count] = SOCKADDR_IN6_SIZE if family == AF_INET6 else SOCKADDR_IN_SIZE
    driver.listener_count += 1


cdef void arm_accept(Uring *driver, uint32_t listener) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    if driver.is_direct:
        io_uring_prep_multishot_accept_direct(entry, driver.listeners[listener], NULL, NULL, 0)
    else:
        io_uring_prep_multishot_accept(entry, driver.listeners[listener], NULL, NULL, SOCK_CLOEXEC)
    entry.user_data = (<uint64_t>OPERATION_ACCEPT << 56) | listener
    driver.accepting |= 1u << listener


cdef void start_accepting(Uring *driver) noexcept nogil:
    cdef uint32_t listener
    for listener in range(driver.listener_count):
        if not driver.accepting & (1u << listener):
            arm_accept(driver, listener)


cdef void stop_accepting(Engine *engine, Uring *driver) noexcept nogil:
    cdef uint32_t listener
    cdef io_uring_sqe *entry
    for listener in range(driver.listener_count):
        if driver.accepting & (1u << listener):
            driver.accepting &= ~(1u << listener)
            entry = ring_entry(&driver.ring)
            io_uring_prep_cancel64(entry, (<uint64_t>OPERATION_ACCEPT << 56) | listener, 0)
            entry.user_data = <uint64_t>OPERATION_UNSEEN << 56


cdef void retry_accepts(Engine *engine, Uring *driver) noexcept nogil:
    if engine.now_us < driver.accept_retry_us:
        return
    driver.accept_retry_us = 0
    while driver.surplus_count and engine.open_connections < engine.limits.connections_max:
        driver.surplus_count -= 1
        adopt(engine, driver, 0, driver.surplus[driver.surplus_count])
    if driver.surplus_count:
        driver.accept_retry_us = NEVER_US
        return
    start_accepting(driver)


cdef void close_surplus(Uring *driver) noexcept nogil:
    cdef uint32_t index
    for index in range(driver.surplus_count):
        close_unserved(driver, driver.surplus[index])
    driver.surplus_count = 0


# --- peers -----------------------------------------------------------------------------------------------------------

cdef void ask_peer_name(Connection *connection) noexcept nogil:
    cdef char name[PEER_NAME_SIZE_BYTES]
    cdef unsigned int length = PEER_NAME_SIZE_BYTES
    if getpeername(connection.fd, <sockaddr *>name, &length) == 0:
        take_peer_name(connection, name)


cdef void take_peer_name(Connection *connection, const char *name) noexcept nogil:
    """struct sockaddr_in or sockaddr_in6: family, port, then the address at byte 4 or 8."""
    cdef int family = (<const uint16_t *>name)[0]
    if family == AF_INET or family == AF_INET6:
        connection_peer(connection, family, ntohs((<const uint16_t *>name)[1]), name + (4 if family == AF_INET else 8))


# --- accepted sockets ------------------------------------------------------------------------------------------------

cdef void meet_row(Uring *driver, Tier *tier, Connection *connection) noexcept nogil:
    """Asks for the socket's cookie, by which the kernel side calls it; and looks at its first byte, which makes the
    kernel side see what came before the accept. Both are carried out, in this order, while they are submitted."""
    cdef uint64_t *cookie = &tier.cookies[connection.index]
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    cookie[0] = 0
    bb_prep_cookie(entry, connection.fd, cookie)
    name_entry(entry, OPERATION_PEER, connection, IOSQE_CQE_SKIP_SUCCESS)
    entry = ring_entry(&driver.ring)
    io_uring_prep_recv(entry, connection.fd, &driver.peeked, 1, MSG_DONTWAIT | MSG_PEEK)
    name_entry(entry, OPERATION_MEET, connection, 0)
    connection.operations += 1


cdef void adopt(Engine *engine, Uring *driver, uint32_t listener, int fd) noexcept nogil:
    """Makes a connection of an accepted socket; one too many waits, as others do in the backlog."""
    cdef Connection *connection = connection_open(engine, fd)
    cdef io_uring_sqe *entry
    if connection is NULL and driver.surplus_count < SURPLUS_MAX:
        driver.surplus[driver.surplus_count] = fd
        driver.surplus_count += 1
        return
    if connection is NULL:
        engine.counters.refused += 1
        close_unserved(driver, fd)
        return
    if engine.open_connections >= engine.limits.connections_max:
        # Further clients wait in the backlog until one of these has closed.
        stop_accepting(engine, driver)
        driver.accept_retry_us = NEVER_US
    if engine.tier is not NULL:
        meet_row(driver, engine.tier, connection)
        return
    if not driver.is_direct:
        ask_peer_name(connection)
    else:
        # Carried out while it is submitted, so before the first bytes are seen: it needs no completion.
        (<uint16_t *>peer_name(driver, connection))[0] = 0
        entry = ring_entry(&driver.ring)
        bb_prep_peer_name(entry, connection.fd, peer_name(driver, connection), driver.name_lengths[listener])
        name_entry(entry, OPERATION_PEER, connection, IOSQE_FIXED_FILE | IOSQE_CQE_SKIP_SUCCESS)
    arm_receive(driver, connection)


cdef void on_accept(Engine *engine, uint32_t listener, int result, uint32_t flags) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    if not flags & IORING_CQE_F_MORE and result != -ECANCELED:
        driver.accepting &= ~(1u << listener)
        if not engine.draining:
            if result == -ENFILE or result == -EMFILE or result == -ENOMEM or result == -ENOBUFS:
                # No descriptor left: it is tried again when a connection has closed, and after a while in any case.
                driver.accept_retry_us = engine.now_us + ACCEPT_RETRY_US
                engine.counters.refused += 1
            else:
                arm_accept(driver, listener)
    if result < 0:
        return
    adopt(engine, driver, listener, result)
