"""Bytes to a request head.

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
from libc.stdint cimport INT64_MAX, UINT16_MAX, int64_t, uint8_t, uint16_t, uint32_t
from libc.string cimport memchr, memcmp, memcpy, memset

from batchbridge.cython_ext.authority cimport is_authority
from batchbridge.cython_ext.octets cimport TARGET, TOKEN, byte_class, same_word, skip_value


cdef enum:
    EMPTY_LINES_MAX = 4             # before the request line
    METHOD_SIZE_MAX = 32            # bytes; the longest registered method, UPDATEREDIRECTREF, has 17
    VERSION_SIZE = 10               # bytes of "HTTP/1.1" and the line's end
    WORD_SIZE_MAX = 19              # bytes of the longest header name that is looked for
    # `scanned` is a position, and this bit once the request line has been accepted, which is then not read again.
    REQUEST_LINE_ACCEPTED = HEAD_SIZE_MAX + 1

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
cdef Word[9] METHOD_WORDS
cdef Word[20] HEADER_WORDS          # by length
cdef uint8_t[WORD_SIZE_MAX + 2] FIRST_WORD   # by length: where the words of that length begin in HEADER_WORDS


def _fill_tables():
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
