"""The engine's part of the kernel side: records become what any driver tells of a connection.

The rules:

- A connection's bytes are taken in the order of `up`. Where a record begins behind what was received, the bytes
  between lie in the socket, and are read from there first. If some of them are still on their way into its queue (a
  gap: the kernel had no memory for them at once, which a client's large packets can bring about), the record is kept,
  and so is all that comes behind it; the row is paused, which bounds that; and it is looked at again in each turn.
  Nobody else waits for it, and a row that gets nothing for GAP_PATIENCE_US is given up.
- A row is taken by the kernel side when a connection is established, long before it is accepted. The two find each
  other by the socket's cookie. A connection that has no row, when all records from before its accept were seen, is an
  ordinary one.
- A row is given back when the kernel side has said that the socket is gone, and no connection uses it any more.
- Sockets are read here only where the ring was full or the connection paused (drain); never polled: a poll would be
  woken by each packet that the kernel side takes.
- A FIN is taken when it is the next: a socket tells of it before all bytes that came earlier are here.
- A socket is not read ahead of the ring: `spill_at` says what has to come from there first.
"""
from libc.errno cimport EAGAIN, EINTR, ENOMEM, errno
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memset

from batchbridge.cython_ext.answer cimport (
    answer_free, answer_log, answer_prepare, answer_settle, answer_sleeps, answer_waits)
from batchbridge.cython_ext.connection cimport connection_peer, received, received_end
from batchbridge.cython_ext.core cimport (
    CONNECTION_CLOSES, CONNECTION_FREE, IS_EOF, IS_PAUSED, Connection, Engine)
from batchbridge.cython_ext.publish cimport recognised
from batchbridge.cython_ext.tier cimport *


cdef extern from "compat.h" nogil:
    uint64_t bb_load_acquire_64(const uint64_t *) noexcept
    void bb_store_release_64(uint64_t *, uint64_t) noexcept
    uint32_t bb_load_acquire(const uint32_t *) noexcept
    void bb_store_release(uint32_t *, uint32_t) noexcept
    void bb_store_release_signed(int32_t *, int32_t) noexcept
    void bb_store_relaxed(uint32_t *, uint32_t) noexcept
    void bb_full_fence() noexcept


cdef extern from "<sys/socket.h>" nogil:
    ssize_t recv(int, void *, size_t, int) noexcept
    int MSG_DONTWAIT


cdef enum:
    RECORD_BUSY = 1 << 31           # the ring's own header: 4 bytes of length and flags, 4 that are the kernel's
    RECORD_DISCARDED = 1 << 30
    RECORD_HEADER_SIZE_BYTES = 8
    DRAIN_SIZE_BYTES = 65536
    ALL = 0x7FFFFFFF                # that the socket has
    GAP_PATIENCE_US = 1000000       # for the next of the bytes that the kernel is moving into the socket's queue
    FORGOTTEN = 1                   # in the table of cookies


# Why no more was read from a socket.
cdef enum Read:
    READ_WANTED = 0                 # all that was wanted is here
    READ_NOTHING                    # there is nothing more now
    READ_END                        # FIN, though perhaps not all before it
    READ_NO_MORE                    # the connection is paused or gone


# --- memory ----------------------------------------------------------------------------------------------------------

cdef int tier_prepare(Tier *tier, uint32_t connections_max) noexcept nogil:
    cdef uint32_t size = 1024, index
    while size < 2 * (tier.row_count + connections_max):
        size *= 2
    tier.states = <RowState *>calloc(tier.row_count, sizeof(RowState))
    tier.published = <Published *>calloc(BB_IMAGES_MAX, sizeof(Published))
    tier.withdrawn = <uint32_t *>calloc(BB_IMAGES_MAX, 4)
    tier.cookies = <uint64_t *>calloc(connections_max, 8)
    tier.waiting = <uint32_t *>calloc(connections_max, 4)
    tier.draining = <uint32_t *>calloc(tier.row_count, 4)
    tier.by_cookie.cookies = <uint64_t *>calloc(size, 8)
    tier.by_cookie.values = <uint32_t *>calloc(size, 4)
    tier.by_cookie.mask = size - 1
    if (tier.states is NULL or tier.published is NULL or tier.withdrawn is NULL or tier.cookies is NULL
            or tier.waiting is NULL or tier.draining is NULL or tier.by_cookie.cookies is NULL
            or tier.by_cookie.values is NULL):
        return -ENOMEM
    if tier.can_answer and answer_prepare(tier) < 0:
        return -ENOMEM
    for index in range(tier.row_count):
        give_back(tier, index)
    return 0


