"""How an HTTP response begins: the engine's own lines, and those that come behind them.

What is the same in all responses is made beforehand, and what changes with the clock once a second.
"""
import http

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from batchbridge.cython_ext.core cimport STATUS_MAX, Engine
from batchbridge.cython_ext.send cimport Response
from batchbridge.cython_ext.text cimport put, put_number


cdef extern from "<time.h>" nogil:
    ctypedef long time_t
    struct tm:
        int tm_year
    tm *gmtime_r(const time_t *, tm *) noexcept
    size_t strftime(char *, size_t, const char *, const tm *) noexcept


cdef char *write_http_head(const void *engine_data, char *at, const void *response_data) noexcept nogil:
    """The engine's own lines: status, Date, Server, Content-Length, Connection."""
    cdef const Engine *engine = <const Engine *>engine_data
    cdef const Response *response = <const Response *>response_data
    at = put(at, engine.status_lines[response.status], engine.status_lengths[response.status])
    at = put(at, engine.date_line, engine.date_length)
    at = put(at, engine.server_line, engine.server_length)
    if response.content_length >= 0:
        at = put_number(put(at, b"Content-Length: ", 16), <uint64_t>response.content_length)
        at = put(at, b"\r\n", 2)
    if not response.keep_alive:
        at = put(at, b"Connection: close\r\n", 19)
    elif response.version_minor == 0:
        at = put(at, b"Connection: keep-alive\r\n", 24)
    return at


cdef heads_prepare(Engine *engine, bytes server_name):
    phrases = {status.value: status.phrase for status in http.HTTPStatus}
    for status in range(100, STATUS_MAX):
        line = f"HTTP/1.1 {status} {phrases.get(status, '')}\r\n".encode("ascii")
        engine.status_lengths[status] = len(line)
        memcpy(engine.status_lines[status], <const char *>line, len(line))
    line = b"Server: " + server_name + b"\r\n" if server_name else b""
    engine.server_length = len(line)
    memcpy(engine.server_line, <const char *>line, len(line))


cdef void heads_tick(Engine *engine) noexcept nogil:
    cdef tm parts
    cdef time_t seconds = <time_t>engine.wall_s
    gmtime_r(&seconds, &parts)
    engine.date_length = <uint32_t>strftime(engine.date_line, sizeof(engine.date_line),
                                            b"Date: %a, %d %b %Y %H:%M:%S GMT\r\n", &parts)
