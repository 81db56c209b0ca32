"""A protocol of lines, to show that the seam between protocols and engine is one. For tests; no server offers it.

    GET /KEY       is answered with a line of status and length, and so many bytes
    QUIT           the same with 204, and the connection ends

A line ends with CR LF or LF, and has at most LINE_SIZE_MAX bytes; any other line is answered with 400, and ends the
connection. Requests may be pipelined. All that is of this protocol is here: how a request looks, how a response begins,
what QUIT means, and which table holds it together. What answers (cached objects, files, handlers in batches) and how it
leaves (order, slow readers, large bodies) is the engine's, as it is for HTTP.
"""
from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcmp, memset

from batchbridge.cython_ext.core cimport IS_REFUSED, Connection, Engine, Request
from batchbridge.cython_ext.derive cimport (
    defer_to_user_mode, derive_cached_response, derive_deferred_response, derive_miss_response,
    derive_status_response, derive_uncached_response)
from batchbridge.cython_ext.machine cimport Protocol
from batchbridge.cython_ext.parse cimport HEAD_KEEP_ALIVE, METHOD_GET, TARGET_KEY, Head
from batchbridge.cython_ext.reply cimport send_response
from batchbridge.cython_ext.send cimport Response
from batchbridge.cython_ext.states cimport (
    DEFER_REQUEST, DERIVE_CACHED_RESPONSE, DERIVE_DEFERRED_RESPONSE, DERIVE_MISS_RESPONSE, DERIVE_REQUEST,
    DERIVE_STATUS_RESPONSE, DERIVE_UNCACHED_RESPONSE, EVENT_COUNT, EVENT_INCOMPLETE, EVENT_MALFORMED, EVENT_OWED,
    EVENT_REQUEST, EVENT_STATUS, SEND_ENGINE, STATE_COUNT)

from batchbridge.cython_ext.states import EVENT_NAMES, STATE_NAMES


cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...) noexcept


cdef enum:
    LINE_SIZE_MAX = 1024
    HEAD_SIZE_MAX = 32
    TAKE_LEAVE = STATE_COUNT        # this module's own state, and the event that leads there
    EVENT_QUIT = EVENT_COUNT


cdef int refuse(Connection *connection, Request *request) noexcept nogil:
    if connection.owed:
        return EVENT_OWED
    request.status = 400
    request.head.flags &= ~HEAD_KEEP_ALIVE
    request.consumed = request.available
    connection.flags |= IS_REFUSED
    return EVENT_MALFORMED


cdef int read_line(const void *engine_data, const char *data, uint32_t length, void *head_data) noexcept nogil:
    """Reads "GET /KEY" or "QUIT". The line's length; 0: it is not whole; -1: it is neither, or too long."""
    cdef Head *head = <Head *>head_data
    cdef const char *end = <const char *>memchr(data, c'\n', min(length, <uint32_t>LINE_SIZE_MAX))
    if end is NULL:
        return 0 if length < LINE_SIZE_MAX else -1
    memset(head, 0, sizeof(Head))
    head.head_length = <uint32_t>(end + 1 - data)
    head.flags = HEAD_KEEP_ALIVE
    head.version_minor = 1
    head.target_form = TARGET_KEY
    head.headers.offset = head.head_length
    length = head.head_length - 1
    if length and data[length - 1] == c'\r':
        length -= 1
    if length == 4 and memcmp(data, b"QUIT", 4) == 0:
        head.method_name.length = head.target.offset = 4
        return <int>head.head_length
    if length < 5 or memcmp(data, b"GET /", 5) != 0 or memchr(data, 0, length) is not NULL:
        return -1
    head.method = METHOD_GET
    head.method_name.length = 3
    head.target.offset = 4
    head.target.length = length - 4
    head.path = head.target
    return <int>head.head_length


