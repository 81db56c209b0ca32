"""The arena: blocks of 128 KiB with their own allocator, in one reservation of addresses.

The rules:

- What is taken lies within one block; it is taken from the block whose longest free run is the shortest that will do.
  So large pieces find whole blocks for as long as there are any.
- Blocks are in a list by their longest free run, so taking and giving back cost the same however many there are.
- Pages are huge only where nothing is sent from them without a copy: up to Linux 6.18 at least, a zero-copy send counts
  the whole of a huge page up to its bytes as theirs, so that a few of them fill the client's receive buffer, and what
  follows is dropped (12 MiB took minutes instead of milliseconds).
- Pages are touched chunk by chunk. One empty chunk stays open, so that traffic at its edge does not map and unmap.
- One thread takes and gives back. Figures may be read by others.
"""
from libc.errno cimport ENOMEM, errno
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memset


cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *, size_t, int, int, int, long) noexcept
    int munmap(void *, size_t) noexcept
    int madvise(void *, size_t, int) noexcept
    int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    int MADV_DONTNEED, MADV_HUGEPAGE, MADV_NOHUGEPAGE
    void *MAP_FAILED


cdef extern from * nogil:
    """
    static inline int bb_lowest_bit(uint64_t word) { return __builtin_ctzll(word); }
    """
    int bb_lowest_bit(uint64_t word) noexcept


cdef enum:
    CHUNK_SIZE_BYTES_MIN = 2097152      # a huge page
    ALL_FREE = 0xFFFFFFFF


# --- the reservation -------------------------------------------------------------------------------------------------

cdef void *reserve(uint64_t size_bytes, int flags) noexcept nogil:
    """Addresses whose pages come when they are touched; NULL: there are none."""
    cdef void *at = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0)
    return NULL if at == MAP_FAILED else at


cdef int map_pages(Arena *arena) noexcept nogil:
    """Aligned so that the kernel can make pages huge. 0, or -errno."""
    cdef uint64_t misaligned
    arena.mapping_size_bytes = arena.size_bytes + CHUNK_SIZE_BYTES_MIN
    arena.mapping = reserve(arena.mapping_size_bytes, MAP_NORESERVE)
    if arena.mapping is NULL:
        return -errno
    misaligned = <uint64_t>arena.mapping % CHUNK_SIZE_BYTES_MIN
    arena.base = <char *>arena.mapping + (CHUNK_SIZE_BYTES_MIN - misaligned) % CHUNK_SIZE_BYTES_MIN
    return 0


