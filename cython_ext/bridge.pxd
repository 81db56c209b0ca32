# The bridge: batches of requests go up to handlers, batches of responses come back, through shared memory.
#
# Two kinds of shared memory, the same whether a handler is a thread of this process or another process:
#
#   slabs   Requests that wait for one route: descriptors (Item) and payload (heads, bodies), side by side. The engine
#           writes them; handlers only read. A batch is a range of one slab's items.
#   lane    One for each handler worker: a ring of dispatches (engine to worker), a ring of completions (worker to
#           engine), and the arena that its responses are written to, which is registered with the kernel as fixed
#           buffers.
#
# Everything refers to shared memory by offset. Each field has one writer, named beside it; no lock is taken anywhere.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.parse cimport Slice


cdef enum:
    ITEM_PARAMETERS_MAX = 8
    NO_DEFERRED = 0xFFFFFFFF
    DISPATCH_RING_ENTRIES = 64          # batches under way to or in one worker
    COMPLETION_RING_ENTRIES = 4096      # responses on their way back: no fewer than the items under way
    RESPONSE_BLOCK_SIZE_BYTES = 65536   # unit of allocation in a lane's arena
    RESPONSE_HEAD_ROOM_BYTES = 512      # kept free before a response, where the engine writes its own header lines
    HEAP_ARENAS_MAX = 4                 # responses on the heap, at most so many times the arena's size
    BATCH_SIZE_BUCKETS = 11             # 1, 2, 3-4, 5-8, ... 513-1024


# Why a batch left (Dispatch.reason, Batch.reason).
cpdef enum Reason:
    REASON_FULL = 0
    REASON_DELAY
    REASON_IDLE
    REASON_DEADLINE
    REASON_CLOSING
    REASON_COUNT


cpdef enum PolicyKind:
    POLICY_IDLE = 0
    POLICY_FIXED
    POLICY_ADAPTIVE


# Why nobody waits for an item's answer any more.
cdef enum Cancelled:
    CANCELLED_NOT = 0
    CANCELLED_GONE                  # the client is gone
    CANCELLED_EXPIRED               # it was answered without the handler: a time-out


# A request that waits for a handler. Written by the engine before the item is dispatched, except where said.
cdef struct Item:
    uint32_t deferred               # the engine's record of it; NO_DEFERRED once nobody waits for the answer
    uint32_t cancelled              # engine, at any time: Cancelled
    uint8_t method
    uint8_t version_minor
    uint8_t parameter_count
    uint8_t family                  # AF_INET, AF_INET6, or 0: unknown
    uint16_t port                   # the client's, in host order
    uint16_t reserved
    uint8_t address[16]             # the client's, in network order
    uint32_t head_offset            # of the head, from the slab's first byte; the slices count from there
    uint32_t head_length
    Slice method_name
    Slice target
    Slice path
    Slice query
    Slice headers
    Slice authority
    Slice parameters[8]
    uint32_t body_offset            # from the slab's first byte
    uint32_t body_length
    uint64_t arrived_us
    uint64_t deadline_us            # 0: none


cdef struct Slab:
    uint32_t index                  # never changes
    uint32_t route                  # the engine's number of it
    uint32_t capacity               # items that it takes before the next one is opened
    uint32_t filled                 # items appended
    uint32_t dispatched             # items given to workers or dropped: those before it are no longer waiting
    uint32_t done                   # items nobody will ask for again
    uint32_t payload_used           # bytes, from the slab's first byte
    uint32_t array_offset           # where fixed-size bodies lie side by side; 0: not such a route
    uint32_t array_stride           # bytes from one to the next
    uint32_t batches_dispatched     # engine
    uint32_t batches_released       # workers (atomic): batches of which no view is left
    uint32_t next                   # engine: the next slab in the route's queue, or in the list of free ones
    uint32_t holds                  # engine: records that still look at its heads
    uint32_t queued                 # engine: it is in its route's queue


cdef struct Dispatch:               # one batch: items [first, first + count) of a slab
    uint32_t slab
    uint32_t first
    uint32_t count
    uint32_t route
    uint32_t reason
    uint32_t response_batch_size    # give responses back in groups of so many; 0: all at the batch's end
    uint64_t dispatched_us


