# What a client makes of responses: reads them as they come, cut anywhere, and compares each with what was expected.
#
# Pure: it reads the bytes it is given, keeps what it knows in the structure it is given, allocates nothing.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from batchbridge.cython_ext.chunked cimport ChunkDecoder


cdef enum:
    STATUSES_MAX = 8                    # that one request may be answered with
    RESPONSE_HEAD_SIZE_BYTES_MAX = 8192


# What a request's response may be. Length and bytes of the body are compared where the status is the first of those
# expected: the others tell of a refusal, whose text is the server's own.
cdef struct Expectation:
    uint16_t statuses[8]
    uint8_t status_count
    uint8_t is_head                     # the response has no body, whatever its header lines say
    uint8_t has_crc
    uint32_t crc                        # CRC-32 of the body
    int64_t length                      # of the body (of HEAD: what Content-Length says); -1: any
    const char *body                    # `length` bytes, the caller's; NULL: not compared


cdef enum ReaderPhase:
    READS_HEAD = 0
    READS_BODY                          # `left` bytes of it are to come
    READS_CHUNKS
    READS_TO_END                        # of the connection


# What was wrong with a response that is whole. Bits.
cdef enum Wrong:
    WRONG_STATUS = 1
    WRONG_LENGTH = 2
    WRONG_BODY = 4


# The response that a connection is in the middle of. Zeroed at first, and by reader_next().
cdef struct Reader:
    uint8_t phase                       # ReaderPhase
    uint8_t wrong                       # Wrong
    uint8_t slot                        # place of `status` among those expected; STATUSES_MAX: not among them
    uint8_t compares                    # length and bytes of the body
    uint8_t closes                      # the server says that this is the connection's last response
    uint8_t begun                       # a byte of it has come
    uint16_t status
    int64_t length                      # Content-Length; -1: not told
    int64_t body_read
    int64_t left
    uint32_t crc
    uint32_t head_length                # bytes in `head`, of a head that came in pieces
    ChunkDecoder chunks
    char head[8192]


cdef enum ReadEvent:
    READ_MORE = 0                       # all bytes were taken, the response is not whole
    READ_WHOLE                          # status, wrong and closes are final; call reader_next() before the next
    READ_MALFORMED                      # this is no HTTP response; nothing more can be read here


# Reads on; returns the bytes taken (all of them, unless the response became whole or is malformed). `data` may be
# changed: chunks are joined in place.
cdef uint32_t read_response(Reader *reader, const Expectation *expected, char *data, uint32_t length,
                            int *event) noexcept nogil
# The connection has ended: READ_WHOLE for a body that the end ends, READ_MORE for a response cut short (or none).
cdef int read_end(Reader *reader, const Expectation *expected) noexcept nogil
cdef void reader_next(Reader *reader) noexcept nogil

# CRC-32 as zlib has it; `crc` is 0 at first.
cdef uint32_t crc32(uint32_t crc, const char *data, uint64_t length) noexcept nogil
