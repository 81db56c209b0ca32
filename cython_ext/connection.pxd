# A connection's life: opened, bytes, FIN, failure, time-outs, closed. Called by drivers; knows none of them.
from libc.stdint cimport uint16_t, uint32_t, uint64_t, uint8_t

from batchbridge.cython_ext.cache cimport CacheObject
from batchbridge.cython_ext.core cimport Connection, Engine
from batchbridge.cython_ext.parse cimport Head


# A new connection; NULL when there are connections_max already, or no memory.
cdef Connection *connection_open(Engine *engine, int fd) noexcept nogil
# Its client's address: 4 or 16 bytes in network order; the port in host order.
cdef void connection_peer(Connection *connection, int family, uint16_t port, const void *address) noexcept nogil

# Bytes that came, valid during the call.
cdef void received(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil
# The same for a whole request that is known already: its head, and the object that answers it.
cdef void received_known(Engine *engine, Connection *connection, const char *data, uint32_t length, Head *head,
                         CacheObject *object) noexcept nogil
# The client sent FIN: what it asked before is still answered.
cdef void received_end(Engine *engine, Connection *connection) noexcept nogil

# What drivers do first in tear_down: nothing is answered any more, what is owed is abandoned. The Output's memory stays
# until connection_closed, since the kernel may be reading or writing it.
cdef void connection_lost(Engine *engine, Connection *connection) noexcept nogil
# The descriptor is closed and no operation is under way: the record is free.
cdef void connection_closed(Engine *engine, Connection *connection) noexcept nogil

# Looks again at connections whose input waited, or whose answers came.
cdef void run_held(Engine *engine) noexcept nogil
# Ends what has waited too long; engine.next_deadline_us becomes the next such moment.
cdef void sweep(Engine *engine) noexcept nogil
# Draining: connections that nothing is owed on are closed.
cdef void close_idle(Engine *engine) noexcept nogil

cdef int connections_prepare(Engine *engine) noexcept nogil
cdef void connections_free(Engine *engine) noexcept nogil

# Frees a record that was closed while it was in a list, once it has been taken out of it.
cdef void recycle(Engine *engine, Connection *connection) noexcept nogil
