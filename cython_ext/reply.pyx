"""The Send Engine's state function: whatever was derived becomes a response, a line in the log, and a counted outcome.

The rules:

- Law 1 is kept here, whatever a table says: while answers of a connection are owed, nothing but these leaves.
- A response is described (send.Response) from a cached object, from a handler's completion, or from a status alone; how
  its bytes leave is send.pyx's business.
- A handler's answer that says so is put into the cache on its way out (RFC 9111 section 3).
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memchr, memcpy, memset

from batchbridge.cython_ext.accesslog cimport log_line
from batchbridge.cython_ext.bridge cimport COMPLETION_PUBLIC, RESPONSE_HEAD_ROOM_BYTES, Completion, completion_text
from batchbridge.cython_ext.cache cimport (
    OBJECT_FILE, OBJECT_PUBLIC, OBJECT_VARIES, CacheObject, cache_drop, cache_hold, cache_insert, hash_bytes,
    object_copy_in, object_header, object_new, object_new_fragmented, object_tags)
from batchbridge.cython_ext.conditional cimport (
    VERDICT_NOT_MODIFIED, VERDICT_RANGE, VERDICT_RANGES, VERDICT_SEND, VERDICT_UNSATISFIABLE, Validators, evaluate)
from batchbridge.cython_ext.core cimport (
    ANSWER_OBJECT, OUTCOME_ERROR_4XX, OUTCOME_ERROR_5XX, OUTCOME_LOCAL, Answer, Connection, Deferred, Engine, Request,
    Route)
from batchbridge.cython_ext.dates cimport parse_http_date
from batchbridge.cython_ext.defer cimport request_key
from batchbridge.cython_ext.files cimport object_modified_s
from batchbridge.cython_ext.fills cimport FILL_DONE, FILL_FAILED, object_ready
from batchbridge.cython_ext.fragments cimport FRAGMENTS_MAX
from batchbridge.cython_ext.multipart cimport multipart_free, multipart_new
from batchbridge.cython_ext.octets cimport is_space, same_word
from batchbridge.cython_ext.output cimport answer_drop, answer_new
from batchbridge.cython_ext.parse cimport (
    HEAD_CONDITIONAL, HEAD_CREDENTIALS, HEAD_KEEP_ALIVE, HEAD_RANGE, HEADER_REFERER, HEADER_USER_AGENT, METHOD_GET,
    METHOD_HEAD, Head, request_line_length)
from batchbridge.cython_ext.ranges cimport Ranges
from batchbridge.cython_ext.send cimport Response, respond
from batchbridge.cython_ext.states cimport EVENT_OWED, EVENT_SENT
from batchbridge.cython_ext.text cimport put, put_number


cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...) noexcept


cdef enum:
    KEY_SIZE_MAX = 4096
    NS_PER_S = 1000000000
    LOGGED_GARBAGE_MAX = 256        # bytes of a malformed request that its log line shows
    VARY_LINE_LENGTH = 23           # "Vary: Accept-Encoding" and a line end


cdef void describe(const Request *request, Response *response) noexcept nogil:
    """What a response takes from its request."""
    memset(response, 0, sizeof(Response))
    response.content_length = -1
    if request.deferred is not NULL:
        response.version_minor = request.deferred.version_minor
        response.keep_alive = request.deferred.keep_alive
        response.head_only = request.deferred.method == METHOD_HEAD
    else:
        response.version_minor = request.head.version_minor
        response.keep_alive = request.head.flags & HEAD_KEEP_ALIVE != 0
        response.head_only = request.head.method == METHOD_HEAD


cdef void describe_object(Engine *engine, Request *request, Response *response) noexcept nogil:
    """A cached object or a file: the whole, parts, or that it has not changed."""
    cdef CacheObject *object = request.object
    cdef char *age
    response.status = object.status
    response.headers = object_header(object)
    response.headers_length = object.header_length
    response.object = object
    response.body_length = object.payload_length
    response.extra = engine.lines
    if not object.flags & OBJECT_FILE:
        age = put_number(put(engine.lines, b"Age: ", 5), <uint64_t>((engine.now_us - object.checked_us) // 1000000))
        response.extra_length = <uint32_t>(put(age, b"\r\n", 2) - engine.lines)
    if request.head.flags & (HEAD_CONDITIONAL | HEAD_RANGE) and object.status == 200:
        judge_object(engine, request, response)
    if response.content_length < 0:
        response.content_length = <int64_t>response.body_length
        forbid_body(response)


cdef void judge_object(Engine *engine, Request *request, Response *response) noexcept nogil:
    """Lets the request's conditions and ranges change what is sent of an object."""
    cdef CacheObject *object = request.object
    cdef Validators validators
    cdef Ranges ranges
    cdef int verdict
    cdef bint has_date
    validators.etag = object.etag if object.etag_length else NULL
    validators.etag_length = object.etag_length
    # Of an answer without a date, or with one that cannot be read, it is not above 0.
    has_date = object.flags & OBJECT_FILE or object.modified_ns > 0
    validators.modified_s = object_modified_s(object) if has_date else -1
    validators.length = object.payload_length
    verdict = evaluate(request.data, request.head, &validators, engine.wall_s, engine.limits.ranges_max, &ranges)
    if verdict == VERDICT_SEND:
        return
    if verdict == VERDICT_NOT_MODIFIED:
        response.status = 304
        response.body_length = 0
        if object.not_modified_length:
            response.headers_length = object.not_modified_length
            response.needs_empty_line = 1
    elif verdict == VERDICT_RANGE:
        response.status = 206
        response.object_position = ranges.items[0].first
        response.body_length = ranges.items[0].last - ranges.items[0].first + 1
        response.extra_length += <uint32_t>snprintf(
            engine.lines + response.extra_length, 96, b"Content-Range: bytes %llu-%llu/%llu\r\n",
            <unsigned long long>ranges.items[0].first, <unsigned long long>ranges.items[0].last,
            <unsigned long long>object.payload_length)
    elif verdict == VERDICT_RANGES:
        take_parts(engine, &ranges, response)
    else:
        refuse_object(engine, object, 416 if verdict == VERDICT_UNSATISFIABLE else 412, response)


