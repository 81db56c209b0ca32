"""Native handlers: batches that compiled functions answer, without the interpreter.

The rules:

- The same slabs, lanes, limits and counters as for Python handlers; no GIL, no object and no allocation a batch. The
  interpreter is entered only to log what a handler did wrong.
- An answer is looked at before anything is written. One that is refused leaves its item unanswered; no other item and
  no other batch sees anything of it.
- A batch never ends with an item unanswered: what its handler left gets 500.
- A slab's batch is released behind the handler's return, and no earlier: answers that were shown already may have
  ended all its items.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_IsValid
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strlen

from batchbridge.cython_ext.bridge cimport (
    COMPLETION_PUBLIC, Dispatch, Item, Slab, lane_dispatch_taken, lane_next_dispatch, slab_at, slab_items)
from batchbridge.cython_ext.handler_abi cimport (
    BB_ANSWERED_BEFORE, BB_BAD_HEADER, BB_BAD_STATUS, BB_CAPSULE_NAME, BB_HANDLER_ABI, BB_NO_ITEM, BB_NOT_CACHEABLE,
    BB_OK, BB_PUBLIC, BB_TOO_LARGE, bb_batch, bb_function, bb_functions, bb_handler, bb_request, bb_response, bb_text)
from batchbridge.cython_ext.lane_end cimport (
    WorkerLane, lane_answer_status, lane_answer_text, lane_answer_written, lane_end_batch)
from batchbridge.cython_ext.parse cimport METHOD_GET, METHOD_HEAD, Head, Slice, next_header
from batchbridge.cython_ext.response cimport FIELD_FINE, HEADERS_SIZE_MAX, field_fault


cdef extern from "compat.h" nogil:
    uint32_t bb_fetch_add(uint32_t *, uint32_t) noexcept
    uint32_t bb_load_relaxed(const uint32_t *) noexcept
    uint64_t bb_now_us() noexcept


cdef enum:
    HEADER_COUNT_MAX = 256
    TAGS_SIZE_MAX = 16384

cdef const char *TYPE_NAME = b"Content-Type"
cdef const char *TYPE_USUAL = b"application/octet-stream"

HANDLER_ABI = BB_HANDLER_ABI
CAPSULE_NAME = BB_CAPSULE_NAME.decode()

#: Why an answer was refused, as it is told.
REFUSALS = {
    BB_NO_ITEM: "the batch has no such item",
    BB_ANSWERED_BEFORE: "the item was answered before",
    BB_BAD_STATUS: "the status is not 200 to 599",
    BB_TOO_LARGE: "the body is larger than response_size_bytes_max, or there is none where it has a length",
    BB_BAD_HEADER: "a header's name or value would break the message, or is the engine's to set",
    BB_NOT_CACHEABLE: "only answers to GET and HEAD can be cached, and tags have an end and a limit",
}


# What a handler is given begins with what it may see.
cdef struct NativeBatch:
    bb_batch face
    WorkerLane *worker
    const NativeRoute *route
    Slab *slab
    Item *items                     # items[0] is the batch's first
    uint8_t *answered
    uint32_t first                  # the slab's number of it
    uint32_t count                  # as face.size, which a handler could write to
    uint32_t unanswered
    uint32_t refused
    int refusal                     # of the first that was


# --- looking at requests ---------------------------------------------------------------------------------------------

cdef void set_text(bb_text *text, const char *head, const Slice *part) noexcept nogil:
    text.data = head + part.offset if part.offset or part.length else NULL
    text.length = part.length


cdef int get_request(const bb_batch *face, uint32_t index, bb_request *request, size_t size_bytes) noexcept nogil:
    cdef const NativeBatch *batch = <const NativeBatch *>face
    cdef bb_request whole
    if index >= batch.count:
        memset(request, 0, size_bytes)
        return BB_NO_ITEM
    if size_bytes == sizeof(bb_request):
        fill_request(batch, index, request)
    else:                           # of another version
        fill_request(batch, index, &whole)
        memset(request, 0, size_bytes)
        memcpy(request, &whole, min(size_bytes, sizeof(bb_request)))
    return BB_OK


cdef void fill_request(const NativeBatch *batch, uint32_t index, bb_request *request) noexcept nogil:
    cdef const Item *item = &batch.items[index]
    cdef const char *head
    cdef uint32_t number
    head = <const char *>batch.slab + item.head_offset
    # The method is the one part that may begin a head.
    request.method.data = head + item.method_name.offset
    request.method.length = item.method_name.length
    set_text(&request.target, head, &item.target)
    set_text(&request.path, head, &item.path)
    set_text(&request.query, head, &item.query)
    set_text(&request.authority, head, &item.authority)
    set_text(&request.headers, head, &item.headers)
    request.body.data = <const char *>batch.slab + item.body_offset
    request.body.length = item.body_length
    request.parameter_count = item.parameter_count
    for number in range(8):
        if number < item.parameter_count:
            set_text(&request.parameters[number], head, &item.parameters[number])
        else:
            request.parameters[number].data = NULL
            request.parameters[number].length = 0
    request.minor_version = item.version_minor
    request.address = <const uint8_t *><const void *>item.address
    request.family = item.family
    request.port = item.port


cdef int get_header(const bb_batch *face, uint32_t index, const char *name, bb_text *value) noexcept nogil:
    cdef const NativeBatch *batch = <const NativeBatch *>face
    cdef size_t length = strlen(name)
    cdef Head head
    cdef Slice found, text
    cdef uint32_t cursor
    cdef const char *data
    value.data = NULL
    value.length = 0
    if index >= batch.count:
        return BB_NO_ITEM
    data = <const char *>batch.slab + batch.items[index].head_offset
    head.headers = batch.items[index].headers
    cursor = head.headers.offset
    while next_header(data, &head, &cursor, &found, &text):
        if found.length == length and same_name(data + found.offset, name, found.length):
            value.data = data + text.offset
            value.length = text.length
            return 1
    return 0


cdef bint same_name(const char *one, const char *other, uint32_t length) noexcept nogil:
    cdef uint32_t position
    for position in range(length):
        if one[position] | 0x20 != other[position] | 0x20:
            return False
    return True


cdef int is_cancelled(const bb_batch *face, uint32_t index) noexcept nogil:
    cdef const NativeBatch *batch = <const NativeBatch *>face
    if index >= batch.count:
        return BB_NO_ITEM
    return bb_load_relaxed(&batch.items[index].cancelled) != 0


cdef int64_t time_left_us(const bb_batch *face, uint32_t index) noexcept nogil:
    cdef const NativeBatch *batch = <const NativeBatch *>face
    cdef uint64_t now_us
    if index >= batch.count or batch.items[index].deadline_us == 0:
        return -1
    now_us = bb_now_us() + batch.worker.lane.shared.clock_offset_us
    return <int64_t>(batch.items[index].deadline_us - min(batch.items[index].deadline_us, now_us))


# --- answering -------------------------------------------------------------------------------------------------------

cdef int note_refusal(NativeBatch *batch, int why) noexcept nogil:
    if batch.refused == 0:
        batch.refusal = why
    batch.refused += 1
    return why


cdef const char *type_of(const bb_response *response) noexcept nogil:
    """The Content-Type beside the answer's own headers; NULL: none."""
    cdef uint32_t index
    if response.content_type is not NULL and response.content_type[0] == 0:
        return NULL
    for index in range(response.header_count):
        if strlen(response.headers[index].name) == 12 and same_name(response.headers[index].name, TYPE_NAME, 12):
            return NULL
    return TYPE_USUAL if response.content_type is NULL else response.content_type


