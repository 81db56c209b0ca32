"""The cache: objects by key, bounded in bytes, purged by generations.

The rules:

- Who is evicted is judged by how often things were asked for lately (admission.pyx). What comes in is a newcomer, in a
  queue of its own that is short. The oldest newcomer moves to the main queue if something there, near where the hand
  stands, was asked for less often, which then goes; else it goes itself. So a million things that are asked for once
  displace nothing but each other.
- A purge of a tag or a directory is an epoch written down (groups.pyx). A lookup compares an object's epoch with the
  last purge's, and only where they differ looks at its groups.
- What a purge has killed is found by whoever comes across it: a lookup, the hand, or the sweep, which each insertion
  pushes on by a few lines of the index.
- An object's file is open while somebody refers to it besides the cache, and only until all of it was read.
- Keys, tags and directories count into the cache's size, so nothing that a client can choose grows beyond it.
"""
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memchr, memcmp, memcpy, memset

from batchbridge.cython_ext.admission cimport (
    FREQUENCY_MAX, SHARE_WHOLE, admission_count, admission_free, admission_prepare, admission_recall,
    admission_remember, frequency_now)
from batchbridge.cython_ext.fragments cimport (
    Fragments, fragment_memory_free, fragment_memory_prepare, fragment_memory_stats, fragments_charge_bytes,
    fragments_close_file, fragments_copy_in, fragments_copy_out, fragments_prepare, fragments_record_size_bytes,
    fragments_release, fragments_whole)
from batchbridge.cython_ext.groups cimport (
    Group, group_count, group_give_back, group_purged, group_softened, group_take_directory, group_take_tag,
    group_uncount, groups_free, groups_prepare)
from batchbridge.cython_ext.index cimport (
    Entry, hash_bytes, index_find, index_free, index_guess, index_insert, index_line, index_prefetch, index_prepare,
    index_remove)


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
    CANDIDATES_MAX = 8              # that the hand looks at for a victim
    SWEEP_LINES_AT_INSERTION = 4
    GONE = -1


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
    admission_free(&cache.admission)
    groups_free(&cache.groups)
    index_free(&cache.by_url)
    index_free(&cache.by_key)
    fragment_memory_free(&cache.memory)
    free(cache)


cdef uint64_t cache_size_bytes(const Cache *cache) noexcept nogil:
    return cache.objects_size_bytes + cache.groups.size_bytes


# --- objects ---------------------------------------------------------------------------------------------------------

cdef CacheObject *object_new(uint64_t hash, const char *key, uint32_t key_length, uint32_t header_length,
                             uint32_t tags_length, uint64_t payload_length) noexcept nogil:
    cdef uint64_t size_bytes = sizeof(CacheObject) + key_length + header_length + tags_length + payload_length
    cdef CacheObject *object
    cdef const char *end = <const char *>memchr(key, 0, key_length)
    if posix_memalign(<void **>&object, CACHE_LINE_SIZE_BYTES, size_bytes) != 0:
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
    object.flags = OBJECT_UNLINKED
    memcpy(object.bytes, key, key_length)
    return object


