"""Content codings: which of a resource's representations does the client want?

The rules are those of RFC 9110 section 12.5.3:

* Each element of Accept-Encoding is a coding, "identity" or "*", with a weight (q, 1 unless given); several lines are
  one list. Names are compared ignoring case; "x-gzip" is "gzip". Where one is named twice, the last counts.
* "*" is for whatever is not named, identity too. What is neither named nor meant by "*" is not wanted, but identity is:
  less than all that is named with a weight above 0.
* A weight of 0 refuses. An empty field wants identity only; without the field, identity is the safe answer.
* An element that is malformed counts as not being there.

The functions are pure: they read the bytes given and no others, allocate nothing and keep nothing.
"""
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport strlen

from batchbridge.cython_ext.octets cimport TOKEN, byte_class, is_space, same_word
from batchbridge.cython_ext.parse cimport HEADER_ACCEPT_ENCODING, Head, HeadLimits, Slice, next_header, parse_head


cdef enum:
    NOT_NAMED = -1
    ANY = CODING_COUNT              # "*"
    PLACES = CODING_COUNT + 1
    WHOLE_WEIGHT = 1000             # q=1; weights have three digits behind the point
    MALFORMED = -1

cdef const char *NAMES[4]
NAMES[:] = [b"identity", b"br", b"zstd", b"gzip"]
cdef const char *SUFFIXES[4]
SUFFIXES[:] = [b"", b".br", b".zst", b".gz"]


cdef const char *coding_name(int coding) noexcept nogil:
    return NAMES[coding]


cdef const char *coding_suffix(int coding) noexcept nogil:
    return SUFFIXES[coding]


cdef int coding_named(const char *text, uint32_t length) noexcept nogil:
    """The coding of a name, ANY for "*", NOT_NAMED for others."""
    cdef int coding
    if length == 1 and text[0] == b"*":
        return ANY
    if length == 6 and same_word(text, b"x-gzip", 6):
        return CODING_GZIP
    for coding in range(<int> CODING_COUNT):
        if length == strlen(NAMES[coding]) and same_word(text, NAMES[coding], length):
            return coding
    return NOT_NAMED


cdef int read_weight(const char *text, uint32_t position, uint32_t end) noexcept nogil:
    """Reads ";q=0.5", all of text[position:end], as thousandths; nothing is 1. MALFORMED: it is none."""
    cdef int weight, unit = WHOLE_WEIGHT
    while position < end and is_space(text[position]):
        position += 1
    if position == end:
        return WHOLE_WEIGHT
    if text[position] != b";":
        return MALFORMED
    position += 1
    while position < end and is_space(text[position]):
        position += 1
    if end - position < 3 or text[position] | 0x20 != b"q" or text[position + 1] != b"=":
        return MALFORMED
    if text[position + 2] != b"0" and text[position + 2] != b"1":
        return MALFORMED
    weight = (text[position + 2] - c"0") * WHOLE_WEIGHT
    position += 3
    if position < end and text[position] == b".":
        position += 1
        while position < end and b"0" <= text[position] <= b"9" and unit > 1:
            unit //= 10
            weight += (text[position] - c"0") * unit
            position += 1
    while position < end and is_space(text[position]):
        position += 1
    return weight if position == end and weight <= WHOLE_WEIGHT else MALFORMED


cdef void read_line(const char *text, uint32_t length, int *weights) noexcept nogil:
    """Notes down the weights of one line's elements."""
    cdef uint32_t position = 0, start, end
    cdef int coding, weight
    while position < length:
        if is_space(text[position]) or text[position] == b",":
            position += 1
            continue
        start = position
        while position < length and byte_class(text[position]) & TOKEN:
            position += 1
        end = position
        while position < length and text[position] != b",":
            position += 1
        coding = coding_named(text + start, end - start)
        weight = read_weight(text, end, position)
        if coding != NOT_NAMED and weight != MALFORMED:
            weights[coding] = weight


cdef void read_weights(const char *data, const Head *head, int *weights) noexcept nogil:
    cdef const Slice *value = &head.known[<int> HEADER_ACCEPT_ENCODING]
    cdef uint32_t cursor = head.headers.offset
    cdef Slice name, line
    if not head.known_repeated >> <int> HEADER_ACCEPT_ENCODING & 1:
        read_line(data + value.offset, value.length, weights)
        return
    while next_header(data, head, &cursor, &name, &line):
        if name.length == 15 and same_word(data + name.offset, b"accept-encoding", 15):
            read_line(data + line.offset, line.length, weights)


cdef void rank(Ranking *ranking, int *ranks, int coding, int wanted) noexcept nogil:
    """Puts a coding behind those that are wanted as much or more; not at all where it is not wanted."""
    cdef uint32_t place = ranking.count
    if wanted <= 0:
        return
    while place > 0 and ranks[place - 1] < wanted:
        ranking.codings[place] = ranking.codings[place - 1]
        ranks[place] = ranks[place - 1]
        place -= 1
    ranking.codings[place] = <uint8_t> coding
    ranks[place] = wanted
    ranking.count += 1


cdef void rank_codings(const char *data, const Head *head, const uint8_t *preferred, uint32_t preferred_count,
                       Ranking *ranking) noexcept nogil:
    cdef int weights[PLACES]
    cdef int ranks[CODING_COUNT]
    cdef uint32_t index
    cdef int weight
    ranking.count = 0
    if head.known[<int> HEADER_ACCEPT_ENCODING].offset == 0:
        ranking.codings[0] = CODING_IDENTITY
        ranking.count = 1
        return
    for index in range(PLACES):
        weights[index] = NOT_NAMED
    read_weights(data, head, weights)
    for index in range(preferred_count):
        weight = weights[preferred[index]]
        rank(ranking, ranks, preferred[index], 2 * (weight if weight != NOT_NAMED else weights[ANY]))
    weight = weights[<int> CODING_IDENTITY]
    if weight == NOT_NAMED:
        weight = weights[ANY]
    # Of the least weight that can be named, half: less than all that is named.
    rank(ranking, ranks, CODING_IDENTITY, 1 if weight == NOT_NAMED else 2 * weight)


cdef int choose_coding(const Ranking *ranking, uint32_t available) noexcept nogil:
    cdef uint32_t index
    for index in range(ranking.count):
        if available >> ranking.codings[index] & 1:
            return ranking.codings[index]
    return CODING_IDENTITY


# ---- For tests -------------------------------------------------------------------------------------------------------

CODINGS = ("identity", "br", "zstd", "gzip")


def rank_for_tests(values, preferred=("br", "zstd", "gzip")) -> list[str]:
    """rank_codings() on a request with these values of Accept-Encoding, a line each."""
    cdef bytes request = b"GET / HTTP/1.1\r\nHost: h\r\n%b\r\n" % (
        b"".join([b"Accept-Encoding: %b\r\n" % value for value in values])
    )
    cdef HeadLimits limits = HeadLimits(1 << 20, 1 << 10, 1 << 10)
    cdef Head head
    cdef Ranking ranking
    cdef uint8_t wanted[4]
    cdef uint32_t scanned = 0
    if parse_head(<const char *> request, <uint32_t> len(request), &scanned, &limits, &head) <= 0:
        raise ValueError("not a valid request")
    for index, name in enumerate(preferred):
        wanted[index] = CODINGS.index(name)
    rank_codings(request, &head, wanted, len(preferred), &ranking)
    return [CODINGS[ranking.codings[index]] for index in range(ranking.count)]
