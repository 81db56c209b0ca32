"""A request line is accepted in exactly the forms of RFC 9112 section 3, and refused as soon as a byte is wrong.

Each row is judged whole, with the input before an unmapped page and after one, and byte by byte; the verdict is the
same.
"""

import pytest

from batchbridge.cython_ext import parse, parse_testing

REST = b"Host: example.com\r\n\r\n"


def verdict(data, **limits):
    whole = parse_testing.parse_request(data, **limits)
    assert parse_testing.parse_request(data, at_start=True, **limits) == whole
    assert parse_testing.parse_request(data, cuts=range(len(data)), **limits) == whole
    return whole


def accepted(line, rest=REST, **limits):
    head = verdict(line + b"\r\n" + rest, **limits)
    assert isinstance(head, dict), (line, head)
    return head


def refusal(line, rest=REST, **limits):
    status = verdict(line + b"\r\n" + rest, **limits)
    assert isinstance(status, int), (line, status)
    return status


@pytest.mark.parametrize("name", ["GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE"])
def test_registered_methods_are_recognised(name):
    head = accepted(f"{name} / HTTP/1.1".encode())
    assert head["method"] == parse.Method[f"METHOD_{name}"]
    assert head["method_name"] == name.encode()


def test_methods_with_targets_of_their_own_are_recognised():
    assert accepted(b"OPTIONS * HTTP/1.1")["method"] == parse.Method.METHOD_OPTIONS
    assert accepted(b"CONNECT a:1 HTTP/1.1")["method"] == parse.Method.METHOD_CONNECT


@pytest.mark.parametrize("name", [b"get", b"GETS", b"GE", b"P", b"PROPFIND", b"!#$%&'*+-.^_`|~09", b"M" * 32])
def test_another_token_is_another_method(name):
    head = accepted(name + b" / HTTP/1.1")
    assert head["method"] == parse.Method.METHOD_OTHER
    assert head["method_name"] == name


def test_a_method_longer_than_any_is_not_implemented():
    assert refusal(b"M" * 33 + b" / HTTP/1.1") == -501
    assert verdict(b"M" * 33) == -501


def test_a_method_is_a_token():
    for byte in map(bytes, zip(range(256), strict=True)):
        if not byte.isalnum() and byte not in b" !#$%&'*+-.^_`|~":
            assert refusal(b"GE" + byte + b"T / HTTP/1.1") == -400, byte


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b" ",
        b"GET",
        b"GET ",
        b"GET /",
        b"GET / ",
        b"GET  / HTTP/1.1",
        b"GET /  HTTP/1.1",
        b" GET / HTTP/1.1",
        b"GET\t/ HTTP/1.1",
        b"GET /\tHTTP/1.1",
        b"GET / HTTP/1.1 ",
        b"GET / HTTP/1.1\t",
        b"GET HTTP/1.1",
        b"GET  HTTP/1.1",
        b"GET / a HTTP/1.1",
        b"GET /a b HTTP/1.1",
    ],
)
def test_exactly_one_space_stands_between_the_parts(line):
    assert refusal(line, rest=b"X: y\r\n" + REST) == -400


@pytest.mark.parametrize(("version", "minor"), [(b"1.0", 0), (b"1.1", 1), (b"1.2", 1), (b"1.9", 1)])
def test_minor_versions_above_one_count_as_one(version, minor):
    assert accepted(b"GET / HTTP/" + version)["version_minor"] == minor


@pytest.mark.parametrize("version", [b"0.9", b"2.0", b"3.1", b"9.9"])
def test_other_major_versions_are_not_supported(version):
    assert refusal(b"GET / HTTP/" + version) == -505


def test_the_preface_of_http_2_is_not_supported():
    assert verdict(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n") == -505


@pytest.mark.parametrize(
    "version",
    [
        b"HTTP/1",
        b"HTTP/1.",
        b"HTTP/.1",
        b"HTTP/1.10",
        b"HTTP/11.1",
        b"HTTP/1,1",
        b"HTTP/1.x",
        b"HTTP/x.1",
        b"HTTP 1.1",
        b"HTTPS/1.1",
        b"http/1.1",
        b"Http/1.1",
        b"HTP/1.1",
        b"HTTP/-1.1",
        b"HTTP/1.1\x00",
        b"ICY/1.1",
    ],
)
def test_a_malformed_version_is_refused(version):
    assert refusal(b"GET / " + version) == -400


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"/", b"/", None),
        (b"/?", b"/", b""),
        (b"/a/b", b"/a/b", None),
        (b"/a?b=c", b"/a", b"b=c"),
        (b"/a?b?c/..%", b"/a", b"b?c/..%"),
        (b"/%41", b"/%41", None),
        (b'/"<>\\^`{|}', b'/"<>\\^`{|}', None),
        (b"/http://b/", b"/http://b/", None),
        (b"//a", b"//a", None),
        (b"/*", b"/*", None),
    ],
)
def test_origin_form(target, path, query):
    head = accepted(b"GET " + target + b" HTTP/1.1")
    assert head["target_form"] == parse.TargetForm.TARGET_ORIGIN
    assert (head["target"], head["path"], head["query"]) == (target, path, query)
    assert head["authority"] == b"example.com"


@pytest.mark.parametrize(
    ("target", "authority", "path", "query"),
    [
        (b"http://a/b?c", b"a", b"/b", b"c"),
        (b"http://a", b"a", b"/", None),
        (b"https://a?c", b"a", b"/", b"c"),
        (b"https://a/", b"a", b"/", None),
        (b"HtTpS://A.b:80/", b"A.b:80", b"/", None),
        (b"HTTP://[::1]:8080/x", b"[::1]:8080", b"/x", None),
        (b"http://a:/", b"a:", b"/", None),
    ],
)
def test_absolute_form_says_the_authority(target, authority, path, query):
    head = accepted(b"GET " + target + b" HTTP/1.1")
    assert head["target_form"] == parse.TargetForm.TARGET_ABSOLUTE
    assert (head["target"], head["path"], head["query"]) == (target, path, query)
    assert head["authority"] == authority
    assert head["known"][parse.KnownHeader.HEADER_HOST] == b"example.com"


@pytest.mark.parametrize(
    "target",
    [
        b"http://",
        b"http:///a",
        b"http://?a",
        b"http:/a",
        b"http:a",
        b"https://",
        b"http://user@a/",
        b"http://user:secret@a/",
        b"http://@a/",
        b"http://a:b/",
        b"http://a:65536/",
        b"http://:80/",
        b"http://a b/",
        b"http://[::1/",
        b"http://[::1]x/",
        b"http://a\\b/",
        b"ftp://a/",
        b"ws://a/",
        b"urn:a:b",
        b"a",
        b"a/b",
        b"example.com:80",
        b"?a",
        b"%2F",
        b"*",
        b"**",
    ],
)
def test_no_other_target_is_accepted(target):
    assert refusal(b"GET " + target + b" HTTP/1.1") == -400


def test_asterisk_form_is_for_options_alone():
    head = accepted(b"OPTIONS * HTTP/1.1")
    assert head["target_form"] == parse.TargetForm.TARGET_ASTERISK
    assert (head["path"], head["query"], head["authority"]) == (b"*", None, b"example.com")
    for line in (b"GET *", b"HEAD *", b"POST *", b"options *", b"OPTIONS *a", b"OPTIONS **", b"OPTIONS *?a"):
        assert refusal(line + b" HTTP/1.1") == -400
    assert accepted(b"OPTIONS / HTTP/1.1")["target_form"] == parse.TargetForm.TARGET_ORIGIN
    assert accepted(b"OPTIONS http://a HTTP/1.1")["target_form"] == parse.TargetForm.TARGET_ABSOLUTE


@pytest.mark.parametrize("target", [b"a:1", b"example.com:443", b"[2001:db8::1]:65535", b"127.0.0.1:80"])
def test_authority_form_is_for_connect(target):
    head = accepted(b"CONNECT " + target + b" HTTP/1.1")
    assert head["target_form"] == parse.TargetForm.TARGET_AUTHORITY
    assert (head["authority"], head["path"], head["query"]) == (target, None, None)


@pytest.mark.parametrize(
    "target",
    [b"/", b"*", b"http://a/", b"http://a:1", b"a", b"a:", b"a:0", b":1", b"a:65536", b"a:000080", b"u@a:1", b"a:1/"],
)
def test_connect_takes_nothing_but_host_and_port(target):
    assert refusal(b"CONNECT " + target + b" HTTP/1.1") == -400


@pytest.mark.parametrize("place", [b"/%b", b"/a%bb", b"/a?%b", b"http://a%b/", b"%b"])
def test_a_target_is_visible_ascii_without_fragment(place):
    for byte in (*range(0x21), ord("#"), *range(0x7F, 0x100)):
        assert refusal(b"GET " + place % bytes([byte]) + b" HTTP/1.1") == -400, byte


