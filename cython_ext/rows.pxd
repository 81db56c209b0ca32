# Rows of the kernel side, as the engine has them: taken, met by their connections, given back.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.core cimport Connection, Engine
from batchbridge.cython_ext.tier cimport Tier, bb_record


# Memory of user mode's own; -errno. tier_free also where that failed.
cdef int tier_prepare(Tier *tier, uint32_t connections_max) noexcept nogil
cdef void tier_free(Tier *tier) noexcept nogil

# A connection's life as the driver sees it: its cookie is in `cookies` (0: it could not be asked); it was closed.
cdef void tier_cookie_known(Tier *tier, const Connection *connection) noexcept nogil
cdef void tier_left(Tier *tier, Connection *connection) noexcept nogil

# A row's life as the kernel side tells it: its record says that a socket has taken it; its socket is gone.
cdef void row_opened(Tier *tier, const bb_record *record) noexcept nogil
cdef void row_closed(Engine *engine, Tier *tier, uint32_t row) noexcept nogil

# Tells the kernel side whether to take new connections over.
cdef void weigh_connections(Engine *engine, Tier *tier) noexcept nogil

# Connections whose cookie is known and, if it was told, their rows. has_seen_all: those without a row have none.
cdef void meet_waiting(Engine *engine, Tier *tier, bint has_seen_all) noexcept nogil
