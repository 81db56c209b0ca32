# Answers that the kernel side gives by itself: what it sends, when it may, and what it tells of it afterwards. All of
# these are only for a Tier that can_answer.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.cache cimport CacheObject
from batchbridge.cython_ext.core cimport Connection, Engine
from batchbridge.cython_ext.tier cimport Tier, bb_hit


# Memory of user mode's own; -errno. answer_free also where that failed; the ring of entries is closed by then.
cdef int answer_prepare(Tier *tier) noexcept nogil
cdef void answer_free(Tier *tier) noexcept nogil

# From now on the kernel side answers, the cache tells of what must not be sent any more, and what could not be sent
# rings the engine's bell. 0 or -errno.
cdef int answer_begin(Engine *engine, Tier *tier) noexcept nogil
# It does not any more, and all that it has posted has left.
cdef void answer_end(Tier *tier) noexcept nogil

# At the beginning of a turn: takes over what could not be sent; when the engine drains, ends it.
cdef void answer_turn(Engine *engine, Tier *tier) noexcept nogil
# Before this thread sleeps: False, there is something to be done first.
cdef bint answer_sleeps(Tier *tier) noexcept nogil

# --- connections ---

# Before anything that was handed up of a row's connection is looked at: what was posted before has left then (law 1).
cdef void answer_settle(Engine *engine, Tier *tier, uint32_t row) noexcept nogil
# Before the connection's bytes leave, and behind that: how many it will have been sent; that nothing is owed any more.
cdef void answer_promise(Tier *tier, const Connection *connection) noexcept nogil
cdef void answer_done(Tier *tier, const Connection *connection) noexcept nogil
# Before its descriptor is closed: nothing that names it is or will be posted (law 4).
cdef void answer_part(Tier *tier, const Connection *connection) noexcept nogil
# Whether the kernel side has answered on an idle connection since its deadline was set, which is set anew then.
cdef bint answer_keeps_alive(Engine *engine, Connection *connection) noexcept nogil

# --- images ---

# An image was published for an object, or is withdrawn.
cdef void answer_join(Tier *tier, uint32_t image, CacheObject *object) noexcept nogil
cdef void answer_leave(Tier *tier, uint32_t image, CacheObject *object) noexcept nogil
# User mode has answered an image from its object: lets the kernel side do it next time.
cdef void answer_render(Engine *engine, Tier *tier, uint32_t image) noexcept nogil
# Tells the cache of the hits since the last time; whether there were any.
cdef bint answer_count(Tier *tier, uint32_t image, CacheObject *object) noexcept nogil
# Files were changed: those that can no longer be trusted are not sent by the kernel side.
cdef void answer_distrust(Engine *engine, Tier *tier) noexcept nogil
# All that was posted before a purge has left when this returns (law 3).
cdef void answer_purged(Tier *tier) noexcept nogil

# Whether the next record's line would find no room in the access log now, and it is worth waiting for.
cdef bint answer_waits(const Engine *engine, Tier *tier) noexcept nogil
# Writes the access log's line of an answer.
cdef void answer_log(Engine *engine, const Tier *tier, uint32_t row, const bb_hit *hit) noexcept nogil
