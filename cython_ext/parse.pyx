"""Bytes to a request head, chunked bodies to plain ones, paths on the wire to plain ones.

The rules are those of RFC 9110 and RFC 9112 for an origin server, read strictly: where two servers could understand
the same bytes differently, they are refused, because a request that a cache in front of us and we ourselves frame
differently is how requests are smuggled (RFC 9112 section 11.2).

* Before the request line up to four empty lines are skipped (RFC 9112 section 2.2). Every line ends with CR LF; neither
  byte stands alone anywhere in a head.
* Request line (section 3): a method token of at most 32 bytes, one space, a target of visible ASCII without "#", one
  space, "HTTP/1." and a digit. A longer method is 501, another major version 505, a minor one above 1 counts as 1.
* Target (section 3.2): "/..." for every method but CONNECT; "http://" or "https://" with a host and without user
  information likewise; host:port for CONNECT alone; "*" for OPTIONS alone.
* Header line (section 5): a token, a colon right after it, a value of HTAB, SP, visible ASCII and bytes above 0x7f. No
  folding.
* Host (section 3.2; RFC 3986 section 3.2.2): once from HTTP/1.1, at most once from 1.0, always valid. It may be empty
  only where no authority is needed: "OPTIONS *", or HTTP/1.0. An absolute target's authority takes its place.
* Body (section 6): Content-Length once, digits alone, below 2**63; or Transfer-Encoding, from 1.1 only, which must be
  "chunked" once. Both together are 400; other codings under a final "chunked" are 501, anything else 400. CONNECT has
  no body, so either is 400 there; and the connection ends with it (RFC 9110 section 9.3.6).
* Expect (RFC 9110 section 10.1.1): "100-continue", which HTTP/1.0 may not ask for; anything else is 417.
* A second Host, Content-Length, Content-Type, Authorization, Range, If-Range, If-Modified-Since or If-Unmodified-Since
  is 400: each has one meaning, and the copy that a front server judged need not be the one that we obey. User-Agent,
  Referer and Cookie have been seen twice from honest clients and steer nothing here: the first counts, and
  `known_repeated` tells. Accept-Encoding, If-Match and If-None-Match are lists and may come on several lines.

How it runs: the request line is judged as its bytes arrive, so that garbage is refused at its first byte; then line
feeds are searched until the empty line, each byte once however the head is cut; then the header lines are read in one
go. Each step looks at bytes strictly from left to right and ends at the first fault, so the verdict does not depend on
how the bytes were cut into arrivals.
"""
from libc.stdint cimport INT64_MAX, UINT16_MAX, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy, memmove, memset
from posix.mman cimport MAP_ANONYMOUS, MAP_FAILED, MAP_PRIVATE, PROT_NONE, PROT_READ, PROT_WRITE, mmap, mprotect, munmap
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.unistd cimport _SC_PAGESIZE, sysconf


cdef extern from "<arpa/inet.h>" nogil:
    int AF_INET6
    int inet_pton(int family, const char *text, void *address)


cdef enum:
    EMPTY_LINES_MAX = 4             # before the request line
    METHOD_SIZE_MAX = 32            # bytes; the longest registered method, UPDATEREDIRECTREF, has 17
    VERSION_SIZE = 10               # bytes of "HTTP/1.1" and the line's end
    WORD_SIZE_MAX = 19              # bytes of the longest header name that is looked for
    ADDRESS_SIZE_MAX = 45           # bytes of the longest IPv6 address in text
    PORT_DIGITS_MAX = 5
    CHUNK_LINE_SIZE_MAX = 4096      # bytes of a size line or of a trailer line, with its end
    TRAILER_SIZE_MAX = 8192         # bytes of all trailer lines together
    NOT_HEX = 255
    # `scanned` is a position, and this bit once the request line has been accepted, which is then not read again.
    REQUEST_LINE_ACCEPTED = 0x40000000
    HEAD_SIZE_MAX = REQUEST_LINE_ACCEPTED - 1

# What a byte may be part of.
cdef enum ByteClass:
    TOKEN = 1                       # tchar of RFC 9110 section 5.6.2
    TARGET = 2
    VALUE = 4                       # of a header's value
    HOST = 8                        # of a registered name (RFC 3986 section 3.2.2)
    ADDRESS = 16                    # of an IPv6 address

# What a header name means to the parser, beyond the names in KnownHeader, whose numbers come first.
cdef enum Meaning:
    MEANS_CONTENT_LENGTH = HEADER_KNOWN_COUNT
    MEANS_TRANSFER_ENCODING
    MEANS_CONNECTION
    MEANS_EXPECT
    MEANS_UPGRADE
    MEANS_CACHE_CONTROL
    MEANS_PRAGMA
    MEANS_NOTHING

