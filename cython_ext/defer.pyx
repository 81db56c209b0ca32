"""Requests into queues: a route's slabs, and what a request leaves in them.

The rules:

- A route's queue is a list of slabs, from the oldest with waiting items to the open one, to which items are appended.
- A slab is opened anew where a batch would otherwise be cut short by its end: batches do not cross slabs.
- The head and the body are copied once, out of the receive buffer; bodies of a fixed size lie side by side.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from batchbridge.cython_ext.bridge cimport (
    NO_SLAB, Item, Slab, slab_at, slab_give_back, slab_idle, slab_items, slab_payload, slab_take)
from batchbridge.cython_ext.cache cimport hash_bytes
from batchbridge.cython_ext.core cimport Connection, Deferred, Engine, Request, Route
from batchbridge.cython_ext.deferred cimport bucket_add, deferred_new, find_identical, settle
from batchbridge.cython_ext.moments cimport earliest
from batchbridge.cython_ext.parse cimport (
    HEAD_CREDENTIALS, HEAD_KEEP_ALIVE, HEADER_REFERER, HEADER_USER_AGENT, METHOD_GET, Head, Slice, next_header,
    request_line_length)


cdef enum:
    SLAB_ITEMS_USUAL = 256          # items of a slab, rounded to whole batches
    KEY_SIZE_MAX = 4096


# --- the queue -------------------------------------------------------------------------------------------------------

cdef void queue_trim(Engine *engine, Route *route) noexcept nogil:
    """Takes slabs off the queue's front that have no waiting item and will get no more."""
    cdef Slab *slab = route.queue_first
    while slab is not NULL and slab.dispatched == slab.filled and (
            slab is not route.queue_last or slab.filled == slab.capacity):
        route.queue_first = NULL if slab.next == NO_SLAB else slab_at(&engine.slabs, slab.next)
        if route.queue_first is NULL:
            route.queue_last = NULL
        slab.queued = 0
        settle(engine, slab)
        slab = route.queue_first


cdef void give_back_idle(Engine *engine) noexcept nogil:
    """Takes open slabs without an item from their routes: there may be more routes than slabs."""
    cdef uint32_t number
    cdef Route *route
    cdef Slab *slab
    for number in range(engine.route_count):
        route = &engine.routes[number]
        slab = route.queue_first
        if slab is not NULL and slab is route.queue_last and slab_idle(slab):
            route.queue_first = NULL
            route.queue_last = NULL
            slab.queued = 0
            slab_give_back(&engine.slabs, slab)


