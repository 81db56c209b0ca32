"""State functions that all protocol modules share: from a request to what answers it, after the paper's figure 1.

The rules:

- A state function does its own state's work and returns an event; the table decides what follows. None asks for a role.
- They take a request as its protocol's parser has described it (parse.Head): a method, a path, maybe more. None looks
  at how it was written.
- Answers leave in the order of requests. The Send Engine lets an answer of the engine's own wait (EVENT_OWED) until
  nothing of its connection is in user mode; a request for user mode may join those that are.
- Request data is on the stack; a request that rests in user mode leaves a record (Deferred) that holds what its answer
  and its line in the log will need.
- Where a disk must be waited for, the request rests (EVENT_COLD) until it was, and is derived anew.
- A file that has siblings in other content codings is cached once for each coding that was asked for. Each of these
  objects knows which codings there are, so whichever is found tells which one a client wants.
"""
from libc.stdint cimport uint32_t
from libc.string cimport memcpy

from batchbridge.cython_ext.cache cimport (
    OBJECT_FILE, OBJECT_PUBLIC, OBJECT_STALE, OBJECT_VARIES, CacheObject, cache_drop, cache_find, cache_hold,
    cache_insert, cache_remove, hash_bytes, object_whole)
from batchbridge.cython_ext.codings cimport CODING_IDENTITY, Ranking, choose_coding, rank_codings
from batchbridge.cython_ext.core cimport (
    IS_FINAL, IS_WARM, NO_ROUTE, OUTCOME_FILE, OUTCOME_HIT, Connection, Engine, Request, Route)
from batchbridge.cython_ext.defer cimport DEFER_TAKEN, defer_request, request_key
from batchbridge.cython_ext.files cimport (
    FILE_ABSENT, FILE_BUSY, FILE_CHANGED, FILE_COLD, FILE_DIRECTORY, FILE_LISTING, FILE_OBJECT, FILE_OPEN, FILE_SAME,
    FILE_UNKNOWN, REPRESENTATION_KEY_SIZE_MAX, file_compare, file_is_trusted, file_open, file_reopen,
    representation_key)
from batchbridge.cython_ext.openings cimport opening_begin
from batchbridge.cython_ext.parse cimport (
    HEAD_CREDENTIALS, HEAD_DOTS, HEAD_ESCAPED, HEAD_KEEP_ALIVE, HEAD_NO_CACHE, METHOD_CONNECT, METHOD_COUNT,
    METHOD_DELETE, METHOD_GET, METHOD_HEAD, METHOD_OPTIONS, METHOD_OTHER, METHOD_PATCH, METHOD_POST, METHOD_PUT,
    METHOD_TRACE, TARGET_ASTERISK, Head)
from batchbridge.cython_ext.path cimport decode_path
from batchbridge.cython_ext.publish cimport publish_second
from batchbridge.cython_ext.route cimport match_route
from batchbridge.cython_ext.states cimport (
    EVENT_ABSENT, EVENT_COLD, EVENT_FAILED, EVENT_HIT, EVENT_LISTING, EVENT_MISS, EVENT_NO_ROUTE, EVENT_NO_SERVER,
    EVENT_OBJECT, EVENT_OWED, EVENT_QUEUED, EVENT_QUEUE_FULL, EVENT_ROUTE, EVENT_SERVER, EVENT_STATUS, EVENT_UNSUITED)


cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...) noexcept


cdef enum:
    KEY_SIZE_MAX = 4096
    PATH_SIZE_MAX = 8192
    LOCATION_SIZE_MAX = 9000        # leaves room in Engine.lines for the status in plain text
    RETRY_AFTER_S = 1
    STALE_SERVED_US_MAX = 1000000   # of a softly purged answer, while a new one is made


# --- Derive Cached Response ------------------------------------------------------------------------------------------

cdef int path_of(const Request *request, char *out) noexcept nogil:
    """The decoded path of a request; its length, or -400 (or -414) for one that names nothing."""
    cdef const Head *head = request.head
    if head.flags & (HEAD_ESCAPED | HEAD_DOTS):
        return decode_path(request.data + head.path.offset, head.path.length, out, PATH_SIZE_MAX)
    if head.path.length > PATH_SIZE_MAX:
        return -414
    memcpy(out, request.data + head.path.offset, head.path.length)
    return <int>head.path.length


