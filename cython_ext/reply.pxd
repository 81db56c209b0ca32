# The Send Engine's state function: whatever was derived becomes a response, a line in the log, and a counted outcome.

# A machine.StateFunction: EVENT_SENT, or EVENT_OWED while answers before it are owed.
cdef int send_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil
