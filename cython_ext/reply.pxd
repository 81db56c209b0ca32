# The Send Engine's state function: whatever was derived becomes a response, a line in the log, and a counted outcome.

from batchbridge.cython_ext.cache cimport CacheObject
from batchbridge.cython_ext.core cimport Engine
from batchbridge.cython_ext.parse cimport Head
from batchbridge.cython_ext.send cimport Response


# The response to a request that a cached object answers, as it would leave now. It may refer to Engine.lines.
cdef void describe_known(Engine *engine, Head *head, CacheObject *object, Response *response) noexcept nogil

# A machine.StateFunction: EVENT_SENT, or EVENT_OWED while answers before it are owed.
cdef int send_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil
