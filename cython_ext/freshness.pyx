"""What has become of a cached object since it was put in: purged, softly or not, or asked for less often."""
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from batchbridge.cython_ext.admission cimport frequency_now
from batchbridge.cython_ext.cache cimport OBJECT_STALE, Cache, CacheObject
from batchbridge.cython_ext.groups cimport group_purged, group_softened


cdef void cache_withdraw(Cache *cache, CacheObject *object) noexcept nogil:
    if object.published and cache.withdraw is not NULL:
        cache.withdraw(cache.withdraw_context, object)


cdef void cache_soften(Cache *cache, CacheObject *object) noexcept nogil:
    object.flags |= OBJECT_STALE
    object.renewing_us = 0
    cache_withdraw(cache, object)


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


cdef uint8_t frequency_of(const Cache *cache, CacheObject *object) noexcept nogil:
    if object.frequency_age != cache.admission.age:
        object.frequency = frequency_now(&cache.admission, object.frequency, object.frequency_age)
        object.frequency_age = cache.admission.age
    return object.frequency