cdef int64_t head_length(const bb_response *response, const char *content_type, const NativeRoute *route,
                         bint is_head) noexcept nogil:
    """Bytes of the answer's header lines, with their empty last one. -1: one of them is refused."""
    cdef uint64_t total = 2 + route.vary_length
    cdef uint32_t index
    cdef size_t name, value
    if content_type is not NULL:
        value = strlen(content_type)
        if content_type is not TYPE_USUAL and (
                value > HEADERS_SIZE_MAX or field_fault(TYPE_NAME, 12, content_type, value, False) != FIELD_FINE):
            return -1
        total += 12 + 2 + value + 2
    for index in range(response.header_count):
        name, value = strlen(response.headers[index].name), strlen(response.headers[index].value)
        if value > HEADERS_SIZE_MAX or field_fault(response.headers[index].name, name, response.headers[index].value,
                                                   value, is_head and response.length == 0) != FIELD_FINE:
            return -1
        total += name + 2 + value + 2
    return <int64_t>total if total <= HEADERS_SIZE_MAX else -1


cdef char *put_line(char *at, const char *name, const char *value) noexcept nogil:
    cdef size_t name_length = strlen(name), value_length = strlen(value)
    memcpy(at, name, name_length)
    memcpy(at + name_length, b": ", 2)
    memcpy(at + name_length + 2, value, value_length)
    memcpy(at + name_length + 2 + value_length, b"\r\n", 2)
    return at + name_length + value_length + 4