cdef void tier_free(Tier *tier) noexcept nogil:
    cdef uint32_t index
    if tier.states is not NULL:
        for index in range(tier.row_count):
            free(tier.states[index].early)
    answer_free(tier)
    free(tier.published)
    free(tier.withdrawn)
    free(tier.states)
    free(tier.cookies)
    free(tier.waiting)
    free(tier.draining)
    free(tier.by_cookie.cookies)
    free(tier.by_cookie.values)
    tier.states = NULL
    tier.published = NULL
    tier.withdrawn = NULL
    tier.cookies = NULL
    tier.waiting = NULL
    tier.draining = NULL
    tier.by_cookie.cookies = NULL
    tier.by_cookie.values = NULL


# --- cookies ---------------------------------------------------------------------------------------------------------

cdef uint32_t place_of(uint64_t cookie, uint32_t mask) noexcept nogil:
    return <uint32_t>(bb_fold(0, cookie) >> 32) & mask


cdef bint table_find(const CookieTable *table, uint64_t cookie, uint32_t *value) noexcept nogil:
    cdef uint32_t place = place_of(cookie, table.mask)
    while table.cookies[place]:
        if table.cookies[place] == cookie:
            value[0] = table.values[place]
            return True
        place = (place + 1) & table.mask
    return False


cdef void table_put(CookieTable *table, uint64_t cookie, uint32_t value) noexcept nogil:
    cdef uint32_t place
    if table.used * 4 > table.mask * 3:
        table_rebuild(table)
    place = place_of(cookie, table.mask)
    while table.cookies[place] > FORGOTTEN:
        place = (place + 1) & table.mask
    table.used += table.cookies[place] == 0
    table.cookies[place] = cookie
    table.values[place] = value


cdef void table_remove(CookieTable *table, uint64_t cookie) noexcept nogil:
    cdef uint32_t place = place_of(cookie, table.mask)
    while table.cookies[place]:
        if table.cookies[place] == cookie:
            # Places behind it may have been reached over this one, unless there are none.
            if table.cookies[(place + 1) & table.mask] == 0:
                table.cookies[place] = 0
                table.used -= 1
            else:
                table.cookies[place] = FORGOTTEN
            return
        place = (place + 1) & table.mask


cdef void table_rebuild(CookieTable *table) noexcept nogil:
    """Drops what was taken out. Where there is no memory for it, finding takes longer."""
    cdef CookieTable rebuilt
    cdef uint32_t place
    rebuilt.cookies = <uint64_t *>calloc(<size_t>table.mask + 1, 8)
    rebuilt.values = <uint32_t *>calloc(<size_t>table.mask + 1, 4)
    rebuilt.mask = table.mask
    rebuilt.used = 0
    if rebuilt.cookies is NULL or rebuilt.values is NULL:
        free(rebuilt.cookies)
        free(rebuilt.values)
        return
    for place in range(table.mask + 1):
        if table.cookies[place] > FORGOTTEN:
            table_put(&rebuilt, table.cookies[place], table.values[place])
    free(table.cookies)
    free(table.values)
    table[0] = rebuilt


# --- rows ------------------------------------------------------------------------------------------------------------

cdef void give_back(Tier *tier, uint32_t row) noexcept nogil:
    cdef uint32_t tail = tier.free_rows.tail
    if tier.can_answer:
        tier.rows[row].fd = -1
        tier.rows[row].done = 0
        tier.rows[row].out_user = 0
        tier.rows[row].closing = 0
    tier.free_rows.rows[tail & (BB_ROWS_MAX - 1)] = row
    bb_store_release(&tier.free_rows.tail, tail + 1)


