"""Several ranges in one request: parts of multipart/byteranges, of files from the cache, of large files and of cached
answers, exact to the byte (RFC 9110 sections 14.2 and 15.3.7.2); the email package takes the parts apart."""

import email
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import batchbridge as bb
from support.serving import make_server, running
from support.site import pattern
from support.wire import Client, Reply, head

SMALL, MIDDLE, LARGE = pattern(20_000), pattern(700_000), pattern(5_000_000)
CONTENTS = {"/small.txt": SMALL, "/middle.bin": MIDDLE, "/large.bin": LARGE, "/kept": SMALL}
TARGETS = list(CONTENTS)
EARLIER, MODIFIED, LATER = (f"Sun, 06 Nov 1994 08:49:{second} GMT" for second in (36, 37, 38))


@pytest.fixture(scope="module")
def client(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    root = tmp_path_factory.mktemp("parts")
    for name in ("small.txt", "middle.bin", "large.bin"):
        (root / name).write_bytes(CONTENTS["/" + name])
        os.utime(root / name, (1.6e9, 1.6e9))
    server = make_server(engine, root=str(root), ranges_max=8)
    server.batch("/kept")(lambda batch: [kept()] * len(batch))
    odd = {"ETag": "no tag", "Last-Modified": "yesterday"}
    server.batch("/bare")(lambda batch: [bb.Response("bare", cache_ttl_s=3600)] * len(batch))
    server.batch("/odd")(lambda batch: [bb.Response("bare", headers=odd, cache_ttl_s=3600)] * len(batch))
    with running(server), Client(server.url) as client:
        client.ask("GET", "/kept")
        yield client


def kept() -> bb.Response:
    headers = {"ETag": '"k1"', "Last-Modified": MODIFIED, "X-A": "b", "Content-Encoding": "br"}
    return bb.Response(SMALL, content_type="text/x-kept", headers=headers, cache_ttl_s=3600)


def ask(client: Client, target: str, ranges: str, *headers: tuple[str, str], method: str = "GET") -> Reply:
    return client.ask(method, target, ("Range", f"bytes={ranges}"), *headers)


def parts_of(reply: Reply) -> list[tuple[str, str, bytes]]:
    """Content-Type, Content-Range and bytes of each part."""
    assert reply.status == 206 and "content-range" not in reply
    assert reply["content-length"] == str(len(reply.body))
    kind = reply["content-type"]
    assert re.fullmatch(r"multipart/byteranges; boundary=[0-9a-f]{16}", kind)
    boundary = kind.partition("=")[2].encode()
    assert reply.body.startswith(b"--" + boundary + b"\r\n") and reply.body.endswith(b"\r\n--" + boundary + b"--\r\n")
    message = email.message_from_bytes(b"Content-Type: " + kind.encode() + b"\r\n\r\n" + reply.body)
    assert message.is_multipart() and not message.defects
    found = []
    rest = reply.body
    for part in message.get_payload():
        assert isinstance(part, email.message.Message)
        # The email package may change line ends, so the bytes are taken from between the boundaries.
        _, _, rest = rest.partition(b"\r\n\r\n")
        first, last = map(int, re.findall(r"\d+", part["Content-Range"])[:2])
        found.append((part["Content-Type"], part["Content-Range"], rest[: last - first + 1]))
        rest = rest[last - first + 1 :]
        assert rest.startswith(b"\r\n--" + boundary)
    assert rest == b"\r\n--" + boundary + b"--\r\n"
    return found


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    "ranges",
    [
        [(0, 0), (1000, 1000)],
        [(5000, 5999), (0, 99), (19_000, 19_001)],
        [(number * 1000, number * 1000 + number) for number in range(8)],
        [(0, 8000), (9000, 19_999)],
    ],
)
def test_parts_are_exact_and_in_the_order_asked_for(client: Client, target: str, ranges: list[tuple[int, int]]) -> None:
    content = CONTENTS[target]
    for _ in range(2):
        reply = ask(client, target, ",".join(f"{first}-{last}" for first, last in ranges))
        found = parts_of(reply)
        assert [part[1] for part in found] == [f"bytes {first}-{last}/{len(content)}" for first, last in ranges]
        assert [part[2] for part in found] == [content[first : last + 1] for first, last in ranges]
    assert client.ask("GET", "/small.txt").body == SMALL


@pytest.mark.parametrize("target", ["/middle.bin", "/large.bin"])
def test_large_parts(client: Client, target: str) -> None:
    content = CONTENTS[target]
    half = len(content) // 2
    reply = ask(client, target, f"{half + 1000}-,0-{half}")
    assert [part[2] for part in parts_of(reply)] == [content[half + 1000 :], content[: half + 1]]


def test_header_lines_say_what_they_are_about(client: Client) -> None:
    plain = client.ask("GET", "/small.txt")
    reply = ask(client, "/small.txt", "0-0,1000-1000")
    assert {part[0] for part in parts_of(reply)} == {plain["content-type"]}
    for name in ("etag", "last-modified", "accept-ranges"):
        assert reply[name] == plain[name]
    reply = ask(client, "/kept", "0-0,1000-1000")
    assert {part[0] for part in parts_of(reply)} == {"text/x-kept"}
    # The coding is the parts', or a client would decode the boundaries.
    assert "content-encoding" not in reply and reply.body.count(b"\r\nContent-Encoding: br\r\n") == 2
    assert reply["x-a"] == "b" and reply["etag"] == '"k1"' and "age" in reply