cdef int freshness(Engine *engine, Connection *connection, const Request *request, CacheObject *object) noexcept nogil:
    """Whether a file's object may be used (a FileState): it was compared with its file not long ago, or is now and is
    the same. Where some of it was not read yet, its file is opened again. FILE_UNKNOWN: the request must wait."""
    cdef char path[PATH_SIZE_MAX]
    cdef int length, state = FILE_SAME
    cdef bint may_wait = connection.flags & IS_WARM != 0
    cdef bint is_trusted = file_is_trusted(engine, object)
    if is_trusted and object_whole(object):
        return FILE_SAME
    length = path_of(request, path)
    if length <= 0:
        state = FILE_CHANGED
    elif not is_trusted:
        state = file_compare(engine, may_wait, path, <uint32_t>length, object)
    if state == FILE_SAME:
        state = file_reopen(engine, may_wait, path, <uint32_t>length, object)
    if state == FILE_SAME:
        object.flags &= ~OBJECT_STALE
    elif state == FILE_CHANGED:
        cache_remove(engine.cache, object)
    # Before it may be answered at all there is nothing to wait for.
    elif not connection.owed and not opening_begin(engine, connection, path, <uint32_t>length):
        state = FILE_CHANGED        # so that it is opened anew, which says that the server is busy
    return state


cdef bint may_be_stale(Engine *engine, const Request *request, CacheObject *object) noexcept nogil:
    """Whether a softly purged answer will do for this request: not for the first one, which gets a new one made, and
    for others only as long as that may take."""
    if request.head.method != METHOD_GET:
        return False                # what it gets is not kept
    if object.renewing_us == 0:
        object.renewing_us = engine.now_us
        return False
    if engine.now_us - object.renewing_us < STALE_SERVED_US_MAX:
        return True
    cache_remove(engine.cache, object)
    return False


cdef CacheObject *find_answer(Engine *engine, Request *request) noexcept nogil:
    """A handler's answer that was cached, for a request whose route may have such."""
    cdef char key[KEY_SIZE_MAX]
    cdef uint32_t length
    cdef uint32_t allowed = 0
    cdef CacheObject *object
    if not engine.keeps_answers or request.head.flags & HEAD_NO_CACHE:
        return NULL
    request.route = match_route(engine, request.data, &request.head.path, request.head.method, request.parameters,
                                &request.parameter_count, &allowed)
    if request.route == NO_ROUTE:
        return NULL
    length = request_key(engine, request, key, KEY_SIZE_MAX)
    if length == 0:
        return NULL
    object = cache_find(engine.cache, hash_bytes(key, length, engine.seed), key, length, engine.now_us)
    if object is not NULL and request.head.flags & HEAD_CREDENTIALS and not object.flags & OBJECT_PUBLIC:
        return NULL
    if object is not NULL and object.flags & OBJECT_STALE and not may_be_stale(engine, request, object):
        return NULL
    return object


cdef CacheObject *find_coded(Engine *engine, const Request *request, int coding) noexcept nogil:
    """The cached object of the file in a coding, or NULL."""
    cdef const Head *head = request.head
    cdef char key[REPRESENTATION_KEY_SIZE_MAX]
    cdef uint32_t length = representation_key(request.data + head.path.offset, head.path.length, coding, key)
    if length == 0:
        return NULL
    return cache_find(engine.cache, hash_bytes(key, length, engine.seed), key, length, engine.now_us)


cdef CacheObject *find_representation(Engine *engine, const Request *request, CacheObject *object) noexcept nogil:
    """The cached object in the coding that the client wants most, of those that the file has; NULL: it is not cached.

    `object` is the file as it is, or NULL. Any of the file's objects tells which codings there are.
    """
    cdef Ranking ranking
    cdef CacheObject *found = object
    cdef uint32_t index
    cdef int coding
    if object is not NULL and not object.flags & OBJECT_VARIES:
        return object
    if object is NULL and not engine.keeps_coded:
        return NULL
    rank_codings(request.data, request.head, engine.codings, engine.coding_count, &ranking)
    for index in range(ranking.count):
        if found is not NULL:
            break
        if ranking.codings[index] != CODING_IDENTITY:
            found = find_coded(engine, request, ranking.codings[index])
    if found is NULL:
        return NULL
    coding = choose_coding(&ranking, found.codings & 15)
    if coding == found.codings >> 4:
        return found
    engine.cache.hits -= 1          # it only told the way
    object = find_coded(engine, request, coding)
    if object is not NULL and object.codings & 15 != found.codings & 15:
        # A sibling came or went between the two. The one is compared with the disk when it is next asked for.
        engine.cache.hits -= 1
        cache_remove(engine.cache, found)
        return NULL
    return object


