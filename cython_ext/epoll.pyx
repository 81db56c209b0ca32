"""The epoll driver: for machines and containers that do not allow io_uring.

Here is its loop: listeners, events, files, the log. What it does with connections' sockets is in epoll_sockets.

The rules:

- An event names its connection by index and generation, and one for a connection that is no more is ignored.
- What must be waited for of a file is read by threads (readers.pyx), which ring the engine's bell.
- Nothing to do means no system call: epoll_wait sleeps until something happens or the earliest deadline.
"""
import os

from libc.errno cimport (
    EAGAIN, ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, EIO, ENETDOWN, ENETUNREACH, ENOSYS, EPERM, EPROTO, errno)
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from batchbridge.cython_ext.accesslog cimport log_flush, log_written
from batchbridge.cython_ext.connection cimport connection_open, connection_peer, received, received_end
from batchbridge.cython_ext.core cimport (
    CONNECTION_FREE, CONNECTION_LINGERS, CONNECTION_OPEN, Connection, Engine, Fill)
from batchbridge.cython_ext.engine cimport EngineThread, turn_begin, turn_end, turn_goes_on, turn_wait_us
from batchbridge.cython_ext.epoll_sockets cimport (
    EVENTS_MAX, LISTENERS_MAX, RECEIVE_SIZE_BYTES, Epoll, Socket, deliver_reports, driver_finish, driver_pause,
    driver_resume, driver_send, driver_send_last, driver_send_reported, driver_tear_down, free_closed, is_deaf, name_of,
    send_waiting, socket_of, watch, watch_for)
from batchbridge.cython_ext.openings cimport opening_by_thread
from batchbridge.cython_ext.output cimport fragment_read
from batchbridge.cython_ext.readers cimport Job, readers_ask, readers_collect, readers_end, readers_free, readers_new
from batchbridge.cython_ext.system cimport (
    AF_INET, AF_INET6, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLHUP, EPOLLIN,
    EPOLLOUT, MSG_DONTWAIT, POLLOUT, SOCK_CLOEXEC, SOCK_NONBLOCK, accept4, close, epoll_create1, epoll_wait,
    eventfd_read, eventfd_write, ntohs, poll, pollfd, recv, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage,
    syscall, write)

from batchbridge.errors import EngineError


cdef extern from "compat.h" nogil:
    uint64_t bb_now_us() noexcept


cdef enum:
    ACCEPTS_MAX = 64                # of one listener in one turn
    ACCEPT_PAUSE_US = 100000        # out of descriptors or memory: accept again after this, or when a connection ends
    LOG_END_TIMEOUT_MS = 1000       # how long the end waits for a pipe to take the last lines
    WAIT_MS_MAX = 0x7FFFFFFF
    SYS_EPOLL_PWAIT2 = 441          # Linux 5.11; the same number on all architectures
    # Indices in events that name no connection; there are never so many connections.
    INDEX_BELL = 0xFFFFFFFF
    INDEX_LISTENER = 0xFFFFFFFE
    INDEX_LOG = 0xFFFFFFFD


cdef struct KernelTimespec:         # 64 bits each, whatever time_t is
    int64_t seconds
    int64_t nanoseconds


# --- of no connection ------------------------------------------------------------------------------------------------

cdef void driver_ring_bell(Engine *engine, int bell) noexcept nogil:
    eventfd_write(bell, 1)


cdef void driver_read_fragment(Engine *engine, Fill *fill) noexcept nogil:
    cdef Epoll *driver = <Epoll *>engine.driver_data
    cdef Job *job = &driver.jobs[fill.index]
    job.owner = fill
    job.file = fill.file
    job.at = fill.reading.at + fill.done
    job.length = fill.reading.length - fill.done
    job.offset = fill.reading.offset + fill.done
    readers_ask(driver.readers, job)


cdef void deliver_fills(Engine *engine, Epoll *driver) noexcept nogil:
    cdef Job *job = readers_collect(driver.readers)
    cdef Job *following
    while job is not NULL:
        following = job.next
        fragment_read(engine, <Fill *>job.owner, job.result)
        job = following


cdef void driver_write_log(Engine *engine, const char *text, uint32_t length) noexcept nogil:
    cdef Epoll *driver = <Epoll *>engine.driver_data
    driver.log_text = text
    driver.log_left = length
    driver.log_length = length
    write_log_rest(engine)


