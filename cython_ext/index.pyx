"""An index by linear hashing, its lines as wide as a cache line of the processor.

The rules:

- A line has seven slots and a list for what has no slot. A slot is a pointer, with 16 bits of the hash above its 48.
- When there are more than four entries a line (at three it takes a third more of the processor's caches, at five too
  many have no slot), the next line in turn is split in two: its entries whose hash has the
  next bit set move to a new last line. So the index grows by one line at a time, and never shrinks.
- Lines below `line_count - (mask + 1) / 2` have been split in this round, and so are told apart by one bit more.
"""
from libc.errno cimport ENOMEM
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE, mmap, munmap


cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *, size_t, int) noexcept
    int MADV_HUGEPAGE


cdef extern from * nogil:
    """
    static inline void bb_prefetch(const void *at) { __builtin_prefetch(at); }
    static inline int bb_lowest_bit(uint32_t bits) { return __builtin_ctz(bits); }
    """
    void bb_prefetch(const void *) noexcept
    int bb_lowest_bit(uint32_t) noexcept


cdef enum:
    SLOTS = 7
    LINE_WORDS = 8
    LINE_SIZE_BYTES = 64
    LINES_AT_FIRST = 64
    ENTRIES_PER_LINE = 4
    POINTER_BITS = 48
    HUGE_PAGE_SIZE_BYTES = 2097152


cdef uint64_t POINTER_MASK = (<uint64_t>1 << POINTER_BITS) - 1


cdef uint64_t hash_bytes(const char *data, uint32_t length, uint64_t seed) noexcept nogil:
    """A multiply-and-fold hash, eight bytes a step. Seeded, so that no client can choose keys that collide."""
    cdef uint64_t value = seed ^ (<uint64_t>length * <uint64_t>0x9E3779B97F4A7C15), word
    while length >= 8:
        memcpy(&word, data, 8)
        value = (value ^ word) * <uint64_t>0xD6E8FEB86659FD93
        value ^= value >> 32
        data += 8
        length -= 8
    if length:
        word = 0
        memcpy(&word, data, length)
        value = (value ^ word) * <uint64_t>0xD6E8FEB86659FD93
        value ^= value >> 32
    value *= <uint64_t>0xD6E8FEB86659FD93
    return value ^ (value >> 29)


cdef int index_prepare(Index *index, uint64_t line_count_max) noexcept nogil:
    cdef uint64_t size_bytes
    cdef void *address
    index.line_count_max = max(line_count_max, <uint64_t>LINES_AT_FIRST)
    size_bytes = index.line_count_max * LINE_SIZE_BYTES
    address = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if address == MAP_FAILED:
        return -ENOMEM
    # Small indexes stay small: only what lies behind the first huge page's length is asked to be huge. It is a wish.
    if size_bytes > HUGE_PAGE_SIZE_BYTES:
        madvise(<char *>address + HUGE_PAGE_SIZE_BYTES, size_bytes - HUGE_PAGE_SIZE_BYTES, MADV_HUGEPAGE)
    index.lines = <uint64_t *>address
    index.line_count = LINES_AT_FIRST
    index.mask = 2 * LINES_AT_FIRST - 1
    index.entries = 0
    return 0


cdef void index_free(Index *index) noexcept nogil:
    if index.lines is not NULL:
        munmap(index.lines, index.line_count_max * LINE_SIZE_BYTES)
    index.lines = NULL


cdef inline uint64_t *line_of(const Index *index, uint64_t hash) noexcept nogil:
    # Without a branch, which would be guessed wrong every other time.
    cdef uint64_t number = hash & index.mask
    return index.lines + (number - <uint64_t>(number >= index.line_count) * ((index.mask >> 1) + 1)) * LINE_WORDS


cdef inline Entry *pointer_in(uint64_t word) noexcept nogil:
    return <Entry *>(word & POINTER_MASK)


cdef inline uint32_t slots_with(const uint64_t *line, uint64_t tag) noexcept nogil:
    """Bits of the slots with this tag; an empty one may be among them. All are looked at: that is quicker than to leave
    at one that nobody can foresee."""
    cdef uint32_t found = 0
    cdef int slot
    for slot in range(SLOTS):
        found |= <uint32_t>(line[slot] >> POINTER_BITS == tag) << slot
    return found


