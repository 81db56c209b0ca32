"""host[:port], as the Host header, an absolute target and CONNECT name it.

The rules are those of RFC 3986 section 3.2.2 and 3.2.3. A host is a registered name, in which escapes are well-formed
(so an IPv4 address is one too), or an IPv6 address in brackets. A port has at most five digits.
"""
from libc.stdint cimport uint32_t
from libc.string cimport memchr, memcpy

from batchbridge.cython_ext.octets cimport ADDRESS, HOST, byte_class, is_escape


cdef extern from "<arpa/inet.h>" nogil:
    int AF_INET6
    int inet_pton(int family, const char *text, void *address)


cdef enum:
    ADDRESS_SIZE_MAX = 45           # bytes of the longest IPv6 address in text
    PORT_DIGITS_MAX = 5


cdef bint is_address(const char *text, uint32_t length) noexcept nogil:
    """Whether the text between "[" and "]" is an IPv6 address. Zones and future versions are not accepted."""
    cdef char[ADDRESS_SIZE_MAX + 1] terminated
    cdef char[16] address
    cdef uint32_t position
    if length > ADDRESS_SIZE_MAX:
        return False
    for position in range(length):
        if not byte_class(text[position]) & ADDRESS:
            return False
    memcpy(terminated, text, length)
    terminated[length] = 0
    return inet_pton(AF_INET6, terminated, address) == 1


cdef inline bint is_port(const char *text, uint32_t length, bint needed) noexcept nogil:
    """Whether the text after the colon is a port: it may be empty (RFC 3986 section 3.2.3) except where needed."""
    cdef uint32_t port = 0
    cdef uint32_t position
    if length > PORT_DIGITS_MAX:
        return False
    for position in range(length):
        if not b"0" <= text[position] <= b"9":
            return False
        port = port * 10 + (text[position] - c"0")
    return port <= 65535 and not (needed and port == 0)


cdef bint is_authority(const char *text, uint32_t length, bint port_needed) noexcept nogil:
    """Whether this is host[:port], the host not empty, without user information."""
    cdef uint32_t position = 0
    cdef const char *bracket
    if length > 0 and text[0] == b"[":
        bracket = <const char *> memchr(text, b"]", length)
        if bracket == NULL or not is_address(text + 1, <uint32_t> (bracket - text) - 1):
            return False
        position = <uint32_t> (bracket - text) + 1
    else:
        while position < length:
            if byte_class(text[position]) & HOST:
                position += 1
            elif text[position] == b"%" and is_escape(text + position, length - position):
                position += 3
            else:
                break
        if position == 0:
            return False
    if position == length:
        return not port_needed
    return text[position] == b":" and is_port(text + position + 1, length - position - 1, port_needed)
