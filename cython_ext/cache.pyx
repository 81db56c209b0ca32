"""The cache: objects by key, bounded in bytes, purged by generations.

The rules:

- Who is evicted (queues.pyx) is judged by how often things were asked for lately (admission.pyx), newcomers apart: so a
  million things that are asked for once displace nothing but each other.
- A purge of a tag or a directory is an epoch written down (groups.pyx). A lookup compares an object's epoch with the
  last purge's, and only where they differ looks at its groups.
- What a purge has killed is found by whoever comes across it: a lookup, the hand, or the sweep, which each insertion
  pushes on by a few lines of the index.
- An object's file is open while somebody refers to it besides the cache, and only until all of it was read.
- Keys, tags and directories count into the cache's size, so nothing that a client can choose grows beyond it.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy, memset

from batchbridge.cython_ext.admission cimport (
    FREQUENCY_MAX, admission_count, admission_free, admission_prepare, admission_recall, admission_remember)
from batchbridge.cython_ext.fragments cimport (
    Fragments, fragment_memory_free, fragment_memory_prepare, fragment_memory_stats, fragments_charge_bytes,
    fragments_close_file, fragments_copy_in, fragments_copy_out, fragments_prepare, fragments_record_size_bytes,
    fragments_release, fragments_whole)
from batchbridge.cython_ext.freshness cimport cache_outlived_purges, cache_withdraw, frequency_of
from batchbridge.cython_ext.groups cimport (
    Group, group_count, group_give_back, group_purged, group_take_directory, group_take_tag, group_uncount, groups_free,
    groups_prepare)
from batchbridge.cython_ext.index cimport (
    Entry, hash_bytes, index_find, index_free, index_guess, index_insert, index_line, index_prefetch, index_prepare,
    index_remove)
from batchbridge.cython_ext.queues cimport queue_append, queue_take, queues_victim
from batchbridge.cython_ext.slots cimport SLOT_SIZE_BYTES_MAX, slot_give_back, slot_take, slots_free


cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **, size_t, size_t) noexcept


cdef extern from * nogil:
    """
    static inline void bb_prefetch_write(const void *at) { __builtin_prefetch(at, 1); }
    """
    void bb_prefetch_write(const void *) noexcept


cdef enum:
    INDEX_LINES_MAX = 67108864      # 4 GiB of addresses: beyond that many lines they become longer
    BYTES_PER_INDEX_LINE = 600      # three of the smallest objects
    INDEX_CHARGE_BYTES = 48         # of an object, for its places in two indexes
    CACHE_LINE_SIZE_BYTES = 64
    SWEEP_LINES_AT_INSERTION = 4


cdef inline CacheObject *object_of_key(const Entry *entry) noexcept nogil:
    return <CacheObject *>(<char *>entry - <size_t>&(<CacheObject *>NULL).by_key)


cdef inline CacheObject *object_of_url(const Entry *entry) noexcept nogil:
    return <CacheObject *>(<char *>entry - <size_t>&(<CacheObject *>NULL).by_url)


cdef Cache *cache_new(uint64_t size_bytes_max, uint64_t seed) noexcept nogil:
    cdef Cache *cache = <Cache *>calloc(1, sizeof(Cache))
    cdef uint64_t lines = min(size_bytes_max // BYTES_PER_INDEX_LINE, <uint64_t>INDEX_LINES_MAX)
    if cache is NULL:
        return NULL
    cache.size_bytes_max = size_bytes_max
    # Half as many addresses again, since pieces that end within a block leave room behind them. Where there are none,
    # it is empty, and fragments lie in plain memory.
    fragment_memory_prepare(&cache.memory, size_bytes_max + size_bytes_max // 2)
    if (index_prepare(&cache.by_key, lines) < 0 or index_prepare(&cache.by_url, lines) < 0
            or groups_prepare(&cache.groups, lines, seed) < 0
            or admission_prepare(&cache.admission, size_bytes_max) < 0):
        cache_free(cache)
        return NULL
    return cache


cdef void cache_free(Cache *cache) noexcept nogil:
    if cache is NULL:
        return
    while cache.newcomers.oldest is not NULL:
        cache_remove(cache, cache.newcomers.oldest)
    while cache.proven.oldest is not NULL:
        cache_remove(cache, cache.proven.oldest)
    slots_free(&cache.slots)
    admission_free(&cache.admission)
    groups_free(&cache.groups)
    index_free(&cache.by_url)
    index_free(&cache.by_key)
    fragment_memory_free(&cache.memory)
    free(cache)


cdef uint64_t cache_size_bytes(const Cache *cache) noexcept nogil:
    return cache.objects_size_bytes + cache.groups.size_bytes


# --- objects ---------------------------------------------------------------------------------------------------------

cdef CacheObject *object_new(Cache *cache, uint64_t hash, const char *key, uint32_t key_length, uint32_t header_length,
                             uint32_t tags_length, uint64_t payload_length) noexcept nogil:
    cdef uint64_t size_bytes = sizeof(CacheObject) + key_length + header_length + tags_length + payload_length
    cdef CacheObject *object
    cdef const char *end = <const char *>memchr(key, 0, key_length)
    cdef bint has_slot = size_bytes <= SLOT_SIZE_BYTES_MAX
    if has_slot:
        object = <CacheObject *>slot_take(&cache.slots, <uint32_t>size_bytes)
        if object is NULL:
            return NULL
    elif posix_memalign(<void **>&object, CACHE_LINE_SIZE_BYTES, size_bytes) != 0:
        return NULL
    memset(object, 0, sizeof(CacheObject))
    object.by_key.hash = hash
    object.key_length = key_length
    object.target_length = key_length if end is NULL else <uint32_t>(end - key)
    object.header_length = header_length
    object.tags_length = tags_length
    object.payload_length = payload_length
    object.size_bytes = size_bytes + INDEX_CHARGE_BYTES
    object.references = 1
    object.flags = OBJECT_UNLINKED | (OBJECT_IN_SLOT if has_slot else 0)
    memcpy(object.bytes, key, key_length)
    return object


cdef CacheObject *object_new_fragmented(Cache *cache, uint64_t hash, const char *key, uint32_t key_length,
                                        uint32_t header_length, uint32_t tags_length, uint64_t payload_length,
                                        uint32_t slots_max, int file) noexcept nogil:
    cdef uint64_t record_size_bytes = fragments_record_size_bytes(payload_length, header_length, slots_max)
    cdef CacheObject *object
    if record_size_bytes == 0:
        return NULL
    object = object_new(cache, hash, key, key_length, header_length, tags_length,
                        record_size_bytes + sizeof(Fragments *))     # to be aligned
    if object is NULL:
        return NULL
    object.payload_length = payload_length
    object.size_bytes += fragments_charge_bytes(payload_length, header_length)
    object.flags |= OBJECT_FRAGMENTED
    fragments_prepare(object_fragments(object), &cache.memory, payload_length, header_length, slots_max, file)
    return object


cdef char *object_header(CacheObject *object) noexcept nogil:
    return object.bytes + object.key_length


cdef char *object_tags(CacheObject *object) noexcept nogil:
    return object.bytes + object.key_length + object.header_length


cdef char *object_payload(CacheObject *object) noexcept nogil:
    return object.bytes + object.key_length + object.header_length + object.tags_length


cdef Fragments *object_fragments(CacheObject *object) noexcept nogil:
    cdef size_t at = <size_t>object_payload(object)
    if not object.flags & OBJECT_FRAGMENTED:
        return NULL
    return <Fragments *>((at + sizeof(Fragments *) - 1) & ~(sizeof(Fragments *) - 1))


cdef bint object_whole(CacheObject *object) noexcept nogil:
    return not object.flags & OBJECT_FRAGMENTED or fragments_whole(object_fragments(object))


cdef void object_copy_out(CacheObject *object, uint64_t position, uint64_t length, char *out) noexcept nogil:
    if object.flags & OBJECT_FRAGMENTED:
        fragments_copy_out(object_fragments(object), position, length, out)
    else:
        memcpy(out, object_payload(object) + position, length)


cdef int object_copy_in(CacheObject *object, const char *payload) noexcept nogil:
    if object.flags & OBJECT_FRAGMENTED:
        return fragments_copy_in(object_fragments(object), payload)
    memcpy(object_payload(object), payload, object.payload_length)
    return 0


cdef void cache_hold(CacheObject *object) noexcept nogil:
    object.references += 1


cdef void cache_drop(CacheObject *object) noexcept nogil:
    object.references -= 1
    if object.references == 0:
        if object.cache is not NULL:
            object.cache.leaving -= 1
            object.cache.leaving_size_bytes -= object.size_bytes
        if object.flags & OBJECT_FRAGMENTED:
            fragments_release(object_fragments(object))
        if object.flags & OBJECT_IN_SLOT:
            slot_give_back(object)
        else:
            free(object)
    elif object.references == 1 and (object.flags & (OBJECT_FRAGMENTED | OBJECT_UNLINKED)) == OBJECT_FRAGMENTED:
        fragments_close_file(object_fragments(object))


# --- lookups ---------------------------------------------------------------------------------------------------------

cdef bint cache_usable(Cache *cache, CacheObject *object) noexcept nogil:
    if object.flags & OBJECT_UNLINKED:
        return False
    if not cache_outlived_purges(cache, object):
        cache_remove(cache, object)
        return False
    return not object.flags & OBJECT_STALE


cdef void cache_mark_visited(CacheObject *object) noexcept nogil:
    if object.frequency < FREQUENCY_MAX:
        object.frequency += 1


cdef CacheObject *find_key(const Cache *cache, uint64_t hash, const char *key, uint32_t key_length) noexcept nogil:
    cdef Entry *entry = index_find(&cache.by_key, hash, NULL)
    cdef CacheObject *object
    while entry is not NULL:
        object = object_of_key(entry)
        if object.key_length == key_length and memcmp(object.bytes, key, key_length) == 0:
            return object
        entry = index_find(&cache.by_key, hash, entry)
    return NULL


cdef CacheObject *cache_find(Cache *cache, uint64_t hash, const char *key, uint32_t key_length,
                             uint64_t now_us) noexcept nogil:
    cdef CacheObject *object = find_key(cache, hash, key, key_length)
    cache.now_us = now_us
    if object is NULL:
        return NULL
    if object.epoch != cache.groups.epoch and not cache_outlived_purges(cache, object):
        cache_remove(cache, object)
        return NULL
    if object.expires_us and object.expires_us <= now_us:
        cache.expired += 1
        cache_remove(cache, object)
        return NULL
    if object.frequency_age != cache.admission.age:
        frequency_of(cache, object)
    cache_mark_visited(object)
    admission_count(&cache.admission, True, cache.objects)
    cache.hits += 1
    return object


cdef void cache_prefetch_index(const Cache *cache, uint64_t hash) noexcept nogil:
    index_prefetch(&cache.by_key, hash)


cdef void cache_prefetch_object(const Cache *cache, uint64_t hash) noexcept nogil:
    cdef Entry *entry = index_guess(&cache.by_key, hash)
    if entry is not NULL:
        bb_prefetch_write(entry)                                    # a hit counts
        bb_prefetch_write(<char *>entry + CACHE_LINE_SIZE_BYTES)    # the key


# --- coming and going ------------------------------------------------------------------------------------------------

cdef int join_groups(Cache *cache, CacheObject *object) noexcept nogil:
    """Takes the object's directory and tags. 0, or -1: too many, or no memory, and it is in no group."""
    cdef const char *text = object_tags(object)
    cdef const char *query = <const char *>memchr(object.bytes, c'?', object.target_length)
    cdef const char *end
    cdef uint32_t left = object.tags_length, count = 0, index
    cdef Group *tag
    while left:
        count += text[object.tags_length - left] == 0
        left -= 1
    if count > TAGS_MAX:
        return -1
    object.directory = group_take_directory(&cache.groups, object.bytes, object.target_length if query is NULL
                                            else <uint32_t>(query - object.bytes))
    if object.directory is NULL:
        return -1
    if count:
        object.tags = <Group **>calloc(count, sizeof(Group *))
        if object.tags is NULL:
            leave_groups(cache, object)
            return -1
    left = object.tags_length
    while left:
        end = <const char *>memchr(text, 0, left)
        if end is NULL:
            break
        tag = group_take_tag(&cache.groups, text, <uint32_t>(end - text))
        if tag is NULL:
            leave_groups(cache, object)
            return -1
        for index in range(object.tag_count):
            if object.tags[index] is tag:
                group_give_back(&cache.groups, tag)     # named twice
                break
        else:
            object.tags[object.tag_count] = tag
            object.tag_count += 1
        left -= <uint32_t>(end + 1 - text)
        text = end + 1
    return 0


