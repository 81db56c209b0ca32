# The data of the engine, in the state machine's three kinds: global (Engine), of a connection (Connection), of a
# request (Request, and Deferred for one that is in user mode). Only structures; functions are in the modules that own
# them.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.bridge cimport Completion, Lane, Policy, Slab, SlabPool
from batchbridge.cython_ext.cache cimport Cache, CacheObject
from batchbridge.cython_ext.chunked cimport ChunkDecoder
from batchbridge.cython_ext.fragments cimport Fragment, Reading
from batchbridge.cython_ext.machine cimport Machine
from batchbridge.cython_ext.multipart cimport Multipart
from batchbridge.cython_ext.parse cimport Head, HeadLimits, Slice
from batchbridge.cython_ext.readers cimport Job
from batchbridge.cython_ext.tier cimport Tier


cdef enum:
    LANES_MAX = 64
    ROUTES_MAX = 264                # an application's 256, and what stands behind all of them
    STATUS_MAX = 600
    COALESCE_BUCKETS = 1024
    NO_ROUTE = -1


# --- of a request ----------------------------------------------------------------------------------------------------

# What is on its way out and must stay as it is until it has left (law 4): a handler's response, or a cached object.
# Counted, since several requests (coalesced) and the kernel (zero copy) share it.
cdef enum AnswerKind:
    ANSWER_LANE = 0
    ANSWER_OBJECT

cdef struct Answer:
    Answer *next                    # in the list of free ones
    uint32_t references
    uint32_t index                  # of this record, for completions of the kernel's to name it
    uint32_t connection_index       # driver's: whose bytes a zero-copy send of it are
    uint32_t connection_generation
    uint8_t kind
    Lane *lane
    CacheObject *object
    Completion completion           # ANSWER_LANE


# A request while the machine runs over it: on the engine thread's stack, gone when the machine rests.
cdef struct Request:
    const char *data                # the head's first byte; valid until the machine rests
    uint32_t available              # bytes there are from `data` on
    uint32_t consumed               # out: bytes of head and body that are done with
    uint32_t body_length
    const char *body
    Head *head
    Head head_storage
    # The response that was derived.
    int status                      # 0: not yet derived
    CacheObject *object
    uint8_t owns_object             # one of its references is the request's
    Answer *answer
    Deferred *deferred              # the record of a request that comes back from user mode
    int route                       # number of the matched route, or NO_ROUTE
    uint32_t parameter_count
    Slice parameters[8]
    uint32_t allowed_methods        # of a 405's Allow, and of OPTIONS: bits by Method
    const char *extra               # header lines that the engine adds: Allow, Location, Retry-After
    uint32_t extra_length
    int outcome                     # Outcome


# A request in user mode.
cdef struct Deferred:
    Deferred *next                  # of the connection, in the order the answers are owed; or in the list of free ones
    Deferred *follower              # the next of those that share its item (coalesced)
    Deferred *owner                 # of the item, where this is a follower
    Deferred *bucket_next
    Connection *connection          # NULL: the record is free
    Slab *slab                      # that holds its head
    Slab *item_slab                 # that holds its item (a follower has none)
    Answer *answer
    uint64_t hash                   # of what makes it identical to others; 0: not coalesced
    uint64_t arrived_us
    uint64_t deadline_us            # 0: none
    uint32_t index
    uint32_t item
    uint32_t head_length
    uint32_t head_offset            # in `slab`; the slices count from there
    uint32_t key_length             # coalesced: bytes of the key, at key_offset in `slab`
    uint32_t key_offset
    Slice request_line
    Slice referer
    Slice user_agent
    uint32_t generation             # of the cache when it arrived: after a purge its answer is neither kept nor shared
    int status                      # of an answer that the engine gives itself (a time-out); 0: none
    int route
    uint8_t method
    uint8_t version_minor
    uint8_t keep_alive
    uint8_t ready
    uint8_t followed                # this is a follower: it owns no item


# --- of a connection -------------------------------------------------------------------------------------------------

# Bytes that wait: an unfinished request, or requests that wait for their turn. There only while there are such bytes.
cdef struct Input:
    uint32_t length
    uint32_t capacity
    uint32_t scanned                # what parse_head remembers
    uint8_t head_done               # `head` is valid, the body is not whole yet
    uint8_t continue_sent
    uint8_t body_done               # chunked: the body is whole; what is behind it is not to be decoded again
    int refused_status              # what the bytes were found to deserve, while answers before it are owed; 0: nothing
    uint32_t body_read              # chunked: bytes of coding read behind the head
    uint32_t body_length            # chunked: bytes of payload decoded, in place, behind the head
    uint64_t began_us
    Head head
    ChunkDecoder chunks
    char data[1]


