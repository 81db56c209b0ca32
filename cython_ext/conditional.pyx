"""Conditional requests and ranges: may the client keep what it has, and which bytes does it still need?

The rules are those of RFC 9110:

* Order (section 13.2.2): If-Match, or without it If-Unmodified-Since: 412 when it fails. Then If-None-Match, or without
  it, of GET and HEAD only, If-Modified-Since: 304 when it fails (412 for other methods). Then Range, of GET only,
  unless If-Range forbids it. CONNECT, OPTIONS and TRACE select no representation, so they have no conditions (section
  13.2.1).
* Entity tags (sections 8.8.3, 13.1.1, 13.1.2): If-Match and If-Range compare strongly (a weak tag equals nothing),
  If-None-Match weakly. Empty elements of a list are skipped. A malformed element ends the list: where its quotes stand
  wrong, what follows cannot be told apart from tags, and a tag overlooked only costs a transfer or a retry. "*" stands
  for any representation, and only when it is all that there is.
* Dates (section 5.6.7): all three forms, letter by letter. The name of the day must be one, but not the right one.
  A two-digit year means the latest one that is not more than 50 years ahead. 23:59:60 is the second that follows.
  What is no date is ignored, and so is a date where the representation has none.
* If-Range (section 13.1.5): the same tag, or exactly the same date; and the date only when it is a strong validator
  (section 8.8.2.2), that is, when the second of the last change is over.
* Range (sections 14.1, 14.2, 15.5.17): one range of bytes. Other units and invalid ranges are ignored; several ranges
  are answered with the whole, which costs a client no more than that, and us nothing. 416 is for a first position at or
  behind the end, and for the last 0 bytes. The last n > 0 bytes of an empty representation are satisfiable, but no 206
  can say so: it is sent whole.

All functions are pure: they read the bytes given and no others, allocate nothing and keep nothing.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport UINT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset, strlen

from batchbridge.cython_ext.parse cimport (
    HEAD_CONDITIONAL, HEAD_RANGE, HEADER_IF_MATCH, HEADER_IF_MODIFIED_SINCE, HEADER_IF_NONE_MATCH, HEADER_IF_RANGE,
    HEADER_IF_UNMODIFIED_SINCE, HEADER_KNOWN_COUNT, HEADER_RANGE, METHOD_CONNECT, METHOD_GET, METHOD_HEAD,
    METHOD_OPTIONS, METHOD_TRACE, Head, HeadLimits, KnownHeader, Slice, next_header, parse_head,
)


cdef enum:
    IMF_SIZE = 29                   # bytes of "Sun, 06 Nov 1994 08:49:37 GMT"
    ASCTIME_SIZE = 24               # bytes of "Sun Nov  6 08:49:37 1994"
    RFC850_REST_SIZE = 24           # bytes of ", 06-Nov-94 08:49:37 GMT", after the day's name
    DAY_NAME_SIZE = 9               # bytes of the longest one, to which the others are padded
    MONTH_NAME_SIZE = 3
    DAY_S = 86400
    DAYS_IN_400_YEARS = 146097
    DAYS_TO_10000 = 2932897         # from 1970 to the first year that four digits cannot tell
    YEARS_AHEAD_MAX = 50            # of a year that is given with two digits

cdef struct Date:
    int64_t year
    int month                       # 1 to 12
    int day                         # 1 to 31
    int hour
    int minute
    int second

cdef const char *DAY_NAMES = b"Sunday   Monday   Tuesday  WednesdayThursday Friday   Saturday "
cdef const char *MONTH_NAMES = b"JanFebMarAprMayJunJulAugSepOctNovDec"


# ---- The calendar ----------------------------------------------------------------------------------------------------
# Years are counted from March, so that the day that comes and goes is a year's last one.

cdef inline int64_t days_since_1970(int64_t year, int month, int day) noexcept nogil:
    # 400 years have a whole number of days: adding them keeps the year 0 and its January above zero.
    cdef int64_t from_march = year + 400 - (month <= 2)
    cdef int month_from_march = month - 3 if month > 2 else month + 9
    cdef int64_t days = from_march * 365 + from_march // 4 - from_march // 100 + from_march // 400
    return days + (month_from_march * 153 + 2) // 5 + day - 1 - 719468 - DAYS_IN_400_YEARS


cdef inline int64_t date_seconds(const Date *date) noexcept nogil:
    cdef int64_t days = days_since_1970(date.year, date.month, date.day)
    return days * DAY_S + date.hour * 3600 + date.minute * 60 + date.second


cdef inline int64_t clamp_seconds(int64_t seconds) noexcept nogil:
    """The nearest second of the years 1970 to 9999."""
    return max(0, min(seconds, <int64_t> DAYS_TO_10000 * DAY_S - 1))


cdef void date_of(int64_t seconds, Date *date) noexcept nogil:
    """The date of a second of the years 1970 to 9999."""
    cdef int64_t days = seconds // DAY_S + 719468           # since 1 March of the year 0
    cdef int64_t of_400_years = days % DAYS_IN_400_YEARS
    cdef int64_t years = (
        of_400_years - of_400_years // 1460 + of_400_years // 36524 - of_400_years // (DAYS_IN_400_YEARS - 1)
    ) // 365
    cdef int of_year = <int> (of_400_years - (years * 365 + years // 4 - years // 100))
    cdef int month_from_march = (of_year * 5 + 2) // 153
    cdef int second = <int> (seconds % DAY_S)
    date.day = of_year - (month_from_march * 153 + 2) // 5 + 1
    date.month = month_from_march + 3 if month_from_march < 10 else month_from_march - 9
    date.year = days // DAYS_IN_400_YEARS * 400 + years + (date.month <= 2)
    date.hour = second // 3600
    date.minute = second // 60 % 60
    date.second = second % 60


cdef inline int days_in_month(int64_t year, int month) noexcept nogil:
    if month == 2:
        return 29 if year % 4 == 0 and (year % 100 != 0 or year % 400 == 0) else 28
    return 30 if month == 4 or month == 6 or month == 9 or month == 11 else 31


cdef inline bint is_date(const Date *date) noexcept nogil:
    """Whether there is such a day and such a time. Numbers that could not be read are negative here."""
    if not 1 <= date.month <= 12 or date.year < 0 or not 1 <= date.day <= days_in_month(date.year, date.month):
        return False
    if not 0 <= date.hour <= 23 or not 0 <= date.minute <= 59 or not 0 <= date.second <= 60:
        return False
    return date.second < 60 or (date.hour == 23 and date.minute == 59)


cdef inline int64_t place_in_year(const Date *date) noexcept nogil:
    """A number that grows with the date within a year, whatever the year."""
    return (((date.month * 32 + date.day) * 24 + date.hour) * 60 + date.minute) * 61 + date.second


cdef void settle_century(Date *date, int64_t now_s) noexcept nogil:
    """Turns a two-digit year into the latest one that is not more than 50 years ahead of now."""
    cdef Date now
    cdef int64_t latest
    date_of(clamp_seconds(now_s), &now)
    latest = now.year + YEARS_AHEAD_MAX
    date.year += (latest - date.year) // 100 * 100
    if date.year == latest and place_in_year(date) > place_in_year(&now):
        date.year -= 100


# ---- Dates in text ---------------------------------------------------------------------------------------------------

cdef inline int read_digits(const char *text, int count) noexcept nogil:
    """The number that `count` digits make; -1 when one of them is none."""
    cdef int value = 0
    cdef int index
    for index in range(count):
        if not b"0" <= text[index] <= b"9":
            return -1
        value = value * 10 + text[index] - c"0"
    return value


cdef inline int read_month(const char *text) noexcept nogil:
    """1 to 12; 0 when the three bytes are no month's name."""
    cdef int index
    for index in range(12):
        if memcmp(MONTH_NAMES + index * MONTH_NAME_SIZE, text, MONTH_NAME_SIZE) == 0:
            return index + 1
    return 0


