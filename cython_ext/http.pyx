"""The HTTP module: HTTP/1.0 and 1.1 (RFC 9110, RFC 9112) as a protocol for machines.

Of its own it has only what knows how a request looks on the wire (Derive Request) and how a response begins
(heads.pyx); what is derived from a request is the state functions' of derive.pyx and reply.pyx, which other protocol
modules share.

The rules of Derive Request:

- A request is judged where its bytes lie. What must wait is in the connection's Input, which remembers what was found
  out, so that nothing is parsed or decoded twice.
- What cannot be understood is refused once nothing before it is owed; the rest of the connection's bytes are dropped.
"""
from libc.stdint cimport uint32_t, uint64_t

from batchbridge.cython_ext.chunked cimport decode_chunked
from batchbridge.cython_ext.core cimport IS_REFUSED, Connection, Engine, Input, Request
from batchbridge.cython_ext.derive cimport (
    defer_to_user_mode, derive_cached_response, derive_deferred_response, derive_miss_response,
    derive_remote_response, derive_status_response, derive_uncached_response)
from batchbridge.cython_ext.heads cimport write_http_head
from batchbridge.cython_ext.machine cimport Protocol
from batchbridge.cython_ext.parse cimport HEAD_CHUNKED, HEAD_EXPECT_CONTINUE, HEAD_KEEP_ALIVE, Head, parse_head
from batchbridge.cython_ext.reply cimport send_response
from batchbridge.cython_ext.send cimport can_respond, respond_continue
from batchbridge.cython_ext.states cimport (
    DEFER_REQUEST, DERIVE_CACHED_RESPONSE, DERIVE_DEFERRED_RESPONSE, DERIVE_MISS_RESPONSE, DERIVE_REMOTE_RESPONSE,
    DERIVE_REQUEST, DERIVE_STATUS_RESPONSE, DERIVE_UNCACHED_RESPONSE, EVENT_INCOMPLETE, EVENT_MALFORMED, EVENT_OWED,
    EVENT_REQUEST, SEND_ENGINE)

from batchbridge.cython_ext.states import EVENT_NAMES, STATE_NAMES


# --- Derive Request --------------------------------------------------------------------------------------------------