cdef void free_row(Tier *tier, uint32_t row) noexcept nogil:
    cdef RowState *state = &tier.states[row]
    if state.is_open:
        table_remove(&tier.by_cookie, tier.rows[row].cookie)
    free(state.early)
    if state.is_draining:
        undrain(tier, row)
    memset(state, 0, sizeof(RowState))
    give_back(tier, row)


cdef void undrain(Tier *tier, uint32_t row) noexcept nogil:
    cdef uint32_t index
    for index in range(tier.draining_count):
        if tier.draining[index] == row:
            tier.draining_count -= 1
            tier.draining[index] = tier.draining[tier.draining_count]
            break


cdef Connection *connection_of(const Engine *engine, const RowState *state) noexcept nogil:
    return &engine.connections[state.connection - 1] if state.connection else NULL


cdef void on_opened(Tier *tier, const bb_record *record) noexcept nogil:
    cdef RowState *state = &tier.states[record.row]
    cdef bb_row *row = &tier.rows[record.row]
    state.is_open = 1
    state.peer = (<const bb_peer *>(record + 1))[0]
    state.settled = row.settled
    row.spill_seen = 0
    row.pause = 0
    table_put(&tier.by_cookie, record.cookie, record.row)


cdef void on_closed(Engine *engine, Tier *tier, uint32_t row) noexcept nogil:
    cdef Connection *connection = connection_of(engine, &tier.states[row])
    # The row goes back once the connection has left it, too.
    if connection is NULL:
        free_row(tier, row)
        return
    tier.states[row].is_open = 0
    table_remove(&tier.by_cookie, tier.rows[row].cookie)
    engine.driver.tear_down(engine, connection)


cdef void tier_left(Tier *tier, Connection *connection) noexcept nogil:
    cdef RowState *state
    cdef uint32_t index, row = connection.row - 1
    if connection.row == 0:
        for index in range(tier.waiting_count):
            if tier.waiting[index] == connection.index:
                forget_waiting(tier, index)
                break
        if tier.cookies[connection.index] == 0 or not table_find(
                &tier.by_cookie, tier.cookies[connection.index], &row):
            return
        tier.states[row].connection = connection.index + 1     # it was never met
        tier.cookies[connection.index] = 0
    connection.row = 0
    state = &tier.states[row]
    if not state.is_open:
        free_row(tier, row)
        return
    state.connection = 0
    state.was_left = 1
    forget_kept(state)
    tier.rows[row].pause = 0


# --- connections and their rows --------------------------------------------------------------------------------------

cdef void tier_cookie_known(Tier *tier, const Connection *connection) noexcept nogil:
    tier.waiting[tier.waiting_count] = connection.index
    tier.waiting_count += 1


cdef void meet(Engine *engine, Tier *tier, Connection *connection, uint32_t row) noexcept nogil:
    cdef RowState *state = &tier.states[row]
    state.connection = connection.index + 1
    connection.row = row + 1
    tier.cookies[connection.index] = 0
    connection_peer(connection, <int>state.peer.family, <uint16_t>state.peer.port, state.peer.address)
    if state.is_broken or state.early_up != state.received:
        engine.driver.tear_down(engine, connection)
    elif state.has_early:
        hand_on(engine, tier, state, connection)
    if tier.rows[row].spill != tier.rows[row].spill_seen:
        mark_draining(tier, row)
    if tier.can_answer and connection.state != CONNECTION_CLOSES:
        bb_store_release_signed(&tier.rows[row].fd, connection.fd)


cdef void meet_waiting(Engine *engine, Tier *tier, bint has_seen_all) noexcept nogil:
    """Connections whose cookie is known and, if it was told, their rows."""
    cdef uint32_t index = 0, row = 0
    cdef Connection *connection
    while index < tier.waiting_count:
        connection = &engine.connections[tier.waiting[index]]
        if tier.cookies[connection.index] and table_find(&tier.by_cookie, tier.cookies[connection.index], &row):
            forget_waiting(tier, index)
            meet(engine, tier, connection, row)
        elif has_seen_all:
            # An ordinary connection: resume lets the driver receive.
            forget_waiting(tier, index)
            if connection.state != CONNECTION_CLOSES:
                engine.driver.resume(engine, connection)
        else:
            index += 1


