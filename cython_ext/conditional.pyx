"""Conditional requests: may the client keep what it has, and which bytes does it still need?

The rules are those of RFC 9110:

* Order (section 13.2.2): If-Match, or without it If-Unmodified-Since: 412 when it fails. Then If-None-Match, or without
  it, of GET and HEAD only, If-Modified-Since: 304 when it fails (412 for other methods). Then Range, of GET only,
  unless If-Range forbids it. CONNECT, OPTIONS and TRACE select no representation, so they have no conditions (section
  13.2.1).
* Entity tags (sections 8.8.3, 13.1.1, 13.1.2): If-Match and If-Range compare strongly (a weak tag equals nothing),
  If-None-Match weakly. Empty elements of a list are skipped. A malformed element ends the list: where its quotes stand
  wrong, what follows cannot be told apart from tags, and a tag overlooked only costs a transfer or a retry. "*" stands
  for any representation, and only when it is all that there is.
* What is no date (dates.pyx) is ignored, and so is a date where the representation has none.
* If-Range (section 13.1.5): the same tag, or exactly the same date; and the date only when it is a strong validator
  (section 8.8.2.2), that is, when the second of the last change is over.
* What a Range selects is told by ranges.pyx.

All functions are pure: they read the bytes given and no others, allocate nothing and keep nothing.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, strlen

from batchbridge.cython_ext.dates cimport read_http_date
from batchbridge.cython_ext.octets cimport is_space, same_word
from batchbridge.cython_ext.parse cimport (
    HEAD_CONDITIONAL, HEAD_RANGE, HEADER_IF_MATCH, HEADER_IF_MODIFIED_SINCE, HEADER_IF_NONE_MATCH, HEADER_IF_RANGE,
    HEADER_IF_UNMODIFIED_SINCE, HEADER_KNOWN_COUNT, HEADER_RANGE, METHOD_CONNECT, METHOD_GET, METHOD_HEAD,
    METHOD_OPTIONS, METHOD_TRACE, Head, HeadLimits, KnownHeader, Slice, next_header, parse_head,
)
from batchbridge.cython_ext.ranges cimport (
    RANGES_IGNORED, RANGES_MAX, RANGES_UNSATISFIABLE, Ranges, select_ranges)


# ---- Entity tags -----------------------------------------------------------------------------------------------------

cdef inline bint is_weak(const char *etag, uint32_t length) noexcept nogil:
    return length >= 2 and etag[0] == b"W" and etag[1] == b"/"


cdef inline uint32_t etag_end(const char *text, uint32_t position, uint32_t length) noexcept nogil:
    """Where the entity tag at `position` ends; 0 when there is none."""
    cdef uint8_t byte
    if is_weak(text + position, length - position):
        position += 2
    if position == length or text[position] != b'"':
        return 0
    position += 1
    while position < length:
        byte = <uint8_t> text[position]
        position += 1
        if byte == c'"':
            return position
        if byte <= 0x20 or byte == 0x7F:
            return 0
    return 0


cdef inline bint is_current(const Validators *validators, const char *etag, uint32_t length,
                            bint strong) noexcept nogil:
    """Whether a well-formed entity tag is that of the representation."""
    cdef const char *current = validators.etag
    cdef uint32_t current_length = validators.etag_length
    cdef uint32_t prefix
    if current == NULL:
        return False
    if is_weak(current, current_length):
        if strong:
            return False
        current += 2
        current_length -= 2
    prefix = 2 if is_weak(etag, length) else 0
    if strong and prefix:
        return False
    return length - prefix == current_length and memcmp(etag + prefix, current, current_length) == 0


cdef int find_in_line(const char *text, uint32_t length, const Validators *validators, bint strong) noexcept nogil:
    """Searches one line of entity tags for the representation's: 1 when it is there, 0 when not, -1 when an element is
    malformed and the current tag was not before it."""
    cdef uint32_t position = 0
    cdef uint32_t start, end
    while position < length:
        if is_space(text[position]) or text[position] == b",":
            position += 1
            continue
        start = position
        end = position = etag_end(text, start, length)
        if end == 0:
            return -1
        while position < length and is_space(text[position]):
            position += 1
        if position < length and text[position] != b",":
            return -1
        if is_current(validators, text + start, end - start, strong):
            return 1
    return 0


cdef bint lists_current(const char *data, const Head *head, const Validators *validators,
                        KnownHeader header) noexcept nogil:
    """Whether If-Match or If-None-Match names the representation."""
    cdef bint strong = header == HEADER_IF_MATCH
    cdef const char *lower = b"if-match" if strong else b"if-none-match"
    cdef const Slice *value = &head.known[<int> header]
    cdef uint32_t cursor = head.headers.offset
    cdef Slice name, line
    cdef int found = 0
    if not head.known_repeated >> <int> header & 1:
        if value.length == 1 and data[value.offset] == b"*":
            return True
        return find_in_line(data + value.offset, value.length, validators, strong) > 0
    # Several lines are one list: a "*" among them is a malformed element, and ends it.
    while found == 0 and next_header(data, head, &cursor, &name, &line):
        if name.length == strlen(lower) and same_word(data + name.offset, lower, name.length):
            found = find_in_line(data + line.offset, line.length, validators, strong)
    return found > 0


# ---- The order of section 13.2.2 -------------------------------------------------------------------------------------

cdef inline bint is_present(const Head *head, KnownHeader header) noexcept nogil:
    return head.known[<int> header].offset != 0


cdef inline bint read_date_header(const char *data, const Head *head, KnownHeader header, int64_t now_s,
                                  int64_t *seconds) noexcept nogil:
    cdef const Slice *value = &head.known[<int> header]
    return value.offset != 0 and read_http_date(data + value.offset, value.length, now_s, seconds)


cdef bint range_is_current(const char *data, const Head *head, const Validators *validators,
                           int64_t now_s) noexcept nogil:
    """Whether If-Range lets the Range be used: there is none, or it names the representation as it is now."""
    cdef const Slice *value = &head.known[<int> HEADER_IF_RANGE]
    cdef const char *text = data + value.offset
    cdef int64_t seconds = 0
    if value.offset == 0:
        return True
    if value.length > 0 and etag_end(text, 0, value.length) == value.length:
        return is_current(validators, text, value.length, True)
    # Within the second of the last change another one could come, and the date would not tell.
    return (
        0 <= validators.modified_s < now_s and read_http_date(text, value.length, now_s, &seconds)
        and seconds == validators.modified_s
    )


cdef Verdict judge_ranges(const char *text, uint32_t length, const Validators *validators, uint32_t ranges_max,
                          Ranges *ranges) noexcept nogil:
    cdef int result = select_ranges(text, length, validators.length, ranges_max, ranges)
    if result == RANGES_UNSATISFIABLE:
        return VERDICT_UNSATISFIABLE
    if result == RANGES_IGNORED:
        return VERDICT_SEND
    return VERDICT_RANGE if ranges.count == 1 else VERDICT_RANGES


cdef int evaluate(const char *data, const Head *head, const Validators *validators, int64_t now_s,
                  uint32_t ranges_max, Ranges *ranges) noexcept nogil:
    cdef bint reads = head.method == METHOD_GET or head.method == METHOD_HEAD
    cdef bint dated = validators.modified_s >= 0
    cdef const Slice *asked = &head.known[<int> HEADER_RANGE]
    cdef int64_t since = 0
    if not head.flags & (HEAD_CONDITIONAL | HEAD_RANGE):
        return VERDICT_SEND
    if head.method == METHOD_CONNECT or head.method == METHOD_OPTIONS or head.method == METHOD_TRACE:
        return VERDICT_SEND

    if is_present(head, HEADER_IF_MATCH):
        if not lists_current(data, head, validators, HEADER_IF_MATCH):
            return VERDICT_FAILED
    elif dated and read_date_header(data, head, HEADER_IF_UNMODIFIED_SINCE, now_s, &since):
        if validators.modified_s > since:
            return VERDICT_FAILED

    if is_present(head, HEADER_IF_NONE_MATCH):
        if lists_current(data, head, validators, HEADER_IF_NONE_MATCH):
            return VERDICT_NOT_MODIFIED if reads else VERDICT_FAILED
    elif reads and dated and read_date_header(data, head, HEADER_IF_MODIFIED_SINCE, now_s, &since):
        if validators.modified_s <= since:
            return VERDICT_NOT_MODIFIED

    if head.method == METHOD_GET and asked.offset != 0 and range_is_current(data, head, validators, now_s):
        return judge_ranges(data + asked.offset, asked.length, validators, ranges_max, ranges)
    return VERDICT_SEND


# ---- For tests -------------------------------------------------------------------------------------------------------
# `place` puts bytes where a test wants them (before an unmapped page, for instance) and returns an object that has
# them as its buffer.

def evaluate_for_tests(bytes method not None, headers, bytes etag, modified_s, uint64_t length, int64_t now_s,
                       place=bytes, uint32_t ranges_max=RANGES_MAX) -> tuple:
    """evaluate() on a request made of a method and (name, value) pairs: the verdict, and the ranges as pairs.

    ``etag`` and ``modified_s`` may be None; there are ranges with VERDICT_RANGE and VERDICT_RANGES only. What is placed
    ends with the last value that the parser knows, where no header is repeated, and else with the head.
    """
    cdef bytes request = b"%b %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (
        method, b"h:80" if method == b"CONNECT" else b"/", b"".join([b"%b: %b\r\n" % pair for pair in headers])
    )
    cdef HeadLimits limits = HeadLimits(1 << 20, 1 << 10, 1 << 10)
    cdef Head head
    cdef Validators validators
    cdef uint32_t scanned = 0
    cdef Ranges ranges
    cdef Py_buffer data, current
    cdef int status = parse_head(<const char *> request, <uint32_t> len(request), &scanned, &limits, &head)
    if status <= 0:
        raise ValueError(f"not a valid request: {status}")
    validators.etag = NULL
    validators.modified_s = -1 if modified_s is None else modified_s
    validators.length = length
    PyObject_GetBuffer(place(request if head.known_repeated else request[:_last_value_end(&head)]), &data, PyBUF_SIMPLE)
    PyObject_GetBuffer(place(etag or b""), &current, PyBUF_SIMPLE)
    if etag is not None:
        validators.etag = <const char *> current.buf
    validators.etag_length = <uint32_t> current.len
    status = evaluate(<const char *> data.buf, &head, &validators, now_s, ranges_max, &ranges)
    PyBuffer_Release(&data)
    PyBuffer_Release(&current)
    if status != VERDICT_RANGE and status != VERDICT_RANGES:
        return status, []
    return status, [(ranges.items[index].first, ranges.items[index].last) for index in range(ranges.count)]


cdef uint32_t _last_value_end(const Head *head):
    cdef uint32_t end = 0
    cdef int header
    for header in range(<int> HEADER_KNOWN_COUNT):
        end = max(end, head.known[header].offset + head.known[header].length)
    return end
