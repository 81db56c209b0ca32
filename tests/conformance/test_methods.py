"""Each method means what RFC 9110 section 9 says: GET and HEAD agree, Allow tells what a resource takes, and what it
does not take is 405, or 501 where no resource takes it."""

import pytest

from support.site import Site

FILE_METHODS = {"GET", "HEAD", "OPTIONS"}


def allowed(value: str) -> set[str]:
    return {word.strip() for word in value.split(",")}


@pytest.mark.parametrize(
    "target",
    ["/", "/a.txt", "/empty.txt", "/data.bin", "/big.bin", "/dir", "/nothing", "/items/x", "/every", "/%00", "/fifo"],
)
def test_head_is_get_without_a_body(site: Site, target: str) -> None:
    with site.client() as client:
        whole, bare = client.ask("GET", target), client.ask("HEAD", target)
        assert bare.body == b"" and bare.status == whole.status
        if target == "/every":  # it tells the method
            return
        assert [pair for pair in bare.headers if pair[0] != "date"] == [p for p in whole.headers if p[0] != "date"]
        assert int(bare["content-length"]) == len(whole.body)


@pytest.mark.parametrize("target", ["/a.txt", "/big.bin", "/", "/items/x"])
def test_head_then_get_on_one_connection(site: Site, target: str) -> None:
    with site.client() as client:
        for method in ("HEAD", "GET", "HEAD", "HEAD", "GET"):
            reply = client.ask(method, target)
            assert reply.status == 200 and bool(reply.body) == (method == "GET")


def test_head_of_a_range_is_of_the_whole(site: Site) -> None:
    # Range is defined for GET only (RFC 9110 section 14.2).
    reply = site.ask("HEAD", "/a.txt", ("Range", "bytes=0-1"))
    assert reply.status == 200 and reply["content-length"] == "11" and "content-range" not in reply


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("body", [None, b"body"])
def test_a_file_takes_only_get_head_options(site: Site, method: str, body: bytes | None) -> None:
    with site.client() as client:
        reply = client.ask(method, "/a.txt", body=body)
        assert reply.status == 405 and allowed(reply["allow"]) == FILE_METHODS
        assert client.ask("GET", "/a.txt").status == 200, "the connection goes on behind the body"


@pytest.mark.parametrize(
    ("target", "methods"),
    [
        ("/items/x", {"GET", "HEAD", "OPTIONS"}),
        ("/echo", {"POST", "PUT", "PATCH", "OPTIONS"}),
        ("/slow", {"GET", "HEAD", "OPTIONS"}),
    ],
)
def test_a_route_tells_its_methods(site: Site, target: str, methods: set[str]) -> None:
    refused = site.ask("DELETE", target)
    assert refused.status == 405 and allowed(refused["allow"]) == methods
    options = site.ask("OPTIONS", target)
    assert options.status in (200, 204) and allowed(options["allow"]) == methods and options.body == b""


def test_options_of_a_file(site: Site) -> None:
    reply = site.ask("OPTIONS", "/a.txt")
    assert reply.status in (200, 204) and allowed(reply["allow"]) == FILE_METHODS


def test_options_of_the_server(site: Site) -> None:
    reply = site.ask("OPTIONS", "*")
    assert reply.status in (200, 204) and {"GET", "HEAD", "OPTIONS", "POST"} <= allowed(reply["allow"])


def test_options_that_a_route_takes_itself(site: Site) -> None:
    reply = site.ask("OPTIONS", "/every")
    assert reply.status == 200 and reply["x-method"] == "OPTIONS"


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
def test_a_route_sees_the_method(site: Site, method: str) -> None:
    reply = site.ask(method, "/every")
    assert reply.status == 200 and reply.body == f"{method}\n".encode()


def test_head_of_a_route_is_told_as_head(site: Site) -> None:
    reply = site.ask("HEAD", "/every")
    assert reply.status == 200 and reply["x-method"] == "HEAD" and reply["content-length"] == "5"


@pytest.mark.parametrize("method", ["BREW", "get", "PROPFIND", "M-SEARCH", "TRACE"])
@pytest.mark.parametrize("target", ["/a.txt", "/nothing", "/items/x", "/echo"])
def test_an_unknown_method_is_501(site: Site, method: str, target: str) -> None:
    # RFC 9110 section 9.1: 501 for a method that is not known or not implemented, 405 for one not allowed there.
    with site.client() as client:
        assert client.ask(method, target).status == 501
        assert client.ask("GET", "/a.txt").status == 200


def test_connect_is_refused(site: Site) -> None:
    with site.client() as client:
        client.send(b"CONNECT example.com:443 HTTP/1.1\r\nHost: example.com:443\r\n\r\n")
        assert client.reply().status in (400, 405, 501)


def test_a_get_with_a_body_is_answered_and_the_body_is_no_request(site: Site) -> None:
    with site.client() as client:
        body = b"GET /b.txt HTTP/1.1\r\nHost: test\r\n\r\n"
        assert client.ask("GET", "/a.txt", body=body).body == b"the file a\n"
        assert client.ask("GET", "/one.txt").body == b"1"
