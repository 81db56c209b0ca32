"""Dates are told as email.utils and calendar tell them, and a request's conditions and range as a model of RFC 9110
section 13.2.2 judges them; whatever the values hold, no byte behind them is read.

Values and tags lie before an unmapped page in every call, so that a read past their end ends the process.
"""

import calendar
import ctypes
import itertools
import mmap
import re
import time
from datetime import UTC, datetime
from email.utils import formatdate, parsedate

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from batchbridge.cython_ext import conditional
from batchbridge.cython_ext import dates as http_dates
from batchbridge.cython_ext.conditional import Verdict

SEND, NOT_MODIFIED, FAILED = Verdict.VERDICT_SEND, Verdict.VERDICT_NOT_MODIFIED, Verdict.VERDICT_FAILED
RANGE, RANGES, UNSATISFIABLE = Verdict.VERDICT_RANGE, Verdict.VERDICT_RANGES, Verdict.VERDICT_UNSATISFIABLE

MANY = settings(max_examples=1000)
CHANGED_S = 784111777  # Sun, 06 Nov 1994 08:49:37 GMT, the example of RFC 9110
NOW_S = 1782864000  # Wed, 01 Jul 2026 00:00:00 GMT
LAST_SECOND = 253402300799  # of the year 9999
COUNT_MAX = 2**64 - 1
RANGES_MAX = 64
GAP_MAX = 80

_mprotect = ctypes.CDLL(None, use_errno=True).mprotect
_mprotect.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def guarded(content):
    """A copy of the bytes that ends right before an unmapped page."""
    room = -(-len(content) // mmap.PAGESIZE) * mmap.PAGESIZE
    memory = mmap.mmap(-1, room + mmap.PAGESIZE)
    first = ctypes.c_char.from_buffer(memory)
    assert _mprotect(ctypes.addressof(first) + room, mmap.PAGESIZE, 0) == 0
    memory[room - len(content) : room] = content
    return memoryview(memory)[room - len(content) : room]


def parse_date(text, now_s=NOW_S):
    return http_dates.parse_http_date_for_tests(text, now_s, guarded)


def evaluate(
    *headers, method=b"GET", etag=b'"a"', modified_s=CHANGED_S, length=100, now_s=NOW_S, ranges_max=RANGES_MAX
):
    verdict, ranges = conditional.evaluate_for_tests(
        method, headers, etag, modified_s, length, now_s, guarded, ranges_max
    )
    if verdict == RANGES:
        return verdict, *ranges
    return (verdict, *ranges[0]) if verdict == RANGE else verdict


# ---- Dates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", [b"Sun, 06 Nov 1994 08:49:37 GMT", b"Sunday, 06-Nov-94 08:49:37 GMT", b"Sun Nov  6 08:49:37 1994"]
)
def test_the_three_forms(text):
    assert parse_date(text) == CHANGED_S


seconds = st.integers(0, LAST_SECOND)


def imf(second):
    return formatdate(second, usegmt=True).encode()


def rfc850(second):
    at = datetime.fromtimestamp(second, UTC)
    return f"{calendar.day_name[at.weekday()]}, {at:%d-%b-%y %H:%M:%S} GMT".encode()


def asctime(second):
    return time.asctime(time.gmtime(second)).encode()


@given(seconds)
@example(0)
@example(LAST_SECOND)
@example(951782400)  # 29 Feb 2000
@example(4107542400)  # 1 Mar 2100, the day after 28 Feb
def test_dates_are_written_as_email_utils_writes_them_and_read_back(second):
    text = http_dates.format_http_date_for_tests(second)
    assert text == imf(second)
    assert parse_date(text) == parse_date(asctime(second)) == second == calendar.timegm(parsedate(text.decode()))


def test_every_day_of_400_years_is_written_and_read():
    for second in range(0, 400 * 366 * 86400, 86400 - 1):
        text = http_dates.format_http_date_for_tests(second)
        assert text == imf(second)
        assert http_dates.parse_http_date_for_tests(text, NOW_S) == second


@pytest.mark.parametrize(
    ("second", "nearest"), [(-1, 0), (-(2**63), 0), (LAST_SECOND + 1, LAST_SECOND), (2**63 - 1, LAST_SECOND)]
)
def test_what_lies_outside_is_written_as_the_nearest_second(second, nearest):
    assert http_dates.format_http_date_for_tests(second) == imf(nearest)


