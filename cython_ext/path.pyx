"""Paths on the wire to plain ones.

Escapes are decoded before segments are looked at, so that no name can hide from a check behind an escape. In one pass:
what was written is never more than what was read, and a segment is resolved as soon as it has ended.
"""
from libc.stdint cimport uint32_t

from batchbridge.cython_ext.octets cimport hex_value, is_escape


cdef inline int end_segment(const char *out, uint32_t start, uint32_t *end) noexcept nogil:
    """Resolves the segment out[start:end], which follows a "/": what is "." vanishes, ".." takes its parent along.
    Returns 1 when a name was left, which a "/" may follow; 0 when `end` is now right after a "/"; -400 above the
    root."""
    cdef uint32_t length = end[0] - start
    if length == 1 and out[start] == b".":
        end[0] = start
    elif length == 2 and out[start] == b"." and out[start + 1] == b".":
        if start == 1:
            return -400
        start -= 1
        while out[start - 1] != b"/":
            start -= 1
        end[0] = start
    return end[0] > start


cdef int decode_path(const char *path, uint32_t length, char *out, uint32_t room) noexcept nogil:
    cdef uint32_t position = 1
    cdef uint32_t written = 1
    cdef uint32_t start = 1         # of the current segment in `out`
    cdef char byte
    cdef int named
    if length == 0 or path[0] != b"/":
        return -400
    if room == 0:
        return -414
    out[0] = b"/"
    while position < length:
        byte = path[position]
        if byte == b"/":
            named = end_segment(out, start, &written)
            if named < 0:
                return named
            position += 1
            if not named:
                start = written
                continue
        elif byte == b"%":
            if not is_escape(path + position, length - position):
                return -400
            byte = <char> (hex_value(path[position + 1]) << 4 | hex_value(path[position + 2]))
            if byte == b"/" or byte == 0:
                # A "/" that separates nothing cannot be told from one that does once it is decoded.
                return -400
            position += 3
        elif byte == 0:
            return -400
        else:
            position += 1
        if written == room:
            return -414
        out[written] = byte
        written += 1
        if byte == b"/":
            start = written
    named = end_segment(out, start, &written)
    return named if named < 0 else <int> written