cdef int derive_line(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    """Bytes to a request."""
    cdef Engine *engine = <Engine *>engine_data
    cdef Connection *connection = <Connection *>connection_data
    cdef Request *request = <Request *>request_data
    cdef int length = read_line(engine, request.data, request.available, request.head)
    if length == 0:
        return EVENT_INCOMPLETE
    if length < 0:
        return refuse(connection, request)
    if engine.draining:
        request.head.flags &= ~HEAD_KEEP_ALIVE
    request.consumed = <uint32_t>length
    return EVENT_REQUEST if request.head.method == METHOD_GET else EVENT_QUIT


cdef int take_leave(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    """QUIT: the last answer of its connection."""
    cdef Connection *connection = <Connection *>connection_data
    cdef Request *request = <Request *>request_data
    if connection.owed:
        return EVENT_OWED
    request.head.flags &= ~HEAD_KEEP_ALIVE
    request.status = 204
    return EVENT_STATUS


cdef char *write_line_head(const void *engine_data, char *at, const void *response_data) noexcept nogil:
    cdef const Response *response = <const Response *>response_data
    return at + snprintf(at, HEAD_SIZE_MAX, b"%d %llu\r\n", response.status,
                         <unsigned long long>response.body_length)


def line_protocol():
    """The module, for an engine's setting `protocol`."""
    cdef Protocol protocol = Protocol()
    protocol.name = "line"
    protocol.states = (*STATE_NAMES, "Take Leave")
    protocol.events = (*EVENT_NAMES, "quit")
    protocol.functions[<int>DERIVE_REQUEST] = derive_line
    protocol.functions[<int>DERIVE_CACHED_RESPONSE] = derive_cached_response
    protocol.functions[<int>DERIVE_MISS_RESPONSE] = derive_miss_response
    protocol.functions[<int>DERIVE_UNCACHED_RESPONSE] = derive_uncached_response
    protocol.functions[<int>DERIVE_DEFERRED_RESPONSE] = derive_deferred_response
    protocol.functions[<int>DERIVE_STATUS_RESPONSE] = derive_status_response
    protocol.functions[<int>DEFER_REQUEST] = defer_to_user_mode
    protocol.functions[<int>SEND_ENGINE] = send_response
    protocol.functions[<int>TAKE_LEAVE] = take_leave
    protocol.read_head = read_line
    protocol.write_head = write_line_head
    return protocol


#: Its table. The second line is all that HTTP has not; without a role that asks others, and without listings.
TABLE = {
    ("Derive Request", "request"): "Derive Cached Response",
    ("Derive Request", "quit"): "Take Leave",
    ("Derive Request", "incomplete"): "Await Bytes",
    ("Derive Request", "malformed"): "Derive Status Response",
    ("Derive Request", "owed"): "Await Turn",
    ("Derive Cached Response", "hit"): "Send Engine",
    ("Derive Cached Response", "miss"): "Derive Miss Response",
    ("Derive Cached Response", "cold"): "Await Turn",
    ("Derive Miss Response", "route"): "Derive Deferred Response",
    ("Derive Miss Response", "no route"): "Derive Uncached Response",
    ("Derive Miss Response", "status"): "Derive Status Response",
    ("Derive Uncached Response", "object"): "Send Engine",
    ("Derive Uncached Response", "listing"): "Derive Status Response",
    ("Derive Uncached Response", "absent"): "Derive Status Response",
    ("Derive Uncached Response", "unsuited"): "Derive Status Response",
    ("Derive Uncached Response", "failed"): "Derive Status Response",
    ("Derive Uncached Response", "status"): "Derive Status Response",
    ("Derive Uncached Response", "owed"): "Await Turn",
    ("Derive Uncached Response", "cold"): "Await Turn",
    ("Derive Deferred Response", "server"): "Defer Request",
    ("Derive Deferred Response", "no server"): "Derive Status Response",
    ("Derive Deferred Response", "status"): "Derive Status Response",
    ("Defer Request", "queued"): "Await Response",
    ("Defer Request", "queue full"): "Derive Status Response",
    ("Defer Request", "owed"): "Await Turn",
    ("Await Response", "answered"): "Send Engine",
    ("Await Response", "timed out"): "Derive Status Response",
    ("Await Bytes", "timed out"): "Derive Status Response",
    ("Take Leave", "owed"): "Await Turn",
    ("Take Leave", "status"): "Derive Status Response",
    ("Derive Status Response", "status"): "Send Engine",
    ("Send Engine", "sent"): "Finished",
    ("Send Engine", "owed"): "Await Turn",
}
