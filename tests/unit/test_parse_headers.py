"""Header lines are read as RFC 9112 section 5 writes them, and what frames the request has one meaning or none.

Each row is judged whole, with the input before an unmapped page and after one, and byte by byte; the verdict is the
same.
"""

import pytest

from batchbridge.cython_ext import parse_testing
from batchbridge.cython_ext.parse import HeadFlag, KnownHeader

HOST = b"Host: a\r\n"


def verdict(data, **limits):
    whole = parse_testing.parse_request(data, **limits)
    assert parse_testing.parse_request(data, at_start=True, **limits) == whole
    assert parse_testing.parse_request(data, cuts=range(len(data)), **limits) == whole
    return whole


def judge(*lines, line=b"POST / HTTP/1.1", host=HOST, **limits):
    """The verdict on a head with these header lines beside a Host."""
    return verdict(line + b"\r\n" + host + b"".join(one + b"\r\n" for one in lines) + b"\r\n", **limits)


def flags(*lines, **more):
    head = judge(*lines, **more)
    assert isinstance(head, dict), (lines, head)
    return HeadFlag(head["flags"])


def test_names_and_values_are_told_as_they_came():
    head = judge(b"X-A:b", b"x-a: \t c d \t", b"Empty:", b"Blank: \t", b"!#$%&'*+-.^_`|~: \xff\t\x80", b"Colon: a:b")
    assert head["headers"] == [
        (b"Host", b"a"),
        (b"X-A", b"b"),
        (b"x-a", b"c d"),
        (b"Empty", b""),
        (b"Blank", b""),
        (b"!#$%&'*+-.^_`|~", b"\xff\t\x80"),
        (b"Colon", b"a:b"),
    ]
    assert head["header_count"] == 7
    assert head["header_bytes"].startswith(HOST)
    assert head["header_bytes"].endswith(b"Colon: a:b\r\n")


def test_a_head_needs_no_header_lines_in_1_0():
    head = judge(line=b"GET / HTTP/1.0", host=b"")
    assert (head["headers"], head["header_bytes"], head["header_count"], head["authority"]) == ([], b"", 0, None)


@pytest.mark.parametrize(
    "line",
    [
        b": a",
        b"a",
        b"a b",
        b"a : b",
        b"a\t: b",
        b" a: b",
        b"\ta: b",
        b"a b: c",
        b"a\x00: b",
        b"\xe9: b",
        b"a\x7f: b",
        b'"a": b',
        b"(a): b",
        b"a@b: c",
    ],
)
def test_a_name_is_a_token_and_a_colon(line):
    assert judge(line) == -400
    assert judge(b"X: y", line) == -400


@pytest.mark.parametrize("first", [b"A: b", b"Content-Length: 1", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("fold", [b" c", b"\tc", b"  ", b"\t"])
def test_folded_lines_are_refused(first, fold):
    assert judge(first, fold) == -400


@pytest.mark.parametrize("padding", range(10))
def test_a_value_holds_any_byte_but_control_bytes(padding):
    for byte in range(256):
        value = b"x" * padding + bytes([byte]) + b"y" * 20
        expected = [(b"Host", b"a"), (b"A", value.strip(b" \t"))]
        if (byte < 32 and byte != 9) or byte == 127:
            assert judge(b"A: " + value) == -400, value
        else:
            assert judge(b"A: " + value)["headers"] == expected


@pytest.mark.parametrize("end", [b"\n", b"\r", b"\r\r\n", b"\n\r\n", b"\r\n\n"])
def test_lines_end_with_carriage_return_and_line_feed(end):
    assert verdict(b"GET / HTTP/1.1\r\nHost: a" + end + b"A: b\r\n\r\n") == -400


def test_an_empty_line_of_a_line_feed_alone_does_not_end_the_head():
    assert verdict(b"GET / HTTP/1.1\r\nHost: a\r\n\n") == -400
    assert verdict(b"GET / HTTP/1.1\nHost: a\n\n") == -400


def test_what_follows_the_head_is_not_looked_at():
    head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    for rest in (b"\x00\xff", b"GET", b"\n", b"\r\n", head, b"x" * 300):
        assert verdict(head + rest)["head_length"] == len(head)


# ---- Host


@pytest.mark.parametrize(
    "value",
    [
        b"example.com",
        b"EXAMPLE.com:8080",
        b"a",
        b"a:",
        b"a:0",
        b"a:65535",
        b"127.0.0.1",
        b"[::]",
        b"[2001:db8::7]:443",
        b"[::ffff:1.2.3.4]",
        b"%41b",
        b"-._~!$&'()*+,;=",
        b"_service",
    ],
)
def test_a_valid_host_is_the_authority(value):
    for minor in (b"0", b"1"):
        head = judge(host=b"Host: " + value + b" \r\n", line=b"GET / HTTP/1." + minor)
        assert head["authority"] == value


@pytest.mark.parametrize(
    "value",
    [
        b"u@a",
        b"u:p@a",
        b"a b",
        b"a\tb",
        b"a/",
        b"/a",
        b"a/b",
        b"http://a",
        b"a?b",
        b"a#b",
        b"a\\b",
        b"a:b",
        b"a:1b",
        b"a:-1",
        b"a:+1",
        b"a:65536",
        b"a:123456",
        b"a:1:2",
        b":80",
        b":",
        b"::1",
        b"[",
        b"[]",
        b"[::1",
        b"::1]",
        b"[::1]a",
        b"[::1]:x",
        b"[a]",
        b"[:::]",
        b"[1::2::3]",
        b"[fe80::1%25eth0]",
        b"[v1.a]",
        b"[1.2.3.4]",
        b"[" + b"0" * 46 + b"]",
        b"[::1]]",
        b"%",
        b"%4",
        b"%4g",
        b"a%zz",
        b"<a>",
        b'"a"',
        b"a\xe9",
        b"a^b",
        b"{a}",
        b"a|b",
    ],
)
def test_an_invalid_host_is_refused(value):
    for line in (b"GET / HTTP/1.0", b"GET / HTTP/1.1", b"GET http://b/ HTTP/1.1", b"OPTIONS * HTTP/1.1"):
        assert judge(host=b"Host: " + value + b"\r\n", line=line) == -400


def test_1_1_needs_a_host():
    for line in (b"GET /", b"GET http://b/", b"OPTIONS *", b"CONNECT b:1"):
        assert judge(host=b"", line=line + b" HTTP/1.1") == -400
        assert isinstance(judge(host=b"", line=line + b" HTTP/1.0"), dict)


@pytest.mark.parametrize("second", [b"Host: a", b"Host: b", b"Host:", b"hOST:a"])
@pytest.mark.parametrize("version", [b"1.0", b"1.1"])
def test_a_second_host_is_refused(second, version):
    assert judge(second, line=b"GET / HTTP/" + version) == -400
    assert judge(second, line=b"GET / HTTP/" + version, host=b"Host:\r\n") == -400


def test_host_may_be_empty_where_no_authority_is_needed():
    for value in (b"", b" ", b"\t"):
        empty = b"Host:" + value + b"\r\n"
        assert judge(host=empty, line=b"OPTIONS * HTTP/1.1")["authority"] == b""
        assert judge(host=empty, line=b"GET / HTTP/1.0")["authority"] == b""
        for line in (b"GET /", b"GET http://b/", b"CONNECT b:1", b"OPTIONS /"):
            assert judge(host=empty, line=line + b" HTTP/1.1") == -400


# ---- Body


def test_without_framing_there_is_no_body():
    head = judge()
    assert head["content_length"] == 0
    assert not head["flags"] & (HeadFlag.HEAD_LENGTH | HeadFlag.HEAD_CHUNKED)


@pytest.mark.parametrize("digits", [b"0", b"1", b"00012", b"9223372036854775807", b"0" * 40 + b"7"])
def test_content_length_is_digits(digits):
    for version in (b"1.0", b"1.1"):
        head = judge(b"content-length: " + digits, line=b"GET / HTTP/" + version)
        assert head["content_length"] == int(digits)
        assert head["flags"] & HeadFlag.HEAD_LENGTH


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"+5",
        b"-5",
        b"-0",
        b"5,",
        b",5",
        b"5,5",
        b"5, 5",
        b"5, 6",
        b"5 5",
        b"5;",
        b"0x5",
        b"5.0",
        b"5e1",
        b"five",
        b'"5"',
        b"\xb2",
        b"9223372036854775808",
        b"18446744073709551621",
        b"9" * 40,
    ],
)
def test_any_other_content_length_is_refused(value):
    assert judge(b"Content-Length: " + value) == -400


@pytest.mark.parametrize("second", [b"5", b"6", b"", b"0"])
def test_a_second_content_length_is_refused_even_if_it_is_the_same(second):
    assert judge(b"Content-Length: 5", b"CONTENT-LENGTH: " + second) == -400


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED", b" chunked \t"])
def test_chunked_once_is_chunked(value):
    head = judge(b"transfer-encoding:" + value)
    assert head["flags"] & HeadFlag.HEAD_CHUNKED
    assert head["content_length"] == 0


@pytest.mark.parametrize(
    ("values", "status"),
    [
        ([b"gzip, chunked"], -501),
        ([b"gzip,chunked"], -501),
        ([b"gzip", b"chunked"], -501),
        ([b"identity, chunked"], -501),
        ([b"x;a=b, chunked"], -501),
        ([b'x;a="b, chunked"'], -400),
        ([b"gzip"], -400),
        ([b"identity"], -400),
        ([b"chunked, gzip"], -400),
        ([b"chunked", b"gzip"], -400),
        ([b"chunked, chunked"], -400),
        ([b"chunked", b"chunked"], -400),
        ([b"chunked, gzip, chunked"], -400),
        ([b"chunked, identity"], -400),
        ([b""], -400),
        ([b"chunked", b""], -400),
        ([b"", b"chunked"], -400),
        ([b"chunked,"], -400),
        ([b",chunked"], -400),
        ([b"chunked;q=1"], -400),
        ([b"xchunked"], -400),
        ([b"chunkedx"], -400),
        ([b"chunked x"], -400),
        ([b'"chunked"'], -400),
        ([b"chun\tked"], -400),
        ([b"\xa0chunked"], -400),
        ([b"c\xc8unked"], -400),
    ],
)
def test_any_other_transfer_coding_is_refused(values, status):
    assert judge(*(b"Transfer-Encoding: " + value for value in values)) == status


def test_transfer_coding_is_not_of_1_0():
    for value in (b"chunked", b"gzip, chunked", b"identity"):
        assert judge(b"Transfer-Encoding: " + value, line=b"POST / HTTP/1.0") == -400


def test_both_framings_are_refused_in_either_order():
    for coding in (b"chunked", b"gzip, chunked", b"identity", b""):
        for length in (b"0", b"5"):
            lines = [b"Transfer-Encoding: " + coding, b"Content-Length: " + length]
            assert judge(*lines) == -400
            assert judge(*reversed(lines)) == -400


@pytest.mark.parametrize(
    "line",
    [
        b"Transfer-Encoding : chunked",
        b"Transfer-Encoding\t: chunked",
        b" Transfer-Encoding: chunked",
        b"Transfer-Encoding: \x0bchunked",
        b"Transfer-Encoding: chunked\x00",
        b"Content-Length : 5",
        b"Content-Length\x00: 5",
        b"\x00Content-Length: 5",
        b"Content-Length: 5\x0c",
        b"A: b\nContent-Length: 5",
        b"A: b\rContent-Length: 5",
        b"A: b\r\n Content-Length: 5",
    ],
)
def test_framing_cannot_be_hidden(line):
    assert judge(line) == -400


# ---- Connection


@pytest.mark.parametrize(
    ("version", "values", "keeps"),
    [
        (b"1.1", [], True),
        (b"1.0", [], False),
        (b"1.1", [b"close"], False),
        (b"1.0", [b"close"], False),
        (b"1.1", [b"keep-alive"], True),
        (b"1.0", [b"keep-alive"], True),
        (b"1.0", [b"Keep-Alive"], True),
        (b"1.1", [b"CLOSE"], False),
        (b"1.1", [b"keep-alive, close"], False),
        (b"1.0", [b"close,keep-alive"], False),
        (b"1.0", [b"close", b"keep-alive"], False),
        (b"1.0", [b"keep-alive", b"close"], False),
        (b"1.0", [b"x", b" , keep-alive , "], True),
        (b"1.1", [b"upgrade\t,\tclose"], False),
        (b"1.1", [b"closed"], True),
        (b"1.1", [b"clos"], True),
        (b"1.1", [b"close keep-alive"], True),
        (b"1.1", [b'"close"'], True),
        (b"1.0", [b""], False),
        (b"1.1", [b",,,"], True),
    ],
)
def test_connection_says_whether_to_stay(version, values, keeps):
    lines = [b"Connection: " + value for value in values]
    assert bool(flags(*lines, line=b"GET / HTTP/" + version) & HeadFlag.HEAD_KEEP_ALIVE) == keeps


def test_connect_has_no_body_and_ends_the_connection():
    line = b"CONNECT b:1 HTTP/1.1"
    assert not flags(line=line) & HeadFlag.HEAD_KEEP_ALIVE
    assert not flags(b"Connection: keep-alive", line=line) & HeadFlag.HEAD_KEEP_ALIVE
    for framing in (b"Content-Length: 0", b"Content-Length: 5", b"Transfer-Encoding: chunked"):
        assert judge(framing, line=line) == -400


# ---- Expect


@pytest.mark.parametrize("value", [b"100-continue", b"100-Continue", b"100-continue, 100-continue", b",100-CONTINUE"])
def test_an_expectation_of_100_is_told_from_1_1_only(value):
    assert flags(b"Expect: " + value) & HeadFlag.HEAD_EXPECT_CONTINUE
    assert not flags(b"Expect: " + value, line=b"POST / HTTP/1.0") & HeadFlag.HEAD_EXPECT_CONTINUE


@pytest.mark.parametrize(
    "values", [[b"200-ok"], [b"100-continue, x"], [b"100-continue", b"x"], [b"x"], [b"100-continue;a"], [b"\x80"]]
)
def test_another_expectation_fails(values):
    lines = [b"Expect: " + value for value in values]
    assert judge(*lines) == -417
    # A head that is malformed as well is told so.
    assert judge(*lines, b"Content-Length: x") == -400
    assert judge(*lines, b"Transfer-Encoding: gzip, chunked") == -501
    assert judge(*lines, host=b"") == -400


def test_no_expectation_is_none():
    assert not flags(b"Expect:") & HeadFlag.HEAD_EXPECT_CONTINUE


# ---- What the engine looks at

KNOWN = {
    b"Host": KnownHeader.HEADER_HOST,
    b"User-Agent": KnownHeader.HEADER_USER_AGENT,
    b"Referer": KnownHeader.HEADER_REFERER,
    b"Content-Type": KnownHeader.HEADER_CONTENT_TYPE,
    b"If-Match": KnownHeader.HEADER_IF_MATCH,
    b"If-None-Match": KnownHeader.HEADER_IF_NONE_MATCH,
    b"If-Modified-Since": KnownHeader.HEADER_IF_MODIFIED_SINCE,
    b"If-Unmodified-Since": KnownHeader.HEADER_IF_UNMODIFIED_SINCE,
    b"Range": KnownHeader.HEADER_RANGE,
    b"If-Range": KnownHeader.HEADER_IF_RANGE,
    b"Accept-Encoding": KnownHeader.HEADER_ACCEPT_ENCODING,
    b"Authorization": KnownHeader.HEADER_AUTHORIZATION,
    b"Cookie": KnownHeader.HEADER_COOKIE,
}
REPEATABLE = {b"User-Agent", b"Referer", b"If-Match", b"If-None-Match", b"Accept-Encoding", b"Cookie"}
FLAGGED = {
    b"If-Match": HeadFlag.HEAD_CONDITIONAL,
    b"If-None-Match": HeadFlag.HEAD_CONDITIONAL,
    b"If-Modified-Since": HeadFlag.HEAD_CONDITIONAL,
    b"If-Unmodified-Since": HeadFlag.HEAD_CONDITIONAL,
    b"Range": HeadFlag.HEAD_RANGE,
    b"Authorization": HeadFlag.HEAD_CREDENTIALS,
    b"Cookie": HeadFlag.HEAD_CREDENTIALS,
    b"Upgrade": HeadFlag.HEAD_UPGRADE,
}
ALWAYS = HeadFlag.HEAD_KEEP_ALIVE


def test_the_table_of_known_headers_is_whole():
    assert len(KNOWN) == KnownHeader.HEADER_KNOWN_COUNT


@pytest.mark.parametrize("name", sorted(set(KNOWN) - {b"Host"}))
def test_a_known_header_is_found_in_any_case_and_place(name):
    for spelling in (name, name.lower(), name.upper(), name.swapcase()):
        for lines in ([spelling + b":v"], [b"A: b", spelling + b": \tv "], [spelling + b": v ", b"A: b"]):
            head = judge(*lines)
            assert head["known"] == {KnownHeader.HEADER_HOST: b"a", KNOWN[name]: b"v"}
            assert head["repeated"] == set()


@pytest.mark.parametrize("name", [*KNOWN, b"Content-Length", b"Transfer-Encoding", b"Connection", b"Expect"])
def test_similar_names_are_other_headers(name):
    for other in (name + b"x", b"x" + name, name[:-1], name.replace(b"-", b"_") + b"_", name[:-1] + b"~"):
        head = judge(other + b": 1")
        assert list(head["known"]) == [KnownHeader.HEADER_HOST]
        assert head["flags"] == ALWAYS


@pytest.mark.parametrize("name", sorted(set(KNOWN) - {b"Host"}))
@pytest.mark.parametrize("second", [b"", b"v", b"w"])
def test_a_header_of_one_meaning_is_refused_twice(name, second):
    for first in (b"v", b""):
        head = judge(name + b": " + first, b"A: b", name.lower() + b": " + second)
        if name in REPEATABLE:
            assert head["known"][KNOWN[name]] == first
            assert head["repeated"] == {KNOWN[name]}
        else:
            assert head == -400


@pytest.mark.parametrize("name", [*KNOWN, b"Upgrade", b"X"])
def test_flags_tell_what_is_present(name):
    if name != b"Host":
        assert flags(name + b": v") == ALWAYS | FLAGGED.get(name, HeadFlag(0))
        assert flags(name + b":") == ALWAYS | FLAGGED.get(name, HeadFlag(0))


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"Cache-Control: no-cache", True),
        (b"Cache-Control: No-Store", True),
        (b"Cache-Control: max-age=0, no-cache", True),
        (b"Cache-Control: max-age=0,no-store,x", True),
        (b'Cache-Control: no-cache="a"', True),
        (b"Pragma: no-cache", True),
        (b"pragma: x, NO-CACHE", True),
        (b"Cache-Control: max-age=0", False),
        (b"Cache-Control: no-cached", False),
        (b"Cache-Control: no-transform", False),
        (b"Cache-Control: x-no-cache", False),
        (b"Cache-Control:", False),
        (b"X-Cache-Control: no-cache", False),
    ],
)
def test_a_wish_for_no_cache_is_flagged(line, expected):
    assert bool(flags(line) & HeadFlag.HEAD_NO_CACHE) == expected
    assert bool(flags(b"Cache-Control: x", line) & HeadFlag.HEAD_NO_CACHE) == expected


# ---- Limits


def test_the_size_of_a_head_is_limited_to_the_byte():
    head = b"GET / HTTP/1.1\r\nHost: a\r\nA: b\r\n\r\n"
    assert verdict(head + b"more", head_size_bytes=len(head))["head_length"] == len(head)
    for size in range(len(b"GET / HTTP/1.1\r\n"), len(head)):
        assert verdict(head, head_size_bytes=size) == -431
        assert verdict(head[:size], head_size_bytes=size) == -431
        assert verdict(head[: size - 1], head_size_bytes=size) in (0, -414)


def test_a_head_without_end_is_refused_once_it_is_too_long():
    start = b"GET / HTTP/1.1\r\nHost: a\r\n"
    for endless in (b"A: b\r\n", b"x", b"A:", b"\r", b"\x00", b"\xff "):
        data = (start + endless * 1000)[:1000]
        assert verdict(data, head_size_bytes=1001) == 0
        assert verdict(data, head_size_bytes=1000) == -431
        assert verdict(data, head_size_bytes=999) == -431


def test_the_number_of_lines_is_limited():
    lines = [b"A: b"] * 9
    assert judge(*lines, header_count=10)["header_count"] == 10
    assert judge(*lines, header_count=9) == -431
    assert judge(header_count=0) == -431
    assert judge(host=b"", line=b"GET / HTTP/1.0", header_count=0)["header_count"] == 0


def test_the_number_of_lines_never_outgrows_its_field():
    data = b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a:\r\n" * 65534
    unlimited = {"head_size_bytes": 2**32 - 1, "header_count": 2**32 - 1}
    assert parse_testing.parse_request(data + b"\r\n", **unlimited)["header_count"] == 65535
    assert parse_testing.parse_request(data + b"a:\r\n\r\n", **unlimited) == -431
