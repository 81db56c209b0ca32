/* The handler of prime.py: is a number prime? It is called once a batch, without Python's interpreter and its lock. */
#include <batchbridge.h>

#define DIGITS_MAX 15

static int is_prime(uint64_t number) {
    if (number < 2 || (number % 2 == 0 && number != 2)) return 0;
    for (uint64_t divisor = 3; divisor * divisor <= number; divisor += 2)
        if (number % divisor == 0) return 0;
    return 1;
}

/* Path parameters come as they were sent, from whoever sent them. */
static int read_number(bb_text text, uint64_t *number) {
    *number = 0;
    if (text.length == 0 || text.length > DIGITS_MAX) return 0;
    for (size_t index = 0; index < text.length; index++) {
        if (text.data[index] < '0' || text.data[index] > '9') return 0;
        *number = *number * 10 + (uint64_t)(text.data[index] - '0');
    }
    return 1;
}

void prime(bb_batch *batch) {
    for (uint32_t index = 0; index < batch->size; index++) {
        bb_request request;
        uint64_t number;
        bb_get_request(batch, index, &request);
        if (!read_number(request.parameters[0], &number))
            bb_respond(batch, index, 400, "text/plain", "not a number\n", 13);
        else if (is_prime(number))
            bb_respond(batch, index, 200, "text/plain", "prime\n", 6);
        else
            bb_respond(batch, index, 200, "text/plain", "not prime\n", 10);
    }
}
