"""Ranges of bytes: which parts of a representation a Range header selects.

The rules are those of RFC 9110 sections 14.1, 14.2, 15.3.7.2 and 15.5.17:

* Other units are ignored, and so is a list with a malformed range in it. Empty elements of the list don't count.
* A range whose first position lies at or behind the end, or of the last 0 bytes, is unsatisfiable: it is left out, and
  416 is due where no other is there. The last n > 0 bytes of an empty representation are satisfiable, but no 206 can
  say so: it is sent whole.
* Ranges that overlap, or between which there are so few bytes that a part of its own would cost more, are joined into
  one, which takes the place of the first of them. So what is sent is never longer than the whole and its parts' heads.
* More ranges than the caller wants, after that, are answered with the whole.

The functions are pure: they read the bytes given and no others, allocate nothing and keep nothing.
"""
from libc.stdint cimport UINT64_MAX, uint32_t, uint64_t

from batchbridge.cython_ext.octets cimport is_space, same_word


cdef enum:
    UNIT_SIZE = 6                   # bytes of "bytes="
    GAP_BYTES_MAX = 80              # about what the head of another part takes

cdef enum Spec:
    SPEC_MALFORMED = 0
    SPEC_SATISFIABLE
    SPEC_UNSATISFIABLE
    SPEC_EMPTY                      # the last bytes of nothing


cdef inline bint read_position(const char *text, uint32_t *position, uint32_t end, uint64_t *number) noexcept nogil:
    """Reads a number of any length; one above 2**64 - 1 counts as that. False when there is no digit."""
    cdef uint32_t start = position[0]
    cdef uint64_t value = 0
    cdef uint32_t digit
    while position[0] < end and b"0" <= text[position[0]] <= b"9":
        digit = text[position[0]] - c"0"
        value = value * 10 + digit if value <= (UINT64_MAX - digit) // 10 else UINT64_MAX
        position[0] += 1
    number[0] = value
    return position[0] > start


cdef Spec read_spec(const char *text, uint32_t position, uint32_t end, uint64_t whole, Range *found) noexcept nogil:
    """Reads "a-b", "a-" or "-n", all of text[position:end]."""
    cdef uint64_t low = 0
    cdef uint64_t high = UINT64_MAX
    cdef bint is_suffix = not read_position(text, &position, end, &low)
    if position == end or text[position] != b"-":
        return SPEC_MALFORMED
    position += 1
    # Only "a-" may end here.
    if position < end or is_suffix:
        if not read_position(text, &position, end, &high) or position < end:
            return SPEC_MALFORMED
    if is_suffix:
        if high == 0:
            return SPEC_UNSATISFIABLE
        if whole == 0:
            return SPEC_EMPTY
        low = whole - min(high, whole)
    elif high < low:
        return SPEC_MALFORMED
    elif low >= whole:
        return SPEC_UNSATISFIABLE
    found.first = low
    found.last = whole - 1 if is_suffix else min(high, whole - 1)
    return SPEC_SATISFIABLE


cdef inline bint is_near(const Range *one, const Range *other) noexcept nogil:
    """Whether the two overlap, or the gap between them is not worth another part."""
    if one.first > other.last:
        return one.first - other.last - 1 <= GAP_BYTES_MAX
    return other.first <= one.last or other.first - one.last - 1 <= GAP_BYTES_MAX


cdef bint add_range(Ranges *ranges, uint32_t count_max, Range added) noexcept nogil:
    """Adds a range, joined with those near it. False: there are too many."""
    cdef uint32_t index = 0, place = ranges.count, following
    while index < ranges.count:
        if not is_near(&ranges.items[index], &added):
            index += 1
            continue
        added.first = min(added.first, ranges.items[index].first)
        added.last = max(added.last, ranges.items[index].last)
        ranges.count -= 1
        for following in range(index, ranges.count):
            ranges.items[following] = ranges.items[following + 1]
        place = min(place, index)
        index = 0                   # what was joined may be near to others, which it was not before
    if ranges.count >= count_max:
        return False
    for following in range(ranges.count, place, -1):
        ranges.items[following] = ranges.items[following - 1]
    ranges.items[place] = added
    ranges.count += 1
    return True


cdef inline uint32_t skip_separators(const char *text, uint32_t position, uint32_t length) noexcept nogil:
    while position < length and (is_space(text[position]) or text[position] == b","):
        position += 1
    return position


cdef int select_ranges(const char *text, uint32_t length, uint64_t whole, uint32_t count_max,
                       Ranges *ranges) noexcept nogil:
    cdef uint32_t position, start, end
    cdef bint is_asked = False
    cdef Range found
    cdef Spec spec
    ranges.count = 0
    if length < UNIT_SIZE or not same_word(text, b"bytes", UNIT_SIZE - 1) or text[UNIT_SIZE - 1] != b"=":
        return RANGES_IGNORED
    position = skip_separators(text, UNIT_SIZE, length)
    while position < length:
        start = end = position
        while position < length and text[position] != b",":
            position += 1
            if not is_space(text[position - 1]):
                end = position
        spec = read_spec(text, start, end, whole, &found)
        if spec == SPEC_MALFORMED or spec == SPEC_EMPTY:
            return RANGES_IGNORED
        if spec == SPEC_SATISFIABLE and not add_range(ranges, min(count_max, <uint32_t> RANGES_MAX), found):
            return RANGES_IGNORED
        is_asked = True
        position = skip_separators(text, position, length)
    if not is_asked:
        return RANGES_IGNORED
    return RANGES_FOUND if ranges.count else RANGES_UNSATISFIABLE