# A response that did not leave at once: it is large, or the client reads slowly.
cdef struct Output:
    char *prefix                    # heap: bytes that go first (header lines, the rest of a short send)
    const char *text                # under way: the prefix, and later what comes before a part's bytes
    uint32_t text_length
    uint32_t text_sent
    uint8_t begun                   # a piece of it is under way
    uint8_t zero_copy               # `body` lies in a lane's arena
    uint8_t heads_fragment          # the text may be written into the first fragment's lead
    uint8_t is_pinned               # the fragment at `place`: it is being sent
    uint8_t awaits_slot             # of its window over a file
    Answer *answer                  # what `body` belongs to, or the object that is sent
    const char *body
    uint64_t body_left
    uint64_t object_position        # in the object's payload, of the next byte
    uint64_t object_left
    uint32_t place                  # of the fragment under way
    Connection *connection
    Fill *fill                      # reads the fragment that it waits for; NULL: it waits for none
    Output *next_waiting
    Output *previous_waiting
    Multipart *parts                # NULL: the body is in one piece
    uint32_t parts_begun


# The reading of a fragment that something must be waited for. It belongs to nobody's connection, and goes on when those
# that wait for it are gone.
cdef struct Fill:
    Fill *next                      # in the list of free ones, or a driver's
    Output *waiting                 # those to go on when it is read
    CacheObject *object             # one of its references is the fill's
    Fragment *fragment              # pinned
    Reading reading
    uint32_t done                   # bytes of it
    uint32_t index                  # of this record, for completions to name it
    int file
    int64_t result                  # driver's


# A path that a disk must be waited for before what it names can be opened. It belongs to nobody's connection either.
cdef struct Opening:
    Opening *next                   # of those with the same hash, more or less
    Opening *next_asked             # a driver's
    const Engine *engine
    uint64_t hash
    uint32_t waiting                # index + 1 of the first connection that waits for it; 0: none
    uint32_t length
    Job job                         # a driver's
    char path[1]


cpdef enum ConnectionState:
    CONNECTION_FREE = 0
    CONNECTION_OPEN
    CONNECTION_LINGERS              # all was answered, FIN sent; waits for the client's FIN, so that no RST kills data
    CONNECTION_CLOSES               # torn down; waits for the kernel's last completions


cdef enum ConnectionFlag:
    IS_DIRTY = 1                    # in the list of connections with bytes to flush
    IS_HELD = 2                     # in the list of connections whose input is looked at again
    IS_WRITING = 4                  # an Output is under way: nothing more is answered before it is through
    IS_EOF = 8                      # the client has sent FIN
    IS_LAST = 16                    # what is posted or under way is the last response
    IS_PAUSED = 32                  # the driver receives nothing more until resumed
    IS_RECEIVING = 64               # driver's: a receive is armed
    IS_REFUSED = 128                # the rest of its bytes are read and dropped
    IS_FINAL = 256                  # its last request is in user mode: no other one is looked at
    IS_CLOSING = 512                # driver's: its descriptor is being closed behind its last response
    IS_FINISHING = 1024             # driver's: FIN is about to be sent, so its descriptor must still be its own
    IS_LOOKING = 2048               # its first request waits for a disk: its file is to be opened, or compared
    IS_WARM = 4096                  # its first request has waited so; should it have to again, the engine waits


cdef struct Connection:
    uint32_t index
    uint32_t generation
    int fd                          # or the slot of a direct descriptor
    uint8_t state
    uint8_t family                  # AF_INET, AF_INET6, or 0: unknown
    uint16_t port
    uint8_t address[16]
    uint16_t flags
    uint16_t operations             # of the driver, whose completion is still to come
    uint16_t owed                   # requests in user mode
    uint16_t published              # images of its requests that were published
    uint32_t requests
    uint32_t row                    # of the kernel side, + 1; 0: none
    uint32_t promised               # bytes of all responses that were taken
    char *posted                    # bytes in the scratch that leave at this loop's end
    char *leaving                   # bytes in the other scratch, which left at the last loop's end
    uint32_t posted_length
    uint32_t leaving_length
    Deferred *first
    Deferred *last
    Input *input
    Output *output
    uint64_t deadline_us            # 0: none
    Connection *next_dirty
    Connection *next_held           # also: the next free one


# --- of the engine ---------------------------------------------------------------------------------------------------