cdef void forget_waiting(Tier *tier, uint32_t index) noexcept nogil:
    tier.waiting_count -= 1
    tier.waiting[index] = tier.waiting[tier.waiting_count]


# --- records ---------------------------------------------------------------------------------------------------------

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
        end(engine, connection)


cdef void note_busy(Tier *tier, uint32_t row) noexcept nogil:
    cdef uint32_t index
    if tier.busy_count > POLLED_ROWS_MAX:
        return
    for index in range(tier.busy_count):
        if tier.busy[index] == row:
            return
    if tier.busy_count < POLLED_ROWS_MAX:
        tier.busy[tier.busy_count] = row
        tier.states[row].busy_turns += tier.states[row].busy_turns < 255
    tier.busy_count += 1


cdef void on_bytes(Engine *engine, Tier *tier, const bb_record *record, const char *data) noexcept nogil:
    cdef RowState *state = &tier.states[record.row]
    cdef Connection *connection
    if not state.is_open or state.was_left:
        return
    connection = connection_of(engine, state)
    if connection is NULL or state.has_early:
        keep(state, record, data)
        return
    note_busy(tier, record.row)
    if record.up != state.received and not fill_gap(engine, tier, record.row, connection, record.up):
        await_gap(engine, tier, record, data)
        return
    state.received += record.length
    if record.length:
        received(engine, connection, data, record.length)
    if record.type == BB_END:
        state.received += 1
        end(engine, connection)


cdef void on_hit(Engine *engine, Tier *tier, const bb_record *record, const bb_hit *hit) noexcept nogil:
    """The bytes of a record of this kind are those of an image."""
    cdef RowState *state = &tier.states[record.row]
    cdef Connection *connection = connection_of(engine, state)
    cdef bint is_first = not state.has_early
    if connection is NULL or record.up != state.received or state.has_early:
        on_bytes(engine, tier, record, <const char *>tier.images[hit.image].words)
        if connection is NULL and is_first and state.has_early:
            state.early_hit = hit[0]        # a new connection's first request
        return
    note_busy(tier, record.row)
    state.received += record.length
    recognised(engine, connection, hit, record.length)


cdef void end(Engine *engine, Connection *connection) noexcept nogil:
    if connection.state != CONNECTION_CLOSES and connection.state != CONNECTION_FREE:
        received_end(engine, connection)


cdef void on_record(Engine *engine, Tier *tier, const bb_record *record) noexcept nogil:
    cdef const char *data = <const char *>(record + 1)
    if record.type == BB_HIT_ANSWERED:
        answer_log(engine, tier, record.row, <const bb_hit *>data)
        return
    tier.taken += 1
    if record.type == BB_DOORBELL:
        return                      # whoever sleeps looks for what is to be sent
    if record.type == BB_OPENED:
        on_opened(tier, record)
        return
    if tier.can_answer:
        answer_settle(engine, tier, record.row)
    if record.type == BB_CLOSED:
        on_closed(engine, tier, record.row)
    elif record.type == BB_SPILLED:
        mark_draining(tier, record.row)
    elif record.type == BB_HIT:
        on_hit(engine, tier, record, <const bb_hit *>data)
    else:
        on_bytes(engine, tier, record, data)


cdef bint tier_has_records(const Tier *tier) noexcept nogil:
    return tier.consumed != bb_load_acquire_64(tier.producer)


cdef bint tier_has_news(const Tier *tier) noexcept nogil:
    cdef uint64_t patient
    if not tier.can_answer:
        return tier_has_records(tier)
    # In this order: one that is counted as patient was counted before.
    patient = bb_load_acquire_64(&tier.words.patient_records)
    return bb_load_acquire_64(&tier.words.records) - patient != tier.taken


