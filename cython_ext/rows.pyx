"""Rows of the kernel side: taken there, met by their connections here, and given back.

The rules:

- A row is taken by the kernel side when a connection is established, long before it is accepted. The two find each
  other by the socket's cookie. A connection that has no row, when all records from before its accept were seen, is an
  ordinary one.
- A row is given back when the kernel side has said that the socket is gone, and no connection uses it any more.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport int32_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from batchbridge.cython_ext.answer cimport answer_free, answer_prepare
from batchbridge.cython_ext.connection cimport connection_peer
from batchbridge.cython_ext.cookies cimport cookies_find, cookies_free, cookies_prepare, cookies_put, cookies_remove
from batchbridge.cython_ext.core cimport CONNECTION_CLOSES, Connection, Engine
from batchbridge.cython_ext.publish cimport publish_prepare
from batchbridge.cython_ext.spills cimport connection_of, forget_kept, hand_on, mark_draining, undrain
from batchbridge.cython_ext.tier cimport *


cdef extern from "compat.h" nogil:
    void bb_store_relaxed(uint32_t *, uint32_t) noexcept
    void bb_store_release(uint32_t *, uint32_t) noexcept
    void bb_store_release_signed(int32_t *, int32_t) noexcept


cdef enum:
    WEIGH_US = 500000
    WEIGHED_CONNECTIONS_MIN = 64    # fewer in that time cost nothing


# --- memory ----------------------------------------------------------------------------------------------------------

cdef int tier_prepare(Tier *tier, uint32_t connections_max) noexcept nogil:
    cdef uint32_t index
    tier.states = <RowState *>calloc(tier.row_count, sizeof(RowState))
    tier.objects = <CacheObject **>calloc(BB_IMAGES_MAX, sizeof(CacheObject *))
    tier.published = <Published *>calloc(BB_IMAGES_MAX, sizeof(Published))
    tier.withdrawn = <uint32_t *>calloc(BB_IMAGES_MAX, 4)
    tier.cookies = <uint64_t *>calloc(connections_max, 8)
    tier.waiting = <uint32_t *>calloc(connections_max, 4)
    tier.draining = <uint32_t *>calloc(tier.row_count, 4)
    if (tier.states is NULL or tier.objects is NULL or tier.published is NULL or tier.withdrawn is NULL
            or tier.cookies is NULL or tier.waiting is NULL or tier.draining is NULL
            or cookies_prepare(&tier.by_cookie, tier.row_count + connections_max) < 0):
        return -ENOMEM
    publish_prepare(tier)
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
    free(tier.objects)
    free(tier.published)
    free(tier.withdrawn)
    free(tier.states)
    free(tier.cookies)
    free(tier.waiting)
    free(tier.draining)
    cookies_free(&tier.by_cookie)
    tier.states = NULL
    tier.objects = NULL
    tier.published = NULL
    tier.withdrawn = NULL
    tier.cookies = NULL
    tier.waiting = NULL
    tier.draining = NULL


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
        cookies_remove(&tier.by_cookie, tier.rows[row].cookie)
    free(state.early)
    if state.is_draining:
        undrain(tier, row)
    memset(state, 0, sizeof(RowState))
    give_back(tier, row)


cdef void row_opened(Tier *tier, const bb_record *record) noexcept nogil:
    cdef RowState *state = &tier.states[record.row]
    cdef bb_row *row = &tier.rows[record.row]
    state.is_open = 1
    state.peer = (<const bb_peer *>(record + 1))[0]
    state.settled = row.settled
    row.spill_seen = 0
    row.pause = 0
    cookies_put(&tier.by_cookie, record.cookie, record.row)


cdef void row_closed(Engine *engine, Tier *tier, uint32_t row) noexcept nogil:
    cdef Connection *connection = connection_of(engine, &tier.states[row])
    # The row goes back once the connection has left it, too.
    if connection is NULL:
        free_row(tier, row)
        return
    tier.states[row].is_open = 0
    cookies_remove(&tier.by_cookie, tier.rows[row].cookie)
    engine.driver.tear_down(engine, connection)


cdef void tier_left(Tier *tier, Connection *connection) noexcept nogil:
    cdef RowState *state
    cdef uint32_t index, row = connection.row - 1
    if connection.row == 0:
        for index in range(tier.waiting_count):
            if tier.waiting[index] == connection.index:
                forget_waiting(tier, index)
                break
        if tier.cookies[connection.index] == 0 or not cookies_find(
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


# --- whether to take rows at all ------------------------------------------------------------------------------------

cdef void weigh_connections(Engine *engine, Tier *tier) noexcept nogil:
    """Are new connections to be taken over, by those that ended since the last time? A row is set up and taken down for
    each, and it takes some requests to pay for that. All requests since then count, so one connection that lasts
    outweighs many that do not; and where few connections end, it does not matter what they cost. Once says nothing: all
    of a proxy's connections may have ended, to be made anew."""
    cdef uint64_t requests = engine.counters.requests + tier.words.answered
    cdef uint64_t came = requests - tier.weighed_requests
    cdef uint64_t ended = engine.counters.closed - tier.weighed_closed
    cdef bint are_short = ended >= WEIGHED_CONNECTIONS_MIN and came < tier.requests_min * ended
    bb_store_relaxed(&tier.words.leaves_connections, are_short and tier.were_short)
    tier.were_short = are_short
    tier.weigh_us = engine.now_us + WEIGH_US
    tier.weighed_requests = requests
    tier.weighed_closed = engine.counters.closed


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
        if tier.cookies[connection.index] and cookies_find(&tier.by_cookie, tier.cookies[connection.index], &row):
            forget_waiting(tier, index)
            meet(engine, tier, connection, row)
        elif has_seen_all:
            # An ordinary connection: resume lets the driver receive. It is not looked for again.
            forget_waiting(tier, index)
            tier.cookies[connection.index] = 0
            if connection.state != CONNECTION_CLOSES:
                engine.driver.resume(engine, connection)
        else:
            index += 1


cdef void forget_waiting(Tier *tier, uint32_t index) noexcept nogil:
    tier.waiting_count -= 1
    tier.waiting[index] = tier.waiting[tier.waiting_count]