@pytest.mark.parametrize(
    ("target", "escaped", "dots"),
    [
        (b"/", False, False),
        (b"/a/b/", False, False),
        (b"/a%20b", True, False),
        (b"/a?%20", False, False),
        (b"/.", False, True),
        (b"/..", False, True),
        (b"/./a", False, True),
        (b"/a/../b", False, True),
        (b"/a/.", False, True),
        (b"/a/..?x", False, True),
        (b"/a/.?x", False, True),
        (b"//", False, True),
        (b"/a//b", False, True),
        (b"/...", False, False),
        (b"/.a", False, False),
        (b"/..a", False, False),
        (b"/a.", False, False),
        (b"/a..", False, False),
        (b"/.well-known/x", False, False),
        (b"/a?/../", False, False),
        (b"/%2e%2e/", True, False),
        (b"/%41/..", True, True),
        (b"http://a/../b", False, True),
        (b"http://a/%41", True, False),
        (b"http://a?/../%41", False, False),
    ],
)
def test_what_is_special_about_a_path_is_flagged(target, escaped, dots):
    flags = accepted(b"GET " + target + b" HTTP/1.1")["flags"]
    assert bool(flags & parse.HeadFlag.HEAD_ESCAPED) == escaped
    assert bool(flags & parse.HeadFlag.HEAD_DOTS) == dots


def test_a_few_empty_lines_may_come_first():
    for lines in range(5):
        head = verdict(b"\r\n" * lines + b"GET / HTTP/1.1\r\n" + REST)
        assert head["head_length"] == 2 * lines + 16 + len(REST)
        assert head["target"] == b"/"
        assert verdict(b"\r\n" * lines) == 0
    assert refusal(b"\r\n" * 5 + b"GET / HTTP/1.1") == -400
    assert verdict(b"\r\n" * 4 + b"\r") == -400
    for start in (b"\n", b"\r", b"\r\n\n", b"\r\r\n", b"\n\r", b" \r\n"):
        assert refusal(start + b"GET / HTTP/1.1") == -400


@pytest.mark.parametrize(
    "line", [b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r", b"GET / HTTP/1.1\r\r\n", b"GET / HTTP/1.1\n\r", b"GET /\n"]
)
def test_the_line_ends_with_carriage_return_and_line_feed(line):
    assert verdict(line + REST) == -400


@pytest.mark.parametrize(
    ("garbage", "judged_at"),
    [
        (bytes.fromhex("160301"), 1),  # TLS ClientHello
        (bytes.fromhex("80"), 1),  # SSL 2
        (b"\x00", 1),
        (b"\xff", 1),
        (b"\x05\x01\x00", 1),  # SOCKS 5
        (b"(", 1),
        (b"SSH-2.0-OpenSSH_9.6\r\n", 20),
        (b"GET /\r\n", 6),  # HTTP/0.9
        (b"GET /\xc3", 6),
        (b"GET / HTTP/2", None),  # nothing is wrong yet that a byte to come could not make worse
        (b"GET / XTTP", 7),
        (b"GET / HTTP/1.1\n", 15),
        (b"EHLO mail.example.com\r\n", 22),
    ],
)
def test_garbage_is_refused_at_its_first_wrong_byte(garbage, judged_at):
    for length in range(len(garbage) + 1):
        expected = -400 if judged_at and length >= judged_at else 0
        assert parse_testing.parse_request(garbage[:length]) == expected, length
        assert parse_testing.parse_request(garbage[:length], cuts=range(length)) == expected, length


def test_a_target_longer_than_its_limit_is_refused_as_soon_as_it_is():
    assert accepted(b"GET /23456789 HTTP/1.1", target_size_bytes=9)["target"] == b"/23456789"
    assert refusal(b"GET /234567890 HTTP/1.1", target_size_bytes=9) == -414
    assert verdict(b"GET /234567890", target_size_bytes=9) == -414
    assert verdict(b"GET /23456789", target_size_bytes=9) == 0
    assert verdict(b"GET /234567890#", target_size_bytes=9) == -414
    assert verdict(b"GET /23456789#", target_size_bytes=9) == -400
    assert verdict(b"GET /2345678#", target_size_bytes=9) == -400
    assert verdict(b"GET /", target_size_bytes=0) == -414
    assert accepted(b"GET /1 HTTP/1.1", target_size_bytes=2**32 - 1)["target"] == b"/1"


def test_a_request_line_longer_than_the_head_may_be_is_too_long():
    line = b"GET /23456789 HTTP/1.1\r\n"
    for size in range(len(line)):
        assert verdict(line + REST, head_size_bytes=size) == -414
        assert verdict(line[:size], head_size_bytes=size) == -414
    assert verdict(line + REST, head_size_bytes=len(line)) == -431
    assert verdict(b"", head_size_bytes=0) == -414
