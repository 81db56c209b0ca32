"""Requests that go to user mode: into a route's queue, off in batches, back as answers.

The rules:

- A request in user mode has a record (Deferred) here and an item in a slab. Either can end first: the item when its
  completion comes or it is dropped, the record when its answer has been sent or its client is gone. Each then forgets
  the other (item.deferred); the slab is reused when all its items and records have ended.
- A batch is the oldest waiting items of a route's oldest slab. Items whose client is gone, or whose time is over, are
  dropped before the batch leaves: live ones are moved to the end of the range, so that a batch has no holes.
- Identical requests (coalesced) hang on the record that owns the item; if its client goes, the next one becomes owner.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from batchbridge.cython_ext.accesslog cimport log_line
from batchbridge.cython_ext.bridge cimport (
    CANCELLED_EXPIRED, CANCELLED_GONE,
    COMPLETION_BATCH_END, COMPLETION_RING_ENTRIES, NO_DEFERRED, NO_SLAB, POLICY_ADAPTIVE, Completion,
    Dispatch, Item, Lane, Slab, adapt, completion_release, decide, lane_completed, lane_dispatch, lane_next_completion,
    slab_at, slab_give_back, slab_idle, slab_items, slab_payload, slab_reset, slab_take,
    slab_unviewed)
from batchbridge.cython_ext.cache cimport hash_bytes
from batchbridge.cython_ext.core cimport (
    ANSWER_LANE, COALESCE_BUCKETS, Answer, Connection, Deferred, Engine, Request, Route)
from batchbridge.cython_ext.parse cimport (
    HEAD_CREDENTIALS, HEAD_KEEP_ALIVE, HEADER_REFERER, HEADER_USER_AGENT, METHOD_GET, Head, Slice, next_header)
from batchbridge.cython_ext.send cimport answer_drop, answer_hold, answer_new, mark_held


cdef enum:
    DEFERRED_IN_BLOCK = 1024
    DEFERRED_BLOCKS_MAX = 4096
    SLAB_ITEMS_USUAL = 256          # items of a slab, rounded to whole batches
    KEY_SIZE_MAX = 4096
    STATUS_CLIENT_GONE = 499
    STATUS_UNAVAILABLE = 503
    STATUS_TIMEOUT = 504


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


cdef void settle(Engine *engine, Slab *slab) noexcept nogil:
    """Reuses a slab when nothing refers to it: in place while it is its route's open one, else for any route."""
    if not slab_idle(slab):
        return
    if slab.queued:
        if slab.filled and slab_unviewed(slab):
            slab_reset(&engine.slabs, slab)
    else:
        slab_give_back(&engine.slabs, slab)


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


# --- taking a request ------------------------------------------------------------------------------------------------

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


cdef Deferred *find_identical(Engine *engine, uint64_t hash, int route, const char *key,
                              uint32_t length) noexcept nogil:
    cdef Deferred *other = engine.coalesced[hash % COALESCE_BUCKETS]
    while other is not NULL:
        if (other.hash == hash and other.route == route and other.key_length == length
                and memcmp(<char *>other.slab + other.key_offset, key, length) == 0):
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


cdef void fill_record(Engine *engine, Connection *connection, const Request *request, Deferred *deferred,
                      Slab *slab) noexcept nogil:
    """All of a record but its item: what the answer, and its line in the log, will need."""
    cdef const Head *head = request.head
    cdef const Route *route = &engine.routes[request.route]
    deferred.connection = connection
    deferred.slab = slab
    deferred.route = request.route
    deferred.arrived_us = engine.now_us
    deferred.deadline_us = 0
    if route.policy.timeout_us:
        deferred.deadline_us = engine.now_us + route.policy.timeout_us
        if engine.next_deadline_us == 0 or deferred.deadline_us < engine.next_deadline_us:
            engine.next_deadline_us = deferred.deadline_us
    deferred.method = head.method
    deferred.version_minor = head.version_minor
    deferred.keep_alive = head.flags & HEAD_KEEP_ALIVE != 0
    deferred.request_line.offset = head.method_name.offset
    deferred.request_line.length = head.target.offset + head.target.length + 9 - head.method_name.offset
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
    if owner is NULL and route.waiting >= route.policy.max_queue_size:
        route.queue_full += 1
        return DEFER_FULL
    slab = slab_for(engine, route, request.route, head.head_length,
                    0 if route.array_size_bytes else request.body_length)
    if slab is NULL:
        route.queue_full += 1
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


