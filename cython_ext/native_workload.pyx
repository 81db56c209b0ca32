"""The native handler that measurements serve: the answers of batchbridge.measure.workload, in C.

It is also the example of a handler in Cython: all it knows of batchbridge is the face for handlers.
"""
from cpython.pycapsule cimport PyCapsule_GetPointer, PyCapsule_New
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from batchbridge.cython_ext.handler_abi cimport (
    BB_CAPSULE_NAME, BB_HANDLER_ABI, bb_batch, bb_get_request, bb_handler, bb_request, bb_respond, bb_text)


cdef enum:
    BLOCK_SIZE_BYTES = 128
    DIGITS_MAX = 19

cdef uint64_t FACTOR = 0x9E3779B97F4A7C15U
cdef const char *DIGITS = b"0123456789abcdef"

cdef uint8_t BLOCK[128]
# Where all work ends, so that no compiler finds it in vain.
cdef volatile uint64_t checksum_of_all


cdef void do_work(uint64_t number, uint64_t work) noexcept nogil:
    """So many checksums of a block (FNV-1a)."""
    global checksum_of_all
    cdef uint64_t checksum = number
    cdef uint64_t _
    cdef uint32_t index
    for _ in range(work):
        for index in range(BLOCK_SIZE_BYTES):
            checksum = (checksum ^ BLOCK[index]) * 0x100000001B3U
    checksum_of_all = checksum


cdef bint read_number(const bb_text *text, uint64_t *number) noexcept nogil:
    cdef size_t index
    if text.length == 0 or text.length > DIGITS_MAX:
        return False
    number[0] = 0
    for index in range(text.length):
        if not c"0" <= text.data[index] <= c"9":
            return False
        number[0] = number[0] * 10 + <uint64_t>(text.data[index] - c"0")
    return True


cdef void answer_batch(bb_batch *batch) noexcept nogil:
    """GET /v/{number}: sixteen hexadecimal digits that depend on the number, four times; work a request by context."""
    cdef uint64_t work = <uint64_t>batch.context
    cdef uint64_t number = 0, product
    cdef uint32_t index, digit
    cdef bb_request request
    cdef char body[64]
    for index in range(batch.size):
        bb_get_request(batch, index, &request)
        if not read_number(&request.parameters[0], &number):
            bb_respond(batch, index, 404, NULL, NULL, 0)
            continue
        product = number * FACTOR
        for digit in range(16):
            body[digit] = DIGITS[(product >> (60 - 4 * digit)) & 15]
        for digit in range(1, 4):
            memcpy(body + 16 * digit, body, 16)
        if work:
            do_work(number, work)
        bb_respond(batch, index, 200, NULL, body, 64)


cdef void free_capsule(object capsule) noexcept:
    free(PyCapsule_GetPointer(capsule, BB_CAPSULE_NAME))


def handler(uint32_t work) -> object:
    """The handler, as Server.native takes it, with so much work a request."""
    cdef bb_handler *made = <bb_handler *>calloc(1, sizeof(bb_handler))
    if made is NULL:
        raise MemoryError
    made.abi = BB_HANDLER_ABI
    made.function = answer_batch
    made.context = <void *><uint64_t>work
    made.name = b"native_workload"
    return PyCapsule_New(made, BB_CAPSULE_NAME, free_capsule)


def compute(uint32_t work) -> None:
    """Does that much work, here and now."""
    with nogil:
        do_work(work, work)
