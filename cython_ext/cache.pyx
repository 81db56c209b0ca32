"""The cache: objects by key, bounded in bytes. Evicted by SIEVE: a hand spares what was hit since it last passed."""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, memset


cdef enum:
    BUCKETS = 65536


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


cdef Cache *cache_new(uint64_t size_bytes_max) noexcept nogil:
    cdef Cache *cache = <Cache *>calloc(1, sizeof(Cache))
    if cache is NULL:
        return NULL
    cache.buckets = <CacheObject **>calloc(BUCKETS, sizeof(CacheObject *))
    if cache.buckets is NULL:
        free(cache)
        return NULL
    cache.bucket_count = BUCKETS
    cache.size_bytes_max = size_bytes_max
    return cache


cdef void cache_free(Cache *cache) noexcept nogil:
    if cache is NULL:
        return
    while cache.oldest is not NULL:
        cache_remove(cache, cache.oldest)
    free(cache.buckets)
    free(cache)


cdef CacheObject *cache_find(Cache *cache, uint64_t hash, const char *key, uint32_t key_length,
                             uint64_t now_us) noexcept nogil:
    cdef CacheObject *object = cache.buckets[hash & (cache.bucket_count - 1)]
    while object is not NULL:
        if object.hash == hash and object.key_length == key_length and memcmp(object.bytes, key, key_length) == 0:
            if object.expires_us and object.expires_us <= now_us:
                cache_remove(cache, object)
                break
            object.flags |= OBJECT_VISITED
            cache.hits += 1
            return object
        object = object.bucket_next
    cache.misses += 1
    return NULL


cdef CacheObject *object_new(uint64_t hash, const char *key, uint32_t key_length, uint32_t header_length,
                             uint32_t tags_length, uint64_t payload_length) noexcept nogil:
    cdef uint64_t size_bytes = sizeof(CacheObject) + key_length + header_length + tags_length + payload_length
    cdef CacheObject *object = <CacheObject *>malloc(size_bytes)
    if object is NULL:
        return NULL
    memset(object, 0, sizeof(CacheObject))
    object.hash = hash
    object.key_length = key_length
    object.header_length = header_length
    object.tags_length = tags_length
    object.payload_length = payload_length
    object.size_bytes = size_bytes
    object.references = 1
    object.flags = OBJECT_UNLINKED
    memcpy(object.bytes, key, key_length)
    return object


cdef char *object_header(CacheObject *object) noexcept nogil:
    return object.bytes + object.key_length


cdef char *object_tags(CacheObject *object) noexcept nogil:
    return object.bytes + object.key_length + object.header_length


cdef char *object_payload(CacheObject *object) noexcept nogil:
    return object.bytes + object.key_length + object.header_length + object.tags_length


cdef CacheObject *victim(Cache *cache) noexcept nogil:
    """SIEVE: from where the hand stands towards the newest, the first object that was not hit since it last passed."""
    cdef CacheObject *object = cache.hand if cache.hand is not NULL else cache.oldest
    while object.flags & OBJECT_VISITED:
        object.flags &= ~OBJECT_VISITED
        object = object.newer if object.newer is not NULL else cache.oldest
    return object


cdef int cache_insert(Cache *cache, CacheObject *object) noexcept nogil:
    cdef CacheObject **bucket = &cache.buckets[object.hash & (cache.bucket_count - 1)]
    cdef CacheObject *other = bucket[0]
    if object.size_bytes > cache.size_bytes_max:
        cache.refused += 1
        return -1
    while other is not NULL:
        if other.hash == object.hash and other.key_length == object.key_length and memcmp(
                other.bytes, object.bytes, object.key_length) == 0:
            cache_remove(cache, other)
            break
        other = other.bucket_next
    while cache.size_bytes + object.size_bytes > cache.size_bytes_max:
        other = victim(cache)
        cache.hand = other.newer
        cache_remove(cache, other)
        cache.evictions += 1
    object.flags &= ~OBJECT_UNLINKED
    object.references += 1
    object.bucket_next = bucket[0]
    bucket[0] = object
    object.newer = NULL
    object.older = cache.newest
    if cache.newest is not NULL:
        cache.newest.newer = object
    else:
        cache.oldest = object
    cache.newest = object
    cache.size_bytes += object.size_bytes
    cache.objects += 1
    return 0


cdef void cache_remove(Cache *cache, CacheObject *object) noexcept nogil:
    cdef CacheObject **link
    if object.flags & OBJECT_UNLINKED:
        return
    link = &cache.buckets[object.hash & (cache.bucket_count - 1)]
    while link[0] is not object:
        link = &link[0].bucket_next
    link[0] = object.bucket_next
    if object.newer is not NULL:
        object.newer.older = object.older
    else:
        cache.newest = object.older
    if object.older is not NULL:
        object.older.newer = object.newer
    else:
        cache.oldest = object.newer
    if cache.hand is object:
        cache.hand = object.newer
    cache.size_bytes -= object.size_bytes
    cache.objects -= 1
    object.flags |= OBJECT_UNLINKED
    cache_drop(object)


cdef void cache_hold(CacheObject *object) noexcept nogil:
    object.references += 1


cdef void cache_drop(CacheObject *object) noexcept nogil:
    object.references -= 1
    if object.references == 0:
        free(object)


cdef bint has_tag(CacheObject *object, const char *tag, uint32_t length) noexcept nogil:
    cdef const char *tags = object_tags(object)
    cdef uint32_t at = 0, end
    while at < object.tags_length:
        end = at
        while tags[end]:
            end += 1
        if end - at == length and memcmp(tags + at, tag, length) == 0:
            return True
        at = end + 1
    return False


cdef uint64_t cache_purge(Cache *cache, int kind, const char *text, uint32_t length) noexcept nogil:
    cdef CacheObject *object = cache.oldest
    cdef CacheObject *following
    cdef uint64_t gone = 0
    cdef bint matches
    while object is not NULL:
        following = object.newer
        if kind == PURGE_URL:
            # A key is a path, or a target, NUL and what else tells variants apart: all of them go.
            matches = (object.key_length >= length and memcmp(object.bytes, text, length) == 0
                       and (object.key_length == length or object.bytes[length] == 0))
        elif kind == PURGE_PREFIX:
            matches = object.key_length >= length and memcmp(object.bytes, text, length) == 0
        elif kind == PURGE_TAG:
            matches = has_tag(object, text, length)
        else:
            matches = True
        if matches:
            cache_remove(cache, object)
            gone += 1
        object = following
    cache.purged += gone
    return gone
