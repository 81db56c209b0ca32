# The HTTP module: its states, its events, its state functions. The table between them is data (batchbridge.machine).
from batchbridge.cython_ext.core cimport Connection, Deferred, Engine


cpdef enum State:
    DERIVE_REQUEST = 0
    DERIVE_CACHED_RESPONSE
    DERIVE_MISS_RESPONSE
    DERIVE_UNCACHED_RESPONSE
    DERIVE_DEFERRED_RESPONSE
    DERIVE_REMOTE_RESPONSE
    DERIVE_STATUS_RESPONSE
    DEFER_REQUEST
    SEND_ENGINE
    # Where the machine rests.
    AWAIT_BYTES                 # the request is not whole
    AWAIT_TURN                  # answers before it are owed; it is derived anew when they have left
    AWAIT_RESPONSE              # it is in user mode
    FINISHED


cpdef enum Event:
    EVENT_REQUEST = 0           # a whole request
    EVENT_INCOMPLETE
    EVENT_MALFORMED             # to be refused, and the connection closed
    EVENT_OWED                  # answers before it are owed
    EVENT_HIT
    EVENT_MISS
    EVENT_ROUTE                 # a handler's route matches
    EVENT_NO_ROUTE
    EVENT_STATUS                # a status alone says it: redirects, OPTIONS, 405, 422
    EVENT_OBJECT                # a file's object was made
    EVENT_LISTING               # a directory without an index file
    EVENT_ABSENT                # nothing there by that name
    EVENT_UNSUITED              # there may be, but not for this method
    EVENT_FAILED                # it is there, but could not be had
    EVENT_SERVER                # a user-mode server will answer
    EVENT_NO_SERVER
    EVENT_QUEUED
    EVENT_QUEUE_FULL
    EVENT_ANSWERED              # from user mode: the answer
    EVENT_TIMED_OUT             # from the clock, instead of it
    EVENT_SENT


cdef http_protocol()            # a machine.Protocol


# Goes on with the requests in user mode whose answers are there and whose turn it is.
cdef void answer_owed(Engine *engine, Connection *connection) noexcept nogil

# Answers an unfinished request (408, 503) and lets the connection end.
cdef void respond_status(Engine *engine, Connection *connection, int status) noexcept nogil
