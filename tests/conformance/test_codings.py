"""A file with siblings in other content codings (`precompressed`): each client gets what it wants most of what there
is, with the right header lines; caches are told by Vary; siblings may come, go and change, and what was is not said
again."""

import gzip
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.serving import make_server, running
from support.wire import Client, Reply

PLAIN = b"<p>" + b"words " * 3000
CODED = {"br": b"not really brotli " * 40, "zstd": b"not really zstd " * 50, "gzip": gzip.compress(PLAIN)}
SUFFIXES = {"br": ".br", "zstd": ".zst", "gzip": ".gz"}
CACHED_SIZE_MAX = 64 << 10
BIG = b"0123456789abcdef" * 40_000


class Files:
    """A root, and a client of its server."""

    def __init__(self, root: Path, client: Client) -> None:
        self.root, self.client = root, client

    def write(self, name: str, content: bytes, age_s: float = 100.0) -> None:
        """By a rename, as those do it who know what they do."""
        fresh = self.root / "fresh"
        fresh.write_bytes(content)
        changed_ns = os.stat(fresh).st_mtime_ns - int(age_s * 1e9)
        os.utime(fresh, ns=(changed_ns, changed_ns))
        fresh.replace(self.root / name)

    def family(self, name: str, *codings: str, plain: bytes = PLAIN) -> None:
        for path in self.root.glob(f"{name}*"):
            path.unlink()
        self.write(name, plain)
        for coding in codings:
            self.write(name + SUFFIXES[coding], CODED[coding], age_s=50)

    def ask(self, target: str, accepted: str | None = None, *headers: tuple[str, str], method: str = "GET") -> Reply:
        accept = [] if accepted is None else [("Accept-Encoding", accepted)]
        return self.client.ask(method, target, *accept, *headers)

    def assert_coded(self, target: str, accepted: str | None, coding: str | None) -> Reply:
        """From the file, from the cache, and as a request whose bytes the kernel side knows."""
        first = self.ask(target, accepted)
        for _ in range(4):
            assert self.ask(target, accepted).but_date() == first.but_date()
        assert first.all("content-encoding") == ([] if coding is None else [coding])
        assert first.body == (PLAIN if coding is None else CODED[coding])
        assert first["vary"] == "Accept-Encoding"
        return first


@pytest.fixture(scope="module", params=[0.0, 60.0], ids=["compared", "watched"])
def files(engine: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Files]:
    root = tmp_path_factory.mktemp("codings")
    server = make_server(
        engine,
        root=str(root),
        precompressed=("br", "zstd", "gzip"),
        file_revalidate_s=request.param,
        cached_file_size_bytes_max=CACHED_SIZE_MAX,
    )
    with running(server), Client(server.url) as client:
        yield Files(root, client)


def test_what_a_client_wants_most_is_sent(files: Files) -> None:
    files.family("page.html", "br", "zstd", "gzip")
    for accepted, coding in (
        (None, None),
        ("", None),
        ("identity", None),
        ("deflate", None),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("gzip, deflate, br", "br"),
        ("gzip, zstd", "zstd"),
        ("gzip;q=1, br;q=0.5", "gzip"),
        ("*", "br"),
        ("br;q=0, *", "zstd"),
        ("gzip;q=0.5, identity;q=0.9", None),
        ("identity;q=0, gzip;q=0.1", "gzip"),
        ("identity;q=0, *;q=0", None),  # refuses all that there is: disregarded (section 12.4.1)
    ):
        reply = files.assert_coded("/page.html", accepted, coding)
        assert reply["content-type"] == "text/html"
        assert reply["content-length"] == str(len(reply.body))
        assert reply["accept-ranges"] == "bytes"


def test_of_what_is_not_there_the_next_is_sent(files: Files) -> None:
    files.family("some.html", "gzip")
    files.assert_coded("/some.html", "br, gzip;q=0.2", "gzip")
    files.assert_coded("/some.html", "br, zstd", None)
    files.assert_coded("/some.html", "br", None)


