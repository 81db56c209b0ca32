"""A worker's end of a lane: how answers get from handlers to the engine.

The rules:

- Each item is completed exactly once: its handler's answer, or a status.
- There is always room for a completion: the engine gives a worker no more items than their ring has entries.
- Where slow clients hold the lane's arena, answers go to the heap: waiting would stop every other request.
"""
cimport cython
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.bridge cimport (
    COMPLETION_BATCH_END, COMPLETION_HEAP, Completion, Slab, lane_completion, lane_heap_response, lane_response,
    lane_show)


cdef extern from "<unistd.h>" nogil:
    ssize_t write(int, const void *, size_t) noexcept


@cython.no_gc_clear
cdef class LaneEnd:
    """What keeps a lane's memory mapped.

    The collector must not take its memory away while a batch in the same cycle still refers to it (no_gc_clear).
    """


cdef Completion *completion_of(WorkerLane *worker, uint32_t slab, uint32_t item, int status) noexcept nogil:
    cdef Completion *completion = lane_completion(&worker.lane)
    completion.slab = slab
    completion.item = item
    completion.status = <uint16_t>status
    completion.flags = 0
    completion.offset = 0
    completion.headers_length = 0
    completion.body_length = 0
    completion.ttl_s = 0
    completion.tags_length = 0
    return completion


cdef char *lane_answer_text(WorkerLane *worker, Slab *slab, uint32_t item, int status, uint32_t headers_length,
                            uint64_t body_length, uint32_t tags_length, uint32_t ttl_s, uint32_t flags) noexcept nogil:
    cdef uint32_t offset = 0
    cdef uint32_t size_bytes = <uint32_t>(headers_length + body_length + tags_length)
    cdef char *heap = NULL
    cdef char *text = lane_response(&worker.lane, size_bytes, &offset)
    cdef Completion *completion
    if text is NULL:
        heap = lane_heap_response(&worker.lane, size_bytes)
        text = heap
    if text is NULL:
        lane_answer_status(worker, slab, item, 503)
        return NULL
    completion = completion_of(worker, slab.index, item, status)
    completion.flags = <uint16_t>(flags | COMPLETION_HEAP if heap is not NULL else flags)
    completion.offset = offset
    completion.heap = heap
    completion.headers_length = headers_length
    completion.body_length = <uint32_t>body_length
    completion.ttl_s = ttl_s
    completion.tags_length = tags_length
    return text


cdef void lane_answer_written(WorkerLane *worker) noexcept nogil:
    worker.unshown += 1
    if worker.show_after and worker.unshown >= worker.show_after:
        show(worker)


cdef void lane_answer_status(WorkerLane *worker, Slab *slab, uint32_t item, int status) noexcept nogil:
    completion_of(worker, slab.index, item, status)
    lane_answer_written(worker)


cdef void lane_end_batch(WorkerLane *worker, uint32_t slab, uint32_t route) noexcept nogil:
    completion_of(worker, slab, route, 0).flags = COMPLETION_BATCH_END
    show(worker)


cdef void show(WorkerLane *worker) noexcept nogil:
    cdef uint64_t one = 1
    worker.unshown = 0
    if lane_show(&worker.lane):
        write(worker.lane.engine_bell, &one, 8)
