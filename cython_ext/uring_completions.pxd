# What the io_uring driver's completions tell; receiving; and operations of no connection.
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.core cimport Connection, Engine, Fill
from batchbridge.cython_ext.tier cimport Tier
from batchbridge.cython_ext.uring_operations cimport Uring


# Takes a turn's completions, and says in `more_input` whether there is more to look at already.
cdef void reap(Engine *engine, Uring *driver) noexcept nogil

# Asks the connections that may have been reset untold whether they are alive, where it is time (probe_us).
cdef void probe_suspects(Engine *engine, Uring *driver) noexcept nogil

# Each stays armed. arm_files: as soon as there are files to watch; until then it does nothing.
cdef void arm_bell(Uring *driver, int bell) noexcept nogil
cdef void arm_records(Uring *driver, const Tier *tier) noexcept nogil
cdef void arm_files(Engine *engine, Uring *driver) noexcept nogil

# The driver's (core.Driver).
cdef void driver_pause(Engine *engine, Connection *connection) noexcept nogil
cdef void driver_resume(Engine *engine, Connection *connection) noexcept nogil
cdef void driver_read_fragment(Engine *engine, Fill *fill) noexcept nogil
cdef void driver_write_log(Engine *engine, const char *text, uint32_t length) noexcept nogil
