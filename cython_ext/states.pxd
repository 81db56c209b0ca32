# The states and events that all protocol modules share: those of the paper's figure 1, and where a machine rests.
#
# Connections are run by these, whatever the protocol: a machine begins in DERIVE_REQUEST and rests in one of the last
# four. A protocol module may have states and events of its own behind them.


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
    AWAIT_TURN                  # answers before it are owed, or its file is cold; it is derived anew when that is over
    AWAIT_RESPONSE              # it is in user mode
    FINISHED
    STATE_COUNT                 # a protocol module's own states have numbers from here on


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
    EVENT_COLD                  # a disk must be waited for first
    EVENT_COUNT                 # the same of its events
