"""Responses, as a client reads and judges them.

The rules:

- A head that lies whole in the received bytes is read there; only one that is cut is gathered.
- What a body has to be is compared as it comes, so a response of any length costs no memory.
- A wrong response is read to its end like a right one: how it ends decides whether the connection can go on.
"""
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from batchbridge.cython_ext.chunked cimport decode_chunked


cdef extern from "<string.h>" nogil:
    void *memmem(const void *, size_t, const void *, size_t) noexcept
    void *memchr(const void *, int, size_t) noexcept


cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *, const char *, size_t) noexcept


cdef enum:
    LENGTH_DIGITS_MAX = 15


# --- CRC-32, eight bytes a step --------------------------------------------------------------------------------------

cdef uint32_t crc_tables[8][256]


cdef void fill_crc_tables() noexcept:
    cdef uint32_t index, _bit, value
    cdef int table
    for index in range(256):
        value = index
        for _bit in range(8):
            value = (value >> 1) ^ (0xEDB88320u if value & 1 else 0)
        crc_tables[0][index] = value
    for index in range(256):
        for table in range(1, 8):
            value = crc_tables[table - 1][index]
            crc_tables[table][index] = crc_tables[0][value & 0xFF] ^ (value >> 8)


fill_crc_tables()


cdef uint32_t crc32(uint32_t crc, const char *data, uint64_t length) noexcept nogil:
    cdef const unsigned char *at = <const unsigned char *>data
    cdef uint32_t words[2]
    crc = ~crc
    while length >= 8:
        memcpy(words, at, 8)            # little-endian, as all machines that io_uring servers run on
        words[0] ^= crc
        crc = (crc_tables[7][words[0] & 0xFF] ^ crc_tables[6][(words[0] >> 8) & 0xFF]
               ^ crc_tables[5][(words[0] >> 16) & 0xFF] ^ crc_tables[4][words[0] >> 24]
               ^ crc_tables[3][words[1] & 0xFF] ^ crc_tables[2][(words[1] >> 8) & 0xFF]
               ^ crc_tables[1][(words[1] >> 16) & 0xFF] ^ crc_tables[0][words[1] >> 24])
        at += 8
        length -= 8
    while length:
        crc = crc_tables[0][(crc ^ at[0]) & 0xFF] ^ (crc >> 8)
        at += 1
        length -= 1
    return ~crc


# --- heads -----------------------------------------------------------------------------------------------------------

cdef void reader_next(Reader *reader) noexcept nogil:
    # All but the gathered head's bytes.
    memset(reader, 0, sizeof(Reader) - RESPONSE_HEAD_SIZE_BYTES_MAX)


cdef bint is_field(const char *line, uint32_t length, const char *name, uint32_t name_length) noexcept nogil:
    """Whether a header line has that name, which is in lower case and has its colon."""
    return length >= name_length and strncasecmp(line, name, name_length) == 0


cdef bint value_has(const char *value, uint32_t length, const char *token, uint32_t token_length) noexcept nogil:
    """Whether a list of tokens holds `token`; good enough for Connection and Transfer-Encoding."""
    cdef uint32_t at = 0
    while at + token_length <= length:
        if strncasecmp(value + at, token, token_length) == 0:
            return True
        at += 1
    return False


cdef int64_t number_of(const char *value, uint32_t length) noexcept nogil:
    """A Content-Length; -1: it is none."""
    cdef int64_t number = 0
    cdef uint32_t digits = 0
    while length and (value[0] == c' ' or value[0] == c'\t'):
        value += 1
        length -= 1
    while length and c'0' <= value[0] <= c'9':
        number = number * 10 + (value[0] - c'0')
        digits += 1
        value += 1
        length -= 1
    while length and (value[0] == c' ' or value[0] == c'\t'):
        value += 1
        length -= 1
    return number if length == 0 and 0 < digits <= LENGTH_DIGITS_MAX else -1


