"""The body of a response to a request for several ranges: multipart/byteranges.

The header lines that say what the bytes are (Content-Type, Content-Encoding) come before each part's bytes; all others
stay the response's. Were the coding the response's, a client would decode the whole body, boundaries included.
"""
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy

from batchbridge.cython_ext.octets cimport same_word
from batchbridge.cython_ext.ranges cimport Range, Ranges


cdef extern from "<stdio.h>" nogil:
    int snprintf(char *, size_t, const char *, ...) noexcept


cdef enum:
    FRAME_SIZE_BYTES_MAX = 160      # of what is around a part's own lines: boundary, Content-Range, line ends
    TYPE_SIZE_BYTES_MAX = 96        # of the response's Content-Type


cdef inline bint is_of_part(const char *line, uint32_t length) noexcept nogil:
    return (length > 13 and same_word(line, b"content-type:", 13)
            or length > 17 and same_word(line, b"content-encoding:", 17))


cdef uint32_t pick_lines(const char *lines, uint32_t length, bint of_part, char *out) noexcept nogil:
    """Copies the lines that are a part's, or those that are not; returns their length. The empty line is the last of
    those that are not."""
    cdef const char *end
    cdef uint32_t line_length, picked = 0
    while length:
        end = <const char *>memchr(lines, c'\n', length)
        line_length = length if end is NULL else <uint32_t>(end + 1 - lines)
        if is_of_part(lines, line_length) == of_part:
            memcpy(out + picked, lines, line_length)
            picked += line_length
        lines += line_length
        length -= line_length
    return picked


cdef char *put_part(char *at, Part *part, const Range *range_, const char *own, uint32_t own_length, uint64_t whole,
                    uint64_t boundary, bint is_first) noexcept nogil:
    """Writes what comes before a part's bytes."""
    part.text = at
    part.first = range_.first
    part.length = range_.last - range_.first + 1
    at += snprintf(at, FRAME_SIZE_BYTES_MAX, b"%s--%016llx\r\n",
                   <const char *>b"" if is_first else <const char *>b"\r\n", <unsigned long long>boundary)
    memcpy(at, own, own_length)
    at += own_length
    at += snprintf(at, FRAME_SIZE_BYTES_MAX, b"Content-Range: bytes %llu-%llu/%llu\r\n\r\n",
                   <unsigned long long>range_.first, <unsigned long long>range_.last, <unsigned long long>whole)
    part.text_length = <uint32_t>(at - part.text)
    return at


cdef Multipart *multipart_new(const char *lines, uint32_t lines_length, const Ranges *ranges, uint64_t whole,
                              uint64_t boundary) noexcept nogil:
    # No line is in both, but each part has its own copy of its lines.
    cdef uint64_t text_size_bytes = (TYPE_SIZE_BYTES_MAX + 2 * <uint64_t>lines_length
                                     + (ranges.count + 1) * (<uint64_t>lines_length + FRAME_SIZE_BYTES_MAX))
    cdef Multipart *multipart = <Multipart *>malloc(sizeof(Multipart) + ranges.count * sizeof(Part) + text_size_bytes)
    cdef Part *part
    cdef char *at
    cdef char *own
    cdef uint32_t index, own_length
    if multipart is NULL:
        return NULL
    own = <char *>&multipart.parts[ranges.count + 1]
    own_length = pick_lines(lines, lines_length, True, own)
    at = own + own_length
    multipart.lines = at
    at += snprintf(at, TYPE_SIZE_BYTES_MAX, b"Content-Type: multipart/byteranges; boundary=%016llx\r\n",
                   <unsigned long long>boundary)
    at += pick_lines(lines, lines_length, False, at)
    multipart.lines_length = <uint32_t>(at - multipart.lines)
    multipart.count = ranges.count + 1
    multipart.length = 0
    for index in range(ranges.count):
        part = &multipart.parts[index]
        at = put_part(at, part, &ranges.items[index], own, own_length, whole, boundary, index == 0)
        multipart.length += part.text_length + part.length
    part = &multipart.parts[ranges.count]
    part.text = at
    part.text_length = <uint32_t>snprintf(at, FRAME_SIZE_BYTES_MAX, b"\r\n--%016llx--\r\n",
                                          <unsigned long long>boundary)
    part.first = 0
    part.length = 0
    multipart.length += part.text_length
    return multipart


cdef void multipart_free(Multipart *multipart) noexcept nogil:
    free(multipart)