cdef void take_parts(Engine *engine, const Ranges *ranges, Response *response) noexcept nogil:
    """Several ranges; the whole, where there is no memory to describe them."""
    cdef uint64_t number = engine.counters.requests
    response.parts = multipart_new(response.headers, response.headers_length, ranges, response.body_length,
                                   hash_bytes(<const char *>&number, sizeof(number), engine.seed))
    if response.parts is NULL:
        return
    response.status = 206
    response.headers = response.parts.lines
    response.headers_length = response.parts.lines_length
    response.body_length = response.parts.length


cdef void refuse_object(Engine *engine, const CacheObject *object, int status, Response *response) noexcept nogil:
    """Nothing of the object is sent, but what its URL's responses have in common: Vary, which is its first line."""
    response.status = status
    response.headers_length = <uint32_t>VARY_LINE_LENGTH if object.flags & OBJECT_VARIES else 0
    response.needs_empty_line = 1
    response.body_length = 0
    response.content_length = 0
    response.extra_length = 0
    if status == 416:
        response.extra_length = <uint32_t>snprintf(engine.lines, 64, b"Content-Range: bytes */%llu\r\n",
                                                   <unsigned long long>object.payload_length)


cdef void describe_known(Engine *engine, Head *head, CacheObject *object, Response *response) noexcept nogil:
    cdef Request request
    memset(&request, 0, sizeof(Request))
    request.head = head
    request.object = object
    describe(&request, response)
    describe_object(engine, &request, response)


cdef void forbid_body(Response *response) noexcept nogil:
    """204 and 304 have none, whatever a handler gave (RFC 9110 section 6.4.1)."""
    if response.status == 204 or response.status == 304:
        response.content_length = -1
        response.body_length = 0


cdef void describe_answer(Request *request, Response *response) noexcept nogil:
    """A handler's response, in its lane's arena."""
    cdef const Completion *completion = &request.answer.completion
    response.status = completion.status
    response.headers = completion_text(request.answer.lane, completion)
    response.headers_length = completion.headers_length
    response.body = response.headers + completion.headers_length
    response.body_length = completion.body_length
    # Shared by several requests: each needs its own header lines, which then do not lie before the body.
    if request.answer.references == 1 and completion.offset:
        response.room_before = RESPONSE_HEAD_ROOM_BYTES
    response.content_length = completion.body_length
    if response.head_only and completion.body_length == 0:
        response.content_length = -1        # what GET would have got is not known here, unless the handler tells it
    forbid_body(response)


cdef void describe_status(Engine *engine, const Request *request, Response *response) noexcept nogil:
    """The status in plain text, for people."""
    cdef char *text = engine.lines + request.extra_length
    cdef int status = request.status
    response.status = status
    response.extra = request.extra
    response.extra_length = request.extra_length
    if status == 204:
        response.needs_empty_line = 1
        return
    response.headers = b"Content-Type: text/plain; charset=utf-8\r\n\r\n"
    response.headers_length = 43
    response.body = text
    # The status line, without its "HTTP/1.1 " and with a plain line end.
    response.body_length = <uint64_t>snprintf(text, 64, b"%.*s\n", <int>engine.status_lengths[status] - 11,
                                              engine.status_lines[status] + 9)
    response.content_length = <int64_t>response.body_length


