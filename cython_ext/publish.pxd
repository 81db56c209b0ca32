# Publishing: requests whose bytes the kernel side recognises as a whole, so that they need not be parsed again.
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.cache cimport Cache
from batchbridge.cython_ext.core cimport Connection, Engine, Request
from batchbridge.cython_ext.tier cimport Tier, bb_hit

# Divides the places for images; before the kernel side sees any.
cdef void publish_prepare(Tier *tier) noexcept nogil

# As the kernel side's: of `length` bytes in words, with zeros behind them up to a multiple of 32.
cdef uint64_t hash_of(const uint64_t *words, uint32_t length) noexcept nogil

# A request was answered from the cache in user mode: publishes it, if it may be and is not the first of its kind.
cdef void publish_second(Engine *engine, Connection *connection, const Request *request) noexcept nogil

# After a purge: withdraws the images whose objects are not found any more. Where the kernel side answers by itself,
# what it had posted has left when this returns.
cdef void publish_purged(Cache *cache, Tier *tier) noexcept nogil
# Withdraws all: before the cache is freed.
cdef void publish_end(Tier *tier) noexcept nogil

# Serves a request that the kernel side recognised.
cdef void recognised(Engine *engine, Connection *connection, const bb_hit *hit, uint32_t length) noexcept nogil
