# The access log: lines in the Combined format, written by the driver in large pieces.
from libc.stdint cimport int64_t, uint32_t, uint64_t

from batchbridge.cython_ext.core cimport Connection, Engine


cdef int log_open(Engine *engine, int fd, uint32_t size_bytes) noexcept nogil      # 0, or -ENOMEM
cdef void log_close(Engine *engine) noexcept nogil

# A second has passed: the time in the lines changes.
cdef void log_tick(Engine *engine) noexcept nogil

# Whether a line finds room now.
cdef bint log_has_room(const Engine *engine) noexcept nogil

# One line. Texts are taken as they came, with what could forge a line or a field escaped. Never waits: a line that
# finds no room is counted as lost.
cdef void log_line(Engine *engine, const Connection *connection, const char *request_line, uint32_t request_line_length,
                   int status, uint64_t body_length, const char *referer, uint32_t referer_length,
                   const char *user_agent, uint32_t user_agent_length) noexcept nogil

# Hands what has gathered to the driver, if it is not still writing.
cdef void log_flush(Engine *engine) noexcept nogil
cdef void log_written(Engine *engine, int64_t result) noexcept nogil