cdef int derive_cached_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    cdef Engine *engine = <Engine *>engine_data
    cdef Connection *connection = <Connection *>connection_data
    cdef Request *request = <Request *>request_data
    cdef const Head *head = request.head
    cdef const char *path = request.data + head.path.offset
    cdef CacheObject *object
    cdef int state
    if head.method != METHOD_GET and head.method != METHOD_HEAD:
        return EVENT_MISS
    object = cache_find(engine.cache, hash_bytes(path, head.path.length, engine.seed), path, head.path.length,
                        engine.now_us)
    if engine.coding_count:
        object = find_representation(engine, request, object)
    if object is not NULL and object.flags & OBJECT_FILE:
        state = freshness(engine, connection, request, object)
        if state == FILE_UNKNOWN:
            engine.cache.hits -= 1          # it is one when it is looked up again
            return EVENT_COLD
        if state == FILE_CHANGED:
            object = NULL
    if object is NULL:
        object = find_answer(engine, request)
    if object is NULL:
        engine.cache.misses += 1
        return EVENT_MISS
    request.object = object
    request.outcome = OUTCOME_HIT
    if not object_whole(object):
        # Its file is open: closed when this, and whoever else needs it, is through with the object.
        cache_hold(object)
        request.owns_object = 1
    if engine.tier is not NULL:
        publish_second(engine, connection, request)
    return EVENT_HIT


# --- Derive Miss Response --------------------------------------------------------------------------------------------

cdef int derive_miss_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    """Whose request it is: a route's, or nobody's in particular."""
    cdef Engine *engine = <Engine *>engine_data
    cdef Request *request = <Request *>request_data
    cdef const Head *head = request.head
    if head.target_form == TARGET_ASTERISK:
        request.allowed_methods = ALL_METHODS
        return say(request, 204)
    request.route = match_route(engine, request.data, &head.path, head.method, request.parameters,
                                &request.parameter_count, &request.allowed_methods)
    if request.route != NO_ROUTE:
        return EVENT_ROUTE
    if request.allowed_methods:
        request.allowed_methods |= 1u << METHOD_OPTIONS
        if is_unknown(head.method):
            return say(request, 501)
        return say(request, 204 if head.method == METHOD_OPTIONS else 405)
    return EVENT_NO_ROUTE


cdef bint is_unknown(int method) noexcept nogil:
    """Methods that this server implements nowhere by itself (RFC 9110 section 9.1: 501, not 405)."""
    return method in (METHOD_OTHER, METHOD_CONNECT, METHOD_TRACE)


cdef int say(Request *request, int status) noexcept nogil:
    """A response that is its status (and a few header lines)."""
    request.status = status
    return EVENT_STATUS


# --- Derive Uncached Response ----------------------------------------------------------------------------------------

cdef int derive_uncached_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    """A file below the root becomes a cache object."""
    cdef Engine *engine = <Engine *>engine_data
    cdef Connection *connection = <Connection *>connection_data
    cdef Request *request = <Request *>request_data
    cdef const Head *head = request.head
    cdef char path[PATH_SIZE_MAX]
    cdef int length, result
    cdef Ranking ranking
    if connection.owed:
        return EVENT_OWED           # before a file is opened for nothing
    if engine.root < 0:
        request.status = 404
        return EVENT_ABSENT
    if head.method != METHOD_GET and head.method != METHOD_HEAD:
        request.allowed_methods = FILE_METHODS
        request.status = 204 if head.method == METHOD_OPTIONS else 405
        if is_unknown(head.method):
            request.status = 501
        return EVENT_UNSUITED
    length = path_of(request, path)
    if length <= 0:
        request.status = -length if length else 400
        return EVENT_FAILED
    rank_codings(request.data, head, engine.codings, engine.coding_count, &ranking)
    result = file_open(engine, connection.flags & IS_WARM != 0, path, <uint32_t>length, &ranking,
                       request.data + head.path.offset, head.path.length, &request.object)
    if result == FILE_COLD:
        if opening_begin(engine, connection, path, <uint32_t>length):
            engine.cache.misses -= 1        # it is one when it is looked up again
            return EVENT_COLD
        result = FILE_BUSY
    if result == FILE_OBJECT or result == FILE_OPEN:
        request.owns_object = 1
        request.outcome = OUTCOME_FILE
        if result == FILE_OBJECT:
            cache_insert(engine.cache, request.object)
            engine.keeps_coded |= request.object.codings > 15
        return EVENT_OBJECT
    if result == FILE_DIRECTORY:
        return redirect_to_directory(engine, request)
    if result == FILE_LISTING:
        request.status = 404
        request.route = engine.listing_route
        return EVENT_LISTING
    request.status = result
    return EVENT_ABSENT if result == FILE_ABSENT else EVENT_FAILED


