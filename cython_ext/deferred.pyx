"""Records of requests in user mode: made, found again by identical requests, let go of, ended.

The rules:

- A request in user mode has a record (Deferred) here and an item in a slab. Either can end first: the item when its
  completion comes or it is dropped, the record when its answer has been sent or its client is gone. Each then forgets
  the other (item.deferred); the slab is reused when all its items and records have ended.
- Identical requests (coalesced) hang on the record that owns the item; if its client goes, the next one becomes owner.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp

from batchbridge.cython_ext.accesslog cimport log_line
from batchbridge.cython_ext.bridge cimport (
    CANCELLED_EXPIRED, CANCELLED_GONE, NO_DEFERRED, Item, Slab, slab_give_back, slab_idle, slab_items, slab_reset,
    slab_unviewed)
from batchbridge.cython_ext.core cimport COALESCE_BUCKETS, Connection, Deferred, Engine
from batchbridge.cython_ext.output cimport answer_drop, mark_held


cdef enum:
    DEFERRED_IN_BLOCK = 1024
    DEFERRED_BLOCKS_MAX = 4096
    STATUS_CLIENT_GONE = 499


# --- records ---------------------------------------------------------------------------------------------------------

cdef Deferred *deferred_at(Engine *engine, uint32_t index) noexcept nogil:
    return engine.deferred_blocks[index // DEFERRED_IN_BLOCK] + index % DEFERRED_IN_BLOCK


cdef bint deferred_grow(Engine *engine) noexcept nogil:
    cdef uint32_t index, first = engine.deferred_made
    cdef Deferred *block
    if first // DEFERRED_IN_BLOCK >= DEFERRED_BLOCKS_MAX:
        return False
    block = <Deferred *>calloc(DEFERRED_IN_BLOCK, sizeof(Deferred))
    if block is NULL:
        return False
    engine.deferred_blocks[first // DEFERRED_IN_BLOCK] = block
    engine.deferred_made += DEFERRED_IN_BLOCK
    for index in range(DEFERRED_IN_BLOCK):
        block[index].index = first + index
        block[index].next = engine.free_deferred
        engine.free_deferred = &block[index]
    return True


cdef Deferred *deferred_new(Engine *engine) noexcept nogil:
    cdef Deferred *deferred
    if engine.free_deferred is NULL and not deferred_grow(engine):
        return NULL
    deferred = engine.free_deferred
    engine.free_deferred = deferred.next
    engine.deferred_in_use += 1
    deferred.next = NULL
    deferred.follower = NULL
    deferred.connection = NULL
    deferred.answer = NULL
    deferred.hash = 0
    deferred.status = 0
    deferred.ready = 0
    deferred.followed = 0
    return deferred


cdef void deferred_release(Engine *engine, Deferred *deferred) noexcept nogil:
    """Gives a record back that no connection and no item refers to."""
    cdef Slab *slab = deferred.slab
    answer_drop(engine, deferred.answer)
    deferred.connection = NULL
    deferred.next = engine.free_deferred
    engine.free_deferred = deferred
    engine.deferred_in_use -= 1
    slab.holds -= 1
    settle(engine, slab)


cdef void deferred_finish(Engine *engine, Deferred *deferred) noexcept nogil:
    cdef Connection *connection = deferred.connection
    connection.first = deferred.next
    if connection.first is NULL:
        connection.last = NULL
    connection.owed -= 1
    deferred_release(engine, deferred)


cdef void settle(Engine *engine, Slab *slab) noexcept nogil:
    """Reuses a slab when nothing refers to it: in place while it is its route's open one, else for any route."""
    if not slab_idle(slab):
        return
    if slab.queued:
        if slab.filled and slab_unviewed(slab):
            slab_reset(&engine.slabs, slab)
    else:
        slab_give_back(&engine.slabs, slab)