cdef enum:
    SINGLETONS = (
        1 << HEADER_HOST | 1 << HEADER_CONTENT_TYPE | 1 << HEADER_IF_MODIFIED_SINCE | 1 << HEADER_IF_UNMODIFIED_SINCE
        | 1 << HEADER_RANGE | 1 << HEADER_IF_RANGE | 1 << HEADER_AUTHORIZATION
    )

cdef struct Word:
    char[20] text                   # lower case for header names
    uint8_t length
    uint8_t meaning                 # Method, or KnownHeader and Meaning

# What header lines say about the body and the connection, until all of them have been read.
cdef struct Framing:
    uint32_t codings                # transfer codings named, on all lines together
    uint32_t chunked                # those of them that are "chunked"
    bint chunked_last
    bint close
    bint keep_alive
    bint expectation_unknown
    bint expect_continue

# Filled once, when the module is imported, and constant from then on.
cdef uint8_t[256] BYTE_CLASS
cdef uint8_t[256] HEX_VALUE         # 0 to 15, NOT_HEX for what is no hexadecimal digit
cdef Word[9] METHOD_WORDS
cdef Word[20] HEADER_WORDS          # by length
cdef uint8_t[WORD_SIZE_MAX + 2] FIRST_WORD   # by length: where the words of that length begin in HEADER_WORDS


def _fill_tables():
    letters_and_digits = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    members = {
        TOKEN: letters_and_digits + b"!#$%&'*+-.^_`|~",
        TARGET: bytes(range(0x21, 0x7F)).replace(b"#", b""),
        VALUE: b"\t" + bytes(range(0x20, 0x7F)) + bytes(range(0x80, 0x100)),
        HOST: letters_and_digits + b"-._~!$&'()*+,;=",
        ADDRESS: b"0123456789abcdefABCDEF:.",
    }
    for byte_class, byte_values in members.items():
        for byte in byte_values:
            BYTE_CLASS[<uint8_t> byte] |= <uint8_t> byte_class
    for byte in range(256):
        HEX_VALUE[<uint8_t> byte] = int(chr(byte), 16) if byte in b"0123456789abcdefABCDEF" else NOT_HEX

    methods = (
        (b"GET", METHOD_GET), (b"HEAD", METHOD_HEAD), (b"POST", METHOD_POST), (b"PUT", METHOD_PUT),
        (b"DELETE", METHOD_DELETE), (b"OPTIONS", METHOD_OPTIONS), (b"PATCH", METHOD_PATCH),
        (b"CONNECT", METHOD_CONNECT), (b"TRACE", METHOD_TRACE),
    )
    for index, (text, meaning) in enumerate(methods):
        _set_word(&METHOD_WORDS[<int> index], text, meaning)

    headers = (
        (b"host", HEADER_HOST), (b"user-agent", HEADER_USER_AGENT), (b"referer", HEADER_REFERER),
        (b"content-type", HEADER_CONTENT_TYPE), (b"if-match", HEADER_IF_MATCH),
        (b"if-none-match", HEADER_IF_NONE_MATCH), (b"if-modified-since", HEADER_IF_MODIFIED_SINCE),
        (b"if-unmodified-since", HEADER_IF_UNMODIFIED_SINCE), (b"range", HEADER_RANGE),
        (b"if-range", HEADER_IF_RANGE), (b"accept-encoding", HEADER_ACCEPT_ENCODING),
        (b"authorization", HEADER_AUTHORIZATION), (b"cookie", HEADER_COOKIE),
        (b"content-length", MEANS_CONTENT_LENGTH), (b"transfer-encoding", MEANS_TRANSFER_ENCODING),
        (b"connection", MEANS_CONNECTION), (b"expect", MEANS_EXPECT), (b"upgrade", MEANS_UPGRADE),
        (b"cache-control", MEANS_CACHE_CONTROL), (b"pragma", MEANS_PRAGMA),
    )
    for index, (text, meaning) in enumerate(sorted(headers, key=lambda entry: len(entry[0]))):
        _set_word(&HEADER_WORDS[<int> index], text, meaning)
    for length in range(WORD_SIZE_MAX + 2):
        FIRST_WORD[<int> length] = len([text for text, _ in headers if len(text) < length])


cdef _set_word(Word *word, bytes text, uint8_t meaning):
    memcpy(word.text, <const char *> text, len(text))
    word.length = <uint8_t> len(text)
    word.meaning = meaning


_fill_tables()


# ---- Bytes -----------------------------------------------------------------------------------------------------------

