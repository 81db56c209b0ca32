# The cache: objects by key, bounded in bytes. Knows no ring, no socket, no HTTP beyond an object's three parts.
#
# One cache belongs to one engine thread, which alone calls these functions; Python purges through the engine's mailbox.
#
# A key is a path (of a file: the same for all hosts), with NUL and a content coding behind it if it has one; or a
# target (path and query), NUL, authority, NUL, and the values of the request headers that the route varies by, each
# after its number and ended by NUL. GET and HEAD share it.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.admission cimport Admission
from batchbridge.cython_ext.fragments cimport FragmentMemory, Fragments
from batchbridge.cython_ext.groups cimport Group, Groups
from batchbridge.cython_ext.index cimport Entry, Index, hash_bytes
from batchbridge.cython_ext.slots cimport Slots
from batchbridge.cython_ext.watch cimport Watched


cdef enum:
    TAGS_MAX = 64               # an object with more is not kept


cdef enum ObjectFlag:
    OBJECT_FILE = 1             # backed by a file: checked against it when `checked_us` is too old
    OBJECT_PROVEN = 2           # in the main queue: it was worth more than something else
    OBJECT_UNLINKED = 4         # no longer found; lives as long as it is referred to
    OBJECT_PUBLIC = 8           # may answer requests with credentials
    OBJECT_STALE = 16           # softly purged: to be revalidated before, or renewed while, it is used
    OBJECT_VARIES = 32          # a file that is there in several content codings
    OBJECT_IN_SLOT = 64         # where its memory is from
    OBJECT_FRAGMENTED = 256     # its payload is in fragments, and need not be there yet


# What lookups need fills one cache line of the processor; the key begins the next one.
cdef struct CacheObject:
    Cache *cache                    # that it is or was in; NULL: none yet
    CacheObject *newer              # of its queue
    CacheObject *older
    Entry by_url                    # in `by_url`, where it is the first of its URL
    CacheObject *url_next           # further variants of the same URL
    CacheObject *url_previous
    Group *directory
    Group **tags
    uint32_t header_length          # immutable header lines, each with CRLF, without the empty last one
    uint32_t tags_length            # tags, each ended by NUL
    uint64_t payload_length
    uint64_t size_bytes             # all that it accounts for
    uint64_t checked_us
    uint64_t renewing_us            # stale: since when somebody asks for a new one; 0: nobody
    # What a file looked like.
    uint64_t device
    uint64_t inode
    int64_t modified_ns
    Watched watched
    char etag[47]                   # with its quotes
    uint8_t etag_length
    Entry by_key
    uint64_t expires_us             # 0: never
    uint64_t epoch                  # of the last purge that it is known to have outlived
    uint32_t key_length
    uint32_t references             # of the cache itself and of each send under way
    uint32_t published              # for whoever serves copies of it: 0, not published; else `withdraw` will be called
    uint32_t target_length          # the key's first bytes, up to its first NUL
    uint32_t not_modified_length    # the first header lines, which a 304 carries too
    uint32_t tag_count
    uint16_t frequency_age
    uint8_t frequency
    uint8_t codings                 # of a file: bits of those that there are, and its own times 16 (codings.Coding)
    uint16_t flags
    uint16_t status
    char bytes[1]                   # key, header, tags; then the payload, or the record of its fragments


cdef struct Queue:                  # in the order of insertion
    CacheObject *oldest
    CacheObject *newest
    uint64_t size_bytes


cdef struct Cache:
    Index by_key
    Index by_url                    # the first object of each URL
    Groups groups                   # groups.epoch grows with each purge of a tag, a prefix or everything
    Admission admission
    Slots slots                     # for objects that are small
    FragmentMemory memory           # for those that are large
    Queue newcomers
    Queue proven
    CacheObject *hand               # in `proven`: where victims are looked for next
    uint64_t now_us                 # of the last lookup
    uint64_t size_bytes_max
    uint64_t objects                # in the index, usable or not
    uint64_t objects_size_bytes     # of them
    uint64_t unusable               # of them, those that a purge has made unusable (an estimate while there are any)
    uint64_t leaving                # no longer in the index, but still referred to
    uint64_t leaving_size_bytes
    # Reclaims what died by purges, in steps: lines of by_key up to `sweep_line` were looked at in this round.
    uint64_t sweep_line
    bint sweeping
    bint sweep_again
    uint64_t hits
    uint64_t misses                 # counted by whoever looks: a request may ask for several keys
    uint64_t insertions
    uint64_t evictions
    uint64_t expired                # removed since their time was over
    uint64_t purged                 # objects that purges made unusable, or stale
    uint64_t refused                # objects too large to be kept, or with too many tags
    # Called when an object with `published` set stops being servable by itself: evicted, replaced, expired, purged by
    # URL, changed on disk. What a purge of a tag or prefix hits is withdrawn only when it is found, so whoever serves
    # copies must also compare groups.epoch with what it was when the copy was made: a new one means that the copy must
    # not be served until cache_usable has said that the object is.
    void (*withdraw)(void *context, CacheObject *object) noexcept nogil
    void *withdraw_context


