"""The send engine: responses to bytes on the wire.

The rules:

- Bytes of a connection leave in the order in which respond() took them. At most one send of a connection is under way
  that may fall short: a scratch send in this loop, or one piece of its Output.
- Scratch bytes stay as they are until the loop after the one they left in, since only then it is known whether a send
  fell short (law 4). There are two scratches for that.
- An Output owns what it sends: a heap copy of the first bytes, then the bytes of an answer it holds, or of a file; or
  parts, each with a text before its bytes.
- Whoever answers asks can_respond first; so respond() never has to refuse.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.errno cimport EAGAIN
from libc.string cimport memcpy

from batchbridge.cython_ext.bridge cimport completion_release
from batchbridge.cython_ext.cache cimport cache_drop
from batchbridge.cython_ext.core cimport (
    ANSWER_LANE, CONNECTION_LINGERS, CONNECTION_OPEN, IS_CLOSING, IS_DIRTY, IS_EOF, IS_HELD, IS_LAST,
    IS_PAUSED, IS_REFUSED, IS_WRITING, Answer, Connection, Engine, Output)
from batchbridge.cython_ext.multipart cimport Part, multipart_free


cdef enum:
    ANSWERS_IN_BLOCK = 1024
    HEAD_SIZE_BYTES_MAX = 512           # of what a protocol writes first: RESPONSE_HEAD_ROOM_BYTES
    POSTED_BYTES_MAX = 262144           # of one connection in one loop
    CHUNK_SIZE_BYTES = 131072           # of a file, read and sent at a time
    PIECE_SIZE_BYTES = 1048576          # of memory, sent at a time: each piece that leaves is progress


# --- answers ---------------------------------------------------------------------------------------------------------

cdef Answer *answer_at(Engine *engine, uint32_t index) noexcept nogil:
    return engine.answer_blocks[index // ANSWERS_IN_BLOCK] + index % ANSWERS_IN_BLOCK


cdef bint answers_grow(Engine *engine) noexcept nogil:
    cdef uint32_t index, first = engine.answers_made
    cdef Answer *block = <Answer *>calloc(ANSWERS_IN_BLOCK, sizeof(Answer))
    if block is NULL or first // ANSWERS_IN_BLOCK >= 4096:
        free(block)
        return False
    engine.answer_blocks[first // ANSWERS_IN_BLOCK] = block
    engine.answers_made += ANSWERS_IN_BLOCK
    for index in range(ANSWERS_IN_BLOCK):
        block[index].index = first + index
        block[index].next = engine.free_answers
        engine.free_answers = &block[index]
    return True


cdef Answer *answer_new(Engine *engine, int kind) noexcept nogil:
    cdef Answer *answer
    if engine.free_answers is NULL and not answers_grow(engine):
        return NULL
    answer = engine.free_answers
    engine.free_answers = answer.next
    answer.references = 1
    answer.kind = kind
    return answer


cdef void answer_hold(Answer *answer) noexcept nogil:
    answer.references += 1


cdef void answer_drop(Engine *engine, Answer *answer) noexcept nogil:
    if answer is NULL:
        return
    answer.references -= 1
    if answer.references:
        return
    if answer.kind == ANSWER_LANE:
        completion_release(answer.lane, &answer.completion)
    else:
        cache_drop(answer.object)
    answer.next = engine.free_answers
    engine.free_answers = answer


# --- the scratch -----------------------------------------------------------------------------------------------------

cdef bint can_respond(const Engine *engine, const Connection *connection) noexcept nogil:
    cdef uint64_t needed = (engine.limits.zero_copy_size_bytes_min + 2 * HEAD_SIZE_BYTES_MAX
                            + engine.limits.head.head_size_bytes + connection.posted_length)
    return (not connection.flags & (IS_WRITING | IS_LAST) and connection.posted_length < POSTED_BYTES_MAX
            and engine.scratch_used + needed <= engine.scratch_size_bytes)


cdef void mark_dirty(Engine *engine, Connection *connection) noexcept nogil:
    if not connection.flags & IS_DIRTY:
        connection.flags |= IS_DIRTY
        connection.next_dirty = engine.dirty
        engine.dirty = connection


cdef void mark_held(Engine *engine, Connection *connection) noexcept nogil:
    if not connection.flags & IS_HELD:
        connection.flags |= IS_HELD
        connection.next_held = engine.held
        engine.held = connection


cdef void set_deadline(Engine *engine, Connection *connection, uint64_t timeout_us) noexcept nogil:
    connection.deadline_us = engine.now_us + timeout_us
    if engine.next_deadline_us == 0 or connection.deadline_us < engine.next_deadline_us:
        engine.next_deadline_us = connection.deadline_us


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
    if response.file >= 0 or (HEAD_SIZE_BYTES_MAX + response.extra_length + response.headers_length + body_length
                              > engine.limits.zero_copy_size_bytes_min):
        output_begin(engine, connection, response, body_length)
        if connection.output is not NULL:
            connection.promised += output_length(connection.output, body_length) - posted_length
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
    return put(at, response.body, <uint32_t>response.body_length) if response.parts is NULL else put_parts(at, response)


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
        at = put(at, response.body + part.first, <uint32_t>part.length)
    return at


cdef void respond_continue(Engine *engine, Connection *connection) noexcept nogil:
    scratch_commit(engine, connection,
                   put(scratch_reserve(engine, connection), b"HTTP/1.1 100 Continue\r\n\r\n", 25))


# --- the Output ------------------------------------------------------------------------------------------------------

cdef Output *output_new(Engine *engine, Connection *connection, const char *first, uint32_t first_length,
                        uint32_t room) noexcept nogil:
    """An Output that begins with `first` and what was posted in this loop, with `room` for more.

    NULL: no memory, the connection is lost.
    """
    cdef Output *output = <Output *>calloc(1, sizeof(Output))
    if output is not NULL:
        output.prefix = <char *>malloc(first_length + connection.posted_length + room + 1)
        if output.prefix is NULL:
            free(output)
            output = NULL
    if output is NULL:
        engine.driver.tear_down(engine, connection)
        return NULL
    put(put(output.prefix, first, first_length), connection.posted, connection.posted_length)
    output.text = output.prefix
    output.text_length = first_length + connection.posted_length
    connection.posted_length = 0
    output.file = -1
    connection.output = output
    connection.flags |= IS_WRITING
    mark_dirty(engine, connection)
    return output


cdef void output_begin(Engine *engine, Connection *connection, const Response *response,
                       uint64_t body_length) noexcept nogil:
    cdef char head[HEAD_SIZE_BYTES_MAX]
    cdef uint32_t head_length = <uint32_t>(engine.machine.write_head(engine, head, response) - head)
    cdef Output *output = output_new(engine, connection, NULL, 0,
                                     head_length + response.extra_length + response.headers_length + 2)
    cdef char *at
    if output is NULL:
        if response.file >= 0:
            engine.driver.close_file(engine, response.file)
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
    at = put(output.prefix + output.text_length, head, head_length)
    at = put(at, response.extra, response.extra_length)
    at = put(at, response.headers, response.headers_length)
    if response.needs_empty_line:
        at = put(at, b"\r\n", 2)
    output.text_length = <uint32_t>(at - output.prefix)
    output.parts = response.parts
    output.body = response.body
    output.whole = response.body
    if response.file >= 0:
        output.file = response.file
        output.file_offset = response.file_offset
        output.file_left = body_length if response.parts is NULL else 0
        output.chunk = <char *>malloc(CHUNK_SIZE_BYTES)
        if output.chunk is NULL:
            engine.driver.tear_down(engine, connection)
    elif response.parts is NULL:
        output.body_left = body_length


cdef uint32_t output_length(const Output *output, uint64_t body_length) noexcept nogil:
    """Bytes of one that has just begun, modulo 2**32, as TCP counts them."""
    if output.parts is NULL:
        body_length = output.body_left + output.file_left
    return <uint32_t>(output.text_length + body_length)


cdef void output_next_part(Output *output) noexcept nogil:
    cdef const Part *part = &output.parts.parts[output.parts_begun]
    output.parts_begun += 1
    output.text = part.text
    output.text_length = part.text_length
    output.text_sent = 0
    if output.file >= 0:
        output.file_offset = <int64_t>part.first
        output.file_left = part.length
    else:
        output.body = output.whole + part.first
        output.body_left = part.length


cdef void output_free(Engine *engine, Connection *connection) noexcept nogil:
    cdef Output *output = connection.output
    if output is NULL:
        return
    connection.output = NULL
    connection.flags &= ~IS_WRITING
    answer_drop(engine, output.answer)
    if output.file >= 0:
        engine.driver.close_file(engine, output.file)
    multipart_free(output.parts)
    free(output.prefix)
    free(output.chunk)
    free(output)


cdef void output_step(Engine *engine, Connection *connection) noexcept nogil:
    """Lets the next piece leave, or ends the Output."""
    cdef Output *output = connection.output
    cdef bint has_parts = output.parts is not NULL and output.parts_begun < output.parts.count
    cdef bint more
    output.begun = 1
    set_deadline(engine, connection, engine.limits.send_timeout_us)
    if has_parts and output.text_sent == output.text_length and not (
            output.body_left or output.file_left or output.chunk_sent < output.chunk_length):
        output_next_part(output)
        has_parts = output.parts_begun < output.parts.count
    if output.text_sent < output.text_length:
        more = output.body_left > 0 or output.file_left > 0 or has_parts
        engine.driver.send_reported(engine, connection, output.text + output.text_sent,
                                    output.text_length - output.text_sent, more, NULL)
    elif output.body_left:
        more = output.body_left > PIECE_SIZE_BYTES or has_parts
        engine.driver.send_reported(engine, connection, output.body, min(output.body_left, <uint64_t>PIECE_SIZE_BYTES),
                                    more, output.answer if output.zero_copy else NULL)
    elif output.chunk_sent < output.chunk_length:
        more = output.file_left > 0 or has_parts
        engine.driver.send_reported(engine, connection, output.chunk + output.chunk_sent,
                                    output.chunk_length - output.chunk_sent, more, NULL)
    elif output.file_left:
        engine.driver.read_file(engine, connection, output.file, output.chunk,
                                <uint32_t>min(output.file_left, <uint64_t>CHUNK_SIZE_BYTES), output.file_offset)
    else:
        output_free(engine, connection)
        connection.deadline_us = 0
        mark_dirty(engine, connection)          # ends the connection, if that was its last response
        mark_held(engine, connection)           # requests that waited behind it


cdef void sent(Engine *engine, Connection *connection, int64_t result) noexcept nogil:
    cdef Output *output = connection.output
    if output is NULL:
        return
    if result <= 0:
        engine.driver.tear_down(engine, connection)
        return
    engine.counters.bytes_sent += <uint64_t>result
    if output.text_sent < output.text_length:
        output.text_sent += <uint32_t>result
    elif output.body_left:
        output.body += result
        output.body_left -= <uint64_t>result
    else:
        output.chunk_sent += <uint32_t>result
    output_step(engine, connection)


cdef void file_read(Engine *engine, Connection *connection, int64_t result) noexcept nogil:
    cdef Output *output = connection.output
    if output is NULL:
        return
    if result <= 0:
        # The file shrank or failed: its length was promised, so all that is left is to break off.
        engine.driver.tear_down(engine, connection)
        return
    output.chunk_length = <uint32_t>result
    output.chunk_sent = 0
    output.file_offset += result
    output.file_left -= <uint64_t>result
    output_step(engine, connection)


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