cdef void leave_groups(Cache *cache, CacheObject *object) noexcept nogil:
    cdef uint32_t index
    for index in range(object.tag_count):
        group_give_back(&cache.groups, object.tags[index])
    group_give_back(&cache.groups, object.directory)
    free(object.tags)
    object.tags = NULL
    object.tag_count = 0
    object.directory = NULL


cdef CacheObject *cache_find_url(const Cache *cache, const char *target, uint32_t length) noexcept nogil:
    cdef uint64_t hash = hash_bytes(target, length, cache.groups.seed)
    cdef Entry *entry = index_find(&cache.by_url, hash, NULL)
    cdef CacheObject *object
    while entry is not NULL:
        object = object_of_url(entry)
        if object.target_length == length and memcmp(object.bytes, target, length) == 0:
            return object
        entry = index_find(&cache.by_url, hash, entry)
    return NULL


cdef void url_add(Cache *cache, CacheObject *object) noexcept nogil:
    cdef CacheObject *first
    object.by_url.hash = hash_bytes(object.bytes, object.target_length, cache.groups.seed)
    first = cache_find_url(cache, object.bytes, object.target_length)
    object.url_previous = first
    object.url_next = NULL
    if first is NULL:
        index_insert(&cache.by_url, &object.by_url)
        return
    object.url_next = first.url_next
    if first.url_next is not NULL:
        first.url_next.url_previous = object
    first.url_next = object


