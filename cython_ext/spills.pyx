"""What did not come by the ring, or not in order.

The rules:

- A connection's bytes are taken in the order of `up`. Where a record begins behind what was received, the bytes
  between lie in the socket, and are read from there first. If some of them are still on their way into its queue (a
  gap: the kernel had no memory for them at once, which a client's large packets can bring about), the record is kept,
  and so is all that comes behind it; the row is paused, which bounds that; and it is looked at again in each turn.
  Nobody else waits for it, and a row that gets nothing for GAP_PATIENCE_US is given up.
- Sockets are read here only where the ring was full or the connection paused (drain); never polled: a poll would be
  woken by each packet that the kernel side takes.
- A FIN is taken when it is the next: a socket tells of it before all bytes that came earlier are here.
- A socket is not read ahead of the ring: `spill_at` says what has to come from there first.
"""
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

from batchbridge.cython_ext.answer cimport answer_settle
from batchbridge.cython_ext.connection cimport received, received_end
from batchbridge.cython_ext.core cimport (
    CONNECTION_CLOSES, CONNECTION_FREE, IS_EOF, IS_PAUSED, Connection, Engine)
from batchbridge.cython_ext.publish cimport recognised
from batchbridge.cython_ext.tier cimport *


cdef extern from "compat.h" nogil:
    uint64_t bb_load_acquire_64(const uint64_t *) noexcept
    uint32_t bb_load_acquire(const uint32_t *) noexcept
    void bb_store_release(uint32_t *, uint32_t) noexcept
    void bb_full_fence() noexcept


cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void *, size_t, int) noexcept
    int MSG_DONTWAIT


cdef enum:
    DRAIN_SIZE_BYTES = 65536
    ALL = 0x7FFFFFFF                # that the socket has
    GAP_PATIENCE_US = 1000000       # for the next of the bytes that the kernel is moving into the socket's queue


# Why no more was read from a socket.
cdef enum Read:
    READ_WANTED = 0                 # all that was wanted is here
    READ_NOTHING                    # there is nothing more now
    READ_END                        # FIN, though perhaps not all before it
    READ_NO_MORE                    # the connection is paused or gone


# --- what is kept ----------------------------------------------------------------------------------------------------

cdef void keep(RowState *state, const bb_record *record, const char *data) noexcept nogil:
    """Keeps what cannot be handed on yet. Where there is no memory, or something is missing, the row is broken."""
    cdef char *early
    state.early_hit.generation = 0
    if not state.has_early:
        state.has_early = 1
        state.early_up = record.up
    elif record.up != state.early_up + state.early_length + state.has_early_end:
        state.is_broken = 1
    if record.length:
        early = <char *>realloc(state.early, state.early_length + record.length)
        if early is NULL:
            state.is_broken = 1
            return
        memcpy(early + state.early_length, data, record.length)
        state.early = early
        state.early_length += record.length
    state.has_early_end = record.type == BB_END


cdef void forget_kept(RowState *state) noexcept nogil:
    free(state.early)
    state.early = NULL
    state.early_length = 0
    state.early_hit.generation = 0
    state.has_early = 0
    state.has_early_end = 0


cdef void hand_on(Engine *engine, Tier *tier, RowState *state, Connection *connection) noexcept nogil:
    """What was kept, now that all before it was received."""
    cdef char *early = state.early
    cdef bb_hit hit = state.early_hit
    cdef uint32_t length = state.early_length
    cdef bint has_end = state.has_early_end
    state.early = NULL
    forget_kept(state)
    state.received += length + has_end
    # An image's place may be another's by now: then its bytes are what was kept.
    if hit.generation and tier.published[hit.image].generation == hit.generation:
        recognised(engine, connection, &hit, length)
    elif length:
        received(engine, connection, early, length)
    free(early)
    if has_end:
        hand_on_end(engine, connection)


