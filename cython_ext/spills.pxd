# What of a connection's bytes did not come by the ring, or not in order: they are kept, or read from its socket.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.core cimport Connection, Engine
from batchbridge.cython_ext.tier cimport RowState, Tier, bb_record


# What was handed up for a row and cannot be handed on yet. hand_on: now that all before it was received.
cdef void keep(RowState *state, const bb_record *record, const char *data) noexcept nogil
cdef void forget_kept(RowState *state) noexcept nogil
cdef void hand_on(Engine *engine, Tier *tier, RowState *state, Connection *connection) noexcept nogil

# A FIN that is the next.
cdef void hand_on_end(Engine *engine, Connection *connection) noexcept nogil

# Takes from the socket what is there of the bytes between those received and a record's; whether it was all. Where not,
# await_gap keeps the record; from there on, what comes for the row stays in its socket.
cdef bint fill_gap(Engine *engine, Tier *tier, uint32_t row, Connection *connection, uint32_t up) noexcept nogil
cdef void await_gap(Engine *engine, Tier *tier, const bb_record *record, const char *data) noexcept nogil

# Rows whose sockets are to be read; a row stays among them for as long as anything is missing there.
cdef void mark_draining(Tier *tier, uint32_t row) noexcept nogil
cdef void undrain(Tier *tier, uint32_t row) noexcept nogil
cdef void drain_all(Engine *engine, Tier *tier) noexcept nogil

# Back-pressure of a connection that has a row.
cdef void tier_pause(Tier *tier, const Connection *connection) noexcept nogil
cdef void tier_resume(Tier *tier, const Connection *connection) noexcept nogil


cdef inline Connection *connection_of(const Engine *engine, const RowState *state) noexcept nogil:
    return &engine.connections[state.connection - 1] if state.connection else NULL