cdef void url_take(Cache *cache, CacheObject *object) noexcept nogil:
    cdef CacheObject *following = object.url_next
    if following is not NULL:
        following.url_previous = object.url_previous
    if object.url_previous is not NULL:
        object.url_previous.url_next = following
        return
    index_remove(&cache.by_url, &object.by_url)
    if following is not NULL:
        index_insert(&cache.by_url, &following.by_url)


cdef void make_room(Cache *cache, const CacheObject *latest) noexcept nogil:
    """Evicts until the cache is no larger than it may be; never the latest, which therefore may be too large alone."""
    cdef CacheObject *object = queues_victim(cache, cache_size_bytes(cache), latest)
    while object is not NULL:
        if cache_outlived_purges(cache, object):
            cache.evictions += 1
        cache_remove(cache, object)
        object = queues_victim(cache, cache_size_bytes(cache), latest)


cdef int cache_insert(Cache *cache, CacheObject *object) noexcept nogil:
    cdef CacheObject *other
    cdef uint32_t index
    if object.size_bytes > cache.size_bytes_max or join_groups(cache, object) < 0:
        cache.refused += 1
        return -1
    other = find_key(cache, object.by_key.hash, object.bytes, object.key_length)
    if other is not NULL:
        cache_remove(cache, other)
    object.cache = cache
    object.size_bytes += object.tag_count * sizeof(Group *)
    object.epoch = cache.groups.epoch
    object.frequency = admission_recall(&cache.admission, object.by_key.hash)
    object.frequency_age = cache.admission.age
    cache_mark_visited(object)
    object.flags &= ~(OBJECT_UNLINKED | OBJECT_PROVEN | OBJECT_STALE)
    object.references += 1
    group_count(&cache.groups, object.directory)
    for index in range(object.tag_count):
        group_count(&cache.groups, object.tags[index])
    index_insert(&cache.by_key, &object.by_key)
    url_add(cache, object)
    queue_append(&cache.newcomers, object)
    cache.objects += 1
    cache.objects_size_bytes += object.size_bytes
    cache.insertions += 1
    admission_count(&cache.admission, False, cache.objects)
    make_room(cache, object)
    cache_sweep(cache, SWEEP_LINES_AT_INSERTION)
    if cache_size_bytes(cache) > cache.size_bytes_max:
        cache_remove(cache, object)         # its directories and tags are too large
        cache.refused += 1
        return -1
    return 0


