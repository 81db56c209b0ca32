"""What `parse`, `chunked` and `path` make of bytes, shown to Python; for tests and tools.

The server calls those modules' own functions and never this one. Inputs are placed so that a read past their end (or
before their start) hits an unmapped page and ends the process, which no test overlooks.
"""
from libc.stdint cimport UINT16_MAX, uint32_t
from libc.string cimport memcpy, memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, mmap, mprotect, munmap
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport _SC_PAGESIZE, sysconf

from batchbridge.cython_ext.chunked cimport ChunkDecoder, decode_chunked
from batchbridge.cython_ext.parse cimport (
    HEAD_SIZE_MAX, HEADER_KNOWN_COUNT, Head, HeadLimits, Slice, next_header, parse_head)
from batchbridge.cython_ext.path cimport decode_path


cdef class Guarded:
    """Memory between two unmapped pages: `data` ends right before the second, or begins right after the first."""
    cdef char *region
    cdef size_t region_size
    cdef char *data

    def __cinit__(self, bytes content, size_t size, bint at_start=False):
        cdef size_t page = <size_t> sysconf(_SC_PAGESIZE)
        cdef size_t room = (size + page - 1) // page * page
        cdef void *mapped = mmap(NULL, room + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if mapped == MAP_FAILED:
            raise MemoryError()
        self.region = <char *> mapped
        self.region_size = room + 2 * page
        if mprotect(self.region, page, PROT_NONE) != 0 or mprotect(self.region + page + room, page, PROT_NONE) != 0:
            raise OSError("mprotect failed")
        self.data = self.region + page if at_start else self.region + page + room - size
        if content is not None:
            memcpy(self.data, <const char *> content, len(content))

    def __dealloc__(self):
        if self.region != NULL:
            munmap(self.region, self.region_size)


cdef inline bytes _part(const char *data, const Slice *part):
    """None where the part is absent."""
    return data[part.offset:part.offset + part.length] if part.offset > 0 else None


cdef list _list_headers(const char *data, const Head *head):
    cdef list found = []
    cdef uint32_t cursor = head.headers.offset
    cdef Slice name, value
    while next_header(data, head, &cursor, &name, &value):
        found.append((_part(data, &name), _part(data, &value)))
    return found


cdef dict _describe(const char *data, const Head *head):
    known = range(HEADER_KNOWN_COUNT)
    return {
        "head_length": head.head_length,
        "flags": head.flags,
        "method": head.method,
        "method_name": data[head.method_name.offset:head.method_name.offset + head.method_name.length],
        "version_minor": head.version_minor,
        "target_form": head.target_form,
        "target": _part(data, &head.target),
        "path": _part(data, &head.path),
        "query": _part(data, &head.query),
        "authority": _part(data, &head.authority),
        "content_length": head.content_length,
        "header_count": head.header_count,
        "header_bytes": data[head.headers.offset:head.headers.offset + head.headers.length],
        "headers": _list_headers(data, head),
        "known": {name: _part(data, &head.known[<int> name]) for name in known if head.known[<int> name].offset},
        "repeated": {name for name in known if head.known_repeated >> <int> name & 1},
    }


def parse_request(bytes data not None, *, cuts=(), uint32_t head_size_bytes=65536, uint32_t target_size_bytes=8192,
                  uint32_t header_count=100, bint at_start=False):
    """Parse one request head.

    ``cuts`` are lengths at which the bytes arrive in between: each prefix is parsed in turn, in memory of its own and
    into a head of its own, until the verdict falls. Returns a dict of everything found, 0 where bytes are missing, or
    -status. With ``at_start`` the unmapped page lies before the input instead of after it.
    """
    cdef HeadLimits limits
    cdef Head head
    cdef Guarded memory = None
    cdef uint32_t scanned = 0
    cdef uint32_t length
    cdef int result = 0
    limits.head_size_bytes = head_size_bytes
    limits.target_size_bytes = target_size_bytes
    limits.header_count = header_count
    for length in [*cuts, len(data)]:
        memory = Guarded(data[:length], length, at_start)
        memset(&head, 0xAA, sizeof(head))
        result = parse_head(memory.data, length, &scanned, &limits, &head)
        if result != 0:
            break
    return _describe(memory.data, &head) if result > 0 else result


def decode_chunked_body(bytes data not None, *, cuts=(), room=None, bint in_place=False):
    """Decode a chunked body that arrives in pieces, cut at ``cuts``.

    Returns (payload, bytes consumed), 0 where bytes are missing, or -status. ``room`` is for the whole payload.
    """
    cdef ChunkDecoder decoder
    cdef Guarded piece, out
    cdef uint32_t size
    cdef uint32_t consumed = 0
    cdef uint32_t produced = 0
    cdef uint32_t start = 0
    cdef int result = 0
    cdef bytes payload = b""
    memset(&decoder, 0, sizeof(decoder))
    for length in [*cuts, len(data)]:
        piece = Guarded(data[start:length], length - start)
        size = length - start if room is None else min(length - start, room - len(payload))
        out = piece if in_place else Guarded(None, size)
        result = decode_chunked(&decoder, piece.data, length - start, out.data, size, &consumed, &produced)
        payload += out.data[:produced]
        start += consumed
        if result != 0:
            break
        assert start == length
    return (payload, start) if result > 0 else result


def decode_request_path(bytes path not None, *, room=None, bint in_place=False):
    """Decode and normalise a path. Returns bytes, or -status. ``room`` is its length if None."""
    cdef Guarded memory = Guarded(path, len(path))
    cdef uint32_t size = len(path) if room is None else room
    cdef Guarded out = memory if in_place else Guarded(None, size)
    cdef int result = decode_path(memory.data, len(path), out.data, size)
    return out.data[:result] if result >= 0 else result


def measure_parse(bytes data not None, uint32_t rounds, uint32_t step=0):
    """Nanoseconds that parsing this head takes on average; with ``step``, when that many bytes come at a time."""
    cdef const char *text = data
    cdef uint32_t whole = len(data)
    cdef uint32_t length, scanned
    cdef uint32_t rounds_left = rounds
    cdef HeadLimits limits = HeadLimits(HEAD_SIZE_MAX, HEAD_SIZE_MAX, UINT16_MAX)
    cdef Head head
    cdef timespec begin, end
    cdef int result = 0
    with nogil:
        clock_gettime(CLOCK_MONOTONIC, &begin)
        while rounds_left > 0:
            rounds_left -= 1
            scanned = 0
            length = min(step, whole) if step else whole
            while True:
                result = parse_head(text, length, &scanned, &limits, &head)
                if result != 0 or length == whole:
                    break
                length = min(length + step, whole)
        clock_gettime(CLOCK_MONOTONIC, &end)
    if result <= 0:
        raise ValueError(f"not a whole and valid head: {result}")
    return ((end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec)) / rounds
