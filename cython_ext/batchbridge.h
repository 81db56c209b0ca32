/* Native handlers: functions in C, C++, Rust, Cython or anything else with C's calling convention that answer batches of
 * requests, without the interpreter and without its lock.
 *
 *     #include <batchbridge.h>                                  // in batchbridge.get_include()
 *
 *     void hello(bb_batch *batch) {
 *         for (uint32_t index = 0; index < batch->size; index++)
 *             bb_respond(batch, index, 200, "text/plain", "hello\n", 6);
 *     }
 *
 *     server.native("/hello", ctypes.CDLL("./hello.so").hello)  // in Python
 *
 * The rules:
 *
 * - A handler is called once a batch, by a worker thread, or by the engine's own with handler_threads=0. Several batches
 *   may be under way on several threads, but each batch is one thread's.
 * - The batch, and all bytes that are read through it, are there until the handler returns, and are not to be written.
 *   What is given to an answer is copied before the call returns.
 * - Each item is answered once. An answer that is refused leaves its item as it was, so another may follow; it is
 *   counted, and told in the log. An item that is left without an answer gets 500, which is counted and told, too.
 * - An exception must not leave a handler, and a crash ends the server's process.
 * - Versions: members and functions are only added, at the end, and each addition makes a new BB_HANDLER_ABI. A server
 *   takes handlers that were compiled for its own version or for an older one. A function given without its version is
 *   taken to be of the server's; it can look at batch->abi.
 */
#ifndef BATCHBRIDGE_H
#define BATCHBRIDGE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BB_HANDLER_ABI 1

/* Path parameters that a route may have. */
#define BB_PARAMETERS_MAX 8

/* What becomes of an answer. */
enum {
    BB_OK = 0,
    BB_NO_ITEM = -1,         /* the batch has no item of that index */
    BB_ANSWERED_BEFORE = -2, /* the item was answered before */
    BB_BAD_STATUS = -3,      /* not 200 to 599 */
    BB_TOO_LARGE = -4,     /* the body is larger than response_size_bytes_max, or there is none where it has a length */
    BB_BAD_HEADER = -5,    /* a name or value that would break the message, or is the engine's to set; or too many */
    BB_NOT_CACHEABLE = -6, /* cache_ttl_s in an answer to another method than GET and HEAD, or tags that are too long */
};

/* bb_response.flags */
enum {
    BB_PUBLIC = 1, /* may be cached although the request had credentials */
};

/* Bytes, not ended by NUL. `data` is NULL for what the request does not have. */
typedef struct bb_text {
    const char *data;
    size_t length;
} bb_text;

/* A request. All as it was sent: nothing is decoded. */
typedef struct bb_request {
    bb_text method;
    bb_text target;
    bb_text path;
    bb_text query;     /* without its "?" */
    bb_text authority; /* host and port that were asked for */
    bb_text headers;   /* all header lines, each ended by CR LF */
    bb_text body;
    bb_text parameters[BB_PARAMETERS_MAX]; /* of the path, in the template's order */
    uint32_t parameter_count;
    uint32_t minor_version; /* of HTTP/1 */
    const uint8_t *address; /* the client's: 4 or 16 bytes in network order */
    uint16_t family;        /* AF_INET, AF_INET6, or 0: unknown */
    uint16_t port;
} bb_request;

/* A header field of an answer, both ended by NUL. */
typedef struct bb_header {
    const char *name;
    const char *value;
} bb_header;

/* An answer with all that may be said about it; what is zero says nothing. */
typedef struct bb_response {
    const char *content_type; /* NULL: application/octet-stream; "": none. One among `headers` goes before it */
    const void *body;
    size_t length;
    const bb_header *headers;
    uint32_t header_count;
    uint32_t status;      /* 0: 200 */
    uint32_t cache_ttl_s; /* the engine itself answers identical GET and HEAD requests for so many seconds */
    uint32_t flags;
    const char *tags; /* for purges: each ended by NUL */
    size_t tags_length;
} bb_response;

typedef struct bb_batch bb_batch;

/* What a handler may call; the functions below say it shorter. The size of a structure that the handler has made tells
 * which version's it is. */
typedef struct bb_functions {
    int (*request)(const bb_batch *batch, uint32_t index, bb_request *request, size_t request_size_bytes);
    int (*header)(const bb_batch *batch, uint32_t index, const char *name, bb_text *value);
    int (*cancelled)(const bb_batch *batch, uint32_t index);
    int64_t (*time_left_us)(const bb_batch *batch, uint32_t index);
    int (*respond)(bb_batch *batch, uint32_t index, int status, const char *content_type, const void *body,
                   size_t length);
    int (*answer)(bb_batch *batch, uint32_t index, const bb_response *response, size_t response_size_bytes);
} bb_functions;

struct bb_batch {
    uint32_t abi;  /* of the server */
    uint32_t size; /* items: they are called 0 to size - 1 */
    const bb_functions *functions;
    void *context;      /* what was given with the handler */
    const void *bodies; /* decode=Array(...): the first body; the others follow, each `stride` bytes after the last */
    size_t stride;      /* 0, and no `bodies`, without it */
};

typedef void (*bb_function)(bb_batch *batch);

/* A handler that says what it was compiled for: what a capsule of the name BB_CAPSULE_NAME points to. */
#define BB_CAPSULE_NAME "batchbridge.handler"

typedef struct bb_handler {
    uint32_t abi; /* BB_HANDLER_ABI */
    uint32_t reserved;
    bb_function function;
    void *context;    /* becomes bb_batch.context */
    const char *name; /* for lines in the log, ended by NUL; NULL: its address does */
} bb_handler;

/* Looks at an item. BB_OK or BB_NO_ITEM, and then `request` is all zero. */
static inline int bb_get_request(const bb_batch *batch, uint32_t index, bb_request *request) {
    return batch->functions->request(batch, index, request, sizeof *request);
}

/* The value of an item's header, whose name is ended by NUL, in any case: the first one's, without white space around
 * it. 1, or 0 where there is none (and `value` is all zero), or BB_NO_ITEM. */
static inline int bb_get_header(const bb_batch *batch, uint32_t index, const char *name, bb_text *value) {
    return batch->functions->header(batch, index, name, value);
}

/* Whether nobody waits for an item's answer any more (1): the client is gone, or was told that it took too long.
 * It may be answered all the same. */
static inline int bb_is_cancelled(const bb_batch *batch, uint32_t index) {
    return batch->functions->cancelled(batch, index);
}

/* Microseconds until the route's timeout_us is over for an item (0: it is); -1: there is none. */
static inline int64_t bb_time_left_us(const bb_batch *batch, uint32_t index) {
    return batch->functions->time_left_us(batch, index);
}

/* Answers an item. `content_type` as in bb_response. BB_OK, or why the answer was refused. */
static inline int bb_respond(bb_batch *batch, uint32_t index, int status, const char *content_type, const void *body,
                             size_t length) {
    return batch->functions->respond(batch, index, status, content_type, body, length);
}

/* The same, with all that may be said. */
static inline int bb_respond_with(bb_batch *batch, uint32_t index, const bb_response *response) {
    return batch->functions->answer(batch, index, response, sizeof *response);
}

#ifdef __cplusplus
}
#endif

#endif
