# Chunked bodies to plain ones (RFC 9112 section 7.1).
#
# Pure: it reads the bytes it is given, keeps what it knows in the structure it is given, and allocates nothing.
from libc.stdint cimport uint8_t, uint32_t, uint64_t


# A chunked body being decoded. Zeroed at first.
cdef struct ChunkDecoder:
    uint64_t chunk_left             # payload bytes of the current chunk still to come
    uint32_t line_length            # bytes of the current size or trailer line seen
    uint32_t trailer_length         # bytes of the trailer section seen
    uint8_t state
    uint8_t suspects                # which names that no trailer may have the current one may still turn out to be


# Decodes data[0:length] in place or to another place: payload goes to `out` (which may be `data`: it never overtakes
# the reading), at most `room` bytes of it.
# Returns 1 when the body is whole, 0 when more bytes are needed (then all of `data` was consumed), -400 on bad coding,
# -413 when `room` is too small for the payload in `data`. `consumed` and `produced` are set to the bytes read and
# written by this call. Chunk extensions and trailer fields are checked, bounded (a line of at most 4,096 bytes,
# trailers of at most 8,192 in all) and dropped; a bound exceeded is bad coding. What follows a whole body is not
# touched.
cdef int decode_chunked(ChunkDecoder *decoder, const char *data, uint32_t length, char *out, uint32_t room,
                        uint32_t *consumed, uint32_t *produced) noexcept nogil