@pytest.mark.parametrize("target", TARGETS)
def test_what_comes_to_one_range_is_answered_as_one(client: Client, target: str) -> None:
    content = CONTENTS[target]
    for ranges, first, last in (
        ("0-9,5-20", 0, 20),
        ("0-9,50-60", 0, 60),
        (f"0-9,{len(content)}-", 0, 9),
        ("-10,-5,-10", len(content) - 10, len(content) - 1),
    ):
        reply = ask(client, target, ranges)
        assert reply.status == 206 and reply["content-range"] == f"bytes {first}-{last}/{len(content)}"
        assert reply.body == content[first : last + 1]


@pytest.mark.parametrize("target", TARGETS)
def test_too_many_ranges_and_malformed_ones_give_the_whole(client: Client, target: str) -> None:
    for ranges in (",".join(f"{number * 1000}-{number * 1000}" for number in range(9)), "0-0,x", "0-0,1000-999"):
        reply = ask(client, target, ranges)
        assert reply.status == 200 and reply.body == CONTENTS[target]


@pytest.mark.parametrize("target", TARGETS)
def test_none_can_be_satisfied(client: Client, target: str) -> None:
    size_bytes = len(CONTENTS[target])
    reply = ask(client, target, f"{size_bytes}-,-0,{size_bytes + 5}-{size_bytes + 9}")
    assert reply.status == 416 and reply["content-range"] == f"bytes */{size_bytes}"


@pytest.mark.parametrize("target", TARGETS)
def test_conditions_go_before_ranges(client: Client, target: str) -> None:
    etag = client.ask("GET", target)["etag"]
    several = "0-0,1000-1000"
    assert len(parts_of(ask(client, target, several, ("If-Range", etag)))) == 2
    whole = ask(client, target, several, ("If-Range", '"other"'))
    assert whole.status == 200 and whole.body == CONTENTS[target]
    assert ask(client, target, several, ("If-None-Match", etag)).status == 304
    assert ask(client, target, several, ("If-Match", '"other"')).status == 412
    get, asked = client.ask("HEAD", target), ask(client, target, several, method="HEAD")
    assert asked.status == 200 and asked.but_date() == get.but_date()


def test_a_cached_answers_own_validators_are_compared(client: Client) -> None:
    reply = client.ask("GET", "/kept", ("If-None-Match", 'W/"k1"'))
    assert reply.status == 304 and reply.body == b"" and reply["etag"] == '"k1"'
    assert client.ask("GET", "/kept", ("If-None-Match", '"k2"')).body == SMALL
    for date, status in ((MODIFIED, 304), (LATER, 304), (EARLIER, 200), ("yesterday", 200)):
        assert client.ask("GET", "/kept", ("If-Modified-Since", date)).status == status
    for date, status in ((MODIFIED, 206), (LATER, 200), (EARLIER, 200)):
        assert ask(client, "/kept", "0-9", ("If-Range", date)).status == status


def test_an_answer_without_validators_is_compared_with_none(client: Client) -> None:
    for target in ("/bare", "/odd"):
        assert client.ask("GET", target).status == client.ask("GET", target).status == 200
        for condition in (("If-None-Match", '"k1"'), ("If-Modified-Since", LATER)):
            reply = client.ask("GET", target, condition)
            assert reply.status == 200 and "age" in reply
        assert client.ask("GET", target, ("If-None-Match", "*")).status == 304
        assert ask(client, target, "0-1", ("If-Range", LATER)).status == 200
        assert ask(client, target, "0-1").body == b"ba"


def test_pipelined_with_others(client: Client) -> None:
    several = ("Range", "bytes=0-0,9000-9999,15000-19999")
    for target in TARGETS:
        client.send(head("GET", target, several) + head("GET", target, several) + head("GET", "/small.txt"))
        first, second, third = client.replies("GET", "GET", "GET")
        assert [part[2] for part in parts_of(first)] == [part[2] for part in parts_of(second)]
        assert third.body == SMALL


def test_to_a_slow_reader(engine: str, tmp_path: Path) -> None:
    (tmp_path / "large.bin").write_bytes(LARGE)
    with running(make_server(engine, root=str(tmp_path))) as server:
        with Client(server.url, receive_buffer_bytes=65_536) as client:
            client.send(head("GET", "/large.bin", ("Range", "bytes=1000000-2999999,0-99,4000000-")))
            reply = client.reply()
        assert [part[2] for part in parts_of(reply)] == [LARGE[1_000_000:3_000_000], LARGE[:100], LARGE[4_000_000:]]


def test_a_file_that_shrinks_meanwhile_breaks_off(engine: str, tmp_path: Path) -> None:
    (tmp_path / "shrinking.bin").write_bytes(b"z" * (24 << 20))
    with running(make_server(engine, root=str(tmp_path)), balanced=False) as server:
        with Client(server.url, receive_buffer_bytes=4096) as client:
            client.send(head("GET", "/shrinking.bin", ("Range", "bytes=0-9999999,12000000-20000000")))
            client.rest = client.socket.recv(1000)
            os.truncate(tmp_path / "shrinking.bin", 1 << 20)
            got = client.everything()
            assert got.startswith(b"HTTP/1.1 206") and len(got) < 18_000_000
        with Client(server.url) as client:
            assert client.ask("GET", "/nothing").status == 404
