"""The io_uring driver: multishot accept, multishot receive from provided buffers, one submit a turn.

Connections are direct descriptors: slots of the ring, which no other part of the process sees and no call has to look
up. Before Linux 6.7 such a socket cannot be asked for its peer's address, so there they are ordinary descriptors.

The rules:

- A send of the scratch is tried at once and makes a completion only when it falls short: DONTWAIT | WAITALL with
  CQE_SKIP_SUCCESS reports each short send, which NOSIGNAL alone would hide. Such a completion is made while the entry
  is submitted, so it is the first thing that the next turn sees of its connection.
- Every other operation of a connection is counted (Connection.operations) until its last completion. The record is
  freed, and its slot reused, when the count is 0 and the descriptor closed: no completion ever meets a stranger.
- A last response and its close are linked, so that data and FIN share a segment and a short send breaks the chain. The
  send then makes its completion in any case: behind an entry with CQE_SKIP_SUCCESS that fails, the rest of a chain ends
  without one, and nobody would learn that the descriptor was not closed.
- A zero-copy send holds its Answer until the kernel's notification; the next response does not wait for that (law 4).
"""
import os

from libc.errno cimport EAGAIN, EMFILE, ENFILE, ENOBUFS, ENOMEM
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from batchbridge.cython_ext.accesslog cimport log_flush, log_written
from batchbridge.cython_ext.answer cimport answer_begin, answer_distrust, answer_part, answer_turn
from batchbridge.cython_ext.arena cimport NO_CHUNK, Arena, arena_registered_chunk
from batchbridge.cython_ext.bridge cimport RESPONSE_BLOCK_SIZE_BYTES
from batchbridge.cython_ext.connection cimport (
    connection_closed, connection_lost, connection_open, connection_peer, received, received_end)
from batchbridge.cython_ext.core cimport (
    ANSWER_LANE, ANSWER_OBJECT, CONNECTION_CLOSES, CONNECTION_FREE, CONNECTION_OPEN, IS_CLOSING, IS_FINISHING,
    IS_PAUSED, IS_RECEIVING, Answer, Connection, Engine, Fill)
from batchbridge.cython_ext.engine cimport EngineThread, turn_begin, turn_end, turn_goes_on, turn_wait_us
from batchbridge.cython_ext.cache cimport object_fragments
from batchbridge.cython_ext.files cimport files_watch_fd
from batchbridge.cython_ext.fills cimport fill_at
from batchbridge.cython_ext.fragments cimport Fragments, fragment_at, fragment_pin
from batchbridge.cython_ext.kernel cimport (
    tier_consume, tier_cookie_known, tier_has_news, tier_has_records, tier_left, tier_pause, tier_resume,
    tier_sleeps, tier_woke)
from batchbridge.cython_ext.output cimport (
    answer_at, answer_drop, answer_hold, answer_let_go, fragment_read, mark_dirty, sent)
from batchbridge.cython_ext.polled cimport (
    PolledSockets, polled_arm, polled_rang, polled_remove, polled_settle, polled_woke)
from batchbridge.cython_ext.publish cimport publish_end
from batchbridge.cython_ext.ring cimport *
from batchbridge.cython_ext.send cimport send_fell_short
from batchbridge.cython_ext.tier cimport Tier

from batchbridge.errors import EngineError


cdef extern from "compat.h" nogil:
    int ECANCELED
    void bb_prep_peer_name(io_uring_sqe *, int, void *, uint32_t) noexcept
    void bb_prep_cookie(io_uring_sqe *, int, uint64_t *) noexcept


cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    int getpeername(int, sockaddr *, unsigned int *) noexcept
    int SOCK_CLOEXEC
    int MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL, MSG_MORE, MSG_PEEK, SHUT_WR, AF_INET, AF_INET6


cdef extern from "<poll.h>" nogil:
    short POLLIN


cdef extern from "<arpa/inet.h>" nogil:
    uint16_t ntohs(uint16_t) noexcept


cdef extern from "<unistd.h>" nogil:
    ssize_t write(int, const void *, size_t) noexcept
    int close(int) noexcept


