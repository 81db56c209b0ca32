# What the kernel side (kernel_side/shared.h) and an engine share, and what the engine knows beside it. Only structures.
from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.cache cimport CacheObject
from batchbridge.cython_ext.cookies cimport CookieTable
from batchbridge.cython_ext.parse cimport Head
from batchbridge.cython_ext.sender cimport Sender


cdef extern from "shared.h" nogil:
    enum:
        BB_ROWS_MAX
        BB_IMAGES_MAX
        BB_IMAGE_SIZE_BYTES_MAX
        BB_IMAGE_SIZE_BYTES_MIN
        BB_IMAGE_WORDS_MAX
        BB_SMALL_IMAGES
        BB_SMALL_IMAGE_SIZE_BYTES
        BB_MEDIUM_IMAGES
        BB_MEDIUM_IMAGE_SIZE_BYTES
        BB_LARGE_IMAGES
        BB_IMAGE_SLOTS
        BB_IMAGE_PROBES
        BB_OPENED
        BB_BYTES
        BB_END
        BB_CLOSED
        BB_SPILLED
        BB_HIT
        BB_HIT_ANSWERED
        BB_DOORBELL
        BB_AWAKE
        BB_SLEEPS
        BB_RUNG
        BB_LOOKS_SOON
        BB_SENDS_MAX
        BB_SEND_COMPLETIONS_MAX
        BB_ANSWERED_UNIT_SHIFT
    ctypedef struct bb_row:
        uint64_t cookie
        uint32_t up, spill_at, spill, closed, out_kernel, settled, answered
        uint32_t spill_seen, pause, done, out_user, closing
        int32_t fd
    ctypedef struct bb_record:
        uint32_t row, type, up, length
        uint64_t cookie
    ctypedef struct bb_peer:
        uint8_t address[16]
        uint32_t family, port
    ctypedef struct bb_hit:
        uint32_t image, generation
    ctypedef struct bb_image:
        uint32_t generation, length, at
        uint64_t hash
    ctypedef struct bb_image_space:
        uint64_t words[1]
    ctypedef struct bb_rendering:
        uint64_t address, expires_ns
        uint32_t length, generation, image_generation, buffer
        uint64_t hits
    ctypedef struct bb_send_entry:
        uint8_t opcode, flags
        uint64_t user_data
    ctypedef struct bb_send_entries:
        bb_send_entry entries[1]
    ctypedef struct bb_send_ring:
        uint32_t words[16]
    ctypedef struct bb_free_rows:
        uint32_t head, tail
        uint32_t rows[1]
    ctypedef struct bb_words:
        uint32_t sleeps, image_count, answering, tells_answers, sends_head_at, sends_tail_at, sends_flags_at
        uint32_t polled_rows[1]
        uint32_t leaves_connections
        uint32_t spills, lost_closes, opened, untracked
        uint64_t records, patient_records, packets, hits, stale, overlaps, nested
        uint64_t answered, answered_request_bytes, answered_bytes, owed, unsent, outdated, crowded, doorbells, wakes
        uint64_t left
    uint64_t bb_fold(uint64_t, uint64_t) noexcept
    uint64_t bb_fold_lanes(uint64_t, uint64_t, uint64_t, uint64_t) noexcept
    uint32_t bb_send_row(uint64_t) noexcept
    uint32_t bb_send_image(uint64_t) noexcept
    uint32_t bb_send_buffer(uint64_t) noexcept
    bint bb_send_is_of(uint64_t, uint64_t) noexcept


# What user mode knows of a row.
cdef struct RowState:
    uint8_t is_open                 # told as opened, not yet as closed
    uint8_t was_left                # its connection was accepted and has gone: what still comes is dropped
    uint8_t is_broken               # what had to be kept could not be, in order
    uint8_t has_early               # bytes are kept, or a FIN
    uint8_t has_early_end
    uint8_t is_draining             # in the list of those whose socket is to be read
    uint8_t busy_turns              # times that it was among `busy`, up to 255
    uint32_t connection             # its index + 1; 0: not accepted yet, or left
    uint32_t received               # bytes that came up; a FIN counts one
    char *early                     # heap: what came before the connection was known, or before bytes that go first
    uint32_t early_length
    uint32_t early_up               # of the first of them, as the record said
    bb_hit early_hit                # kept is an image's bytes, and nothing else; generation 0: it is not
    uint32_t due                    # bytes before it that did not come by the ring, when that was read to due_position,
    uint64_t due_position           # lie in the socket; 0: nobody has asked
    uint64_t missing_since_us       # when bytes were first missed, or the last of them came
    uint32_t settled                # the value of the row's out_kernel, up to which all has left as far as known here
    uint32_t answered               # the value of the row's `answered` that its connection's deadline was set for
    bb_peer peer


