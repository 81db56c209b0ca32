# How an HTTP response begins.
from batchbridge.cython_ext.core cimport Engine


# A machine.HeadWriter.
cdef char *write_http_head(const void *engine_data, char *at, const void *response_data) noexcept nogil

# Makes what is the same in all responses; every second what has changed.
cdef heads_prepare(Engine *engine, bytes server_name)
cdef void heads_tick(Engine *engine) noexcept nogil