@given(seconds, seconds)
def test_a_two_digit_year_is_the_latest_that_is_not_more_than_50_years_ahead(second, now_s):
    assert parse_date(rfc850(second), now_s) == model_seconds(rfc850(second), now_s)


@pytest.mark.parametrize(
    ("text", "year"),
    [
        (b"Tuesday, 01-Jan-75 00:00:00 GMT", 2075),
        (b"Wednesday, 01-Jul-76 00:00:00 GMT", 2076),  # exactly 50 years
        (b"Thursday, 01-Jul-76 00:00:01 GMT", 1976),
        (b"Saturday, 01-Jan-77 00:00:00 GMT", 1977),
        (b"Friday, 31-Dec-99 23:59:60 GMT", 2000),
    ],
)
def test_the_edge_of_50_years(text, year):
    assert time.gmtime(parse_date(text)).tm_year == year


def test_a_leap_second_is_the_second_that_follows():
    for text in (b"Sat, 31 Dec 2016 23:59:60 GMT", b"Saturday, 31-Dec-16 23:59:60 GMT", b"Sat Dec 31 23:59:60 2016"):
        assert parse_date(text) == 1483228800 == parse_date(b"Sun, 01 Jan 2017 00:00:00 GMT")
    assert parse_date(b"Sat, 31 Dec 2016 23:58:60 GMT") == -1
    assert parse_date(b"Sat, 31 Dec 2016 23:59:61 GMT") == -1


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"0",
        b"784111777",
        b"1994-11-06T08:49:37Z",
        b"Sun, 06 Nov 1994 08:49:37 UTC",
        b"Sun, 06 Nov 1994 08:49:37 +0000",
        b"Sun, 06 Nov 1994 08:49:37 gmt",
        b"sun, 06 Nov 1994 08:49:37 GMT",
        b"Sun, 06 nov 1994 08:49:37 GMT",
        b"Sun, 6 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 1994 8:49:37 GMT",
        b"Sun,  6 Nov 1994 08:49:37 GMT",
        b"Sun 06 Nov 1994 08:49:37 GMT",
        b"Sun, 06 Nov 94 08:49:37 GMT",
        b"Sun, 06 Nov 1994 08:49 GMT",
        b"Sun, 06 Nov 1994 08:49:37 GMT ",
        b"Sun, 06 Nov 1994 08:49:37 GMT, Sun, 06 Nov 1994 08:49:37 GMT",
        b"Xxx, 06 Nov 1994 08:49:37 GMT",
        b"Sunday, 06 Nov 1994 08:49:37 GMT",
        b"Sunday, 06-Nov-1994 08:49:37 GMT",
        b"Sun, 06-Nov-94 08:49:37 GMT",
        b"Sundays, 06-Nov-94 08:49:37 GMT",
        b"Sun Nov 06 08:49:37 94",
        b"Sun Nov 6 08:49:37 1994",
        b"Sun, 00 Nov 1994 08:49:37 GMT",
        b"Sun, 31 Nov 1994 08:49:37 GMT",
        b"Sun, 29 Feb 1994 08:49:37 GMT",
        b"Mon, 29 Feb 2100 08:49:37 GMT",
        b"Sun, 06 Nov 1994 24:00:00 GMT",
        b"Sun, 06 Nov 1994 08:60:37 GMT",
        b"Sun, 06 Nov 1994 -8:49:37 GMT",
        b"Wed, 31 Dec 1969 23:59:59 GMT",  # a date, but not one since 1970
        b"Sat, 01 Jan 0000 00:00:00 GMT",
    ],
)
def test_what_is_no_date_since_1970(text):
    assert parse_date(text) == -1 == model_seconds(text, NOW_S)


# ---- A model of dates ------------------------------------------------------------------------------------------------

SHORT = "|".join(calendar.day_abbr)
LONG = "|".join(calendar.day_name)
MONTH = f"(?P<month>{'|'.join(calendar.month_abbr[1:])})"
CLOCK = "(?P<clock>[0-9]{2}:[0-9]{2}:[0-9]{2})"
FORMS = [
    re.compile(form)
    for form in (
        f"(?:{SHORT}), (?P<day>[0-9]{{2}}) {MONTH} (?P<year>[0-9]{{4}}) {CLOCK} GMT",
        f"(?:{LONG}), (?P<day>[0-9]{{2}})-{MONTH}-(?P<short_year>[0-9]{{2}}) {CLOCK} GMT",
        f"(?:{SHORT}) {MONTH} (?P<day>[0-9]{{2}}| [0-9]) {CLOCK} (?P<year>[0-9]{{4}})",
    )
]


