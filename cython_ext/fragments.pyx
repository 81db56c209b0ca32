"""Fragments: an object's payload in pieces of 64 KiB, each read, pinned and counted by itself.

The rules:

- Bytes that are pinned don't change and are not given back (law 4).
- A head is written before the first fragment's payload only while nobody sends from it, or while it says the same. When
  it is to say something else (each second, for its Date) and there are such sends, the fragment is copied, and the copy
  is used from then on; the old one is given back when its last send is over. There are two copies at most.
- Reading here never waits for a disk: what the page cache has is read at once, the rest is for whoever can wait.
"""
from libc.errno cimport EAGAIN, EINTR, EOPNOTSUPP, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from batchbridge.cython_ext.arena cimport (
    ARENA_UNIT_SIZE_BYTES, PAGES_TRANSPARENT, arena_free, arena_give, arena_prepare, arena_take)


cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void *iov_base
        size_t iov_len
    ssize_t preadv2(int, const iovec *, int, long, int) noexcept
    int RWF_NOWAIT


cdef extern from "<unistd.h>" nogil:
    int close(int) noexcept


cdef enum:
    HEAD_ROOM_BYTES = 512               # for header lines that are not the object's own
    LEAD_BYTES_MAX = 4096               # more of them are sent by themselves


# --- memory ----------------------------------------------------------------------------------------------------------

cdef int fragment_memory_prepare(FragmentMemory *memory, uint64_t size_bytes) noexcept nogil:
    memset(memory, 0, sizeof(FragmentMemory))
    return arena_prepare(&memory.arena, size_bytes)


cdef void fragment_memory_free(FragmentMemory *memory) noexcept nogil:
    arena_free(&memory.arena)


cdef dict fragment_memory_stats(const FragmentMemory *memory):
    cdef uint64_t chunk = memory.arena.chunk_size_bytes
    return {
        "fragments": {
            "living": memory.fragments, "present": memory.present, "pins": memory.pins, "files": memory.files,
            "read_at_once": memory.reads_now, "read_later": memory.reads_later, "reads_failed": memory.reads_failed,
            "copies": memory.copies,
        },
        "arena": {
            "size_bytes": memory.arena.units * ARENA_UNIT_SIZE_BYTES, "size_bytes_max": memory.arena.size_bytes,
            "pieces": memory.arena.pieces, "open_size_bytes": memory.arena.chunks_open * chunk,
            "registered_size_bytes": memory.arena.chunks_registered * chunk, "refused": memory.arena.refused,
            "faults": memory.arena.faults, "huge_pages": int(memory.arena.pages == PAGES_TRANSPARENT),
        },
        "plain_memory": {"pieces": memory.heap_pieces, "size_bytes": memory.heap_size_bytes},
        "page_cache": {"pieces": memory.window_pieces},
    }


# --- the record ------------------------------------------------------------------------------------------------------

cdef uint32_t lead_of(uint32_t header_length) noexcept nogil:
    cdef uint32_t lead = (HEAD_ROOM_BYTES + header_length + 63) & ~63
    return lead if lead <= LEAD_BYTES_MAX else 0


cdef uint64_t count_of(uint64_t length, uint32_t header_length) noexcept nogil:
    return (lead_of(header_length) + length + FRAGMENT_SIZE_BYTES - 1) // FRAGMENT_SIZE_BYTES


cdef uint64_t fragments_record_size_bytes(uint64_t length, uint32_t header_length, uint32_t slots_max) noexcept nogil:
    cdef uint64_t slots = min(count_of(length, header_length), <uint64_t>slots_max)
    if slots >= FRAGMENTS_MAX or count_of(length, header_length) >> 32:
        return 0
    return sizeof(Fragments) + slots * sizeof(Fragment)


cdef uint64_t fragments_charge_bytes(uint64_t length, uint32_t header_length) noexcept nogil:
    # Only the last fragment is not a multiple of a unit.
    return (lead_of(header_length) + length + ARENA_UNIT_SIZE_BYTES - 1) & ~<uint64_t>(ARENA_UNIT_SIZE_BYTES - 1)


cdef void fragments_prepare(Fragments *fragments, FragmentMemory *memory, uint64_t length, uint32_t header_length,
                            uint32_t slots_max, int file) noexcept nogil:
    cdef uint64_t count = count_of(length, header_length)
    memset(fragments, 0, sizeof(Fragments) + min(count, <uint64_t>slots_max) * sizeof(Fragment))
    fragments.memory = memory
    fragments.length = length
    fragments.lead = lead_of(header_length)
    fragments.count = <uint32_t>count
    fragments.slot_count = <uint32_t>min(count, <uint64_t>slots_max)
    if slots_max < FRAGMENTS_MAX and 1 < count <= slots_max:
        fragments.slot_count -= 1           # a window, however few fragments there are
    fragments.file = -1
    memory.fragments += fragments.slot_count
    if file >= 0:
        fragments_open_file(fragments, file)


