"""HTTP dates (RFC 9110 section 5.6.7).

All three forms are read, letter by letter. The name of the day must be one, but not the right one. A two-digit year
means the latest one that is not more than 50 years ahead. 23:59:60 is the second that follows.

All functions are pure: they read the bytes given and no others, allocate nothing and keep nothing.
"""
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memcmp, memcpy, memset


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


# ---- For tests -------------------------------------------------------------------------------------------------------
# `place` puts bytes where a test wants them (before an unmapped page, for instance) and returns an object that has
# them as its buffer.

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
