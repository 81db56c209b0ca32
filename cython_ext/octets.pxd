# Which bytes may stand where in HTTP's grammar, and how runs of them are read and compared.
#
# There is no module behind this face: all of it is inlined into whoever asks, with a copy of the tables (512 bytes).
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy


cdef extern from "octets.h" nogil:
    # What a byte may be part of. Bits.
    enum:
        TOKEN "BB_OCTET_TOKEN"          # tchar of RFC 9110 section 5.6.2
        TARGET "BB_OCTET_TARGET"
        VALUE "BB_OCTET_VALUE"          # of a header's value
        HOST "BB_OCTET_HOST"            # of a registered name (RFC 3986 section 3.2.2)
        ADDRESS "BB_OCTET_ADDRESS"      # of an IPv6 address
    enum:
        NOT_HEX "BB_OCTET_NOT_HEX"
    const uint8_t BYTE_CLASS "bb_octet_class"[256]
    const uint8_t HEX_VALUE "bb_octet_hex"[256]


cdef inline uint8_t byte_class(char byte) noexcept nogil:
    return BYTE_CLASS[<uint8_t> byte]


cdef inline uint8_t hex_value(char byte) noexcept nogil:
    """0 to 15, NOT_HEX for what is no hexadecimal digit."""
    return HEX_VALUE[<uint8_t> byte]


cdef inline bint is_escape(const char *text, uint32_t length) noexcept nogil:
    """Whether the "%" at text[0] is followed by two hexadecimal digits."""
    return length >= 3 and hex_value(text[1]) != NOT_HEX and hex_value(text[2]) != NOT_HEX


cdef inline bint is_space(char byte) noexcept nogil:
    return byte == b" " or byte == b"\t"


cdef inline bint has_control(uint64_t word) noexcept nogil:
    """Whether any of eight bytes is below 0x20 or is 0x7f: the classic test for a zero byte, applied to both."""
    cdef uint64_t ones = 0x0101010101010101U
    cdef uint64_t delete = word ^ (ones * 0x7F)
    return (((word - ones * 0x20) & ~word) | ((delete - ones) & ~delete)) & (ones * 0x80) != 0


cdef inline uint32_t skip_value(const char *data, uint32_t position, uint32_t end) noexcept nogil:
    """Where the first byte at or after `position` is that a header's value cannot hold; `end` if there is none."""
    cdef uint64_t word = 0
    cdef uint32_t step
    while end - position >= sizeof(word):
        memcpy(&word, data + position, sizeof(word))
        if has_control(word):
            # A tab is a control byte that values may hold, so each byte has to be asked.
            for step in range(<uint32_t> sizeof(word)):
                if not byte_class(data[position + step]) & VALUE:
                    return position + step
        position += sizeof(word)
    while position < end and byte_class(data[position]) & VALUE:
        position += 1
    return position


cdef inline bint same_word(const char *text, const char *lower, uint32_t length) noexcept nogil:
    """Compares ignoring case. Setting bit 5 maps capitals to small letters and, of the bytes that a token, a target or
    a header's value may hold, no other onto a letter, a digit or "-", "/", ":"."""
    cdef uint32_t position
    for position in range(length):
        if text[position] | 0x20 != lower[position]:
            return False
    return True
