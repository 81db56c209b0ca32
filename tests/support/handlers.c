/* Native handlers for tests: some do what they should, most do not. */
#define _GNU_SOURCE
#include <batchbridge.h>

#include <arpa/inet.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

/* As Notes in native.py. */
typedef struct notes {
    uint32_t calls;
    uint32_t items;
    uint32_t count;
    int32_t codes[64];
    uint32_t is_open;
    uint32_t waiting;
    uint32_t cancelled;
    int64_t time_left_us;
} notes;

static void begin(bb_batch *batch) {
    notes *written = batch->context;
    if (!written) return;
    written->calls++;
    written->items += batch->size;
}

static void note(bb_batch *batch, int code) {
    notes *written = batch->context;
    if (written && written->count < 64) written->codes[written->count++] = code;
}

static bb_text parameter(bb_batch *batch, uint32_t index) {
    bb_request request;
    bb_get_request(batch, index, &request);
    return request.parameters[0];
}

static int is(bb_text text, const char *word) {
    return text.length == strlen(word) && memcmp(text.data, word, text.length) == 0;
}

static int respond_parameter(bb_batch *batch, uint32_t index) {
    bb_text text = parameter(batch, index);
    return bb_respond(batch, index, 200, "text/plain", text.data, text.length);
}

/* The first path parameter. */
void echo(bb_batch *batch) {
    begin(batch);
    for (uint32_t index = 0; index < batch->size; index++) respond_parameter(batch, index);
}

/* The body. */
void body(bb_batch *batch) {
    begin(batch);
    for (uint32_t index = 0; index < batch->size; index++) {
        bb_request request;
        bb_get_request(batch, index, &request);
        bb_respond(batch, index, 200, NULL, request.body.data, request.body.length);
    }
}

static int put(char *text, size_t size, int used, const char *name, bb_text value) {
    if (!value.data) return used + snprintf(text + used, size - (size_t)used, "%s: none\n", name);
    return used + snprintf(text + used, size - (size_t)used, "%s: %.*s\n", name, (int)value.length, value.data);
}

/* All that can be seen of a request. */
void describe(bb_batch *batch) {
    begin(batch);
    for (uint32_t index = 0; index < batch->size; index++) {
        char text[4096], address[INET6_ADDRSTRLEN] = "";
        bb_request request;
        bb_text value;
        int used = 0;
        note(batch, bb_get_request(batch, index, &request));
        used = put(text, sizeof text, used, "method", request.method);
        used = put(text, sizeof text, used, "target", request.target);
        used = put(text, sizeof text, used, "path", request.path);
        used = put(text, sizeof text, used, "query", request.query);
        used = put(text, sizeof text, used, "authority", request.authority);
        used = put(text, sizeof text, used, "body", request.body);
        for (uint32_t number = 0; number < request.parameter_count; number++)
            used = put(text, sizeof text, used, "parameter", request.parameters[number]);
        note(batch, bb_get_header(batch, index, "x-NAME", &value));
        used = put(text, sizeof text, used, "x-name", value);
        note(batch, bb_get_header(batch, index, "x-nam", &value));
        used = put(text, sizeof text, used, "x-nam", value);
        if (request.family) inet_ntop(request.family, request.address, address, sizeof address);
        used += snprintf(text + used, sizeof text - (size_t)used, "version: 1.%u\nclient: %s %d\nlines: %u\n",
                         request.minor_version, address, request.port > 0, (unsigned)request.headers.length);
        bb_respond(batch, index, 200, "text/plain", text, (size_t)used);
    }
}

/* Answers each item twice. */
void twice(bb_batch *batch) {
    begin(batch);
    for (uint32_t index = 0; index < batch->size; index++) {
        note(batch, respond_parameter(batch, index));
        note(batch, bb_respond(batch, index, 200, NULL, "again", 5));
    }
}

/* Looks at and answers items that there are not, then those that there are. */
void stray(bb_batch *batch) {
    const uint32_t beyond[] = {batch->size, batch->size + 1, 1u << 31, UINT32_MAX};
    begin(batch);
    for (uint32_t which = 0; which < 4; which++) {
        bb_request request;
        bb_text value;
        note(batch, bb_respond(batch, beyond[which], 200, NULL, "stray", 5));
        note(batch, bb_get_request(batch, beyond[which], &request));
        note(batch, request.path.data == NULL && request.parameter_count == 0);
        note(batch, bb_get_header(batch, beyond[which], "host", &value));
        note(batch, bb_is_cancelled(batch, beyond[which]));
        note(batch, (int)bb_time_left_us(batch, beyond[which]));
    }
    for (uint32_t index = 0; index < batch->size; index++) respond_parameter(batch, index);
}

