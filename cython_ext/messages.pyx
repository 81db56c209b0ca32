"""What handlers see: batches and requests, as Python objects over the bridge's shared memory.

The rules:

- Nothing is made that is not asked for: a batch knows its items' places, and makes a Request, a header table or a
  memoryview when a handler touches it. A handler that takes the batch as an array, and returns one, makes no object
  per item at all.
- A batch's memory stays as it is for as long as anything refers to it: views and arrays hold their batch, and the slab
  counts batches of which nothing is left.
- Each item is completed exactly once: answered by the handler, or given a status by the worker.
"""
import ipaddress
import json
from collections.abc import Mapping, Sequence
from urllib.parse import parse_qsl, unquote

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from batchbridge.cython_ext.bridge cimport (
    COMPLETION_BATCH_END, COMPLETION_HEAP, COMPLETION_PUBLIC, Completion, Dispatch, Slab, lane_completion,
    lane_heap_response, lane_response, lane_show, slab_at, slab_items)
from batchbridge.cython_ext.parse cimport METHOD_GET, METHOD_HEAD

from batchbridge.cython_ext.bridge import REASON_NAMES
from batchbridge.errors import AlreadyAnsweredError, HTTPError


cdef extern from "compat.h" nogil:
    uint32_t bb_fetch_add(uint32_t *, uint32_t) noexcept
    uint32_t bb_load_relaxed(const uint32_t *) noexcept
    uint64_t bb_now_us() noexcept


cdef extern from "<unistd.h>" nogil:
    ssize_t write(int, const void *, size_t) noexcept


