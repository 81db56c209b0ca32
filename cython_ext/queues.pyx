"""The queues of cached objects, and who goes first.

What comes in is a newcomer, in a queue of its own that is short. The oldest newcomer moves to the main queue if
something there, near where the hand stands, was asked for less often, which then goes; else it goes itself.
"""
from libc.stdint cimport uint64_t

from batchbridge.cython_ext.admission cimport FREQUENCY_MAX, SHARE_WHOLE
from batchbridge.cython_ext.cache cimport OBJECT_PROVEN, Cache, CacheObject, Queue
from batchbridge.cython_ext.freshness cimport cache_outlived_purges, frequency_of


cdef enum:
    CANDIDATES_MAX = 8              # that the hand looks at for a victim
    GONE = -1


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


cdef CacheObject *queues_victim(Cache *cache, uint64_t size_bytes, const CacheObject *latest) noexcept nogil:
    cdef uint64_t newcomers_max = cache.size_bytes_max * cache.admission.newcomers_share // SHARE_WHOLE
    cdef bint is_over = size_bytes > cache.size_bytes_max
    cdef CacheObject *candidate
    cdef CacheObject *other
    cdef bint is_contest
    while True:
        candidate = cache.newcomers.oldest
        if candidate is latest:
            candidate = NULL
        is_contest = candidate is not NULL and cache.newcomers.size_bytes > newcomers_max
        if not is_over:
            if not is_contest:
                return NULL
            prove(cache, candidate)
        elif is_contest and cache.proven.oldest is not NULL:
            other = victim(cache, worth(cache, candidate) - 1)
            if other is NULL:
                return candidate
            prove(cache, candidate)
            return other
        elif cache.proven.oldest is not NULL:
            return victim(cache, GONE - 1)
        else:
            return candidate
