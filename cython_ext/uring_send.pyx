"""Sends of the io_uring driver: light ones of the scratch, and those that are reported, without a copy where it can be.

The rules:

- A send of the scratch is tried at once and makes a completion only when it falls short: DONTWAIT | WAITALL with
  CQE_SKIP_SUCCESS reports each short send, which NOSIGNAL alone would hide. Such a completion is made while the entry
  is submitted, so it is the first thing that the next turn sees of its connection.
- A zero-copy send holds its Answer until the kernel's notification; the next response does not wait for that (law 4).
- Only what lies in a fixed buffer leaves without a copy: a lane's arena, or a chunk of the cache's.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.arena cimport NO_CHUNK, Arena, arena_registered_chunk
from batchbridge.cython_ext.bridge cimport RESPONSE_BLOCK_SIZE_BYTES
from batchbridge.cython_ext.cache cimport object_fragments
from batchbridge.cython_ext.core cimport ANSWER_LANE, ANSWER_OBJECT, CONNECTION_OPEN, Answer, Connection, Engine
from batchbridge.cython_ext.fragments cimport Fragments, fragment_at, fragment_pin
from batchbridge.cython_ext.output cimport answer_at, answer_drop, answer_hold, answer_let_go, sent
from batchbridge.cython_ext.ring cimport *
from batchbridge.cython_ext.uring_close cimport close_if_over
from batchbridge.cython_ext.uring_operations cimport *


cdef extern from "<sys/socket.h>" nogil:
    int MSG_DONTWAIT, MSG_NOSIGNAL, MSG_WAITALL, MSG_MORE


# --- fixed buffers ---------------------------------------------------------------------------------------------------

cdef bint on_chunk_opened(void *context, uint32_t chunk, char *at, uint64_t size_bytes) noexcept nogil:
    cdef Uring *driver = <Uring *>context
    return ring_set_buffer(&driver.ring, driver.first_chunk + chunk, at, size_bytes) == 0


cdef void on_chunk_closing(void *context, uint32_t chunk) noexcept nogil:
    cdef Uring *driver = <Uring *>context
    ring_set_buffer(&driver.ring, driver.first_chunk + chunk, NULL, 0)


cdef void register_memory(Engine *engine, Uring *driver) noexcept nogil:
    cdef Arena *arena = &engine.cache.memory.arena
    cdef uint32_t index
    driver.first_chunk = engine.lane_count
    if ring_buffers(&driver.ring, engine.lane_count + arena.chunk_count) < 0:
        return
    driver.lanes_registered = engine.lane_count > 0
    for index in range(engine.lane_count):
        if ring_set_buffer(&driver.ring, index, engine.lanes[index].arena,
                           <size_t>engine.lanes[index].block_count * RESPONSE_BLOCK_SIZE_BYTES) < 0:
            driver.lanes_registered = 0
    arena.context = driver
    arena.opened = on_chunk_opened
    arena.closing = on_chunk_closing


cdef void forget_memory(Engine *engine) noexcept nogil:
    engine.cache.memory.arena.opened = NULL
    engine.cache.memory.arena.closing = NULL


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


# --- sends -----------------------------------------------------------------------------------------------------------

cdef void driver_send(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    cdef Uring *driver = driver_of(engine)
    cdef io_uring_sqe *entry = ring_entry(&driver.ring)
    io_uring_prep_send(entry, connection.fd, data, length, MSG_DONTWAIT | MSG_WAITALL | MSG_NOSIGNAL)
    name_entry(entry, OPERATION_SEND, connection, driver.slot_flag | IOSQE_CQE_SKIP_SUCCESS)


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
