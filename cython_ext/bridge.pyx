"""The bridge between engine and handlers: slabs of waiting requests, lanes of batches and responses, decisions.

Memory ordering, the one rule: whoever writes entries stores its position with release after them; the other side loads
the position with acquire before it reads them. Before a side sleeps it says so, puts a full fence, and looks once more;
the other side, after it has shown something, puts a full fence and looks whether its peer sleeps. So either the sleeper
sees the entry, or the writer sees the sleeper, and no wake-up is lost.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset


cdef extern from "compat.h" nogil:
    uint32_t bb_load_acquire(const uint32_t *) noexcept
    void bb_store_release(uint32_t *, uint32_t) noexcept
    uint32_t bb_load_relaxed(const uint32_t *) noexcept
    void bb_full_fence() noexcept
    uint64_t bb_load_acquire_64(const uint64_t *) noexcept
    void bb_store_release_64(uint64_t *, uint64_t) noexcept


cdef enum:
    PAGE_SIZE_BYTES = 4096
    SLAB_ITEMS_OFFSET = 64      # the header's cache line; the items follow
    NO_BLOCK = 0xFFFFFFFF


cdef uint64_t pages(uint64_t size_bytes) noexcept nogil:
    return (size_bytes + PAGE_SIZE_BYTES - 1) & ~<uint64_t>(PAGE_SIZE_BYTES - 1)


cdef uint64_t lane_size_bytes(uint32_t block_count, uint64_t *blocks_offset, uint64_t *arena_offset) noexcept nogil:
    blocks_offset[0] = pages(sizeof(LaneShared))
    arena_offset[0] = blocks_offset[0] + pages(block_count * sizeof(ResponseBlock))
    return arena_offset[0] + <uint64_t>block_count * RESPONSE_BLOCK_SIZE_BYTES


cdef void lane_view(Lane *lane, char *memory, uint32_t block_count, int worker_bell, int engine_bell) noexcept nogil:
    cdef uint64_t blocks_offset, arena_offset
    memset(lane, 0, sizeof(Lane))
    lane.shared_size_bytes = lane_size_bytes(block_count, &blocks_offset, &arena_offset)
    lane.shared = <LaneShared *>memory
    lane.blocks = <ResponseBlock *>(memory + blocks_offset)
    lane.arena = memory + arena_offset
    lane.block_count = block_count
    lane.current_block = NO_BLOCK
    lane.worker_bell = worker_bell
    lane.engine_bell = engine_bell


# --- slabs -----------------------------------------------------------------------------------------------------------

cdef void slabs_view(SlabPool *pool, char *memory, uint32_t slab_count, uint32_t slab_size_bytes,
                     uint32_t items_max) noexcept nogil:
    cdef uint32_t index
    cdef Slab *slab
    pool.base = memory
    pool.slab_count = slab_count
    pool.slab_size_bytes = slab_size_bytes
    pool.items_max = items_max
    pool.in_use = 0
    pool.first_free = 0
    for index in range(slab_count):
        slab = slab_at(pool, index)
        slab.index = index
        slab.next = index + 1 if index + 1 < slab_count else NO_SLAB


cdef Slab *slab_at(const SlabPool *pool, uint32_t index) noexcept nogil:
    return <Slab *>(pool.base + <uint64_t>index * pool.slab_size_bytes)


cdef Item *slab_items(Slab *slab) noexcept nogil:
    return <Item *>(<char *>slab + SLAB_ITEMS_OFFSET)


cdef void slab_reset(SlabPool *pool, Slab *slab) noexcept nogil:
    """Empties a slab for more items of the same route."""
    slab.filled = 0
    slab.dispatched = 0
    slab.done = 0
    slab.batches_dispatched = 0
    slab.batches_released = 0
    slab.payload_used = SLAB_ITEMS_OFFSET + slab.capacity * sizeof(Item)
    slab.array_offset = 0
    if slab.array_stride:
        slab.array_offset = slab_payload(pool, slab, slab.capacity * slab.array_stride, 64)


cdef Slab *slab_take(SlabPool *pool, uint32_t route, uint32_t capacity, uint32_t stride) noexcept nogil:
    cdef uint32_t *link = &pool.first_free
    cdef Slab *slab
    # A slab in the list may still be looked at by a view that outlived its batch: such a one is passed over.
    while link[0] != NO_SLAB:
        slab = slab_at(pool, link[0])
        if slab_unviewed(slab):
            link[0] = slab.next
            slab.next = NO_SLAB
            slab.route = route
            slab.capacity = min(capacity, pool.items_max)
            slab.array_stride = stride
            slab_reset(pool, slab)
            pool.in_use += 1
            return slab
        link = &slab.next
    return NULL


cdef uint32_t slab_payload(SlabPool *pool, Slab *slab, uint32_t size_bytes, uint32_t alignment) noexcept nogil:
    cdef uint64_t offset = (<uint64_t>slab.payload_used + alignment - 1) & ~<uint64_t>(alignment - 1)
    if offset + size_bytes > pool.slab_size_bytes:
        return 0
    slab.payload_used = <uint32_t>(offset + size_bytes)
    return <uint32_t>offset


cdef bint slab_idle(const Slab *slab) noexcept nogil:
    return slab.done == slab.filled and slab.dispatched == slab.filled and slab.holds == 0


cdef bint slab_unviewed(const Slab *slab) noexcept nogil:
    return bb_load_acquire(&slab.batches_released) == slab.batches_dispatched


cdef void slab_give_back(SlabPool *pool, Slab *slab) noexcept nogil:
    # Last in, first out: the slab that is warm in the caches is taken next.
    slab.next = pool.first_free
    pool.first_free = slab.index
    pool.in_use -= 1


# --- a lane, the engine's side ---------------------------------------------------------------------------------------

cdef int lane_dispatch(Lane *lane, const Dispatch *dispatch) noexcept nogil:
    cdef uint32_t tail = lane.shared.dispatch_tail
    if tail - bb_load_acquire(&lane.shared.dispatch_head) >= DISPATCH_RING_ENTRIES:
        return -1
    lane.shared.dispatches[tail % DISPATCH_RING_ENTRIES] = dispatch[0]
    bb_store_release(&lane.shared.dispatch_tail, tail + 1)
    lane.outstanding += 1
    lane.items_outstanding += dispatch.count
    bb_full_fence()
    return bb_load_relaxed(&lane.shared.worker_sleeps) != 0


cdef Completion *lane_next_completion(Lane *lane) noexcept nogil:
    if lane.completion_head == bb_load_acquire(&lane.shared.completion_tail):
        return NULL
    return &lane.shared.completions[lane.completion_head % COMPLETION_RING_ENTRIES]


cdef void lane_completed(Lane *lane) noexcept nogil:
    lane.completion_head += 1
    bb_store_release(&lane.shared.completion_head, lane.completion_head)


cdef const char *completion_text(const Lane *lane, const Completion *completion) noexcept nogil:
    if completion.flags & COMPLETION_HEAP:
        return completion.heap
    return lane.arena + completion.offset if completion.offset else NULL


cdef uint64_t text_size_bytes(const Completion *completion) noexcept nogil:
    return <uint64_t>completion.headers_length + completion.body_length + completion.tags_length


cdef void completion_release(Lane *lane, const Completion *completion) noexcept nogil:
    cdef ResponseBlock *block
    if completion.flags & COMPLETION_HEAP:
        bb_store_release_64(&lane.shared.heap_given_back_bytes,
                            lane.shared.heap_given_back_bytes + text_size_bytes(completion))
        free(completion.heap)
    elif completion.offset:
        block = &lane.blocks[completion.offset // RESPONSE_BLOCK_SIZE_BYTES]
        bb_store_release(&block.given_back, block.given_back + 1)


# --- a lane, the worker's side ---------------------------------------------------------------------------------------

cdef Dispatch *lane_next_dispatch(Lane *lane) noexcept nogil:
    cdef uint32_t head = lane.shared.dispatch_head
    if head == bb_load_acquire(&lane.shared.dispatch_tail):
        return NULL
    return &lane.shared.dispatches[head % DISPATCH_RING_ENTRIES]


cdef void lane_dispatch_taken(Lane *lane) noexcept nogil:
    bb_store_release(&lane.shared.dispatch_head, lane.shared.dispatch_head + 1)


cdef bint block_is_free(Lane *lane, uint32_t index) noexcept nogil:
    cdef ResponseBlock *block = &lane.blocks[index]
    return block.laid == bb_load_acquire(&block.given_back)


cdef uint32_t free_run(Lane *lane, uint32_t wanted) noexcept nogil:
    """The first block of a run of `wanted` free ones, searched from where the last search ended; NO_BLOCK: none.

    A run's blocks behind its first one carry the first one's counters in effect: `blocks` of the first tells how many
    to step over.
    """
    cdef uint32_t start = lane.next_block, looked = 0, run = 0, first = 0, step
    if wanted > lane.block_count:
        return NO_BLOCK
    # Twice round at most: a run may begin before where the search began.
    while looked < 2 * lane.block_count:
        if start >= lane.block_count:
            start = 0
            run = 0
        step = 1
        if start == lane.current_block or not block_is_free(lane, start):
            step = max(1, lane.blocks[start].blocks)
            run = 0
        else:
            lane.blocks[start].blocks = 1
            if run == 0:
                first = start
            run += 1
            if run == wanted:
                lane.next_block = start + 1
                return first
        start += step
        looked += step
    return NO_BLOCK


cdef char *lane_response(Lane *lane, uint32_t size_bytes, uint32_t *offset) noexcept nogil:
    cdef uint64_t needed = (<uint64_t>size_bytes + RESPONSE_HEAD_ROOM_BYTES + 63) & ~<uint64_t>63
    cdef uint32_t wanted, block, position
    if needed > RESPONSE_BLOCK_SIZE_BYTES:
        wanted = <uint32_t>((needed + RESPONSE_BLOCK_SIZE_BYTES - 1) // RESPONSE_BLOCK_SIZE_BYTES)
        block = free_run(lane, wanted)
        if block == NO_BLOCK:
            return NULL
        lane.blocks[block].blocks = wanted
        position = 0
    else:
        block = lane.current_block
        # Everything that was laid into the current block has left: begin it again, its memory is warm.
        if block != NO_BLOCK and block_is_free(lane, block):
            lane.current_used = 0
        if block == NO_BLOCK or lane.current_used + needed > RESPONSE_BLOCK_SIZE_BYTES:
            lane.current_block = NO_BLOCK
            block = free_run(lane, 1)
            if block == NO_BLOCK:
                return NULL
            lane.current_block = block
            lane.current_used = 0
        position = lane.current_used
        lane.current_used += <uint32_t>needed
    lane.blocks[block].laid += 1
    offset[0] = block * RESPONSE_BLOCK_SIZE_BYTES + position + RESPONSE_HEAD_ROOM_BYTES
    return lane.arena + offset[0]


cdef char *lane_heap_response(Lane *lane, uint32_t size_bytes) noexcept nogil:
    cdef uint64_t in_use = lane.shared.heap_laid_bytes - bb_load_acquire_64(&lane.shared.heap_given_back_bytes)
    cdef uint64_t most = <uint64_t>HEAP_ARENAS_MAX * lane.block_count * RESPONSE_BLOCK_SIZE_BYTES
    cdef char *text
    if in_use + size_bytes > most:
        return NULL
    text = <char *>malloc(size_bytes)
    if text is not NULL:
        lane.shared.heap_laid_bytes += size_bytes
    return text


cdef Completion *lane_completion(Lane *lane) noexcept nogil:
    if lane.completion_tail - bb_load_acquire(&lane.shared.completion_head) >= COMPLETION_RING_ENTRIES:
        return NULL
    lane.completion_tail += 1
    return &lane.shared.completions[(lane.completion_tail - 1) % COMPLETION_RING_ENTRIES]


cdef int lane_show(Lane *lane) noexcept nogil:
    if lane.shared.completion_tail == lane.completion_tail:
        return 0
    bb_store_release(&lane.shared.completion_tail, lane.completion_tail)
    bb_full_fence()
    return bb_load_relaxed(&lane.shared.engine_sleeps) != 0


# --- decisions -------------------------------------------------------------------------------------------------------

cdef uint32_t decide(const Policy *policy, uint32_t waiting, uint64_t oldest_waited_us, bint handler_free,
                     bint more_input, bint closing, uint32_t *reason, int64_t *wait_us) noexcept nogil:
    cdef uint32_t index, preferred = 0
    cdef uint32_t full_size = min(policy.max_batch_size, policy.max_queue_size)
    cdef uint64_t limit_us = 0, delay_us = policy.max_queue_delay_us
    cdef bint delays
    wait_us[0] = -1
    if waiting == 0 or not handler_free:
        return 0
    if waiting >= full_size:
        reason[0] = REASON_FULL
        return full_size
    if closing:
        reason[0] = REASON_CLOSING
        return waiting
    if policy.kind == POLICY_ADAPTIVE:
        delay_us = min(policy.effective_delay_us, policy.max_queue_delay_us)
    delays = policy.kind != POLICY_IDLE or delay_us > 0
    if delays and oldest_waited_us >= delay_us:
        reason[0] = REASON_DELAY
        return waiting
    if policy.queue_timeout_us or policy.timeout_us:
        # Half of the shorter time-out: the handler needs some of it too.
        limit_us = min(policy.queue_timeout_us if policy.queue_timeout_us else <uint32_t>0xFFFFFFFF,
                       policy.timeout_us if policy.timeout_us else <uint32_t>0xFFFFFFFF) // 2
        if oldest_waited_us >= limit_us:
            reason[0] = REASON_DEADLINE
            return waiting
    if policy.kind == POLICY_IDLE and not more_input:
        reason[0] = REASON_IDLE
        for index in range(policy.preferred_count):
            if policy.preferred[index] <= waiting:
                preferred = policy.preferred[index]
        return preferred if preferred else waiting
    if delays:
        wait_us[0] = <int64_t>(delay_us - oldest_waited_us)
    if policy.queue_timeout_us or policy.timeout_us:
        if wait_us[0] < 0 or <int64_t>(limit_us - oldest_waited_us) < wait_us[0]:
            wait_us[0] = <int64_t>(limit_us - oldest_waited_us)
    return 0


cdef uint32_t adapt(const Policy *policy, uint32_t effective_delay_us, uint64_t worst_latency_us) noexcept nogil:
    effective_delay_us = min(effective_delay_us, policy.max_queue_delay_us)
    if policy.latency_objective_us == 0:
        return effective_delay_us
    if worst_latency_us > policy.latency_objective_us:
        return effective_delay_us // 2
    if worst_latency_us * 8 > <uint64_t>policy.latency_objective_us * 7:
        return effective_delay_us
    return min(policy.max_queue_delay_us, effective_delay_us + max(1, policy.max_queue_delay_us // 32))


# --- for tests -------------------------------------------------------------------------------------------------------

def decide_for_tests(policy: dict, waiting: int, oldest_waited_us: int, handler_free: bool, more_input: bool,
                     closing: bool) -> tuple:
    """decide() on a policy given as a dict of Policy's fields: (size, reason or None, wait_us or None)."""
    cdef Policy numbers
    cdef uint32_t reason = 0, size
    cdef int64_t wait_us = 0
    policy_from_dict(&numbers, policy)
    size = decide(&numbers, waiting, oldest_waited_us, handler_free, more_input, closing, &reason, &wait_us)
    return size, REASON_NAMES[reason] if size else None, wait_us if wait_us >= 0 else None


