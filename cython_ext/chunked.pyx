"""Chunked bodies to plain ones (RFC 9112 section 7.1), read strictly for the reason that `parse` tells.

A body is: size line, payload, CR LF; again and again; a size line of zero; trailer lines; CR LF. White space is not
accepted beside the size, and bytes of an extension are as those of a header's value: what a front server could take
for the end of the line must not be something else to us. Trailer lines are as strict as header lines.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memmove

from batchbridge.cython_ext.octets cimport NOT_HEX, TOKEN, VALUE, byte_class, hex_value


cdef enum:
    CHUNK_LINE_SIZE_MAX = 4096      # bytes of a size line or of a trailer line, with its end
    TRAILER_SIZE_MAX = 8192         # bytes of all trailer lines together

cdef enum ChunkState:
    SIZE_FIRST = 0          # the first digit of a size
    SIZE_NEXT               # another digit, ";" or CR
    EXTENSION               # after ";", until CR
    SIZE_FEED               # LF of the size line
    PAYLOAD
    PAYLOAD_RETURN          # CR after the payload
    PAYLOAD_FEED
    TRAILER_FIRST           # the first byte of a trailer line, or CR of the empty line that ends the body
    TRAILER_NAME
    TRAILER_VALUE
    TRAILER_FEED
    LAST_FEED
    WHOLE

# What a trailer's name may still turn out to be.
cdef enum:
    SUSPECT_LENGTH = 1
    SUSPECT_CODING = 2


cdef inline int add_size_digit(ChunkDecoder *decoder, char byte) noexcept nogil:
    cdef uint8_t digit = hex_value(byte)
    # Four more bits must fit into a signed count of bytes.
    if digit == NOT_HEX or decoder.chunk_left >> 59 != 0:
        return -400
    decoder.chunk_left = decoder.chunk_left << 4 | digit
    return SIZE_NEXT


cdef inline int read_trailer_name(ChunkDecoder *decoder, char byte) noexcept nogil:
    """Reads one byte of a trailer's name, or the colon after it. The names that frame a body are refused (RFC 9110
    section 6.5.1): a front server that merges trailers into the head would frame the request anew."""
    cdef const char *length_name = b"content-length"
    cdef const char *coding_name = b"transfer-encoding"
    cdef uint32_t position = decoder.line_length - 1
    if position == 0:
        decoder.suspects = SUSPECT_LENGTH | SUSPECT_CODING
    if byte == b":" and position > 0:
        if decoder.suspects & SUSPECT_LENGTH and position == 14 or decoder.suspects & SUSPECT_CODING and position == 17:
            return -400
        return TRAILER_VALUE
    if not byte_class(byte) & TOKEN:
        return -400
    if position >= 14 or byte | 0x20 != length_name[position]:
        decoder.suspects &= ~SUSPECT_LENGTH
    if position >= 17 or byte | 0x20 != coding_name[position]:
        decoder.suspects &= ~SUSPECT_CODING
    return TRAILER_NAME


cdef inline int next_chunk_state(ChunkDecoder *decoder, char byte) noexcept nogil:
    """The state after one byte that is not payload, or -400."""
    cdef uint8_t state = decoder.state
    if state == SIZE_FIRST:
        return add_size_digit(decoder, byte)
    if state == SIZE_NEXT:
        if byte == b"\r":
            return SIZE_FEED
        return EXTENSION if byte == b";" else add_size_digit(decoder, byte)
    if state == EXTENSION:
        if byte == b"\r":
            return SIZE_FEED
        return EXTENSION if byte_class(byte) & VALUE else -400
    if state == SIZE_FEED:
        if byte != b"\n":
            return -400
        return PAYLOAD if decoder.chunk_left > 0 else TRAILER_FIRST
    if state == PAYLOAD_RETURN:
        return PAYLOAD_FEED if byte == b"\r" else -400
    if state == PAYLOAD_FEED:
        return SIZE_FIRST if byte == b"\n" else -400
    if state == TRAILER_FIRST:
        if byte == b"\r":
            return LAST_FEED
        return read_trailer_name(decoder, byte)
    if state == TRAILER_NAME:
        return read_trailer_name(decoder, byte)
    if state == TRAILER_VALUE:
        if byte == b"\r":
            return TRAILER_FEED
        return TRAILER_VALUE if byte_class(byte) & VALUE else -400
    if state == TRAILER_FEED:
        return TRAILER_FIRST if byte == b"\n" else -400
    return WHOLE if byte == b"\n" else -400


cdef inline int step_chunk(ChunkDecoder *decoder, char byte) noexcept nogil:
    """Reads one byte that is not payload: 0, or -400."""
    cdef int state
    decoder.line_length += 1
    state = next_chunk_state(decoder, byte)
    if state < 0 or decoder.line_length > CHUNK_LINE_SIZE_MAX:
        return -400
    if TRAILER_NAME <= state <= TRAILER_FEED or decoder.state == TRAILER_FEED:
        decoder.trailer_length += 1
        if decoder.trailer_length > TRAILER_SIZE_MAX:
            return -400
    if state == SIZE_FIRST or state == PAYLOAD or state == TRAILER_FIRST:
        decoder.line_length = 0
    decoder.state = <uint8_t> state
    return 0


cdef int decode_chunked(ChunkDecoder *decoder, const char *data, uint32_t length, char *out, uint32_t room,
                        uint32_t *consumed, uint32_t *produced) noexcept nogil:
    cdef uint32_t position = 0
    cdef uint32_t written = 0
    cdef uint32_t share
    cdef int result = 0
    while result == 0 and position < length and decoder.state != WHOLE:
        if decoder.state != PAYLOAD:
            result = step_chunk(decoder, data[position])
            position += result == 0
            continue
        share = length - position
        if decoder.chunk_left < share:
            share = <uint32_t> decoder.chunk_left
        if share > room - written:
            result = -413
            break
        memmove(out + written, data + position, share)
        position += share
        written += share
        decoder.chunk_left -= share
        if decoder.chunk_left == 0:
            decoder.state = PAYLOAD_RETURN
    consumed[0] = position
    produced[0] = written
    return 1 if decoder.state == WHOLE else result