# NULL: no memory.
cdef Cache *cache_new(uint64_t size_bytes_max, uint64_t seed) noexcept nogil
# All objects go. Those still referred to must have been dropped before.
cdef void cache_free(Cache *cache) noexcept nogil
# All that its size is bounded for: objects, tags and directories.
cdef uint64_t cache_size_bytes(const Cache *cache) noexcept nogil

# The object of a key, or NULL. It is not referenced: use it before the next call, or cache_hold it. It may be
# OBJECT_STALE, which is the caller's to judge.
cdef CacheObject *cache_find(Cache *cache, uint64_t hash, const char *key, uint32_t key_length,
                             uint64_t now_us) noexcept nogil
# For a batch of lookups: the first for all, then the second for all, then cache_find for each.
cdef void cache_prefetch_index(const Cache *cache, uint64_t hash) noexcept nogil
cdef void cache_prefetch_object(const Cache *cache, uint64_t hash) noexcept nogil
# Whether no purge has made an object unusable or stale that is in the index; one that is unusable is removed.
cdef bint cache_usable(Cache *cache, CacheObject *object) noexcept nogil
# A hit that was counted elsewhere (the tier that serves copies).
cdef void cache_mark_visited(CacheObject *object) noexcept nogil

# An object for this cache, with room for its parts, which the caller fills in before cache_insert; it has one
# reference, the caller's. NULL: no memory.
cdef CacheObject *object_new(Cache *cache, uint64_t hash, const char *key, uint32_t key_length, uint32_t header_length,
                             uint32_t tags_length, uint64_t payload_length) noexcept nogil
# The same, with its payload in fragments, all of them absent. slots_max: FRAGMENTS_MAX, or that of a window over a file
# that is not to be kept. The file, if any, is the object's once it was made.
cdef CacheObject *object_new_fragmented(Cache *cache, uint64_t hash, const char *key, uint32_t key_length,
                                        uint32_t header_length, uint32_t tags_length, uint64_t payload_length,
                                        uint32_t slots_max, int file) noexcept nogil
cdef char *object_header(CacheObject *object) noexcept nogil
cdef char *object_tags(CacheObject *object) noexcept nogil
cdef char *object_payload(CacheObject *object) noexcept nogil               # unless it is in fragments
cdef Fragments *object_fragments(CacheObject *object) noexcept nogil        # NULL: it is not
# Whether all of the payload is in memory, and copies from it what is.
cdef bint object_whole(CacheObject *object) noexcept nogil
cdef void object_copy_out(CacheObject *object, uint64_t position, uint64_t length, char *out) noexcept nogil
# Gives it its payload, from memory. 0, or -1: there is no memory for it.
cdef int object_copy_in(CacheObject *object, const char *payload) noexcept nogil

# Makes an object findable, in place of one with the same key; evicts what must go. 0, or -1 when it is larger than the
# cache may be, has too many tags, or memory is out: it then lives on by the caller's reference alone.
cdef int cache_insert(Cache *cache, CacheObject *object) noexcept nogil
cdef void cache_remove(Cache *cache, CacheObject *object) noexcept nogil
cdef void cache_hold(CacheObject *object) noexcept nogil
cdef void cache_drop(CacheObject *object) noexcept nogil

# Looks at so many lines of the index for objects that died; whether there may be more. Insertions do it, too.
cdef bint cache_sweep(Cache *cache, uint32_t lines) noexcept nogil

# --- for purges ---

cdef enum:
    LINE_OBJECTS_MAX = 256

# The first of the objects with this target; the others follow by `url_next`.
cdef CacheObject *cache_find_url(const Cache *cache, const char *target, uint32_t length) noexcept nogil
# The objects of one line of by_key, LINE_OBJECTS_MAX at most; how many were stored.
cdef int cache_line(const Cache *cache, uint64_t line, CacheObject **objects) noexcept nogil

# Its figures by name, for Python; read while the engine runs.
cdef dict cache_stats(const Cache *cache)
