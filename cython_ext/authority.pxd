# The authority of a request (RFC 3986 section 3.2): whom a Host header, an absolute target or CONNECT names.
from libc.stdint cimport uint32_t


# Whether text[0:length] is host[:port], the host not empty, without user information. A port may be empty or any up to
# 65535; with `port_needed` it must be there and not 0. Pure, and never reads past `length`.
cdef bint is_authority(const char *text, uint32_t length, bint port_needed) noexcept nogil
