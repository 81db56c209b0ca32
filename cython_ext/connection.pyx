"""A connection's life.

The rules:

- Bytes are looked at where they were received, and copied only when they must wait (Input).
- Whatever waits has one who will look at it again: an unfinished request, the next bytes; a full scratch, the next
  loop; an Output, requests in user mode or an opening, their end (mark_held). Nobody polls.
- Deadlines are per connection and checked by a sweep over all of them, at the earliest one's time: a request costs one
  store, and an idle server no wake-up before a client's time is over.
"""
from libc.stdint cimport uint8_t, uint16_t, uint32_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcpy, memmove, memset

from batchbridge.cython_ext.answer cimport answer_keeps_alive
from batchbridge.cython_ext.cache cimport CacheObject, cache_drop
from batchbridge.cython_ext.core cimport (
    CONNECTION_CLOSES, CONNECTION_FREE, CONNECTION_LINGERS, CONNECTION_OPEN, IS_DIRTY, IS_EOF, IS_FINAL, IS_HELD,
    IS_LAST, IS_LOOKING, IS_PAUSED, IS_REFUSED, IS_WARM, IS_WRITING, NO_ROUTE, OUTCOME_CLIENT_GONE, OUTCOME_ERROR_5XX,
    OUTCOME_HIT, Connection, Engine, Input, Request)
from batchbridge.cython_ext.deferred cimport abandon_deferred
from batchbridge.cython_ext.machine cimport resume_machine, run_machine
from batchbridge.cython_ext.moments cimport earliest
from batchbridge.cython_ext.openings cimport opening_leave
from batchbridge.cython_ext.output cimport mark_dirty, mark_held, output_free, set_deadline
from batchbridge.cython_ext.parse cimport Head
from batchbridge.cython_ext.resume cimport answer_owed, respond_status
from batchbridge.cython_ext.send cimport can_respond
from batchbridge.cython_ext.states cimport (
    AWAIT_BYTES, AWAIT_RESPONSE, AWAIT_TURN, DERIVE_CACHED_RESPONSE, DERIVE_REQUEST, EVENT_HIT, FINISHED)


cdef enum:
    INPUT_SIZE_BYTES_MIN = 4096
    SWEEP_INTERVAL_US = 20000
    PAUSE_SIZE_BYTES = 65536        # of waiting requests: then TCP is to slow the client down


# --- opened, closed --------------------------------------------------------------------------------------------------

cdef int connections_prepare(Engine *engine) noexcept nogil:
    # Memory that is never touched costs nothing: records are taken from the front.
    engine.connections = <Connection *>calloc(engine.limits.connections_max, sizeof(Connection))
    return 0 if engine.connections is not NULL else -12


cdef void connections_free(Engine *engine) noexcept nogil:
    cdef uint32_t index
    cdef Connection *connection
    for index in range(engine.connections_made):
        connection = &engine.connections[index]
        if connection.state != CONNECTION_FREE:
            connection_lost(engine, connection)
            connection_closed(engine, connection)
    free(engine.connections)
    engine.connections = NULL
    engine.connections_made = 0


cdef Connection *connection_open(Engine *engine, int fd) noexcept nogil:
    cdef Connection *connection = engine.free_connections
    cdef uint32_t generation
    if connection is not NULL:
        engine.free_connections = connection.next_held
    elif engine.connections_made < engine.limits.connections_max:
        connection = &engine.connections[engine.connections_made]
        connection.index = engine.connections_made
        engine.connections_made += 1
    else:
        return NULL
    generation = connection.generation + 1
    reset(connection, generation)
    connection.fd = fd
    connection.state = CONNECTION_OPEN
    engine.open_connections += 1
    engine.counters.accepted += 1
    set_deadline(engine, connection, engine.limits.idle_timeout_us)
    return connection


cdef void reset(Connection *connection, uint32_t generation) noexcept nogil:
    cdef uint32_t index = connection.index
    memset(connection, 0, sizeof(Connection))
    connection.index = index
    connection.generation = generation


cdef void connection_peer(Connection *connection, int family, uint16_t port, const void *address) noexcept nogil:
    connection.family = <uint8_t>family
    connection.port = port
    memcpy(connection.address, address, 4 if family == 2 else 16)