cdef int read_fields(Reader *reader, const char *line, const char *end) noexcept nogil:
    """The header lines that say where the body ends. READ_MALFORMED, or READ_WHOLE."""
    cdef const char *stop
    cdef uint32_t length
    cdef int64_t number
    while line < end:
        stop = <const char *>memchr(line, c'\r', end - line)
        if stop is NULL:
            return READ_MALFORMED
        length = <uint32_t>(stop - line)
        if (line[0] | 32) == c'c':
            if is_field(line, length, b"content-length:", 15):
                number = number_of(line + 15, length - 15)
                if number < 0 or (reader.length >= 0 and reader.length != number):
                    return READ_MALFORMED
                reader.length = number
            elif is_field(line, length, b"connection:", 11):
                if value_has(line + 11, length - 11, b"close", 5):
                    reader.closes = 1
                elif value_has(line + 11, length - 11, b"keep-alive", 10):
                    reader.closes = 0
        elif (line[0] | 32) == c't' and is_field(line, length, b"transfer-encoding:", 18):
            if not value_has(line + 18, length - 18, b"chunked", 7):
                return READ_MALFORMED
            reader.phase = READS_CHUNKS
        line = stop + 2
    return READ_WHOLE


cdef int read_head(Reader *reader, const Expectation *expected, const char *head, uint32_t length) noexcept nogil:
    """A whole head, with its empty line: what it says of the status and of the body's end.

    READ_MALFORMED; READ_WHOLE: there is no body; READ_MORE: the phase tells what follows (READS_HEAD: this was an
    interim response).
    """
    cdef const char *line
    if (length < 16 or memcmp(head, b"HTTP/1.", 7) or not c'0' <= head[7] <= c'1' or head[8] != c' '
            or not c'1' <= head[9] <= c'5' or not c'0' <= head[10] <= c'9' or not c'0' <= head[11] <= c'9'):
        return READ_MALFORMED
    reader.status = <unsigned short>((head[9] - c'0') * 100 + (head[10] - c'0') * 10 + head[11] - c'0')
    if reader.status < 200:
        return READ_MORE
    reader.closes = head[7] == c'0'
    reader.length = -1
    line = <const char *>memchr(head, c'\n', length)
    if read_fields(reader, line + 1, head + length - 2) == READ_MALFORMED:
        return READ_MALFORMED
    reader.slot = 0
    while reader.slot < expected.status_count and expected.statuses[reader.slot] != reader.status:
        reader.slot += 1
    if reader.slot == expected.status_count:
        reader.slot = STATUSES_MAX
        reader.wrong |= WRONG_STATUS
    reader.compares = reader.slot == 0
    if expected.is_head or reader.status == 204 or reader.status == 304:
        if expected.is_head and reader.compares and expected.length >= 0 and reader.length != expected.length:
            reader.wrong |= WRONG_LENGTH
        return READ_WHOLE
    if reader.phase == READS_CHUNKS:
        return READ_MORE
    reader.phase = READS_BODY if reader.length >= 0 else READS_TO_END
    reader.left = reader.length
    if reader.length == 0:
        return judge(reader, expected)
    return READ_MORE


cdef uint32_t gather_head(Reader *reader, const Expectation *expected, char *data, uint32_t length,
                          int *event) noexcept nogil:
    """Bytes of a head, whole or not; returns how many were taken."""
    cdef const char *end
    cdef uint32_t kept = reader.head_length, take, used, searched
    if kept == 0:
        end = <const char *>memmem(data, length, b"\r\n\r\n", 4)
        if end is not NULL:
            used = <uint32_t>(end + 4 - data)
            event[0] = read_head(reader, expected, data, used)
            return used
    take = min(length, <uint32_t>RESPONSE_HEAD_SIZE_BYTES_MAX - kept)
    memcpy(reader.head + kept, data, take)
    searched = kept - 3 if kept > 3 else 0
    end = <const char *>memmem(reader.head + searched, kept + take - searched, b"\r\n\r\n", 4)
    if end is NULL:
        reader.head_length = kept + take
        event[0] = READ_MALFORMED if reader.head_length == RESPONSE_HEAD_SIZE_BYTES_MAX else READ_MORE
        return take
    used = <uint32_t>(end + 4 - reader.head)
    reader.head_length = 0
    event[0] = read_head(reader, expected, reader.head, used)
    return used - kept


# --- bodies ----------------------------------------------------------------------------------------------------------