cpdef enum CompletionFlag:
    COMPLETION_PUBLIC = 1           # may be cached although the request had credentials
    COMPLETION_BATCH_END = 2        # not a response: the worker is done with the batch, and free
    COMPLETION_HEAP = 4             # the response is on the heap: the arena had no room (threads of this process only)


cdef struct Completion:             # one response
    uint32_t slab
    uint32_t item
    uint16_t status
    uint16_t flags
    uint32_t offset                 # in the lane's arena: header text, then body, then tags; 0: a status alone
    uint32_t headers_length         # bytes of header lines, with their empty last line
    uint32_t body_length
    uint32_t ttl_s                  # 0: not cached
    uint32_t tags_length            # bytes of tags, each ended by NUL
    char *heap                      # COMPLETION_HEAP: the same text


cdef struct LaneShared:
    # Positions only grow; an entry's place is its position modulo the ring's size.
    uint32_t dispatch_tail          # engine
    uint32_t completion_head        # engine
    uint32_t engine_sleeps          # engine: 1 while it waits for its ring; the worker then rings its bell
    uint32_t closing                # engine: no more batches will come
    uint64_t clock_offset_us        # engine: of its clock, in tests
    uint8_t line_1[40]
    uint32_t dispatch_head          # worker
    uint32_t completion_tail        # worker
    uint32_t worker_sleeps          # worker: 1 while it waits; the engine then rings its bell
    uint32_t reserved
    uint64_t gil_entries            # worker
    uint64_t batches                # worker
    uint64_t items                  # worker
    uint64_t heap_laid_bytes        # worker: of responses that the arena had no room for
    uint64_t heap_given_back_bytes  # engine
    uint64_t items_unanswered       # worker: items that their handler left without an answer
    uint64_t answers_refused        # worker: answers of native handlers that could not be taken
    uint8_t line_2[56]
    Dispatch dispatches[64]
    Completion completions[4096]


# A block of a lane's arena: responses are laid into it one after the other, and it is free again when as many have been
# given back as were laid in. Two counters with one writer each instead of one that both change.
cdef struct ResponseBlock:
    uint32_t laid                   # worker
    uint32_t given_back             # engine
    uint32_t blocks                 # worker: length of the run that begins here, where a response needs several
    uint32_t reserved


cdef struct Lane:                   # one side's view of a worker's lane
    LaneShared *shared
    ResponseBlock *blocks
    char *arena
    uint32_t block_count
    uint32_t current_block          # worker: the block being filled
    uint32_t current_used           # worker: bytes of it in use
    uint32_t next_block             # worker: where the search for a free one begins
    uint32_t completion_tail        # worker: entries written, not yet all shown to the engine
    uint32_t completion_head        # engine
    uint32_t outstanding            # engine: batches given and not ended
    uint32_t items_outstanding      # engine
    int worker_bell                 # eventfd that wakes the worker
    int engine_bell                 # eventfd that wakes the engine
    uint64_t shared_size_bytes


cdef struct SlabPool:
    char *base
    uint32_t slab_count
    uint32_t slab_size_bytes
    uint32_t items_max
    uint32_t first_free             # engine: list by Slab.next; NO_SLAB at its end
    uint32_t in_use                 # engine


cdef enum:
    NO_SLAB = 0xFFFFFFFF


# Sizes a lane's shared memory; `arena_offset` (out) is page-aligned.
cdef uint64_t lane_size_bytes(uint32_t block_count, uint64_t *blocks_offset, uint64_t *arena_offset) noexcept nogil

# Lays a lane's view over mapped memory. Both sides call it on the same bytes; the memory was zero at first.
cdef void lane_view(Lane *lane, char *memory, uint32_t block_count, int worker_bell, int engine_bell) noexcept nogil

# --- the engine's side -----------------------------------------------------------------------------------------------

cdef void slabs_view(SlabPool *pool, char *memory, uint32_t slab_count, uint32_t slab_size_bytes,
                     uint32_t items_max) noexcept nogil
cdef Slab *slab_at(const SlabPool *pool, uint32_t index) noexcept nogil
cdef Item *slab_items(Slab *slab) noexcept nogil

# Takes a free slab for a route's items; NULL when all are in use. `stride` is the size of one fixed-size body, 0 where
# bodies vary.
cdef Slab *slab_take(SlabPool *pool, uint32_t route, uint32_t capacity, uint32_t stride) noexcept nogil