def test_a_file_without_siblings_does_not_vary(files: Files) -> None:
    files.write("alone.txt", b"alone\n")
    for accepted in (None, "gzip, br", "identity;q=0"):
        for _ in range(2):
            reply = files.ask("/alone.txt", accepted)
            assert reply.body == b"alone\n" and "vary" not in reply and "content-encoding" not in reply


def test_each_representation_has_validators_of_its_own(files: Files) -> None:
    files.family("tags.html", "br", "gzip")
    replies = {coding: files.assert_coded("/tags.html", coding, coding) for coding in ("br", "gzip")}
    plain = files.assert_coded("/tags.html", None, None)
    tags = {replies["br"]["etag"], replies["gzip"]["etag"], plain["etag"]}
    assert len(tags) == 3
    for accepted, own in (("br", replies["br"]), ("gzip", replies["gzip"]), ("identity", plain)):
        for method in ("GET", "HEAD"):
            reply = files.ask("/tags.html", accepted, ("If-None-Match", own["etag"]), method=method)
            assert reply.status == 304 and reply.body == b""
            assert (reply["etag"], reply["vary"]) == (own["etag"], "Accept-Encoding")
            for other in tags - {own["etag"]}:
                assert files.ask("/tags.html", accepted, ("If-None-Match", other), method=method).status == 200
        assert files.ask("/tags.html", accepted, ("If-Modified-Since", own["last-modified"])).status == 304
        failed = files.ask("/tags.html", accepted, ("If-Match", '"other"'))
        assert failed.status == 412 and failed["vary"] == "Accept-Encoding"


def test_head_tells_what_get_would(files: Files) -> None:
    files.family("head.html", "br")
    for accepted in (None, "br"):
        get, head = (files.ask("/head.html", accepted, method=method) for method in ("GET", "HEAD"))
        assert head.body == b"" and head.but_date()[3] == get.but_date()[3]


def test_ranges_are_of_the_coded_bytes(files: Files) -> None:
    files.family("ranges.html", "gzip")
    whole = CODED["gzip"]
    part = files.ask("/ranges.html", "gzip", ("Range", "bytes=5-9"))
    assert part.status == 206 and part.body == whole[5:10] and part["content-encoding"] == "gzip"
    assert part["content-range"] == f"bytes 5-9/{len(whole)}" and part["vary"] == "Accept-Encoding"
    behind = files.ask("/ranges.html", "gzip", ("Range", f"bytes={len(whole)}-"))
    assert behind.status == 416 and behind["content-range"] == f"bytes */{len(whole)}"
    assert behind["vary"] == "Accept-Encoding"
    assert files.ask("/ranges.html", None, ("Range", f"bytes={len(whole)}-")).status == 206
    # A part of one representation never goes on another.
    plain = files.ask("/ranges.html")
    assert files.ask("/ranges.html", "gzip", ("Range", "bytes=5-9"), ("If-Range", plain["etag"])).status == 200


def test_a_sibling_that_is_older_than_its_original_is_not_used(files: Files) -> None:
    files.family("old.html", "br", "gzip")
    files.assert_coded("/old.html", "br, gzip", "br")
    files.write("old.html.br", CODED["br"], age_s=200)
    files.assert_coded("/old.html", "br, gzip", "gzip")
    files.write("old.html", PLAIN, age_s=20)
    reply = files.ask("/old.html", "br, gzip")
    assert reply.body == PLAIN and "content-encoding" not in reply and "vary" not in reply
    files.write("old.html.br", CODED["br"], age_s=20)
    files.assert_coded("/old.html", "br, gzip", "br")


def test_siblings_come_and_go_and_change(files: Files) -> None:
    files.family("moving.html")
    assert "vary" not in files.ask("/moving.html", "br, gzip")
    files.write("moving.html.gz", CODED["gzip"], age_s=50)
    files.assert_coded("/moving.html", "br, gzip", "gzip")
    files.assert_coded("/moving.html", None, None)
    files.write("moving.html.br", CODED["br"], age_s=50)
    files.assert_coded("/moving.html", "br, gzip", "br")
    files.assert_coded("/moving.html", "gzip", "gzip")
    files.write("moving.html.br", b"another one", age_s=40)
    for _ in range(2):
        assert files.ask("/moving.html", "br, gzip").body == b"another one"
    (files.root / "moving.html.br").unlink()
    files.assert_coded("/moving.html", "br, gzip", "gzip")
    (files.root / "moving.html.gz").unlink()
    for _ in range(2):
        assert files.ask("/moving.html", "br, gzip").body == PLAIN
    assert "vary" not in files.ask("/moving.html", "br, gzip")


