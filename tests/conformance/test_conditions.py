"""Conditional requests and ranges, over the wire, of cached files and of those too large to be cached (RFC 9110
sections 13 and 14); the rules themselves are tested without a server in tests/unit/test_conditional.py."""

import os
from email.utils import formatdate, parsedate_to_datetime

import pytest

from support.site import BIG_SIZE_BYTES, FILES, Site
from support.wire import Reply

LONG_AGO = "Sun, 06 Nov 1994 08:49:37 GMT"
FAR_AHEAD = "Fri, 31 Dec 2099 23:59:59 GMT"


@pytest.fixture(params=["a.txt", "big.bin"])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def plain(site: Site, name: str) -> Reply:
    """The whole, unconditionally, of a file that was last changed a while ago."""
    os.utime(site.root / name, (1.6e9, 1.6e9))
    return site.ask("GET", f"/{name}")


def test_validators_are_there_and_stay(site: Site, name: str, plain: Reply) -> None:
    assert plain["etag"].startswith('"') and plain["etag"].endswith('"')
    assert plain["accept-ranges"] == "bytes"
    again = site.ask("GET", f"/{name}")
    assert (again["etag"], again["last-modified"]) == (plain["etag"], plain["last-modified"])


@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_not_modified(site: Site, name: str, plain: Reply, method: str) -> None:
    etag, modified = plain["etag"], plain["last-modified"]
    for condition in (
        ("If-None-Match", etag),
        ("If-None-Match", f"W/{etag}"),
        ("If-None-Match", f'"other", {etag}'),
        ("If-None-Match", "*"),
        ("If-Modified-Since", modified),
        ("If-Modified-Since", formatdate(parsedate_to_datetime(modified).timestamp() + 1, usegmt=True)),
    ):
        with site.client() as client:
            reply = client.ask(method, f"/{name}", condition)
            assert reply.status == 304, condition
            # A 304 has no body, and so needs no length; one that it tells must be the whole's (RFC 9110 section 8.6).
            assert reply.body == b"" and reply.all("content-length") in ([], [plain["content-length"]])
            assert reply["etag"] == etag and "date" in reply
            assert client.ask("GET", "/one.txt").body == b"1"


def test_modified(site: Site, name: str, plain: Reply) -> None:
    for conditions in (
        [("If-None-Match", '"other"')],
        [("If-Modified-Since", LONG_AGO)],
        [("If-Modified-Since", "yesterday")],
        # If-None-Match goes before If-Modified-Since (section 13.2.2).
        [("If-None-Match", '"other"'), ("If-Modified-Since", plain["last-modified"])],
    ):
        assert site.ask("GET", f"/{name}", *conditions).status == 200, conditions


def test_preconditions(site: Site, name: str, plain: Reply) -> None:
    etag = plain["etag"]
    for condition, status in (
        (("If-Match", etag), 200),
        (("If-Match", "*"), 200),
        (("If-Match", f'"other", {etag}'), 200),
        (("If-Match", f"W/{etag}"), 412),
        (("If-Match", '"other"'), 412),
        (("If-Unmodified-Since", plain["last-modified"]), 200),
        (("If-Unmodified-Since", LONG_AGO), 412),
        (("If-Unmodified-Since", "never"), 200),
    ):
        with site.client() as client:
            for method in ("GET", "HEAD"):
                assert client.ask(method, f"/{name}", condition).status == status, condition
            assert client.ask("GET", "/one.txt").body == b"1"


def test_a_handlers_answer_has_no_conditions(site: Site) -> None:
    assert site.ask("GET", "/items/x", ("If-None-Match", "*")).status == 200
    assert site.ask("GET", "/items/x", ("Range", "bytes=0-1")).body == b"item x\n"


# --- ranges -----------------------------------------------------------------------------------------------------------

WHOLE = FILES["big.bin"]
RANGES = {
    "0-0": (0, 0),
    "0-9": (0, 9),
    "5-": (5, BIG_SIZE_BYTES - 1),
    "-1": (BIG_SIZE_BYTES - 1, BIG_SIZE_BYTES - 1),
    "-100": (BIG_SIZE_BYTES - 100, BIG_SIZE_BYTES - 1),
    "131000-131200": (131_000, 131_200),
    "0-": (0, BIG_SIZE_BYTES - 1),
    f"{BIG_SIZE_BYTES - 1}-": (BIG_SIZE_BYTES - 1, BIG_SIZE_BYTES - 1),
    "1000-99999999999": (1000, BIG_SIZE_BYTES - 1),
    "-99999999999": (0, BIG_SIZE_BYTES - 1),
    "1000000-2500000": (1_000_000, 2_500_000),
}