cpdef enum Outcome:
    OUTCOME_HIT = 0                 # answered from the cache, in user mode
    OUTCOME_FILE                    # read from a file
    OUTCOME_BATCH                   # answered by a handler
    OUTCOME_REMOTE                  # answered by an upstream
    OUTCOME_LOCAL                   # answered by the engine itself: OPTIONS, redirects
    OUTCOME_ERROR_4XX
    OUTCOME_ERROR_5XX
    OUTCOME_CLIENT_GONE
    OUTCOME_COUNT


cdef struct Limits:                 # batchbridge.config has the defaults and says what each means
    HeadLimits head
    uint32_t connections_max
    uint32_t body_size_bytes_max
    uint32_t pipelined_requests_max
    uint32_t ranges_max
    uint32_t batch_size_max
    uint32_t receive_buffers
    uint32_t receive_buffer_size_bytes
    uint32_t response_size_bytes_max
    uint32_t cached_file_size_bytes_max
    uint32_t zero_copy_size_bytes_min
    uint32_t copied_size_bytes_max  # a longer response is no longer copied into the scratch
    uint32_t access_log_buffer_size_bytes
    uint64_t input_size_bytes_max   # of all Inputs together
    uint64_t idle_timeout_us
    uint64_t header_timeout_us
    uint64_t body_timeout_us
    uint64_t send_timeout_us
    uint64_t linger_timeout_us
    uint64_t file_revalidate_us


cdef struct Route:
    Policy policy
    uint32_t methods                # bits by Method; 0: all
    uint32_t segment_count
    uint8_t is_fallback             # matches what nothing else does: WSGI, ASGI, an upstream; never by its template
    uint8_t outcome                 # Outcome of its answers
    uint8_t coalesce
    uint8_t is_catch_all            # the last segment takes the rest of the path
    char *segments                  # NUL-ended literals; an empty one stands for a parameter
    uint32_t literal_length         # of the whole path, where the template has no parameter; else 0
    char *literal
    uint32_t array_size_bytes       # size of a body that is an array; 0: bodies vary
    uint32_t vary_count
    Slice vary[8]                   # in `vary_text`: names, in lower case
    char *vary_text
    # The queue: slabs from the oldest with waiting items to the open one.
    Slab *queue_first
    Slab *queue_last
    uint32_t waiting
    uint32_t waiting_dead           # of them, those that nobody waits for any more
    uint32_t batches_in_flight
    uint64_t expiry_us              # when one that waits can be due (queue_timeout_us)
    uint64_t worst_latency_us       # of the items answered since a batch last ended
    # Counters, written by the engine alone.
    uint64_t batches
    uint64_t items
    uint64_t reasons[5]
    uint64_t batch_sizes[11]
    uint64_t queue_full


cdef struct Counters:
    uint64_t requests
    uint64_t outcomes[8]
    uint64_t accepted
    uint64_t closed
    uint64_t refused
    uint64_t timed_out
    uint64_t bytes_received
    uint64_t bytes_sent
    uint64_t loops
    uint64_t submits
    uint64_t short_sends
    uint64_t pieces                 # sends of Outputs: by themselves, and not from the scratch
    uint64_t zero_copy_sends        # of them
    uint64_t zero_copy_pending      # sends whose notification has not come yet
    uint64_t items_deferred
    uint64_t items_coalesced
    uint64_t items_dropped_expired
    uint64_t items_dropped_gone
    uint64_t items_late             # answers for which nobody waited any more
    uint64_t body_copies
    uint64_t batches_inline
    uint64_t log_lines
    uint64_t log_lines_lost
    uint64_t table_faults           # events for which the table had no transition
    uint64_t openings               # paths that a disk was waited for


# What an engine asks of its driver (io_uring, epoll, or memory in tests): all that touches a socket or a descriptor.
# None of these functions calls connection_closed, since the record may be in a list that is being walked: that comes
# from the driver's loop.
cdef struct Driver:
    # Sends the scratch's bytes without waiting. Only a send that falls short is reported (send_fell_short).
    void (*send)(Engine *, Connection *, const char *, uint32_t) noexcept nogil
    # The same for a connection's last bytes, then closes. Only where the client is not expected to send more: what it
    # sends to a closed socket makes a reset, which can cost it bytes that it has not read yet.
    void (*send_last)(Engine *, Connection *, const char *, uint32_t) noexcept nogil
    # The same with FIN behind the bytes (there may be none), while the connection still receives.
    void (*finish)(Engine *, Connection *, const char *, uint32_t) noexcept nogil
    # Sends as much as the socket takes, and reports how much (sent). more: bytes follow. answer: not NULL: without a
    # copy, if it can, keeping a reference to it until the kernel has let go of the bytes; and where they are an
    # object's fragment (`place`), a pin on that, which answer_let_go takes away.
    void (*send_reported)(Engine *, Connection *, const char *, uint64_t, bint more, Answer *answer,
                          uint32_t place) noexcept nogil
    # Reads what is left of a fragment, or a part, without letting the engine wait; reports how much (fragment_read),
    # and not before it has returned.
    void (*read_fragment)(Engine *, Fill *) noexcept nogil
    # Lets an opening be carried out (opening_carry_out) where the engine need not wait for it, and tells when it was
    # (opening_over), not before it has returned.
    void (*look_up)(Engine *, Opening *) noexcept nogil
    void (*pause)(Engine *, Connection *) noexcept nogil        # receives no more
    void (*resume)(Engine *, Connection *) noexcept nogil
    void (*tear_down)(Engine *, Connection *) noexcept nogil  # aborts all, closes; then connection_closed
    void (*ring_bell)(Engine *, int bell) noexcept nogil        # wakes a worker
    void (*write_log)(Engine *, const char *, uint32_t) noexcept nogil  # reports log_written


