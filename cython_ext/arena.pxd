# The arena: memory for what is sent again and again, in blocks of 128 KiB, pinned where the kernel lets it. Knows no
# ring, no cache and no objects.
#
# All of it is one reservation of addresses. It is used chunk by chunk: a chunk is opened when no open one has room, and
# given back to the system when it is empty and another empty one is at hand. Whoever sends from it may register a chunk
# with the kernel when it is opened (see `opened`), and finds out by an address which chunk it lies in.
#
# A block is 32 units of 4 KiB, and what is taken lies within one block, so a block's state is one word.
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef enum:
    ARENA_BLOCK_SIZE_BYTES = 131072
    ARENA_UNIT_SIZE_BYTES = 4096
    ARENA_UNITS = 32                    # of a block
    ARENA_CHUNKS_MAX = 16000            # a ring takes 16,384 fixed buffers; a few are needed for other things
    NO_CHUNK = 0xFFFFFFFF


cdef enum Pages:
    PAGES_SMALL = 0
    PAGES_TRANSPARENT                   # the kernel was asked to make them huge, and does it as it can


cdef struct Block:
    uint32_t free                       # bits by unit
    uint32_t next                       # of those with as long a run of free units; numbers from 1 on, 0: none
    uint32_t previous
    uint8_t longest                     # units of its longest free run
    uint8_t lengths[32]                 # by the first unit of what was taken: how many units; else 0


cdef struct Chunk:
    uint32_t next                       # of those that are closed; numbers from 1 on
    uint32_t used                       # units taken
    uint8_t is_open
    uint8_t is_registered               # written by whoever registers it


cdef struct Arena:
    char *base
    void *mapping                       # what was mapped, where `base` had to be aligned in it
    uint64_t mapping_size_bytes
    uint64_t size_bytes                 # of the reservation
    uint64_t chunk_size_bytes
    uint32_t chunk_count
    uint32_t chunks_begun               # those behind were never opened
    uint32_t closed                     # the first of the chunks that were closed again; 0: none
    uint32_t empty_chunks               # open ones without anything in them
    Block *blocks
    Chunk *chunks
    uint32_t lists[33]                  # of blocks in open chunks, by `longest`
    uint64_t lists_used                 # bits: lists that are not empty
    uint8_t pages                       # Pages
    # Figures.
    uint64_t units                      # taken now
    uint64_t pieces                     # taken now
    uint64_t chunks_open
    uint64_t chunks_registered
    uint64_t refused                    # times that there was no room
    uint64_t faults                     # given back twice, or never taken: a mistake of ours
    # A chunk was opened, or is about to be closed. The first returns whether it registered the chunk; where there is
    # none, nothing is sent without a copy.
    bint (*opened)(void *context, uint32_t chunk, char *at, uint64_t size_bytes) noexcept nogil
    void (*closing)(void *context, uint32_t chunk) noexcept nogil
    void *context


# Reserves at least so many bytes of addresses; 0: none, and nothing can be taken. 0, or -errno.
cdef int arena_prepare(Arena *arena, uint64_t size_bytes) noexcept nogil
# Gives all back to the system, what is still taken too.
cdef void arena_free(Arena *arena) noexcept nogil

# So many bytes, at most a block's, in one piece that begins at a page. NULL: there is no room.
cdef char *arena_take(Arena *arena, uint32_t size_bytes) noexcept nogil
# Gives a piece back. 0, or -1 for what was not taken (counted).
cdef int arena_give(Arena *arena, const char *at) noexcept nogil

cdef bint arena_holds(const Arena *arena, const char *at) noexcept nogil
# The chunk that an address lies in, where it is registered; else NO_CHUNK.
cdef uint32_t arena_registered_chunk(const Arena *arena, const char *at) noexcept nogil