cdef void defer_free(Engine *engine) noexcept nogil:
    cdef uint32_t index
    for index in range(engine.deferred_made // DEFERRED_IN_BLOCK):
        free(engine.deferred_blocks[index])


# --- identical requests ----------------------------------------------------------------------------------------------

cdef Deferred *find_identical(Engine *engine, uint64_t hash, int route, const char *key,
                              uint32_t length) noexcept nogil:
    cdef Deferred *other = engine.coalesced[hash % COALESCE_BUCKETS]
    while other is not NULL:
        if (other.hash == hash and other.generation == engine.generation and other.route == route
                and other.key_length == length and memcmp(<char *>other.slab + other.key_offset, key, length) == 0):
            return other
        other = other.bucket_next
    return NULL


cdef void bucket_remove(Engine *engine, Deferred *deferred) noexcept nogil:
    cdef Deferred **link = &engine.coalesced[deferred.hash % COALESCE_BUCKETS]
    if deferred.hash == 0:
        return
    while link[0] is not NULL and link[0] is not deferred:
        link = &link[0].bucket_next
    if link[0] is deferred:
        link[0] = deferred.bucket_next
    deferred.hash = 0


cdef void bucket_add(Engine *engine, Deferred *deferred, uint64_t hash) noexcept nogil:
    deferred.hash = hash
    deferred.bucket_next = engine.coalesced[hash % COALESCE_BUCKETS]
    engine.coalesced[hash % COALESCE_BUCKETS] = deferred


# --- ends ------------------------------------------------------------------------------------------------------------

cdef void mark_ready(Engine *engine, Deferred *deferred) noexcept nogil:
    deferred.ready = 1
    if deferred.connection.first is deferred:
        mark_held(engine, deferred.connection)


cdef void let_go_of_item(Engine *engine, Deferred *deferred, uint32_t why) noexcept nogil:
    """This record no longer waits for its item: whoever shares it takes over, or the item is no longer wanted.

    An heir is not found by identical requests any more: the key's bytes lie in a slab that it does not hold.
    """
    cdef Deferred *heir = deferred.follower
    cdef Deferred *other
    cdef Item *item
    if deferred.followed:
        other = deferred.owner
        while other.follower is not deferred:
            other = other.follower
        other.follower = deferred.follower
    else:
        item = slab_items(deferred.item_slab) + deferred.item
        if heir is NULL:
            item.deferred = NO_DEFERRED
            item.cancelled = why
            if deferred.item >= deferred.item_slab.dispatched:
                engine.routes[deferred.route].waiting_dead += 1
        else:
            item.deferred = heir.index
            item.arrived_us = heir.arrived_us
            heir.item = deferred.item
            heir.item_slab = deferred.item_slab
            heir.followed = 0
            other = heir.follower
            while other is not NULL:
                other.owner = heir
                other = other.follower
    deferred.follower = NULL


cdef void answer_by_status(Engine *engine, Deferred *deferred, int status) noexcept nogil:
    """Answers a waiting request without its handler."""
    if deferred.ready:
        return
    bucket_remove(engine, deferred)
    let_go_of_item(engine, deferred, CANCELLED_EXPIRED)
    deferred.status = status
    mark_ready(engine, deferred)


cdef uint32_t abandon_deferred(Engine *engine, Connection *connection) noexcept nogil:
    cdef Deferred *deferred
    cdef uint32_t owed = connection.owed
    while connection.first is not NULL:
        deferred = connection.first
        if not deferred.ready:
            bucket_remove(engine, deferred)
            let_go_of_item(engine, deferred, CANCELLED_GONE)
        log_gone(engine, deferred)
        deferred_finish(engine, deferred)
    return owed


cdef void log_gone(Engine *engine, const Deferred *deferred) noexcept nogil:
    """Its line in the log: with 499, which no response has, as other servers write it."""
    cdef const char *head = <const char *>deferred.slab + deferred.head_offset
    log_line(engine, deferred.connection, head + deferred.request_line.offset, deferred.request_line.length,
             STATUS_CLIENT_GONE, 0, head + deferred.referer.offset, deferred.referer.length,
             head + deferred.user_agent.offset, deferred.user_agent.length)