cdef inline bint is_short_day(const char *text) noexcept nogil:
    cdef int index
    for index in range(7):
        if memcmp(DAY_NAMES + index * DAY_NAME_SIZE, text, 3) == 0:
            return True
    return False


cdef inline uint32_t read_long_day(const char *text, uint32_t length) noexcept nogil:
    """The length of the whole day name that the text begins with; 0 when it begins with none."""
    cdef const char *name
    cdef uint32_t size
    cdef int index
    for index in range(7):
        name = DAY_NAMES + index * DAY_NAME_SIZE
        size = DAY_NAME_SIZE
        while name[size - 1] == b" ":
            size -= 1
        if size <= length and memcmp(name, text, size) == 0:
            return size
    return 0


cdef inline bint read_time(const char *text, Date *date) noexcept nogil:
    """Reads "08:49:37"."""
    date.hour = read_digits(text, 2)
    date.minute = read_digits(text + 3, 2)
    date.second = read_digits(text + 6, 2)
    return text[2] == b":" and text[5] == b":"


cdef inline bint read_imf(const char *text, Date *date) noexcept nogil:
    """Reads "Sun, 06 Nov 1994 08:49:37 GMT", of which IMF_SIZE bytes are there."""
    date.day = read_digits(text + 5, 2)
    date.month = read_month(text + 8)
    date.year = read_digits(text + 12, 4)
    return (
        is_short_day(text) and memcmp(text + 3, b", ", 2) == 0 and text[7] == b" " and text[11] == b" "
        and text[16] == b" " and read_time(text + 17, date) and memcmp(text + 25, b" GMT", 4) == 0
    )


