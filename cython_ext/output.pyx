"""What a connection sends piece by piece, and what is held meanwhile.

The rules:

- An Output owns what it sends: a heap copy of the first bytes, then the bytes of an answer that it holds: a handler's,
  or an object, fragment by fragment, each pinned while it is sent, and read first if it must be.
- What is sent in parts has a text before the bytes of each.
- One piece of a connection is under way at a time; that a fragment is to be waited for keeps nobody else waiting.
- An answer is counted: by Outputs, and by zero-copy sends until the kernel has let go of the bytes (law 4).
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from batchbridge.cython_ext.bridge cimport completion_release
from batchbridge.cython_ext.cache cimport CacheObject, cache_drop, object_fragments, object_payload
from batchbridge.cython_ext.core cimport (
    ANSWER_LANE, ANSWER_OBJECT, CONNECTION_CLOSES, CONNECTION_OPEN, IS_DIRTY, IS_HELD, IS_WRITING, Answer, Connection,
    Engine, Fill, Output)
from batchbridge.cython_ext.fills cimport (
    FILL_DONE, FILL_FAILED, FILL_WAITS, fill_end, fill_for, fill_leave, fill_next, fill_take)
from batchbridge.cython_ext.fragments cimport (
    FRAGMENT_PRESENT, Fragment, Fragments, fragment_at, fragment_of, fragment_over, fragment_pin, fragment_place,
    fragment_unpin, fragments_with_head)
from batchbridge.cython_ext.moments cimport earliest
from batchbridge.cython_ext.multipart cimport Part, multipart_free


cdef enum:
    ANSWERS_IN_BLOCK = 1024
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


# --- marks -----------------------------------------------------------------------------------------------------------

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
    engine.next_deadline_us = earliest(engine.next_deadline_us, connection.deadline_us)


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
    if first_length:                # memcpy wants two pointers even for nothing
        memcpy(output.prefix, first, first_length)
    if connection.posted_length:
        memcpy(output.prefix + first_length, connection.posted, connection.posted_length)
    output.text = output.prefix
    output.text_length = first_length + connection.posted_length
    connection.posted_length = 0
    output.connection = connection
    connection.output = output
    connection.flags |= IS_WRITING
    mark_dirty(engine, connection)
    return output


cdef void output_free(Engine *engine, Connection *connection) noexcept nogil:
    cdef Output *output = connection.output
    if output is NULL:
        return
    connection.output = NULL
    connection.flags &= ~IS_WRITING
    fill_leave(output)
    output_unpin(output)
    answer_drop(engine, output.answer)
    multipart_free(output.parts)
    free(output.prefix)
    free(output)


cdef void output_unpin(Output *output) noexcept nogil:
    cdef Fragments *fragments
    if output.is_pinned:
        output.is_pinned = 0
        fragments = object_fragments(output.answer.object)
        fragment_unpin(fragments, fragment_at(fragments, output.place))


cdef bint has_parts(const Output *output) noexcept nogil:
    """Whether there are parts that were not begun."""
    return output.parts is not NULL and output.parts_begun < output.parts.count


cdef void next_part(Output *output) noexcept nogil:
    cdef const Part *part = &output.parts.parts[output.parts_begun]
    output.parts_begun += 1
    output.text = part.text
    output.text_length = part.text_length
    output.text_sent = 0
    output.object_position = part.first
    output.object_left = part.length


cdef void send_by_itself(Engine *engine, Connection *connection, const char *data, uint64_t length, bint more,
                         Answer *answer, uint32_t place) noexcept nogil:
    engine.counters.pieces += 1
    engine.driver.send_reported(engine, connection, data, length, more, answer, place)


cdef void output_step(Engine *engine, Connection *connection) noexcept nogil:
    """Lets the next piece leave, or ends the Output."""
    cdef Output *output = connection.output
    output.begun = 1
    set_deadline(engine, connection, engine.limits.send_timeout_us)
    if output.text_sent == output.text_length and not output.object_left and has_parts(output):
        next_part(output)
    if output.text_sent < output.text_length and not (output.heads_fragment and output.object_left):
        send_by_itself(engine, connection, output.text + output.text_sent, output.text_length - output.text_sent,
                       output.body_left > 0 or output.object_left > 0 or has_parts(output), NULL, 0)
    elif output.body_left:
        send_by_itself(engine, connection, output.body, min(output.body_left, <uint64_t>PIECE_SIZE_BYTES),
                       output.body_left > PIECE_SIZE_BYTES, output.answer if output.zero_copy else NULL, 0)
    elif output.object_left:
        object_step(engine, connection, output)
    else:
        output_free(engine, connection)
        connection.deadline_us = 0
        mark_dirty(engine, connection)          # ends the connection, if that was its last response
        mark_held(engine, connection)           # requests that waited behind it


cdef void object_step(Engine *engine, Connection *connection, Output *output) noexcept nogil:
    """Lets the next bytes of an object leave: what lies in one fragment, once that was read."""
    cdef CacheObject *object = output.answer.object
    cdef Fragments *fragments = object_fragments(object)
    cdef uint32_t number, offset, length
    cdef Fragment *fragment
    cdef int result
    if fragments is NULL:
        length = <uint32_t>min(output.object_left, <uint64_t>PIECE_SIZE_BYTES)
        send_piece(engine, connection, output, object_payload(object) + output.object_position, length, NULL, 0)
        return
    fragment = fragment_of(fragments, output.object_position, &number, &offset, &length)
    if fragment.state == FRAGMENT_PRESENT and fragment.number != number:
        output.awaits_slot = 1                  # until the kernel has let go of it
        return
    if fragment.state != FRAGMENT_PRESENT:
        result = fill_for(engine, output, fragment, number)
        if result == FILL_FAILED:
            # Its length was promised, so all that is left is to break off.
            engine.driver.tear_down(engine, connection)
        if result != FILL_DONE:
            return
    length = <uint32_t>min(<uint64_t>length, output.object_left)
    send_piece(engine, connection, output, fragment.at + offset, length, fragments, number)


cdef void send_piece(Engine *engine, Connection *connection, Output *output, const char *at, uint32_t length,
                     Fragments *fragments, uint32_t number) noexcept nogil:
    """Sends bytes of a fragment, or (NULL) of a plain payload; with the header lines before them, if these go there."""
    cdef bint more = output.object_left > length or has_parts(output)
    cdef const char *head = NULL
    cdef Fragment *fragment
    cdef uint32_t ignored
    if output.text_sent < output.text_length:
        output.heads_fragment = 0
        if fragments is not NULL and output.object_position == 0:
            head = fragments_with_head(fragments, output.text, output.text_length)
        if head is NULL:
            output_step(engine, connection)     # they go by themselves
            return
        at = head
        length += output.text_length
    if fragments is NULL:
        send_by_itself(engine, connection, at, length, more, NULL, 0)
        return
    fragment = fragment_of(fragments, output.object_position, &number, &ignored, &ignored)
    fragment_pin(fragments, fragment)
    output.is_pinned = 1
    output.place = fragment_place(fragments, fragment)
    send_by_itself(engine, connection, at, length, more, output.answer, output.place)


cdef void sent(Engine *engine, Connection *connection, int64_t result) noexcept nogil:
    cdef Output *output = connection.output
    cdef int64_t part
    if output is NULL:
        return
    output_unpin(output)
    if result <= 0:
        engine.driver.tear_down(engine, connection)
        return
    engine.counters.bytes_sent += <uint64_t>result
    part = min(result, <int64_t>(output.text_length - output.text_sent))
    output.text_sent += <uint32_t>part
    result -= part
    if output.body_left:
        output.body += result
        output.body_left -= <uint64_t>result
    elif output.object_left and result:
        object_sent(output, <uint64_t>result)
    output_step(engine, connection)


cdef void object_sent(Output *output, uint64_t count) noexcept nogil:
    cdef Fragments *fragments = object_fragments(output.answer.object)
    cdef uint32_t number, offset, length
    cdef Fragment *fragment
    if fragments is not NULL:
        fragment = fragment_of(fragments, output.object_position, &number, &offset, &length)
        if count == min(<uint64_t>length, output.object_left):
            fragment_over(fragments, fragment)
    output.object_position += count
    output.object_left -= count


cdef void answer_let_go(Engine *engine, Answer *answer, uint32_t place) noexcept nogil:
    cdef Connection *connection = &engine.connections[answer.connection_index]
    cdef Fragments *fragments
    if answer.kind != ANSWER_OBJECT:
        return
    fragments = object_fragments(answer.object)
    fragment_unpin(fragments, fragment_at(fragments, place))
    if (connection.generation == answer.connection_generation and connection.state == CONNECTION_OPEN
            and connection.output is not NULL and connection.output.answer is answer and connection.output.awaits_slot):
        connection.output.awaits_slot = 0
        output_step(engine, connection)


cdef void fragment_read(Engine *engine, Fill *fill, int64_t result) noexcept nogil:
    cdef int taken = fill_take(engine, fill, result)
    cdef Output *output
    if taken == FILL_WAITS:
        return
    while True:
        output = fill_next(fill)
        if output is NULL:
            break
        if output.connection.state == CONNECTION_CLOSES:
            continue
        if taken == FILL_DONE:
            output_step(engine, output.connection)
        else:
            engine.driver.tear_down(engine, output.connection)
    fill_end(engine, fill)