METHOD_NAMES = ("", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE")

cdef bytes BYTES_HEADERS = b"Content-Type: application/octet-stream\r\n\r\n"
cdef bytes TEXT_HEADERS = b"Content-Type: text/plain; charset=utf-8\r\n\r\n"
cdef frozenset ENGINE_HEADERS = frozenset((b"content-length", b"connection", b"transfer-encoding", b"date", b"server",
                                           b"keep-alive", b"upgrade", b"trailer"))
cdef frozenset TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


# --- responses -------------------------------------------------------------------------------------------------------

class Response:
    """A response to return from a handler for one item.

    ``body`` is bytes-like or str (then UTF-8); ``content_type`` defaults to ``application/octet-stream`` or, for a str,
    ``text/plain; charset=utf-8``. ``headers`` are further (name, value) pairs or a mapping. ``cache_ttl_s`` lets the
    engine answer identical GET and HEAD requests by itself for so many seconds, ``tags`` name it for a purge,
    ``public`` allows both although the request had credentials.
    """

    __slots__ = ("body", "status", "content_type", "headers", "cache_ttl_s", "tags", "public")

    def __init__(self, body=b"", status=200, *, content_type=None, headers=(), cache_ttl_s=None, tags=(), public=False):
        self.body = body
        self.status = status
        self.content_type = content_type
        self.headers = headers
        self.cache_ttl_s = cache_ttl_s
        self.tags = tags
        self.public = public

    def __repr__(self):
        return f"<Response {self.status}, {len(self.body)} bytes>"


cdef bytes header_lines(content_type, bint is_text, headers, bint length_allowed):
    """Checked header lines with their empty last one. ValueError: a name or value that would break the message.

    `length_allowed`: Content-Length may be among them. The engine tells every length but that of a body which it never
    sees: the one that GET would have had, in the answer to a HEAD request (RFC 9110 section 8.6).
    """
    cdef bytes name, value
    if content_type is None and not headers:
        return TEXT_HEADERS if is_text else BYTES_HEADERS
    lines = []
    if content_type is None:
        content_type = "text/plain; charset=utf-8" if is_text else "application/octet-stream"
    pairs = list(headers.items() if hasattr(headers, "items") else headers)
    if content_type and not any(str_or_bytes(name).lower() == b"content-type" for name, _ in pairs):
        pairs.insert(0, ("Content-Type", content_type))
    for given_name, given_value in pairs:
        name, value = str_or_bytes(given_name), str_or_bytes(given_value)
        if not name or not TOKEN_BYTES.issuperset(name):
            raise ValueError(f"{given_name!r} is not a header name")
        if b"\r" in value or b"\n" in value or b"\0" in value:
            raise ValueError(f"the value of header {given_name!r} has a line end or a NUL: {given_value!r}")
        if name.lower() in ENGINE_HEADERS and not (
                length_allowed and name.lower() == b"content-length" and value.isdigit()):
            raise ValueError(f"the header {given_name!r} is the engine's to set")
        lines.append(b"%b: %b\r\n" % (name, value.strip()))
    text = b"".join(lines) + b"\r\n"
    if len(text) > 16384:
        raise ValueError(f"{len(text)} bytes of header lines are more than 16384")
    return text


cdef bytes tags_text(tags):
    """Tags, each ended by NUL. ValueError: one holds a NUL."""
    names = [str(tag).encode() for tag in tags]
    for name in names:
        if b"\0" in name:
            raise ValueError(f"the tag {name.decode()!r} holds a NUL")
    return b"".join(name + b"\0" for name in names)


cdef bytes str_or_bytes(text):
    return text if isinstance(text, bytes) else str(text).encode("latin-1")


# --- a worker's end of a lane ----------------------------------------------------------------------------------------

@cython.no_gc_clear
cdef class LaneEnd:
    """A worker's end of a lane.

    The collector must not take its memory away while a batch in the same cycle still refers to it (no_gc_clear).
    """

    cdef Completion *completion(self, Slab *slab, uint32_t item, int status) noexcept:
        # Never NULL: the engine gives a worker no more items than the ring has entries.
        cdef Completion *completion = lane_completion(&self.lane)
        completion.slab = slab.index
        completion.item = item
        completion.status = <unsigned short>status
        completion.flags = 0
        completion.offset = 0
        completion.headers_length = 0
        completion.body_length = 0
        completion.ttl_s = 0
        completion.tags_length = 0
        return completion

    cdef int complete(self, Slab *slab, uint32_t item, int status, const char *headers, uint32_t headers_length,
                      const char *body, uint64_t body_length, uint32_t ttl_s, uint32_t flags, bytes tags) except -1:
        cdef uint32_t offset = 0
        cdef uint32_t tags_length = <uint32_t>len(tags) if tags is not None else 0
        cdef char *at
        cdef char *heap = NULL
        cdef Completion *completion
        if body_length > self.response_size_bytes_max:
            raise ValueError(f"a response of {body_length} bytes is larger than response_size_bytes_max, "
                             f"{self.response_size_bytes_max}")
        at = lane_response(&self.lane, <uint32_t>(headers_length + body_length + tags_length), &offset)
        if at is NULL:
            # Slow clients hold the arena. Waiting for them would stop every other request, so the heap must do.
            at = lane_heap_response(&self.lane, <uint32_t>(headers_length + body_length + tags_length))
            heap = at
        if at is NULL:
            self.complete_status(slab, item, 503)
            return 0
        memcpy(at, headers, headers_length)
        memcpy(at + headers_length, body, body_length)
        if tags_length:
            memcpy(at + headers_length + body_length, <const char *>tags, tags_length)
        completion = self.completion(slab, item, status)
        completion.flags = <unsigned short>(flags | COMPLETION_HEAP if heap is not NULL else flags)
        completion.offset = offset
        completion.heap = heap
        completion.headers_length = headers_length
        completion.body_length = <uint32_t>body_length
        completion.ttl_s = ttl_s
        completion.tags_length = tags_length
        self.written()
        return 0

    cdef void complete_status(self, Slab *slab, uint32_t item, int status) noexcept:
        self.completion(slab, item, status)
        self.written()

    cdef void written(self) noexcept:
        self.unshown += 1
        if self.show_after and self.unshown >= self.show_after:
            self.show()

    cdef void end_batch(self, Slab *slab, uint32_t route) noexcept:
        self.completion(slab, route, 0).flags = COMPLETION_BATCH_END
        self.show()

    cdef void show(self) noexcept:
        cdef uint64_t one = 1
        self.unshown = 0
        if lane_show(&self.lane):
            write(self.lane.engine_bell, &one, 8)


# --- batches ---------------------------------------------------------------------------------------------------------

cdef Batch open_batch(LaneEnd end, const Dispatch *dispatch, object route, object state):
    cdef Batch batch = Batch.__new__(Batch)
    batch.end = end
    batch.slab = slab_at(&end.slabs, dispatch.slab)
    batch.first = dispatch.first
    batch.items = slab_items(batch.slab) + dispatch.first
    batch.size = dispatch.count
    batch.unanswered = dispatch.count
    batch.reason_number = dispatch.reason
    batch.route = route
    batch.state = state
    batch.varies = bool(route.vary)
    batch.show_after = dispatch.response_batch_size
    batch.answered = <unsigned char *>calloc(dispatch.count, 1)
    if batch.answered is NULL:
        raise MemoryError
    return batch


@cython.final
@cython.no_gc_clear
cdef class Batch:
    """The requests that a handler is called with: a sequence of :class:`Request`.

    ``state`` is what the server's ``lifespan`` yielded, ``route`` the handler's route.
    """

    def __dealloc__(self):
        free(self.answered)
        if self.whole is None and self.slab is not NULL:
            bb_fetch_add(&self.slab.batches_released, 1)

    def __len__(self):
        return self.size if self.order is None else len(self.order)

    cdef Request request_at(self, uint32_t place):
        cdef Request request
        if self.requests is None:
            self.requests = [None] * self.size
        request = self.requests[place]
        if request is None:
            request = Request.__new__(Request)
            request.batch = self
            request.item = &self.items[place]
            request.place = place
            self.requests[place] = request
        return request

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        size = len(self)
        if not -size <= index < size:
            raise IndexError(f"item {index} of a batch of {size}")
        index %= size
        return self.request_at(index if self.order is None else self.order[index])

    def index(self, request, start=0, stop=None):
        """The place of a request; ValueError where it is not among them."""
        return list(self).index(request, start, len(self) if stop is None else stop)

    def count(self, request):
        """How often a request is among them: 0 or 1."""
        return list(self).count(request)

    def __iter__(self):
        cdef uint32_t place
        if self.order is not None:
            return iter([self.request_at(place) for place in self.order])
        return iter([self.request_at(place) for place in range(self.size)])

    def __repr__(self):
        return f"<Batch of {len(self)} for {self.route.path}, {self.reason}>"

    @property
    def reason(self):
        """Why the batch left: "full", "delay", "idle", "deadline" or "closing"."""
        return REASON_NAMES[self.reason_number]

    @property
    def bodies(self):
        """The bodies, as a list of read-only memoryviews."""
        return [request.body for request in self]

    def as_array(self, copy=False):
        """The bodies as one numpy array of shape (len(batch), *shape), for a route with ``decode=Array(dtype, shape)``.

        It is a view of shared memory, read-only, and stays valid as long as it is referred to; ``copy=True`` gives an
        array of its own. Rows lie 64-byte aligned, so the view may not be contiguous.
        """
        import numpy

        decode = self.route.decode
        if not hasattr(decode, "dtype"):
            raise TypeError(f"the route {self.route.path} has no decode=Array(...)")
        dtype = numpy.dtype(decode.dtype)
        inner = numpy.empty(decode.shape, dtype).strides if decode.shape else ()
        array = numpy.ndarray((self.size, *decode.shape), dtype, view_of(self, self.items[0].body_offset, (
            self.size - 1) * self.slab.array_stride + dtype.itemsize * elements(decode.shape)),
            strides=(self.slab.array_stride, *inner))
        return array.copy() if copy or self.order is not None else array

    # --- answering ---

    cdef void answer_status(self, uint32_t place, int status) noexcept:
        if not self.answered[place]:
            self.answered[place] = 1
            self.unanswered -= 1
            self.end.show_after = self.show_after
            self.end.complete_status(self.slab, self.first + place, status)

    cdef int answer_full(self, uint32_t place, body, int status, content_type, headers, cache_ttl_s, tags,
                         bint public) except -1:
        """One response, with everything that may be said about it."""
        cdef Py_buffer buffer
        cdef uint32_t ttl_s = 0
        cdef bytes lines, text = None
        if self.answered[place]:
            raise AlreadyAnsweredError(f"item {place} of the batch for {self.route.path} was answered before")
        if not 200 <= status <= 599:
            raise ValueError(f"{status} is not a final status: 200 to 599 are")
        if cache_ttl_s is not None:
            if self.items[place].method not in (METHOD_GET, METHOD_HEAD):
                raise ValueError("cache_ttl_s: only answers to GET and HEAD can be cached")
            ttl_s = max(0, min(int(cache_ttl_s), 0x7FFFFFFF))
        if tags:
            text = tags_text((tags,) if isinstance(tags, str) else tags)
        is_text = isinstance(body, str)
        if self.route.vary:
            given = headers.items() if hasattr(headers, "items") else headers
            headers = [*given, ("Vary", ", ".join(self.route.vary))]
        if is_text:
            body = body.encode()
        lines = header_lines(content_type, is_text, headers,
                             self.items[place].method == METHOD_HEAD and memoryview(body).nbytes == 0)
        PyObject_GetBuffer(body, &buffer, PyBUF_SIMPLE)
        self.end.show_after = self.show_after
        try:
            self.end.complete(self.slab, self.first + place, status, <const char *>lines, <uint32_t>len(lines),
                              <const char *>buffer.buf, buffer.len, ttl_s, COMPLETION_PUBLIC if public else 0, text)
        finally:
            PyBuffer_Release(&buffer)
        self.answered[place] = 1
        self.unanswered -= 1
        return 0

    cdef int answer_plain(self, uint32_t place, const char *body, Py_ssize_t length, bytes lines) except -1:
        """A 200 with nothing special about it."""
        if self.answered[place]:
            raise AlreadyAnsweredError(f"item {place} of the batch for {self.route.path} was answered before")
        self.end.show_after = self.show_after
        self.end.complete(self.slab, self.first + place, 200, <const char *>lines, <uint32_t>len(lines), body, length,
                          0, 0, None)
        self.answered[place] = 1
        self.unanswered -= 1
        return 0

    cdef int answer(self, uint32_t place, object entry) except -1:
        """What a handler returned, or raised, for one item."""
        cdef const char *text
        cdef Py_ssize_t length = 0
        if self.varies and isinstance(entry, (bytes, str)):
            return self.answer_full(place, entry, 200, None, (), None, (), False)
        if isinstance(entry, bytes):
            return self.answer_plain(place, <const char *>entry, len(entry), BYTES_HEADERS)
        if isinstance(entry, str):
            text = PyUnicode_AsUTF8AndSize(entry, &length)
            return self.answer_plain(place, text, length, TEXT_HEADERS)
        if isinstance(entry, Response):
            return self.answer_full(place, entry.body, entry.status, entry.content_type, entry.headers,
                                    entry.cache_ttl_s, entry.tags, entry.public)
        if isinstance(entry, HTTPError):
            if not entry.detail and not entry.headers:
                self.answer_status(place, entry.status)
                return 0
            return self.answer_full(place, f"{entry.detail}\n", entry.status, None, entry.headers, None, (), False)
        if isinstance(entry, (bytearray, memoryview)):
            return self.answer_full(place, entry, 200, None, (), None, (), False)
        if hasattr(entry, "tobytes"):
            return self.answer_full(place, entry.tobytes(), 200, None, (), None, (), False)
        raise TypeError(f"a handler's entry for one item must be bytes, str, a Response or an exception, "
                        f"not {type(entry).__name__}")

    cdef int answer_failure(self, uint32_t place, error) except -1:
        """One item failed by `error`: its status, where it has one that can be sent; else 500 and a line in the log."""
        if isinstance(error, HTTPError):
            try:
                return self.answer(place, error)
            except (TypeError, ValueError) as refused:
                error = refused
        self.route.log_failure(error)
        self.answer_status(place, 500)
        return 0


cdef Py_ssize_t elements(shape):
    count = 1
    for size in shape:
        count *= size
    return count


cdef View view_of(Batch batch, uint32_t offset, Py_ssize_t length):
    cdef View view = View.__new__(View)
    view.batch = batch
    view.start = <char *>batch.slab + offset
    view.length = length
    return view


@cython.final
@cython.no_gc_clear
cdef class View:
    """Bytes of shared memory, read-only."""

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.start, self.length, 1, flags)

    def __releasebuffer__(self, Py_buffer *buffer):
        pass