cdef inline uint8_t byte_class(char byte) noexcept nogil:
    return BYTE_CLASS[<uint8_t> byte]


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


cdef inline bint is_word(const char *data, const Slice *part, const char *lower, uint32_t length) noexcept nogil:
    return part.length == length and same_word(data + part.offset, lower, length)


cdef inline bint next_element(const char *data, const Slice *value, uint32_t *cursor, Slice *element) noexcept nogil:
    """Walks a comma-separated list (RFC 9110 section 5.6.1): True and the next element, empty ones too, without white
    space around; False after the last. `cursor` is 0 at first."""
    cdef uint32_t position = value.offset + cursor[0]
    cdef uint32_t end = value.offset + value.length
    cdef uint32_t last
    if cursor[0] > value.length:
        return False
    while position < end and (data[position] == b" " or data[position] == b"\t"):
        position += 1
    last = element.offset = position
    while position < end and data[position] != b",":
        position += 1
        if data[position - 1] != b" " and data[position - 1] != b"\t":
            last = position
    element.length = last - element.offset
    cursor[0] = position + 1 - value.offset
    return True


# ---- Request line ----------------------------------------------------------------------------------------------------
# The functions from here to parse_head return 1 for "good", 0 for "bytes are missing", or -status.

cdef inline int skip_empty_lines(const char *data, uint32_t window, uint32_t *start) noexcept nogil:
    cdef uint32_t position = 0
    while position < window and data[position] == b"\r":
        if position == 2 * EMPTY_LINES_MAX:
            return -400
        if position + 1 == window:
            return 0
        if data[position + 1] != b"\n":
            return -400
        position += 2
    start[0] = position
    return position < window


cdef inline int parse_version(const char *data, uint32_t length, Head *head) noexcept nogil:
    """Reads "HTTP/1.1" and the end of the line at data[0]."""
    cdef const char *pattern = b"HTTP/1.1\r\n"
    cdef uint32_t position
    if length >= VERSION_SIZE and memcmp(data, pattern, VERSION_SIZE) == 0:
        head.version_minor = 1
        return 1
    for position in range(min(length, <uint32_t> VERSION_SIZE)):
        if position == 5 or position == 7:
            if not b"0" <= data[position] <= b"9":
                return -400
        elif data[position] != pattern[position]:
            return -400
    if length < VERSION_SIZE:
        return 0
    if data[5] != b"1":
        return -505
    head.version_minor = data[7] != b"0"
    return 1


cdef inline uint8_t find_method(const char *text, uint32_t length) noexcept nogil:
    cdef const Word *word
    cdef int index
    for index in range(METHOD_COUNT - 1):
        word = &METHOD_WORDS[index]
        if word.length == length and memcmp(word.text, text, length) == 0:
            return word.meaning
    return METHOD_OTHER


cdef int parse_request_line(const char *data, uint32_t start, uint32_t window, uint32_t *scanned,
                            const HeadLimits *limits, Head *head) noexcept nogil:
    """Judges as much of the request line as there is. `scanned` is moved on over the target, the one part that may be
    long; the rest is short enough to be read again with every arrival."""
    cdef uint32_t position = start
    cdef uint32_t stop = min(window, start + METHOD_SIZE_MAX + 1)
    cdef int result
    while position < stop and byte_class(data[position]) & TOKEN:
        position += 1
    if position - start > METHOD_SIZE_MAX:
        return -501
    if position == window:
        return 0
    if position == start or data[position] != b" ":
        return -400
    head.method_name = Slice(start, position - start)
    head.method = find_method(data + start, position - start)

    start = position + 1
    # One byte more than is allowed, to know that there was one; but no further, so that what lies beyond the limit
    # cannot change the verdict.
    stop = start + limits.target_size_bytes + 1 if limits.target_size_bytes < window - start else window
    position = max(start, scanned[0])
    while position < stop and byte_class(data[position]) & TARGET:
        position += 1
    scanned[0] = position
    if position - start > limits.target_size_bytes:
        return -414
    if position == window:
        return 0
    if position == start or data[position] != b" ":
        return -400
    head.target = Slice(start, position - start)

    position += 1
    result = parse_version(data + position, window - position, head)
    if result <= 0:
        return result
    head.headers.offset = position + VERSION_SIZE
    return parse_target(data, head)


# ---- Target ----------------------------------------------------------------------------------------------------------

