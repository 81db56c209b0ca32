# Texts written one behind the other: each function writes at `at` and returns where the next one goes on. Whoever calls
# has made room. What is written for every response goes this way, since printf's own work is several times the digits'.
#
# There is no module behind this face: all of it is inlined into whoever asks.
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef inline char *put(char *at, const char *text, uint32_t length) noexcept nogil:
    if length:                  # memcpy wants two pointers even for nothing
        memcpy(at, text, length)
    return at + length


cdef inline char *put_number(char *at, uint64_t number) noexcept nogil:
    """In decimal, without leading zeros: at most 20 bytes."""
    cdef char digits[20]
    cdef uint32_t first = sizeof(digits)
    while True:
        first -= 1
        digits[first] = <char>(c'0' + number % 10)
        number //= 10
        if number == 0:
            return put(at, digits + first, <uint32_t>sizeof(digits) - first)


cdef inline char *put_ipv4(char *at, const uint8_t *address) noexcept nogil:
    """Four bytes in the order of the network, as 192.0.2.7: at most 15 bytes."""
    cdef int index
    for index in range(4):
        if index:
            at = put(at, b".", 1)
        at = put_number(at, address[index])
    return at