cdef void write_log_rest(Engine *engine) noexcept nogil:
    """Writes what is left of the log's lines.

    A file may keep the engine waiting while the disk is busy, and so may a pipe in blocking mode whose reader is slow:
    without io_uring that takes a thread, and a buffer of lines is not worth one. A pipe in non-blocking mode never
    does: the lines wait until it takes them.
    """
    cdef Epoll *driver = <Epoll *>engine.driver_data
    cdef int64_t result = driver.log_length
    cdef ssize_t count
    while driver.log_left:
        count = write(engine.log.fd, driver.log_text, driver.log_left)
        if count > 0:
            driver.log_text += count
            driver.log_left -= <uint32_t>count
        elif count == 0 or errno not in (EAGAIN, EINTR):
            result = -errno if count < 0 else -EIO
            driver.log_left = 0
        elif errno == EAGAIN:
            if not driver.is_log_watched:
                driver.is_log_watched = watch(driver, EPOLL_CTL_ADD, engine.log.fd, EPOLLOUT, INDEX_LOG) == 0
            if driver.is_log_watched:
                return
            result = -EAGAIN
            driver.log_left = 0
    if driver.is_log_watched:
        driver.is_log_watched = 0
        watch(driver, EPOLL_CTL_DEL, engine.log.fd, 0, 0)
    log_written(engine, result)


# --- accepting -------------------------------------------------------------------------------------------------------

cdef void accept_or_not(Epoll *driver, bint is_accepting) noexcept nogil:
    """Watches the listeners, or lets clients wait in the backlog."""
    cdef int number
    driver.is_accepting = is_accepting
    for number in range(driver.listener_count):
        watch(driver, EPOLL_CTL_MOD, driver.listeners[number], EPOLLIN if is_accepting else 0,
              INDEX_LISTENER | <uint64_t>number << 32)


cdef void forget_listeners(Epoll *driver) noexcept nogil:
    cdef int number
    for number in range(driver.listener_count):
        watch(driver, EPOLL_CTL_DEL, driver.listeners[number], 0, 0)
    driver.listener_count = 0
    driver.accept_again_us = 0


cdef void settle_accepting(Engine *engine, Epoll *driver) noexcept nogil:
    """At the turn's end: accepts again if what stopped it is over."""
    if engine.draining:
        forget_listeners(driver)
    elif (not driver.is_accepting and engine.open_connections < engine.limits.connections_max
            and driver.accept_again_us <= engine.now_us):
        driver.accept_again_us = 0
        accept_or_not(driver, True)


cdef void accept_clients(Engine *engine, Epoll *driver, int listener) noexcept nogil:
    cdef sockaddr_storage address
    cdef unsigned int size
    cdef int fd, _
    for _ in range(ACCEPTS_MAX):
        if engine.open_connections >= engine.limits.connections_max:
            accept_or_not(driver, False)
            return
        size = sizeof(address)
        fd = accept4(listener, <sockaddr *>&address, &size, SOCK_NONBLOCK | SOCK_CLOEXEC)
        if fd >= 0:
            admit(engine, driver, fd, &address)
        elif errno == EAGAIN:
            return
        elif errno not in (ECONNABORTED, EHOSTDOWN, EHOSTUNREACH, EINTR, ENETDOWN, ENETUNREACH, EPERM, EPROTO):
            # Those were one client's mishap. This is ours: no descriptors, no memory; asking again at once would spin.
            accept_or_not(driver, False)
            driver.accept_again_us = engine.now_us + ACCEPT_PAUSE_US
            return


cdef void admit(Engine *engine, Epoll *driver, int fd, const sockaddr_storage *address) noexcept nogil:
    cdef Connection *connection = connection_open(engine, fd)
    cdef Socket *socket
    if connection is NULL:
        engine.counters.refused += 1
        close(fd)
        return
    socket = socket_of(engine, connection)
    socket.connection = connection
    socket.watched = EPOLLIN
    if address.ss_family == AF_INET:
        connection_peer(connection, AF_INET, ntohs((<const sockaddr_in *>address).sin_port),
                        &(<const sockaddr_in *>address).sin_addr)
    elif address.ss_family == AF_INET6:
        connection_peer(connection, AF_INET6, ntohs((<const sockaddr_in6 *>address).sin6_port),
                        &(<const sockaddr_in6 *>address).sin6_addr)
    if watch(driver, EPOLL_CTL_ADD, fd, EPOLLIN, name_of(connection)) < 0:
        driver_tear_down(engine, connection)