cdef enum:
    SUBMISSION_ENTRIES = 4096
    COMPLETION_ENTRIES = 65536
    COMPLETIONS_AT_ONCE = 256
    LISTENERS_MAX = 16
    SURPLUS_MAX = 4096              # as many as a listener's backlog holds
    PEER_NAME_SIZE_BYTES = 32
    SOCKADDR_IN_SIZE = 16
    SOCKADDR_IN6_SIZE = 28
    SHORT_WAIT_US = 20000           # longer waits are timer entries, which cost nothing while they are not due
    ACCEPT_RETRY_US = 100000
    HELD_WAIT_US = 1000
    NEVER_US = 0x7FFFFFFFFFFFFFFF


# What a completion is of: the top byte of its user_data. Below it 24 bits of the connection's generation, and its index
# (or the number of a listener, or of an Answer).
cdef enum Operation:
    OPERATION_ACCEPT = 1
    OPERATION_PEER
    OPERATION_MEET
    OPERATION_RECEIVE
    OPERATION_SEND
    OPERATION_SEND_REPORTED
    OPERATION_SEND_ZERO_COPY
    OPERATION_CLOSE
    OPERATION_FINISH
    OPERATION_CANCEL
    OPERATION_BELL
    OPERATION_LOG
    OPERATION_TIMER
    OPERATION_RECORDS
    OPERATION_FILES
    OPERATION_FILL
    OPERATION_UNSEEN                # whose completion tells nothing
    OPERATION_POLLED


cdef struct Uring:
    Ring ring
    int listeners[16]
    uint32_t name_lengths[16]       # of their clients' addresses: SO_PEERNAME must be asked for just that
    uint32_t listener_count
    uint32_t accepting              # bits by listener: a multishot accept is armed
    uint64_t accept_retry_us        # 0, or when to try again what failed for lack of descriptors
    uint64_t bell_value
    uint64_t timer_us               # the earliest timer entry that is armed; 0: none
    __kernel_timespec timer
    uint8_t is_watching             # a change of a file wakes this thread
    uint8_t is_direct               # connections are slots; the kernel has socket commands, which tell their peers
    uint32_t slot_flag              # IOSQE_FIXED_FILE, or 0
    uint8_t has_buffers             # a table of fixed buffers: the lanes' arenas by their numbers, then chunks
    uint8_t lanes_registered
    uint32_t first_chunk            # its first chunk's place there
    char *peer_names                # PEER_NAME_SIZE_BYTES for each connection
    const char *log_text
    uint32_t log_left
    char peeked
    # Accepted, though all connections are in use: a multishot accept of ordinary descriptors ends a little late.
    int surplus[SURPLUS_MAX]
    uint32_t surplus_count
    PolledSockets polled            # with the kernel side


cdef Uring *driver_of(const Engine *engine) noexcept nogil:
    return <Uring *>engine.driver_data


# --- entries ---------------------------------------------------------------------------------------------------------

cdef void name_entry(io_uring_sqe *entry, int operation, const Connection *connection, uint32_t flags) noexcept nogil:
    entry.flags |= <uint8_t>flags
    entry.user_data = tag(operation, connection)


cdef uint64_t tag(int operation, const Connection *connection) noexcept nogil:
    return (<uint64_t>operation << 56) | (<uint64_t>(connection.generation & 0xFFFFFF) << 32) | connection.index


cdef void arm_accept(Uring *driver, uint32_t listener) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    if driver.is_direct:
        io_uring_prep_multishot_accept_direct(entry, driver.listeners[listener], NULL, NULL, 0)
    else:
        io_uring_prep_multishot_accept(entry, driver.listeners[listener], NULL, NULL, SOCK_CLOEXEC)
    entry.user_data = (<uint64_t>OPERATION_ACCEPT << 56) | listener
    driver.accepting |= 1u << listener


cdef void arm_receive(Uring *driver, Connection *connection) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    io_uring_prep_recv_multishot(entry, connection.fd, NULL, 0, 0)
    entry.buf_group = RECEIVE_GROUP
    name_entry(entry, OPERATION_RECEIVE, connection, driver.slot_flag | IOSQE_BUFFER_SELECT)
    connection.flags |= IS_RECEIVING
    connection.operations += 1


cdef void arm_bell(Uring *driver, int bell) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    io_uring_prep_read(entry, bell, &driver.bell_value, 8, 0)
    entry.user_data = <uint64_t>OPERATION_BELL << 56


cdef void arm_records(Uring *driver, const Tier *tier) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    io_uring_prep_poll_multishot(entry, tier.records_fd, POLLIN)
    entry.user_data = <uint64_t>OPERATION_RECORDS << 56