cdef void hand_on_end(Engine *engine, Connection *connection) noexcept nogil:
    if connection.state != CONNECTION_CLOSES and connection.state != CONNECTION_FREE:
        received_end(engine, connection)


# --- rows whose sockets are read -------------------------------------------------------------------------------------

cdef void mark_draining(Tier *tier, uint32_t row) noexcept nogil:
    if not tier.states[row].is_draining:
        tier.states[row].is_draining = 1
        tier.draining[tier.draining_count] = row
        tier.draining_count += 1


cdef void undrain(Tier *tier, uint32_t row) noexcept nogil:
    cdef uint32_t index
    for index in range(tier.draining_count):
        if tier.draining[index] == row:
            tier.draining_count -= 1
            tier.draining[index] = tier.draining[tier.draining_count]
            break


cdef void drain_all(Engine *engine, Tier *tier) noexcept nogil:
    cdef uint32_t count = tier.draining_count, _index
    cdef uint32_t row
    cdef Connection *connection
    # Taken from the end, since whatever is marked meanwhile comes behind.
    for _index in range(count):
        if tier.draining_count == 0:
            break
        row = tier.draining[0]
        tier.draining_count -= 1
        tier.draining[0] = tier.draining[tier.draining_count]
        tier.states[row].is_draining = 0
        connection = connection_of(engine, &tier.states[row])
        if connection is not NULL:
            drain(engine, tier, row, connection)


cdef void drain(Engine *engine, Tier *tier, uint32_t row, Connection *connection) noexcept nogil:
    """Takes what lies in the socket and is next; marks the row again, unless all that was handed up is here.

    While a row is spilled, all of its bytes behind `spill_at` go to the socket, so it can be read until it is empty;
    then that is said. From there on the socket has only what was handed up before that was seen, some of which may come
    into its queue a little later (also when the row is spilled again already): see `due_from_socket`.
    """
    cdef RowState *state = &tier.states[row]
    cdef uint32_t spill = bb_load_acquire(&tier.rows[row].spill)
    cdef uint32_t up = bb_load_acquire(&tier.rows[row].up)
    cdef int found
    if tier.can_answer:
        answer_settle(engine, tier, row)
    if state.has_early:
        look_into_gap(engine, tier, row, connection)
        return
    if spill != tier.rows[row].spill_seen:
        up = tier.rows[row].spill_at
        if <int32_t>(state.received - up) >= 0:
            found = read_socket(engine, tier, row, connection, ALL)
            if found == READ_NOTHING:
                bb_store_release(&tier.rows[row].spill_seen, spill)
                bb_full_fence()
        else:
            found = read_late(engine, tier, row, connection, due_from_socket(engine, tier, state, up))
    elif up == state.received:
        return
    else:
        found = read_late(engine, tier, row, connection, due_from_socket(engine, tier, state, up))
    if found == READ_END:
        # The socket tells of a FIN as soon as TCP has it, also while bytes before it are on their way.
        if connection.flags & IS_EOF:
            return
        if bb_load_acquire(&tier.rows[row].up) - state.received == 1:
            state.received += 1
            hand_on_end(engine, connection)
            return
    if found != READ_NO_MORE:
        mark_draining(tier, row)


cdef uint32_t due_from_socket(const Engine *engine, const Tier *tier, RowState *state, uint32_t up) noexcept nogil:
    """How many of the next bytes lie in the socket, or will, though the row is not spilled, or was spilled again at
    `up`; 0: that cannot be said yet. What is still missing when all records were taken that had been made when this
    was first asked did not come by the ring."""
    if state.due_position == 0 or <int32_t>(state.due - state.received) <= 0:
        state.due = up
        state.missing_since_us = engine.now_us
        state.due_position = bb_load_acquire_64(tier.producer)
    return state.due - state.received if tier.consumed >= state.due_position else 0