def model_date(text, now_s):
    """Seconds since 1970, negative ones too; None for what is no date."""
    found = next(filter(None, (form.fullmatch(text.decode("latin-1")) for form in FORMS)), None)
    if found is None:
        return None
    parts = found.groupdict()
    month, day = calendar.month_abbr[:].index(parts["month"]), int(parts["day"])
    hour, minute, second = map(int, parts["clock"].split(":"))
    if "year" in parts:
        year = int(parts["year"])
    else:
        now = time.gmtime(now_s)
        year = max(
            year
            for year in range(now.tm_year - 60, now.tm_year + 51)
            if year % 100 == int(parts["short_year"])
            and (year, month, day, hour, minute, second) <= (now.tm_year + 50, *now[1:6])
        )
    leap = (hour, minute, second) == (23, 59, 60)
    cycles, of_cycle = divmod(year, 400)  # the calendar repeats itself; datetime and calendar know 2000 to 2399 well
    try:
        datetime(2000 + of_cycle, month, day, hour, minute, 59 if leap else second)
    except ValueError:
        return None
    return calendar.timegm((2000 + of_cycle, month, day, hour, minute, second)) + (cycles - 5) * 146097 * 86400


def model_seconds(text, now_s):
    """As parse_http_date tells it."""
    found = model_date(text, now_s)
    return -1 if found is None else max(-1, found)


def damaged(texts):
    """Texts with one byte replaced, inserted or taken out, or cut off."""
    bytes_in_dates = st.sampled_from([bytes([byte]) for byte in b"0123456789 ,:-GMTSunaNov\x00\xff"])
    change = st.tuples(st.integers(0, 40), st.integers(0, 2), st.sampled_from([b""]) | bytes_in_dates)
    return st.builds(lambda text, at: text[: at[0]] + at[2] + text[at[0] + at[1] :], texts, change)


dates = st.builds(lambda form, second: form(second), st.sampled_from([imf, rfc850, asctime]), seconds)


@MANY
@given(damaged(dates) | damaged(damaged(dates)) | st.binary(max_size=40), seconds)
def test_damaged_dates_are_read_as_the_grammar_says(text, now_s):
    assert parse_date(text, now_s) == model_seconds(text, now_s)


# ---- Conditions, case by case ----------------------------------------------------------------------------------------

BEFORE, SAME, AFTER = imf(CHANGED_S - 1), imf(CHANGED_S), imf(CHANGED_S + 1)


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (b"*", SEND),
        (b'"a"', SEND),
        (b'"b", "a"', SEND),
        (b' \t,, "b"\t ,,\t"a" ,', SEND),
        (b'"b"', FAILED),
        (b'W/"a"', FAILED),
        (b'"A"', FAILED),
        (b"", FAILED),
        (b",", FAILED),
        (b"a", FAILED),
        (b'"a', FAILED),
        (b'a"', FAILED),
        (b'"a"b', FAILED),
        (b'"a""a"', FAILED),
        (b'"a" "a"', FAILED),
        (b'\'"a"', FAILED),
        (b'"b c", "a"', FAILED),  # a malformed element ends the list
        (b'"a", "b c"', SEND),
        (b'*, "a"', FAILED),
        (b"* *", FAILED),
        (b'"*"', FAILED),
    ],
)
def test_if_match_compares_strongly(value, verdict):
    assert evaluate((b"If-Match", value)) == verdict


@pytest.mark.parametrize(
    ("value", "verdict"),
    [
        (b"*", NOT_MODIFIED),
        (b'"a"', NOT_MODIFIED),
        (b'W/"a"', NOT_MODIFIED),
        (b'"b,c" , W/"a"', NOT_MODIFIED),
        (b'w/"a"', SEND),
        (b'W/ "a"', SEND),
        (b"W/", SEND),
        (b"W", SEND),
        (b'"b"', SEND),
        (b"", SEND),
        (b"a", SEND),
    ],
)
def test_if_none_match_compares_weakly(value, verdict):
    for method in (b"GET", b"HEAD"):
        assert evaluate((b"If-None-Match", value), method=method) == verdict
    assert evaluate((b"If-None-Match", value), method=b"PUT") == (SEND if verdict == SEND else FAILED)