def test_without_its_original_a_sibling_answers_nothing(files: Files) -> None:
    files.family("gone.html", "br")
    files.assert_coded("/gone.html", "br", "br")
    (files.root / "gone.html").unlink()
    assert files.ask("/gone.html", "br").status == 404
    assert files.ask("/gone.html.br", "identity").body == CODED["br"]


def test_what_is_no_readable_file_is_no_sibling(files: Files) -> None:
    files.family("odd.html")
    (files.root / "odd.html.br").mkdir()
    os.mkfifo(files.root / "odd.html.gz")
    (files.root / "odd.html.zst").symlink_to("/etc/passwd")
    for _ in range(2):
        assert files.ask("/odd.html", "br, gzip, zstd").body == PLAIN
    (files.root / "odd.html.br").rmdir()
    (files.root / "odd.html.gz").unlink()
    (files.root / "odd.html.zst").unlink()


def test_a_sibling_may_be_a_link(files: Files) -> None:
    files.family("linked.html")
    files.write("elsewhere", CODED["gzip"], age_s=50)
    (files.root / "linked.html.gz").symlink_to("elsewhere")
    files.assert_coded("/linked.html", "gzip", "gzip")


def test_index_files_have_siblings(files: Files) -> None:
    (files.root / "dir").mkdir(exist_ok=True)
    files.family("dir/index.html", "br")
    reply = files.assert_coded("/dir/", "br", "br")
    assert reply["content-type"] == "text/html"
    files.assert_coded("/dir/", None, None)


def test_escaped_and_dotted_paths(files: Files) -> None:
    files.family("a b.html", "br")
    files.assert_coded("/a%20b.html", "br", "br")
    files.assert_coded("/x/../a%20b.html", "br", "br")


def test_large_originals_and_large_siblings(files: Files) -> None:
    files.write("large.bin", BIG)
    files.write("large.bin.gz", CODED["gzip"], age_s=50)
    files.write("large.bin.br", BIG[:-1], age_s=50)
    for _ in range(2):
        for accepted, body, coding in (("gzip", CODED["gzip"], ["gzip"]), ("br", BIG[:-1], ["br"]), (None, BIG, [])):
            reply = files.ask("/large.bin", accepted)
            assert reply.body == body and reply.all("content-encoding") == coding
            assert reply["vary"] == "Accept-Encoding"


def test_unless_it_is_asked_for_nothing_is_looked_for(engine: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_bytes(PLAIN)
    (tmp_path / "page.html.gz").write_bytes(CODED["gzip"])
    with running(make_server(engine, root=str(tmp_path))) as server, Client(server.url) as client:
        reply = client.ask("GET", "/page.html", ("Accept-Encoding", "gzip"))
        assert reply.body == PLAIN and "vary" not in reply


def test_a_purge_takes_all_representations_and_hits_are_counted_once(engine: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_bytes(PLAIN)
    (tmp_path / "page.html.gz").write_bytes(CODED["gzip"])
    (tmp_path / "page.html.br").write_bytes(CODED["br"])
    settings = {"precompressed": ("br", "gzip"), "file_revalidate_s": 60.0}
    with running(make_server(engine, root=str(tmp_path), **settings)) as server, Client(server.url) as client:
        for accepted in ("br", "gzip", "identity") * 3:
            client.ask("GET", "/page.html", ("Accept-Encoding", accepted))
        stats = server.stats()
        assert (stats["cache"]["objects"], stats["cache"]["hits"], stats["cache"]["misses"]) == (3, 6, 3)
        assert (stats["requests"]["outcomes"]["file"], stats["requests"]["outcomes"]["hit"]) == (3, 6)
        assert server.cache.purge(url="/page.html") == 3
        assert client.ask("GET", "/page.html", ("Accept-Encoding", "br")).body == CODED["br"]
        assert server.cache.purge(url=f"{server.url}/page.html") == 1