cdef bint is_address(const char *text, uint32_t length) noexcept nogil:
    """Whether the text between "[" and "]" is an IPv6 address. Zones and future versions are not accepted."""
    cdef char[ADDRESS_SIZE_MAX + 1] terminated
    cdef char[16] address
    cdef uint32_t position
    if length > ADDRESS_SIZE_MAX:
        return False
    for position in range(length):
        if not byte_class(text[position]) & ADDRESS:
            return False
    memcpy(terminated, text, length)
    terminated[length] = 0
    return inet_pton(AF_INET6, terminated, address) == 1


cdef inline bint is_port(const char *text, uint32_t length, bint needed) noexcept nogil:
    """Whether the text after the colon is a port: it may be empty (RFC 3986 section 3.2.3) except where needed."""
    cdef uint32_t port = 0
    cdef uint32_t position
    if length > PORT_DIGITS_MAX:
        return False
    for position in range(length):
        if not b"0" <= text[position] <= b"9":
            return False
        port = port * 10 + (text[position] - c"0")
    return port <= 65535 and not (needed and port == 0)


cdef bint is_authority(const char *text, uint32_t length, bint port_needed) noexcept nogil:
    """Whether this is host[:port], the host not empty, without user information."""
    cdef uint32_t position = 0
    cdef const char *bracket
    if length > 0 and text[0] == b"[":
        bracket = <const char *> memchr(text, b"]", length)
        if bracket == NULL or not is_address(text + 1, <uint32_t> (bracket - text) - 1):
            return False
        position = <uint32_t> (bracket - text) + 1
    else:
        while position < length:
            if byte_class(text[position]) & HOST:
                position += 1
            elif text[position] == b"%" and is_escape(text + position, length - position):
                position += 3
            else:
                break
        if position == 0:
            return False
    if position == length:
        return not port_needed
    return text[position] == b":" and is_port(text + position + 1, length - position - 1, port_needed)


cdef inline bint is_escape(const char *text, uint32_t length) noexcept nogil:
    """Whether the "%" at text[0] is followed by two hexadecimal digits."""
    return length >= 3 and HEX_VALUE[<uint8_t> text[1]] != NOT_HEX and HEX_VALUE[<uint8_t> text[2]] != NOT_HEX


cdef inline bint is_odd_segment(const char *data, uint32_t position, uint32_t end) noexcept nogil:
    """Whether the segment at `position` is ".", ".." or an empty one before another; path ends at `end` or at "?"."""
    if position < end and data[position] == b"/":
        return True
    if position == end or data[position] != b".":
        return False
    position += 1
    if position < end and data[position] == b".":
        position += 1
    return position == end or data[position] == b"/" or data[position] == b"?"


cdef inline void split_path(const char *data, uint32_t start, Head *head) noexcept nogil:
    """Tells path from query in the part of the target from `start` on, and notes what is special about the path."""
    cdef uint32_t position = start
    cdef uint32_t end = head.target.offset + head.target.length
    while position < end and data[position] != b"?":
        if data[position] == b"/":
            if is_odd_segment(data, position + 1, end):
                head.flags |= HEAD_DOTS
        elif data[position] == b"%":
            head.flags |= HEAD_ESCAPED
        position += 1
    head.path = Slice(start, position - start)
    if position < end:
        head.query = Slice(position + 1, end - position - 1)


cdef int parse_absolute_target(const char *data, Head *head) noexcept nogil:
    cdef uint32_t start = head.target.offset
    cdef uint32_t end = start + head.target.length
    cdef uint32_t position
    if head.target.length > 7 and same_word(data + start, b"http://", 7):
        start += 7
    elif head.target.length > 8 and same_word(data + start, b"https://", 8):
        start += 8
    else:
        return -400
    position = start
    while position < end and data[position] != b"/" and data[position] != b"?":
        position += 1
    if not is_authority(data + start, position - start, False):
        return -400
    head.target_form = TARGET_ABSOLUTE
    head.authority = Slice(start, position - start)
    split_path(data, position, head)
    if head.path.length == 0:
        # No path means "/" (RFC 9110 section 4.2.3), and there is one on the wire: the scheme's second.
        head.path = Slice(start - 1, 1)
    return 1


cdef int parse_target(const char *data, Head *head) noexcept nogil:
    cdef const char *text = data + head.target.offset
    if head.method == METHOD_CONNECT:
        if not is_authority(text, head.target.length, True):
            return -400
        head.target_form = TARGET_AUTHORITY
        head.authority = head.target
        return 1
    if text[0] == b"/":
        head.target_form = TARGET_ORIGIN
        split_path(data, head.target.offset, head)
        return 1
    if text[0] == b"*" and head.target.length == 1 and head.method == METHOD_OPTIONS:
        head.target_form = TARGET_ASTERISK
        head.path = head.target
        return 1
    return parse_absolute_target(data, head)