def test_a_weak_tag_of_the_representation_matches_weakly_only():
    assert evaluate((b"If-Match", b'W/"a"'), etag=b'W/"a"') == FAILED
    assert evaluate((b"If-Match", b'"a"'), etag=b'W/"a"') == FAILED
    assert evaluate((b"If-None-Match", b'"a"'), etag=b'W/"a"') == NOT_MODIFIED
    assert evaluate((b"Range", b"bytes=0-0"), (b"If-Range", b'W/"a"'), etag=b'W/"a"') == SEND


def test_without_a_tag_only_a_star_matches():
    for value in (b'"a"', b'""', b""):
        assert evaluate((b"If-Match", value), etag=None) == FAILED
        assert evaluate((b"If-None-Match", value), etag=None) == SEND
    assert evaluate((b"If-Match", b"*"), etag=None) == SEND
    assert evaluate((b"If-None-Match", b"*"), etag=None) == NOT_MODIFIED


def test_lines_of_one_name_are_one_list():
    assert evaluate((b"If-None-Match", b'"b"'), (b"X", b"y"), (b"if-NONE-match", b'W/"a"')) == NOT_MODIFIED
    assert evaluate((b"IF-MATCH", b'"b"'), (b"If-None-Match", b'"b"'), (b"if-match", b'"a"')) == SEND
    assert evaluate((b"If-Match", b"*"), (b"If-Match", b'"a"')) == FAILED
    assert evaluate((b"If-Match", b'"a'), (b"If-Match", b'"')) == FAILED
    assert evaluate((b"If-Matches", b'"a"'), (b"If-Match", b'"b"'), (b"If-Match", b'"c"')) == FAILED


@pytest.mark.parametrize(
    ("header", "value", "verdict"),
    [
        (b"If-Modified-Since", BEFORE, SEND),
        (b"If-Modified-Since", SAME, NOT_MODIFIED),
        (b"If-Modified-Since", AFTER, NOT_MODIFIED),
        (b"If-Modified-Since", imf(NOW_S + 1), NOT_MODIFIED),
        (b"If-Modified-Since", b"yesterday", SEND),
        (b"If-Unmodified-Since", BEFORE, FAILED),
        (b"If-Unmodified-Since", b"Wed, 31 Dec 1969 23:59:59 GMT", FAILED),
        (b"If-Unmodified-Since", b"Mon, 01 Jan 1900 00:00:00 GMT", FAILED),
        (b"If-Unmodified-Since", SAME, SEND),
        (b"If-Unmodified-Since", AFTER, SEND),
        (b"If-Unmodified-Since", b"yesterday", SEND),
        (b"If-Unmodified-Since", b"", SEND),
    ],
)
def test_dates_as_conditions(header, value, verdict):
    assert evaluate((header, value)) == verdict
    assert evaluate((header, value), modified_s=None) == SEND


def test_modified_since_is_for_get_and_head():
    for method in (b"POST", b"PUT", b"DELETE", b"PATCH", b"PURGE"):
        assert evaluate((b"If-Modified-Since", SAME), method=method) == SEND
    assert evaluate((b"If-Modified-Since", SAME), method=b"HEAD") == NOT_MODIFIED


def test_a_tag_outweighs_a_date():
    assert evaluate((b"If-Modified-Since", SAME), (b"If-None-Match", b'"b"')) == SEND
    assert evaluate((b"If-Modified-Since", SAME), (b"If-None-Match", b"")) == SEND
    assert evaluate((b"If-Modified-Since", BEFORE), (b"If-None-Match", b'"a"')) == NOT_MODIFIED
    assert evaluate((b"If-Unmodified-Since", BEFORE), (b"If-Match", b'"a"')) == SEND
    assert evaluate((b"If-Unmodified-Since", AFTER), (b"If-Match", b'"b"')) == FAILED


def test_what_fails_first_is_told():
    assert evaluate((b"If-None-Match", b'"a"'), (b"If-Match", b'"b"'), (b"Range", b"bytes=0-")) == FAILED
    assert evaluate((b"If-None-Match", b'"a"'), (b"If-Match", b'"a"'), (b"Range", b"bytes=100-")) == NOT_MODIFIED
    assert evaluate((b"If-None-Match", b'"b"'), (b"If-Match", b'"a"'), (b"Range", b"bytes=100-")) == UNSATISFIABLE
    assert evaluate((b"If-Modified-Since", SAME), (b"If-Unmodified-Since", BEFORE)) == FAILED


def test_methods_that_select_nothing_have_no_conditions():
    for method in (b"CONNECT", b"OPTIONS", b"TRACE"):
        assert evaluate((b"If-Match", b'"b"'), method=method) == SEND
        assert evaluate((b"If-None-Match", b"*"), (b"Range", b"bytes=0-0"), method=method) == SEND


