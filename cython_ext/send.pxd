# The send engine: responses to bytes on the wire. Persistence, pipelining, short writes, slow readers, last responses.
#
# Small responses are copied into the scratch, those of one connection side by side, and leave with one send at the
# loop's end. A large one, or one whose client reads slowly, becomes the connection's Output, one piece after the other;
# nothing more is answered on that connection before it is through.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from batchbridge.cython_ext.cache cimport CacheObject
from batchbridge.cython_ext.core cimport Answer, Connection, Deferred, Engine, Request
from batchbridge.cython_ext.multipart cimport Multipart


# --- what a response consists of -------------------------------------------------------------------------------------

cdef struct Response:
    int status
    uint8_t version_minor           # of the request
    uint8_t keep_alive
    uint8_t head_only               # HEAD: everything but the body
    int64_t content_length          # of the Content-Length line; -1: no such line
    const char *extra               # header lines of the engine's, each with CRLF
    uint32_t extra_length
    const char *headers             # the object's lines, each with CRLF, and the empty last one
    uint32_t headers_length
    uint8_t needs_empty_line        # `headers` lacks it
    const char *body
    uint64_t body_length
    Answer *answer                  # what `headers` and `body` belong to; NULL: copy them now
    uint32_t room_before            # free bytes before `headers`, where the engine's own lines may be written
    CacheObject *object             # the body is a part of its payload instead, from object_position on; or NULL
    uint64_t object_position
    uint8_t is_absent               # not all of that part is in memory
    Multipart *parts                # the body is these parts of the object; NULL: it is in one

# Whether another response can be taken in this loop: the scratch has room, the connection is not writing.
cdef bint can_respond(const Engine *engine, const Connection *connection) noexcept nogil

# Takes a response. The caller has seen can_respond, keeps its own reference to `answer`, and gives `parts` away. An
# object whose payload is too long to be copied, or not all there, needs an answer.
cdef void respond(Engine *engine, Connection *connection, const Response *response) noexcept nogil

# The bytes of a response, for somebody else to send: how many there are at most; how many were written to `out`.
cdef uint32_t response_size_bytes_max(const Response *response) noexcept nogil
cdef uint32_t response_copy(const Engine *engine, const Response *response, char *out) noexcept nogil

# An interim response (100), which is not counted as one.
cdef void respond_continue(Engine *engine, Connection *connection) noexcept nogil

# At the loop's end: lets what was posted leave, and closes after the last response.
cdef void flush(Engine *engine, Connection *connection) noexcept nogil

# --- what the driver reports -----------------------------------------------------------------------------------------

# Of a scratch send that fell short: `result` is bytes sent or -errno.
cdef void send_fell_short(Engine *engine, Connection *connection, int64_t result) noexcept nogil
# Of a response that somebody else could not send whole: the rest of it, before anything else leaves.
cdef void send_owed(Engine *engine, Connection *connection, const char *rest, uint32_t length) noexcept nogil