cdef Slab *queue_open(Engine *engine, Route *route, int number) noexcept nogil:
    """Opens a new slab at the queue's end. NULL: all are in use."""
    cdef uint32_t batch = max(1, route.policy.max_batch_size)
    cdef uint32_t capacity = max(1, SLAB_ITEMS_USUAL // batch) * batch
    cdef uint32_t stride = (route.array_size_bytes + 63) & ~63u
    cdef Slab *slab
    if stride:
        # Heads need room beside the bodies.
        capacity = max(1, min(capacity, engine.slabs.slab_size_bytes // 2 // stride))
    slab = slab_take(&engine.slabs, <uint32_t>number, capacity, stride)
    if slab is NULL:
        give_back_idle(engine)
        slab = slab_take(&engine.slabs, <uint32_t>number, capacity, stride)
    if slab is NULL:
        return NULL
    slab.holds = 0
    slab.queued = 1
    if route.queue_last is not NULL:
        route.queue_last.next = slab.index
    else:
        route.queue_first = slab
    route.queue_last = slab
    queue_trim(engine, route)
    return slab


cdef char *payload(Engine *engine, Slab *slab, uint32_t size_bytes, uint32_t alignment,
                   uint32_t *offset) noexcept nogil:
    offset[0] = slab_payload(&engine.slabs, slab, size_bytes, alignment)
    return NULL if offset[0] == 0 else <char *>slab + offset[0]


cdef bint is_too_short(const Route *route, const Slab *slab) noexcept nogil:
    """Whether a batch that begins with the next item would be cut short by the slab's end."""
    cdef uint32_t batch = max(1u, route.policy.max_batch_size)
    return (slab.filled - slab.dispatched) % batch == 0 and slab.capacity - slab.filled < batch <= slab.capacity


cdef Slab *slab_for(Engine *engine, Route *route, int number, uint32_t head_length,
                    uint32_t body_length) noexcept nogil:
    """The open slab, if it has room for a request of these lengths; else a new one. NULL: none has."""
    cdef uint64_t needed = <uint64_t>head_length + body_length + KEY_SIZE_MAX + 256
    cdef Slab *slab = route.queue_last
    if (slab is not NULL and slab.filled < slab.capacity and slab.payload_used + needed <= engine.slabs.slab_size_bytes
            and not is_too_short(route, slab)):
        return slab
    slab = queue_open(engine, route, number)
    if slab is NULL or slab.payload_used + needed > engine.slabs.slab_size_bytes:
        return NULL
    return slab


# --- what makes requests identical -----------------------------------------------------------------------------------

cdef uint32_t request_key(const Engine *engine, const Request *request, char *out, uint32_t room) noexcept nogil:
    cdef const Head *head = request.head
    cdef const Route *route = &engine.routes[request.route]
    cdef uint32_t used = head.path.length, cursor = head.headers.offset, index
    cdef Slice name, value
    if used + 1 + head.query.length + 1 + head.authority.length + 1 > room:
        return 0
    memcpy(out, request.data + head.path.offset, head.path.length)
    if head.query.offset:
        out[used] = c'?'
        memcpy(out + used + 1, request.data + head.query.offset, head.query.length)
        used += 1 + head.query.length
    out[used] = 0
    memcpy(out + used + 1, request.data + head.authority.offset, head.authority.length)
    used += 1 + head.authority.length + 1
    out[used - 1] = 0
    if route.vary_count == 0:
        return used
    while next_header(request.data, head, &cursor, &name, &value):
        for index in range(route.vary_count):
            if route.vary[index].length == name.length and same_name(
                    route.vary_text + route.vary[index].offset, request.data + name.offset, name.length):
                if used + value.length + 2 > room:
                    return 0
                out[used] = <char>(1 + index)
                memcpy(out + used + 1, request.data + value.offset, value.length)
                used += value.length + 2
                out[used - 1] = 0
    return used


cdef bint same_name(const char *lower, const char *name, uint32_t length) noexcept nogil:
    cdef uint32_t index
    cdef char byte
    for index in range(length):
        byte = name[index]
        if (byte + 32 if c'A' <= byte <= c'Z' else byte) != lower[index]:
            return False
    return True


# --- taking a request ------------------------------------------------------------------------------------------------

cdef void fill_record(Engine *engine, Connection *connection, const Request *request, Deferred *deferred,
                      Slab *slab) noexcept nogil:
    """All of a record but its item: what the answer, and its line in the log, will need."""
    cdef const Head *head = request.head
    cdef const Route *route = &engine.routes[request.route]
    deferred.connection = connection
    deferred.slab = slab
    deferred.route = request.route
    deferred.generation = engine.generation
    deferred.arrived_us = engine.now_us
    deferred.deadline_us = 0
    if route.policy.timeout_us:
        deferred.deadline_us = engine.now_us + route.policy.timeout_us
        engine.next_deadline_us = earliest(engine.next_deadline_us, deferred.deadline_us)
    deferred.method = head.method
    deferred.version_minor = head.version_minor
    deferred.keep_alive = head.flags & HEAD_KEEP_ALIVE != 0
    deferred.request_line.offset = head.method_name.offset
    deferred.request_line.length = request_line_length(head)
    deferred.referer = head.known[<int>HEADER_REFERER]
    deferred.user_agent = head.known[<int>HEADER_USER_AGENT]
    slab.holds += 1
    # Behind the other answers that the connection is owed.
    if connection.last is not NULL:
        connection.last.next = deferred
    else:
        connection.first = deferred
    connection.last = deferred
    connection.owed += 1
    engine.counters.items_deferred += 1


cdef void fill_item(Engine *engine, const Connection *connection, const Request *request, Deferred *deferred,
                    Item *item, uint32_t head_offset) noexcept nogil:
    cdef const Head *head = request.head
    item.deferred = deferred.index
    item.cancelled = 0
    item.method = head.method
    item.version_minor = head.version_minor
    item.parameter_count = <uint8_t>request.parameter_count
    item.family = connection.family
    item.port = connection.port
    memcpy(item.address, connection.address, sizeof(item.address))
    item.head_offset = head_offset
    item.head_length = head.head_length
    item.method_name = head.method_name
    item.target = head.target
    item.path = head.path
    item.query = head.query
    item.headers = head.headers
    item.authority = head.authority
    memcpy(item.parameters, request.parameters, request.parameter_count * sizeof(Slice))
    item.arrived_us = engine.now_us
    item.deadline_us = deferred.deadline_us


cdef int defer_request(Engine *engine, Connection *connection, Request *request) noexcept nogil:
    cdef Route *route = &engine.routes[request.route]
    cdef const Head *head = request.head
    cdef char key[KEY_SIZE_MAX]
    cdef uint32_t key_length = 0, offset
    cdef uint64_t hash = 0
    cdef Deferred *owner = NULL
    cdef Deferred *deferred
    cdef Slab *slab
    cdef Item *item
    if route.coalesce and head.method == METHOD_GET and not head.flags & HEAD_CREDENTIALS and request.body_length == 0:
        key_length = request_key(engine, request, key, KEY_SIZE_MAX)
        if key_length:
            hash = hash_bytes(key, key_length, 1) | 1
            owner = find_identical(engine, hash, request.route, key, key_length)
    if owner is NULL and route.waiting - route.waiting_dead >= route.policy.max_queue_size:
        return DEFER_FULL
    slab = slab_for(engine, route, request.route, head.head_length,
                    0 if route.array_size_bytes else request.body_length)
    if slab is NULL:
        return DEFER_FULL
    deferred = deferred_new(engine)
    if deferred is NULL:
        return DEFER_FULL
    fill_record(engine, connection, request, deferred, slab)
    memcpy(payload(engine, slab, head.head_length, 1, &offset), request.data, head.head_length)
    deferred.head_offset = offset
    deferred.head_length = head.head_length
    request.deferred = deferred
    if owner is not NULL:
        deferred.followed = 1
        deferred.owner = owner
        deferred.follower = owner.follower
        owner.follower = deferred
        engine.counters.items_coalesced += 1
        return DEFER_TAKEN
    item = slab_items(slab) + slab.filled
    fill_item(engine, connection, request, deferred, item, offset)
    deferred.item = slab.filled
    deferred.item_slab = slab
    if slab.array_stride:
        item.body_offset = slab.array_offset + slab.filled * slab.array_stride
        memcpy(<char *>slab + item.body_offset, request.body, request.body_length)
        engine.counters.body_copies += 1
    elif request.body_length:
        memcpy(payload(engine, slab, request.body_length, 64, &item.body_offset), request.body, request.body_length)
        engine.counters.body_copies += 1
    else:
        item.body_offset = offset
    item.body_length = request.body_length
    if hash:
        memcpy(payload(engine, slab, key_length, 1, &deferred.key_offset), key, key_length)
        deferred.key_length = key_length
        bucket_add(engine, deferred, hash)
    slab.filled += 1
    route.waiting += 1
    return DEFER_TAKEN
