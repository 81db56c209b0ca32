"""What llhttp (httptools) and h11 both refuse is refused here, and what is accepted here means the same to them.

Meaning is what a request is framed and answered by: method, target, version, header lines, body, whether the connection
persists, and where the next request begins; so each input is followed by another request. Where the verdicts differ,
the difference is meant: `STRICTER` lists what is refused here alone, or with one of them, and `WIDER` what is accepted
here and by one of them, each with its reason.
"""

import random
import re
from dataclasses import dataclass

import h11
import httptools
import pytest
from fuzz import fuzz_parse
from hypothesis import given, settings
from hypothesis import strategies as st

from batchbridge.cython_ext import parse_testing
from batchbridge.cython_ext.parse import HeadFlag

NEXT = b"GET /next HTTP/1.1\r\nHost: next\r\n\r\n"
REFUSED = "refused"
INCOMPLETE = "incomplete"
# Refused for a reason that hides what the oracle would have said about the rest: llhttp knows a list of methods and of
# versions only.
ABSTAINS = "abstains"


@dataclass
class Request:
    method: bytes
    target: bytes
    minor: int
    headers: list[tuple[bytes, bytes]]
    # None below: this parser does not tell.
    body: bytes | None = b""
    persists: bool | None = None
    rest: bytes | None = None
    next_targets: list[bytes] | None = None


def by_us(data):
    head = parse_testing.parse_request(data)
    if not isinstance(head, dict):
        return REFUSED if head else INCOMPLETE
    rest = data[head["head_length"] :]
    request = Request(head["method_name"], head["target"], head["version_minor"], head["headers"])
    request.persists = bool(head["flags"] & HeadFlag.HEAD_KEEP_ALIVE)
    if head["flags"] & HeadFlag.HEAD_CHUNKED:
        decoded = parse_testing.decode_chunked_body(rest)
        if isinstance(decoded, int):
            return REFUSED if decoded else INCOMPLETE
        request.body, consumed = decoded
        request.rest = rest[consumed:]
    elif len(rest) < head["content_length"]:
        return INCOMPLETE
    else:
        request.body, request.rest = rest[: head["content_length"]], rest[head["content_length"] :]
    return request


def by_h11(data):
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    # It refuses the empty lines that RFC 9112 section 2.2 wants skipped.
    connection.receive_data(re.sub(rb"\A(\r\n){1,4}", b"", data))
    request = None
    try:
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                return INCOMPLETE
            if isinstance(event, h11.Request):
                minor = min(int(event.http_version[2:]), 1)
                headers = [(bytes(name), bytes(value)) for name, value in event.headers.raw_items()]
                request = Request(bytes(event.method), bytes(event.target), minor, headers)
            elif isinstance(event, h11.Data):
                request.body += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                request.rest = connection.trailing_data[0]
                return request
    except h11.RemoteProtocolError:
        return REFUSED


class Events:
    """What llhttp calls; it goes on to the next request by itself."""

    def __init__(self):
        self.targets = []
        self.first = None
        self.complete = False

    def on_message_begin(self):
        self.targets.append(b"")
        self.headers = []
        self.body = b""

    def on_url(self, part):
        self.targets[-1] += part

    def on_header(self, name, value):
        if self.first is None:
            self.headers.append((name, value.strip(b" \t")))

    def on_headers_complete(self):
        if self.first is None:
            minor = int(self.parser.get_http_version()[2:])
            self.first = Request(self.parser.get_method(), self.targets[0], minor, self.headers)
            self.first.persists = self.parser.should_keep_alive()

    def on_body(self, part):
        if not self.complete:
            self.first.body += part

    def on_message_complete(self):
        self.complete = True


def feed_llhttp(data):
    events = Events()
    events.parser = httptools.HttpRequestParser(events)
    verdict = INCOMPLETE
    try:
        events.parser.feed_data(data)
    except httptools.HttpParserUpgrade:
        # What follows the head is another protocol's to llhttp; we ignore upgrades, so there is nothing to compare.
        events.first.body = events.first.persists = None
    except httptools.HttpParserInvalidMethodError:
        verdict = ABSTAINS
    except httptools.HttpParserError as error:
        verdict = ABSTAINS if "Invalid HTTP version" in str(error) else REFUSED
    return events, verdict


def targets_by_llhttp(data):
    return feed_llhttp(data)[0].targets