cdef inline bint read_rfc850(const char *text, Date *date, int64_t now_s) noexcept nogil:
    """Reads ", 06-Nov-94 08:49:37 GMT", of which RFC850_REST_SIZE bytes are there."""
    date.day = read_digits(text + 2, 2)
    date.month = read_month(text + 5)
    date.year = read_digits(text + 9, 2)
    if (
        memcmp(text, b", ", 2) != 0 or text[4] != b"-" or text[8] != b"-" or text[11] != b" "
        or not read_time(text + 12, date) or memcmp(text + 20, b" GMT", 4) != 0 or date.year < 0
    ):
        return False
    settle_century(date, now_s)
    return True


cdef inline bint read_asctime(const char *text, Date *date) noexcept nogil:
    """Reads "Sun Nov  6 08:49:37 1994", of which ASCTIME_SIZE bytes are there."""
    date.month = read_month(text + 4)
    date.day = read_digits(text + 9, 1) if text[8] == b" " else read_digits(text + 8, 2)
    date.year = read_digits(text + 20, 4)
    return (
        is_short_day(text) and text[3] == b" " and text[7] == b" " and text[10] == b" " and read_time(text + 11, date)
        and text[19] == b" "
    )


cdef bint read_http_date(const char *text, uint32_t length, int64_t now_s, int64_t *seconds) noexcept nogil:
    """Whether the text is a date. It may lie before 1970: then `seconds` is negative."""
    cdef Date date
    cdef uint32_t day_size = 0
    cdef bint found
    memset(&date, 0, sizeof(date))
    if length == IMF_SIZE:
        found = read_imf(text, &date)
    elif length == ASCTIME_SIZE:
        found = read_asctime(text, &date)
    else:
        day_size = read_long_day(text, length)
        found = (
            day_size > 0 and length == day_size + RFC850_REST_SIZE and read_rfc850(text + day_size, &date, now_s)
        )
    if not found or not is_date(&date):
        return False
    seconds[0] = date_seconds(&date)
    return True


cdef int64_t parse_http_date(const char *text, uint32_t length, int64_t now_s) noexcept nogil:
    cdef int64_t seconds = -1
    return max(seconds, -1) if read_http_date(text, length, now_s, &seconds) else -1


cdef inline void write_digits(char *out, int64_t value, int count) noexcept nogil:
    while count > 0:
        count -= 1
        out[count] = <char> (c"0" + value % 10)
        value //= 10