cdef void connection_lost(Engine *engine, Connection *connection) noexcept nogil:
    if connection.state == CONNECTION_CLOSES:
        return
    connection.state = CONNECTION_CLOSES
    connection.deadline_us = 0
    connection.posted_length = 0
    engine.counters.outcomes[<int>OUTCOME_CLIENT_GONE] += abandon_deferred(engine, connection)
    input_free(engine, connection)


cdef void connection_closed(Engine *engine, Connection *connection) noexcept nogil:
    output_free(engine, connection)
    connection.state = CONNECTION_FREE
    engine.open_connections -= 1
    engine.counters.closed += 1
    # The lists of dirty and held connections link through the record: it stays in them until they have been walked.
    if not connection.flags & (IS_DIRTY | IS_HELD):
        connection.next_held = engine.free_connections
        engine.free_connections = connection


cdef void recycle(Engine *engine, Connection *connection) noexcept nogil:
    """Frees a record that was closed while it was in a list, now that it is in none."""
    if connection.state == CONNECTION_FREE and not connection.flags & (IS_DIRTY | IS_HELD):
        connection.next_held = engine.free_connections
        engine.free_connections = connection


# --- bytes that wait -------------------------------------------------------------------------------------------------

cdef void input_free(Engine *engine, Connection *connection) noexcept nogil:
    opening_leave(engine, connection)       # what waited was the first request in it
    if connection.input is not NULL:
        engine.input_size_bytes -= connection.input.capacity
        free(connection.input)
        connection.input = NULL