# --- letting batches leave -------------------------------------------------------------------------------------------

cdef uint32_t drop_dead_items(Engine *engine, Slab *slab, uint32_t first, uint32_t count) noexcept nogil:
    """Moves the live ones of items [first, first + count) to the range's end; returns how many were dropped."""
    cdef Item *items = slab_items(slab)
    cdef uint32_t source = first + count, target = first + count
    cdef Item *item
    while source > first:
        source -= 1
        item = &items[source]
        if item.cancelled == CANCELLED_GONE:
            engine.counters.items_dropped_gone += 1
            continue
        if item.cancelled == CANCELLED_EXPIRED:
            engine.counters.items_dropped_expired += 1
            continue
        target -= 1
        if source == target:
            continue
        if slab.array_stride:
            memcpy(<char *>slab + slab.array_offset + target * slab.array_stride, <char *>slab + item.body_offset,
                   item.body_length)
        items[target] = item[0]
        if slab.array_stride:
            items[target].body_offset = slab.array_offset + target * slab.array_stride
        if item.deferred != NO_DEFERRED:
            deferred_at(engine, item.deferred).item = target
    return target - first


cdef bint has_room(const Engine *engine, const Lane *lane) noexcept nogil:
    """Whether a worker may be given a batch.

    Each of its items makes a completion, and its end one more: their ring must never be full.
    """
    cdef uint32_t completions = lane.items_outstanding + lane.outstanding + engine.limits.batch_size_max + 1
    return lane.outstanding < engine.lane_batches_max and completions <= COMPLETION_RING_ENTRIES


cdef Lane *free_lane(Engine *engine) noexcept nogil:
    """A worker that can take a batch now: in turn, so that all stay warm; NULL: none."""
    cdef uint32_t index
    cdef Lane *lane
    for index in range(engine.lane_count):
        lane = engine.lanes[(engine.lane_turn + index) % engine.lane_count]
        if has_room(engine, lane):
            engine.lane_turn = (engine.lane_turn + index + 1) % engine.lane_count
            return lane
    return NULL


cdef void expire_queue(Engine *engine, Route *route) noexcept nogil:
    """queue_timeout_us: the oldest items that waited too long are answered, and so dropped before they leave."""
    cdef Slab *slab = route.queue_first
    cdef Item *items
    cdef uint32_t index
    cdef uint64_t limit_us = engine.now_us - route.policy.queue_timeout_us
    if route.policy.queue_timeout_us == 0:
        return
    while slab is not NULL:
        items = slab_items(slab)
        for index in range(slab.dispatched, slab.filled):
            if items[index].arrived_us > limit_us:
                return
            if items[index].deferred != NO_DEFERRED and not items[index].cancelled:
                answer_by_status(engine, deferred_at(engine, items[index].deferred), STATUS_UNAVAILABLE)
        slab = NULL if slab.next == NO_SLAB else slab_at(&engine.slabs, slab.next)


