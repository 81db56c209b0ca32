# State functions (machine.StateFunction) that all protocol modules share. Each is named after its state; what events it
# returns is in the tables (batchbridge.machine).

cdef int derive_cached_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil
cdef int derive_miss_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil
cdef int derive_uncached_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil
cdef int derive_deferred_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil
cdef int derive_remote_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil
cdef int defer_to_user_mode(void *engine_data, void *connection_data, void *request_data) noexcept nogil
cdef int derive_status_response(void *engine_data, void *connection_data, void *request_data) noexcept nogil