# --- requests --------------------------------------------------------------------------------------------------------

@cython.final
@cython.freelist(1024)
cdef class Request:
    """One request of a batch. It reads from shared memory; what it gives is made when it is asked for."""

    cdef bytes text(self, uint32_t offset, uint32_t length):
        """Bytes of the head."""
        return PyBytes_FromStringAndSize(<char *>self.batch.slab + self.item.head_offset + offset, length)

    def __repr__(self):
        return f"<Request {self.method} {self.target.decode('latin-1')}>"

    @property
    def method(self):
        """The method, such as "GET"."""
        if self.item.method:
            return METHOD_NAMES[self.item.method]
        return self.text(self.item.method_name.offset, self.item.method_name.length).decode("ascii")

    @property
    def target(self):
        """The request target as it was sent, as bytes."""
        return self.text(self.item.target.offset, self.item.target.length)

    @property
    def raw_path(self):
        """The path as it was sent, without the query, as bytes."""
        return self.text(self.item.path.offset, self.item.path.length)

    @property
    def path(self):
        """The path with its escapes decoded (as UTF-8; what is not becomes U+FFFD)."""
        return unquote(self.raw_path.decode("latin-1"))

    @property
    def query_string(self):
        """The query as it was sent, without its "?", as bytes."""
        return self.text(self.item.query.offset, self.item.query.length)

    @property
    def query(self):
        """The query's fields, decoded, as a dict; of a name that comes again the last one counts."""
        return dict(parse_qsl(self.query_string.decode("latin-1"), keep_blank_values=True))

    @property
    def params(self):
        """The path's parameters, decoded, by the names in the route's template."""
        cdef uint32_t index
        return {name: unquote(self.text(self.item.parameters[index].offset,
                                        self.item.parameters[index].length).decode("latin-1"))
                for index, name in enumerate(self.batch.route.parameters[:self.item.parameter_count])}

    @property
    def authority(self):
        """Host and port that were asked for, as sent ("" from HTTP/1.0 without Host)."""
        return self.text(self.item.authority.offset, self.item.authority.length).decode("latin-1")

    @property
    def headers(self):
        """The header fields, as a :class:`Headers`."""
        if self.known_headers is None:
            self.known_headers = Headers(self.text(self.item.headers.offset, self.item.headers.length))
        return self.known_headers

    @property
    def body(self):
        """The body, as a read-only memoryview of shared memory."""
        return memoryview(view_of(self.batch, self.item.body_offset, self.item.body_length))

    @property
    def client(self):
        """The client's (address, port), or None where the kernel does not tell."""
        if self.item.family == 0:
            return None
        size = 4 if self.item.family == 2 else 16
        return str(ipaddress.ip_address(PyBytes_FromStringAndSize(<char *>self.item.address, size))), self.item.port

    @property
    def http_version(self):
        """ "1.0" or "1.1"."""
        return "1.1" if self.item.version_minor else "1.0"

    @property
    def time_left_us(self):
        """Microseconds until the route's ``timeout_us`` is over (0: it is); None where there is none."""
        cdef uint64_t now_us = bb_now_us() + self.batch.end.lane.shared.clock_offset_us
        if self.item.deadline_us == 0:
            return None
        return self.item.deadline_us - now_us if self.item.deadline_us > now_us else 0

    @property
    def cancelled(self):
        """Whether nobody waits for the answer any more: the client is gone, or was told that it took too long."""
        return bb_load_relaxed(&self.item.cancelled) != 0

    @property
    def answered(self):
        """Whether it has been answered."""
        return self.batch.answered[self.place] != 0

    def json(self):
        """The body as JSON; raises HTTPError(400) when it is none."""
        if self.known_value is None:
            try:
                self.known_value = json.loads(bytes(self.body))
            except (ValueError, RecursionError) as error:
                raise HTTPError(400, f"the body is not JSON: {error}") from None
        return self.known_value

    def msgpack(self):
        """The body as msgpack; raises HTTPError(400) when it is none."""
        if self.known_value is None:
            import msgpack

            try:
                self.known_value = msgpack.unpackb(self.body)
            except Exception as error:      # msgpack raises several unrelated kinds
                raise HTTPError(400, f"the body is not msgpack: {error or type(error).__name__}") from None
        return self.known_value

    def respond(self, body=b"", *, int status=200, content_type=None, headers=(), cache_ttl_s=None, tags=(),
                bint public=False):
        """Answers the request; see :class:`Response` for the parameters.

        Raises AlreadyAnsweredError the second time, and ValueError for a status, header or size that cannot be sent.
        """
        if (type(body) is bytes and status == 200 and content_type is None and not headers and cache_ttl_s is None
                and not self.batch.varies):
            self.batch.answer_plain(self.place, <const char *>body, len(body), BYTES_HEADERS)
        else:
            self.batch.answer_full(self.place, body, status, content_type, headers, cache_ttl_s, tags, public)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        """Confines an exception to this item: it is answered with the HTTPError's status, or 500, and logged."""
        if error is None or not isinstance(error, Exception):
            return False
        if self.batch.answered[self.place]:
            return False
        self.batch.answer_failure(self.place, error)
        return True


