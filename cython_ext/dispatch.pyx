"""Batches: off to workers, and back as answers.

The rules:

- A batch is the oldest waiting items of a route's oldest slab. Items whose client is gone, or whose time is over, are
  dropped before the batch leaves: live ones are moved to the end of the range, so that a batch has no holes.
- bridge.decide says when; here it is asked whenever something has changed, and its answer's moment is kept.
- Answers may come in any order. Each marks its record, and the connection when it is that record's turn.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.string cimport memcpy

from batchbridge.cython_ext.bridge cimport (
    CANCELLED_EXPIRED, CANCELLED_GONE, COMPLETION_BATCH_END, COMPLETION_RING_ENTRIES, NO_DEFERRED, NO_SLAB,
    POLICY_ADAPTIVE, Completion, Dispatch, Item, Lane, Slab, adapt, completion_release, decide, lane_completed,
    lane_dispatch, lane_next_completion, slab_at, slab_items)
from batchbridge.cython_ext.core cimport ANSWER_LANE, Answer, Deferred, Engine, Route
from batchbridge.cython_ext.defer cimport queue_trim
from batchbridge.cython_ext.deferred cimport answer_by_status, bucket_remove, deferred_at, mark_ready, settle
from batchbridge.cython_ext.moments cimport earliest
from batchbridge.cython_ext.output cimport answer_drop, answer_hold, answer_new


cdef enum:
    STATUS_UNAVAILABLE = 503
    STATUS_TIMEOUT = 504


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


cdef bint lane_is_free(Engine *engine) noexcept nogil:
    cdef uint32_t turn = engine.lane_turn
    cdef bint found = free_lane(engine) is not NULL
    engine.lane_turn = turn
    return found


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
    route.waiting_dead -= dropped
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
    cdef uint64_t oldest_us
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
                engine.batch_deadline_us = earliest(engine.batch_deadline_us, engine.now_us + <uint64_t>wait_us)
            if route.policy.queue_timeout_us:
                engine.next_deadline_us = earliest(engine.next_deadline_us, route.expiry_us)
            break
        left += leave(engine, route, number, min(size, route.policy.max_batch_size), reason)
    return left


cdef uint32_t dispatch_batches(Engine *engine) noexcept nogil:
    cdef uint32_t left = 0
    cdef int number
    engine.batch_deadline_us = 0
    for number in range(<int>engine.route_count):
        if engine.routes[number].waiting:
            left += dispatch_route(engine, number)
    return left


# --- answers ---------------------------------------------------------------------------------------------------------

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


# --- time-outs -------------------------------------------------------------------------------------------------------

cdef void expire_queue(Engine *engine, Route *route) noexcept nogil:
    """queue_timeout_us: items that waited too long are answered, and so dropped before they leave.

    The queue is walked only when one of them can be due. It is not in order of arrival: who takes over a shared item
    has come later than its place says.
    """
    cdef Slab *slab = route.queue_first
    cdef Item *item
    cdef uint32_t index
    cdef uint64_t timeout_us = route.policy.queue_timeout_us
    cdef uint64_t earliest_us = engine.now_us
    if timeout_us == 0 or engine.now_us < route.expiry_us:
        return
    while slab is not NULL:
        for index in range(slab.dispatched, slab.filled):
            item = slab_items(slab) + index
            if item.deferred == NO_DEFERRED:
                continue
            if item.arrived_us + timeout_us <= engine.now_us:
                answer_by_status(engine, deferred_at(engine, item.deferred), STATUS_UNAVAILABLE)
            else:
                earliest_us = min(earliest_us, item.arrived_us)
        slab = NULL if slab.next == NO_SLAB else slab_at(&engine.slabs, slab.next)
    route.expiry_us = earliest_us + timeout_us


cdef void expire_deferred(Engine *engine) noexcept nogil:
    cdef uint32_t index, number
    cdef Deferred *deferred
    for index in range(engine.deferred_made):
        deferred = deferred_at(engine, index)
        if deferred.connection is NULL or deferred.ready or deferred.deadline_us == 0:
            continue
        if deferred.deadline_us <= engine.now_us:
            answer_by_status(engine, deferred, STATUS_TIMEOUT)
        else:
            engine.next_deadline_us = earliest(engine.next_deadline_us, deferred.deadline_us)
    for number in range(engine.route_count):
        expire_queue(engine, &engine.routes[number])