cdef int answer(bb_batch *face, uint32_t index, const bb_response *response, size_t size_bytes) noexcept nogil:
    cdef bb_response whole
    if size_bytes >= sizeof(bb_response):
        return put_answer(<NativeBatch *>face, index, response)
    memset(&whole, 0, sizeof(whole))
    memcpy(&whole, response, size_bytes)
    return put_answer(<NativeBatch *>face, index, &whole)


cdef int put_answer(NativeBatch *batch, uint32_t index, const bb_response *response) noexcept nogil:
    cdef const NativeRoute *route = batch.route
    cdef const char *content_type
    cdef int status = <int>response.status if response.status else 200
    cdef int64_t lines
    cdef uint32_t number, method
    cdef char *at
    if index >= batch.count:
        return note_refusal(batch, BB_NO_ITEM)
    if batch.answered[index]:
        return note_refusal(batch, BB_ANSWERED_BEFORE)
    if not 200 <= status <= 599:
        return note_refusal(batch, BB_BAD_STATUS)
    if response.length > batch.worker.response_size_bytes_max or (response.length and response.body is NULL):
        return note_refusal(batch, BB_TOO_LARGE)
    method = batch.items[index].method
    if (response.cache_ttl_s and method not in (METHOD_GET, METHOD_HEAD)) or not tags_are_fine(response):
        return note_refusal(batch, BB_NOT_CACHEABLE)
    if not headers_are_there(response):
        return note_refusal(batch, BB_BAD_HEADER)
    content_type = type_of(response)
    lines = head_length(response, content_type, route, method == METHOD_HEAD)
    if lines < 0:
        return note_refusal(batch, BB_BAD_HEADER)
    batch.answered[index] = 1
    batch.unanswered -= 1
    at = lane_answer_text(batch.worker, batch.slab, batch.first + index, status, <uint32_t>lines, response.length,
                          <uint32_t>response.tags_length, min(response.cache_ttl_s, <uint32_t>0x7FFFFFFF),
                          COMPLETION_PUBLIC if response.flags & BB_PUBLIC else 0)
    if at is NULL:
        return BB_OK            # there is no memory left: it has been answered 503
    if content_type is not NULL:
        at = put_line(at, TYPE_NAME, content_type)
    for number in range(response.header_count):
        at = put_line(at, response.headers[number].name, response.headers[number].value)
    if route.vary_length:
        memcpy(at, route.vary_line, route.vary_length)
        at += route.vary_length
    memcpy(at, b"\r\n", 2)
    if response.length:
        memcpy(at + 2, response.body, response.length)
    if response.tags_length:
        memcpy(at + 2 + response.length, response.tags, response.tags_length)
    lane_answer_written(batch.worker)
    return BB_OK


cdef bint tags_are_fine(const bb_response *response) noexcept nogil:
    if response.tags_length == 0:
        return True
    return (response.tags is not NULL and response.tags_length <= TAGS_SIZE_MAX
            and response.tags[response.tags_length - 1] == 0)


cdef bint headers_are_there(const bb_response *response) noexcept nogil:
    cdef uint32_t index
    if response.header_count > HEADER_COUNT_MAX or (response.header_count and response.headers is NULL):
        return False
    for index in range(response.header_count):
        if response.headers[index].name is NULL or response.headers[index].value is NULL:
            return False
    return True


cdef int respond(bb_batch *face, uint32_t index, int status, const char *content_type, const void *body,
                 size_t length) noexcept nogil:
    cdef bb_response response
    if status == 0:
        return note_refusal(<NativeBatch *>face, BB_BAD_STATUS)
    memset(&response, 0, sizeof(response))
    response.status = <uint32_t>status
    response.content_type = content_type
    response.body = body
    response.length = length
    return put_answer(<NativeBatch *>face, index, &response)


cdef bb_functions FUNCTIONS
FUNCTIONS.request = get_request
FUNCTIONS.header = get_header
FUNCTIONS.cancelled = is_cancelled
FUNCTIONS.time_left_us = time_left_us
FUNCTIONS.respond = respond
FUNCTIONS.answer = answer