cdef int redirect_to_directory(Engine *engine, Request *request) noexcept nogil:
    """The path as it was sent, with "/" behind it. Relative (RFC 9110 section 10.2.2): no Host is trusted for it.

    "//name" would name another host, so a path that begins so is answered as absent.
    """
    cdef const Head *head = request.head
    cdef const char *path = request.data + head.path.offset
    cdef int length
    if head.path.length > 1 and path[1] == c'/':
        request.status = 404
        return EVENT_ABSENT
    length = snprintf(engine.lines, LOCATION_SIZE_MAX, b"Location: %.*s/%s%.*s", <int>head.path.length, path,
                      <const char *>b"?" if head.query.offset else <const char *>b"", <int>head.query.length,
                      request.data + head.query.offset)
    if length >= LOCATION_SIZE_MAX:
        request.status = 414
        return EVENT_FAILED
    memcpy(engine.lines + length, b"\r\n", 2)
    request.extra = engine.lines
    request.extra_length = <uint32_t>length + 2
    request.status = 301
    return EVENT_STATUS


# --- Derive Deferred Response, Derive Remote Response, Defer Request ---------------------------------------------

cdef int derive_deferred_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    """The route's handler will answer, or the user-mode server that takes what has no route."""
    cdef Engine *engine = <Engine *>engine_data
    cdef Request *request = <Request *>request_data
    cdef const Route *route
    if request.route == NO_ROUTE:
        request.route = engine.fallback_route
    if request.route == NO_ROUTE:
        if request.status == 0:
            request.status = 404
        return EVENT_NO_SERVER
    route = &engine.routes[request.route]
    if route.array_size_bytes and request.body_length != route.array_size_bytes:
        return say(request, 422)
    request.status = 0
    return EVENT_SERVER


cdef int derive_remote_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    """The upstream will answer. (Through user mode still; the upstream engine's place is here.)"""
    cdef Engine *engine = <Engine *>engine_data
    cdef Request *request = <Request *>request_data
    if engine.remote_route == NO_ROUTE:
        request.status = 502
        return EVENT_NO_SERVER
    request.route = engine.remote_route
    request.status = 0
    return EVENT_SERVER


cdef int defer_to_user_mode(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    cdef Engine *engine = <Engine *>engine_data
    cdef Connection *connection = <Connection *>connection_data
    cdef Request *request = <Request *>request_data
    if not request.head.flags & HEAD_KEEP_ALIVE:
        # Nothing behind it will be answered; the connection is last once this answer was taken.
        connection.flags |= IS_FINAL
    if defer_request(engine, connection, request) == DEFER_TAKEN:
        return EVENT_QUEUED
    connection.flags &= ~IS_FINAL
    if connection.owed:
        return EVENT_OWED
    engine.routes[request.route].queue_full += 1
    request.status = 503
    return EVENT_QUEUE_FULL


# --- Derive Status Response ------------------------------------------------------------------------------------------

cdef const char *METHOD_TEXT[10]
METHOD_TEXT[:] = [b"", b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"", b""]

cdef uint32_t ALL_METHODS = (1 << METHOD_GET | 1 << METHOD_HEAD | 1 << METHOD_POST | 1 << METHOD_PUT
                             | 1 << METHOD_DELETE | 1 << METHOD_OPTIONS | 1 << METHOD_PATCH)
cdef uint32_t FILE_METHODS = 1 << METHOD_GET | 1 << METHOD_HEAD | 1 << METHOD_OPTIONS


cdef int put_allow(char *at, uint32_t methods) noexcept nogil:
    cdef int length = snprintf(at, 32, b"Allow: ")
    cdef int method, first = length
    if methods & (1u << METHOD_GET):
        methods |= 1u << METHOD_HEAD
    for method in range(METHOD_COUNT):
        if methods & (1u << method) and METHOD_TEXT[method][0]:
            length += snprintf(at + length, 16, b"%s%s", <const char *>b", " if length > first else <const char *>b"",
                               METHOD_TEXT[method])
    return length + snprintf(at + length, 4, b"\r\n")


cdef int derive_status_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil:
    """Header lines for a response that the engine makes up itself."""
    cdef Engine *engine = <Engine *>engine_data
    cdef Request *request = <Request *>request_data
    if request.owns_object:             # a table that makes something else of a file
        cache_drop(request.object)
        request.owns_object = 0
    request.object = NULL
    request.answer = NULL
    if request.status == 0:
        request.status = 500        # a table led here without a reason
    if request.status == 405 or (request.status == 204 and request.allowed_methods):
        request.extra = engine.lines
        request.extra_length = <uint32_t>put_allow(engine.lines, request.allowed_methods)
    elif request.status == 503:
        request.extra = engine.lines
        request.extra_length = <uint32_t>snprintf(engine.lines, 40, b"Retry-After: %d\r\n", <int>RETRY_AFTER_S)
    return EVENT_STATUS
