# The cache: objects by key, bounded in bytes. Knows no ring, no socket, no HTTP beyond an object's three parts.
#
# One cache belongs to one engine thread, which alone calls these functions; Python purges through the engine's mailbox.
# (Simple still: plain memory, a purge looks at every object. The seams are those of the whole cache.)
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef enum ObjectFlag:
    OBJECT_FILE = 1             # backed by a file: checked against it when `checked_us` is too old
    OBJECT_VISITED = 2          # hit since the hand last passed
    OBJECT_PUBLIC = 8           # may answer requests with credentials
    OBJECT_UNLINKED = 4         # no longer found; lives as long as it is referred to


cdef struct CacheObject:
    CacheObject *bucket_next
    CacheObject *newer              # order of insertion
    CacheObject *older
    uint64_t hash
    uint32_t key_length
    uint32_t references             # of the cache itself and of each send under way
    uint16_t flags
    uint16_t status
    uint32_t header_length          # immutable header lines, each with CRLF, without the empty last one
    uint32_t not_modified_length    # the first of them, which a 304 carries too
    uint32_t tags_length            # tags, each ended by NUL
    uint64_t payload_length
    uint64_t size_bytes             # all that it accounts for
    uint64_t expires_us             # 0: never
    uint64_t checked_us
    # What a file looked like.
    uint64_t device
    uint64_t inode
    int64_t modified_ns
    int64_t modified_s              # seconds, as Last-Modified says
    uint8_t etag_length
    char etag[47]                   # with its quotes
    char bytes[1]                   # key, header, tags, payload


cdef struct Cache:
    CacheObject **buckets
    uint32_t bucket_count           # a power of two
    uint64_t size_bytes
    uint64_t size_bytes_max
    uint64_t objects
    CacheObject *newest
    CacheObject *oldest
    CacheObject *hand
    uint64_t hits
    uint64_t misses
    uint64_t evictions
    uint64_t purged
    uint64_t refused                # objects too large to be kept


cdef uint64_t hash_bytes(const char *data, uint32_t length, uint64_t seed) noexcept nogil

cdef Cache *cache_new(uint64_t size_bytes_max) noexcept nogil       # NULL: no memory
cdef void cache_free(Cache *cache) noexcept nogil

# The object of a key, or NULL. It is not referenced: use it before the next call, or cache_hold it.
cdef CacheObject *cache_find(Cache *cache, uint64_t hash, const char *key, uint32_t key_length,
                             uint64_t now_us) noexcept nogil

# An object with room for its parts, which the caller fills in before cache_insert; it has one reference, the caller's.
# NULL: no memory.
cdef CacheObject *object_new(uint64_t hash, const char *key, uint32_t key_length, uint32_t header_length,
                             uint32_t tags_length, uint64_t payload_length) noexcept nogil
cdef char *object_header(CacheObject *object) noexcept nogil
cdef char *object_tags(CacheObject *object) noexcept nogil
cdef char *object_payload(CacheObject *object) noexcept nogil

# Makes an object findable, in place of one with the same key; evicts what must go. 0, or -1 when it is larger than the
# cache may be: it then lives on by the caller's reference alone.
cdef int cache_insert(Cache *cache, CacheObject *object) noexcept nogil
cdef void cache_remove(Cache *cache, CacheObject *object) noexcept nogil
cdef void cache_hold(CacheObject *object) noexcept nogil
cdef void cache_drop(CacheObject *object) noexcept nogil

cdef enum PurgeKind:
    PURGE_URL = 0
    PURGE_PREFIX
    PURGE_TAG
    PURGE_ALL

# Purges by key, key prefix or tag, or everything; how many objects went.
cdef uint64_t cache_purge(Cache *cache, int kind, const char *text, uint32_t length) noexcept nogil