# --- events ----------------------------------------------------------------------------------------------------------

cdef void receive(Engine *engine, Epoll *driver, Connection *connection) noexcept nogil:
    cdef ssize_t count = recv(connection.fd, driver.buffer, RECEIVE_SIZE_BYTES, MSG_DONTWAIT)
    if count > 0:
        if count == RECEIVE_SIZE_BYTES:
            engine.more_input = True
        received(engine, connection, driver.buffer, <uint32_t>count)
    elif count == 0:
        received_end(engine, connection)
    elif errno not in (EAGAIN, EINTR):
        driver_tear_down(engine, connection)


cdef void handle_socket(Engine *engine, Epoll *driver, Connection *connection, uint32_t events) noexcept nogil:
    if events & (EPOLLERR | EPOLLHUP):
        # A reset, or both sides are through: what is still owed reaches nobody.
        driver_tear_down(engine, connection)
        return
    if events & EPOLLOUT:
        send_waiting(engine, connection)
    if not events & EPOLLIN or socket_of(engine, connection).is_closing:
        return
    if is_deaf(connection):
        watch_for(engine, connection, socket_of(engine, connection).watched & ~<uint32_t>EPOLLIN)
    else:
        receive(engine, driver, connection)


cdef void handle_listener(Engine *engine, Epoll *driver, uint32_t number, uint32_t events) noexcept nogil:
    if engine.draining or <int>number >= driver.listener_count:
        return
    if events & (EPOLLERR | EPOLLHUP):
        # It was shut down under us, and would say so for ever.
        watch(driver, EPOLL_CTL_DEL, driver.listeners[number], 0, 0)
    elif driver.is_accepting:
        accept_clients(engine, driver, driver.listeners[number])


cdef void handle_events(Engine *engine, Epoll *driver, int count) noexcept nogil:
    cdef Connection *connection
    cdef uint32_t index, generation, events
    cdef uint64_t rings
    cdef int number
    engine.more_input = count == EVENTS_MAX
    for number in range(count):
        index = <uint32_t>driver.events[number].data.u64
        generation = <uint32_t>(driver.events[number].data.u64 >> 32)
        events = driver.events[number].events
        if index == <uint32_t>INDEX_BELL:
            eventfd_read(engine.bell, &rings)
        elif index == <uint32_t>INDEX_LISTENER:
            handle_listener(engine, driver, generation, events)
        elif index == <uint32_t>INDEX_LOG:
            write_log_rest(engine)
        else:
            connection = &engine.connections[index]
            if connection.generation == generation and connection.state in (CONNECTION_OPEN, CONNECTION_LINGERS):
                handle_socket(engine, driver, connection, events)


# --- the loop --------------------------------------------------------------------------------------------------------

cdef int64_t wait_us_of(Engine *engine, const Epoll *driver) noexcept nogil:
    """How long there is nothing to do: microseconds, -1 for until something happens."""
    cdef int64_t wait_us, accept_us
    # More input: batches wait for it, so it has to be looked at, even if it was paused meanwhile and no event tells.
    if driver.reports is not NULL or engine.more_input:
        return 0
    wait_us = turn_wait_us(engine)
    if driver.accept_again_us:
        accept_us = max(<int64_t>0, <int64_t>(driver.accept_again_us - bb_now_us()))
        if wait_us < 0 or accept_us < wait_us:
            return accept_us
    return wait_us


