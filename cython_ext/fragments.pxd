# Fragments: an object's payload in pieces of 64 KiB, each read, pinned and counted by itself. Knows no ring, no cache
# and no HTTP.
#
# The bytes are those of the payload, with a `lead` before them where header lines may be written, so that one send
# carries both. Lead and payload together are cut every 64 KiB. Fragments come into being empty: their bytes are copied
# in, or read from a file when they are first needed. They lie in the arena, or in plain memory where that is full.
#
# A record with as many slots as fragments keeps what was read. One with fewer is a window over a file that is too large
# to be kept: a slot is used again for a later fragment when nothing refers to its bytes any more.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from batchbridge.cython_ext.arena cimport Arena


cdef enum:
    FRAGMENT_SIZE_BYTES = 65536
    FRAGMENTS_MAX = 8388607             # that can be told apart where they are named by 23 bits
    SPARE_PLACE = 8388607               # the name of the first fragment's other copy


cdef enum FragmentState:
    FRAGMENT_ABSENT = 0
    FRAGMENT_READING
    FRAGMENT_PRESENT


cdef enum Backing:
    BACKING_NONE = 0
    BACKING_ARENA
    BACKING_HEAP


# What all fragments of an engine have in common: their memory, and its figures.
cdef struct FragmentMemory:
    Arena arena
    uint64_t fragments              # of living records, whatever their state
    uint64_t present
    uint64_t pins
    uint64_t heap_pieces
    uint64_t heap_size_bytes
    uint64_t window_pieces          # of the fragments with memory, those of windows over files
    uint64_t files                  # records with an open file
    uint64_t reads_now              # fragments that were read at once, since the page cache had them
    uint64_t reads_later            # and those that something had to be waited for
    uint64_t reads_failed
    uint64_t copies                 # of a first fragment, since its head was in use
    uint8_t is_cold                 # tests: as if the page cache had nothing


cdef struct Fragment:
    char *at                        # NULL: it has no memory
    void *reader                    # FRAGMENT_READING: whoever reads it
    uint32_t number
    uint32_t pins                   # sends and reads that refer to its bytes
    uint8_t state
    uint8_t backing
    uint8_t is_over                 # a window's: nobody will send from it again


cdef struct Fragments:
    FragmentMemory *memory
    uint64_t length                 # of the payload
    uint32_t lead                   # free bytes before it
    uint32_t count
    uint32_t slot_count
    uint32_t present
    uint32_t head_length            # of the header lines that stand before the payload in the active first fragment
    uint8_t is_spare_active         # the first fragment is `spare`, and its slot what was sent before
    int file                        # where absent fragments are read from; -1: none
    Fragment spare
    Fragment slots[1]


cdef int fragment_memory_prepare(FragmentMemory *memory, uint64_t size_bytes) noexcept nogil
cdef void fragment_memory_free(FragmentMemory *memory) noexcept nogil
# Figures by name, for Python.
cdef dict fragment_memory_stats(const FragmentMemory *memory)

# What a record needs; slots: at most so many. 0: the payload is too long for one.
cdef uint64_t fragments_record_size_bytes(uint64_t length, uint32_t header_length, uint32_t slots_max) noexcept nogil
# What its bytes will take when they are all there.
cdef uint64_t fragments_charge_bytes(uint64_t length, uint32_t header_length) noexcept nogil
# Fills in a record, all of whose fragments are absent. The file, if any, is the record's from now on.
cdef void fragments_prepare(Fragments *fragments, FragmentMemory *memory, uint64_t length, uint32_t header_length,
                            uint32_t slots_max, int file) noexcept nogil
# Gives back what it has. Nothing may be pinned any more.
cdef void fragments_release(Fragments *fragments) noexcept nogil
cdef void fragments_open_file(Fragments *fragments, int file) noexcept nogil
cdef void fragments_close_file(Fragments *fragments) noexcept nogil

# Whether all that could be read was read.
cdef bint fragments_whole(const Fragments *fragments) noexcept nogil
cdef bint fragments_present(const Fragments *fragments, uint64_t position, uint64_t length) noexcept nogil
# Fills all fragments from memory. 0, or -1: there is no memory.
cdef int fragments_copy_in(Fragments *fragments, const char *payload) noexcept nogil
# Payload bytes that are present.
cdef void fragments_copy_out(Fragments *fragments, uint64_t position, uint64_t length, char *out) noexcept nogil

# The slot that a payload byte belongs to, as it is: it may be absent, or hold another fragment that is still pinned
# (then `number` differs). Where its byte lies in the fragment, and how many of the payload's follow there.
cdef Fragment *fragment_of(Fragments *fragments, uint64_t position, uint32_t *number, uint32_t *offset,
                           uint32_t *length) noexcept nogil
# Names a fragment in 23 bits, and finds it again.
cdef uint32_t fragment_place(const Fragments *fragments, const Fragment *fragment) noexcept nogil
cdef Fragment *fragment_at(Fragments *fragments, uint32_t place) noexcept nogil

# What of the file belongs to a fragment, and where to read it to.
cdef struct Reading:
    char *at
    uint64_t offset
    uint32_t length

# Gives an absent (or let go) slot memory for this fragment. 0, or -1: there is no memory at all.
cdef int fragment_begin(Fragments *fragments, Fragment *fragment, uint32_t number, Reading *reading) noexcept nogil
# Reads it if nothing has to be waited for. 1: it is present; 0: a disk is to be waited for; -1: the file is shorter, or
# failed. Only after fragment_begin.
cdef int fragment_read_now(Fragments *fragments, Fragment *fragment, const Reading *reading) noexcept nogil
# It was read; or it could not be, and its memory is given back.
cdef void fragment_filled(Fragments *fragments, Fragment *fragment) noexcept nogil
cdef void fragment_failed(Fragments *fragments, Fragment *fragment) noexcept nogil

cdef void fragment_pin(Fragments *fragments, Fragment *fragment) noexcept nogil
cdef void fragment_unpin(Fragments *fragments, Fragment *fragment) noexcept nogil

# All of a fragment was sent: a window needs it no longer than it is pinned.
cdef void fragment_over(Fragments *fragments, Fragment *fragment) noexcept nogil

# The first fragment with these header lines right before the payload: where they begin, or NULL where there is no room
# for them, or bytes in flight would change. It is the fragment that fragment_of finds from then on.
cdef char *fragments_with_head(Fragments *fragments, const char *head, uint32_t length) noexcept nogil
