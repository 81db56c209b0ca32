"""Files are served whole, with their type, as they are now: changes show, what is no file is not opened, and folders
have an index or nothing."""

import os
import time
from email.utils import formatdate, parsedate_to_datetime

import pytest

from support.site import FILES, Site, serve_site
from support.wire import Client


@pytest.mark.parametrize("name", [name for name in FILES if name.isascii() and not set(name) & set(" %?")])
def test_each_file_twice(site: Site, name: str) -> None:
    with site.client() as client:
        for _ in range(2):
            reply = client.ask("GET", f"/{name}")
            assert reply.status == 200 and reply.body == FILES[name]
            assert reply["content-length"] == str(len(FILES[name]))


def test_no_header_field_comes_twice(site: Site) -> None:
    for target in ("/a.txt", "/big.bin", "/nothing", "/items/x", "/dir"):
        names = site.ask("GET", target).names()
        assert len(names) == len(set(names)), names


@pytest.mark.parametrize(
    ("name", "media_type"),
    [
        ("index.html", "text/html"),
        ("a.txt", "text/plain"),
        ("styles.css", "text/css"),
        ("script.js", ("text/javascript", "application/javascript")),
        ("picture.png", "image/png"),
        ("data.json", "application/json"),
        ("drawing.svg", "image/svg+xml"),
        ("UPPER.HTML", "text/html"),
        ("noextension", "application/octet-stream"),
        ("strange.xyzzy", "application/octet-stream"),
    ],
)
def test_media_types(site: Site, name: str, media_type: str | tuple[str, ...]) -> None:
    given = site.ask("GET", f"/{name}")["content-type"].partition(";")[0]
    assert given in ((media_type,) if isinstance(media_type, str) else media_type)


def test_date_is_now_in_the_fixed_form(site: Site) -> None:
    for target in ("/a.txt", "/nothing", "/items/x", "/big.bin"):
        before = int(time.time())
        text = site.ask("GET", target)["date"]
        moment = parsedate_to_datetime(text).timestamp()
        assert before - 1 <= moment <= time.time() + 1
        assert text == formatdate(moment, usegmt=True)


def test_date_goes_on_while_the_server_idles(site: Site) -> None:
    with site.client() as client:
        client.ask("GET", "/a.txt")
        time.sleep(1.2)
        moment = parsedate_to_datetime(client.ask("GET", "/a.txt")["date"]).timestamp()
        assert abs(moment - time.time()) <= 1.1


def test_last_modified_is_the_files(site: Site) -> None:
    (site.root / "old.txt").write_text("old\n")
    os.utime(site.root / "old.txt", (1, 784_111_777))
    assert site.ask("GET", "/old.txt")["last-modified"] == "Sun, 06 Nov 1994 08:49:37 GMT"


# --- folders ----------------------------------------------------------------------------------------------------------


def test_index_files(site: Site) -> None:
    assert site.ask("GET", "/").body == b"<h1>root</h1>\n"
    reply = site.ask("GET", "/dir/")
    assert reply.body == b"<h1>dir</h1>\n" and reply["content-type"].startswith("text/html")


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("/dir", "/dir/"),
        ("/bare", "/bare/"),
        ("/dir?x=1&y", "/dir/?x=1&y"),
        ("/%64ir", "/%64ir/"),
        ("/dir?", "/dir/?"),
        ("/link_to_dir", "/link_to_dir/"),
        ("http://test/dir", "/dir/"),
    ],
)
def test_a_folder_without_slash_is_redirected(site: Site, target: str, location: str) -> None:
    reply = site.ask("GET", target)
    assert reply.status in (301, 308) and reply["location"] == location


@pytest.mark.parametrize("target", ["//dir", "//example.com/..", "//test/../dir", "/\\dir", "//example.com/%2e%2e/dir"])
def test_no_redirect_to_another_host(site: Site, target: str) -> None:
    reply = site.ask("GET", target)
    for location in reply.all("location"):
        assert location.startswith("/") and location[1:2] not in ("/", "\\"), location


def test_a_folder_without_index_is_not_listed(site: Site) -> None:
    reply = site.ask("GET", "/bare/")
    assert reply.status in (403, 404) and b"file.txt" not in reply.body