# ---- Ranges, case by case --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "length", "expected"),
    [
        (b"bytes=0-0", 100, (0, 0)),
        (b"bytes=0-", 100, (0, 99)),
        (b"bytes=10-19", 100, (10, 19)),
        (b"bytes=99-", 100, (99, 99)),
        (b"bytes=99-1000", 100, (99, 99)),
        (b"bytes=0099-0099", 100, (99, 99)),
        (b"bytes=0-%d" % (2**64), 100, (0, 99)),
        (b"bytes=0-%d" % (10**400), 100, (0, 99)),
        (b"bytes=%d-" % (COUNT_MAX - 1), COUNT_MAX, (COUNT_MAX - 1, COUNT_MAX - 1)),
        (b"bytes=-1", 100, (99, 99)),
        (b"bytes=-100", 100, (0, 99)),
        (b"bytes=-101", 100, (0, 99)),
        (b"bytes=-%d" % (10**400), 100, (0, 99)),
        (b"BYTES=1-2", 100, (1, 2)),
        (b"bytes= \t1-2 ,", 100, (1, 2)),
        (b"bytes=,,1-2,\t,", 100, (1, 2)),
        (b"bytes=100-", 100, UNSATISFIABLE),
        (b"bytes=100-200", 100, UNSATISFIABLE),
        (b"bytes=%d-" % (2**64), COUNT_MAX, UNSATISFIABLE),
        (b"bytes=%d-" % (2**64 + 1), 100, UNSATISFIABLE),  # not byte 1
        (b"bytes=-0", 100, UNSATISFIABLE),
        (b"bytes=-00", 0, UNSATISFIABLE),
        (b"bytes=0-", 0, UNSATISFIABLE),
        (b"bytes=0-0", 0, UNSATISFIABLE),
        (b"bytes=-1", 0, SEND),
        (b"bytes=2-1", 100, SEND),
        (b"bytes=200-100", 100, SEND),
        (b"bytes=0-0,2-3", 100, (0, 3)),
        (b"bytes=200-,300-", 100, UNSATISFIABLE),
        (b"bytes=-0,100-", 100, UNSATISFIABLE),
        (b"bytes=-1,0-0", 0, SEND),
        (b"bytes=0-0,x", 100, SEND),
        (b"bytes=", 100, SEND),
        (b"bytes=-", 100, SEND),
        (b"bytes=--1", 100, SEND),
        (b"bytes=,", 100, SEND),
        (b"bytes=1", 100, SEND),
        (b"bytes=1 - 2", 100, SEND),
        (b"bytes=1-2x", 100, SEND),
        (b"bytes=1-2-3", 100, SEND),
        (b"bytes=+1-2", 100, SEND),
        (b"bytes=0x1-2", 100, SEND),
        (b"bytes =1-2", 100, SEND),
        (b"bytes:1-2", 100, SEND),
        (b"byte=1-2", 100, SEND),
        (b"bytes", 100, SEND),
        (b"items=0-1", 100, SEND),
        (b"", 100, SEND),
    ],
)
def test_range(value, length, expected):
    asked = (b"Range", value)
    assert evaluate(asked, length=length) == ((RANGE, *expected) if isinstance(expected, tuple) else expected)
    assert evaluate(asked, length=length, method=b"HEAD") == evaluate(asked, length=length, method=b"POST") == SEND


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (b"bytes=0-0,500-500", [(0, 0), (500, 500)]),
        (b"bytes=500-500,0-0", [(500, 500), (0, 0)]),  # in the order asked for
        (b"bytes=0-0,82-82", [(0, 0), (82, 82)]),
        (b"bytes=0-0,81-81", [(0, 81)]),  # the gap is no longer than another part's head
        (b"bytes=81-81,0-0", [(0, 81)]),
        (b"bytes=0-9,5-20", [(0, 20)]),
        (b"bytes=0-99,10-20", [(0, 99)]),
        (b"bytes=10-20,0-99", [(0, 99)]),
        (b"bytes=0-9,500-509,5-505", [(0, 509)]),  # joins two that were apart
        (b"bytes=0-0,900-900,300-300,220-220", [(0, 0), (900, 900), (220, 300)]),  # takes the first one's place
        (b"bytes=-1,0-0,2000-", [(999, 999), (0, 0)]),
        (b"bytes=,0-0,,\t-1 ,", [(0, 0), (999, 999)]),
        (b"bytes=0-0,-2000", [(0, 999)]),
        (b"bytes=0-,0-,0-", [(0, 999)]),
        (b"bytes=0-0,500-x", []),
        (b"bytes=0-0,5-4", []),
    ],
)
def test_several_ranges(value, expected):
    found = evaluate((b"Range", value), length=1000)
    if not expected:
        assert found == SEND
    else:
        assert found == ((RANGE, *expected[0]) if len(expected) == 1 else (RANGES, *expected))