cdef void format_http_date(int64_t seconds, char *out) noexcept nogil:
    cdef Date date
    seconds = clamp_seconds(seconds)
    date_of(seconds, &date)
    memcpy(out, b"Day, dd Mon year hh:mm:ss GMT", IMF_SIZE)
    # 1 January 1970 was a Thursday.
    memcpy(out, DAY_NAMES + (seconds // DAY_S + 4) % 7 * DAY_NAME_SIZE, 3)
    write_digits(out + 5, date.day, 2)
    memcpy(out + 8, MONTH_NAMES + (date.month - 1) * MONTH_NAME_SIZE, MONTH_NAME_SIZE)
    write_digits(out + 12, date.year, 4)
    write_digits(out + 17, date.hour, 2)
    write_digits(out + 20, date.minute, 2)
    write_digits(out + 23, date.second, 2)


# ---- Entity tags -----------------------------------------------------------------------------------------------------

cdef inline bint is_weak(const char *etag, uint32_t length) noexcept nogil:
    return length >= 2 and etag[0] == b"W" and etag[1] == b"/"


cdef inline uint32_t etag_end(const char *text, uint32_t position, uint32_t length) noexcept nogil:
    """Where the entity tag at `position` ends; 0 when there is none."""
    cdef uint8_t byte
    if is_weak(text + position, length - position):
        position += 2
    if position == length or text[position] != b'"':
        return 0
    position += 1
    while position < length:
        byte = <uint8_t> text[position]
        position += 1
        if byte == c'"':
            return position
        if byte <= 0x20 or byte == 0x7F:
            return 0
    return 0


cdef inline bint is_current(const Validators *validators, const char *etag, uint32_t length,
                            bint strong) noexcept nogil:
    """Whether a well-formed entity tag is that of the representation."""
    cdef const char *current = validators.etag
    cdef uint32_t current_length = validators.etag_length
    cdef uint32_t prefix
    if current == NULL:
        return False
    if is_weak(current, current_length):
        if strong:
            return False
        current += 2
        current_length -= 2
    prefix = 2 if is_weak(etag, length) else 0
    if strong and prefix:
        return False
    return length - prefix == current_length and memcmp(etag + prefix, current, current_length) == 0


cdef inline bint is_space(char byte) noexcept nogil:
    return byte == b" " or byte == b"\t"


cdef int find_in_line(const char *text, uint32_t length, const Validators *validators, bint strong) noexcept nogil:
    """Searches one line of entity tags for the representation's: 1 when it is there, 0 when not, -1 when an element is
    malformed and the current tag was not before it."""
    cdef uint32_t position = 0
    cdef uint32_t start, end
    while position < length:
        if is_space(text[position]) or text[position] == b",":
            position += 1
            continue
        start = position
        end = position = etag_end(text, start, length)
        if end == 0:
            return -1
        while position < length and is_space(text[position]):
            position += 1
        if position < length and text[position] != b",":
            return -1
        if is_current(validators, text + start, end - start, strong):
            return 1
    return 0


cdef bint lists_current(const char *data, const Head *head, const Validators *validators,
                        KnownHeader header) noexcept nogil:
    """Whether If-Match or If-None-Match names the representation."""
    cdef bint strong = header == HEADER_IF_MATCH
    cdef const char *lower = b"if-match" if strong else b"if-none-match"
    cdef const Slice *value = &head.known[<int> header]
    cdef uint32_t cursor = head.headers.offset
    cdef Slice name, line
    cdef int found = 0
    if not head.known_repeated >> <int> header & 1:
        if value.length == 1 and data[value.offset] == b"*":
            return True
        return find_in_line(data + value.offset, value.length, validators, strong) > 0
    # Several lines are one list: a "*" among them is a malformed element, and ends it.
    while found == 0 and next_header(data, head, &cursor, &name, &line):
        if same_name(data + name.offset, name.length, lower):
            found = find_in_line(data + line.offset, line.length, validators, strong)
    return found > 0


cdef inline bint same_name(const char *text, uint32_t length, const char *lower) noexcept nogil:
    """Compares a header's name ignoring case. Setting bit 5 maps no other byte of a token onto a letter or "-"."""
    cdef uint32_t position
    if length != strlen(lower):
        return False
    for position in range(length):
        if text[position] | 0x20 != lower[position]:
            return False
    return True


# ---- Ranges ----------------------------------------------------------------------------------------------------------

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


cdef bint find_only_range(const char *text, uint32_t length, uint32_t *start, uint32_t *end) noexcept nogil:
    """Finds the one range in "bytes=..."; False for another unit, no range or several. Empty elements don't count."""
    cdef uint32_t position = 6
    if length < 6 or text[5] != b"=" or not same_name(text, 5, b"bytes"):
        return False
    while position < length and (is_space(text[position]) or text[position] == b","):
        position += 1
    start[0] = end[0] = position
    while position < length and text[position] != b",":
        position += 1
        if not is_space(text[position - 1]):
            end[0] = position
    while position < length and (is_space(text[position]) or text[position] == b","):
        position += 1
    return position == length and end[0] > start[0]


cdef Verdict select_range(const char *text, uint32_t length, uint64_t whole, uint64_t *first,
                          uint64_t *last) noexcept nogil:
    """What a Range header selects of a representation of `whole` bytes."""
    cdef uint32_t position = 0
    cdef uint32_t end = 0
    cdef uint64_t low = 0
    cdef uint64_t high = UINT64_MAX
    cdef bint suffix
    if not find_only_range(text, length, &position, &end):
        return VERDICT_SEND
    suffix = not read_position(text, &position, end, &low)
    if position == end or text[position] != b"-":
        return VERDICT_SEND
    position += 1
    # Only "a-" may end here.
    if position < end or suffix:
        if not read_position(text, &position, end, &high) or position < end:
            return VERDICT_SEND
    if suffix:
        if high == 0:
            return VERDICT_UNSATISFIABLE
        if whole == 0:
            return VERDICT_SEND
        low = whole - min(high, whole)
    elif high < low:
        return VERDICT_SEND
    elif low >= whole:
        return VERDICT_UNSATISFIABLE
    first[0] = low
    last[0] = whole - 1 if suffix else min(high, whole - 1)
    return VERDICT_RANGE


# ---- The order of section 13.2.2 -------------------------------------------------------------------------------------

cdef inline bint is_present(const Head *head, KnownHeader header) noexcept nogil:
    return head.known[<int> header].offset != 0


cdef inline bint read_date_header(const char *data, const Head *head, KnownHeader header, int64_t now_s,
                                  int64_t *seconds) noexcept nogil:
    cdef const Slice *value = &head.known[<int> header]
    return value.offset != 0 and read_http_date(data + value.offset, value.length, now_s, seconds)


cdef bint range_is_current(const char *data, const Head *head, const Validators *validators,
                           int64_t now_s) noexcept nogil:
    """Whether If-Range lets the Range be used: there is none, or it names the representation as it is now."""
    cdef const Slice *value = &head.known[<int> HEADER_IF_RANGE]
    cdef const char *text = data + value.offset
    cdef int64_t seconds = 0
    if value.offset == 0:
        return True
    if value.length > 0 and etag_end(text, 0, value.length) == value.length:
        return is_current(validators, text, value.length, True)
    # Within the second of the last change another one could come, and the date would not tell.
    return (
        0 <= validators.modified_s < now_s and read_http_date(text, value.length, now_s, &seconds)
        and seconds == validators.modified_s
    )


cdef int evaluate(const char *data, const Head *head, const Validators *validators, int64_t now_s,
                  uint64_t *first, uint64_t *last) noexcept nogil:
    cdef bint reads = head.method == METHOD_GET or head.method == METHOD_HEAD
    cdef bint dated = validators.modified_s >= 0
    cdef const Slice *asked = &head.known[<int> HEADER_RANGE]
    cdef int64_t since = 0
    if not head.flags & (HEAD_CONDITIONAL | HEAD_RANGE):
        return VERDICT_SEND
    if head.method == METHOD_CONNECT or head.method == METHOD_OPTIONS or head.method == METHOD_TRACE:
        return VERDICT_SEND

    if is_present(head, HEADER_IF_MATCH):
        if not lists_current(data, head, validators, HEADER_IF_MATCH):
            return VERDICT_FAILED
    elif dated and read_date_header(data, head, HEADER_IF_UNMODIFIED_SINCE, now_s, &since):
        if validators.modified_s > since:
            return VERDICT_FAILED

    if is_present(head, HEADER_IF_NONE_MATCH):
        if lists_current(data, head, validators, HEADER_IF_NONE_MATCH):
            return VERDICT_NOT_MODIFIED if reads else VERDICT_FAILED
    elif reads and dated and read_date_header(data, head, HEADER_IF_MODIFIED_SINCE, now_s, &since):
        if validators.modified_s <= since:
            return VERDICT_NOT_MODIFIED

    if head.method == METHOD_GET and asked.offset != 0 and range_is_current(data, head, validators, now_s):
        return select_range(data + asked.offset, asked.length, validators.length, first, last)
    return VERDICT_SEND


# ---- For tests -------------------------------------------------------------------------------------------------------
# `place` puts bytes where a test wants them (before an unmapped page, for instance) and returns an object that has
# them as its buffer.

def evaluate_for_tests(bytes method not None, headers, bytes etag, modified_s, uint64_t length, int64_t now_s,
                       place=bytes) -> tuple:
    """evaluate() on a request made of a method and (name, value) pairs: (verdict, first, last).

    ``etag`` and ``modified_s`` may be None; ``first`` and ``last`` are None but for VERDICT_RANGE. What is placed ends
    with the last value that the parser knows, where no header is repeated, and else with the head.
    """
    cdef bytes request = b"%b %b HTTP/1.1\r\nHost: h\r\n%b\r\n" % (
        method, b"h:80" if method == b"CONNECT" else b"/", b"".join([b"%b: %b\r\n" % pair for pair in headers])
    )
    cdef HeadLimits limits = HeadLimits(1 << 20, 1 << 10, 1 << 10)
    cdef Head head
    cdef Validators validators
    cdef uint32_t scanned = 0
    cdef uint64_t first = 0
    cdef uint64_t last = 0
    cdef Py_buffer data, current
    cdef int status = parse_head(<const char *> request, <uint32_t> len(request), &scanned, &limits, &head)
    if status <= 0:
        raise ValueError(f"not a valid request: {status}")
    validators.etag = NULL
    validators.modified_s = -1 if modified_s is None else modified_s
    validators.length = length
    PyObject_GetBuffer(place(request if head.known_repeated else request[:_last_value_end(&head)]), &data, PyBUF_SIMPLE)
    PyObject_GetBuffer(place(etag or b""), &current, PyBUF_SIMPLE)
    if etag is not None:
        validators.etag = <const char *> current.buf
    validators.etag_length = <uint32_t> current.len
    status = evaluate(<const char *> data.buf, &head, &validators, now_s, &first, &last)
    PyBuffer_Release(&data)
    PyBuffer_Release(&current)
    return (status, first, last) if status == VERDICT_RANGE else (status, None, None)


cdef uint32_t _last_value_end(const Head *head):
    cdef uint32_t end = 0
    cdef int header
    for header in range(<int> HEADER_KNOWN_COUNT):
        end = max(end, head.known[header].offset + head.known[header].length)
    return end


def parse_http_date_for_tests(bytes text not None, int64_t now_s, place=bytes) -> int:
    """parse_http_date()"""
    cdef Py_buffer placed
    cdef int64_t seconds
    PyObject_GetBuffer(place(text), &placed, PyBUF_SIMPLE)
    seconds = parse_http_date(<const char *> placed.buf, <uint32_t> placed.len, now_s)
    PyBuffer_Release(&placed)
    return seconds


def format_http_date_for_tests(int64_t seconds) -> bytes:
    """format_http_date()"""
    cdef char[IMF_SIZE] out
    format_http_date(seconds, out)
    return out[:IMF_SIZE]
