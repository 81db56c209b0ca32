"""Fills: fragments of objects are read when they are first needed.

The rules:

- What the page cache has is read on the spot, a bounded amount in a turn. For the rest the driver waits: io_uring's
  ring, or threads.
- A fill belongs to its object, which it refers to. Whoever needs the fragment meanwhile joins those who wait.
- A file that was changed while it was read makes no object: what was read of it is not given to anybody anew. Of a file
  too large to be kept, each gets what it contains when it is read.
- Fills are bounded: as many as connections.
"""
from libc.errno cimport EAGAIN, EINTR
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free

from batchbridge.cython_ext.cache cimport CacheObject, cache_drop, cache_hold, cache_remove, object_fragments
from batchbridge.cython_ext.core cimport Engine, Fill, Output
from batchbridge.cython_ext.files cimport file_is_same
from batchbridge.cython_ext.fragments cimport (
    FRAGMENT_PRESENT, FRAGMENT_READING, Fragment, Fragments, Reading, fragment_begin, fragment_failed,
    fragment_filled, fragment_of, fragment_pin, fragment_read_now, fragment_unpin, fragments_present)


cdef enum:
    READ_AT_ONCE_MAX = 16           # fragments in a turn, of one request


# --- records ---------------------------------------------------------------------------------------------------------

cdef Fill *fill_at(Engine *engine, uint32_t index) noexcept nogil:
    return engine.fills[index]


cdef Fill *fill_new(Engine *engine) noexcept nogil:
    """NULL: there are too many, or no memory."""
    cdef Fill *fill = engine.free_fills
    if fill is not NULL:
        engine.free_fills = fill.next
        return fill
    if engine.fills is NULL:
        engine.fills = <Fill **>calloc(engine.limits.connections_max, sizeof(Fill *))
    if engine.fills is NULL or engine.fills_made == engine.limits.connections_max:
        return NULL
    fill = <Fill *>calloc(1, sizeof(Fill))
    if fill is not NULL:
        fill.index = engine.fills_made
        engine.fills[fill.index] = fill
        engine.fills_made += 1
    return fill


cdef void fills_free(Engine *engine) noexcept nogil:
    cdef uint32_t index
    for index in range(engine.fills_made):
        free(engine.fills[index])
    free(engine.fills)
    engine.fills = NULL
    engine.fills_made = 0
    engine.free_fills = NULL


# --- who waits -------------------------------------------------------------------------------------------------------

cdef void join(Fill *fill, Output *output) noexcept nogil:
    output.fill = fill
    output.previous_waiting = NULL
    output.next_waiting = fill.waiting
    if fill.waiting is not NULL:
        fill.waiting.previous_waiting = output
    fill.waiting = output


cdef void fill_leave(Output *output) noexcept nogil:
    if output.fill is NULL:
        return
    if output.previous_waiting is not NULL:
        output.previous_waiting.next_waiting = output.next_waiting
    else:
        output.fill.waiting = output.next_waiting
    if output.next_waiting is not NULL:
        output.next_waiting.previous_waiting = output.previous_waiting
    output.fill = NULL


cdef Output *fill_next(Fill *fill) noexcept nogil:
    cdef Output *output = fill.waiting
    if output is not NULL:
        fill_leave(output)
    return output


# --- beginning -------------------------------------------------------------------------------------------------------

cdef bint is_kept(CacheObject *object) noexcept nogil:
    """Whether what is read is for others too; else it is a window over a file, for one response."""
    cdef const Fragments *fragments = object_fragments(object)
    return fragments.slot_count == fragments.count


cdef int fill_begin(Engine *engine, CacheObject *object, Fragment *fragment, uint32_t number) noexcept nogil:
    """Reads a fragment, at once or by a fill (`fragment.reader`)."""
    cdef Fragments *fragments = object_fragments(object)
    cdef Reading reading
    cdef Fill *fill
    cdef int result
    if fragments.file < 0 or fragment_begin(fragments, fragment, number, &reading) < 0:
        return FILL_FAILED
    result = fragment_read_now(fragments, fragment, &reading)
    if result:
        return result
    fill = fill_new(engine)
    if fill is NULL:
        fragment_failed(fragments, fragment)
        return FILL_FAILED
    cache_hold(object)
    fill.object = object
    fill.fragment = fragment
    fill.reading = reading
    fill.done = 0
    fill.file = fragments.file
    fill.waiting = NULL
    fragment.reader = fill
    fragment_pin(fragments, fragment)
    fragments.memory.reads_later += 1
    engine.fills_under_way += 1
    engine.driver.read_fragment(engine, fill)
    return FILL_WAITS


cdef int object_ready(Engine *engine, CacheObject *object, uint64_t position, uint64_t length) noexcept nogil:
    cdef Fragments *fragments = object_fragments(object)
    cdef Fragment *fragment
    cdef uint32_t number, offset, piece, reads = 0
    cdef uint64_t at = position, end = position + length
    cdef int result = FILL_DONE
    if fragments is NULL or fragments_present(fragments, position, length):
        return FILL_DONE
    if not is_kept(object):
        return FILL_WAITS
    while at < end and reads < READ_AT_ONCE_MAX:
        fragment = fragment_of(fragments, at, &number, &offset, &piece)
        at += piece
        if fragment.state == FRAGMENT_PRESENT:
            continue
        # What is being read needs time anyway: the rest is read when it is needed.
        result = FILL_WAITS if fragment.state == FRAGMENT_READING else fill_begin(engine, object, fragment, number)
        reads += 1
        if result != FILL_DONE:
            break
    if result == FILL_FAILED or (fragments.file >= 0 and not file_is_same(object)):
        cache_remove(engine.cache, object)
    if result == FILL_DONE and not fragments_present(fragments, position, length):
        return FILL_WAITS
    return result


cdef int fill_for(Engine *engine, Output *output, Fragment *fragment, uint32_t number) noexcept nogil:
    cdef CacheObject *object = output.answer.object
    cdef int result = FILL_WAITS
    if fragment.state != FRAGMENT_READING:
        result = fill_begin(engine, object, fragment, number)
    if result == FILL_WAITS:
        join(<Fill *>fragment.reader, output)
    elif result == FILL_FAILED and is_kept(object):
        cache_remove(engine.cache, object)
    return result


# --- ending ----------------------------------------------------------------------------------------------------------

cdef int fill_take(Engine *engine, Fill *fill, int64_t result) noexcept nogil:
    cdef Fragments *fragments = object_fragments(fill.object)
    if result > 0:
        fill.done += <uint32_t>result
    if (result > 0 and fill.done < fill.reading.length) or result == -EINTR or result == -EAGAIN:
        engine.driver.read_fragment(engine, fill)
        return FILL_WAITS
    fragment_unpin(fragments, fill.fragment)
    if result <= 0 or (is_kept(fill.object) and not file_is_same(fill.object)):
        fragment_failed(fragments, fill.fragment)
        if is_kept(fill.object):
            cache_remove(engine.cache, fill.object)
        return FILL_FAILED
    fragment_filled(fragments, fill.fragment)
    return FILL_DONE


cdef void fill_end(Engine *engine, Fill *fill) noexcept nogil:
    engine.fills_under_way -= 1
    cache_drop(fill.object)
    fill.object = NULL
    fill.next = engine.free_fills
    engine.free_fills = fill