cdef void cache_remove(Cache *cache, CacheObject *object) noexcept nogil:
    cdef uint64_t purged
    cdef uint32_t index
    if object.flags & OBJECT_UNLINKED:
        return
    cache_withdraw(cache, object)
    admission_remember(&cache.admission, object.by_key.hash, frequency_of(cache, object))
    purged = group_purged(object.directory)
    group_uncount(&cache.groups, object.directory, object.epoch)
    for index in range(object.tag_count):
        purged = max(purged, object.tags[index].purged_epoch)
        group_uncount(&cache.groups, object.tags[index], object.epoch)
    if purged > object.epoch and cache.unusable:
        cache.unusable -= 1
    leave_groups(cache, object)
    index_remove(&cache.by_key, &object.by_key)
    url_take(cache, object)
    queue_take(cache, object)
    cache.objects -= 1
    cache.objects_size_bytes -= object.size_bytes
    cache.leaving += 1
    cache.leaving_size_bytes += object.size_bytes
    object.flags |= OBJECT_UNLINKED
    cache_drop(object)


# --- reclaiming ----------------------------------------------------------------------------------------------------

cdef int cache_line(const Cache *cache, uint64_t line, CacheObject **objects) noexcept nogil:
    cdef Entry *entries[LINE_OBJECTS_MAX]
    cdef int count = index_line(&cache.by_key, line, entries, LINE_OBJECTS_MAX), index
    for index in range(count):
        objects[index] = object_of_key(entries[index])
    return count