def test_a_file_is_no_folder(site: Site) -> None:
    assert site.ask("GET", "/a.txt/").status == 404
    assert site.ask("GET", "/a.txt/b").status == 404


@pytest.mark.parametrize("target", ["/nothing", "/nothing/", "/dir/nothing", "/" + "x" * 300, "/" + "y/" * 500])
def test_what_is_not_there(site: Site, target: str) -> None:
    reply = site.ask("GET", target)
    assert reply.status == 404 and reply["content-type"].startswith("text/")


@pytest.mark.parametrize("name", ["fifo", "socket"])
def test_what_is_no_file_is_refused_and_stops_nobody(site: Site, name: str) -> None:
    with site.client() as client:
        reply = client.ask("GET", f"/{name}")
        assert reply.status in (403, 404)
        assert client.ask("GET", "/one.txt").body == b"1"


# --- changes ----------------------------------------------------------------------------------------------------------


def test_a_changed_file_shows_at_once(site: Site) -> None:
    # The site trusts a cached file for no time at all (file_revalidate_s=0).
    path = site.root / "changing.txt"
    path.write_text("first\n")
    first = site.ask("GET", "/changing.txt")
    assert site.ask("GET", "/changing.txt").body == first.body == b"first\n"
    path.write_text("longer second\n")
    second = site.ask("GET", "/changing.txt")
    assert second.body == b"longer second\n" and second["etag"] != first["etag"]


def test_a_replaced_file_of_the_same_length_and_time_shows(site: Site) -> None:
    path = site.root / "replaced.txt"
    path.write_text("aaaa\n")
    os.utime(path, (1e9, 1e9))
    assert site.ask("GET", "/replaced.txt").body == b"aaaa\n"
    fresh = site.root / "fresh"
    fresh.write_text("bbbb\n")
    os.utime(fresh, (1e9, 1e9))
    fresh.replace(path)
    assert site.ask("GET", "/replaced.txt").body == b"bbbb\n"


def test_a_removed_file_is_gone_and_may_return(site: Site) -> None:
    path = site.root / "removed.txt"
    path.write_text("here\n")
    assert site.ask("GET", "/removed.txt").status == 200
    path.unlink()
    assert site.ask("GET", "/removed.txt").status == 404
    path.write_text("again\n")
    assert site.ask("GET", "/removed.txt").body == b"again\n"


def test_a_file_that_becomes_a_folder_and_a_link_that_turns(site: Site) -> None:
    path = site.root / "turning"
    path.write_text("file\n")
    assert site.ask("GET", "/turning").body == b"file\n"
    path.unlink()
    path.mkdir()
    assert site.ask("GET", "/turning").status in (301, 308)
    path.rmdir()
    path.symlink_to("a.txt")
    assert site.ask("GET", "/turning").body == b"the file a\n"
    path.unlink()
    path.symlink_to("../outside/secret.txt")
    assert site.ask("GET", "/turning").status in (403, 404)


def test_an_index_file_that_comes_and_goes(site: Site) -> None:
    index = site.root / "bare" / "index.html"
    assert site.ask("GET", "/bare/").status in (403, 404)
    index.write_text("now\n")
    assert site.ask("GET", "/bare/").body == b"now\n"
    index.unlink()
    assert site.ask("GET", "/bare/").status in (403, 404)


def test_index_files_in_their_order(engine: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    for site in serve_site(engine, tmp_path_factory.mktemp("indexes"), index_files=("start.htm", "index.html")):
        (site.root / "dir" / "start.htm").write_text("start\n")
        assert site.ask("GET", "/dir/").body == b"start\n"
        assert site.ask("GET", "/").body == b"<h1>root</h1>\n"


def test_without_a_cache(engine: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    for site in serve_site(engine, tmp_path_factory.mktemp("uncached"), cache_size_bytes=0):
        with Client(site.url) as client:
            for name in ("a.txt", "empty.txt", "data.bin", "big.bin"):
                for _ in range(2):
                    assert client.ask("GET", f"/{name}").body == FILES[name]