cdef void take_body(Reader *reader, const Expectation *expected, const char *data, uint32_t length) noexcept nogil:
    if reader.compares and not reader.wrong:
        if expected.length >= 0 and reader.body_read + length > expected.length:
            reader.wrong |= WRONG_LENGTH
        elif expected.body is not NULL and memcmp(expected.body + reader.body_read, data, length):
            reader.wrong |= WRONG_BODY
        elif expected.has_crc:
            reader.crc = crc32(reader.crc, data, length)
    reader.body_read += length


cdef int judge(Reader *reader, const Expectation *expected) noexcept nogil:
    """The body is whole."""
    if reader.compares and not reader.wrong:
        if expected.length >= 0 and reader.body_read != expected.length:
            reader.wrong |= WRONG_LENGTH
        elif expected.has_crc and reader.crc != expected.crc:
            reader.wrong |= WRONG_BODY
    return READ_WHOLE


cdef uint32_t read_response(Reader *reader, const Expectation *expected, char *data, uint32_t length,
                            int *event) noexcept nogil:
    cdef uint32_t taken = 0, consumed, produced
    cdef int result
    event[0] = READ_MORE
    if length:
        reader.begun = 1
    while reader.phase == READS_HEAD and taken < length:
        taken += gather_head(reader, expected, data + taken, length - taken, event)
        if event[0] != READ_MORE:
            return taken
    if taken == length:
        return taken
    data += taken
    length -= taken
    if reader.phase == READS_BODY:
        if length > reader.left:
            length = <uint32_t>reader.left
        take_body(reader, expected, data, length)
        reader.left -= length
        if reader.left == 0:
            event[0] = judge(reader, expected)
    elif reader.phase == READS_CHUNKS:
        result = decode_chunked(&reader.chunks, data, length, data, length, &consumed, &produced)
        if result < 0:
            event[0] = READ_MALFORMED
            return taken + length
        take_body(reader, expected, data, produced)
        length = consumed
        if result == 1:
            event[0] = judge(reader, expected)
    else:
        take_body(reader, expected, data, length)
    return taken + length


cdef int read_end(Reader *reader, const Expectation *expected) noexcept nogil:
    if reader.phase != READS_TO_END:
        return READ_MORE
    reader.closes = 1
    return judge(reader, expected)


# --- for tests -------------------------------------------------------------------------------------------------------

def read_all(pieces, *, statuses=(200,), body=None, crc=None, length=-1, is_head=False, ended=True):
    """Reads responses to one kind of request from `pieces` (bytes, as they arrive), and from the connection's end.

    What came, as a list: (status, wrong, body bytes, closes) of each response that is whole, "malformed" behind the
    last one where that is so, or "cut" where the connection ended in the middle of one.
    """
    cdef Reader reader
    cdef Expectation expected
    cdef int event = READ_MORE
    cdef uint32_t at
    cdef int index
    memset(&reader, 0, sizeof(Reader))
    memset(&expected, 0, sizeof(Expectation))
    for index, status in enumerate(statuses):
        expected.statuses[index] = status
    expected.status_count = <uint8_t>len(statuses)
    expected.is_head = is_head
    expected.length = len(body) if body is not None else length
    if body is not None:
        expected.body = <const char *><bytes>body
    if crc is not None:
        expected.has_crc = 1
        expected.crc = crc
    found = []
    for piece in pieces:
        copy = bytearray(piece)
        at = 0
        while at < len(copy):
            at += read_response(&reader, &expected, <char *>copy + at, <uint32_t>(len(copy) - at), &event)
            if event == READ_MALFORMED:
                return [*found, "malformed"]
            if event == READ_WHOLE:
                found.append((reader.status, reader.wrong, reader.body_read, bool(reader.closes)))
                reader_next(&reader)
    if ended and read_end(&reader, &expected) == READ_WHOLE:
        found.append((reader.status, reader.wrong, reader.body_read, bool(reader.closes)))
    elif ended and reader.begun:
        found.append("cut")
    return found


def crc32_of(bytes data, uint32_t crc=0):
    """CRC-32 of `data`, as zlib.crc32() has it."""
    return crc32(crc, <const char *>data, len(data))