def test_more_ranges_than_are_wanted_give_the_whole():
    asked = (b"Range", b"bytes=" + b",".join(b"%d-%d" % (at, at) for at in range(0, 3000, 1000)))
    for count_max in (3, 4, 64):
        assert evaluate(asked, length=5000, ranges_max=count_max)[0] == RANGES
    for count_max in (1, 2):
        assert evaluate(asked, length=5000, ranges_max=count_max) == SEND
    many = (b"Range", b"bytes=" + b",".join(b"%d-%d" % (at, at) for at in range(0, 65_000, 1000)))
    assert evaluate(many, length=100_000) == SEND
    # Thousands that come to one are one.
    joined = (b"Range", b"bytes=" + b",".join(b"%d-%d" % (at, at) for at in range(4000)))
    assert evaluate(joined, length=100_000, ranges_max=1) == (RANGE, 0, 3999)
    assert evaluate((b"Range", b"bytes=" + b",".join([b"0-"] * 4000)), length=100) == (RANGE, 0, 99)


@pytest.mark.parametrize(
    ("value", "used"),
    [
        (b'"a"', True),
        (b'"b"', False),
        (b'W/"a"', False),
        (b'"a", "b"', False),
        (b"*", False),
        (b"a", False),
        (b"", False),
        (SAME, True),
        (rfc850(CHANGED_S), True),
        (asctime(CHANGED_S), True),
        (BEFORE, False),
        (AFTER, False),
        (b"yesterday", False),
    ],
)
def test_if_range_names_the_representation_exactly(value, used):
    condition = (b"If-Range", value)
    assert evaluate((b"Range", b"bytes=0-0"), condition) == ((RANGE, 0, 0) if used else SEND)
    assert evaluate(condition, (b"Range", b"bytes=100-")) == (UNSATISFIABLE if used else SEND)
    assert evaluate(condition) == SEND


def test_a_date_is_a_strong_validator_once_its_second_is_over():
    headers = (b"Range", b"bytes=0-0"), (b"If-Range", SAME)
    assert evaluate(*headers, now_s=CHANGED_S) == SEND
    assert evaluate(*headers, now_s=CHANGED_S - 1) == SEND
    assert evaluate(*headers, now_s=CHANGED_S + 1) == (RANGE, 0, 0)
    assert evaluate(*headers, modified_s=None) == SEND
    assert evaluate(headers[0], (b"If-Range", b"Wed, 31 Dec 1969 23:59:59 GMT"), modified_s=None) == SEND
    # A date that cannot be a strong validator is one for a cache's question all the same.
    assert evaluate((b"If-Modified-Since", SAME), now_s=CHANGED_S) == NOT_MODIFIED


def test_long_values_are_read_to_their_end():
    assert evaluate((b"If-None-Match", b'W/"b", ' * 100_000 + b'"a"')) == NOT_MODIFIED
    assert evaluate((b"If-Match", b"," * 900_000 + b'"a"')) == SEND
    assert evaluate((b"If-None-Match", b'"' + b"a" * 900_000)) == SEND
    assert evaluate((b"Range", b"bytes=" + b"0" * 900_000 + b"-7")) == (RANGE, 0, 7)
    assert evaluate((b"Range", b"bytes=" + b" , " * 300_000 + b"4-")) == (RANGE, 4, 99)


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (b"If-Match", b'W/"b", "a" '),
        (b"If-None-Match", b'"b" , W/"a"'),
        (b"If-Modified-Since", SAME),
        (b"If-Unmodified-Since", rfc850(CHANGED_S)),
        (b"If-Range", asctime(CHANGED_S)),
        (b"If-Range", b'W/"a"'),
        (b"Range", b"bytes=10-19, -5"),
    ],
)
def test_no_prefix_of_a_value_is_read_past_its_end(header, value):
    for end, etag in itertools.product(range(len(value) + 1), (b"", b"W", b"W/", b'W/"', b'"a"', b'W/"a"')):
        asked = () if header == b"Range" else ((b"Range", b"bytes=0-0"),)
        evaluate(*asked, (header, value[:end]), etag=etag)