@pytest.mark.parametrize("spec", RANGES)
def test_a_range_of_a_large_file(site: Site, spec: str) -> None:
    first, last = RANGES[spec]
    with site.client() as client:
        reply = client.ask("GET", "/big.bin", ("Range", f"bytes={spec}"))
        assert reply.status == 206 and reply["content-range"] == f"bytes {first}-{last}/{BIG_SIZE_BYTES}"
        assert reply.body == WHOLE[first : last + 1] and "etag" in reply
        assert client.ask("GET", "/one.txt").body == b"1"


@pytest.mark.parametrize(
    ("spec", "first", "last"), [("0-2", 0, 2), ("4-", 4, 10), ("-3", 8, 10), ("-50", 0, 10), ("10-10", 10, 10)]
)
def test_a_range_of_a_cached_file(site: Site, spec: str, first: int, last: int) -> None:
    with site.client() as client:
        for _ in range(2):
            reply = client.ask("GET", "/a.txt", ("Range", f"bytes={spec}"))
            assert reply.status == 206 and reply["content-range"] == f"bytes {first}-{last}/11"
            assert reply.body == FILES["a.txt"][first : last + 1]
            assert reply["content-type"].startswith("text/plain")


@pytest.mark.parametrize("target", ["/a.txt", "/big.bin", "/data.bin"])
def test_an_unsatisfiable_range(site: Site, target: str) -> None:
    size_bytes = len(FILES[target[1:]])
    with site.client() as client:
        for spec in (f"{size_bytes}-", "99999999999-", "-0"):
            reply = client.ask("GET", target, ("Range", f"bytes={spec}"))
            assert reply.status == 416 and reply["content-range"] == f"bytes */{size_bytes}"
        assert client.ask("GET", "/one.txt").body == b"1"


@pytest.mark.parametrize("value", ["bytes=2-1", "bytes=a-b", "bytes=", "lines=0-1", "bytes 0-1", "bytes=--1", "0-1"])
def test_what_is_no_range_is_ignored(site: Site, value: str) -> None:
    assert site.ask("GET", "/a.txt", ("Range", value)).body == FILES["a.txt"]


def test_several_ranges_that_are_near_each_other_give_one(site: Site) -> None:
    reply = site.ask("GET", "/a.txt", ("Range", "bytes=0-1,4-5"))
    assert reply.status == 206 and reply["content-range"] == "bytes 0-5/11" and reply.body == FILES["a.txt"][:6]


def test_a_range_of_an_empty_file(site: Site) -> None:
    assert site.ask("GET", "/empty.txt", ("Range", "bytes=0-")).status in (200, 416)
    assert site.ask("GET", "/empty.txt", ("Range", "bytes=-5")).status in (200, 416)


def test_if_range(site: Site, name: str, plain: Reply) -> None:
    for validator, status in (
        (plain["etag"], 206),
        (f"W/{plain['etag']}", 200),
        ('"other"', 200),
        (plain["last-modified"], 206),
        (LONG_AGO, 200),
        (FAR_AHEAD, 200),
    ):
        reply = site.ask("GET", f"/{name}", ("Range", "bytes=1-3"), ("If-Range", validator))
        assert reply.status == status, validator
        assert reply.body == (plain.body[1:4] if status == 206 else plain.body)


def test_a_condition_goes_before_a_range(site: Site, name: str, plain: Reply) -> None:
    assert site.ask("GET", f"/{name}", ("Range", "bytes=0-0"), ("If-None-Match", plain["etag"])).status == 304
    assert site.ask("GET", f"/{name}", ("Range", "bytes=0-0"), ("If-Match", '"other"')).status == 412
    assert site.ask("GET", f"/{name}", ("Range", "bytes=99999999-"), ("If-None-Match", plain["etag"])).status == 304


def test_ranges_one_after_another_make_the_whole(site: Site) -> None:
    step = 300_007
    with site.client() as client:
        pieces = [
            client.ask("GET", "/big.bin", ("Range", f"bytes={at}-{at + step - 1}")).body
            for at in range(0, BIG_SIZE_BYTES, step)
        ]
    assert b"".join(pieces) == WHOLE
