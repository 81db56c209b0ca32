"""Polled sockets: those whose packets wake the engine by themselves.

The kernel side wakes a sleeping engine by an interrupt that the processor sends to itself, which in a virtual machine
costs several microseconds, more than all the rest of a lone request's way through the kernel side. But a socket tells
whoever polls it of each packet, once the kernel side has taken that. So where few connections are busy, their sockets
are polled, and the kernel side leaves the waking to them.

The rules:

- Only connections that have been busy for a while are polled, and only where few were busy since the engine last slept:
  a poll is told of each packet, also while nobody sleeps, which many connections would pay more for than they save.
- A row stands in `polled_rows` from when its poll is in place until before that ends, and changes there only while the
  engine is awake. So whoever finds the engine asleep finds a poll where the row says so.
- io_uring looks at a socket again where it was told of it twice before this thread has run, finds it empty, since the
  packets were taken, and says nothing. So where a second packet of that socket comes first, the kernel side wakes by
  itself (BB_RUNG).
- That a packet which was taken completes a poll is how this kernel works, and nobody's promise. So the kernel side goes
  on waking until a poll has completed for a packet that was taken (`is_proven`); then the engine sleeps for PATIENCE_US
  at a time as long as it relies on polls, and gives them up where that finds what nobody woke it for. When nothing has
  come for that long it sleeps as deeply as ever.
- A poll keeps its socket open behind a closed descriptor: it is removed before that is closed.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t

from batchbridge.cython_ext.core cimport CONNECTION_OPEN, IS_CLOSING, Connection, Engine
from batchbridge.cython_ext.ring cimport *
from batchbridge.cython_ext.tier cimport BB_RUNG, BB_SLEEPS, POLLED_ROWS_MAX, RowState, Tier


cdef extern from "compat.h" nogil:
    uint32_t bb_load_acquire(const uint32_t *) noexcept
    void bb_store_release(uint32_t *, uint32_t) noexcept
    void bb_full_fence() noexcept


cdef extern from "<poll.h>" nogil:
    short POLLIN, POLLHUP, POLLERR, POLLRDHUP


cdef enum:
    BUSY_TURNS_MIN = 3              # fewer are a connection for one request
    SLEEPS_UNUSED_MAX = 64          # then its place may be another's
    POLLS_MASK = 0xFFFFFF
    PATIENCE_US = 10000
    LOST_WAKES_MAX = 3              # one may be a packet that came just as the patience ended


cdef uint64_t name_of(const PolledSockets *polled, uint32_t place) noexcept nogil:
    return polled.tag | <uint64_t>(polled.places[place].polls & POLLS_MASK) << 8 | place


cdef Polled *place_of(PolledSockets *polled, const Connection *connection) noexcept nogil:
    cdef uint32_t place
    for place in range(POLLED_ROWS_MAX):
        if polled.places[place].connection == connection.index + 1:
            return &polled.places[place]
    return NULL


# --- trust -----------------------------------------------------------------------------------------------------------

cdef void trust(Engine *engine, PolledSockets *polled, uint32_t place, uint32_t row) noexcept nogil:
    polled.places[place].is_trusted = 1
    polled.trusted_count += 1
    bb_store_release(&engine.tier.words.polled_rows[place], row)


cdef void distrust(Engine *engine, PolledSockets *polled, uint32_t place) noexcept nogil:
    if polled.places[place].is_trusted:
        polled.places[place].is_trusted = 0
        polled.trusted_count -= 1
        bb_store_release(&engine.tier.words.polled_rows[place], 0)
        bb_full_fence()             # before the engine says that it sleeps


cdef void distrust_all(Engine *engine, PolledSockets *polled) noexcept nogil:
    cdef uint32_t place
    for place in range(POLLED_ROWS_MAX):
        distrust(engine, polled, place)


cdef void polled_woke(Engine *engine, const Ring *ring, PolledSockets *polled) noexcept nogil:
    cdef uint32_t sleeps
    if polled.trusted_count == 0 or io_uring_cq_ready(&ring.uring):
        return
    sleeps = bb_load_acquire(&engine.tier.words.sleeps)
    if sleeps >= BB_RUNG:
        polled.lost_wakes += 1
    elif sleeps == BB_SLEEPS:
        polled.rests = 1
    else:
        return
    if polled.rests or polled.lost_wakes >= LOST_WAKES_MAX:
        distrust_all(engine, polled)


cdef void polled_settle(Engine *engine, const Ring *ring, PolledSockets *polled) noexcept nogil:
    cdef Tier *tier = engine.tier
    cdef uint32_t place, row
    cdef Polled *socket
    if polled.count == 0:
        return
    for place in range(POLLED_ROWS_MAX):
        socket = &polled.places[place]
        row = engine.connections[socket.connection - 1].row if socket.connection else 0
        if row == 0:
            continue
        if socket.has_rung:
            polled.rests = 0
            # Its bytes came by the ring, so they were not what the socket would have told of by itself.
            if tier.rows[row - 1].spill == 0 and tier.states[row - 1].received != socket.received:
                polled.is_proven = 1
        socket.has_rung = 0
        if (polled.is_proven and not polled.rests and not socket.is_trusted and polled.lost_wakes < LOST_WAKES_MAX
                and io_uring_sq_ready(&ring.uring) == 0):
            trust(engine, polled, place, row)


# --- polls -----------------------------------------------------------------------------------------------------------

cdef void forget(Engine *engine, PolledSockets *polled, uint32_t place) noexcept nogil:
    distrust(engine, polled, place)
    polled.places[place].connection = 0
    polled.places[place].polls += 1
    polled.places[place].has_rung = 0
    polled.count -= 1


cdef void remove(Engine *engine, Ring *ring, PolledSockets *polled, uint32_t place) noexcept nogil:
    cdef uint64_t name = name_of(polled, place)
    cdef io_uring_sqe *entry = ring_entry(ring)
    # A poll's own removal refuses one that has just been told of a packet, which would then stay.
    io_uring_prep_cancel64(entry, name, 0)
    entry.flags |= <uint8_t>IOSQE_CQE_SKIP_SUCCESS
    # A completion that says that there was nothing left to remove is ignored, as the poll's own is from here on.
    entry.user_data = name
    forget(engine, polled, place)


cdef void polled_remove(Engine *engine, Ring *ring, PolledSockets *polled, const Connection *connection) noexcept nogil:
    cdef Polled *socket
    if polled.count:
        socket = place_of(polled, connection)
        if socket is not NULL:
            remove(engine, ring, polled, <uint32_t>(socket - &polled.places[0]))


cdef int make_room(Engine *engine, Ring *ring, PolledSockets *polled) noexcept nogil:
    """A free place, or that which was of no use for longest; -1: all are in use."""
    cdef uint32_t place
    cdef int found = -1
    for place in range(POLLED_ROWS_MAX):
        if polled.places[place].connection == 0:
            return <int>place
        if polled.places[place].sleeps_unused > SLEEPS_UNUSED_MAX and (
                found < 0 or polled.places[place].sleeps_unused > polled.places[found].sleeps_unused):
            found = <int>place
    if found >= 0:
        remove(engine, ring, polled, <uint32_t>found)
    return found


cdef void poll_socket(Engine *engine, Ring *ring, PolledSockets *polled, const RowState *state) noexcept nogil:
    cdef const Connection *connection = &engine.connections[state.connection - 1]
    cdef Polled *socket = place_of(polled, connection)
    cdef io_uring_sqe *entry
    cdef int place
    if socket is not NULL:
        socket.sleeps_unused = 0
        return
    if connection.state != CONNECTION_OPEN or connection.flags & IS_CLOSING:
        return
    place = make_room(engine, ring, polled)
    if place < 0:
        return
    socket = &polled.places[place]
    socket.connection = connection.index + 1
    socket.received = state.received
    socket.sleeps_unused = 0
    polled.count += 1
    entry = ring_entry(ring)
    io_uring_prep_poll_multishot(entry, connection.fd, POLLIN)
    entry.user_data = name_of(polled, <uint32_t>place)


cdef int64_t polled_arm(Engine *engine, Ring *ring, PolledSockets *polled, int64_t wait_us) noexcept nogil:
    cdef Tier *tier = engine.tier
    cdef uint32_t index
    cdef const RowState *state
    for index in range(POLLED_ROWS_MAX):
        polled.places[index].sleeps_unused += 1
    if tier.busy_count <= POLLED_ROWS_MAX and polled.lost_wakes < LOST_WAKES_MAX:
        for index in range(tier.busy_count):
            state = &tier.states[tier.busy[index]]
            if state.connection and state.busy_turns >= BUSY_TURNS_MIN:
                poll_socket(engine, ring, polled, state)
    tier.busy_count = 0
    if polled.trusted_count and (wait_us < 0 or wait_us > PATIENCE_US):
        return PATIENCE_US
    return wait_us


cdef void polled_rang(Engine *engine, PolledSockets *polled, uint64_t user_data, int result,
                      uint32_t flags) noexcept nogil:
    cdef uint32_t place = <uint32_t>(user_data % 256 % POLLED_ROWS_MAX)
    cdef Polled *socket = &polled.places[place]
    if socket.connection == 0 or (user_data >> 8 & POLLS_MASK) != (socket.polls & POLLS_MASK):
        return
    socket.has_rung = result > 0 and not result & (POLLHUP | POLLERR | POLLRDHUP)
    if not flags & IORING_CQE_F_MORE:
        forget(engine, polled, place)
