# Machines that rest, and go on by what comes from outside.
from batchbridge.cython_ext.core cimport Connection, Engine


# Goes on with the requests in user mode whose answers are there and whose turn it is.
cdef void answer_owed(Engine *engine, Connection *connection) noexcept nogil

# Answers an unfinished request (408, 503) and lets the connection end.
cdef void respond_status(Engine *engine, Connection *connection, int status) noexcept nogil
