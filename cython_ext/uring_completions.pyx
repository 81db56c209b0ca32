"""What the io_uring driver's completions tell, and receiving, which most of them are about.

The rules:

- The completions of a turn are those that are there when it begins (reap).
- Receives are multishot, into provided buffers: a buffer is given back as soon as the connection has looked at it.
- A connection's completion that comes when its record is another's, or nobody's, is known by its generation.
- A multishot receive that tells of bytes may never tell of a reset behind them (Linux 6.18; ARCHITECTURE, Traps). So a
  connection that has brought bytes and still waits is asked, a little later and once, whether it is alive.
"""
from libc.errno cimport EAGAIN, ENOBUFS
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.accesslog cimport log_written
from batchbridge.cython_ext.answer cimport answer_distrust
from batchbridge.cython_ext.connection cimport received, received_end
from batchbridge.cython_ext.core cimport (
    CONNECTION_CLOSES, CONNECTION_FREE, CONNECTION_LINGERS, IS_CLOSING, IS_FINISHING, IS_PAUSED, IS_RECEIVING,
    Connection, Engine, Fill)
from batchbridge.cython_ext.files cimport files_watch_fd
from batchbridge.cython_ext.fills cimport fill_at
from batchbridge.cython_ext.output cimport fragment_read, sent
from batchbridge.cython_ext.polled cimport polled_rang
from batchbridge.cython_ext.ring cimport *
from batchbridge.cython_ext.rows cimport tier_cookie_known
from batchbridge.cython_ext.send cimport send_fell_short
from batchbridge.cython_ext.spills cimport tier_pause, tier_resume
from batchbridge.cython_ext.tier cimport Tier
from batchbridge.cython_ext.uring_accept cimport ask_peer_name, on_accept, peer_name, take_peer_name
from batchbridge.cython_ext.uring_close cimport close_if_over, close_slot, driver_tear_down, on_close
from batchbridge.cython_ext.uring_operations cimport *
from batchbridge.cython_ext.uring_send cimport on_zero_copy


cdef extern from "compat.h" nogil:
    int ECANCELED


cdef extern from "<poll.h>" nogil:
    short POLLIN


cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT, MSG_PEEK


cdef enum:
    COMPLETIONS_AT_ONCE = 256
    PROBE_DELAY_US = 200000         # by then most of those that brought bytes no longer wait


# --- receiving -------------------------------------------------------------------------------------------------------

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
        if connection.family == 0 and not driver_of(engine).is_direct:
            ask_peer_name(connection)       # one that has no row, which would have said it
        arm_receive(driver_of(engine), connection)


cdef inline bint waits(const Connection *connection) noexcept nogil:
    """Whether it waits, for the client or for an answer; who does not wait learns of a reset by sending."""
    return connection.input is not NULL or connection.owed or connection.state == CONNECTION_LINGERS


cdef void suspect(Engine *engine, Uring *driver, const Connection *connection) noexcept nogil:
    if driver.suspect_count == 0:
        driver.probe_us = engine.now_us + PROBE_DELAY_US
    driver.is_suspect[connection.index] = 1
    driver.suspects[driver.suspect_count] = connection.index
    driver.suspect_count += 1


cdef void probe_suspects(Engine *engine, Uring *driver) noexcept nogil:
    cdef Connection *connection
    cdef io_uring_sqe *entry
    cdef uint32_t place
    if engine.now_us < driver.probe_us:
        return
    for place in range(driver.suspect_count):
        connection = &engine.connections[driver.suspects[place]]
        driver.is_suspect[connection.index] = 0
        if (connection.flags & (IS_RECEIVING | IS_CLOSING)) != IS_RECEIVING or not waits(connection):
            continue
        entry = ring_entry(&driver.ring)
        io_uring_prep_recv(entry, connection.fd, &driver.peeked, 1, MSG_DONTWAIT | MSG_PEEK)
        name_entry(entry, OPERATION_PROBE, connection, driver.slot_flag)
        connection.operations += 1
    driver.suspect_count = 0


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
    if connection.state == CONNECTION_CLOSES:
        return
    if flags & IORING_CQE_F_MORE:
        if waits(connection) and not driver.is_suspect[connection.index]:
            suspect(engine, driver, connection)
        return
    if result == 0:
        received_end(engine, connection)
    elif result > 0 or result == -ENOBUFS or result == -ECANCELED:
        # Ended by the kernel for lack of buffers or room, or by a pause that may be over already.
        if not connection.flags & (IS_PAUSED | IS_CLOSING):
            arm_receive(driver, connection)
    else:
        driver_tear_down(engine, connection)


# --- of no connection ------------------------------------------------------------------------------------------------

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


cdef void driver_read_fragment(Engine *engine, Fill *fill) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver_of(engine).ring)
    io_uring_prep_read(entry, fill.file, fill.reading.at + fill.done, fill.reading.length - fill.done,
                       fill.reading.offset + fill.done)
    entry.user_data = (<uint64_t>OPERATION_FILL << 56) | fill.index


cdef void driver_write_log(Engine *engine, const char *text, uint32_t length) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    driver.log_text = text
    driver.log_left = length
    io_uring_prep_write(entry, engine.log.fd, text, length, <uint64_t>-1)
    entry.user_data = <uint64_t>OPERATION_LOG << 56


cdef void on_log(Engine *engine, int result) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    if result > 0 and <uint32_t>result < driver.log_left:
        driver_write_log(engine, driver.log_text + result, driver.log_left - <uint32_t>result)
        return
    log_written(engine, result)


# --- completions -----------------------------------------------------------------------------------------------------

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
    elif operation == OPERATION_PROBE:
        connection.operations -= 1
        if result < 0 and result != -EAGAIN:
            driver_tear_down(engine, connection)
    elif operation == OPERATION_FINISH:
        connection.operations -= 1
        connection.flags &= ~IS_FINISHING
        if connection.state == CONNECTION_CLOSES:
            close_slot(engine, driver_of(engine), connection)
    close_if_over(engine, connection)


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