# --- batches ---------------------------------------------------------------------------------------------------------

cdef void run_batch(NativeWorker *native, const Dispatch *dispatch) noexcept nogil:
    cdef WorkerLane *worker = native.worker
    cdef NativeBatch batch
    cdef uint32_t index
    batch.worker = worker
    batch.route = &native.routes[dispatch.route]
    batch.slab = slab_at(&worker.slabs, dispatch.slab)
    batch.first = dispatch.first
    batch.items = slab_items(batch.slab) + dispatch.first
    batch.count = dispatch.count
    batch.unanswered = dispatch.count
    batch.answered = native.answered
    batch.refused = 0
    batch.refusal = BB_OK
    batch.face.abi = BB_HANDLER_ABI
    batch.face.size = dispatch.count
    batch.face.functions = &FUNCTIONS
    batch.face.context = batch.route.context
    batch.face.stride = batch.slab.array_stride
    batch.face.bodies = <const char *>batch.slab + batch.items[0].body_offset if batch.slab.array_stride else NULL
    worker.show_after = dispatch.response_batch_size
    memset(batch.answered, 0, dispatch.count)
    batch.route.function(&batch.face)
    if batch.unanswered or batch.refused:
        worker.lane.shared.items_unanswered += batch.unanswered
        worker.lane.shared.answers_refused += batch.refused
        native.report(native.owner, dispatch.route, batch.unanswered, batch.refused, batch.refusal)
        for index in range(dispatch.count):
            if not batch.answered[index]:
                lane_answer_status(worker, batch.slab, batch.first + index, 500)
    bb_fetch_add(&batch.slab.batches_released, 1)
    lane_end_batch(worker, dispatch.slab, dispatch.route)


cdef NativeStep native_step(NativeWorker *native) noexcept nogil:
    cdef Dispatch *next_one = lane_next_dispatch(&native.worker.lane)
    cdef Dispatch dispatch
    if next_one is NULL:
        return NATIVE_NOTHING
    if native.routes[next_one.route].function is NULL:
        return NATIVE_OTHER
    dispatch = next_one[0]
    lane_dispatch_taken(&native.worker.lane)
    native.worker.lane.shared.batches += 1
    native.worker.lane.shared.items += dispatch.count
    run_batch(native, &dispatch)
    return NATIVE_RAN


cdef NativeStep native_run(NativeWorker *native) noexcept nogil:
    cdef NativeStep step = NATIVE_RAN
    while step == NATIVE_RAN:
        step = native_step(native)
    return step


# --- as Python sees it -----------------------------------------------------------------------------------------------

cdef class NativeRoutes:
    """The native ones among `handlers` (batchbridge.handlers.Handler, by the engine's numbers), for one worker.

    `batch_size_max`: items of the largest batch that the worker can be given.
    """

    def __init__(self, list handlers, uint32_t batch_size_max):
        cdef NativeRoute *route
        cdef bytes line
        self.kept = list(handlers)
        self.native.routes = <NativeRoute *>calloc(max(1, len(handlers)), sizeof(NativeRoute))
        self.native.answered = <uint8_t *>calloc(max(<uint32_t>1, batch_size_max), 1)
        if self.native.routes is NULL or self.native.answered is NULL:
            raise MemoryError
        for number, handler in enumerate(handlers):
            if handler.native is None:
                continue
            route = &self.native.routes[<Py_ssize_t>number]
            route.function = <bb_function><void *><uintptr_t>handler.native.address
            route.context = <void *><uintptr_t>handler.native.context
            if handler.vary:
                line = f"Vary: {', '.join(handler.vary)}\r\n".encode("ascii")
                self.kept.append(line)
                route.vary_line = <const char *>line
                route.vary_length = <uint32_t>len(line)

    def __dealloc__(self):
        free(self.native.routes)
        free(self.native.answered)


def read_capsule(capsule: object) -> tuple | None:
    """(abi, address of the function, address of the context, name or None) of a capsule named CAPSULE_NAME.

    None: it is no capsule of that name.
    """
    cdef bb_handler *handler
    if not PyCapsule_IsValid(capsule, BB_CAPSULE_NAME):
        return None
    handler = <bb_handler *>PyCapsule_GetPointer(capsule, BB_CAPSULE_NAME)
    name = handler.name.decode("utf-8", "replace") if handler.name is not NULL else None
    return handler.abi, <uintptr_t><void *>handler.function, <uintptr_t>handler.context, name
