"""The engine's part of the kernel side: records become what any driver tells of a connection.

Which row is whose is in rows, and what did not come by the ring, or not in order, in spills.

The rules:

- The ring is read where it lies. A record is read once, and its place given back before the next.
- A record for a row whose connection is not known yet is kept; one for a row whose connection has gone is dropped.
- Whoever finds the ring's counts of spills or lost closes changed looks through all rows, since that could not be told.
- "I sleep" is written before the last look at the ring.
"""
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.answer cimport answer_log, answer_settle, answer_sleeps, answer_waits
from batchbridge.cython_ext.connection cimport received
from batchbridge.cython_ext.core cimport Connection, Engine
from batchbridge.cython_ext.publish cimport recognised
from batchbridge.cython_ext.rows cimport meet_waiting, row_closed, row_opened, weigh_connections
from batchbridge.cython_ext.spills cimport (
    await_gap, connection_of, drain_all, fill_gap, hand_on_end, keep, mark_draining)
from batchbridge.cython_ext.tier cimport *


cdef extern from "compat.h" nogil:
    uint64_t bb_load_acquire_64(const uint64_t *) noexcept
    void bb_store_release_64(uint64_t *, uint64_t) noexcept
    uint32_t bb_load_acquire(const uint32_t *) noexcept
    void bb_store_relaxed(uint32_t *, uint32_t) noexcept
    void bb_full_fence() noexcept


cdef enum:
    RECORD_BUSY = 1 << 31           # the ring's own header: 4 bytes of length and flags, 4 that are the kernel's
    RECORD_DISCARDED = 1 << 30
    RECORD_HEADER_SIZE_BYTES = 8


# --- records ---------------------------------------------------------------------------------------------------------

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
        hand_on_end(engine, connection)


cdef void on_hit(Engine *engine, Tier *tier, const bb_record *record, const bb_hit *hit) noexcept nogil:
    """The bytes of a record of this kind are those of an image."""
    cdef RowState *state = &tier.states[record.row]
    cdef Connection *connection = connection_of(engine, state)
    cdef bint is_first = not state.has_early
    if connection is NULL or record.up != state.received or state.has_early:
        on_bytes(engine, tier, record, <const char *>image_words(tier, hit.image))
        if connection is NULL and is_first and state.has_early:
            state.early_hit = hit[0]        # a new connection's first request
        return
    note_busy(tier, record.row)
    state.received += record.length
    recognised(engine, connection, hit, record.length)


cdef void on_record(Engine *engine, Tier *tier, const bb_record *record) noexcept nogil:
    cdef const char *data = <const char *>(record + 1)
    if record.type == BB_HIT_ANSWERED:
        answer_log(engine, tier, record.row, <const bb_hit *>data)
        return
    tier.taken += 1
    if record.type == BB_DOORBELL:
        return                      # whoever sleeps looks for what is to be sent
    if record.type == BB_OPENED:
        row_opened(tier, record)
        return
    if tier.can_answer:
        answer_settle(engine, tier, record.row)
    if record.type == BB_CLOSED:
        row_closed(engine, tier, record.row)
    elif record.type == BB_SPILLED:
        mark_draining(tier, record.row)
    elif record.type == BB_HIT:
        on_hit(engine, tier, record, <const bb_hit *>data)
    else:
        on_bytes(engine, tier, record, data)


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
            row_closed(engine, tier, row)
    tier.lost_closes_seen = lost_closes


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
    if engine.now_us >= tier.weigh_us:
        weigh_connections(engine, tier)
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