/* Answers the first item alone. */
void forgetful(bb_batch *batch) {
    begin(batch);
    respond_parameter(batch, 0);
}

/* Answers nothing. */
void silent(bb_batch *batch) { begin(batch); }

/* Tells the length that a body would have: of HEAD's answers, where there is none, and of others, where it is refused. */
void lengths(bb_batch *batch) {
    const bb_header fields[] = {{"content-length", "12345"}}, bad[] = {{"Content-Length", "1x"}};
    begin(batch);
    for (uint32_t index = 0; index < batch->size; index++) {
        bb_response response = {.headers = bad, .header_count = 1};
        note(batch, bb_respond_with(batch, index, &response));
        response.headers = fields;
        note(batch, bb_respond_with(batch, index, &response));
        respond_parameter(batch, index);
    }
}

/* Says of itself that it is larger than it is, and then looks at what is not there. */
void grows(bb_batch *batch) {
    const uint32_t size = batch->size;
    bb_request request;
    begin(batch);
    batch->size = UINT32_MAX;
    note(batch, bb_get_request(batch, size, &request));
    note(batch, bb_respond(batch, size, 200, NULL, "beyond", 6));
    for (uint32_t index = 0; index < size; index++) note(batch, respond_parameter(batch, index));
}

/* Items called "large" get a body that is too large, "null" one that is not there, "huge" one of impossible length. */
void large(bb_batch *batch) {
    static char zeros[200000];
    begin(batch);
    for (uint32_t index = 0; index < batch->size; index++) {
        bb_text name = parameter(batch, index);
        if (is(name, "large"))
            note(batch, bb_respond(batch, index, 200, NULL, zeros, sizeof zeros));
        else if (is(name, "null"))
            note(batch, bb_respond(batch, index, 200, NULL, NULL, 5));
        else if (is(name, "huge"))
            note(batch, bb_respond(batch, index, 200, NULL, zeros, SIZE_MAX));
        else
            note(batch, respond_parameter(batch, index));
    }
}

/* Tries every status that cannot be sent, then one that can. */
void statuses(bb_batch *batch) {
    const int bad[] = {0, -1, 100, 101, 199, 600, 65536 + 200, -2147483647 - 1};
    begin(batch);
    for (uint32_t index = 0; index < batch->size; index++) {
        for (uint32_t which = 0; which < 8; which++) note(batch, bb_respond(batch, index, bad[which], NULL, "bad", 3));
        note(batch, bb_respond(batch, index, 418, "text/plain", "teapot", 6));
    }
}

/* Tries header lines that would break the message or are the engine's, then those that are neither. */
void splits(bb_batch *batch) {
    static const bb_header bad[][1] = {
        {{"X-A", "b\r\nX-C: d"}},
        {{"X-A", "b\nX-C: d"}},
        {{"X-A", "b\rX-C: d"}},
        {{"X-A\r\n", "b"}},
        {{"", "b"}},
        {{"X A", "b"}},
        {{"X-A:", "b"}},
        {{NULL, "b"}},
        {{"X-A", NULL}},
        {{"Server", "b"}},
        {{"DATE", "b"}},
        {{"Content-Length", "1"}},
        {{"transfer-encoding", "chunked"}},
        {{"Connection", "close"}},
    };
    static const bb_header fine[] = {{"X-A", "b"}, {"x-empty", ""}, {"Content-Type", "text/css"}};
    static char long_value[20000];
    const bb_header too_long[] = {{"X-Long", long_value}};
    begin(batch);
    memset(long_value, 'v', sizeof long_value - 1);
    for (uint32_t index = 0; index < batch->size; index++) {
        bb_response response = {.body = "body", .length = 4};
        note(batch, bb_respond(batch, index, 200, "text/plain\r\nX-Evil: 1", "body", 4));
        note(batch, bb_respond(batch, index, 200, "text/plain\n\nbody", "body", 4));
        note(batch, bb_respond(batch, index, 200, long_value, "body", 4));
        response.header_count = 1;
        for (uint32_t which = 0; which < sizeof bad / sizeof bad[0]; which++) {
            response.headers = bad[which];
            note(batch, bb_respond_with(batch, index, &response));
        }
        response.headers = too_long;
        note(batch, bb_respond_with(batch, index, &response));
        response.headers = NULL;
        note(batch, bb_respond_with(batch, index, &response));
        response.headers = fine;
        response.header_count = UINT32_MAX;
        note(batch, bb_respond_with(batch, index, &response));
        response.header_count = 3;
        note(batch, bb_respond_with(batch, index, &response));
    }
}