cdef void drop_lines(Response *response) noexcept nogil:
    """Of a protocol without header lines: what comes before the body is only what its module writes."""
    response.extra_length = 0
    response.needs_empty_line = 0
    if response.room_before:
        response.room_before += response.headers_length
    response.headers = response.body
    response.headers_length = 0


cdef int send_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    """The Send Engine: whatever was derived becomes bytes, a line in the log, and a counted outcome."""
    cdef Engine *engine = <Engine *>engine_data
    cdef Connection *connection = <Connection *>connection_data
    cdef Request *request = <Request *>request_data
    cdef Response response
    cdef Answer *answer = NULL
    if connection.owed and request.deferred is NULL:
        return EVENT_OWED       # it is derived anew when nothing before it is owed any more
    describe(request, &response)
    if engine.draining and connection.owed <= 1:
        response.keep_alive = 0
    if request.object is not NULL and has_bytes(engine, request, &response):
        if response.status >= 400 and request.object.status < 400:             # 412, 416
            request.outcome = outcome_of(response.status)
        if response.is_absent or (
                response.headers_length + response.body_length > engine.limits.copied_size_bytes_max // 4):
            # It may become an Output: with the engine's own lines, from less than the limit on.
            answer = hold_object(engine, request.object)
            response.answer = answer
    elif request.answer is not NULL:
        describe_answer(request, &response)
        response.answer = request.answer
        if response.status >= 400:
            request.outcome = outcome_of(response.status)
        if request.answer.completion.ttl_s:
            keep_answer(engine, request)
    else:
        request.outcome = outcome_of(request.status)
        describe_status(engine, request, &response)
    if not engine.machine.has_lines:
        drop_lines(&response)
    respond(engine, connection, &response)
    answer_drop(engine, answer)
    log_response(engine, connection, request, &response)
    engine.counters.outcomes[request.outcome] += 1
    return EVENT_SENT


cdef bint has_bytes(Engine *engine, Request *request, Response *response) noexcept nogil:
    """Describes an object, and reads what is needed of it and can be had at once. False: its file failed, or is no
    longer what it was opened as, and the response is an error instead."""
    cdef uint8_t keep_alive = response.keep_alive
    cdef int result
    describe_object(engine, request, response)
    if response.head_only or response.body_length == 0:
        return True
    result = parts_ready(engine, request.object, response)
    response.is_absent = result != FILL_DONE
    if result != FILL_FAILED:
        return True
    multipart_free(response.parts)
    describe(request, response)
    response.keep_alive = keep_alive
    request.status = 500
    return False


cdef int parts_ready(Engine *engine, CacheObject *object, const Response *response) noexcept nogil:
    cdef uint32_t index
    cdef int result = FILL_DONE
    if response.parts is NULL:
        return object_ready(engine, object, response.object_position, response.body_length)
    for index in range(response.parts.count):
        result = min(result, object_ready(engine, object, response.parts.parts[index].first,
                                          response.parts.parts[index].length))
    return result


cdef int outcome_of(int status) noexcept nogil:
    """An error is counted by its class, whoever made it."""
    if status >= 500:
        return OUTCOME_ERROR_5XX
    return OUTCOME_ERROR_4XX if status >= 400 else OUTCOME_LOCAL


cdef Answer *hold_object(Engine *engine, CacheObject *object) noexcept nogil:
    cdef Answer *answer = answer_new(engine, ANSWER_OBJECT)
    if answer is not NULL:
        cache_hold(object)
        answer.object = object
    return answer


cdef void log_response(Engine *engine, const Connection *connection, const Request *request,
                       const Response *response) noexcept nogil:
    cdef uint64_t length = 0 if response.head_only else response.body_length
    cdef const Deferred *deferred = request.deferred
    cdef const Head *head = request.head
    cdef const char *data = request.data
    cdef const char *end
    cdef uint32_t line_length
    if engine.log.fd < 0:
        return
    if deferred is not NULL:
        data = <const char *>deferred.slab + deferred.head_offset
        log_line(engine, connection, data + deferred.request_line.offset, deferred.request_line.length, response.status,
                 length, data + deferred.referer.offset, deferred.referer.length, data + deferred.user_agent.offset,
                 deferred.user_agent.length)
    elif head.head_length == 0:
        end = <const char *>memchr(data, c'\r', min(request.available, <uint32_t>LOGGED_GARBAGE_MAX))
        line_length = min(request.available, <uint32_t>LOGGED_GARBAGE_MAX)
        if end is not NULL:
            line_length = <uint32_t>(end - data)
        log_line(engine, connection, data, line_length, response.status, length, NULL, 0, NULL, 0)
    else:
        log_line(engine, connection, data + head.method_name.offset, request_line_length(head), response.status, length,
                 data + head.known[<int>HEADER_REFERER].offset, head.known[<int>HEADER_REFERER].length,
                 data + head.known[<int>HEADER_USER_AGENT].offset, head.known[<int>HEADER_USER_AGENT].length)


cdef bint is_varied_by(const Route *route, const char *name, uint32_t length) noexcept nogil:
    cdef uint32_t index
    for index in range(route.vary_count):
        if route.vary[index].length == length and same_word(name, route.vary_text + route.vary[index].offset, length):
            return True
    return False


cdef bint varies_otherwise(const Route *route, const char *lines, uint32_t length) noexcept nogil:
    """Whether an answer's Vary names a header that its key has nothing of ("*" too): then it is for nobody else."""
    cdef const char *end
    cdef uint32_t at, first, line_length
    while length:
        end = <const char *>memchr(lines, c'\n', length)
        line_length = length if end is NULL else <uint32_t>(end + 1 - lines)
        if line_length > 5 and same_word(lines, b"vary:", 5):
            at = 5
            while at < line_length:
                first = at
                while at < line_length and lines[at] not in (c',', c' ', c'\t', c'\r', c'\n'):
                    at += 1
                if at > first and not is_varied_by(route, lines + first, at - first):
                    return True
                at += 1
        lines += line_length
        length -= line_length
    return False


cdef uint32_t value_of(const char *line, uint32_t length, const char *name, uint32_t name_length,
                       uint32_t *first) noexcept nogil:
    """Where the value of a header line begins (without white space) and how long it is; 0: it has another name."""
    cdef uint32_t at = name_length
    if length <= name_length or not same_word(line, name, name_length):
        return 0
    while length > at and line[length - 1] in (c'\r', c'\n', c' ', c'\t'):
        length -= 1
    while at < length and is_space(line[at]):
        at += 1
    first[0] = at
    return length - at


cdef void note_validators(Engine *engine, CacheObject *object) noexcept nogil:
    """Remembers the entity tag, unless it is too long, and the date that a handler gave its answer."""
    cdef const char *line = object_header(object)
    cdef const char *end
    cdef uint32_t left = object.header_length, length, size, first = 0
    while left:
        end = <const char *>memchr(line, c'\n', left)
        length = left if end is NULL else <uint32_t>(end + 1 - line)
        size = value_of(line, length, b"etag:", 5, &first)
        if 2 <= size <= sizeof(object.etag) and line[first + size - 1] == c'"':
            memcpy(object.etag, line + first, size)
            object.etag_length = <uint8_t>size
        size = value_of(line, length, b"last-modified:", 14, &first)
        if size:
            object.modified_ns = parse_http_date(line + first, size, engine.wall_s) * NS_PER_S
        line += length
        left -= length


cdef void keep_answer(Engine *engine, Request *request) noexcept nogil:
    """Puts a handler's answer into the cache, if what asked for it lets it (RFC 9111 section 3)."""
    cdef const Deferred *deferred = request.deferred
    cdef const Completion *completion = &request.answer.completion
    cdef const char *text = completion_text(request.answer.lane, completion)
    cdef char key[KEY_SIZE_MAX]
    cdef Head head
    cdef Request asked
    cdef uint32_t length
    cdef CacheObject *object
    if deferred.method != METHOD_GET or deferred.generation != engine.generation:
        return
    asked.data = <const char *>deferred.slab + deferred.head_offset
    asked.head = &head
    asked.route = deferred.route
    if engine.machine.read_head(engine, asked.data, deferred.head_length, &head) <= 0:
        return
    if head.flags & HEAD_CREDENTIALS and not completion.flags & COMPLETION_PUBLIC:
        return
    if varies_otherwise(&engine.routes[deferred.route], text, completion.headers_length):
        return
    length = request_key(engine, &asked, key, KEY_SIZE_MAX)
    if length == 0:
        return
    if completion.body_length <= engine.limits.copied_size_bytes_max // 2:
        object = object_new(engine.cache, hash_bytes(key, length, engine.seed), key, length,
                            completion.headers_length, completion.tags_length, completion.body_length)
    else:
        object = object_new_fragmented(engine.cache, hash_bytes(key, length, engine.seed), key, length,
                                       completion.headers_length, completion.tags_length, completion.body_length,
                                       FRAGMENTS_MAX, -1)
    if object is NULL:
        return
    memcpy(object_header(object), text, completion.headers_length)
    if object_copy_in(object, text + completion.headers_length) < 0:
        cache_drop(object)
        return
    memcpy(object_tags(object), text + completion.headers_length + completion.body_length, completion.tags_length)
    object.status = completion.status
    note_validators(engine, object)
    if completion.flags & COMPLETION_PUBLIC:
        object.flags |= OBJECT_PUBLIC
    object.checked_us = engine.now_us
    object.expires_us = engine.now_us + <uint64_t>completion.ttl_s * 1000000
    cache_insert(engine.cache, object)
    cache_drop(object)
    engine.keeps_answers = 1
