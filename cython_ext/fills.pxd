# Fills: fragments of objects are read when they are first needed, and nobody is kept waiting for a disk but those who
# need them. Knows files and objects; how a wait is done is the driver's business (read_fragment).
from libc.stdint cimport int64_t, uint32_t, uint64_t

from batchbridge.cython_ext.cache cimport CacheObject
from batchbridge.cython_ext.core cimport Engine, Fill, Output
from batchbridge.cython_ext.fragments cimport Fragment


cdef enum FillResult:
    FILL_FAILED = -1
    FILL_WAITS = 0
    FILL_DONE = 1


# Reads what is needed of an object and can be had at once. FILL_DONE: all of it is there; FILL_WAITS: not all (a fill
# was begun, or it is too much for one turn); FILL_FAILED: the file is not what it was, and the object was removed.
cdef int object_ready(Engine *engine, CacheObject *object, uint64_t position, uint64_t length) noexcept nogil

# Lets an Output have a fragment of its object that is not there. FILL_WAITS: it is in the list of those to go on with;
# FILL_FAILED: also where memory is out.
cdef int fill_for(Engine *engine, Output *output, Fragment *fragment, uint32_t number) noexcept nogil
# It waits no longer.
cdef void fill_leave(Output *output) noexcept nogil

# Takes in what a driver reports. FILL_WAITS: there is more to be read. Otherwise whoever waits is to be taken out of
# the list (fill_next), one by one, and then the fill is over (fill_end).
cdef int fill_take(Engine *engine, Fill *fill, int64_t result) noexcept nogil
cdef Output *fill_next(Fill *fill) noexcept nogil
cdef void fill_end(Engine *engine, Fill *fill) noexcept nogil

# A record by its index.
cdef Fill *fill_at(Engine *engine, uint32_t index) noexcept nogil
cdef void fills_free(Engine *engine) noexcept nogil