cdef void arm_files(Engine *engine, Uring *driver) noexcept nogil:
    """Lets a change of a file wake this thread, which else might not look while the kernel side answers."""
    cdef int fd = files_watch_fd(engine)
    cdef io_uring_sqe *entry
    if fd <= 0 or driver.is_watching:
        return
    entry = ring_entry(&driver.ring)
    io_uring_prep_poll_multishot(entry, fd, POLLIN)
    entry.user_data = <uint64_t>OPERATION_FILES << 56
    driver.is_watching = 1


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


cdef void cancel(Uring *driver, const Connection *connection, int operation, uint32_t flags) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    io_uring_prep_cancel64(entry, tag(operation, connection), 0)
    name_entry(entry, OPERATION_CANCEL, connection, IOSQE_CQE_SKIP_SUCCESS | flags)


cdef void close_slot(Engine *engine, Uring *driver, Connection *connection) noexcept nogil:
    cdef io_uring_sqe *entry
    if connection.row and engine.tier.can_answer:
        answer_part(engine.tier, connection)
    entry = ring_entry(&driver.ring)
    prepare_close(driver, entry, connection.fd)
    name_entry(entry, OPERATION_CLOSE, connection, 0)
    connection.operations += 1


cdef void prepare_close(const Uring *driver, io_uring_sqe *entry, int fd) noexcept nogil:
    if driver.is_direct:
        io_uring_prep_close_direct(entry, <unsigned int>fd)
    else:
        io_uring_prep_close(entry, fd)


# --- the driver's functions ------------------------------------------------------------------------------------------

