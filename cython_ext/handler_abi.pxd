# Native handlers in Cython: what batchbridge.h declares, which says what it all means. Installed as batchbridge.native:
#
#     from batchbridge.native cimport bb_batch, bb_respond
#
#     cdef void hello(bb_batch *batch) noexcept nogil:
#         ...
#
# The C compiler finds the header in batchbridge.get_include().
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t


cdef extern from "batchbridge.h" nogil:
    enum:
        BB_HANDLER_ABI
        BB_PARAMETERS_MAX
        BB_OK
        BB_NO_ITEM
        BB_ANSWERED_BEFORE
        BB_BAD_STATUS
        BB_TOO_LARGE
        BB_BAD_HEADER
        BB_NOT_CACHEABLE
        BB_PUBLIC
    const char *BB_CAPSULE_NAME

    ctypedef struct bb_text:
        const char *data
        size_t length

    ctypedef struct bb_request:
        bb_text method
        bb_text target
        bb_text path
        bb_text query
        bb_text authority
        bb_text headers
        bb_text body
        bb_text parameters[8]
        uint32_t parameter_count
        uint32_t minor_version
        const uint8_t *address
        uint16_t family
        uint16_t port

    ctypedef struct bb_header:
        const char *name
        const char *value

    ctypedef struct bb_response:
        const char *content_type
        const void *body
        size_t length
        const bb_header *headers
        uint32_t header_count
        uint32_t status
        uint32_t cache_ttl_s
        uint32_t flags
        const char *tags
        size_t tags_length

    ctypedef struct bb_functions:
        int (*request)(const bb_batch *, uint32_t, bb_request *, size_t) noexcept
        int (*header)(const bb_batch *, uint32_t, const char *, bb_text *) noexcept
        int (*cancelled)(const bb_batch *, uint32_t) noexcept
        int64_t (*time_left_us)(const bb_batch *, uint32_t) noexcept
        int (*respond)(bb_batch *, uint32_t, int, const char *, const void *, size_t) noexcept
        int (*answer)(bb_batch *, uint32_t, const bb_response *, size_t) noexcept

    ctypedef struct bb_batch:
        uint32_t abi
        uint32_t size
        const bb_functions *functions
        void *context
        const void *bodies
        size_t stride

    ctypedef void (*bb_function)(bb_batch *) noexcept nogil

    ctypedef struct bb_handler:
        uint32_t abi
        uint32_t reserved
        bb_function function
        void *context
        const char *name

    int bb_get_request(const bb_batch *, uint32_t index, bb_request *) noexcept
    int bb_get_header(const bb_batch *, uint32_t index, const char *name, bb_text *) noexcept
    int bb_is_cancelled(const bb_batch *, uint32_t index) noexcept
    int64_t bb_time_left_us(const bb_batch *, uint32_t index) noexcept
    int bb_respond(bb_batch *, uint32_t index, int status, const char *content_type, const void *body,
                   size_t length) noexcept
    int bb_respond_with(bb_batch *, uint32_t index, const bb_response *) noexcept
