# What has become of a cached object since it was put in.
from libc.stdint cimport uint8_t

from batchbridge.cython_ext.cache cimport Cache, CacheObject


# False for an object that a purge of one of its groups has made unusable; one that a soft purge hit becomes stale.
cdef bint cache_outlived_purges(Cache *cache, CacheObject *object) noexcept nogil
cdef void cache_soften(Cache *cache, CacheObject *object) noexcept nogil
# Tells who serves copies of the object that they must go.
cdef void cache_withdraw(Cache *cache, CacheObject *object) noexcept nogil
# How often it was asked for, by now.
cdef uint8_t frequency_of(const Cache *cache, CacheObject *object) noexcept nogil