def by_llhttp(data):
    events, verdict = feed_llhttp(data)
    if not events.complete:
        return verdict
    # Nothing is read after the last request of a connection.
    events.first.next_targets = events.targets[1:] or None
    return events.first


def with_small_coding(headers):
    """h11 tells this value in small letters."""
    return [(name, value.lower() if name.lower() == b"transfer-encoding" else value) for name, value in headers]


def says_both(headers):
    options = b",".join(value.lower() for name, value in headers if name.lower() == b"connection")
    return {b"close", b"keep-alive"} <= {option.strip() for option in options.split(b",")}


def compare(data):
    """Holds our verdict on these bytes against those of the oracles; returns the three."""
    ours, others = by_us(data), (by_h11(data), by_llhttp(data))
    if others == (REFUSED, REFUSED):
        assert ours in (REFUSED, INCOMPLETE), data
    if ours == INCOMPLETE:
        # To wait for more of a request that others take for whole would mix it with the next one.
        assert not any(isinstance(other, Request) and other.body is not None for other in others), data
    if not isinstance(ours, Request):
        return ours, *others
    for other in others:
        if other in (REFUSED, ABSTAINS):
            continue
        assert isinstance(other, Request), (data, other)
        assert with_small_coding(ours.headers) == with_small_coding(other.headers), data
        for field in ("method", "target", "minor", "body", "rest"):
            assert getattr(other, field) in (None, getattr(ours, field)), (data, field)
        # From 1.0, llhttp lets "keep-alive" win over "close"; RFC 9112 section 9.3 says the opposite.
        if not (ours.minor == 0 and says_both(ours.headers)):
            assert other.persists in (None, ours.persists), data
        assert other.next_targets in (None, targets_by_llhttp(ours.rest)), data
    return ours, *others


def head(*lines, line=b"POST / HTTP/1.1", host=b"Host: a\r\n", body=b""):
    return line + b"\r\n" + host + b"".join(one + b"\r\n" for one in lines) + b"\r\n" + body + NEXT


def chunked(body):
    return head(b"Transfer-Encoding: chunked", body=body)


CODED = b"5\r\nhello\r\n0\r\n\r\n"

# Refused here, though one of the oracles, or both, would go on: (why, input).
STRICTER = [
    ("an unknown version says nothing about framing", head(line=b"GET / HTTP/0.9")),
    ("an unknown version says nothing about framing", head(line=b"GET / HTTP/2.0")),
    ("a line ends with CR LF", head().replace(b"\r\n", b"\n")),
    ("a line ends with CR LF", b"POST / HTTP/1.1\nHost: a\r\n\r\n" + NEXT),
    ("a line ends with CR LF", b"POST / HTTP/1.1\r\nHost: a\n\r\n" + NEXT),
    ("a line ends with CR LF", b"POST / HTTP/1.1\r\nHost: a\r\n\n" + NEXT),
    ("a line ends with CR LF", b"\n" + head()),
    ("a few empty lines are a courtesy", b"\r\n" * 5 + head()),
    ("one space stands between the parts", head(line=b"GET  / HTTP/1.1")),
    ("one space stands between the parts", head(line=b"GET /  HTTP/1.1")),
    ("a fragment is never sent", head(line=b"GET /#a HTTP/1.1")),
    ("a target has one of four forms", head(line=b"GET a HTTP/1.1")),
    ("a target has one of four forms", head(line=b"GET * HTTP/1.1")),
    ("a target has one of four forms", head(line=b"GET ftp://a/ HTTP/1.1")),
    ("a target has one of four forms", head(line=b"GET http:///a HTTP/1.1")),
    ("a target has one of four forms", head(line=b"CONNECT / HTTP/1.1")),
    ("a target has one of four forms", head(line=b"CONNECT a HTTP/1.1")),
    ("user information disguises the host", head(line=b"GET http://u@a/ HTTP/1.1")),
    ("user information disguises the host", head(host=b"Host: u@a\r\n")),
    ("the host chooses what is cached and served", head(host=b"")),
    ("the host chooses what is cached and served", head(host=b"Host: a\r\nHost: a\r\n")),
    ("the host chooses what is cached and served", head(host=b"Host: a b\r\n")),
    ("the host chooses what is cached and served", head(host=b"Host: a/b\r\n")),
    ("the host chooses what is cached and served", head(host=b"Host: a:b\r\n")),
    ("the host chooses what is cached and served", head(host=b"Host:\r\n")),
    ("folding is obsolete and read differently", head(b"A: b", b" c")),
    ("folding is obsolete and read differently", head(b" A: b")),
    ("control bytes are read differently", head(b"A: \x01")),
    ("control bytes are read differently", head(b"A: \x7f")),
    ("one length is given once", head(b"Content-Length: 5, 5", body=b"hello")),
    ("one length is given once", head(b"Content-Length: 5", b"Content-Length: 5", body=b"hello")),
    ("a body is framed once", head(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=CODED)),
    ("a body is framed once", head(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=CODED)),
    ("1.0 has no transfer codings", head(b"Transfer-Encoding: chunked", line=b"POST / HTTP/1.0", body=CODED)),
    ("chunked is the only coding", head(b"Transfer-Encoding: gzip, chunked", body=CODED)),
    ("chunked is the only coding", head(b"Transfer-Encoding: gzip", b"Transfer-Encoding: chunked", body=CODED)),
    ("chunked is the only coding", head(b"Transfer-Encoding: ,chunked", body=CODED)),
    ("an expectation that is not met is told", head(b"Expect: x")),
    ("one meaning is given once", head(b"Authorization: x", b"Authorization: y")),
    ("CONNECT has no body", head(b"Content-Length: 5", line=b"CONNECT a:1 HTTP/1.1", body=b"hello")),
    ("CONNECT has no body", head(b"Transfer-Encoding: chunked", line=b"CONNECT a:1 HTTP/1.1", body=CODED)),
    ("a size is digits", chunked(b"5 \r\nhello\r\n0\r\n\r\n")),
    ("a line ends with CR LF", chunked(b"5\r\nhello\r\n0\r\n\n")),
    ("a line ends with CR LF", chunked(b"5;a\rb\r\nhello\r\n0\r\n\r\n")),
    ("control bytes are read differently", chunked(b"5;a\x00\r\nhello\r\n0\r\n\r\n")),
    ("folding is obsolete and read differently", chunked(b"0\r\nA: b\r\n c\r\n\r\n")),
    ("trailers do not frame", chunked(b"0\r\nContent-Length: 5\r\n\r\n")),
    ("trailers do not frame", chunked(b"0\r\nTransfer-Encoding: chunked\r\n\r\n")),
]

