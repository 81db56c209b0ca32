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
from collections.abc import Sequence
from urllib.parse import parse_qsl, unquote

cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.unicode cimport PyUnicode_AsUTF8AndSize
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from batchbridge.cython_ext.bridge cimport COMPLETION_PUBLIC, Dispatch, slab_at, slab_items
from batchbridge.cython_ext.lane_end cimport LaneEnd, lane_answer_status, lane_answer_text, lane_answer_written
from batchbridge.cython_ext.parse cimport METHOD_GET, METHOD_HEAD
from batchbridge.cython_ext.response cimport header_lines, tags_text

from batchbridge.cython_ext.bridge import REASON_NAMES
from batchbridge.cython_ext.headers import Headers
from batchbridge.cython_ext.response import BYTES_HEADERS, TEXT_HEADERS, Response
from batchbridge.errors import AlreadyAnsweredError, HTTPError


cdef extern from "compat.h" nogil:
    uint32_t bb_fetch_add(uint32_t *, uint32_t) noexcept
    uint32_t bb_load_relaxed(const uint32_t *) noexcept
    uint64_t bb_now_us() noexcept


METHOD_NAMES = ("", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE")

cdef bytes BYTES_LINES = BYTES_HEADERS
cdef bytes TEXT_LINES = TEXT_HEADERS


# --- batches ---------------------------------------------------------------------------------------------------------

cdef Batch open_batch(LaneEnd end, const Dispatch *dispatch, object route, object state):
    cdef Batch batch = Batch.__new__(Batch)
    batch.end = end
    batch.slab = slab_at(&end.worker.slabs, dispatch.slab)
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
            self.end.worker.show_after = self.show_after
            lane_answer_status(&self.end.worker, self.slab, self.first + place, status)

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
        try:
            self.put(place, status, lines, <const char *>buffer.buf, buffer.len, ttl_s,
                     COMPLETION_PUBLIC if public else 0, text)
        finally:
            PyBuffer_Release(&buffer)
        return 0

    cdef int answer_plain(self, uint32_t place, const char *body, Py_ssize_t length, bytes lines) except -1:
        """A 200 with nothing special about it."""
        if self.answered[place]:
            raise AlreadyAnsweredError(f"item {place} of the batch for {self.route.path} was answered before")
        return self.put(place, 200, lines, body, length, 0, 0, None)

    cdef int put(self, uint32_t place, int status, bytes lines, const char *body, Py_ssize_t length, uint32_t ttl_s,
                 uint32_t flags, bytes tags) except -1:
        """The answer's bytes, into the lane. ValueError: they are more than response_size_bytes_max."""
        cdef LaneEnd end = self.end
        cdef uint32_t lines_length = <uint32_t>len(lines)
        cdef uint32_t tags_length = <uint32_t>len(tags) if tags is not None else 0
        cdef char *at
        if <uint64_t>length > end.worker.response_size_bytes_max:
            raise ValueError(f"a response of {length} bytes is larger than response_size_bytes_max, "
                             f"{end.worker.response_size_bytes_max}")
        end.worker.show_after = self.show_after
        at = lane_answer_text(&end.worker, self.slab, self.first + place, status, lines_length, length, tags_length,
                              ttl_s, flags)
        if at is not NULL:
            memcpy(at, <const char *>lines, lines_length)
            memcpy(at + lines_length, body, length)
            if tags_length:
                memcpy(at + lines_length + length, <const char *>tags, tags_length)
            lane_answer_written(&end.worker)
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
            return self.answer_plain(place, <const char *>entry, len(entry), BYTES_LINES)
        if isinstance(entry, str):
            text = PyUnicode_AsUTF8AndSize(entry, &length)
            return self.answer_plain(place, text, length, TEXT_LINES)
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
        cdef uint64_t now_us = bb_now_us() + self.batch.end.worker.lane.shared.clock_offset_us
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
            self.batch.answer_plain(self.place, <const char *>body, len(body), BYTES_LINES)
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
