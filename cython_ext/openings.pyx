"""Openings: files that a disk must be waited for before they can be opened, or compared with what is cached.

The rules:

- The engine's thread only opens what the kernel knows already. For the rest a thread visits the path (files.pyx), and
  whoever asks for the same path meanwhile joins those who wait. Nobody else does.
- What was found on the visit is given to nobody. Those who waited are derived anew, and may then wait on the engine's
  thread (IS_WARM): they hardly ever have to, and none goes round in circles where the kernel always says that it must.
- A connection waits with the first of its requests; what comes behind it is kept (law 1). The wait belongs to the
  connection: an opening goes on when those that wait for it are gone.
- Openings are bounded: as many as connections.
- The threads are not those that read fragments, so no opening waits behind readings.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy

from batchbridge.cython_ext.cache cimport hash_bytes
from batchbridge.cython_ext.core cimport IS_LOOKING, IS_WARM, Connection, Engine, Opening
from batchbridge.cython_ext.files cimport file_visit
from batchbridge.cython_ext.output cimport mark_held, set_deadline
from batchbridge.cython_ext.readers cimport (
    Job, Readers, readers_ask, readers_collect, readers_end, readers_free, readers_new)


cdef enum:
    BUCKETS = 256


# Of a connection: what it waits for, and its neighbours in that list, as indices + 1.
cdef struct Waiter:
    Opening *opening
    uint32_t next
    uint32_t previous


cdef struct Openings:
    Readers *readers
    Waiter *waiters                 # by the index of a connection
    Opening *buckets[BUCKETS]       # by hash of the path


cdef Openings *openings_of(Engine *engine) noexcept nogil:
    """Made when something must be waited for the first time. NULL: there is no memory."""
    cdef Openings *openings = <Openings *>engine.openings
    if openings is not NULL:
        return openings
    openings = <Openings *>calloc(1, sizeof(Openings))
    if openings is NULL:
        return NULL
    openings.readers = readers_new(engine.bell)
    # Pages that no connection ever uses are never touched, and cost nothing.
    openings.waiters = <Waiter *>calloc(engine.limits.connections_max, sizeof(Waiter))
    engine.openings = openings
    if openings.readers is NULL or openings.waiters is NULL:
        openings_free(engine)
    return <Openings *>engine.openings


# --- who waits -------------------------------------------------------------------------------------------------------

cdef void join(Engine *engine, Openings *openings, Opening *opening, Connection *connection) noexcept nogil:
    cdef Waiter *waiter = &openings.waiters[connection.index]
    waiter.opening = opening
    waiter.previous = 0
    waiter.next = opening.waiting
    if opening.waiting:
        openings.waiters[opening.waiting - 1].previous = connection.index + 1
    opening.waiting = connection.index + 1
    connection.flags |= IS_LOOKING
    set_deadline(engine, connection, engine.limits.send_timeout_us)


cdef void opening_leave(Engine *engine, Connection *connection) noexcept nogil:
    cdef Openings *openings = <Openings *>engine.openings
    cdef Waiter *waiter
    if not connection.flags & IS_LOOKING:
        return
    connection.flags &= ~IS_LOOKING
    waiter = &openings.waiters[connection.index]
    if waiter.previous:
        openings.waiters[waiter.previous - 1].next = waiter.next
    else:
        waiter.opening.waiting = waiter.next
    if waiter.next:
        openings.waiters[waiter.next - 1].previous = waiter.previous


# --- beginning and ending --------------------------------------------------------------------------------------------

cdef Opening *opening_new(Engine *engine, Openings *openings, uint64_t hash, const char *path,
                          uint32_t length) noexcept nogil:
    """NULL: there are too many, or no memory."""
    cdef Opening *opening
    if engine.openings_under_way >= engine.limits.connections_max:
        return NULL
    opening = <Opening *>malloc(sizeof(Opening) + length)
    if opening is NULL:
        return NULL
    opening.engine = engine
    opening.hash = hash
    opening.waiting = 0
    opening.length = length
    memcpy(opening.path, path, length)
    opening.next = openings.buckets[hash % BUCKETS]
    openings.buckets[hash % BUCKETS] = opening
    engine.openings_under_way += 1
    engine.counters.openings += 1
    return opening


cdef bint opening_begin(Engine *engine, Connection *connection, const char *path, uint32_t length) noexcept nogil:
    cdef Openings *openings = openings_of(engine)
    cdef uint64_t hash = hash_bytes(path, length, engine.seed)
    cdef Opening *opening
    if openings is NULL:
        return False
    opening = openings.buckets[hash % BUCKETS]
    while opening is not NULL and (opening.hash != hash or opening.length != length
                                   or memcmp(opening.path, path, length) != 0):
        opening = opening.next
    if opening is NULL:
        opening = opening_new(engine, openings, hash, path, length)
        if opening is NULL:
            return False
        engine.driver.look_up(engine, opening)
    join(engine, openings, opening, connection)
    return True


cdef void opening_carry_out(Opening *opening) noexcept nogil:
    file_visit(opening.engine, opening.path, opening.length)


cdef void opening_over(Engine *engine, Opening *opening) noexcept nogil:
    cdef Openings *openings = <Openings *>engine.openings
    cdef Opening **place = &openings.buckets[opening.hash % BUCKETS]
    cdef Connection *connection
    while opening.waiting:
        connection = &engine.connections[opening.waiting - 1]
        opening_leave(engine, connection)
        connection.flags |= IS_WARM
        mark_held(engine, connection)
    while place[0] is not opening:
        place = &place[0].next
    place[0] = opening.next
    engine.openings_under_way -= 1
    free(opening)


# --- threads ---------------------------------------------------------------------------------------------------------

cdef int64_t work(Job *job) noexcept nogil:
    opening_carry_out(<Opening *>job.owner)
    return 0


cdef void opening_by_thread(Engine *engine, Opening *opening) noexcept nogil:
    opening.job.owner = opening
    opening.job.work = work
    readers_ask((<Openings *>engine.openings).readers, &opening.job)


cdef void openings_collect(Engine *engine) noexcept nogil:
    cdef Job *job
    cdef Job *following
    if engine.openings_under_way == 0:
        return
    job = readers_collect((<Openings *>engine.openings).readers)
    while job is not NULL:
        following = job.next
        opening_over(engine, <Opening *>job.owner)
        job = following


cdef void openings_end(Engine *engine) noexcept nogil:
    if engine.openings is not NULL:
        readers_end((<Openings *>engine.openings).readers)
        openings_collect(engine)


cdef void openings_free(Engine *engine) noexcept nogil:
    cdef Openings *openings = <Openings *>engine.openings
    if openings is NULL:
        return
    free(openings.waiters)
    readers_free(openings.readers)
    free(openings)
    engine.openings = NULL