cdef uint32_t leave(Engine *engine, Route *route, int number, uint32_t size, uint32_t reason) noexcept nogil:
    """Lets the oldest `size` items of a route leave, as far as they are in one slab; returns how many batches left."""
    cdef Slab *slab = route.queue_first
    cdef Lane *lane
    cdef Dispatch dispatch
    cdef uint32_t dropped, bucket = 0
    size = min(size, slab.filled - slab.dispatched)
    dropped = drop_dead_items(engine, slab, slab.dispatched, size)
    dispatch.slab = slab.index
    dispatch.first = slab.dispatched + dropped
    dispatch.count = size - dropped
    dispatch.route = <uint32_t>number
    dispatch.reason = reason
    dispatch.response_batch_size = route.policy.response_batch_size
    dispatch.dispatched_us = engine.now_us
    slab.dispatched += size
    slab.done += dropped
    route.waiting -= size
    if dispatch.count:
        lane = free_lane(engine)
        slab.batches_dispatched += 1
        route.batches_in_flight += 1
        route.batches += 1
        route.items += dispatch.count
        route.reasons[reason] += 1
        while (1u << bucket) < dispatch.count:
            bucket += 1
        route.batch_sizes[min(bucket, 10u)] += 1
        if lane_dispatch(lane, &dispatch) == 1:
            engine.driver.ring_bell(engine, lane.worker_bell)
    queue_trim(engine, route)
    if slab.queued and not dispatch.count:
        settle(engine, slab)
    return 1 if dispatch.count else 0


cdef uint32_t dispatch_route(Engine *engine, int number) noexcept nogil:
    cdef Route *route = &engine.routes[number]
    cdef uint32_t left = 0, size, reason = 0
    cdef int64_t wait_us
    cdef uint64_t oldest_us, deadline_us
    cdef const Item *oldest
    cdef bint is_free
    while route.waiting:
        expire_queue(engine, route)
        oldest = slab_items(route.queue_first) + route.queue_first.dispatched
        oldest_us = engine.now_us - oldest.arrived_us
        is_free = route.batches_in_flight < route.policy.concurrency and lane_is_free(engine)
        size = decide(&route.policy, route.waiting, oldest_us, is_free, engine.more_input, engine.draining != 0,
                      &reason, &wait_us)
        if size == 0:
            if wait_us >= 0:
                deadline_us = engine.now_us + <uint64_t>wait_us
                if engine.batch_deadline_us == 0 or deadline_us < engine.batch_deadline_us:
                    engine.batch_deadline_us = deadline_us
            if route.policy.queue_timeout_us:
                deadline_us = oldest.arrived_us + route.policy.queue_timeout_us
                if engine.next_deadline_us == 0 or deadline_us < engine.next_deadline_us:
                    engine.next_deadline_us = deadline_us
            break
        left += leave(engine, route, number, min(size, route.policy.max_batch_size), reason)
    return left


cdef bint lane_is_free(Engine *engine) noexcept nogil:
    cdef uint32_t turn = engine.lane_turn
    cdef bint found = free_lane(engine) is not NULL
    engine.lane_turn = turn
    return found


cdef uint32_t dispatch_batches(Engine *engine) noexcept nogil:
    cdef uint32_t left = 0
    cdef int number
    engine.batch_deadline_us = 0
    for number in range(<int>engine.route_count):
        if engine.routes[number].waiting:
            left += dispatch_route(engine, number)
    return left


# --- answers ---------------------------------------------------------------------------------------------------------

cdef void mark_ready(Engine *engine, Deferred *deferred) noexcept nogil:
    deferred.ready = 1
    if deferred.connection.first is deferred:
        mark_held(engine, deferred.connection)


cdef void let_go_of_item(Deferred *deferred, uint32_t why) noexcept nogil:
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
        else:
            item.deferred = heir.index
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
    let_go_of_item(deferred, CANCELLED_EXPIRED)
    deferred.status = status
    mark_ready(engine, deferred)


cdef void answer_all(Engine *engine, Lane *lane, const Completion *completion, Deferred *deferred) noexcept nogil:
    """Hands one completion to the record that owns its item and to all that share it."""
    cdef Answer *answer = answer_new(engine, ANSWER_LANE)
    cdef Deferred *following
    bucket_remove(engine, deferred)
    if answer is not NULL:
        answer.lane = lane
        answer.completion = completion[0]
    else:
        completion_release(lane, completion)
    while deferred is not NULL:
        following = deferred.follower
        deferred.follower = NULL
        if answer is not NULL:
            answer_hold(answer)
            deferred.answer = answer
        else:
            deferred.status = STATUS_UNAVAILABLE
        mark_ready(engine, deferred)
        deferred = following
    answer_drop(engine, answer)


