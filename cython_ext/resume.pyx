"""Machines that rest, and go on by what comes from outside: an answer from user mode, the clock, a lack of room."""
from libc.string cimport memset

from batchbridge.cython_ext.bridge cimport completion_text
from batchbridge.cython_ext.core cimport CONNECTION_OPEN, IS_REFUSED, NO_ROUTE, Connection, Deferred, Engine, Request
from batchbridge.cython_ext.deferred cimport deferred_finish
from batchbridge.cython_ext.machine cimport resume_machine
from batchbridge.cython_ext.send cimport can_respond
from batchbridge.cython_ext.states cimport AWAIT_BYTES, AWAIT_RESPONSE, EVENT_ANSWERED, EVENT_TIMED_OUT, FINISHED


cdef void answer_owed(Engine *engine, Connection *connection) noexcept nogil:
    cdef Deferred *deferred
    cdef Request request
    cdef int state
    while (connection.first is not NULL and connection.first.ready and connection.state == CONNECTION_OPEN
            and can_respond(engine, connection)):
        deferred = connection.first
        memset(&request, 0, sizeof(Request))
        request.route = deferred.route
        request.deferred = deferred
        request.answer = deferred.answer
        request.status = deferred.status
        request.outcome = engine.routes[deferred.route].outcome
        if request.answer is not NULL and completion_text(request.answer.lane, &request.answer.completion) is NULL:
            request.status = request.answer.completion.status       # a status and nothing else
        state = resume_machine(&engine.machine, AWAIT_RESPONSE, EVENT_TIMED_OUT if request.status else EVENT_ANSWERED,
                               engine, connection, &request)
        if state != FINISHED and connection.state == CONNECTION_OPEN:
            engine.counters.table_faults += 1
            engine.driver.tear_down(engine, connection)
        if connection.first is deferred:        # unless the connection was lost while it was answered
            deferred_finish(engine, deferred)


cdef void respond_status(Engine *engine, Connection *connection, int status) noexcept nogil:
    cdef Request request
    memset(&request, 0, sizeof(Request))
    request.head = &request.head_storage
    request.route = NO_ROUTE
    request.data = b""
    request.status = status
    connection.flags |= IS_REFUSED
    resume_machine(&engine.machine, AWAIT_BYTES, EVENT_TIMED_OUT, engine, connection, &request)
    engine.counters.requests += 1