cdef Entry *index_find(const Index *index, uint64_t hash, const Entry *after) noexcept nogil:
    cdef const uint64_t *line = line_of(index, hash)
    cdef uint32_t slots = slots_with(line, hash >> POINTER_BITS)
    cdef Entry *entry
    cdef bint is_behind = after is NULL
    while slots:
        entry = pointer_in(line[bb_lowest_bit(slots)])
        bb_prefetch(<char *>entry + LINE_SIZE_BYTES)        # mostly the key: needed next
        if entry is not NULL:
            if is_behind and entry.hash == hash:
                return entry
            is_behind = is_behind or entry is after
        slots &= slots - 1
    entry = pointer_in(line[SLOTS])
    while entry is not NULL:
        if is_behind and entry.hash == hash:
            return entry
        is_behind = is_behind or entry is after
        entry = entry.overflow
    return NULL


cdef void index_prefetch(const Index *index, uint64_t hash) noexcept nogil:
    bb_prefetch(line_of(index, hash))


cdef Entry *index_guess(const Index *index, uint64_t hash) noexcept nogil:
    cdef const uint64_t *line = line_of(index, hash)
    cdef uint32_t slots = slots_with(line, hash >> POINTER_BITS)
    return pointer_in(line[bb_lowest_bit(slots) if slots else <int>SLOTS])


cdef void put(uint64_t *line, Entry *entry) noexcept nogil:
    cdef int slot
    for slot in range(SLOTS):
        if line[slot] == 0:
            line[slot] = <uint64_t>entry | (entry.hash >> POINTER_BITS) << POINTER_BITS
            return
    entry.overflow = pointer_in(line[SLOTS])
    line[SLOTS] = <uint64_t>entry


cdef void split(Index *index) noexcept nogil:
    """Splits the next line in turn."""
    cdef uint64_t *old = index.lines + (index.line_count & (index.mask >> 1)) * LINE_WORDS
    cdef uint64_t *new = index.lines + index.line_count * LINE_WORDS
    cdef uint64_t words[SLOTS]
    cdef Entry *listed = pointer_in(old[SLOTS])
    cdef Entry *entry
    cdef int slot
    for slot in range(SLOTS):
        words[slot] = old[slot]
        old[slot] = 0
    old[SLOTS] = 0
    for slot in range(SLOTS):
        if words[slot]:
            entry = pointer_in(words[slot])
            put(new if entry.hash & index.mask == index.line_count else old, entry)
    while listed is not NULL:
        entry = listed
        listed = entry.overflow
        put(new if entry.hash & index.mask == index.line_count else old, entry)
    index.line_count += 1
    if index.line_count > index.mask:
        index.mask = 2 * index.mask + 1


cdef void index_insert(Index *index, Entry *entry) noexcept nogil:
    put(line_of(index, entry.hash), entry)
    index.entries += 1
    if index.entries > ENTRIES_PER_LINE * index.line_count and index.line_count < index.line_count_max:
        split(index)


cdef void index_remove(Index *index, Entry *entry) noexcept nogil:
    cdef uint64_t *line = line_of(index, entry.hash)
    cdef Entry *listed = pointer_in(line[SLOTS])
    cdef Entry **link
    cdef int slot
    index.entries -= 1
    for slot in range(SLOTS):
        if pointer_in(line[slot]) is entry:
            line[slot] = 0
            if listed is not NULL:
                line[SLOTS] = <uint64_t>listed.overflow
                put(line, listed)
            return
    link = <Entry **>&line[SLOTS]
    while link[0] is not entry:
        link = &link[0].overflow
    link[0] = entry.overflow


cdef int index_line(const Index *index, uint64_t line, Entry **entries, int room) noexcept nogil:
    cdef const uint64_t *words = index.lines + line * LINE_WORDS
    cdef Entry *listed = pointer_in(words[SLOTS])
    cdef int slot, count = 0
    for slot in range(SLOTS):
        if words[slot] and count < room:
            entries[count] = pointer_in(words[slot])
            count += 1
    while listed is not NULL and count < room:
        entries[count] = listed
        count += 1
        listed = listed.overflow
    return count