# Accepted here, though one of the oracles refuses: (why, input).
WIDER = [
    ("a minor version above 1 is understood as 1", head(line=b"GET / HTTP/1.2")),
    ("any token is a method", head(line=b"get / HTTP/1.1")),
    ("any token is a method", head(line=b"FOO / HTTP/1.1")),
    ("an extension is dropped unread", chunked(b"5;\r\nhello\r\n0\r\n\r\n")),
    ("an extension is dropped unread", chunked(b"5; a = b\r\nhello\r\n0\r\n\r\n")),
    ("an extension is dropped unread", chunked(b'5;a="b\r\nhello\r\n0\r\n\r\n')),
    ("an extension is dropped unread", chunked(b"5;a=\xff\r\nhello\r\n0\r\n\r\n")),
    ("leading zeros change no size", chunked(b"0" * 24 + b"5\r\nhello\r\n0\r\n\r\n")),
]

# Refused by all three.
HOSTILE = [
    head(line=b"GET / HTTP/1.1 "),
    head(line=b"GET /\xe9 HTTP/1.1"),
    head(line=b"GET / a HTTP/1.1"),
    head(line=b"GET /\x00 HTTP/1.1"),
    head(line=b"GET / HTTP/1.10"),
    head(line=b"GET / http/1.1"),
    head(line=b"GE(T / HTTP/1.1"),
    head(b"A : b"),
    head(b": b"),
    head(b"A"),
    head(b"A: \x00"),
    head(b"A: b\rc"),
    head(b"(A): b"),
    *(head(b"Content-Length: " + value, body=b"hello") for value in (b"5, 6", b"+5", b"-5", b"", b"0x5", b"5;", b"a")),
    head(b"Content-Length: 5", b"Content-Length: 6", body=b"hello"),
    *(
        head(b"Transfer-Encoding: " + value, body=CODED)
        for value in (b"chunked, x", b"gzip", b"identity", b"", b"chunked;q=1", b"xchunked", b"chunked,", b'"chunked"')
    ),
    head(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked", body=CODED),
    *(
        chunked(body)
        for body in (
            b" 5\r\nhello\r\n0\r\n\r\n",
            b"5 ;a\r\nhello\r\n0\r\n\r\n",
            b"5;a\nhello\r\n0\r\n\r\n",
            b"5\nhello\r\n0\r\n\r\n",
            b"5\rhello\r\n0\r\n\r\n",
            b"5\r\nhello\n0\r\n\r\n",
            b"5\r\nhelloxx0\r\n\r\n",
            b"0x5\r\nhello\r\n0\r\n\r\n",
            b"\r\n",
            b"g\r\n",
            b"+5\r\n",
            b"-5\r\n",
            b"0\r\nA\r\n\r\n",
            b"0\r\n A: b\r\n\r\n",
            b"0\r\nA : b\r\n\r\n",
            b"0\r\nA: \x00\r\n\r\n",
            b"0\r\nContent-Length: x\r\n\r\n",
            b"0\r\nTransfer-Encoding: x\r\n\r\n",
        )
    ),
]


@pytest.mark.parametrize(("why", "data"), STRICTER)
def test_stricter_than_an_oracle_on_purpose(why, data):
    ours, *others = compare(data)
    assert ours == REFUSED
    assert any(isinstance(other, Request) for other in others), "no difference any more"


@pytest.mark.parametrize(("why", "data"), WIDER)
def test_wider_than_an_oracle_on_purpose(why, data):
    ours, *others = compare(data)
    assert isinstance(ours, Request)
    assert {REFUSED, ABSTAINS} & set(map(str, others)), "no difference any more"


@pytest.mark.parametrize("data", HOSTILE)
def test_what_all_refuse(data):
    assert compare(data) in ((REFUSED, REFUSED, REFUSED), (REFUSED, REFUSED, ABSTAINS))


LINES = st.sampled_from(
    [
        b"GET / HTTP/1.1",
        b"GET / HTTP/1.0",
        b"POST /a?b HTTP/1.1",
        b"PUT http://a:1/b HTTP/1.1",
        b"\r\nHEAD /%41 HTTP/1.1",
        b"OPTIONS * HTTP/1.1",
        b"CONNECT a:1 HTTP/1.1",
        b"TRACE /" + b"x" * 300 + b" HTTP/1.1",
    ]
)
HEADERS = st.sampled_from(
    [
        b"Host: a",
        b"Host: [::1]:80",
        b"host:a\t",
        b"A: b",
        b"A:",
        b"X-Y: \xff\t\x80",
        b"Connection: close",
        b"Connection: keep-alive",
        b"Connection: x, Close",
        b"Connection: upgrade, keep-alive",
        b"Upgrade: x",
        b"Content-Length: 5",
        b"Content-Length: 0",
        b"Content-Length: 5, 5",
        b"content-length:\t005 ",
        b"Transfer-Encoding: chunked",
        b"transfer-encoding: CHUNKED\t",
        b"Transfer-Encoding: gzip, chunked",
        b"Transfer-Encoding: chunked, x",
        b"Expect: 100-continue",
        b"Keep-Alive: timeout=5",
    ]
)
BODIES = st.sampled_from(
    [
        b"",
        b"hello",
        CODED,
        b"5\r\nhello\r\n",
        b"0\r\n\r\n",
        b"00\r\n\r\n",
        b"0\r\nA: b\r\n\r\n",
        b"5;a=b\r\nhello\r\n0;c\r\n\r\n",
        b"1\r\na\r\n1\r\nb\r\n0\r\nA: b\r\nC: d\r\n\r\n",
        b"A\r\n0123456789\r\n0\r\n\r\n",
    ]
)


@settings(derandomize=True, deadline=None, max_examples=2500)
@given(LINES, st.lists(HEADERS, max_size=5), BODIES, st.booleans())
def test_any_mixture_of_lines(line, lines, body, with_host):
    compare(head(*lines, line=line, host=b"Host: a\r\n" if with_host else b"", body=body))


@settings(derandomize=True, deadline=None, max_examples=2500)
@given(LINES, st.lists(HEADERS, max_size=3), BODIES, st.data())
def test_any_mixture_of_lines_damaged(line, lines, body, data):
    whole = bytearray(head(*lines, line=line, body=body))
    place = data.draw(st.integers(0, len(whole) - len(NEXT)))
    gone = data.draw(st.integers(0, 2))
    whole[place : place + gone] = data.draw(st.sampled_from(fuzz_parse.WORDS) | st.binary(max_size=2))
    compare(bytes(whole))


@pytest.mark.parametrize("batch", range(5))
def test_mutations(batch):
    chance = random.Random(1000 + batch)
    for _ in range(1000):
        compare(fuzz_parse.mutate(chance) + NEXT)