# ---- Header lines ----------------------------------------------------------------------------------------------------

cdef int find_head_end(const char *data, uint32_t window, uint32_t *position, uint32_t *end) noexcept nogil:
    """Searches on from `position` for the empty line; `end` is where it ends. At least a request line lies before."""
    cdef const char *found
    cdef uint32_t feed
    while True:
        found = <const char *> memchr(data + position[0], b"\n", window - position[0])
        if found == NULL:
            position[0] = window
            return 0
        feed = <uint32_t> (found - data)
        if data[feed - 1] != b"\r":
            return -400
        position[0] = feed + 1
        if data[feed - 2] == b"\n":
            end[0] = feed + 1
            return 1


cdef inline uint32_t read_line(const char *data, uint32_t start, uint32_t end, Slice *name,
                               Slice *value) noexcept nogil:
    """Reads the header line at `start` and returns where the next one begins, or 0 when the line is malformed. The
    empty line is at `end`, so every loop meets a byte that stops it."""
    cdef uint32_t position = start
    cdef uint32_t last
    while byte_class(data[position]) & TOKEN:
        position += 1
    if position == start or data[position] != b":":
        return 0
    name[0] = Slice(start, position - start)
    position += 1
    while data[position] == b" " or data[position] == b"\t":
        position += 1
    start = position
    last = position = skip_value(data, position, end)
    if data[position] != b"\r" or data[position + 1] != b"\n":
        return 0
    while last > start and (data[last - 1] == b" " or data[last - 1] == b"\t"):
        last -= 1
    value[0] = Slice(start, last - start)
    return position + 2


cdef inline uint8_t find_meaning(const char *name, uint32_t length) noexcept nogil:
    cdef uint8_t index
    if length > WORD_SIZE_MAX:
        return MEANS_NOTHING
    for index in range(FIRST_WORD[length], FIRST_WORD[length + 1]):
        if same_word(name, HEADER_WORDS[index].text, length):
            return HEADER_WORDS[index].meaning
    return MEANS_NOTHING


cdef inline int note_known(uint8_t header, const Slice *value, Head *head) noexcept nogil:
    if head.known[header].offset != 0:
        head.known_repeated |= 1 << header
        return -400 if SINGLETONS >> header & 1 else 1
    head.known[header] = value[0]
    if HEADER_IF_MATCH <= header <= HEADER_IF_UNMODIFIED_SINCE:
        head.flags |= HEAD_CONDITIONAL
    elif header == HEADER_RANGE:
        head.flags |= HEAD_RANGE
    elif header == HEADER_AUTHORIZATION or header == HEADER_COOKIE:
        head.flags |= HEAD_CREDENTIALS
    return 1


cdef int note_content_length(const char *data, const Slice *value, Head *head) noexcept nogil:
    cdef int64_t total = 0
    cdef int digit
    cdef uint32_t position
    if value.length == 0 or head.flags & HEAD_LENGTH:
        return -400
    for position in range(value.offset, value.offset + value.length):
        digit = data[position] - c"0"
        if digit < 0 or digit > 9 or total > (INT64_MAX - digit) // 10:
            return -400
        total = total * 10 + digit
    head.content_length = total
    head.flags |= HEAD_LENGTH
    return 1


cdef inline bint is_directive(const char *data, const Slice *element, const char *lower) noexcept nogil:
    """Whether a cache directive has this name of eight letters, with or without an argument."""
    cdef const char *text = data + element.offset
    return element.length >= 8 and same_word(text, lower, 8) and (element.length == 8 or text[8] == b"=")


cdef int note_list(uint8_t meaning, const char *data, const Slice *value, Head *head, Framing *framing) noexcept nogil:
    """Notes the elements of a header whose value is a list. Within quotes a comma is taken for the end of an element:
    that can only add a reason not to use the cache, or not to accept a transfer coding or an expectation."""
    cdef uint32_t cursor = 0
    cdef Slice element
    while next_element(data, value, &cursor, &element):
        if meaning == MEANS_TRANSFER_ENCODING:
            framing.chunked_last = is_word(data, &element, b"chunked", 7)
            framing.chunked += framing.chunked_last
            framing.codings += 1
            if element.length == 0:
                return -400
        elif meaning == MEANS_CONNECTION:
            framing.close |= is_word(data, &element, b"close", 5)
            framing.keep_alive |= is_word(data, &element, b"keep-alive", 10)
        elif meaning == MEANS_EXPECT:
            if is_word(data, &element, b"100-continue", 12):
                framing.expect_continue = True
            elif element.length > 0:
                framing.expectation_unknown = True
        elif is_directive(data, &element, b"no-cache") or is_directive(data, &element, b"no-store"):
            head.flags |= HEAD_NO_CACHE
    return 1


