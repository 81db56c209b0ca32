# The queues of cached objects, and who goes first.
from libc.stdint cimport uint64_t

from batchbridge.cython_ext.cache cimport Cache, CacheObject, Queue


# An object comes into a queue, or leaves the one that it is in.
cdef void queue_append(Queue *queue, CacheObject *object) noexcept nogil
cdef void queue_take(Cache *cache, CacheObject *object) noexcept nogil

# Who is to be evicted next, while the cache takes so many bytes; NULL: nobody, or nobody is left. Never the latest.
# Newcomers that have proven themselves move on meanwhile.
cdef CacheObject *queues_victim(Cache *cache, uint64_t size_bytes, const CacheObject *latest) noexcept nogil
