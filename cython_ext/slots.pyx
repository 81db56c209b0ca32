"""Slots: memory for what there are many of.

The rules:

- A slot's size is one of a few, an eighth apart at most from 1 KiB on, and multiples of a cache line below.
- A chunk has slots of one size. It begins at a multiple of its size, so that a slot leads to its chunk. One that is
  empty is given back to the system, but for a spare one.
- Chunks are asked to be huge pages, which is a wish; but not the first of a size, so that a small cache stays so.
"""
from libc.stdint cimport uint32_t
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap


cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *, size_t, int) noexcept
    int MADV_HUGEPAGE


cdef enum:
    CHUNK_SIZE_BYTES = 2097152
    HEADER_SIZE_BYTES = 64          # of a chunk: at least sizeof(Chunk), so that slots are aligned
    FINE_STEP = 64                  # between sizes up to 1 KiB, then twice and four times that
    FINE_SIZE_MAX = 1024
    MIDDLE_SIZE_MAX = 2048


cdef inline uint32_t number_of(uint32_t size_bytes) noexcept nogil:
    if size_bytes <= FINE_SIZE_MAX:
        return (size_bytes + FINE_STEP - 1) // FINE_STEP
    if size_bytes <= MIDDLE_SIZE_MAX:
        return 16 + (size_bytes - FINE_SIZE_MAX + 2 * FINE_STEP - 1) // (2 * FINE_STEP)
    return 24 + (size_bytes - MIDDLE_SIZE_MAX + 4 * FINE_STEP - 1) // (4 * FINE_STEP)


cdef inline uint32_t size_of(uint32_t number) noexcept nogil:
    if number <= 16:
        return number * FINE_STEP
    if number <= 24:
        return FINE_SIZE_MAX + (number - 16) * 2 * FINE_STEP
    return MIDDLE_SIZE_MAX + (number - 24) * 4 * FINE_STEP


# --- chunks ----------------------------------------------------------------------------------------------------------

cdef Chunk *map_chunk() noexcept nogil:
    """Memory that begins at a multiple of its size: twice as much is asked for, and the rest given back."""
    cdef char *address = <char *>mmap(NULL, 2 * CHUNK_SIZE_BYTES, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    cdef size_t before
    if address == MAP_FAILED:
        return NULL
    before = <size_t>-<ssize_t>address & (CHUNK_SIZE_BYTES - 1)
    if before:
        munmap(address, before)
    munmap(address + before + CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES - before)
    return <Chunk *>(address + before)


cdef void open_chunk(Chunk *chunk) noexcept nogil:
    cdef Chunk **first = &chunk.slots.open[chunk.size_number]
    chunk.previous = NULL
    chunk.next = first[0]
    if first[0] is not NULL:
        first[0].previous = chunk
    first[0] = chunk


cdef void close_chunk(Chunk *chunk) noexcept nogil:
    if chunk.next is not NULL:
        chunk.next.previous = chunk.previous
    if chunk.previous is not NULL:
        chunk.previous.next = chunk.next
    else:
        chunk.slots.open[chunk.size_number] = chunk.next


cdef Chunk *chunk_new(Slots *slots, uint32_t number) noexcept nogil:
    cdef Chunk *chunk = slots.spare
    slots.spare = NULL
    if chunk is NULL:
        chunk = map_chunk()
        if chunk is NULL:
            return NULL
        if slots.chunk_counts[number]:
            madvise(chunk, CHUNK_SIZE_BYTES, MADV_HUGEPAGE)
        slots.chunk_count += 1
    slots.chunk_counts[number] += 1
    chunk.slots = slots
    chunk.given_back = NULL
    chunk.size_number = number
    chunk.slot_size_bytes = size_of(number)
    chunk.used = 0
    chunk.fresh_offset = HEADER_SIZE_BYTES
    open_chunk(chunk)
    return chunk


cdef void chunk_free(Chunk *chunk) noexcept nogil:
    cdef Slots *slots = chunk.slots
    slots.chunk_counts[chunk.size_number] -= 1
    if slots.spare is NULL:
        slots.spare = chunk
        return
    munmap(chunk, CHUNK_SIZE_BYTES)
    slots.chunk_count -= 1


cdef void slots_free(Slots *slots) noexcept nogil:
    if slots.spare is not NULL:
        munmap(slots.spare, CHUNK_SIZE_BYTES)
        slots.spare = NULL
        slots.chunk_count -= 1


# --- slots -----------------------------------------------------------------------------------------------------------

cdef inline bint is_full(const Chunk *chunk) noexcept nogil:
    return chunk.given_back is NULL and chunk.fresh_offset + chunk.slot_size_bytes > CHUNK_SIZE_BYTES


cdef void *slot_take(Slots *slots, uint32_t size_bytes) noexcept nogil:
    cdef uint32_t number = number_of(size_bytes)
    cdef Chunk *chunk = slots.open[number]
    cdef void *slot
    if chunk is NULL:
        chunk = chunk_new(slots, number)
        if chunk is NULL:
            return NULL
    slot = chunk.given_back
    if slot is not NULL:
        chunk.given_back = (<void **>slot)[0]
    else:
        slot = <char *>chunk + chunk.fresh_offset
        chunk.fresh_offset += chunk.slot_size_bytes
    chunk.used += 1
    if is_full(chunk):
        close_chunk(chunk)
    return slot


cdef void slot_give_back(void *slot) noexcept nogil:
    cdef Chunk *chunk = <Chunk *>(<size_t>slot & ~(<size_t>CHUNK_SIZE_BYTES - 1))
    if is_full(chunk):
        open_chunk(chunk)
    (<void **>slot)[0] = chunk.given_back
    chunk.given_back = slot
    chunk.used -= 1
    if chunk.used == 0:
        close_chunk(chunk)
        chunk_free(chunk)