cdef int wait_for_events(Engine *engine, Epoll *driver) noexcept nogil:
    """How many events came."""
    cdef int64_t wait_us = wait_us_of(engine, driver)
    cdef KernelTimespec limit
    cdef long count
    if wait_us > 0 and driver.has_pwait2:
        limit.seconds = wait_us // 1000000
        limit.nanoseconds = wait_us % 1000000 * 1000
        count = syscall(SYS_EPOLL_PWAIT2, driver.fd, driver.events, <int>EVENTS_MAX, &limit, NULL, <size_t>0)
        # EPERM: a filter of system calls that is older than this one.
        if count >= 0 or errno not in (ENOSYS, EPERM):
            return <int>max(count, 0)
        driver.has_pwait2 = 0
    if wait_us > 0:
        wait_us = min((wait_us + 999) // 1000, <int64_t>WAIT_MS_MAX)
    return max(epoll_wait(driver.fd, driver.events, EVENTS_MAX, <int>wait_us), 0)


cdef void run(Engine *engine, Epoll *driver) noexcept nogil:
    cdef int count
    while turn_goes_on(engine):
        count = wait_for_events(engine, driver)
        turn_begin(engine)
        if driver.reports is not NULL:
            deliver_reports(engine, driver)
        if engine.fills_under_way:
            deliver_fills(engine, driver)
        handle_events(engine, driver, count)
        turn_end(engine)
        if driver.closing is not NULL:
            free_closed(engine, driver)
        settle_accepting(engine, driver)


cdef void end(Engine *engine, Epoll *driver) noexcept nogil:
    """Ends all connections, and writes the last lines of the log."""
    cdef pollfd log
    cdef uint32_t index
    for index in range(engine.connections_made):
        if engine.connections[index].state != CONNECTION_FREE:
            driver_tear_down(engine, &engine.connections[index])
    free_closed(engine, driver)
    readers_end(driver.readers)
    while engine.fills_under_way:
        deliver_fills(engine, driver)
    log.fd = engine.log.fd
    log.events = POLLOUT
    while engine.log.used or engine.log.writing:
        log_flush(engine)
        if engine.log.writing:
            if poll(&log, 1, LOG_END_TIMEOUT_MS) <= 0:
                break
            write_log_rest(engine)


cdef void fill_driver(Engine *engine, Epoll *driver) noexcept nogil:
    engine.driver_data = driver
    engine.driver.send = driver_send
    engine.driver.send_last = driver_send_last
    engine.driver.send_reported = driver_send_reported
    engine.driver.read_fragment = driver_read_fragment
    engine.driver.look_up = opening_by_thread
    engine.driver.pause = driver_pause
    engine.driver.resume = driver_resume
    engine.driver.finish = driver_finish
    engine.driver.tear_down = driver_tear_down
    engine.driver.ring_bell = driver_ring_bell
    engine.driver.write_log = driver_write_log


cdef class EpollEngine(EngineThread):
    """The engine with the epoll driver. EngineError: there is no descriptor or memory for it."""

    cdef int run_loop(self) except -1:
        cdef Epoll *driver = <Epoll *>calloc(1, sizeof(Epoll))
        cdef int failed
        if driver is NULL:
            raise MemoryError
        driver.fd = -1
        try:
            # Pages that no connection ever uses are never touched, and cost nothing.
            driver.sockets = <Socket *>calloc(self.engine.limits.connections_max, sizeof(Socket))
            driver.jobs = <Job *>calloc(self.engine.limits.connections_max, sizeof(Job))
            driver.readers = readers_new(self.engine.bell)
            if driver.sockets is NULL or driver.jobs is NULL or driver.readers is NULL:
                raise MemoryError
            failed = self.prepare(driver)
            if failed:
                raise EngineError(f"epoll cannot be set up: {os.strerror(-failed)}; look at the limit of open files"
                                  " (ulimit -n)")
            fill_driver(self.engine, driver)
            self.started()
            with nogil:
                run(self.engine, driver)
                end(self.engine, driver)
        finally:
            self.engine.driver_data = NULL
            if driver.fd >= 0:
                close(driver.fd)
            readers_free(driver.readers)
            free(driver.jobs)
            free(driver.sockets)
            free(driver)
        return 0

    cdef int prepare(self, Epoll *driver) except 1:
        """Watches the bell and the listeners. 0, or -errno."""
        cdef int number, failed
        if len(self.listeners) > LISTENERS_MAX:
            raise EngineError(f"{len(self.listeners)} listeners are more than {LISTENERS_MAX}")
        driver.has_pwait2 = 1
        driver.is_accepting = 1
        driver.fd = epoll_create1(EPOLL_CLOEXEC)
        if driver.fd < 0:
            return -errno
        failed = watch(driver, EPOLL_CTL_ADD, self.engine.bell, EPOLLIN, INDEX_BELL)
        for number in range(len(self.listeners)):
            driver.listeners[number] = self.listeners[number].fileno()
            driver.listener_count = number + 1
            if not failed:
                failed = watch(driver, EPOLL_CTL_ADD, driver.listeners[number], EPOLLIN,
                               INDEX_LISTENER | <uint64_t>number << 32)
        return failed