cdef inline int note_line(const char *data, const Slice *name, const Slice *value, Head *head,
                          Framing *framing) noexcept nogil:
    cdef uint8_t meaning = find_meaning(data + name.offset, name.length)
    if meaning == MEANS_NOTHING:
        return 1
    if meaning < HEADER_KNOWN_COUNT:
        return note_known(meaning, value, head)
    if meaning == MEANS_CONTENT_LENGTH:
        return note_content_length(data, value, head)
    if meaning == MEANS_UPGRADE:
        head.flags |= HEAD_UPGRADE
        return 1
    return note_list(meaning, data, value, head, framing)


cdef int conclude_host(const char *data, Head *head) noexcept nogil:
    cdef const Slice *host = &head.known[<int> HEADER_HOST]
    if host.offset == 0:
        if head.version_minor != 0:
            return -400
    elif host.length == 0:
        if head.version_minor != 0 and head.target_form != TARGET_ASTERISK:
            return -400
    elif not is_authority(data + host.offset, host.length, False):
        return -400
    if head.target_form == TARGET_ORIGIN or head.target_form == TARGET_ASTERISK:
        head.authority = host[0]
    return 1


cdef int conclude(const char *data, const Framing *framing, Head *head) noexcept nogil:
    """Judges what can only be judged when all lines are known."""
    cdef int result = conclude_host(data, head)
    if result < 0:
        return result
    if head.method == METHOD_CONNECT and (framing.codings > 0 or head.flags & HEAD_LENGTH):
        return -400
    if framing.codings > 0:
        if head.version_minor == 0 or head.flags & HEAD_LENGTH:
            return -400
        if framing.chunked != 1 or not framing.chunked_last:
            return -400
        if framing.codings != 1:
            return -501
        head.flags |= HEAD_CHUNKED
    if framing.expectation_unknown:
        return -417
    if framing.expect_continue and head.version_minor != 0:
        head.flags |= HEAD_EXPECT_CONTINUE
    # A client that expects its tunnel may have sent the tunnel's bytes already; they must not be read as requests.
    if not framing.close and (framing.keep_alive or head.version_minor != 0) and head.method != METHOD_CONNECT:
        head.flags |= HEAD_KEEP_ALIVE
    return 1


cdef int parse_header_lines(const char *data, uint32_t end, const HeadLimits *limits, Head *head) noexcept nogil:
    """Reads all header lines of a head whose empty line is at `end`."""
    cdef uint32_t position = head.headers.offset
    cdef uint32_t count = 0
    cdef uint32_t count_max = min(limits.header_count, <uint32_t> UINT16_MAX)
    cdef Framing framing
    cdef Slice name
    cdef Slice value
    cdef int result
    memset(&framing, 0, sizeof(framing))
    while position < end:
        count += 1
        if count > count_max:
            return -431
        position = read_line(data, position, end, &name, &value)
        if position == 0:
            return -400
        result = note_line(data, &name, &value, head, &framing)
        if result < 0:
            return result
    head.header_count = <uint16_t> count
    head.headers.length = end - head.headers.offset
    return conclude(data, &framing, head)


cdef int parse_head(const char *data, uint32_t length, uint32_t *scanned, const HeadLimits *limits,
                    Head *head) noexcept nogil:
    cdef uint32_t window = min(length, limits.head_size_bytes, <uint32_t> HEAD_SIZE_MAX)
    cdef bint full = window < length or window == limits.head_size_bytes
    cdef bint accepted = scanned[0] & REQUEST_LINE_ACCEPTED != 0
    cdef uint32_t searched = scanned[0] & ~<uint32_t> REQUEST_LINE_ACCEPTED
    cdef uint32_t start = 0
    cdef uint32_t end = 0
    cdef int result
    memset(head, 0, sizeof(Head))
    if not accepted:
        result = skip_empty_lines(data, window, &start)
        if result > 0:
            result = parse_request_line(data, start, window, scanned, limits, head)
        if result <= 0:
            return -414 if result == 0 and full else result
        searched = head.headers.offset
    result = find_head_end(data, window, &searched, &end)
    scanned[0] = searched | REQUEST_LINE_ACCEPTED
    if result <= 0:
        return -431 if result == 0 and full else result
    if accepted:
        # The line was read in an earlier call, into a head that need not be this one.
        searched = 0
        skip_empty_lines(data, window, &start)
        parse_request_line(data, start, window, &searched, limits, head)
    result = parse_header_lines(data, end - 2, limits, head)
    if result < 0:
        return result
    head.head_length = end
    return <int> end