cdef void tier_consume(Engine *engine, Tier *tier) noexcept nogil:
    """Takes the records that are there now: the ring is read where it lies, and given back one by one."""
    cdef uint64_t end = bb_load_acquire_64(tier.producer)
    cdef uint32_t header
    cdef char *at
    cdef bint has_seen_all = True
    tier.is_held = False
    while tier.consumed != end:
        at = tier.records + (tier.consumed & tier.record_mask)
        header = bb_load_acquire(<const uint32_t *>at)
        if header & RECORD_BUSY:
            has_seen_all = False        # another processor is writing it
            break
        if not header & RECORD_DISCARDED:
            if tier.can_answer and answer_waits(engine, tier):
                has_seen_all = False
                break
            on_record(engine, tier, <const bb_record *>(at + RECORD_HEADER_SIZE_BYTES))
        header &= ~<uint32_t>(RECORD_BUSY | RECORD_DISCARDED)
        tier.consumed += (header + RECORD_HEADER_SIZE_BYTES + 7) & ~<uint64_t>7
        bb_store_release_64(tier.consumer, tier.consumed)
    if tier.waiting_count:
        meet_waiting(engine, tier, has_seen_all)
    if tier.words.spills != tier.spills_seen or tier.words.lost_closes != tier.lost_closes_seen:
        look_through(engine, tier, has_seen_all)
    if tier.draining_count:
        drain_all(engine, tier)


# --- what did not come by the ring -----------------------------------------------------------------------------------

cdef void look_through(Engine *engine, Tier *tier, bint has_seen_all) noexcept nogil:
    """The ring was full: finds the rows whose bytes lie in their sockets, and those whose end was not told."""
    cdef uint32_t row
    cdef uint32_t spills = bb_load_acquire(&tier.words.spills), lost_closes = bb_load_acquire(&tier.words.lost_closes)
    for row in range(tier.row_count):
        if tier.states[row].is_open and tier.rows[row].spill != tier.rows[row].spill_seen:
            mark_draining(tier, row)
    tier.spills_seen = spills
    # Records of a row whose end was lost may still lie in the ring.
    if lost_closes == tier.lost_closes_seen or not has_seen_all:
        return
    for row in range(tier.row_count):
        if tier.states[row].is_open and tier.rows[row].closed:
            on_closed(engine, tier, row)
    tier.lost_closes_seen = lost_closes


cdef void mark_draining(Tier *tier, uint32_t row) noexcept nogil:
    if not tier.states[row].is_draining:
        tier.states[row].is_draining = 1
        tier.draining[tier.draining_count] = row
        tier.draining_count += 1


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
            end(engine, connection)
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


cdef void tier_pause(Tier *tier, const Connection *connection) noexcept nogil:
    bb_store_release(&tier.rows[connection.row - 1].pause, 1)


cdef void tier_resume(Tier *tier, const Connection *connection) noexcept nogil:
    # Where bytes are missing, the row stays paused until they are there.
    if not tier.states[connection.row - 1].has_early:
        bb_store_release(&tier.rows[connection.row - 1].pause, 0)
    mark_draining(tier, connection.row - 1)


# --- waiting ---------------------------------------------------------------------------------------------------------

cdef bint must_look(const Tier *tier, bint looks_soon) noexcept nogil:
    return tier_has_news(tier) if looks_soon else tier_has_records(tier)


cdef bint tier_sleeps(Tier *tier, bint looks_soon) noexcept nogil:
    if must_look(tier, looks_soon) or tier.waiting_count or tier.draining_count:
        return False
    bb_store_relaxed(&tier.words.sleeps, BB_LOOKS_SOON if looks_soon else BB_SLEEPS)
    bb_full_fence()
    if (must_look(tier, looks_soon) or tier.words.spills != tier.spills_seen
            or tier.words.lost_closes != tier.lost_closes_seen or (tier.can_answer and not answer_sleeps(tier))):
        bb_store_relaxed(&tier.words.sleeps, BB_AWAKE)
        return False
    return True


cdef void tier_woke(Tier *tier) noexcept nogil:
    bb_store_relaxed(&tier.words.sleeps, BB_AWAKE)