cdef int derive_request(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    """Bytes to a whole request, or to what is wrong with them."""
    cdef Engine *engine = <Engine *>engine_data
    cdef Connection *connection = <Connection *>connection_data
    cdef Request *request = <Request *>request_data
    cdef Input *input = connection.input
    cdef uint32_t scanned = 0
    cdef bint is_buffered = is_from_input(connection, request)
    cdef int length
    if is_buffered and input.refused_status:
        return refuse(connection, request, input.refused_status)
    if is_buffered and input.head_done:
        request.head = &input.head
    else:
        length = parse_head(request.data, request.available, &input.scanned if is_buffered else &scanned,
                            &engine.limits.head, request.head)
        if length == 0:
            return EVENT_INCOMPLETE
        if length < 0:
            return refuse(connection, request, -length)
        if is_buffered:
            keep_head(input, request)       # it may have to wait, and must not be parsed again with what was remembered
    if engine.draining:
        request.head.flags &= ~HEAD_KEEP_ALIVE
    if request.head.flags & HEAD_CHUNKED or request.head.content_length:
        return derive_body(engine, connection, request, is_buffered)
    request.consumed = request.head.head_length
    return EVENT_REQUEST


cdef bint is_from_input(const Connection *connection, const Request *request) noexcept nogil:
    """Whether the request is the first in the Input, which remembers what was found out about it."""
    return connection.input is not NULL and request.data == connection.input.data


cdef int refuse(Connection *connection, Request *request, int status) noexcept nogil:
    """What cannot be understood, or is too large, is answered, and the rest of the connection's bytes are dropped."""
    if connection.owed:
        if is_from_input(connection, request):
            connection.input.refused_status = status        # not to be looked at again: the verdict stands
        return EVENT_OWED
    request.status = status
    request.head.flags &= ~HEAD_KEEP_ALIVE
    request.consumed = request.available
    connection.flags |= IS_REFUSED
    return EVENT_MALFORMED


cdef int derive_body(Engine *engine, Connection *connection, Request *request, bint is_buffered) noexcept nogil:
    """A body of a given length is taken where it lies; a chunked one only from the Input, where it can be moved."""
    cdef Head *head = request.head
    if head.content_length > engine.limits.body_size_bytes_max:
        return refuse(connection, request, 413)
    if head.flags & HEAD_CHUNKED:
        if is_buffered:
            return derive_chunked_body(engine, connection, request)
    else:
        if request.available >= <uint64_t>head.head_length + head.content_length:
            request.body = request.data + head.head_length
            request.body_length = <uint32_t>head.content_length
            request.consumed = head.head_length + request.body_length
            return EVENT_REQUEST
    if is_buffered:                     # else kept by the caller, and derived again from there
        keep_head(connection.input, request)
        ask_for_body(engine, connection, request)
    return EVENT_INCOMPLETE


cdef int derive_chunked_body(Engine *engine, Connection *connection, Request *request) noexcept nogil:
    """The payload is moved up as it is decoded, so that it ends up in one piece behind the head.

    What was found is kept, since a request that must wait for its turn is derived anew, from bytes that have changed.
    """
    cdef Input *input = connection.input
    cdef const Head *head = &input.head
    cdef uint32_t consumed = 0, produced = 0, behind
    cdef int result = 1
    keep_head(input, request)
    if not input.body_done:
        behind = head.head_length + input.body_read
        result = decode_chunked(&input.chunks, request.data + behind, request.available - behind,
                                <char *>request.data + head.head_length + input.body_length,
                                engine.limits.body_size_bytes_max - input.body_length, &consumed, &produced)
        if result < 0:
            return refuse(connection, request, -result)
        input.body_read += consumed
        input.body_length += produced
        input.body_done = result == 1
    if not input.body_done:
        ask_for_body(engine, connection, request)
        return EVENT_INCOMPLETE
    request.body = request.data + head.head_length
    request.body_length = input.body_length
    request.consumed = head.head_length + input.body_read
    return EVENT_REQUEST


cdef void keep_head(Input *input, Request *request) noexcept nogil:
    if not input.head_done:
        input.head = request.head[0]
        input.head_done = 1
    request.head = &input.head


cdef void ask_for_body(Engine *engine, Connection *connection, const Request *request) noexcept nogil:
    """100 (Continue), where the client waits for it: once, and only if nothing else is to be sent before."""
    cdef Input *input = connection.input
    cdef const Head *head = request.head
    if (head.flags & HEAD_EXPECT_CONTINUE and not input.continue_sent and not connection.owed
            and request.available == head.head_length and can_respond(engine, connection)):
        input.continue_sent = 1
        respond_continue(engine, connection)


cdef int read_http_head(const void *engine_data, const char *data, uint32_t length, void *head) noexcept nogil:
    cdef uint32_t scanned = 0
    return parse_head(data, length, &scanned, &(<const Engine *>engine_data).limits.head, <Head *>head)


# --- what the module tells of itself ---------------------------------------------------------------------------------

cdef http_protocol():
    cdef Protocol protocol = Protocol()
    protocol.name = "HTTP"
    protocol.states = STATE_NAMES
    protocol.events = EVENT_NAMES
    protocol.functions[<int>DERIVE_REQUEST] = derive_request
    protocol.functions[<int>DERIVE_CACHED_RESPONSE] = derive_cached_response
    protocol.functions[<int>DERIVE_MISS_RESPONSE] = derive_miss_response
    protocol.functions[<int>DERIVE_UNCACHED_RESPONSE] = derive_uncached_response
    protocol.functions[<int>DERIVE_DEFERRED_RESPONSE] = derive_deferred_response
    protocol.functions[<int>DERIVE_REMOTE_RESPONSE] = derive_remote_response
    protocol.functions[<int>DERIVE_STATUS_RESPONSE] = derive_status_response
    protocol.functions[<int>DEFER_REQUEST] = defer_to_user_mode
    protocol.functions[<int>SEND_ENGINE] = send_response
    protocol.read_head = read_http_head
    protocol.write_head = write_http_head
    protocol.has_lines = 1
    return protocol
