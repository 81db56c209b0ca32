"""A file that was changed, replaced, moved or removed is never answered from the cache as it was, once the call that
changed it has returned: whatever the time for which cached files are trusted (here, a thousand seconds). Where nothing
tells of changes (symbolic links, more directories than are watched), that time counts.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.loop import Loop, get, looping, make_server

S = 1_000_000
TRUSTED_S = 1000
WATCHES_MAX = 1024


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("a.txt", "dir/b.txt", "dir/sub/c.txt", "index/index.html"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_text("old")
    return tmp_path / "root"


@pytest.fixture
def loop(root: Path) -> Iterator[Loop]:
    server = make_server(root=str(root), file_revalidate_s=float(TRUSTED_S), index_files=("index.htm", "index.html"))
    with looping(server) as loop:
        yield loop


def ask(loop: Loop, *paths: str) -> list[Any]:
    """What is answered: the text, or a status that is not 200."""
    replies = [loop.ask(get(path)) for path in paths]
    return [reply.text if reply.status == 200 else reply.status for reply in replies]


def replace(path: Path, text: str) -> None:
    """As a careful writer does it."""
    new = path.with_name(".new")
    new.write_text(text)
    new.rename(path)


ALL = ("/a.txt", "/dir/b.txt", "/dir/sub/c.txt", "/index/", "/index/index.html")


def test_what_does_not_change_is_opened_once(loop: Loop) -> None:
    for _ in range(3):
        assert ask(loop, *ALL) == ["old"] * 5
    assert loop.outcomes == {"file": 5, "hit": 10}


@pytest.mark.parametrize("name", ["a.txt", "dir/b.txt", "dir/sub/c.txt", "index/index.html"])
@pytest.mark.parametrize("times", [1, 3])
def test_a_replaced_file(loop: Loop, root: Path, name: str, times: int) -> None:
    ask(loop, *ALL)
    for number in range(times):
        replace(root / name, f"new {number}")
        assert ask(loop, f"/{name}") == [f"new {number}"]
    assert ask(loop, "/index/") == (["old"] if name != "index/index.html" else [f"new {times - 1}"])


def test_a_file_that_is_written_in_place(loop: Loop, root: Path) -> None:
    ask(loop, *ALL)
    with (root / "dir/b.txt").open("a") as file:
        file.write(", and more")
        file.flush()
        assert ask(loop, "/dir/b.txt") == ["old, and more"]
    os.truncate(root / "dir/b.txt", 1)
    assert ask(loop, "/dir/b.txt") == ["o"]


def test_a_file_that_is_removed_and_comes_again(loop: Loop, root: Path) -> None:
    ask(loop, *ALL)
    (root / "a.txt").unlink()
    assert ask(loop, "/a.txt") == [404]
    (root / "a.txt").write_text("again")
    assert ask(loop, "/a.txt") == ["again"]


def test_directories_that_are_exchanged(loop: Loop, root: Path) -> None:
    assert ask(loop, *ALL) == ["old"] * 5
    other = root.parent / "other"
    (other / "sub").mkdir(parents=True)
    (other / "sub/c.txt").write_text("other")
    (root / "dir").rename(root.parent / "away")
    assert ask(loop, "/dir/sub/c.txt") == [404]
    other.rename(root / "dir")
    assert ask(loop, "/dir/sub/c.txt", "/dir/b.txt", "/a.txt") == ["other", 404, "old"]
    replace(root / "dir/sub/c.txt", "newer")  # the new directory is watched, too
    assert ask(loop, "/dir/sub/c.txt") == ["newer"]


def test_the_root_itself_is_watched(loop: Loop, root: Path) -> None:
    ask(loop, *ALL)
    root.rename(root.parent / "moved")  # the server keeps the directory that it opened
    assert ask(loop, *ALL) == ["old"] * 5
    replace(root.parent / "moved/a.txt", "new")
    assert ask(loop, "/a.txt") == ["new"]


def test_an_index_file_that_goes_before_the_one_that_was_found(loop: Loop, root: Path) -> None:
    ask(loop, *ALL)
    (root / "index/index.htm").write_text("first")
    assert ask(loop, "/index/") == ["first"]
    (root / "index/index.htm").unlink()
    assert ask(loop, "/index/") == ["old"]


def test_what_happens_beside_a_file_makes_it_be_looked_at_and_not_read(loop: Loop, root: Path) -> None:
    ask(loop, *ALL)
    (root / "dir/other").mkdir()
    (root / "dir/other/x").write_text("x")
    (root / "dir/y").write_text("y")
    assert ask(loop, *ALL) == ["old"] * 5
    assert loop.outcomes == {"file": 5, "hit": 5}


def test_more_events_than_are_queued(loop: Loop, root: Path) -> None:
    ask(loop, *ALL)
    for number in range(9000):  # each makes and removes one: more than the kernel's 16,384
        (root / f"dir/{number}").touch()
        (root / f"dir/{number}").unlink()
    replace(root / "dir/sub/c.txt", "new")
    assert ask(loop, *ALL) == ["old", "old", "new", "old", "old"]
    replace(root / "dir/b.txt", "new")
    assert ask(loop, "/dir/b.txt") == ["new"]


def test_more_directories_than_are_watched(loop: Loop, root: Path) -> None:
    for number in range(WATCHES_MAX + 20):
        (root / str(number)).mkdir()
        (root / f"{number}/f").write_text("old")
        assert ask(loop, f"/{number}/f") == ["old"]
    for number in (0, WATCHES_MAX // 2, WATCHES_MAX + 10):
        replace(root / f"{number}/f", "new")
    assert ask(loop, "/0/f", f"/{WATCHES_MAX // 2}/f") == ["new", "new"]
    loop.turn(TRUSTED_S * S)
    assert ask(loop, f"/{WATCHES_MAX + 10}/f") == ["new"]


def test_links_are_trusted_for_their_time(loop: Loop, root: Path) -> None:
    (root / "now").symlink_to("dir")
    (root / "link.txt").symlink_to("dir/b.txt")
    assert ask(loop, "/now/b.txt", "/link.txt") == ["old", "old"]
    replace(root / "dir/b.txt", "new")
    loop.turn(TRUSTED_S * S)
    assert ask(loop, "/now/b.txt", "/link.txt", "/dir/b.txt") == ["new"] * 3


def test_names_that_need_escapes(loop: Loop, root: Path) -> None:
    (root / "a b").mkdir()
    (root / "a b/ü%.txt").write_text("old")
    path = "/a%20b/%C3%BC%25.txt"
    assert ask(loop, path, path) == ["old", "old"]
    replace(root / "a b/ü%.txt", "new")
    assert ask(loop, path) == ["new"]


def test_each_request_compares_where_a_file_is_trusted_for_no_time(root: Path) -> None:
    with looping(make_server(root=str(root), file_revalidate_s=0.0)) as loop:
        (root / "now").symlink_to("dir")
        for text in ("one", "two", "three"):
            replace(root / "dir/b.txt", text)
            assert ask(loop, "/now/b.txt", "/dir/b.txt") == [text] * 2
            assert ask(loop, "/now/b.txt", "/dir/b.txt") == [text] * 2
        assert loop.outcomes == {"file": 6, "hit": 6}


def test_without_inotify_time_counts(root: Path) -> None:
    """As where a user has no inotify instance left: its own limit is used up."""
    taken = []
    try:
        while True:
            taken.append(_inotify())
    except OSError:
        pass
    try:
        with looping(make_server(root=str(root), file_revalidate_s=5.0)) as loop:
            assert ask(loop, "/a.txt") == ["old"]
            replace(root / "a.txt", "new")
            loop.turn(5 * S)
            assert ask(loop, "/a.txt") == ["new"]
    finally:
        for fd in taken:
            os.close(fd)


def _inotify() -> int:
    import ctypes

    fd = ctypes.CDLL(None, use_errno=True).inotify_init1(os.O_CLOEXEC)
    if fd < 0:
        raise OSError(ctypes.get_errno(), "inotify_init1")
    if fd > 4000:
        os.close(fd)
        raise OSError("enough")
    return fd