cdef CacheObject *object_new_fragmented(Cache *cache, uint64_t hash, const char *key, uint32_t key_length,
                                        uint32_t header_length, uint32_t tags_length, uint64_t payload_length,
                                        uint32_t slots_max, int file) noexcept nogil:
    cdef uint64_t record_size_bytes = fragments_record_size_bytes(payload_length, header_length, slots_max)
    cdef CacheObject *object
    if record_size_bytes == 0:
        return NULL
    object = object_new(hash, key, key_length, header_length, tags_length,
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
        free(object)
    elif object.references == 1 and (object.flags & (OBJECT_FRAGMENTED | OBJECT_UNLINKED)) == OBJECT_FRAGMENTED:
        fragments_close_file(object_fragments(object))


# --- lookups ---------------------------------------------------------------------------------------------------------

cdef void withdraw(Cache *cache, CacheObject *object) noexcept nogil:
    if object.published and cache.withdraw is not NULL:
        cache.withdraw(cache.withdraw_context, object)


cdef void cache_soften(Cache *cache, CacheObject *object) noexcept nogil:
    object.flags |= OBJECT_STALE
    object.renewing_us = 0
    withdraw(cache, object)


cdef bint cache_outlived_purges(Cache *cache, CacheObject *object) noexcept nogil:
    """False for an object that a purge of one of its groups has made unusable; a soft one makes it stale."""
    cdef uint64_t purged, softened
    cdef uint32_t index
    if object.epoch == cache.groups.epoch:
        return True
    purged = group_purged(object.directory)
    softened = group_softened(object.directory)
    for index in range(object.tag_count):
        purged = max(purged, object.tags[index].purged_epoch)
        softened = max(softened, object.tags[index].softened_epoch)
    if purged > object.epoch:
        return False
    if softened > object.epoch:
        cache_soften(cache, object)
    object.epoch = cache.groups.epoch
    return True


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


cdef uint8_t frequency_of(const Cache *cache, CacheObject *object) noexcept nogil:
    if object.frequency_age != cache.admission.age:
        object.frequency = frequency_now(&cache.admission, object.frequency, object.frequency_age)
        object.frequency_age = cache.admission.age
    return object.frequency


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
    if object is not NULL and not cache_outlived_purges(cache, object):
        cache_remove(cache, object)
        object = NULL
    if object is not NULL and object.expires_us and object.expires_us <= now_us:
        cache.expired += 1
        cache_remove(cache, object)
        object = NULL
    if object is NULL:
        return NULL
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


# --- queues ----------------------------------------------------------------------------------------------------------

cdef inline Queue *queue_of(Cache *cache, const CacheObject *object) noexcept nogil:
    return &cache.proven if object.flags & OBJECT_PROVEN else &cache.newcomers


cdef void queue_append(Queue *queue, CacheObject *object) noexcept nogil:
    object.newer = NULL
    object.older = queue.newest
    if queue.newest is not NULL:
        queue.newest.newer = object
    else:
        queue.oldest = object
    queue.newest = object
    queue.size_bytes += object.size_bytes


cdef void queue_take(Cache *cache, CacheObject *object) noexcept nogil:
    cdef Queue *queue = queue_of(cache, object)
    if cache.hand is object:
        cache.hand = object.newer
    if object.newer is not NULL:
        object.newer.older = object.older
    else:
        queue.newest = object.older
    if object.older is not NULL:
        object.older.newer = object.newer
    else:
        queue.oldest = object.newer
    queue.size_bytes -= object.size_bytes


cdef void prove(Cache *cache, CacheObject *object) noexcept nogil:
    queue_take(cache, object)
    object.flags |= OBJECT_PROVEN
    queue_append(&cache.proven, object)


# --- eviction --------------------------------------------------------------------------------------------------------

cdef int worth(Cache *cache, CacheObject *object) noexcept nogil:
    """How often an object was asked for lately; GONE for one that nobody can get any more."""
    if not cache_outlived_purges(cache, object) or (object.expires_us and object.expires_us <= cache.now_us):
        return GONE
    return frequency_of(cache, object)


cdef CacheObject *victim(Cache *cache, int worth_max) noexcept nogil:
    """The first of those before the hand that is worth no more than this; NULL: none of them. worth_max < GONE: the
    least of them, whatever it is worth."""
    cdef CacheObject *object = cache.hand if cache.hand is not NULL else cache.proven.oldest
    cdef CacheObject *least = NULL
    cdef int least_worth = FREQUENCY_MAX + 1, object_worth
    for _ in range(CANDIDATES_MAX):
        object_worth = worth(cache, object)
        if object_worth < least_worth:
            least = object
            least_worth = object_worth
            if object_worth <= max(worth_max, <int>GONE):
                break
        object = object.newer if object.newer is not NULL else cache.proven.oldest
    if worth_max >= GONE and least_worth > worth_max:
        cache.hand = object
        return NULL
    cache.hand = least
    return least


cdef void evict(Cache *cache, CacheObject *object) noexcept nogil:
    if cache_outlived_purges(cache, object):
        cache.evictions += 1
    cache_remove(cache, object)


cdef void make_room(Cache *cache, const CacheObject *latest) noexcept nogil:
    """Evicts until the cache is no larger than it may be; never the latest, which therefore may be too large alone."""
    cdef uint64_t newcomers_max = cache.size_bytes_max * cache.admission.newcomers_share // SHARE_WHOLE
    cdef CacheObject *candidate
    cdef CacheObject *other
    cdef bint is_over, is_contest
    while True:
        candidate = cache.newcomers.oldest
        if candidate is latest:
            candidate = NULL
        is_over = cache_size_bytes(cache) > cache.size_bytes_max
        is_contest = candidate is not NULL and cache.newcomers.size_bytes > newcomers_max
        if not is_over:
            if not is_contest:
                return
            prove(cache, candidate)
        elif is_contest and cache.proven.oldest is not NULL:
            other = victim(cache, worth(cache, candidate) - 1)
            if other is NULL:
                evict(cache, candidate)
            else:
                evict(cache, other)
                prove(cache, candidate)
        elif cache.proven.oldest is not NULL:
            evict(cache, victim(cache, GONE - 1))
        elif candidate is not NULL:
            evict(cache, candidate)
        else:
            return


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
    withdraw(cache, object)
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