# Writes access log lines; two buffers, one being filled while the other is being written.
cdef struct AccessLog:
    int fd                          # -1: off
    uint8_t writing
    uint32_t used
    uint32_t size_bytes
    uint32_t active
    char *buffers[2]
    uint64_t oldest_us
    uint64_t lines                  # in the active buffer
    uint64_t lines_leaving          # in the other one
    char time_text[32]              # [24/Nov/2026:23:11:02 +0000]
    uint32_t time_length


cdef struct Engine:
    Machine machine
    Driver driver
    void *driver_data
    Limits limits
    Counters counters
    Cache *cache
    Tier *tier                      # the kernel side; NULL: none
    SlabPool slabs
    Lane *lanes[64]
    uint32_t lane_count
    uint32_t lane_batches_max       # batches a worker is given before it has ended the first
    uint32_t lane_turn
    uint8_t is_inline               # handlers run on the engine's own thread
    uint8_t draining
    uint8_t stopping
    Route routes[264]
    uint32_t route_count
    int fallback_route              # a user-mode server for what has no route, or NO_ROUTE
    int remote_route
    int listing_route               # answers for directories without an index file, or NO_ROUTE
    uint32_t generation             # of the cache: each purge begins a new one (law 3)
    uint8_t keeps_answers           # a handler's answer was put into the cache: look there before asking again
    uint8_t keeps_coded             # a file in a coding was
    uint8_t codings[3]              # of files' siblings, by preference (codings.Coding)
    uint8_t coding_count            # 0: no sibling is looked for
    uint64_t seed                   # of the hashes of what clients send
    void (*run_inline)(void *) noexcept nogil   # is_inline: lets the handler's worker run, here and now
    void *inline_worker
    uint32_t has_command            # Python stored one: run_command carries it out on the engine's thread
    void (*run_command)(void *) noexcept nogil
    void *command_owner
    uint64_t clock_offset_us        # tests: how far the engine's clock is ahead of the machine's
    uint64_t now_us                 # once a loop
    int64_t wall_s
    uint64_t next_deadline_us       # the earliest of all deadlines; 0: none
    uint64_t batch_deadline_us      # the earliest moment at which a queue must be looked at again; 0: none
    bint more_input                 # bytes wait that were not looked at yet
    # Connections.
    Connection *connections
    uint32_t connections_made
    Connection *free_connections
    uint32_t open_connections
    Connection *dirty
    Connection *held
    uint64_t input_size_bytes
    # Records.
    Deferred **deferred_blocks
    uint32_t deferred_made
    Deferred *free_deferred
    uint32_t deferred_in_use
    Answer **answer_blocks
    uint32_t answers_made
    Answer *free_answers
    Fill **fills                    # as many as connections_max
    uint32_t fills_made
    uint32_t fills_under_way
    Fill *free_fills
    void *openings                  # openings.pyx: those under way, who waits, and the threads; NULL: none yet
    uint32_t openings_under_way
    Deferred *coalesced[1024]
    # The scratch: responses that leave at the loop's end. Two, since a send that fell short is known one loop later.
    char *scratch[2]
    uint32_t scratch_active
    uint32_t scratch_used
    uint32_t scratch_size_bytes
    # Text that changes with the clock or never.
    char date_line[40]              # "Date: ...\r\n"
    uint32_t date_length
    char server_line[128]           # "Server: ...\r\n", or empty
    uint32_t server_length
    char status_lines[600][64]
    uint8_t status_lengths[600]
    AccessLog log
    char lines[9216]                # header lines and text of the response being derived
    int root                        # descriptor of the document root; -1: none
    void *files                     # files.pyx: types by extension, index files
    int bell                        # eventfd: workers and Python wake the engine by it
