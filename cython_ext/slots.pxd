# Memory for what there are many of: slots of a few sizes, in chunks of two megabytes, so that a look at one among a
# million costs the processor no walk through its tables of pages.
from libc.stdint cimport uint32_t, uint64_t


cdef enum:
    SLOT_SIZE_BYTES_MAX = 4096
    SLOT_SIZES = 33


cdef struct Chunk:                  # at its beginning; what follows are slots
    Slots *slots
    Chunk *next                     # of those of its size that have a free slot
    Chunk *previous
    void *given_back                # slots, each of which holds the address of the next
    uint32_t size_number
    uint32_t slot_size_bytes
    uint32_t used                   # slots
    uint32_t fresh_offset           # of the first that was never taken


cdef struct Slots:
    Chunk *open[33]                 # by size: chunks with a free slot
    uint32_t chunk_counts[33]
    Chunk *spare                    # without a size: kept, so that one slot more or less does not cost a mapping
    uint64_t chunk_count


cdef void slots_free(Slots *slots) noexcept nogil       # all slots have been given back

# A slot for so many bytes, SLOT_SIZE_BYTES_MAX at most, aligned to a cache line of the processor. NULL: no memory.
cdef void *slot_take(Slots *slots, uint32_t size_bytes) noexcept nogil
cdef void slot_give_back(void *slot) noexcept nogil
