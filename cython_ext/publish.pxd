# Publishing: requests whose bytes the kernel side recognises as a whole, so that they need not be parsed again.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.cache cimport Cache
from batchbridge.cython_ext.core cimport Connection, Engine, Request
from batchbridge.cython_ext.tier cimport Tier, bb_hit

# A request was answered from the cache in user mode: publishes it, if it may be and is not the first of its kind.
cdef void publish_second(Engine *engine, Connection *connection, const Request *request) noexcept nogil

# Withdraws the images whose objects are not found any more: after a purge.
cdef void publish_swept(Cache *cache, Tier *tier) noexcept nogil
# What was posted before has left when this returns, where the kernel side answers by itself.
cdef void publish_purged(Tier *tier) noexcept nogil
# Withdraws all: before the cache is freed.
cdef void publish_end(Tier *tier) noexcept nogil

# Serves a request that the kernel side recognised.
cdef void recognised(Engine *engine, Connection *connection, const bb_hit *hit, uint32_t length) noexcept nogil