cdef int next_header(const char *data, const Head *head, uint32_t *cursor, Slice *name, Slice *value) noexcept nogil:
    cdef uint32_t end = head.headers.offset + head.headers.length
    if cursor[0] >= end:
        return 0
    cursor[0] = read_line(data, cursor[0], end, name, value)
    return cursor[0] != 0


# ---- Chunked bodies --------------------------------------------------------------------------------------------------
# A body is: size line, payload, CR LF; again and again; a size line of zero; trailer lines; CR LF. White space is not
# accepted beside the size, and bytes of an extension are as those of a header's value: what a front server could take
# for the end of the line must not be something else to us. Trailer lines are as strict as header lines.

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
    cdef uint8_t digit = HEX_VALUE[<uint8_t> byte]
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


# ---- Paths -----------------------------------------------------------------------------------------------------------

cdef inline int end_segment(const char *out, uint32_t start, uint32_t *end) noexcept nogil:
    """Resolves the segment out[start:end], which follows a "/": what is "." vanishes, ".." takes its parent along.
    Returns 1 when a name was left, which a "/" may follow; 0 when `end` is now right after a "/"; -400 above the
    root."""
    cdef uint32_t length = end[0] - start
    if length == 1 and out[start] == b".":
        end[0] = start
    elif length == 2 and out[start] == b"." and out[start + 1] == b".":
        if start == 1:
            return -400
        start -= 1
        while out[start - 1] != b"/":
            start -= 1
        end[0] = start
    return end[0] > start


cdef int decode_path(const char *path, uint32_t length, char *out, uint32_t room) noexcept nogil:
    cdef uint32_t position = 1
    cdef uint32_t written = 1
    cdef uint32_t start = 1         # of the current segment in `out`
    cdef char byte
    cdef int named
    if length == 0 or path[0] != b"/":
        return -400
    if room == 0:
        return -414
    out[0] = b"/"
    while position < length:
        byte = path[position]
        if byte == b"/":
            named = end_segment(out, start, &written)
            if named < 0:
                return named
            position += 1
            if not named:
                start = written
                continue
        elif byte == b"%":
            if not is_escape(path + position, length - position):
                return -400
            byte = <char> (HEX_VALUE[<uint8_t> path[position + 1]] << 4 | HEX_VALUE[<uint8_t> path[position + 2]])
            if byte == b"/" or byte == 0:
                # A "/" that separates nothing cannot be told from one that does once it is decoded.
                return -400
            position += 3
        elif byte == 0:
            return -400
        else:
            position += 1
        if written == room:
            return -414
        out[written] = byte
        written += 1
        if byte == b"/":
            start = written
    named = end_segment(out, start, &written)
    return named if named < 0 else <int> written


# ---- For tests and tools ---------------------------------------------------------------------------------------------
# The server calls the functions above. These show the same to Python, with the input placed so that a read past its
# end (or before its start) hits an unmapped page and ends the process, which no test overlooks.