cdef bint input_grow(Engine *engine, Connection *connection, uint32_t needed) noexcept nogil:
    """Makes room for `needed` bytes in all; False where there is no memory, or too much of it is in use."""
    cdef Input *input = connection.input
    cdef uint32_t old = input.capacity if input is not NULL else 0
    cdef uint32_t capacity
    if needed <= old:
        return True
    # A quarter more than is needed: a doubling would let one flooding client hold twice what the receive buffers hold.
    capacity = max(<uint32_t>INPUT_SIZE_BYTES_MIN, needed + needed // 4)
    if engine.input_size_bytes + capacity - old > engine.limits.input_size_bytes_max:
        return False
    input = <Input *>realloc(input, sizeof(Input) + capacity)
    if input is NULL:
        return False
    if connection.input is NULL:
        memset(input, 0, sizeof(Input))
        input.began_us = engine.now_us
    input.capacity = capacity
    engine.input_size_bytes += capacity - old
    connection.input = input
    return True


cdef bint keep(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    """Copies bytes that must wait; False: there is no room, the connection is refused."""
    cdef uint32_t used = connection.input.length if connection.input is not NULL else 0
    if not input_grow(engine, connection, used + length):
        if connection.owed or connection.flags & IS_WRITING or not can_respond(engine, connection):
            engine.driver.tear_down(engine, connection)
        else:
            respond_status(engine, connection, 503)
            input_free(engine, connection)
        return False
    memcpy(connection.input.data + used, data, length)
    connection.input.length = used + length
    if (connection.input.length > PAUSE_SIZE_BYTES and not connection.flags & IS_PAUSED
            and (connection.owed or connection.flags & (IS_WRITING | IS_LOOKING))):
        connection.flags |= IS_PAUSED
        engine.driver.pause(engine, connection)
    return True


cdef void input_consume(Engine *engine, Connection *connection, uint32_t consumed) noexcept nogil:
    """Drops the first bytes, and what was found out about them."""
    cdef Input *input = connection.input
    if consumed == input.length:
        input_free(engine, connection)
    else:
        memmove(input.data, input.data + consumed, input.length - consumed)
        input.length -= consumed
        input.scanned = 0
        input.head_done = 0
        input.continue_sent = 0
        input.body_done = 0
        input.refused_status = 0
        input.body_read = 0
        input.body_length = 0
        input.began_us = engine.now_us
        memset(&input.chunks, 0, sizeof(input.chunks))
    if connection.flags & IS_PAUSED and (connection.input is NULL or connection.input.length < PAUSE_SIZE_BYTES // 2):
        resume(engine, connection)


cdef void resume(Engine *engine, Connection *connection) noexcept nogil:
    connection.flags &= ~IS_PAUSED
    engine.driver.resume(engine, connection)


# --- requests --------------------------------------------------------------------------------------------------------

cdef uint32_t run_requests(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    """Runs the machine over the requests in data[0:length]; returns how many bytes are done with."""
    cdef uint32_t offset = 0
    cdef int state
    cdef Request request
    while offset < length:
        if connection.state != CONNECTION_OPEN:
            return length
        if connection.flags & (IS_LAST | IS_FINAL | IS_REFUSED):
            connection.flags |= IS_REFUSED
            return length
        if (connection.flags & (IS_WRITING | IS_LOOKING)
                or connection.owed >= engine.limits.pipelined_requests_max):
            break
        if not can_respond(engine, connection):
            mark_held(engine, connection)
            break
        request_begin(&request, data + offset, length - offset)
        state = run_machine(&engine.machine, DERIVE_REQUEST, engine, connection, &request)
        if request.owns_object:
            cache_drop(request.object)
        if state == AWAIT_BYTES or state == AWAIT_TURN:
            break
        offset += request.consumed
        connection.flags &= ~IS_WARM
        if not count_request(engine, connection, &request, state):
            return length
    return offset


cdef bint count_request(Engine *engine, Connection *connection, const Request *request, int state) noexcept nogil:
    """Counts a request over which the machine has run; False: it came to no end, and the connection is lost."""
    engine.counters.requests += 1
    connection.requests += 1
    if state == FINISHED or state == AWAIT_RESPONSE:
        return True
    # The table has no transition: our fault, or that of whoever changed it. Nothing sensible can follow.
    engine.counters.table_faults += 1
    if request.deferred is NULL:        # else abandoned, and counted so, by tear_down
        engine.counters.outcomes[<int>OUTCOME_ERROR_5XX] += 1
    engine.driver.tear_down(engine, connection)
    return False


cdef void request_begin(Request *request, const char *data, uint32_t available) noexcept nogil:
    """Sets all but the parsed head, which derive_request writes."""
    request.data = data
    request.available = available
    request.consumed = 0
    request.body = NULL
    request.body_length = 0
    request.head = &request.head_storage
    request.head_storage.head_length = 0
    request.head_storage.flags = 0
    request.head_storage.method = 0
    request.head_storage.version_minor = 1
    request.status = 0
    request.object = NULL
    request.owns_object = 0
    request.answer = NULL
    request.deferred = NULL
    request.route = NO_ROUTE
    request.parameter_count = 0
    request.allowed_methods = 0
    request.extra = NULL
    request.extra_length = 0
    request.outcome = 0


cdef void run_input(Engine *engine, Connection *connection) noexcept nogil:
    """The same over bytes that waited, until they are used up or must wait again."""
    cdef uint32_t consumed
    while connection.input is not NULL:
        consumed = run_requests(engine, connection, connection.input.data, connection.input.length)
        if connection.input is NULL:
            return
        if consumed == 0:
            break
        input_consume(engine, connection, consumed)
    if connection.input is not NULL and connection.flags & IS_EOF and not is_blocked(engine, connection):
        input_free(engine, connection)      # an unfinished request that will never be finished
        mark_dirty(engine, connection)


cdef bint is_blocked(const Engine *engine, const Connection *connection) noexcept nogil:
    """Whether requests wait for the server's doing, and not for the client's."""
    return connection.owed or connection.flags & (IS_WRITING | IS_HELD | IS_LOOKING)


cdef void rearm(Engine *engine, Connection *connection) noexcept nogil:
    """Sets the deadline that belongs to what the connection now waits for."""
    if connection.state != CONNECTION_OPEN or connection.flags & IS_WRITING:
        return
    if connection.flags & IS_LOOKING:
        # From when it began, whatever the client sends meanwhile. An Output that has ended since left none.
        if connection.deadline_us == 0:
            set_deadline(engine, connection, engine.limits.send_timeout_us)
    elif connection.owed:
        connection.deadline_us = 0
    elif connection.input is NULL:
        set_deadline(engine, connection, engine.limits.idle_timeout_us)
    elif connection.input.head_done:
        set_deadline(engine, connection, engine.limits.body_timeout_us)
    elif not is_blocked(engine, connection):
        # From when it began: a byte now and then must not keep it alive.
        connection.deadline_us = connection.input.began_us + engine.limits.header_timeout_us
        engine.next_deadline_us = earliest(engine.next_deadline_us, connection.deadline_us)


cdef void received(Engine *engine, Connection *connection, const char *data, uint32_t length) noexcept nogil:
    cdef uint32_t consumed = 0
    engine.counters.bytes_received += length
    if connection.state != CONNECTION_OPEN:
        return
    if connection.input is NULL:
        consumed = run_requests(engine, connection, data, length)
    if consumed < length and keep(engine, connection, data + consumed, length - consumed):
        run_input(engine, connection)
    rearm(engine, connection)


cdef void received_known(Engine *engine, Connection *connection, const char *data, uint32_t length, Head *head,
                         CacheObject *object) noexcept nogil:
    cdef Request request
    cdef int state
    if (connection.state != CONNECTION_OPEN or connection.input is not NULL or connection.owed
            or connection.flags & (IS_LAST | IS_FINAL | IS_REFUSED | IS_WRITING | IS_HELD)
            or engine.draining or not can_respond(engine, connection)):
        received(engine, connection, data, length)
        return
    engine.counters.bytes_received += length
    request_begin(&request, data, length)
    request.head = head
    request.consumed = length
    request.object = object
    request.outcome = OUTCOME_HIT
    state = resume_machine(&engine.machine, DERIVE_CACHED_RESPONSE, EVENT_HIT, engine, connection, &request)
    if request.owns_object:
        cache_drop(request.object)
    count_request(engine, connection, &request, state)
    rearm(engine, connection)


cdef void received_end(Engine *engine, Connection *connection) noexcept nogil:
    connection.flags |= IS_EOF
    if connection.state == CONNECTION_LINGERS:
        engine.driver.tear_down(engine, connection)
    elif connection.state == CONNECTION_OPEN:
        run_input(engine, connection)
        mark_dirty(engine, connection)


cdef void run_held(Engine *engine) noexcept nogil:
    cdef Connection *connection = engine.held
    cdef Connection *following
    # The list is taken as it is: what is held anew meanwhile comes in the next loop.
    engine.held = NULL
    while connection is not NULL:
        following = connection.next_held
        connection.flags &= ~IS_HELD
        if connection.state == CONNECTION_OPEN:
            answer_owed(engine, connection)
            if connection.first is not NULL and connection.first.ready and not connection.flags & IS_WRITING:
                mark_held(engine, connection)       # the scratch is full
            run_input(engine, connection)
            if connection.flags & IS_PAUSED and connection.input is not NULL and not is_blocked(engine, connection):
                resume(engine, connection)          # an unfinished request: its rest must be let in
            mark_dirty(engine, connection)
            rearm(engine, connection)
        recycle(engine, connection)
        connection = following


# --- time ------------------------------------------------------------------------------------------------------------

cdef void sweep(Engine *engine) noexcept nogil:
    cdef uint32_t index
    cdef Connection *connection
    engine.next_deadline_us = 0
    for index in range(engine.connections_made):
        connection = &engine.connections[index]
        if connection.deadline_us == 0 or connection.state == CONNECTION_FREE:
            continue
        if (connection.deadline_us > engine.now_us
                or (connection.row and engine.tier.can_answer and answer_keeps_alive(engine, connection))):
            engine.next_deadline_us = earliest(engine.next_deadline_us, connection.deadline_us)
            continue
        connection.deadline_us = 0
        engine.counters.timed_out += 1
        if (connection.state == CONNECTION_OPEN and connection.input is not NULL
                and not connection.flags & (IS_WRITING | IS_LAST) and can_respond(engine, connection)):
            # It is not the client's fault that a disk is slow.
            respond_status(engine, connection, 503 if connection.flags & IS_LOOKING else 408)
            input_free(engine, connection)
        else:
            engine.driver.tear_down(engine, connection)
    # Clients that idle run out of time one by one: they are seen to in groups, a little late.
    if engine.next_deadline_us and engine.next_deadline_us < engine.now_us + SWEEP_INTERVAL_US:
        engine.next_deadline_us = engine.now_us + SWEEP_INTERVAL_US


cdef void close_idle(Engine *engine) noexcept nogil:
    cdef uint32_t index
    cdef Connection *connection
    for index in range(engine.connections_made):
        connection = &engine.connections[index]
        if (connection.state == CONNECTION_OPEN and not connection.owed and connection.input is NULL
                and not connection.flags & (IS_WRITING | IS_DIRTY)):
            engine.driver.tear_down(engine, connection)