# ---- A model of section 13.2.2 ---------------------------------------------------------------------------------------

ETAG = re.compile(rb'(W/)?("[\x21\x23-\x7e\x80-\xff]*")')
NEXT_ETAG = re.compile(rb"[ \t,]*" + ETAG.pattern + rb"[ \t]*(?=,|\Z)")


def model_listed(lines, etag, strong):
    """Whether the list on these lines names the tag, or anything."""
    if [line.strip(b" \t") for line in lines] == [b"*"]:
        return True
    if etag is None:
        return False
    own_weak, own_text = ETAG.fullmatch(etag).groups()
    value, position = b", ".join(lines), 0  # as section 5.3 joins them, so that no tag goes over from line to line
    while found := NEXT_ETAG.match(value, position):
        position = found.end()
        if found[2] == own_text and not (strong and (found[1] or own_weak)):
            return True
    return False


def model_ranges(value, length, count_max):
    """Joins each range with all that are near it, and those that then are, before it looks for a place."""
    unit, separator, rest = value.partition(b"=")
    specs = [part.strip(b" \t") for part in rest.split(b",") if part.strip(b" \t")]
    if unit.lower() != b"bytes" or not separator or not specs:
        return SEND
    ranges = []
    is_malformed = is_full = False
    for spec in specs:
        found = re.fullmatch(rb"([0-9]*)-([0-9]*)", spec)
        if not found or not any(found.groups()):
            is_malformed = True
            break
        low, high = (min(int(digits), COUNT_MAX) if digits else None for digits in found.groups())
        if low is None:
            if high == 0:
                continue
            if length == 0:
                is_malformed = True
                break
            low, high = max(0, length - high), length - 1
        elif high is not None and high < low:
            is_malformed = True
            break
        elif low >= length:
            continue
        else:
            high = length - 1 if high is None else min(high, length - 1)
        near = [one for one in ranges if one[0] - GAP_MAX - 1 <= high and low <= one[1] + GAP_MAX + 1]
        place = len(ranges)
        while near:
            place = min(place, min(ranges.index(one) for one in near))
            low, high = min(low, *(one[0] for one in near)), max(high, *(one[1] for one in near))
            ranges = [one for one in ranges if one not in near]
            near = [one for one in ranges if one[0] - GAP_MAX - 1 <= high and low <= one[1] + GAP_MAX + 1]
        if len(ranges) == count_max:
            is_full = True
            break
        ranges.insert(min(place, len(ranges)), (low, high))
    if is_malformed or is_full:
        return SEND
    if not ranges:
        return UNSATISFIABLE
    return (RANGE, *ranges[0]) if len(ranges) == 1 else (RANGES, *ranges)


def model(method, headers, etag, modified_s, length, now_s, ranges_max=RANGES_MAX):
    def lines(name):
        return [value for header, value in headers if header.lower() == name]

    def date(name):
        return model_date(lines(name)[0].strip(b" \t"), now_s) if lines(name) and modified_s is not None else None

    if method in (b"CONNECT", b"OPTIONS", b"TRACE"):
        return SEND
    if lines(b"if-match"):  # step 1
        if not model_listed(lines(b"if-match"), etag, True):
            return FAILED
    elif (since := date(b"if-unmodified-since")) is not None and modified_s > since:  # step 2
        return FAILED
    if lines(b"if-none-match"):  # step 3
        if model_listed(lines(b"if-none-match"), etag, False):
            return NOT_MODIFIED if method in (b"GET", b"HEAD") else FAILED
    elif method in (b"GET", b"HEAD"):  # step 4
        since = date(b"if-modified-since")
        if since is not None and modified_s <= since:
            return NOT_MODIFIED
    if method != b"GET" or not lines(b"range"):  # steps 5 and 6
        return SEND
    if lines(b"if-range"):
        tag = ETAG.fullmatch(lines(b"if-range")[0].strip(b" \t"))
        if tag and (tag[1] or tag[0] != etag):
            return SEND
        if not tag and (date(b"if-range") != modified_s or modified_s is None or now_s <= modified_s):
            return SEND
    return model_ranges(lines(b"range")[0].strip(b" \t"), length, ranges_max)


def joined(parts, separators):
    """A strategy for parts with separators between, before and behind them."""
    pairs = st.lists(st.tuples(st.sampled_from(separators), st.sampled_from(parts)), max_size=4)
    return st.builds(
        lambda pairs, end: b"".join(itertools.chain.from_iterable(pairs)) + end,
        pairs,
        st.sampled_from([b"", *separators]),
    )