# What user mode knows of an image.
cdef struct Published:
    uint32_t slot                   # of the index, where it can be found
    uint32_t generation             # the last that it had
    uint8_t was_visited
    uint64_t reusable_at            # withdrawn: when the ring was read up to here, nothing speaks of it any more
    Head head


# A response of an image as the kernel side sends it: one of two, since entries may still point to the one before.
cdef struct Rendering:
    char *bytes                     # heap
    uint32_t size_bytes
    uint32_t length
    uint64_t left_at                # where the ring of entries ended when the kernel side had left it, or LEFT_UNKNOWN


# What user mode knows of an image's answer.
cdef struct Answered:
    Rendering renderings[2]
    uint32_t current                # which of them the kernel side is told of, or was last
    uint32_t generation             # the last that it had
    uint32_t body_length
    uint32_t previous, next         # images of the same object, + 1; 0: none. Its `published` is the first
    uint64_t hits                   # of the kernel side, that the cache has been told of


# Places for images of one size.
cdef struct Places:
    uint32_t first                  # the number of the first place
    uint32_t count
    uint32_t size_bytes             # of the longest image that fits
    uint32_t made                   # have been taken once; all others are behind them
    uint32_t hand                   # where room is made next, counted from the first
    uint32_t withdrawn_first        # of their part of Tier.withdrawn, round: the one that can be used again first
    uint32_t withdrawn_count


cdef enum:
    SIZES = 3
    SEEN_PLACES = 16384             # as many as images: what is seen once waits here for the second time
    POLLED_ROWS_MAX = 4             # BB_POLLED_ROWS_MAX, which could be no array's length here


cdef struct Tier:
    # Mapped from the kernel side.
    bb_row *rows
    bb_free_rows *free_rows
    bb_words *words
    bb_image *images
    bb_image_space *image_space
    uint32_t *image_slots
    uint64_t *consumer
    const uint64_t *producer
    char *records
    uint64_t record_mask
    int records_fd                  # becomes readable when the kernel side wakes
    uint32_t row_count
    # User mode's own.
    RowState *states
    CookieTable by_cookie
    uint64_t *cookies               # by connection: asked for, and 0 until it is known
    uint32_t *waiting               # connections whose row is not known yet
    uint32_t waiting_count
    uint32_t *draining              # rows
    uint32_t draining_count
    uint32_t busy[POLLED_ROWS_MAX]  # rows whose bytes came since the engine last slept
    uint32_t busy_count             # more than POLLED_ROWS_MAX: there are more
    uint32_t spills_seen
    uint32_t lost_closes_seen
    uint64_t consumed               # bytes of the ring
    # Whether connections are worth taking over (rows.pyx).
    uint32_t requests_min           # that they must bring on average; 0: they always are
    uint64_t weigh_us               # when that is judged again; and counts when it was judged last
    uint64_t weighed_requests
    uint64_t weighed_closed
    bint were_short                 # connections, when that was judged last
    # What is published.
    # By image: its answer, one of whose references is the image's; NULL: withdrawn. A purge goes through all of them.
    CacheObject **objects
    Published *published
    Places[SIZES] places            # the smallest first
    uint32_t *withdrawn             # numbers of images; a part for each size, at the size's own numbers
    uint64_t seen[SEEN_PLACES]      # hashes of requests that were answered from the cache once
    # What the kernel side answers by itself (answer.pyx).
    bint can_answer                 # it was loaded to do so
    uint64_t taken                  # records, but for patient ones
    uint64_t held_since_us          # 0, or since when a line waits for room in the access log
    bint is_held                    # and records behind it are not taken
    bb_rendering *answers
    Answered *answered
    Sender sender
    uint64_t renderings_size_bytes
    # Counters.
    uint64_t known                  # requests that were recognised, and answered without being parsed
    uint64_t drained_bytes
    uint64_t gaps
    uint64_t gaps_awaited           # of them, those whose bytes were not all in the socket yet
    uint64_t unsent_bytes           # of answers, that the kernel side could not send and user mode did
    uint64_t failed_sends
    uint64_t rendered


cdef inline uint64_t *image_words(const Tier *tier, uint32_t number) noexcept nogil:
    return &tier.image_space.words[tier.images[number].at]
