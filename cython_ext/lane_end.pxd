# A worker's end of a lane: how answers get from handlers to the engine. None of it needs the GIL.
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.bridge cimport Lane, Slab, SlabPool


cdef struct WorkerLane:
    Lane lane
    SlabPool slabs
    uint32_t response_size_bytes_max
    uint32_t unshown                # completions written and not shown yet
    uint32_t show_after             # of the batch that is being answered: shown in groups of so many; 0: all at its end


# What keeps a lane's memory mapped.
cdef class LaneEnd:
    cdef WorkerLane worker
    cdef object memories


# Makes room for an answer's text (header lines with their empty last one, then the body, then tags, each ended by NUL)
# and returns it; fill it, then call lane_answer_written. NULL: there is no memory left, so the item has been answered
# 503.
# No length may be larger than the limits that the caller has checked.
cdef char *lane_answer_text(WorkerLane *worker, Slab *slab, uint32_t item, int status, uint32_t headers_length,
                            uint64_t body_length, uint32_t tags_length, uint32_t ttl_s, uint32_t flags) noexcept nogil
cdef void lane_answer_written(WorkerLane *worker) noexcept nogil

# Answers an item by a status, with the engine's text for it.
cdef void lane_answer_status(WorkerLane *worker, Slab *slab, uint32_t item, int status) noexcept nogil

# Says that the worker is done with a batch of `route`, and free. No item of it may be left unanswered.
cdef void lane_end_batch(WorkerLane *worker, uint32_t slab, uint32_t route) noexcept nogil