ETAGS = [b'"a"', b'W/"a"', b'"b"', b'""', b'W/""', b'"a,b"', b'"\xff"']
BROKEN_ETAGS = [b"*", b"a", b'"', b'"a', b'w/"a"', b"W/", b'"a b"', b'"a""b"', b"W"]
DATES = [*(form(CHANGED_S + by) for form in (imf, rfc850, asctime) for by in (-1, 0, 1)), imf(-1), b"yesterday", b""]
COUNTS = [0, 1, 2, 99, 100, 101, 2**63, COUNT_MAX - 1, COUNT_MAX]
etag_lists = joined(ETAGS + BROKEN_ETAGS, [b",", b", ", b" ,\t", b",,", b"", b" "]) | st.sampled_from([b"*", b'"a"'])
ranges = st.builds(
    bytes.__add__,
    st.sampled_from([b"bytes=", b"Bytes=", b"bytes", b"lines=", b""]) | st.just(b"bytes="),
    joined([b"-", b"x", *(b"%d" % count for count in [*COUNTS, 2**64, 2**64 + 1])], [b"", b"-", b",", b" "])
    | st.builds(
        lambda low, high: b"%b-%b" % (low, high), *[st.sampled_from([b"", *(b"%d" % count for count in COUNTS)])] * 2
    ),
)
names = {
    b"If-Match": (etag_lists, 2),
    b"If-None-Match": (etag_lists, 2),
    b"If-Modified-Since": (st.sampled_from(DATES), 1),
    b"If-Unmodified-Since": (st.sampled_from(DATES), 1),
    b"If-Range": (st.sampled_from(DATES + ETAGS + BROKEN_ETAGS), 1),
    b"Range": (ranges, 1),
}


@st.composite
def conditional_headers(draw):
    headers = []
    for name, (values, count_max) in names.items():
        for value in draw(st.lists(values, max_size=count_max)):
            headers.append((draw(st.sampled_from([name, name.lower(), name.upper()])), value))
    return draw(st.permutations(headers))


@MANY
@given(
    method=st.just(b"GET") | st.sampled_from([b"GET", b"HEAD", b"POST", b"PUT", b"OPTIONS", b"CONNECT", b"PURGE"]),
    headers=conditional_headers(),
    etag=st.sampled_from([None, *ETAGS]),
    modified_s=st.sampled_from([None, 0, CHANGED_S - 1, CHANGED_S, CHANGED_S + 1]),
    length=st.sampled_from(COUNTS),
    now_s=st.sampled_from([0, CHANGED_S - 1, CHANGED_S, CHANGED_S + 1, NOW_S]),
)
def test_verdicts_are_those_of_the_model(method, headers, etag, modified_s, length, now_s):
    expected = model(method, headers, etag, modified_s, length, now_s)
    more = {"method": method, "etag": etag, "modified_s": modified_s, "length": length, "now_s": now_s}
    assert evaluate(*headers, **more) == expected


near_ranges = st.lists(
    st.builds(
        lambda low, size: b"%d-%d" % (low, low + size) if low < 900 else b"-%d" % size,
        st.integers(0, 1000),
        st.integers(0, 60) | st.integers(0, 600),
    ),
    max_size=9,
).map(lambda specs: b"bytes=" + b",".join(specs))


@MANY
@given(ranges | near_ranges, st.sampled_from([*COUNTS, 500]), st.integers(1, 8))
@example(b"bytes=0-0,200-200,400-400,100-380", 500, 8)
def test_ranges_are_those_of_the_model(value, length, ranges_max):
    found = evaluate((b"Range", value), length=length, ranges_max=ranges_max)
    assert found == model_ranges(value.strip(b" \t"), length, ranges_max)
    if isinstance(found, tuple) and found[0] == RANGES:
        parts = sorted(found[1:])
        assert all(0 <= low <= high < length for low, high in parts)
        assert all(one[1] + GAP_MAX + 1 < other[0] for one, other in itertools.pairwise(parts))


@MANY
@given(st.lists(etag_lists, min_size=1, max_size=3), st.sampled_from([None, *ETAGS]))
def test_lists_are_read_as_the_model_reads_them(lines, etag):
    for name, strong, expected in ((b"If-Match", True, SEND), (b"If-None-Match", False, NOT_MODIFIED)):
        listed = evaluate(*[(name, line) for line in lines], etag=etag) == expected
        assert listed == model_listed(lines, etag, strong)
