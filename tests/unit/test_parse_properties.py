"""What is generated is what is parsed, cut anywhere, with anything wrong in it, in time that grows with its length."""

from hypothesis import given, settings
from hypothesis import strategies as st

from batchbridge.cython_ext import parse_testing
from batchbridge.cython_ext.parse import HeadFlag, KnownHeader, Method, TargetForm

DETERMINISTIC = settings(derandomize=True, deadline=None, max_examples=250)

TOKEN = st.text("!#$%&'*+-.^_`|~09azAZ", min_size=1, max_size=12).map(str.encode)
CONTROL_BYTES = bytes(set(range(32)) - {9} | {127})
VALUE_BYTES = st.binary(max_size=40).map(lambda text: text.translate(None, CONTROL_BYTES))
SPACE = st.text(" \t", max_size=2).map(str.encode)
HOSTS = st.sampled_from([b"a", b"example.com:8080", b"[::1]", b"127.0.0.1:", b"%41"])
METHODS = {name: getattr(Method, f"METHOD_{name.decode()}") for name in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE")}
MEANT = {b"host", b"content-length", b"transfer-encoding", b"connection", b"expect", b"cache-control", b"pragma"}


def raw_target_part(excluded):
    return st.text([chr(byte) for byte in range(33, 127) if chr(byte) not in excluded], max_size=20).map(str.encode)


@st.composite
def requests(draw):
    """A valid request, as bytes, with what is to be found in it."""
    host, path, query = draw(HOSTS), b"/" + draw(raw_target_part("#?")), draw(st.none() | raw_target_part("#"))
    form, authority, prefix = TargetForm.TARGET_ORIGIN, host, b""
    if draw(st.booleans()):
        form, authority = TargetForm.TARGET_ABSOLUTE, draw(HOSTS)
        prefix = draw(st.sampled_from([b"http://", b"https://", b"HTTP://"])) + authority
    method = draw(st.sampled_from(list(METHODS)) | TOKEN.filter(lambda name: name != b"CONNECT"))
    target = prefix + path + (b"" if query is None else b"?" + query)
    lines = draw(st.lists(st.tuples(TOKEN.filter(lambda name: name.lower() not in MEANT), VALUE_BYTES), max_size=8))
    length = draw(st.none() | st.integers(0, 2**63 - 1))
    chunked = length is None and draw(st.booleans())
    lines.append((draw(st.sampled_from([b"Host", b"host", b"HOST"])), host))
    if length is not None:
        lines.append((b"Content-Length", str(length).encode()))
    if chunked:
        lines.append((b"Transfer-Encoding", draw(st.sampled_from([b"chunked", b"CHUNKED"]))))
    lines = draw(st.permutations(lines))
    text = b"".join(name + b":" + draw(SPACE) + value + draw(SPACE) + b"\r\n" for name, value in lines)
    empty = b"\r\n" * draw(st.integers(0, 4))
    found = {
        "head_length": len(empty + method + b" " + target + b" HTTP/1.1\r\n" + text + b"\r\n"),
        "method": METHODS.get(method, Method.METHOD_OTHER),
        "method_name": method,
        "version_minor": 1,
        "target_form": form,
        "target": target,
        "path": path,
        "query": query,
        "authority": authority,
        "content_length": length or 0,
        "header_count": len(lines),
        "header_bytes": text,
        "headers": [(name, value.strip(b" \t")) for name, value in lines],
        "known": {KnownHeader.HEADER_HOST: host},
        "repeated": set(),
    }
    flags = HeadFlag.HEAD_KEEP_ALIVE
    flags |= HeadFlag.HEAD_LENGTH * (length is not None) | HeadFlag.HEAD_CHUNKED * chunked
    flags |= HeadFlag.HEAD_ESCAPED * (b"%" in path)
    flags |= HeadFlag.HEAD_DOTS * bool({b"", b".", b".."} & set(path.split(b"/")[1:-1]) or path.split(b"/")[-1] in DOTS)
    return empty + method + b" " + target + b" HTTP/1.1\r\n" + text + b"\r\n", found | {"flags": flags}


DOTS = (b".", b"..")


@DETERMINISTIC
@given(requests(), st.binary(max_size=20))
def test_what_is_generated_is_what_is_parsed(request, rest):
    data, found = request
    assert parse_testing.parse_request(data + rest) == found
    assert parse_testing.parse_request(data, at_start=True) == found


@DETERMINISTIC
@given(requests(), st.lists(st.integers(0, 400), max_size=10))
def test_a_head_cut_anywhere_is_the_same_head(request, cuts):
    data, found = request
    assert parse_testing.parse_request(data, cuts=sorted(cut for cut in cuts if cut <= len(data))) == found
    assert parse_testing.parse_request(data, cuts=range(len(data))) == found


@settings(DETERMINISTIC, max_examples=100)
@given(requests())
def test_a_part_of_a_valid_head_is_never_refused(request):
    data, _ = request
    assert [parse_testing.parse_request(data[:length]) for length in range(len(data))] == [0] * len(data)


@DETERMINISTIC
@given(requests(), st.integers(0, 400), st.integers(0, 4), st.binary(max_size=4))
def test_damaged_heads_get_the_same_verdict_at_every_cut(request, place, gone, put):
    data, _ = request
    data = data[:place] + put + data[place + gone :]
    verdict = parse_testing.parse_request(data)
    assert parse_testing.parse_request(data, cuts=range(len(data))) == verdict
    # Once there is a verdict, more bytes do not change it.
    judged = [parse_testing.parse_request(data[:length]) for length in range(len(data) + 1)]
    first = next((length for length, one in enumerate(judged) if one != 0), len(data))
    assert all(one == verdict for one in judged[first:])


@DETERMINISTIC
@given(requests(), st.integers(0, 300), st.integers(0, 60), st.integers(0, 10))
def test_limits_fall_alike_at_every_cut(request, head_size, target_size, header_count):
    data, found = request
    limits = {"head_size_bytes": head_size, "target_size_bytes": target_size, "header_count": header_count}
    verdict = parse_testing.parse_request(data, **limits)
    assert parse_testing.parse_request(data, cuts=range(len(data)), **limits) == verdict
    line = data.lstrip(b"\r\n").partition(b"\r\n")[0]
    line_end = data.index(line) + len(line) + 2
    if len(found["target"]) > target_size or line_end > head_size:
        assert verdict in ((-414, -501) if len(found["method_name"]) > 32 else (-414,))
    elif found["head_length"] > head_size or found["header_count"] > header_count:
        assert verdict == -431
    else:
        assert verdict == found


CHUNKS = st.lists(st.binary(min_size=1, max_size=40), max_size=6)
EXTENSIONS = st.sampled_from([b"", b";a", b";a=b", b';a="b;c"', b"; a = b"])
TRAILERS = st.lists(st.tuples(TOKEN, VALUE_BYTES), max_size=3)


@DETERMINISTIC
@given(CHUNKS, EXTENSIONS, TRAILERS, st.lists(st.integers(0, 300), max_size=10), st.booleans())
def test_chunked_bodies_decode_to_what_was_coded(chunks, extension, trailers, cuts, in_place):
    body = b"".join(b"%x%s\r\n%s\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    body += b"0%s\r\n" % extension + b"".join(b"%s: %s\r\n" % line for line in trailers) + b"\r\n"
    payload = b"".join(chunks)
    cuts = sorted(cut for cut in cuts if cut <= len(body))
    decoded = parse_testing.decode_chunked_body(body + b"GET", cuts=cuts, in_place=in_place, room=len(payload))
    assert decoded == (payload, len(body))


@DETERMINISTIC
@given(CHUNKS, st.integers(0, 300), st.integers(0, 3), st.binary(max_size=3), st.integers(0, 100))
def test_damaged_bodies_get_the_same_verdict_at_every_cut(chunks, place, gone, put, room):
    body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\nA: b\r\n\r\n"
    body = body[:place] + put + body[place + gone :]
    verdict = parse_testing.decode_chunked_body(body, room=room)
    assert parse_testing.decode_chunked_body(body, room=room, cuts=range(len(body))) == verdict
    assert parse_testing.decode_chunked_body(body, room=room, cuts=range(len(body)), in_place=True) == verdict


def nanoseconds_per_byte(head):
    return min(parse_testing.measure_parse(head, 3, step=1) for _ in range(7)) / len(head)


def test_a_head_that_comes_byte_by_byte_costs_linear_time():
    # Eight times the length costs eight times as much for each byte if time is quadratic, and as much if it is linear.
    shapes = (
        b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nA: %s\r\n\r\n",
        b"GET /" + b"x" * 4000 + b" HTTP/1.1\r\nHost: a\r\nA: %s\r\n\r\n",
    )
    for shape in shapes:
        short, long = shape % (b"x" * 4000), shape % (b"x" * 32000)
        assert nanoseconds_per_byte(long) < 3 * nanoseconds_per_byte(short)
    lines = b"GET / HTTP/1.1\r\nHost: a\r\n%s\r\n"
    assert nanoseconds_per_byte(lines % (b"A: b\r\n" * 4000)) < 3 * nanoseconds_per_byte(lines % (b"A: b\r\n" * 500))