cdef class Guarded:
    """Memory between two unmapped pages: `data` ends right before the second, or begins right after the first."""
    cdef char *region
    cdef size_t region_size
    cdef char *data

    def __cinit__(self, bytes content, size_t size, bint at_start=False):
        cdef size_t page = <size_t> sysconf(_SC_PAGESIZE)
        cdef size_t room = (size + page - 1) // page * page
        cdef void *mapped = mmap(NULL, room + 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if mapped == MAP_FAILED:
            raise MemoryError()
        self.region = <char *> mapped
        self.region_size = room + 2 * page
        if mprotect(self.region, page, PROT_NONE) != 0 or mprotect(self.region + page + room, page, PROT_NONE) != 0:
            raise OSError("mprotect failed")
        self.data = self.region + page if at_start else self.region + page + room - size
        if content is not None:
            memcpy(self.data, <const char *> content, len(content))

    def __dealloc__(self):
        if self.region != NULL:
            munmap(self.region, self.region_size)


cdef inline bytes _part(const char *data, const Slice *part):
    """None where the part is absent."""
    return data[part.offset:part.offset + part.length] if part.offset > 0 else None


cdef list _list_headers(const char *data, const Head *head):
    cdef list found = []
    cdef uint32_t cursor = head.headers.offset
    cdef Slice name, value
    while next_header(data, head, &cursor, &name, &value):
        found.append((_part(data, &name), _part(data, &value)))
    return found


cdef dict _describe(const char *data, const Head *head):
    known = range(HEADER_KNOWN_COUNT)
    return {
        "head_length": head.head_length,
        "flags": head.flags,
        "method": head.method,
        "method_name": data[head.method_name.offset:head.method_name.offset + head.method_name.length],
        "version_minor": head.version_minor,
        "target_form": head.target_form,
        "target": _part(data, &head.target),
        "path": _part(data, &head.path),
        "query": _part(data, &head.query),
        "authority": _part(data, &head.authority),
        "content_length": head.content_length,
        "header_count": head.header_count,
        "header_bytes": data[head.headers.offset:head.headers.offset + head.headers.length],
        "headers": _list_headers(data, head),
        "known": {name: _part(data, &head.known[<int> name]) for name in known if head.known[<int> name].offset},
        "repeated": {name for name in known if head.known_repeated >> <int> name & 1},
    }


def parse_request(bytes data not None, *, cuts=(), uint32_t head_size_bytes=65536, uint32_t target_size_bytes=8192,
                  uint32_t header_count=100, bint at_start=False):
    """Parse one request head; for tests and tools.

    ``cuts`` are lengths at which the bytes arrive in between: each prefix is parsed in turn, in memory of its own and
    into a head of its own, until the verdict falls. Returns a dict of everything found, 0 where bytes are missing, or
    -status. With ``at_start`` the unmapped page lies before the input instead of after it.
    """
    cdef HeadLimits limits
    cdef Head head
    cdef Guarded memory = None
    cdef uint32_t scanned = 0
    cdef uint32_t length
    cdef int result = 0
    limits.head_size_bytes = head_size_bytes
    limits.target_size_bytes = target_size_bytes
    limits.header_count = header_count
    for length in [*cuts, len(data)]:
        memory = Guarded(data[:length], length, at_start)
        memset(&head, 0xAA, sizeof(head))
        result = parse_head(memory.data, length, &scanned, &limits, &head)
        if result != 0:
            break
    return _describe(memory.data, &head) if result > 0 else result


def decode_chunked_body(bytes data not None, *, cuts=(), room=None, bint in_place=False):
    """Decode a chunked body that arrives in pieces, cut at ``cuts``; for tests and tools.

    Returns (payload, bytes consumed), 0 where bytes are missing, or -status. ``room`` is for the whole payload.
    """
    cdef ChunkDecoder decoder
    cdef Guarded piece, out
    cdef uint32_t size
    cdef uint32_t consumed = 0
    cdef uint32_t produced = 0
    cdef uint32_t start = 0
    cdef int result = 0
    cdef bytes payload = b""
    memset(&decoder, 0, sizeof(decoder))
    for length in [*cuts, len(data)]:
        piece = Guarded(data[start:length], length - start)
        size = length - start if room is None else min(length - start, room - len(payload))
        out = piece if in_place else Guarded(None, size)
        result = decode_chunked(&decoder, piece.data, length - start, out.data, size, &consumed, &produced)
        payload += out.data[:produced]
        start += consumed
        if result != 0:
            break
        assert start == length
    return (payload, start) if result > 0 else result


def decode_request_path(bytes path not None, *, room=None, bint in_place=False):
    """Decode and normalise a path; for tests and tools. Returns bytes, or -status. ``room`` is its length if None."""
    cdef Guarded memory = Guarded(path, len(path))
    cdef uint32_t size = len(path) if room is None else room
    cdef Guarded out = memory if in_place else Guarded(None, size)
    cdef int result = decode_path(memory.data, len(path), out.data, size)
    return out.data[:result] if result >= 0 else result


def measure_parse(bytes data not None, uint32_t rounds, uint32_t step=0):
    """Nanoseconds that parsing this head takes on average; with ``step``, when that many bytes come at a time."""
    cdef const char *text = data
    cdef uint32_t whole = len(data)
    cdef uint32_t length, scanned
    cdef uint32_t rounds_left = rounds
    cdef HeadLimits limits = HeadLimits(HEAD_SIZE_MAX, HEAD_SIZE_MAX, UINT16_MAX)
    cdef Head head
    cdef timespec begin, end
    cdef int result = 0
    with nogil:
        clock_gettime(CLOCK_MONOTONIC, &begin)
        while rounds_left > 0:
            rounds_left -= 1
            scanned = 0
            length = min(step, whole) if step else whole
            while True:
                result = parse_head(text, length, &scanned, &limits, &head)
                if result != 0 or length == whole:
                    break
                length = min(length + step, whole)
        clock_gettime(CLOCK_MONOTONIC, &end)
    if result <= 0:
        raise ValueError(f"not a whole and valid head: {result}")
    return ((end.tv_sec - begin.tv_sec) * 1e9 + (end.tv_nsec - begin.tv_nsec)) / rounds
