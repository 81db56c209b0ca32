"""What a request names: the target's form, Host, escapes, and that no spelling of a path leaves the root (RFC 9112
section 3, RFC 3986)."""

import pytest

from support.site import Site
from support.wire import head

SECRET = b"secret\n"


# --- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "body"),
    [
        ("http://test/a.txt", b"the file a\n"),
        ("HTTP://test/a.txt", b"the file a\n"),
        ("http://test:80/a.txt?x", b"the file a\n"),
        ("http://test/items/x", b"item x\n"),
        ("http://test", b"<h1>root</h1>\n"),
        ("http://test/", b"<h1>root</h1>\n"),
        ("http://[::1]:8080/a.txt", b"the file a\n"),
    ],
)
def test_absolute_form(site: Site, target: str, body: bytes) -> None:
    reply = site.ask("GET", target)
    assert (reply.status, reply.body) == (200, body)


@pytest.mark.parametrize("target", ["a.txt", "", "*", "?x", "//", "http:/a.txt", "ftp://test/a.txt", "http://"])
def test_no_target(site: Site, target: str) -> None:
    with site.client() as client:
        client.send(head("GET", target))
        reply = client.reply()
        assert reply.status in ((400, 301, 200, 404) if target == "//" else (400, 404, 501)), target


def test_asterisk_is_for_options_only(site: Site) -> None:
    assert site.ask("GET", "*").status == 400
    assert site.ask("POST", "*").status == 400
    assert site.ask("OPTIONS", "*").status in (200, 204)


# --- Host -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["test", "test:80", "127.0.0.1:1", "[::1]", "[::1]:80", "a.b-c.example."])
def test_hosts(site: Site, host: str) -> None:
    assert site.ask("GET", "/a.txt", host=host).status == 200


@pytest.mark.parametrize("host", ["a b", "a/b", "user@test", "test:port", "test:80:81", "[::1", "te\tst", "a\\b"])
def test_bad_hosts(site: Site, host: str) -> None:
    with site.client() as client:
        assert client.ask("GET", "/a.txt", host=host).status == 400
        client.assert_ended()


def test_http_1_1_needs_host(site: Site) -> None:
    with site.client() as client:
        assert client.ask("GET", "/a.txt", host=None).status == 400
        client.assert_ended()


def test_http_1_0_needs_none(site: Site) -> None:
    assert site.ask("GET", "/a.txt", host=None, version="1.0").status == 200


def test_two_hosts_are_400(site: Site) -> None:
    for second in ("test", "other"):
        with site.client() as client:
            assert client.ask("GET", "/a.txt", ("Host", second)).status == 400
            client.assert_ended()


# --- escapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "name"),
    [
        ("/%61.txt", "a.txt"),
        ("/a%2Etxt", "a.txt"),
        ("/a%2etxt", "a.txt"),
        ("/with%20space.txt", "with space.txt"),
        ("/%C3%BC.txt", "\u00fc.txt"),
        ("/per%2541cent.txt", "per%41cent.txt"),
        ("/q%3Fmark.txt", "q?mark.txt"),
        ("/a.txt?query=1", "a.txt"),
        ("/a.txt?", "a.txt"),
        ("/a.txt?../../x", "a.txt"),
        ("/./a.txt", "a.txt"),
        ("/dir/../a.txt", "a.txt"),
        ("/dir/%2e%2e/a.txt", "a.txt"),
        ("/dir/./page.html", "dir/page.html"),
        ("//a.txt", "a.txt"),
        ("/dir//page.html", "dir/page.html"),
        ("/nothing/../a.txt", "a.txt"),
    ],
)
def test_spellings_of_a_file(site: Site, target: str, name: str) -> None:
    for _ in range(2):  # the second time from the cache
        reply = site.ask("GET", target)
        assert (reply.status, reply.body) == (200, (site.root / name).read_bytes())


@pytest.mark.parametrize("target", ["/%", "/%4", "/%zz", "/a%2", "/%00", "/a.txt%00", "/a.txt%00.html", "/%2500/%00"])
def test_bad_escapes_are_400(site: Site, target: str) -> None:
    reply = site.ask("GET", target)
    assert reply.status == 400


@pytest.mark.parametrize("byte", range(33))
def test_control_bytes_in_a_target_are_400(site: Site, byte: int) -> None:
    with site.client() as client:
        client.send(b"GET /a%ctxt HTTP/1.1\r\nHost: test\r\n\r\n" % byte)
        assert client.reply().status == 400
        client.assert_ended()


def test_an_escaped_slash_is_no_separator(site: Site) -> None:
    assert site.ask("GET", "/dir%2Fpage.html").status in (400, 404)
    assert site.ask("GET", "/items/a%2Fb").body == b"item a/b\n"


def test_parameters_are_decoded(site: Site) -> None:
    assert site.ask("GET", "/items/%C3%BC%20x").body == "item \u00fc x\n".encode()
    assert site.ask("GET", "/items/a+b").body == b"item a+b\n"


# --- out of the root --------------------------------------------------------------------------------------------------

CLIMBS = [
    "/../outside/secret.txt",
    "/../../outside/secret.txt",
    "/dir/../../outside/secret.txt",
    "/%2e%2e/outside/secret.txt",
    "/%2E%2E/outside/secret.txt",
    "/.%2e/outside/secret.txt",
    "/%2e./outside/secret.txt",
    "/dir/%2e%2e/%2e%2e/outside/secret.txt",
    "/%252e%252e/outside/secret.txt",
    "/..%2foutside/secret.txt",
    "/..%5coutside%5csecret.txt",
    "/..\\outside\\secret.txt",
    "//../outside/secret.txt",
    "/./../outside/secret.txt",
    "/%c0%ae%c0%ae/outside/secret.txt",
    "/..;/outside/secret.txt",
    "/link_absolute",
    "/link_relative",
    "/link_out_dir/secret.txt",
    "/link_out_dir/",
    "/link_out_dir",
    "/link_out_dir/../outside/secret.txt",
    "http://test/../outside/secret.txt",
    "/..",
    "/../",
    "/..%00/",
]


@pytest.mark.parametrize("target", CLIMBS)
def test_nothing_leaves_the_root(site: Site, target: str) -> None:
    for method in ("GET", "HEAD"):
        reply = site.ask(method, target)
        assert reply.status in (400, 403, 404), reply
        assert SECRET not in reply.body


def test_absolute_paths_of_the_system_are_below_the_root(site: Site) -> None:
    for target in ("/etc/passwd", "//etc/passwd", "/dir//etc/passwd", "/%2fetc/passwd"):
        assert site.ask("GET", target).status in (400, 404)


def test_links_inside_the_root_are_followed(site: Site) -> None:
    assert site.ask("GET", "/link_inside").body == b"the file a\n"
    assert site.ask("GET", "/link_to_dir/page.html").body == b"<p>page</p>\n"
    assert site.ask("GET", "/link_to_dir/").body == b"<h1>dir</h1>\n"


def test_links_that_lead_nowhere(site: Site) -> None:
    assert site.ask("GET", "/link_loop").status in (403, 404)
    assert site.ask("GET", "/link_dangling").status == 404
