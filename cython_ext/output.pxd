# Outputs: what a connection sends piece by piece, since it is large or the client reads slowly; and answers, which hold
# what is on its way out.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from batchbridge.cython_ext.core cimport Answer, Connection, Engine, Fill, Output


# --- answers ---------------------------------------------------------------------------------------------------------

cdef Answer *answer_new(Engine *engine, int kind) noexcept nogil    # one reference; NULL: no memory
cdef Answer *answer_at(Engine *engine, uint32_t index) noexcept nogil
cdef void answer_hold(Answer *answer) noexcept nogil
cdef void answer_drop(Engine *engine, Answer *answer) noexcept nogil

# --- Outputs ---------------------------------------------------------------------------------------------------------

# An Output that begins with `first` and what was posted in this loop, with `room` for more. NULL: no memory, and the
# connection is lost.
cdef Output *output_new(Engine *engine, Connection *connection, const char *first, uint32_t first_length,
                        uint32_t room) noexcept nogil
# Lets the next piece leave, or ends the Output.
cdef void output_step(Engine *engine, Connection *connection) noexcept nogil
cdef void output_free(Engine *engine, Connection *connection) noexcept nogil

# --- what drivers report ---------------------------------------------------------------------------------------------

# Of send_reported: bytes sent or -errno.
cdef void sent(Engine *engine, Connection *connection, int64_t result) noexcept nogil
# Of a reading of a fragment: bytes read or -errno.
cdef void fragment_read(Engine *engine, Fill *fill, int64_t result) noexcept nogil
# The kernel has let go of bytes that were sent without a copy: of the fragment at `place`, where it is an object.
cdef void answer_let_go(Engine *engine, Answer *answer, uint32_t place) noexcept nogil

# --- marks -----------------------------------------------------------------------------------------------------------

# The connection is flushed at the loop's end.
cdef void mark_dirty(Engine *engine, Connection *connection) noexcept nogil
# The connection's input is looked at again, in this loop or the next.
cdef void mark_held(Engine *engine, Connection *connection) noexcept nogil
# The connection ends (tear_down) unless something happens before.
cdef void set_deadline(Engine *engine, Connection *connection, uint64_t timeout_us) noexcept nogil