cdef void fragments_release(Fragments *fragments) noexcept nogil:
    cdef uint32_t index
    for index in range(fragments.slot_count):
        let_go(fragments, &fragments.slots[index])
    let_go(fragments, &fragments.spare)
    fragments.memory.fragments -= fragments.slot_count
    fragments_close_file(fragments)


cdef void fragments_open_file(Fragments *fragments, int file) noexcept nogil:
    fragments.file = file
    fragments.memory.files += 1


cdef void fragments_close_file(Fragments *fragments) noexcept nogil:
    if fragments.file >= 0:
        close(fragments.file)
        fragments.file = -1
        fragments.memory.files -= 1


cdef inline bint is_window(const Fragments *fragments) noexcept nogil:
    return fragments.slot_count < fragments.count


cdef inline uint32_t size_of(const Fragments *fragments, uint32_t number) noexcept nogil:
    """All bytes of a fragment, the lead's too."""
    cdef uint64_t behind = fragments.lead + fragments.length - <uint64_t>number * FRAGMENT_SIZE_BYTES
    return <uint32_t>min(behind, <uint64_t>FRAGMENT_SIZE_BYTES)


cdef bint take_memory(Fragments *fragments, Fragment *fragment, uint32_t size_bytes) noexcept nogil:
    cdef FragmentMemory *memory = fragments.memory
    fragment.at = arena_take(&memory.arena, size_bytes)
    fragment.backing = BACKING_ARENA
    if fragment.at is NULL:
        fragment.at = <char *>malloc(size_bytes)
        if fragment.at is NULL:
            fragment.backing = BACKING_NONE
            return False
        fragment.backing = BACKING_HEAP
        memory.heap_pieces += 1
        memory.heap_size_bytes += size_bytes
    if is_window(fragments):
        memory.window_pieces += 1
    return True


cdef void let_go(Fragments *fragments, Fragment *fragment) noexcept nogil:
    """Gives back the memory of a fragment that nothing refers to."""
    cdef FragmentMemory *memory = fragments.memory
    if fragment.state == FRAGMENT_PRESENT:
        fragments.present -= 1
        memory.present -= 1
    fragment.state = FRAGMENT_ABSENT
    fragment.reader = NULL
    fragment.is_over = 0
    if fragment.at is NULL:
        return
    if fragment.backing == BACKING_ARENA:
        arena_give(&memory.arena, fragment.at)
    else:
        free(fragment.at)
        memory.heap_pieces -= 1
        memory.heap_size_bytes -= size_of(fragments, fragment.number)
    if is_window(fragments):
        memory.window_pieces -= 1
    fragment.at = NULL
    fragment.backing = BACKING_NONE


# --- what is where ---------------------------------------------------------------------------------------------------

cdef bint fragments_whole(const Fragments *fragments) noexcept nogil:
    return fragments.present == fragments.count


