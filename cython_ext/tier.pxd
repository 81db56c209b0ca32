# What the kernel side (kernel_side/shared.h) and an engine share, and what the engine knows beside it. Only structures.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.cache cimport CacheObject
from batchbridge.cython_ext.parse cimport Head


cdef extern from "shared.h" nogil:
    enum:
        BB_ROWS_MAX
        BB_IMAGES_MAX
        BB_IMAGE_SIZE_BYTES_MAX
        BB_IMAGE_SIZE_BYTES_MIN
        BB_IMAGE_WORDS_MAX
        BB_IMAGE_SLOTS
        BB_IMAGE_PROBES
        BB_OPENED
        BB_BYTES
        BB_END
        BB_CLOSED
        BB_SPILLED
        BB_HIT
    ctypedef struct bb_row:
        uint64_t cookie
        uint32_t up, spill_at, spill, closed
        uint32_t spill_seen, pause
    ctypedef struct bb_record:
        uint32_t row, type, up, length
        uint64_t cookie
    ctypedef struct bb_peer:
        uint8_t address[16]
        uint32_t family, port
    ctypedef struct bb_hit:
        uint32_t image, generation
    ctypedef struct bb_image:
        uint32_t generation, length
        uint64_t hash
        uint64_t words[1]
    ctypedef struct bb_free_rows:
        uint32_t head, tail
        uint32_t rows[1]
    ctypedef struct bb_words:
        uint32_t sleeps, image_count, spills, lost_closes, opened, untracked
        uint64_t records, packets, hits, stale, overlaps, nested
    uint64_t bb_fold(uint64_t, uint64_t) noexcept
    uint64_t bb_fold_lanes(uint64_t, uint64_t, uint64_t, uint64_t) noexcept


# What user mode knows of a row.
cdef struct RowState:
    uint8_t is_open                 # told as opened, not yet as closed
    uint8_t was_left                # its connection was accepted and has gone: what still comes is dropped
    uint8_t is_broken               # what had to be kept could not be, in order
    uint8_t has_early               # bytes are kept, or a FIN
    uint8_t has_early_end
    uint8_t is_draining             # in the list of those whose socket is to be read
    uint32_t connection             # its index + 1; 0: not accepted yet, or left
    uint32_t received               # bytes that came up; a FIN counts one
    char *early                     # heap: what came before the connection was known, or before bytes that go first
    uint32_t early_length
    uint32_t early_up               # of the first of them, as the record said
    bb_hit early_hit                # kept is an image's bytes, and nothing else; generation 0: it is not
    uint32_t due                    # bytes before it that did not come by the ring, when that was read to due_position,
    uint64_t due_position           # lie in the socket; 0: nobody has asked
    uint64_t missing_since_us       # when bytes were first missed, or the last of them came
    bb_peer peer


# A set of 64-bit numbers with what each stands for, by open addressing; 0 and 1 are no numbers.
cdef struct CookieTable:
    uint64_t *cookies
    uint32_t *values
    uint32_t mask
    uint32_t used                   # also by what was taken out again


# What user mode knows of an image.
cdef struct Published:
    CacheObject *object             # the answer, one of whose references is this record's; NULL: withdrawn
    uint32_t slot                   # of the index, where it can be found
    uint32_t generation             # the last that it had
    uint8_t was_visited
    uint64_t reusable_at            # withdrawn: when the ring was read up to here, nothing speaks of it any more
    Head head


cdef enum:
    SEEN_PLACES = 4096


cdef struct Tier:
    # Mapped from the kernel side.
    bb_row *rows
    bb_free_rows *free_rows
    bb_words *words
    bb_image *images
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
    uint32_t spills_seen
    uint32_t lost_closes_seen
    uint64_t consumed               # bytes of the ring
    # What is published.
    Published *published
    uint32_t images_made
    uint32_t hand                   # of the images, where room is made next
    uint32_t *withdrawn             # places of images, round: from the one that can be used again first
    uint32_t withdrawn_first
    uint32_t withdrawn_count
    uint64_t seen[SEEN_PLACES]      # hashes of requests that were answered from the cache once
    # Counters.
    uint64_t known                  # requests that were recognised, and answered without being parsed
    uint64_t drained_bytes
    uint64_t gaps
    uint64_t gaps_awaited           # of them, those whose bytes were not all in the socket yet