cdef bint cache_sweep(Cache *cache, uint32_t lines) noexcept nogil:
    cdef CacheObject *objects[LINE_OBJECTS_MAX]
    cdef int count, index
    while cache.sweeping and lines:
        count = cache_line(cache, cache.sweep_line, objects)
        for index in range(count):
            if not cache_outlived_purges(cache, objects[index]):
                cache_remove(cache, objects[index])
        cache.sweep_line += 1
        lines -= 1
        if cache.sweep_line >= cache.by_key.line_count:
            cache.sweep_line = 0
            cache.sweeping = cache.sweep_again
            cache.sweep_again = False
            if not cache.sweeping:
                cache.unusable = 0
    return cache.sweeping


# --- figures ---------------------------------------------------------------------------------------------------------

cdef dict cache_stats(const Cache *cache):
    return {
        "objects": cache.objects - min(cache.unusable, cache.objects), "size_bytes": cache_size_bytes(cache),
        "size_bytes_max": cache.size_bytes_max, "unreclaimed": cache.unusable, "groups": cache.groups.count,
        "leaving": cache.leaving, "leaving_size_bytes": cache.leaving_size_bytes, "hits": cache.hits,
        "misses": cache.misses, "insertions": cache.insertions, "evictions": cache.evictions,
        "expired": cache.expired, "purged": cache.purged, "refused": cache.refused,
        **fragment_memory_stats(&cache.memory),
    }