cdef int read_late(Engine *engine, Tier *tier, uint32_t row, Connection *connection, uint32_t wanted) noexcept nogil:
    """Takes bytes that are in the socket or must come into it; where none does for too long, ends the connection."""
    cdef RowState *state = &tier.states[row]
    cdef uint32_t before = state.received
    cdef int found = read_socket(engine, tier, row, connection, wanted)
    if state.received != before:
        state.missing_since_us = engine.now_us
    elif wanted and engine.now_us - state.missing_since_us > GAP_PATIENCE_US:
        engine.driver.tear_down(engine, connection)
        return READ_NO_MORE
    return found


cdef int read_socket(Engine *engine, Tier *tier, uint32_t row, Connection *connection, uint32_t wanted) noexcept nogil:
    """Takes up to `wanted` bytes that are there; why it stopped (Read)."""
    cdef char buffer[DRAIN_SIZE_BYTES]
    cdef ssize_t count
    while wanted:
        if connection.state == CONNECTION_CLOSES or connection.state == CONNECTION_FREE:
            return READ_NO_MORE
        if connection.flags & IS_PAUSED and wanted == ALL:
            return READ_NO_MORE
        count = recv(connection.fd, buffer, min(<uint32_t>DRAIN_SIZE_BYTES, wanted), MSG_DONTWAIT)
        if count > 0:
            tier.states[row].received += <uint32_t>count
            tier.drained_bytes += <uint64_t>count
            if wanted != ALL:
                wanted -= <uint32_t>count
            received(engine, connection, buffer, <uint32_t>count)
        elif count == 0:
            return READ_END
        elif errno == EAGAIN:
            return READ_NOTHING
        elif errno != EINTR:
            engine.driver.tear_down(engine, connection)
            return READ_NO_MORE
    return READ_WANTED


# --- gaps ------------------------------------------------------------------------------------------------------------

cdef bint fill_gap(Engine *engine, Tier *tier, uint32_t row, Connection *connection, uint32_t up) noexcept nogil:
    """Takes from the socket what is there of the bytes between those received and a record's; whether it was all."""
    cdef RowState *state = &tier.states[row]
    tier.gaps += 1
    read_socket(engine, tier, row, connection, up - state.received)
    return state.received == up


cdef void await_gap(Engine *engine, Tier *tier, const bb_record *record, const char *data) noexcept nogil:
    """Keeps a record whose bytes are not the next; from here on, what comes for the row stays in its socket."""
    cdef RowState *state = &tier.states[record.row]
    keep(state, record, data)
    state.missing_since_us = engine.now_us
    tier.gaps_awaited += 1
    bb_store_release(&tier.rows[record.row].pause, 1)
    mark_draining(tier, record.row)


cdef void look_into_gap(Engine *engine, Tier *tier, uint32_t row, Connection *connection) noexcept nogil:
    """Goes on with a row whose next bytes were missing, or waits for them until the next turn."""
    cdef RowState *state = &tier.states[row]
    if read_late(engine, tier, row, connection, state.early_up - state.received) == READ_NO_MORE or state.is_broken:
        forget_kept(state)
        engine.driver.tear_down(engine, connection)
        return
    if state.received == state.early_up:
        # The pause ends before what was kept is handed on, since that may begin another, for the client's sake.
        if not connection.flags & IS_PAUSED:
            bb_store_release(&tier.rows[row].pause, 0)
        hand_on(engine, tier, state, connection)
    mark_draining(tier, row)


# --- back-pressure ---------------------------------------------------------------------------------------------------

cdef void tier_pause(Tier *tier, const Connection *connection) noexcept nogil:
    bb_store_release(&tier.rows[connection.row - 1].pause, 1)


cdef void tier_resume(Tier *tier, const Connection *connection) noexcept nogil:
    # Where bytes are missing, the row stays paused until they are there.
    if not tier.states[connection.row - 1].has_early:
        bb_store_release(&tier.rows[connection.row - 1].pause, 0)
    mark_draining(tier, connection.row - 1)
