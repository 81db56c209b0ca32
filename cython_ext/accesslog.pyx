"""The access log: lines in the Combined format, gathered in a buffer and written by the driver in large pieces.

Two buffers: one is filled while the other one is being written. A buffer leaves when it is more than half full, or when
its oldest line is LOG_AGE_US old. A disk that does not keep up costs lines, which are counted, never answers.
"""
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc

from batchbridge.cython_ext.core cimport Connection, Engine
from batchbridge.cython_ext.text cimport put, put_ipv4, put_number


cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct tm:
        int tm_year
    tm *localtime_r(const time_t *, tm *) noexcept
    size_t strftime(char *, size_t, const char *, const tm *) noexcept


cdef extern from "<arpa/inet.h>" nogil:
    enum:
        AF_INET
    const char *inet_ntop(int, const void *, char *, unsigned int) noexcept


cdef extern from "<string.h>" nogil:
    size_t strlen(const char *) noexcept


cdef enum:
    LOG_AGE_US = 200000
    FIELD_SIZE_BYTES_MAX = 2048     # longer texts are cut: a line fits the buffer whatever a client sends
    LINE_SIZE_BYTES_MAX = 4 * 3 * FIELD_SIZE_BYTES_MAX + 256


cdef int log_open(Engine *engine, int fd, uint32_t size_bytes) noexcept nogil:
    engine.log.fd = fd
    engine.log.size_bytes = max(size_bytes, 2 * LINE_SIZE_BYTES_MAX)
    if fd < 0:
        return 0
    engine.log.buffers[0] = <char *>malloc(engine.log.size_bytes)
    engine.log.buffers[1] = <char *>malloc(engine.log.size_bytes)
    if engine.log.buffers[0] is NULL or engine.log.buffers[1] is NULL:
        return -12
    return 0


cdef void log_close(Engine *engine) noexcept nogil:
    free(engine.log.buffers[0])
    free(engine.log.buffers[1])
    engine.log.buffers[0] = NULL
    engine.log.buffers[1] = NULL
    engine.log.fd = -1


cdef void log_tick(Engine *engine) noexcept nogil:
    cdef tm parts
    cdef time_t seconds = <time_t>engine.wall_s
    localtime_r(&seconds, &parts)
    engine.log.time_length = <uint32_t>strftime(engine.log.time_text, sizeof(engine.log.time_text),
                                                b"[%d/%b/%Y:%H:%M:%S %z]", &parts)


cdef char *put_field(char *at, const char *text, uint32_t length) noexcept nogil:
    """A quoted field, "-" where it is empty; quotes, backslashes and all that is no plain ASCII as \\xHH."""
    cdef uint32_t index
    cdef unsigned char byte
    cdef const char *digits = b"0123456789abcdef"
    at = put(at, b'"', 1)
    if length == 0:
        at = put(at, b"-", 1)
    for index in range(min(length, <uint32_t>FIELD_SIZE_BYTES_MAX)):
        byte = <unsigned char>text[index]
        if byte < 0x20 or byte > 0x7E or byte == b'"' or byte == b"\\":
            at = put(at, b"\\x", 2)
            at[0] = digits[byte >> 4]
            at[1] = digits[byte & 15]
            at += 2
        else:
            at[0] = <char>byte
            at += 1
    return put(at, b'"', 1)


cdef bint log_has_room(const Engine *engine) noexcept nogil:
    return not engine.log.writing or engine.log.used + LINE_SIZE_BYTES_MAX <= engine.log.size_bytes


cdef void log_line(Engine *engine, const Connection *connection, const char *request_line, uint32_t request_line_length,
                   int status, uint64_t body_length, const char *referer, uint32_t referer_length,
                   const char *user_agent, uint32_t user_agent_length) noexcept nogil:
    cdef char *at
    if engine.log.fd < 0:
        return
    if engine.log.used + LINE_SIZE_BYTES_MAX > engine.log.size_bytes:
        log_flush(engine)
        if engine.log.used + LINE_SIZE_BYTES_MAX > engine.log.size_bytes:
            engine.counters.log_lines_lost += 1
            return
    if engine.log.used == 0:
        engine.log.oldest_us = engine.now_us
    at = engine.log.buffers[engine.log.active] + engine.log.used
    if connection.family == 0:
        at = put(at, b"-", 1)
    elif connection.family == AF_INET:
        at = put_ipv4(at, connection.address)
    else:
        inet_ntop(connection.family, connection.address, at, 64)
        at += strlen(at)
    at = put(at, b" - - ", 5)
    at = put(at, engine.log.time_text, engine.log.time_length)
    at = put(at, b" ", 1)
    at = put_field(at, request_line, request_line_length)
    at = put_number(put(at, b" ", 1), <uint64_t>status)
    at = put_number(put(at, b" ", 1), body_length)
    at = put(at, b" ", 1)
    at = put_field(at, referer, referer_length)
    at = put(at, b" ", 1)
    at = put_field(at, user_agent, user_agent_length)
    at = put(at, b"\n", 1)
    engine.log.used = <uint32_t>(at - engine.log.buffers[engine.log.active])
    engine.counters.log_lines += 1
    engine.log.lines += 1
    if 2 * engine.log.used > engine.log.size_bytes:
        log_flush(engine)


cdef void log_flush(Engine *engine) noexcept nogil:
    cdef uint32_t used = engine.log.used
    cdef uint32_t full = engine.log.active
    if used == 0 or engine.log.writing:
        return
    engine.log.writing = 1
    engine.log.active = 1 - full
    engine.log.used = 0
    engine.log.lines_leaving = engine.log.lines
    engine.log.lines = 0
    engine.driver.write_log(engine, engine.log.buffers[full], used)


cdef void log_written(Engine *engine, int64_t result) noexcept nogil:
    # A write that failed (a full disk, a pipe whose reader is gone) must not stop the server; doctor and metrics tell.
    engine.log.writing = 0
    if result < 0:
        engine.counters.log_lines_lost += engine.log.lines_leaving