/* Answers that are cached for a minute; the query "?public" makes them so for credentials, too. */
void cached(bb_batch *batch) {
    begin(batch);
    for (uint32_t index = 0; index < batch->size; index++) {
        bb_request request;
        char text[64];
        bb_response response = {.content_type = "text/plain", .body = text, .cache_ttl_s = 60};
        notes *written = batch->context;
        bb_get_request(batch, index, &request);
        response.length = (size_t)snprintf(text, sizeof text, "call %u", written ? written->calls : 0);
        if (is(request.query, "public")) response.flags = BB_PUBLIC;
        if (is(request.query, "tagged")) response.tags = "one\0two", response.tags_length = 8;
        if (is(request.query, "endless")) response.tags = "one", response.tags_length = 3;
        note(batch, bb_respond_with(batch, index, &response));
        response.cache_ttl_s = 0, response.tags_length = 0;
        bb_respond_with(batch, index, &response);
    }
}

/* Waits until it is let go on; notes who is cancelled then, and how much time the first item had before. */
void gated(bb_batch *batch) {
    volatile notes *written = batch->context;
    begin(batch);
    written->time_left_us = bb_time_left_us(batch, 0);
    written->waiting++;
    for (int turn = 0; turn < 8000 && !written->is_open; turn++) usleep(1000);
    for (uint32_t index = 0; index < batch->size; index++) {
        written->cancelled += (uint32_t)bb_is_cancelled(batch, index);
        respond_parameter(batch, index);
    }
}

/* decode=Array("<f4", (4,)): the sum of each row. */
void sums(bb_batch *batch) {
    begin(batch);
    for (uint32_t index = 0; index < batch->size; index++) {
        const float *row = (const float *)((const char *)batch->bodies + index * batch->stride);
        float sum = row[0] + row[1] + row[2] + row[3];
        bb_respond(batch, index, 200, NULL, &sum, sizeof sum);
    }
}

static int all_are(const char *bytes, size_t length, char value) {
    for (size_t index = 0; index < length; index++)
        if (bytes[index] != value) return 0;
    return 1;
}

/* As handlers of an older and a newer version would: with smaller and larger structures. */
void versions(bb_batch *batch) {
    const size_t small_size = offsetof(bb_request, body), short_size = offsetof(bb_response, headers);
    union {
        bb_request request;
        char bytes[sizeof(bb_request) + 64];
    } small, large;
    union {
        bb_response response;
        char bytes[sizeof(bb_response) + 64];
    } longer;
    begin(batch);
    for (uint32_t index = 0; index < batch->size; index++) {
        memset(&small, 'x', sizeof small);
        memset(&large, 'x', sizeof large);
        memset(&longer, 'x', sizeof longer);
        note(batch, batch->functions->request(batch, index, &small.request, small_size));
        note(batch,
             is(small.request.method, "GET") && all_are(small.bytes + small_size, sizeof small - small_size, 'x'));
        note(batch, batch->functions->request(batch, index, &large.request, sizeof large));
        note(batch, is(large.request.method, "GET") && large.request.parameter_count == 1 &&
                        all_are(large.bytes + sizeof(bb_request), 64, 0));
        /* What is behind the smaller structure is not looked at. */
        longer.response.content_type = NULL, longer.response.body = "older", longer.response.length = 5;
        if (index % 2 == 0) {
            note(batch, batch->functions->answer(batch, index, &longer.response, short_size));
        } else {
            longer.response = (bb_response){.body = "newer", .length = 5};
            note(batch, batch->functions->answer(batch, index, &longer.response, sizeof longer));
        }
    }
}

/* A handler that says what it was compiled for. */
const bb_handler echo_handler = {BB_HANDLER_ABI, 0, echo, NULL, "the echo"};
const bb_handler echo_of_tomorrow = {BB_HANDLER_ABI + 1, 0, echo, NULL, "tomorrow's echo"};
const bb_handler echo_of_never = {0, 0, echo, NULL, NULL};
const bb_handler nothing = {BB_HANDLER_ABI, 0, NULL, NULL, "nothing"};

/* GET /echo/alone over a socket, for a thread that holds the interpreter's lock meanwhile. The bytes that came back, or
 * -1: none came within five seconds. */
int ask(int port, char *out, int size) {
    static const char request[] = "GET /echo/alone HTTP/1.1\r\nHost: test\r\n\r\n";
    const struct timeval patience = {5, 0};
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int received = -1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0 &&
        send(fd, request, sizeof request - 1, MSG_NOSIGNAL) > 0)
        received = (int)recv(fd, out, (size_t)size, 0);
    close(fd);
    return received;
}
