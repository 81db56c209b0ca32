# An index: things by 64-bit hash. Knows nothing of what they are, but that they contain an Entry.
#
# It grows by linear hashing: one line at a time, so no insertion ever pays for all that are there. A line is one cache
# line of the processor: a lookup touches it, and then only what has the hash it asked for (but for one in 65,536).
from libc.stdint cimport uint32_t, uint64_t


cdef struct Entry:
    uint64_t hash
    Entry *overflow             # the next one of the same line, where its slots are taken


cdef struct Index:
    uint64_t *lines             # reserved for the largest it can be; pages cost nothing before they are touched
    uint64_t line_count
    uint64_t line_count_max
    uint64_t mask               # of the hash's bits that tell lines apart: those of the round of splits under way
    uint64_t entries


# Seeded, so that no client can choose keys that collide.
cdef uint64_t hash_bytes(const char *data, uint32_t length, uint64_t seed) noexcept nogil

# Room for so many lines at most; beyond four entries a line it gets slower, not wrong. 0, or -ENOMEM.
cdef int index_prepare(Index *index, uint64_t line_count_max) noexcept nogil
cdef void index_free(Index *index) noexcept nogil

# The first entry with this hash behind `after` (NULL: the first of all), or NULL. Two things may have the same hash.
cdef Entry *index_find(const Index *index, uint64_t hash, const Entry *after) noexcept nogil
# For a batch of lookups: first asks the memory for the lines of all, then for what they may lead to, then finds.
cdef void index_prefetch(const Index *index, uint64_t hash) noexcept nogil
# What a lookup would look at first, without looking at it, or NULL.
cdef Entry *index_guess(const Index *index, uint64_t hash) noexcept nogil

cdef void index_insert(Index *index, Entry *entry) noexcept nogil       # entry.hash is set
cdef void index_remove(Index *index, Entry *entry) noexcept nogil       # it is in there

# The entries of one line, at most `room` of them; how many were stored.
cdef int index_line(const Index *index, uint64_t line, Entry **entries, int room) noexcept nogil