def adapt_for_tests(policy: dict, effective_delay_us: int, worst_latency_us: int) -> int:
    """adapt() on a policy given as a dict of Policy's fields."""
    cdef Policy numbers
    policy_from_dict(&numbers, policy)
    return adapt(&numbers, effective_delay_us, worst_latency_us)


REASON_NAMES = ("full", "delay", "idle", "deadline", "closing")
POLICY_NAMES = ("idle", "fixed", "adaptive")


cdef int policy_from_dict(Policy *policy, fields) except -1:
    """Stores a batchbridge.policy.BatchPolicy's fields, given as a dict; the C side's 0 stands for its None."""
    cdef uint32_t index
    preferred = sorted(fields["preferred_batch_size"])
    if len(preferred) > 8:
        raise ValueError(f"{len(preferred)} preferred batch sizes are more than 8")
    for index in range(len(preferred)):
        policy.preferred[index] = preferred[index]
    policy.preferred_count = len(preferred)
    policy.kind = POLICY_NAMES.index(fields["policy"])
    policy.max_batch_size = fields["max_batch_size"]
    policy.max_queue_delay_us = fields["max_queue_delay_us"]
    policy.max_queue_size = fields["max_queue_size"]
    policy.queue_timeout_us = fields["queue_timeout_us"] or 0
    policy.timeout_us = fields["timeout_us"] or 0
    policy.concurrency = fields["concurrency"]
    policy.latency_objective_us = fields["latency_objective_us"] or 0
    policy.response_batch_size = fields["response_batch_size"] or 0
    policy.effective_delay_us = fields.get("effective_delay_us", policy.max_queue_delay_us)
    return 0
