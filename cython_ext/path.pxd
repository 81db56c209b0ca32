# Paths on the wire to plain ones (RFC 3986 sections 2.1 and 5.2.4).
#
# Pure: it reads the bytes it is given, allocates nothing and keeps nothing.
from libc.stdint cimport uint32_t


# Percent-decodes and normalises a path: "." and ".." segments, escaped or not, are resolved, empty ones dropped (a
# trailing "/" stays). Writes at most `room` bytes to `out`, no terminator; `out` may be `path`.
# Returns the length, or -400 on bad escapes, a NUL byte, an escaped "/" (which would name another segment once
# decoded), a path that does not begin with "/" or climbs above the root, or -414 when `room` is too small; `length` is
# enough.
cdef int decode_path(const char *path, uint32_t length, char *out, uint32_t room) noexcept nogil