Sequence.register(Batch)


class Headers(Mapping):
    """A request's header fields: a mapping from a name, in any case, to its value as str (latin-1).

    Several fields of one name are joined with ", ", as RFC 9110 section 5.3 allows; ``getall`` gives them apart.
    """

    __slots__ = ("fields",)

    def __init__(self, lines):
        self.fields = {}
        for line in lines.split(b"\r\n"):
            name, colon, value = line.partition(b":")
            if colon:
                self.fields.setdefault(name.decode("ascii").lower(), []).append(value.strip(b" \t").decode("latin-1"))

    def __getitem__(self, name):
        return ", ".join(self.fields[name.lower()])

    def __contains__(self, name):
        return isinstance(name, str) and name.lower() in self.fields

    def __iter__(self):
        return iter(self.fields)

    def __len__(self):
        return len(self.fields)

    def __repr__(self):
        return f"Headers({dict(self.items())!r})"

    def get(self, name, default=None):
        """The value of a field, or `default`."""
        values = self.fields.get(name.lower())
        return default if values is None else ", ".join(values)

    def getall(self, name):
        """The values of all fields of that name, in order."""
        return list(self.fields.get(name.lower(), ()))

    def keys(self):
        """The names, in lower case."""
        return self.fields.keys()

    def items(self):
        """(name, value) pairs."""
        return [(name, self[name]) for name in self.fields]

    def values(self):
        """The values."""
        return [self[name] for name in self.fields]