cdef int arena_prepare(Arena *arena, uint64_t size_bytes) noexcept nogil:
    cdef int result
    cdef uint64_t blocks_size_bytes, chunks_size_bytes
    memset(arena, 0, sizeof(Arena))
    if size_bytes == 0:
        return 0
    arena.chunk_size_bytes = CHUNK_SIZE_BYTES_MIN
    while (size_bytes + arena.chunk_size_bytes - 1) // arena.chunk_size_bytes > ARENA_CHUNKS_MAX:
        arena.chunk_size_bytes *= 2
    arena.chunk_count = <uint32_t>((size_bytes + arena.chunk_size_bytes - 1) // arena.chunk_size_bytes)
    arena.size_bytes = arena.chunk_count * arena.chunk_size_bytes
    # Mapped, and not allocated: what describes chunks that are never opened costs no memory.
    blocks_size_bytes = arena.size_bytes // ARENA_BLOCK_SIZE_BYTES * sizeof(Block)
    chunks_size_bytes = arena.chunk_count * sizeof(Chunk)
    arena.blocks = <Block *>reserve(blocks_size_bytes, MAP_NORESERVE)
    arena.chunks = <Chunk *>reserve(chunks_size_bytes, MAP_NORESERVE)
    result = -ENOMEM if arena.blocks is NULL or arena.chunks is NULL else map_pages(arena)
    if result < 0:
        arena_free(arena)
    return result


cdef void arena_free(Arena *arena) noexcept nogil:
    if arena.mapping is not NULL:
        munmap(arena.mapping, arena.mapping_size_bytes)
    if arena.blocks is not NULL:
        munmap(arena.blocks, arena.size_bytes // ARENA_BLOCK_SIZE_BYTES * sizeof(Block))
    if arena.chunks is not NULL:
        munmap(arena.chunks, arena.chunk_count * sizeof(Chunk))
    memset(arena, 0, sizeof(Arena))


# --- blocks ----------------------------------------------------------------------------------------------------------

cdef uint8_t longest_run(uint32_t word) noexcept nogil:
    """How many 1 bits in a row there are at most."""
    cdef uint8_t length = 0
    while word:
        word &= word << 1
        length += 1
    return length


cdef int first_run(uint32_t word, uint32_t length) noexcept nogil:
    """Where the lowest run of so many 1 bits begins; there is one."""
    cdef uint32_t bits = 1, more
    while bits < length:
        # A bit is left only where as many above it are set, too.
        more = min(bits, length - bits)
        word &= word >> more
        bits += more
    return bb_lowest_bit(word)


cdef inline uint32_t blocks_of_chunk(const Arena *arena) noexcept nogil:
    return <uint32_t>(arena.chunk_size_bytes // ARENA_BLOCK_SIZE_BYTES)


cdef void list_block(Arena *arena, uint32_t number) noexcept nogil:
    """Puts a block (numbers from 1 on) in the list of its longest run."""
    cdef Block *block = &arena.blocks[number - 1]
    cdef uint32_t first
    block.longest = longest_run(block.free)
    first = arena.lists[block.longest]
    block.previous = 0
    block.next = first
    if first:
        arena.blocks[first - 1].previous = number
    arena.lists[block.longest] = number
    arena.lists_used |= <uint64_t>1 << block.longest


cdef void unlist_block(Arena *arena, uint32_t number) noexcept nogil:
    cdef Block *block = &arena.blocks[number - 1]
    if block.next:
        arena.blocks[block.next - 1].previous = block.previous
    if block.previous:
        arena.blocks[block.previous - 1].next = block.next
    else:
        arena.lists[block.longest] = block.next
        if block.next == 0:
            arena.lists_used &= ~(<uint64_t>1 << block.longest)


# --- chunks ----------------------------------------------------------------------------------------------------------

cdef bint open_chunk(Arena *arena) noexcept nogil:
    """Opens another chunk; False: all are open."""
    cdef uint32_t number, index, first
    cdef Chunk *chunk
    cdef char *at
    if arena.closed:
        number = arena.closed - 1
        arena.closed = arena.chunks[number].next
    elif arena.chunks_begun < arena.chunk_count:
        number = arena.chunks_begun
        arena.chunks_begun += 1
    else:
        return False
    chunk = &arena.chunks[number]
    chunk.is_open = 1
    arena.chunks_open += 1
    arena.empty_chunks += 1
    first = number * blocks_of_chunk(arena)
    for index in range(blocks_of_chunk(arena)):
        arena.blocks[first + index].free = ALL_FREE
        list_block(arena, first + index + 1)
    at = arena.base + number * arena.chunk_size_bytes
    if arena.opened is NULL:
        arena.pages = PAGES_SMALL if madvise(at, arena.chunk_size_bytes, MADV_HUGEPAGE) else PAGES_TRANSPARENT
    else:
        madvise(at, arena.chunk_size_bytes, MADV_NOHUGEPAGE)
    if arena.opened is not NULL and arena.opened(arena.context, number, at, arena.chunk_size_bytes):
        chunk.is_registered = 1
        arena.chunks_registered += 1
    return True


cdef void close_chunk(Arena *arena, uint32_t number) noexcept nogil:
    """Gives an empty chunk's pages back to the system."""
    cdef Chunk *chunk = &arena.chunks[number]
    cdef uint32_t index, first = number * blocks_of_chunk(arena)
    for index in range(blocks_of_chunk(arena)):
        unlist_block(arena, first + index + 1)
    if chunk.is_registered:
        if arena.closing is not NULL:
            arena.closing(arena.context, number)
        chunk.is_registered = 0
        arena.chunks_registered -= 1
    madvise(arena.base + number * arena.chunk_size_bytes, arena.chunk_size_bytes, MADV_DONTNEED)
    chunk.is_open = 0
    chunk.next = arena.closed
    arena.closed = number + 1
    arena.chunks_open -= 1
    arena.empty_chunks -= 1


# --- taking and giving back ------------------------------------------------------------------------------------------

cdef char *arena_take(Arena *arena, uint32_t size_bytes) noexcept nogil:
    cdef uint32_t units = (size_bytes + ARENA_UNIT_SIZE_BYTES - 1) // ARENA_UNIT_SIZE_BYTES
    cdef uint32_t number, unit
    cdef uint64_t suited
    cdef Block *block
    cdef Chunk *chunk
    if units == 0 or units > ARENA_UNITS:
        return NULL
    suited = arena.lists_used >> units
    if suited == 0:
        if not open_chunk(arena):
            arena.refused += 1
            return NULL
        suited = arena.lists_used >> units
    number = arena.lists[units + bb_lowest_bit(suited)]
    block = &arena.blocks[number - 1]
    unlist_block(arena, number)
    unit = first_run(block.free, units)
    block.free &= ~<uint32_t>((((<uint64_t>1 << units) - 1) << unit))
    block.lengths[unit] = <uint8_t>units
    list_block(arena, number)
    chunk = &arena.chunks[(number - 1) // blocks_of_chunk(arena)]
    if chunk.used == 0:
        arena.empty_chunks -= 1
    chunk.used += units
    arena.units += units
    arena.pieces += 1
    return arena.base + <uint64_t>(number - 1) * ARENA_BLOCK_SIZE_BYTES + unit * ARENA_UNIT_SIZE_BYTES


cdef int arena_give(Arena *arena, const char *at) noexcept nogil:
    cdef uint64_t offset
    cdef uint32_t number, unit, units
    cdef Block *block
    cdef Chunk *chunk
    if not arena_holds(arena, at):
        arena.faults += 1
        return -1
    offset = <uint64_t>(at - arena.base)
    number = <uint32_t>(offset // ARENA_BLOCK_SIZE_BYTES) + 1
    block = &arena.blocks[number - 1]
    unit = <uint32_t>(offset % ARENA_BLOCK_SIZE_BYTES // ARENA_UNIT_SIZE_BYTES)
    units = block.lengths[unit]
    if units == 0 or offset % ARENA_UNIT_SIZE_BYTES:
        arena.faults += 1
        return -1
    unlist_block(arena, number)
    block.lengths[unit] = 0
    block.free |= <uint32_t>(((<uint64_t>1 << units) - 1) << unit)
    list_block(arena, number)
    arena.units -= units
    arena.pieces -= 1
    number = (number - 1) // blocks_of_chunk(arena)
    chunk = &arena.chunks[number]
    chunk.used -= units
    if chunk.used == 0:
        arena.empty_chunks += 1
        if arena.empty_chunks > 1:
            close_chunk(arena, number)
    return 0


# --- addresses -------------------------------------------------------------------------------------------------------

cdef bint arena_holds(const Arena *arena, const char *at) noexcept nogil:
    return arena.base is not NULL and arena.base <= at < arena.base + arena.size_bytes


cdef uint32_t arena_registered_chunk(const Arena *arena, const char *at) noexcept nogil:
    cdef uint32_t number
    if not arena_holds(arena, at):
        return NO_CHUNK
    number = <uint32_t>(<uint64_t>(at - arena.base) // arena.chunk_size_bytes)
    return number if arena.chunks[number].is_registered else NO_CHUNK
