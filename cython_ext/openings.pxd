# Openings: files that a disk must be waited for before they can be opened, or compared with what is cached; and who
# waits. Knows no table: the request of a connection that waited is derived anew.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.core cimport Connection, Engine, Opening


# Lets a connection wait until what its first request's path names can be opened at once. False: there are too many such
# paths, or no memory.
cdef bint opening_begin(Engine *engine, Connection *connection, const char *path, uint32_t length) noexcept nogil
# It waits no longer.
cdef void opening_leave(Engine *engine, Connection *connection) noexcept nogil

# Waits for the disk, for whoever has the opening; any thread may call it.
cdef void opening_carry_out(Opening *opening) noexcept nogil
# It was carried out: those who wait are looked at again in this turn. The record is gone then.
cdef void opening_over(Engine *engine, Opening *opening) noexcept nogil

# Drivers' look_up, by threads; and once a turn, what these have done.
cdef void opening_by_thread(Engine *engine, Opening *opening) noexcept nogil
cdef void openings_collect(Engine *engine) noexcept nogil

# When no connection is left: waits for what is under way. Then the records may go.
cdef void openings_end(Engine *engine) noexcept nogil
cdef void openings_free(Engine *engine) noexcept nogil