# Bytes for payload at the slab's end; its offset, or 0 when they do not fit.
cdef uint32_t slab_payload(SlabPool *pool, Slab *slab, uint32_t size_bytes, uint32_t alignment) noexcept nogil

# Whether the engine is done with a slab's bytes: no item waits or is under way, no record looks at its heads.
cdef bint slab_idle(const Slab *slab) noexcept nogil
# Whether no view of its batches is left. (slab_take passes over free slabs that are still viewed.)
cdef bint slab_unviewed(const Slab *slab) noexcept nogil
cdef void slab_give_back(SlabPool *pool, Slab *slab) noexcept nogil

# Shows a batch to a worker. 1: the worker sleeps, ring its bell; 0: it is awake. -1: the ring is full.
cdef int lane_dispatch(Lane *lane, const Dispatch *dispatch) noexcept nogil

# The next completion that the worker has shown, or NULL. It stays valid until lane_completed is called.
cdef Completion *lane_next_completion(Lane *lane) noexcept nogil
cdef void lane_completed(Lane *lane) noexcept nogil

# The bytes of a completion's response; NULL where it is a status alone.
cdef const char *completion_text(const Lane *lane, const Completion *completion) noexcept nogil
# They are no longer needed: they were copied, or have left.
cdef void completion_release(Lane *lane, const Completion *completion) noexcept nogil

# --- the worker's side -----------------------------------------------------------------------------------------------

# The next batch, or NULL.
cdef Dispatch *lane_next_dispatch(Lane *lane) noexcept nogil
cdef void lane_dispatch_taken(Lane *lane) noexcept nogil

# Room for a response of `size_bytes` behind RESPONSE_HEAD_ROOM_BYTES of free bytes; sets `offset`. NULL when the arena
# is full, since slow clients hold what lies in it, or can never hold so much.
cdef char *lane_response(Lane *lane, uint32_t size_bytes, uint32_t *offset) noexcept nogil
# The same on the heap, which must be given to a completion with COMPLETION_HEAP. NULL: HEAP_ARENAS_MAX arenas' worth of
# responses is there already, or there is no memory.
cdef char *lane_heap_response(Lane *lane, uint32_t size_bytes) noexcept nogil

# Writes a completion; NULL when the ring is full. `lane_show` makes what was written visible to the engine: 1 when the
# engine sleeps, so that its bell must be rung.
cdef Completion *lane_completion(Lane *lane) noexcept nogil
cdef int lane_show(Lane *lane) noexcept nogil

# --- pure decisions --------------------------------------------------------------------------------------------------

# A route's batching policy, in plain numbers: single words, which Python may store to while the engine runs.
cdef struct Policy:
    uint32_t kind                   # PolicyKind
    uint32_t max_batch_size
    uint32_t max_queue_delay_us
    uint32_t max_queue_size
    uint32_t queue_timeout_us       # 0: none
    uint32_t timeout_us             # 0: none
    uint32_t concurrency
    uint32_t latency_objective_us   # 0: none
    uint32_t response_batch_size    # 0: a whole batch
    uint32_t effective_delay_us     # engine: what "adaptive" has come to
    uint32_t preferred_count
    uint32_t preferred[8]           # ascending


# How many of `waiting` items leave now and why (`reason`), as batchbridge.policy.decide. 0: none; `wait_us` then tells
# when to look again, -1: when something happens.
cdef uint32_t decide(const Policy *policy, uint32_t waiting, uint64_t oldest_waited_us, bint handler_free,
                     bint more_input, bint closing, uint32_t *reason, int64_t *wait_us) noexcept nogil

# "adaptive": the delay after a batch whose slowest item took `worst_latency_us`, as batchbridge.policy.adapt.
cdef uint32_t adapt(const Policy *policy, uint32_t effective_delay_us, uint64_t worst_latency_us) noexcept nogil


# Empties a slab in place, for more items of the same route. Only when it is idle and unviewed.
cdef void slab_reset(SlabPool *pool, Slab *slab) noexcept nogil

# Stores the fields of a batchbridge.policy.BatchPolicy.
cdef int policy_from_dict(Policy *policy, fields) except -1