cdef Fragment *fragment_of(Fragments *fragments, uint64_t position, uint32_t *number, uint32_t *offset,
                           uint32_t *length) noexcept nogil:
    cdef uint64_t at = fragments.lead + position
    number[0] = <uint32_t>(at // FRAGMENT_SIZE_BYTES)
    offset[0] = <uint32_t>(at % FRAGMENT_SIZE_BYTES)
    length[0] = size_of(fragments, number[0]) - offset[0]
    if number[0] == 0 and fragments.is_spare_active:
        return &fragments.spare
    return &fragments.slots[number[0] % fragments.slot_count]


cdef uint32_t fragment_place(const Fragments *fragments, const Fragment *fragment) noexcept nogil:
    if fragment is &fragments.spare:
        return SPARE_PLACE
    return <uint32_t>(fragment - &fragments.slots[0])


cdef Fragment *fragment_at(Fragments *fragments, uint32_t place) noexcept nogil:
    return &fragments.spare if place == SPARE_PLACE else &fragments.slots[place]


cdef bint fragments_present(const Fragments *fragments, uint64_t position, uint64_t length) noexcept nogil:
    cdef uint32_t number, offset, piece
    cdef const Fragment *fragment
    if fragments_whole(fragments):
        return True
    while length:
        fragment = fragment_of(<Fragments *>fragments, position, &number, &offset, &piece)
        if fragment.state != FRAGMENT_PRESENT or fragment.number != number:
            return False
        piece = <uint32_t>min(<uint64_t>piece, length)
        position += piece
        length -= piece
    return True


cdef int fragments_copy_in(Fragments *fragments, const char *payload) noexcept nogil:
    cdef uint32_t number
    cdef Reading reading
    for number in range(fragments.count):
        if fragment_begin(fragments, &fragments.slots[number], number, &reading) < 0:
            return -1
        memcpy(reading.at, payload + reading.offset, reading.length)
        fragment_filled(fragments, &fragments.slots[number])
    return 0


cdef void fragments_copy_out(Fragments *fragments, uint64_t position, uint64_t length, char *out) noexcept nogil:
    cdef uint32_t number, offset, piece
    cdef const Fragment *fragment
    while length:
        fragment = fragment_of(fragments, position, &number, &offset, &piece)
        piece = <uint32_t>min(<uint64_t>piece, length)
        memcpy(out, fragment.at + offset, piece)
        out += piece
        position += piece
        length -= piece


# --- reading ---------------------------------------------------------------------------------------------------------

cdef int fragment_begin(Fragments *fragments, Fragment *fragment, uint32_t number, Reading *reading) noexcept nogil:
    cdef uint32_t size_bytes = size_of(fragments, number)
    cdef uint32_t lead = fragments.lead if number == 0 else 0
    if fragment.at is not NULL and (size_of(fragments, fragment.number) != size_bytes
                                    or fragment.state == FRAGMENT_PRESENT):
        let_go(fragments, fragment)
    fragment.number = number
    if fragment.at is NULL and not take_memory(fragments, fragment, size_bytes):
        return -1
    fragment.state = FRAGMENT_READING
    reading.at = fragment.at + lead
    reading.offset = <uint64_t>number * FRAGMENT_SIZE_BYTES + lead - fragments.lead
    reading.length = size_bytes - lead
    return 0


cdef int fragment_read_now(Fragments *fragments, Fragment *fragment, const Reading *reading) noexcept nogil:
    cdef iovec part
    cdef uint32_t done = 0
    cdef ssize_t count
    if fragments.memory.is_cold and reading.length:
        return 0
    while done < reading.length:
        part.iov_base = reading.at + done
        part.iov_len = reading.length - done
        count = preadv2(fragments.file, &part, 1, <long>(reading.offset + done), RWF_NOWAIT)
        if count > 0:
            done += <uint32_t>count
        elif count == 0:
            fragment_failed(fragments, fragment)
            return -1
        elif errno == EAGAIN or errno == EOPNOTSUPP:       # not there, or a file system that cannot tell
            return 0
        elif errno != EINTR:
            fragment_failed(fragments, fragment)
            return -1
    fragments.memory.reads_now += 1
    fragment_filled(fragments, fragment)
    return 1


cdef void fragment_filled(Fragments *fragments, Fragment *fragment) noexcept nogil:
    fragment.state = FRAGMENT_PRESENT
    fragment.reader = NULL
    fragments.present += 1
    fragments.memory.present += 1
    if fragments_whole(fragments):
        fragments_close_file(fragments)


cdef void fragment_failed(Fragments *fragments, Fragment *fragment) noexcept nogil:
    fragments.memory.reads_failed += 1
    let_go(fragments, fragment)


# --- pins ------------------------------------------------------------------------------------------------------------

cdef void fragment_pin(Fragments *fragments, Fragment *fragment) noexcept nogil:
    fragment.pins += 1
    fragments.memory.pins += 1


cdef void fragment_unpin(Fragments *fragments, Fragment *fragment) noexcept nogil:
    fragment.pins -= 1
    fragments.memory.pins -= 1
    if fragment.pins == 0 and (fragment.is_over or is_passive(fragments, fragment)):
        let_go(fragments, fragment)


cdef void fragment_over(Fragments *fragments, Fragment *fragment) noexcept nogil:
    if is_window(fragments):
        fragment.is_over = 1
        if fragment.pins == 0:
            let_go(fragments, fragment)


cdef inline bint is_passive(const Fragments *fragments, const Fragment *fragment) noexcept nogil:
    """Whether it is the one of the first fragment's two copies that is only sent to an end."""
    if fragment is &fragments.spare:
        return not fragments.is_spare_active
    return fragments.is_spare_active and fragment is &fragments.slots[0]


# --- the head --------------------------------------------------------------------------------------------------------

cdef Fragment *copy_first(Fragments *fragments) noexcept nogil:
    """Makes a copy of the first fragment the active one; NULL: there are two already, or there is no memory."""
    cdef Fragment *active = &fragments.spare if fragments.is_spare_active else &fragments.slots[0]
    cdef Fragment *copy = &fragments.slots[0] if fragments.is_spare_active else &fragments.spare
    if copy.at is not NULL or is_window(fragments) or not take_memory(fragments, copy, size_of(fragments, 0)):
        return NULL
    memcpy(copy.at + fragments.lead, active.at + fragments.lead, size_of(fragments, 0) - fragments.lead)
    copy.number = 0
    copy.state = FRAGMENT_PRESENT
    # Present are fragments, and this is the same one: the old copy is counted no more.
    active.state = FRAGMENT_ABSENT
    fragments.is_spare_active = not fragments.is_spare_active
    fragments.head_length = 0
    fragments.memory.copies += 1
    return copy


cdef char *fragments_with_head(Fragments *fragments, const char *head, uint32_t length) noexcept nogil:
    cdef Fragment *first = &fragments.spare if fragments.is_spare_active else &fragments.slots[0]
    cdef char *at
    if length > fragments.lead or first.state != FRAGMENT_PRESENT or first.number != 0:
        return NULL
    at = first.at + fragments.lead - length
    if fragments.head_length == length and memcmp(at, head, length) == 0:
        return at
    if first.pins:
        first = copy_first(fragments)
        if first is NULL:
            return NULL
        at = first.at + fragments.lead - length
    memcpy(at, head, length)
    fragments.head_length = length
    return at
