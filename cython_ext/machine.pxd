# The runtime of protocol modules: states, events, and tables that are data (AFPA's state machine, paper's figure 1).
#
# A protocol module brings state functions. A state function does one state's work and returns an event; it never names
# the state that follows. The table does: next_state[state][event]. Three kinds of data are kept apart and passed to
# every state function: of the whole engine, of the connection, of the request.
from libc.stdint cimport uint8_t, uint32_t


cdef enum:
    STATES_MAX = 16
    EVENTS_MAX = 32
    STATE_REFUSED = 255         # what the table holds where no transition was given


ctypedef int (*StateFunction)(void *engine, void *connection, void *request) noexcept nogil

# Reads the beginning of a request that is whole into a parse.Head. Its length, or 0 or less: it is none.
ctypedef int (*HeadReader)(const void *engine, const char *data, uint32_t length, void *head) noexcept nogil

# Writes what comes first in a response (send.Response); returns where it ends. At most RESPONSE_HEAD_ROOM_BYTES.
ctypedef char *(*HeadWriter)(const void *engine, char *at, const void *response) noexcept nogil


cdef struct Machine:
    StateFunction functions[16]         # NULL: the machine stops there until an event resumes it, or for good
    uint8_t next_state[16][32]          # single bytes, so that Python may store to a machine that runs
    HeadReader read_head
    HeadWriter write_head
    uint8_t has_lines                   # responses have header lines (RFC 9110 section 5) behind what it writes


# Runs from `state` until a state without a function is entered; returns that state.
# An event that the table has no transition for, or a table that goes round in a circle, stops in STATE_REFUSED, which
# the caller treats as its own fault.
cdef int run_machine(const Machine *machine, int state, void *engine, void *connection, void *request) noexcept nogil

# Gives a machine that waits in `state` an event from outside (an answer, a time-out), and runs on.
cdef int resume_machine(const Machine *machine, int state, int event, void *engine, void *connection,
                        void *request) noexcept nogil


cdef class Protocol:
    # What a protocol module tells of itself: the names of its states and events in the order of their numbers (which
    # begin with those of states.pxd), its state functions, how a request begins, and how a response does.
    cdef readonly str name
    cdef readonly tuple states
    cdef readonly tuple events
    cdef StateFunction functions[16]
    cdef HeadReader read_head
    cdef HeadWriter write_head
    cdef uint8_t has_lines

    cdef fill(self, Machine *machine, table)
