"""The send engine: responses to bytes on the wire.

The rules:

- Bytes of a connection leave in the order in which respond() took them. At most one send of a connection is under way
  that may fall short: a scratch send in this loop, or one piece of its Output.
- Scratch bytes stay as they are until the loop after the one they left in, since only then it is known whether a send
  fell short (law 4). There are two scratches for that.
- Whoever answers asks can_respond first; so respond() never has to refuse.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.errno cimport EAGAIN
from libc.string cimport memcpy

from batchbridge.cython_ext.cache cimport object_copy_out
from batchbridge.cython_ext.core cimport (
    CONNECTION_LINGERS, CONNECTION_OPEN, IS_CLOSING, IS_DIRTY, IS_EOF, IS_LAST, IS_PAUSED, IS_REFUSED, IS_WRITING,
    Connection, Engine, Output)
from batchbridge.cython_ext.multipart cimport Part, multipart_free
from batchbridge.cython_ext.output cimport answer_hold, mark_dirty, output_new, output_step, set_deadline
from batchbridge.cython_ext.text cimport put


cdef enum:
    HEAD_SIZE_BYTES_MAX = 512           # of what a protocol writes first: RESPONSE_HEAD_ROOM_BYTES
    POSTED_BYTES_MAX = 262144           # of one connection in one loop


# --- the scratch -----------------------------------------------------------------------------------------------------

cdef bint can_respond(const Engine *engine, const Connection *connection) noexcept nogil:
    cdef uint64_t needed = (engine.limits.copied_size_bytes_max + 2 * HEAD_SIZE_BYTES_MAX
                            + engine.limits.head.head_size_bytes + connection.posted_length)
    return (not connection.flags & (IS_WRITING | IS_LAST) and connection.posted_length < POSTED_BYTES_MAX
            and engine.scratch_used + needed <= engine.scratch_size_bytes)


cdef char *scratch_reserve(Engine *engine, Connection *connection) noexcept nogil:
    """Where the connection's next bytes go: behind those it posted in this loop, which are moved there if they must."""
    cdef char *end = engine.scratch[engine.scratch_active] + engine.scratch_used
    if connection.posted_length == 0:
        connection.posted = end
    elif connection.posted + connection.posted_length != end:
        memcpy(end, connection.posted, connection.posted_length)
        connection.posted = end
        end += connection.posted_length
    return end


cdef void scratch_commit(Engine *engine, Connection *connection, char *end) noexcept nogil:
    cdef uint32_t length = <uint32_t>(end - connection.posted)
    connection.promised += length - connection.posted_length
    connection.posted_length = length
    engine.scratch_used = <uint32_t>(end - engine.scratch[engine.scratch_active])
    mark_dirty(engine, connection)


cdef void respond(Engine *engine, Connection *connection, const Response *response) noexcept nogil:
    cdef uint64_t body_length = 0 if response.head_only else response.body_length
    cdef uint32_t posted_length = connection.posted_length
    if not response.keep_alive:
        connection.flags |= IS_LAST
    if (HEAD_SIZE_BYTES_MAX + response.extra_length + response.headers_length + body_length
            > engine.limits.copied_size_bytes_max or response.is_absent):
        output_begin(engine, connection, response, body_length)
        if connection.output is not NULL:
            connection.promised += <uint32_t>(connection.output.text_length + connection.output.body_left
                                              + (body_length if response.object is not NULL else 0)) - posted_length
        return
    scratch_commit(engine, connection, put_response(engine, scratch_reserve(engine, connection), response))
    if response.parts is not NULL:
        multipart_free(response.parts)


cdef char *put_response(const Engine *engine, char *at, const Response *response) noexcept nogil:
    at = engine.machine.write_head(engine, at, response)
    at = put(at, response.extra, response.extra_length)
    at = put(at, response.headers, response.headers_length)
    if response.needs_empty_line:
        at = put(at, b"\r\n", 2)
    if response.head_only:
        return at
    return put_body(at, response) if response.parts is NULL else put_parts(at, response)


cdef uint32_t response_size_bytes_max(const Response *response) noexcept nogil:
    return <uint32_t>(HEAD_SIZE_BYTES_MAX + response.extra_length + response.headers_length + 2 + response.body_length)


cdef uint32_t response_copy(const Engine *engine, const Response *response, char *out) noexcept nogil:
    return <uint32_t>(put_response(engine, out, response) - out)


cdef char *put_parts(char *at, const Response *response) noexcept nogil:
    cdef const Part *part
    cdef uint32_t index
    for index in range(response.parts.count):
        part = &response.parts.parts[index]
        at = put(at, part.text, part.text_length)
        object_copy_out(response.object, part.first, part.length, at)
        at += part.length
    return at


