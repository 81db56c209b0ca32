"""How connections of the io_uring driver end: last responses, FIN, tearing down, closing.

The rules:

- A last response and its close are linked, so that data and FIN share a segment and a short send breaks the chain. The
  send then makes its completion in any case: behind an entry with CQE_SKIP_SUCCESS that fails, the rest of a chain ends
  without one, and nobody would learn that the descriptor was not closed.
- An operation keeps the socket open behind a closed descriptor, so what is under way is cancelled first.
- A slot is never closed twice: it may be another connection's by then.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from batchbridge.cython_ext.answer cimport answer_part
from batchbridge.cython_ext.connection cimport connection_closed, connection_lost
from batchbridge.cython_ext.core cimport (
    CONNECTION_CLOSES, CONNECTION_FREE, IS_CLOSING, IS_FINISHING, IS_RECEIVING, Connection, Engine)
from batchbridge.cython_ext.output cimport mark_dirty
from batchbridge.cython_ext.polled cimport polled_remove
from batchbridge.cython_ext.ring cimport *
from batchbridge.cython_ext.rows cimport tier_left
from batchbridge.cython_ext.uring_operations cimport *


cdef extern from "compat.h" nogil:
    int ECANCELED


cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL, MSG_MORE, SHUT_WR


# --- descriptors -----------------------------------------------------------------------------------------------------

cdef void prepare_close(const Uring *driver, io_uring_sqe *entry, int fd) noexcept nogil:
    if driver.is_direct:
        io_uring_prep_close_direct(entry, <unsigned int>fd)
    else:
        io_uring_prep_close(entry, fd)


cdef void close_slot(Engine *engine, Uring *driver, Connection *connection) noexcept nogil:
    cdef io_uring_sqe *entry
    if connection.row and engine.tier.can_answer:
        answer_part(engine.tier, connection)
    entry = ring_entry(&driver.ring)
    prepare_close(driver, entry, connection.fd)
    name_entry(entry, OPERATION_CLOSE, connection, 0)
    connection.operations += 1


cdef void close_unserved(Uring *driver, int fd) noexcept nogil:
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    prepare_close(driver, entry, fd)
    entry.flags |= <uint8_t>IOSQE_CQE_SKIP_SUCCESS
    entry.user_data = <uint64_t>OPERATION_UNSEEN << 56


# --- ends ------------------------------------------------------------------------------------------------------------

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


cdef void driver_tear_down(Engine *engine, Connection *connection) noexcept nogil:
    if connection.state == CONNECTION_CLOSES or connection.state == CONNECTION_FREE:
        return
    connection_lost(engine, connection)
    if not connection.flags & IS_CLOSING:
        abort(engine, connection)
    # Else on_close sees to the rest: a slot is never closed twice.


# --- completions -----------------------------------------------------------------------------------------------------

cdef void on_close(Engine *engine, Connection *connection, int result) noexcept nogil:
    # ECANCELED: the last response, which it was linked to, fell short; the connection goes on until that has left.
    connection.flags &= ~IS_CLOSING
    if result != -ECANCELED:
        connection_lost(engine, connection)
    elif connection.state == CONNECTION_CLOSES:
        abort(engine, connection)
    else:
        mark_dirty(engine, connection)      # a flush in between has let it be


cdef void connection_over(Engine *engine, Connection *connection) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    if engine.tier is not NULL:
        tier_left(engine.tier, connection)
    connection_closed(engine, connection)
    if driver.accept_retry_us:
        driver.accept_retry_us = engine.now_us