cdef void driver_send(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    io_uring_prep_send(entry, connection.fd, data, length, MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL)
    name_entry(entry, OPERATION_SEND, connection, driver.slot_flag | IOSQE_CQE_SKIP_SUCCESS)


cdef void driver_send_last(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    cdef io_uring_sqe *entry
    polled_remove(engine, &driver.ring, &driver.polled, connection)
    entry = ring_entry(&driver.ring)
    io_uring_prep_send(entry, connection.fd, data, length, MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL | MSG_MORE)
    name_entry(entry, OPERATION_SEND, connection, driver.slot_flag | IOSQE_IO_LINK)
    if connection.flags & IS_RECEIVING:
        # A hard link: that there was nothing left to cancel must not keep the descriptor open.
        cancel(driver, connection, OPERATION_RECEIVE, IOSQE_IO_HARDLINK)
    close_slot(engine, driver, connection)
    connection.flags |= IS_CLOSING


cdef void driver_send_reported(Engine *engine, Connection *connection, const char *data, uint64_t length, bint more,
                               Answer *answer, uint32_t place) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    cdef int flags = MSG_NOSIGNAL | MSG_MORE if more else MSG_NOSIGNAL
    cdef int buffer = fixed_buffer(engine, answer, data, length)
    cdef Fragments *fragments
    connection.operations += 1
    if buffer < 0:
        io_uring_prep_send(entry, connection.fd, data, length, flags)
        name_entry(entry, OPERATION_SEND_REPORTED, connection, driver.slot_flag)
        return
    io_uring_prep_send_zc(entry, connection.fd, data, length, flags, 0)
    entry.ioprio |= <uint16_t>IORING_RECVSEND_FIXED_BUF
    entry.buf_index = <uint16_t>buffer
    entry.flags |= <uint8_t>driver.slot_flag
    entry.user_data = zero_copy_tag(answer, place)
    if answer.kind == ANSWER_OBJECT:
        fragments = object_fragments(answer.object)
        fragment_pin(fragments, fragment_at(fragments, place))
    answer.connection_index = connection.index
    answer.connection_generation = connection.generation
    answer_hold(answer)
    engine.counters.zero_copy_sends += 1
    engine.counters.zero_copy_pending += 1


cdef uint64_t zero_copy_tag(const Answer *answer, uint32_t place) noexcept nogil:
    return (<uint64_t>OPERATION_SEND_ZERO_COPY << 56) | (<uint64_t>place << 32) | answer.index


cdef int fixed_buffer(const Engine *engine, const Answer *answer, const char *data, uint64_t length) noexcept nogil:
    """The number of the fixed buffer that bytes are to be sent from without a copy; -1: they are to be copied."""
    cdef const Uring *driver = driver_of(engine)
    cdef uint32_t number = 0
    if answer is NULL:
        return -1
    # What is sent at a time counts, and not the response: an object's last fragment may be short.
    if length < engine.limits.zero_copy_size_bytes_min:
        return -1
    if answer.kind == ANSWER_LANE:
        while engine.lanes[number] is not answer.lane:
            number += 1
        return <int>number if driver.lanes_registered else -1
    number = arena_registered_chunk(&engine.cache.memory.arena, data)
    return -1 if number == <uint32_t>NO_CHUNK else <int>(driver.first_chunk + number)


cdef bint on_chunk_opened(void *context, uint32_t chunk, char *at, uint64_t size_bytes) noexcept nogil:
    cdef Uring *driver = <Uring *>context
    return ring_set_buffer(&driver.ring, driver.first_chunk + chunk, at, size_bytes) == 0


cdef void on_chunk_closing(void *context, uint32_t chunk) noexcept nogil:
    cdef Uring *driver = <Uring *>context
    ring_set_buffer(&driver.ring, driver.first_chunk + chunk, NULL, 0)


cdef void driver_read_fragment(Engine *engine, Fill *fill) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver_of(engine).ring)
    io_uring_prep_read(entry, fill.file, fill.reading.at + fill.done, fill.reading.length - fill.done,
                       fill.reading.offset + fill.done)
    entry.user_data = (<uint64_t>OPERATION_FILL << 56) | fill.index


cdef void driver_pause(Engine *engine, Connection *connection) noexcept nogil:
    if connection.row:
        tier_pause(engine.tier, connection)
    elif connection.flags & IS_RECEIVING:
        cancel(driver_of(engine), connection, OPERATION_RECEIVE, 0)


cdef void driver_resume(Engine *engine, Connection *connection) noexcept nogil:
    # Where the cancellation is still under way, its completion finds that the pause is over and arms anew.
    if connection.row:
        tier_resume(engine.tier, connection)
    elif not connection.flags & IS_RECEIVING:
        arm_receive(driver_of(engine), connection)


cdef void driver_finish(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    cdef io_uring_sqe *entry
    if length:
        entry = ring_entry(&driver.ring)
        io_uring_prep_send(entry, connection.fd, data, length, MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL)
        name_entry(entry, OPERATION_SEND, connection, driver.slot_flag | IOSQE_IO_LINK)
    entry = ring_entry(&driver.ring)
    io_uring_prep_shutdown(entry, connection.fd, SHUT_WR)
    name_entry(entry, OPERATION_FINISH, connection, driver.slot_flag)
    connection.operations += 1
    connection.flags |= IS_FINISHING


cdef void driver_tear_down(Engine *engine, Connection *connection) noexcept nogil:
    if connection.state == CONNECTION_CLOSES or connection.state == CONNECTION_FREE:
        return
    connection_lost(engine, connection)
    if not connection.flags & IS_CLOSING:
        abort(engine, connection)
    # Else on_close sees to the rest: a slot is never closed twice.


cdef void abort(Engine *engine, Connection *connection) noexcept nogil:
    """Cancels what is under way, since an operation keeps the socket open behind a closed descriptor; and closes."""
    cdef Uring *driver = driver_of(engine)
    cdef io_uring_sqe *entry
    polled_remove(engine, &driver.ring, &driver.polled, connection)
    if connection.flags & IS_RECEIVING:
        cancel(driver, connection, OPERATION_RECEIVE, 0)
    if connection.output is not NULL:
        cancel(driver, connection, OPERATION_SEND_REPORTED, 0)
        if connection.output.zero_copy or connection.output.is_pinned:
            entry = ring_entry(&driver.ring)
            io_uring_prep_cancel64(entry, zero_copy_tag(connection.output.answer, connection.output.place), 0)
            name_entry(entry, OPERATION_CANCEL, connection, IOSQE_CQE_SKIP_SUCCESS)
    # A shutdown is carried out by a thread of the kernel's, which looks only then whose descriptor it is.
    if not connection.flags & IS_FINISHING:
        close_slot(engine, driver, connection)


cdef void driver_ring_bell(Engine *engine, int bell) noexcept nogil:
    # Not through the ring: an eventfd has no write that could not block, so the kernel would give it to a thread.
    cdef uint64_t one = 1
    write(bell, &one, 8)


cdef void driver_write_log(Engine *engine, const char *text, uint32_t length) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    driver.log_text = text
    driver.log_left = length
    io_uring_prep_write(entry, engine.log.fd, text, length, <uint64_t>-1)
    entry.user_data = <uint64_t>OPERATION_LOG << 56


# --- completions -----------------------------------------------------------------------------------------------------

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


cdef void close_unserved(Uring *driver, int fd) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    prepare_close(driver, entry, fd)
    entry.flags |= <uint8_t>IOSQE_CQE_SKIP_SUCCESS
    entry.user_data = <uint64_t>OPERATION_UNSEEN << 56


cdef char *peer_name(const Uring *driver, const Connection *connection) noexcept nogil:
    return driver.peer_names + <size_t>connection.index * PEER_NAME_SIZE_BYTES


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


cdef void on_receive(Engine *engine, Connection *connection, int result, uint32_t flags) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    cdef uint32_t buffer = flags >> IORING_CQE_BUFFER_SHIFT
    if not flags & IORING_CQE_F_MORE:
        connection.flags &= ~IS_RECEIVING
        connection.operations -= 1
    if result > 0:
        if connection.family == 0 and driver.is_direct:
            take_peer_name(connection, peer_name(driver, connection))
        received(engine, connection, driver.ring.buffers + <size_t>buffer * driver.ring.buffer_size_bytes,
                 <uint32_t>result)
    if flags & IORING_CQE_F_BUFFER:
        ring_give_back(&driver.ring, buffer)
    if connection.state == CONNECTION_CLOSES or flags & IORING_CQE_F_MORE:
        return
    if result == 0:
        received_end(engine, connection)
    elif result > 0 or result == -ENOBUFS or result == -ECANCELED:
        # Ended by the kernel for lack of buffers or room, or by a pause that may be over already.
        if not connection.flags & (IS_PAUSED | IS_CLOSING):
            arm_receive(driver, connection)
    else:
        driver_tear_down(engine, connection)


cdef void on_zero_copy(Engine *engine, uint32_t index, uint32_t place, int result, uint32_t flags) noexcept nogil:
    """A zero-copy send makes two completions: what was sent, and that its bytes are no longer looked at."""
    cdef Answer *answer = answer_at(engine, index)
    cdef Connection *connection = &engine.connections[answer.connection_index]
    if not flags & IORING_CQE_F_NOTIF:
        connection.operations -= 1
        if connection.state == CONNECTION_OPEN:
            sent(engine, connection, result)
        close_if_over(engine, connection)
    if not flags & IORING_CQE_F_MORE:
        engine.counters.zero_copy_pending -= 1
        answer_let_go(engine, answer, place)
        answer_drop(engine, answer)


cdef void close_if_over(Engine *engine, Connection *connection) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    if connection.state == CONNECTION_CLOSES and connection.operations == 0:
        if engine.tier is not NULL:
            tier_left(engine.tier, connection)
        connection_closed(engine, connection)
        if driver.accept_retry_us:
            driver.accept_retry_us = engine.now_us


cdef void on_close(Engine *engine, Connection *connection, int result) noexcept nogil:
    # ECANCELED: the last response, which it was linked to, fell short; the connection goes on until that has left.
    connection.flags &= ~IS_CLOSING
    if result != -ECANCELED:
        connection_lost(engine, connection)
    elif connection.state == CONNECTION_CLOSES:
        abort(engine, connection)
    else:
        mark_dirty(engine, connection)      # a flush in between has let it be


cdef void on_connection(Engine *engine, int operation, Connection *connection, int result,
                        uint32_t flags) noexcept nogil:
    if operation == OPERATION_RECEIVE:
        on_receive(engine, connection, result, flags)
    elif operation == OPERATION_MEET:
        connection.operations -= 1
        if connection.state != CONNECTION_CLOSES:
            tier_cookie_known(engine.tier, connection)
    elif operation == OPERATION_SEND:
        # That of a last response tells also when all has left.
        if connection.state != CONNECTION_CLOSES and result != <int>connection.leaving_length:
            send_fell_short(engine, connection, result)
    elif operation == OPERATION_SEND_REPORTED:
        connection.operations -= 1
        if connection.state != CONNECTION_CLOSES:
            sent(engine, connection, result)
    elif operation == OPERATION_CLOSE:
        connection.operations -= 1
        on_close(engine, connection, result)
    elif operation == OPERATION_FINISH:
        connection.operations -= 1
        connection.flags &= ~IS_FINISHING
        if connection.state == CONNECTION_CLOSES:
            close_slot(engine, driver_of(engine), connection)
    close_if_over(engine, connection)


cdef void on_log(Engine *engine, int result) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    if result > 0 and <uint32_t>result < driver.log_left:
        driver_write_log(engine, driver.log_text + result, driver.log_left - <uint32_t>result)
        return
    log_written(engine, result)


cdef void on_completion(Engine *engine, uint64_t user_data, int result, uint32_t flags) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    cdef int operation = <int>(user_data >> 56)
    cdef uint32_t index = <uint32_t>user_data
    cdef Connection *connection
    if operation == OPERATION_ACCEPT:
        on_accept(engine, index, result, flags)
    elif operation == OPERATION_SEND_ZERO_COPY:
        on_zero_copy(engine, index, <uint32_t>(user_data >> 32) & 0xFFFFFF, result, flags)
    elif operation == OPERATION_BELL:
        arm_bell(driver, engine.bell)
    elif operation == OPERATION_LOG:
        on_log(engine, result)
    elif operation == OPERATION_TIMER:
        driver.timer_us = 0
    elif operation == OPERATION_FILL:
        fragment_read(engine, fill_at(engine, index), result)
    elif operation == OPERATION_RECORDS:
        if not flags & IORING_CQE_F_MORE:
            arm_records(driver, engine.tier)
    elif operation == OPERATION_FILES:
        driver.is_watching = flags & IORING_CQE_F_MORE != 0
        answer_distrust(engine, engine.tier)
    elif operation == OPERATION_POLLED:
        polled_rang(engine, &driver.polled, user_data, result, flags)
    elif OPERATION_PEER <= operation <= OPERATION_CANCEL:
        connection = &engine.connections[index]
        if (connection.generation & 0xFFFFFF) == (user_data >> 32 & 0xFFFFFF) and connection.state != CONNECTION_FREE:
            on_connection(engine, operation, connection, result, flags)


# --- the loop --------------------------------------------------------------------------------------------------------

cdef void arm_timer(Engine *engine, Uring *driver, int64_t wait_us) noexcept nogil:
    """Makes sure that a timer entry will end the wait in time; an earlier one that fires for nothing does no harm."""
    cdef uint64_t moment_us = engine.now_us + <uint64_t>wait_us
    cdef io_uring_sqe *entry
    if driver.timer_us and driver.timer_us <= moment_us:
        return
    driver.timer_us = moment_us
    driver.timer.tv_sec = wait_us // 1000000
    driver.timer.tv_nsec = (wait_us % 1000000) * 1000
    entry = ring_entry(&driver.ring)
    io_uring_prep_timeout(entry, &driver.timer, 0, 0)
    entry.user_data = <uint64_t>OPERATION_TIMER << 56


cdef void retry_accepts(Engine *engine, Uring *driver) noexcept nogil:
    cdef uint32_t listener
    if engine.now_us < driver.accept_retry_us:
        if driver.accept_retry_us == NEVER_US:
            return
        if engine.next_deadline_us == 0 or driver.accept_retry_us < engine.next_deadline_us:
            engine.next_deadline_us = driver.accept_retry_us
        return
    driver.accept_retry_us = 0
    while driver.surplus_count and engine.open_connections < engine.limits.connections_max:
        driver.surplus_count -= 1
        adopt(engine, driver, 0, driver.surplus[driver.surplus_count])
    if driver.surplus_count:
        driver.accept_retry_us = NEVER_US
        return
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


cdef void reap(Engine *engine, Uring *driver) noexcept nogil:
    """Takes the completions that are there now. What is submitted meanwhile, where the queue is full, makes more; they
    wait for the next turn, or receives that find no buffer would keep this one going for ever."""
    cdef io_uring_cqe *completions[COMPLETIONS_AT_ONCE]
    cdef unsigned int left = io_uring_cq_ready(&driver.ring.uring), count, index
    cdef bint has_reaped = left > 0
    while left:
        count = io_uring_peek_batch_cqe(&driver.ring.uring, completions, min(<unsigned int>COMPLETIONS_AT_ONCE, left))
        for index in range(count):
            on_completion(engine, completions[index].user_data, completions[index].res, completions[index].flags)
        io_uring_cq_advance(&driver.ring.uring, count)
        ring_show_buffers(&driver.ring)
        left -= count
    # The kernel sets the flag behind the work it stands for, so it can be left over from work that is done already. It
    # is believed for one turn, and again only if that turn brought something.
    engine.more_input = (has_reaped and driver.ring.uring.sq.kflags[0] & IORING_SQ_TASKRUN
                         or io_uring_cq_ready(&driver.ring.uring) > 0)


cdef bint must_log(const Engine *engine) noexcept nogil:
    """Whether lines wait, so that this thread will wake by itself before long."""
    return engine.tier.can_answer and engine.log.used > 0 and not engine.log.writing


cdef int one_turn(Engine *engine, Uring *driver, int64_t wait_us) noexcept nogil:
    cdef int result
    if engine.tier is not NULL and wait_us:
        if engine.tier.is_held:
            wait_us = HELD_WAIT_US          # until the log was written, which ends the wait
        elif not tier_sleeps(engine.tier, must_log(engine)):
            wait_us = 0
        elif not engine.tier.can_answer:    # else packets that are answered in the kernel would wake this thread, too
            wait_us = polled_arm(engine, &driver.ring, &driver.polled, wait_us)
    if wait_us > SHORT_WAIT_US:
        arm_timer(engine, driver, wait_us)
        wait_us = -1
    result = ring_submit_and_wait(&driver.ring, wait_us)
    turn_begin(engine)
    engine.counters.submits = driver.ring.system_calls
    if engine.tier is not NULL:
        polled_woke(engine, &driver.ring, &driver.polled)
    reap(engine, driver)
    if engine.tier is not NULL:
        tier_woke(engine.tier)
        if engine.tier.can_answer:
            answer_turn(engine, engine.tier)
            arm_files(engine, driver)
        tier_consume(engine, engine.tier)
        polled_settle(engine, &driver.ring, &driver.polled)
        engine.more_input |= tier_has_news(engine.tier) and not engine.tier.is_held
    if driver.accept_retry_us and not engine.draining:
        retry_accepts(engine, driver)
    turn_end(engine)
    return result


cdef int loop(Engine *engine, Uring *driver) noexcept nogil:
    cdef uint32_t listener
    cdef int result = 0
    for listener in range(driver.listener_count):
        arm_accept(driver, listener)
    arm_bell(driver, engine.bell)
    if engine.tier is not NULL:
        arm_records(driver, engine.tier)
    while turn_goes_on(engine):
        if engine.draining and driver.accepting:
            stop_accepting(engine, driver)
        result = one_turn(engine, driver, turn_wait_us(engine))
        if result < 0 and result != -EAGAIN:
            break
    wind_up(engine, driver)
    return 0 if result == -EAGAIN else result


cdef bint has_records(const Engine *engine) noexcept nogil:
    return engine.tier is not NULL and tier_has_records(engine.tier)


cdef void wind_up(Engine *engine, Uring *driver) noexcept nogil:
    """Closes what is open and lets the log be written, for a second at most."""
    cdef uint32_t index
    cdef uint64_t until_us = engine.now_us + 1000000
    stop_accepting(engine, driver)
    for index in range(driver.surplus_count):
        close_unserved(driver, driver.surplus[index])
    driver.surplus_count = 0
    for index in range(engine.connections_made):
        driver_tear_down(engine, &engine.connections[index])
    while engine.now_us < until_us and (engine.open_connections or engine.log.used or engine.log.writing
                                        or engine.counters.zero_copy_pending or engine.fills_under_way
                                        or has_records(engine)):
        log_flush(engine)
        one_turn(engine, driver, 1000)


cdef class UringEngine(EngineThread):
    """The engine with the io_uring driver, and with the kernel side where `settings` say so.

    EngineError: this kernel, or a sandbox, does not let it be.
    """
    cdef object kernel_side

    def __init__(self, settings, routes, int lane_count, listeners=()):
        super().__init__(settings, routes, lane_count, listeners)
        self.kernel_side = None
        if settings.get("has_kernel_side"):
            # Not every build has it.
            from batchbridge.cython_ext.bpf import KernelSide
            self.kernel_side = KernelSide(settings["max_connections"], settings["kernel_ring_size_bytes"],
                                          [listener.fileno() for listener in listeners], settings["sqpoll"])
            self.engine.tier = <Tier *><size_t>self.kernel_side.tier_address

    def stats(self):
        figures = super().stats()
        if self.kernel_side is not None:
            figures["kernel_side"] = self.kernel_side.stats()
            if self.engine.driver_data is not NULL:
                figures["kernel_side"]["lost_wakes"] = driver_of(self.engine).polled.lost_wakes
            self.kernel_side.add_answered(figures)
        return figures

    cdef open_ring(self, Uring *driver):
        cdef Engine *engine = self.engine
        cdef uint64_t buffers = engine.limits.receive_buffers
        cdef int result = ring_open(&driver.ring, SUBMISSION_ENTRIES, COMPLETION_ENTRIES)
        if result < 0:
            raise EngineError(f"io_uring cannot be set up: {os.strerror(-result)}")
        if driver.is_direct:
            result = io_uring_register_files_sparse(&driver.ring.uring, engine.limits.connections_max)
        if result < 0:
            raise EngineError(f"io_uring: {engine.limits.connections_max} direct descriptors (max_connections): "
                              f"{os.strerror(-result)}; raise the limit of open files (ulimit -n)")
        result = ring_provide(&driver.ring, <uint32_t>buffers, engine.limits.receive_buffer_size_bytes)
        if result < 0:
            raise EngineError(f"io_uring: {buffers} receive buffers: {os.strerror(-result)}")

    cdef register_memory(self, Uring *driver):
        """A table of fixed buffers: the lanes' arenas now, chunks of the cache's arena as they are opened. Where the
        limit of locked memory ends it, what lies in the rest is copied instead."""
        cdef Engine *engine = self.engine
        cdef Arena *arena = &engine.cache.memory.arena
        cdef uint32_t index
        driver.first_chunk = engine.lane_count
        driver.has_buffers = self.settings["has_zero_copy"] and ring_buffers(
            &driver.ring, engine.lane_count + arena.chunk_count) == 0
        if not driver.has_buffers:
            return
        driver.lanes_registered = engine.lane_count > 0
        for index in range(engine.lane_count):
            if ring_set_buffer(&driver.ring, index, engine.lanes[index].arena,
                               <size_t>engine.lanes[index].block_count * RESPONSE_BLOCK_SIZE_BYTES) < 0:
                driver.lanes_registered = 0
        arena.context = driver
        arena.opened = on_chunk_opened
        arena.closing = on_chunk_closing

    cdef int run_loop(self) except -1:
        cdef Engine *engine = self.engine
        cdef Uring *driver = <Uring *>calloc(1, sizeof(Uring))
        cdef int result, index
        if driver is NULL:
            raise MemoryError
        engine.driver_data = driver
        driver.polled.tag = <uint64_t>OPERATION_POLLED << 56
        # The kernel side's sockets are read by plain calls, too, where its ring was full.
        driver.is_direct = self.settings["has_socket_command"] and engine.tier is NULL
        driver.slot_flag = IOSQE_FIXED_FILE if driver.is_direct else 0
        driver.peer_names = <char *>calloc(engine.limits.connections_max, PEER_NAME_SIZE_BYTES)
        if driver.peer_names is NULL:
            raise MemoryError
        for index, listener in enumerate(self.listeners[:LISTENERS_MAX]):
            driver.listeners[index] = listener.fileno()
            driver.name_lengths[index] = SOCKADDR_IN6_SIZE if listener.family == AF_INET6 else SOCKADDR_IN_SIZE
            driver.listener_count = index + 1
        self.fill_driver()
        try:
            self.open_ring(driver)
            self.register_memory(driver)
            if engine.tier is not NULL and engine.tier.can_answer:
                result = answer_begin(engine, engine.tier)
                if result < 0:
                    raise EngineError(f"the kernel thread that sends cannot ring a bell: {os.strerror(-result)}")
            self.started()
            with nogil:
                result = loop(engine, driver)
        finally:
            if engine.tier is not NULL:
                publish_end(engine.tier)
            engine.cache.memory.arena.opened = NULL
            engine.cache.memory.arena.closing = NULL
            ring_close(&driver.ring)
            free(driver.peer_names)
            free(driver)
            engine.driver_data = NULL
        if result < 0:
            raise EngineError(f"io_uring stopped working: {os.strerror(-result)}")
        return 0

    cdef fill_driver(self):
        cdef Engine *engine = self.engine
        engine.driver.send = driver_send
        engine.driver.send_last = driver_send_last
        engine.driver.send_reported = driver_send_reported
        engine.driver.read_fragment = driver_read_fragment
        engine.driver.pause = driver_pause
        engine.driver.resume = driver_resume
        engine.driver.finish = driver_finish
        engine.driver.tear_down = driver_tear_down
        engine.driver.ring_bell = driver_ring_bell
        engine.driver.write_log = driver_write_log