cdef char *put_body(char *at, const Response *response) noexcept nogil:
    if response.object is NULL:
        return put(at, response.body, <uint32_t>response.body_length)
    object_copy_out(response.object, response.object_position, response.body_length, at)
    return at + response.body_length


cdef void respond_continue(Engine *engine, Connection *connection) noexcept nogil:
    scratch_commit(engine, connection,
                   put(scratch_reserve(engine, connection), b"HTTP/1.1 100 Continue\r\n\r\n", 25))


# --- the Output ------------------------------------------------------------------------------------------------------

cdef void output_begin(Engine *engine, Connection *connection, const Response *response,
                       uint64_t body_length) noexcept nogil:
    cdef char head[HEAD_SIZE_BYTES_MAX]
    cdef uint32_t head_length = <uint32_t>(engine.machine.write_head(engine, head, response) - head)
    cdef Output *output = output_new(engine, connection, NULL, 0,
                                     head_length + response.extra_length + response.headers_length + 2)
    cdef char *at
    if output is NULL:
        multipart_free(response.parts)
        return
    if response.answer is not NULL and body_length:
        answer_hold(response.answer)
        output.answer = response.answer
    if (response.answer is not NULL and response.room_before >= head_length + response.extra_length
            and not response.needs_empty_line and body_length):
        # Header lines, written in front of the body where it lies: one send carries both.
        at = <char *>response.headers - response.extra_length - head_length
        put(put(at, head, head_length), response.extra, response.extra_length)
        output.body = at
        output.body_left = head_length + response.extra_length + response.headers_length + body_length
        output.zero_copy = 1
        return
    # In front of a fragment they are the same for most, for a second: not with what few ask for.
    output.heads_fragment = (output.text_length == 0 and response.keep_alive and response.version_minor == 1
                             and response.status == 200)
    at = put(output.prefix + output.text_length, head, head_length)
    at = put(at, response.extra, response.extra_length)
    at = put(at, response.headers, response.headers_length)
    if response.needs_empty_line:
        at = put(at, b"\r\n", 2)
    output.text_length = <uint32_t>(at - output.prefix)
    output.parts = response.parts
    if response.object is NULL:
        output.body = response.body
        output.body_left = body_length
        return
    if response.parts is NULL:
        output.object_position = response.object_position
        output.object_left = body_length
    if output.answer is NULL and body_length:
        engine.driver.tear_down(engine, connection)         # there was no memory to hold the object by


cdef void send_fell_short(Engine *engine, Connection *connection, int64_t result) noexcept nogil:
    cdef uint32_t done = <uint32_t>result if result > 0 else 0
    if result < 0 and result != -EAGAIN:
        engine.driver.tear_down(engine, connection)
        return
    # The client reads slowly: the rest becomes an Output, and whatever was posted since comes behind it.
    connection.state = CONNECTION_OPEN          # not yet the end, if it was thought so
    engine.counters.short_sends += 1
    engine.counters.bytes_sent -= connection.leaving_length - done
    output_new(engine, connection, connection.leaving + done, connection.leaving_length - done, 0)


cdef void send_owed(Engine *engine, Connection *connection, const char *rest, uint32_t length) noexcept nogil:
    output_new(engine, connection, rest, length, 0)


# --- the loop's end --------------------------------------------------------------------------------------------------

cdef void flush(Engine *engine, Connection *connection) noexcept nogil:
    cdef uint32_t length = connection.posted_length
    connection.flags &= ~IS_DIRTY
    if connection.state != CONNECTION_OPEN or connection.flags & IS_CLOSING:
        return
    if connection.flags & IS_WRITING:
        if not connection.output.begun:
            output_step(engine, connection)
        return
    connection.leaving = connection.posted
    connection.leaving_length = length
    connection.posted_length = 0
    engine.counters.bytes_sent += length
    if not is_over(connection):
        if length:
            engine.driver.send(engine, connection, connection.leaving, length)
    elif not connection.flags & IS_EOF and (connection.flags & IS_REFUSED or connection.input is not NULL):
        # The client may still be sending: close gently, so that a reset costs it no response.
        connection.state = CONNECTION_LINGERS
        set_deadline(engine, connection, engine.limits.linger_timeout_us)
        if connection.flags & IS_PAUSED:
            connection.flags &= ~IS_PAUSED
            engine.driver.resume(engine, connection)
        engine.driver.finish(engine, connection, connection.leaving, length)
    elif length:
        engine.driver.send_last(engine, connection, connection.leaving, length)
    else:
        engine.driver.tear_down(engine, connection)


cdef bint is_over(const Connection *connection) noexcept nogil:
    """Whether no response will follow: the last one was taken, or the client sent FIN and is owed nothing."""
    if connection.owed:
        return False
    return connection.flags & IS_LAST or (connection.flags & IS_EOF and connection.input is NULL)