cdef void take_completion(Engine *engine, Lane *lane, const Completion *completion) noexcept nogil:
    cdef Slab *slab = slab_at(&engine.slabs, completion.slab)
    cdef Item *item = slab_items(slab) + completion.item
    cdef Route *route = &engine.routes[slab.route]
    cdef uint32_t index = item.deferred
    slab.done += 1
    lane.items_outstanding -= 1
    route.worst_latency_us = max(route.worst_latency_us, engine.now_us - item.arrived_us)
    if index == NO_DEFERRED:
        engine.counters.items_late += 1
        completion_release(lane, completion)
        settle(engine, slab)
        return
    item.deferred = NO_DEFERRED
    answer_all(engine, lane, completion, deferred_at(engine, index))


cdef uint32_t collect_answers(Engine *engine) noexcept nogil:
    cdef uint32_t index, ended = 0
    cdef Lane *lane
    cdef Completion *completion
    cdef Route *route
    for index in range(engine.lane_count):
        lane = engine.lanes[index]
        while True:
            completion = lane_next_completion(lane)
            if completion is NULL:
                break
            if completion.flags & COMPLETION_BATCH_END:
                route = &engine.routes[completion.item]
                lane.outstanding -= 1
                route.batches_in_flight -= 1
                ended += 1
                if route.policy.kind == POLICY_ADAPTIVE:
                    route.policy.effective_delay_us = adapt(&route.policy, route.policy.effective_delay_us,
                                                            route.worst_latency_us)
                route.worst_latency_us = 0
            else:
                take_completion(engine, lane, completion)
            lane_completed(lane)
    return ended


cdef void expire_deferred(Engine *engine) noexcept nogil:
    cdef uint32_t index, number
    cdef Deferred *deferred
    for index in range(engine.deferred_made):
        deferred = deferred_at(engine, index)
        if deferred.connection is NULL or deferred.ready or deferred.deadline_us == 0:
            continue
        if deferred.deadline_us <= engine.now_us:
            answer_by_status(engine, deferred, STATUS_TIMEOUT)
        elif engine.next_deadline_us == 0 or deferred.deadline_us < engine.next_deadline_us:
            engine.next_deadline_us = deferred.deadline_us
    for number in range(engine.route_count):
        expire_queue(engine, &engine.routes[number])


cdef void deferred_finish(Engine *engine, Deferred *deferred) noexcept nogil:
    cdef Connection *connection = deferred.connection
    connection.first = deferred.next
    if connection.first is NULL:
        connection.last = NULL
    connection.owed -= 1
    deferred_release(engine, deferred)


cdef uint32_t abandon_deferred(Engine *engine, Connection *connection) noexcept nogil:
    cdef Deferred *deferred
    cdef uint32_t owed = connection.owed
    while connection.first is not NULL:
        deferred = connection.first
        if not deferred.ready:
            bucket_remove(engine, deferred)
            let_go_of_item(deferred, CANCELLED_GONE)
        log_gone(engine, deferred)
        deferred_finish(engine, deferred)
    return owed


cdef void log_gone(Engine *engine, const Deferred *deferred) noexcept nogil:
    """Its line in the log: with 499, which no response has, as other servers write it."""
    cdef const char *head = <const char *>deferred.slab + deferred.head_offset
    log_line(engine, deferred.connection, head + deferred.request_line.offset, deferred.request_line.length,
             STATUS_CLIENT_GONE, 0, head + deferred.referer.offset, deferred.referer.length,
             head + deferred.user_agent.offset, deferred.user_agent.length)


cdef void defer_free(Engine *engine) noexcept nogil:
    cdef uint32_t index
    for index in range(engine.deferred_made // DEFERRED_IN_BLOCK):
        free(engine.deferred_blocks[index])
