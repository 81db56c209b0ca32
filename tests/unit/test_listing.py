"""A listing shows what would be served and nothing else, holds any name a file can have, and is bounded."""

import html
import os
import urllib.parse
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchbridge.listing import Entry, folder_of, open_beneath, page, read_entries, status_of

ROOM = 1 << 20


class Links(HTMLParser):
    """The links of a page, as (href, text); and whether its elements are closed in order."""

    VOID = ("meta",)

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[tuple[str, str]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "a":
            self.links.append((dict(attributes)["href"] or "", ""))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "a" in self.open:
            href, text = self.links[-1]
            self.links[-1] = (href, text + data)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    folder = tmp_path / "root"
    folder.mkdir()
    fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
    yield folder, fd
    os.close(fd)


def names(entries: list[Entry]) -> list[bytes]:
    return [entry.name for entry in entries]


# What is shown


def test_folders_come_first_then_names_in_order_without_regard_to_case(root):
    folder, fd = root
    for name in ("b.txt", "A.txt", "c"):
        (folder / name).write_text("12345")
    for name in ("Zoo", "deep"):
        (folder / name).mkdir()
    entries, has_more = read_entries(fd, b".", 100)
    assert names(entries) == [b"deep", b"Zoo", b"A.txt", b"b.txt", b"c"]
    assert [entry.is_folder for entry in entries] == [True, True, False, False, False]
    assert entries[2].size_bytes == 5
    assert entries[2].changed_s == (folder / "A.txt").stat().st_mtime
    assert not has_more


def test_hidden_entries_devices_and_links_that_lead_nowhere_or_out_are_not_shown(root):
    folder, fd = root
    (folder.parent / "secret").mkdir()
    (folder / "inner").mkdir()
    (folder / "file").write_text("x")
    (folder / ".hidden").write_text("x")
    os.mkfifo(folder / "fifo")
    for name, target in (
        ("to_file", "file"), ("to_inner", "inner"), ("out", "../secret"), ("absolute", str(folder.parent / "secret")),
        ("nowhere", "missing"), ("loop", "loop"),
    ):  # fmt: skip
        (folder / name).symlink_to(target)
    entries, _ = read_entries(fd, b".", 100)
    assert names(entries) == [b"inner", b"to_inner", b"file", b"to_file"]


@pytest.mark.parametrize("path", [b"..", b"../secret", b"inner/../../secret", b"out", b"/", b"/etc"])
def test_no_path_leaves_the_root(root, path):
    folder, fd = root
    (folder.parent / "secret").mkdir()
    (folder / "inner").mkdir()
    (folder / "out").symlink_to("../secret")
    with pytest.raises(OSError, match="cross-device") as caught:
        read_entries(fd, path, 100)
    assert status_of(caught.value) == 403


def test_a_path_that_is_none_or_no_folder_is_absent(root):
    folder, fd = root
    (folder / "file").write_text("x")
    for path in (b"missing", b"file", b"file/more", b"x" * 300):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            os.close(open_beneath(fd, path, os.O_RDONLY | os.O_DIRECTORY))
        assert status_of(caught.value) == 404


def test_a_huge_folder_is_read_up_to_the_limit(root):
    folder, fd = root
    for number in range(20):
        (folder / f"{number}").touch()
    entries, has_more = read_entries(fd, b".", 5)
    assert len(entries) == 5
    assert has_more
    entries, has_more = read_entries(fd, b".", 20)
    assert len(entries) == 20
    assert not has_more


# The page


def test_links_and_texts_are_escaped_each_in_its_way():
    entries = [
        Entry(b"<b>&\"' %41?#.txt", False, 1536, 0.0),
        Entry(b"a:b", True, 0, 0.0),
        Entry(b"\xff\n", False, 1, 0.0),
    ]
    text = page(b"/x<y>/", entries, has_more=False, size_bytes_max=ROOM)
    assert "<b>" not in text and "<y>" not in text
    assert "1.5 KiB" in text and "1970-01-01 00:00" in text
    assert "Index of /x&lt;y&gt;/" in text
    assert Links(text).links == [
        ("../", "../"),
        ("./%3Cb%3E%26%22%27%20%2541%3F%23.txt", "<b>&\"' %41?#.txt"),
        ("./a%3Ab/", "a:b/"),
        ("./%FF%0A", "\ufffd\ufffd"),
    ]


def test_the_root_has_no_way_up():
    assert Links(page(b"/", [], has_more=False, size_bytes_max=ROOM)).links == []


def test_a_page_that_would_be_too_large_is_cut_and_says_so():
    entries = [Entry(b"%d" % number, False, 0, 0.0) for number in range(1000)]
    text = page(b"/", entries, has_more=False, size_bytes_max=8192)
    assert 7000 < len(text.encode()) <= 8192
    assert "more entries" in text
    assert 0 < len(Links(text).links) < 1000
    assert "more entries" not in page(b"/", entries, has_more=False, size_bytes_max=ROOM)


@pytest.mark.parametrize("changed_s", [-1e20, 1e20, -62135596801.0])
def test_a_time_beyond_the_calendar_is_left_out(changed_s):
    assert "<time" not in page(b"/", [Entry(b"x", False, 0, changed_s)], has_more=False, size_bytes_max=ROOM)


@given(st.binary(min_size=1, max_size=40).map(lambda name: name.replace(b"/", b"").replace(b"\0", b"") or b"x"))
def test_every_name_can_be_followed_and_is_one_link(name):
    text = page(b"/", [Entry(name, False, 0, 0.0)], has_more=False, size_bytes_max=ROOM)
    ((href, shown),) = Links(text).links
    assert urllib.parse.unquote_to_bytes(href.removeprefix("./")) == name
    assert shown == html.unescape(shown)
    assert not any(ord(c) < 32 for c in shown)


@pytest.mark.parametrize(
    ("raw_path", "segments"),
    [
        (b"/", []),
        (b"/a/b/", [b"a", b"b"]),
        (b"//a/./b//", [b"a", b"b"]),
        (b"/a/../b/", [b"b"]),
        (b"/%61%20b/%C3%BC/", [b"a b", b"\xc3\xbc"]),
        (b"/%2e%2e/%2541/", [b"%41"]),
    ],
)
def test_a_path_becomes_its_segments(raw_path, segments):
    assert folder_of(raw_path) == segments
