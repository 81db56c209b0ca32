# HTTP dates (RFC 9110 section 5.6.7), as pure functions.
from libc.stdint cimport int64_t, uint32_t


# Reads a date in any of the three forms. False: it is none. It may lie before 1970: then `seconds` is negative.
# `now_s` settles the century of a two-digit year.
cdef bint read_http_date(const char *text, uint32_t length, int64_t now_s, int64_t *seconds) noexcept nogil

# The same as seconds since 1970; -1 when it is none, or lies before 1970.
cdef int64_t parse_http_date(const char *text, uint32_t length, int64_t now_s) noexcept nogil

# Writes "Sun, 06 Nov 1994 08:49:37 GMT", 29 bytes without a terminator. What lies outside the years 1970 to
# 9999 becomes their first or last second.
cdef void format_http_date(int64_t seconds, char *out) noexcept nogil
