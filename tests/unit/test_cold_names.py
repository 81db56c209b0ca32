"""Files whose names the kernel does not know, so that a disk must be waited for before they can be opened or compared:
who asks for them waits, and nobody else; a path is looked up once for all who ask meanwhile; who goes leaves nothing;
and then all is as if it had been known, whatever has happened to the file in between."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import batchbridge as bb
from support.loop import Loop, get, looping, make_server, post, recording
from support.site import open_below, pattern

FILES = {
    "a.txt": b"the file a\n",
    "large.bin": pattern(300_000),
    "window.bin": pattern(3_000_000),
    "page.html": b"<p>page</p>\n" * 9,
    "page.html.br": b"brotli\n",
    "dir/index.html": b"<h1>dir</h1>\n",
    "bare/file.txt": b"in a folder without index\n",
}
#: What a path is answered with: status and body.
ANSWERS = {
    "/a.txt": (200, FILES["a.txt"]),
    "/large.bin": (200, FILES["large.bin"]),
    "/window.bin": (200, FILES["window.bin"]),
    "/page.html": (200, FILES["page.html"]),
    "/dir/": (200, FILES["dir/index.html"]),
    "/dir": (301, b"301 Moved Permanently\n"),
    "/bare/": (404, b"404 Not Found\n"),
    "/nothing": (404, b"404 Not Found\n"),
    "/link.txt": (200, FILES["a.txt"]),
    "/out.txt": (403, b"403 Forbidden\n"),
}


@contextmanager
def cold(root: Path, server: bb.Server | None = None, **more: object) -> Iterator[Loop]:
    """A loop whose kernel knows no name, and whose disk is as slow as the test lets it be; at its end nothing may be
    left of any look-up."""
    for name, content in FILES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(content)
    (root / "link.txt").symlink_to("a.txt")
    (root / "out.txt").symlink_to("/etc/hostname")
    for path in ANSWERS:  # so that a name is unknown only where the test says so
        for behind in ("", ".br", "index.html", "index.html.br"):
            with suppress(OSError):
                os.stat(f"{root}{path}{behind}")
    server = server or make_server(root=str(root), precompressed=("br",), cached_file_size_bytes_max=1 << 20, **more)
    with looping(server) as loop:
        loop.engine.pretend_cold_names(True)
        loop.engine.slow_disk = True
        yield loop
        loop.engine.slow_disk = False
        loop.settle()
        loop.close_all()
        assert loop.stats["openings"]["under_way"] == loop.engine.openings_waiting == 0
        assert open_below(root) == 0


def answer(loop: Loop, client: int, *methods: str) -> list[tuple[int, bytes]]:
    return [(reply.status, reply.body) for reply in loop.replies(client, *methods)]


@pytest.mark.parametrize("late_sends", [False, True])
@pytest.mark.parametrize("path", ANSWERS)
def test_who_asks_waits_and_nobody_else(tmp_path: Path, path: str, late_sends: bool) -> None:
    with cold(tmp_path) as loop:
        loop.engine.late_sends = late_sends
        client = loop.connect(get(path))
        loop.settle()
        assert loop.engine.output(client) == b""
        assert loop.engine.openings_waiting == 1
        assert loop.ask(get("*", method="OPTIONS"), method="OPTIONS").status == 204
        loop.engine.slow_disk = False
        loop.settle()
        assert answer(loop, client) == [ANSWERS[path]]
        assert loop.stats["openings"] == {"later": 1, "under_way": 0}


@pytest.mark.parametrize("path", ANSWERS)
def test_all_figures_are_as_if_nothing_had_been_waited_for(tmp_path: Path, path: str) -> None:
    figures = []
    for is_cold in (False, True):
        folder = tmp_path / str(is_cold)
        folder.mkdir()
        with cold(folder) as loop:
            loop.engine.slow_disk = False
            loop.engine.pretend_cold_names(is_cold)
            heads = []
            for _ in range(3):
                reply = loop.ask(get(path, "Accept-Encoding: br"))
                heads.append({name: text for name, text in reply.headers.items() if name not in ("date", "etag")})
            stats = loop.stats
            cache = {name: count for name, count in stats["cache"].items() if isinstance(count, int)}
            figures.append((loop.outcomes, cache, stats["bytes"], [{**head, "last-modified": ""} for head in heads]))
            assert stats["openings"]["later"] > 0 or not is_cold
    assert figures[0] == figures[1]


def test_a_path_is_looked_up_once_for_all(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        clients = [loop.connect(get("/a.txt")) for _ in range(5)]
        loop.settle()
        goer = loop.connect(get("/a.txt"))
        other = loop.connect(get("/nothing"))
        loop.settle()
        assert loop.engine.openings_waiting == 2
        loop.engine.reset(goer)
        loop.engine.reset(clients.pop(2))
        loop.engine.slow_disk = False
        loop.settle()
        assert [answer(loop, client) for client in clients] == [[ANSWERS["/a.txt"]]] * 4
        assert answer(loop, other) == [ANSWERS["/nothing"]]
        assert loop.stats["openings"]["later"] == 2
        # The requests of those who went were never begun.
        assert loop.outcomes == {"error_4xx": 1, "file": 1, "hit": 3}


def test_answers_keep_their_order(tmp_path: Path) -> None:
    seen, handler = recording()
    server = make_server(root=str(tmp_path))
    server.batch("/items/{name}")(handler)
    with cold(tmp_path, server) as loop:
        client = loop.connect(get("/items/1"), get("/a.txt") + get("/items/2") + get("/nothing") + get("/items/3"))
        loop.settle()
        assert [body for _, body in answer(loop, client)] == [b"/items/1"]
        assert len(seen) == 1, "what lies behind the file is not begun"
        loop.engine.slow_disk = False
        loop.settle()
        bodies = [b"the file a\n", b"/items/2", b"404 Not Found\n", b"/items/3"]
        assert [body for _, body in answer(loop, client)] == bodies


def test_a_cached_file_is_compared_without_anybody_waiting(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        loop.engine.pretend_cold_names(False)
        for path in ("/a.txt", "/large.bin"):
            assert loop.ask(get(path)).body == ANSWERS[path][1]
        loop.engine.pretend_cold_names(True)
        client, other = loop.connect(get("/a.txt")), loop.connect(get("/large.bin"))
        loop.settle()
        assert loop.engine.output(client) == loop.engine.output(other) == b""
        (tmp_path / "a.txt").write_bytes(b"changed\n")
        loop.engine.slow_disk = False
        loop.settle()
        assert answer(loop, client) == [(200, b"changed\n")]
        assert answer(loop, other) == [ANSWERS["/large.bin"]]
        assert loop.outcomes == {"file": 3, "hit": 1}


def test_a_file_of_which_something_is_absent_is_opened_again_without_anybody_waiting(tmp_path: Path) -> None:
    with cold(tmp_path, file_revalidate_s=999.0) as loop:
        loop.engine.pretend_cold_names(False)
        assert loop.ask(get("/large.bin", "Range: bytes=0-9")).status == 206
        loop.engine.pretend_cold_names(True)
        client = loop.connect(get("/large.bin"))
        loop.settle()
        assert loop.engine.output(client) == b"" and loop.engine.openings_waiting == 1
        loop.engine.slow_disk = False
        loop.settle()
        assert answer(loop, client) == [ANSWERS["/large.bin"]]


@pytest.mark.parametrize("change", ["written", "replaced", "removed", "made", "a directory"])
def test_what_a_path_names_when_it_was_waited_for(tmp_path: Path, change: str) -> None:
    with cold(tmp_path) as loop:
        client = loop.connect(get("/new.txt" if change == "made" else "/a.txt"))
        loop.settle()
        if change in ("removed", "a directory"):
            (tmp_path / "a.txt").unlink()
            if change == "a directory":
                (tmp_path / "a.txt").mkdir()
        elif change == "replaced":
            (tmp_path / "other").write_bytes(b"new\n")
            (tmp_path / "other").replace(tmp_path / "a.txt")
        else:
            (tmp_path / ("new.txt" if change == "made" else "a.txt")).write_bytes(b"new\n")
        loop.engine.slow_disk = False
        loop.settle()
        status = {"removed": 404, "a directory": 301}.get(change, 200)
        assert [(reply.status, reply.body == b"new\n") for reply in loop.replies(client)] == [(status, status == 200)]


def test_a_purge_while_it_is_waited_for(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        loop.engine.pretend_cold_names(False)
        assert loop.ask(get("/a.txt")).status == 200
        loop.engine.pretend_cold_names(True)
        client = loop.connect(get("/a.txt"))
        loop.settle()
        assert loop.server.cache.purge(prefix="/") == 1
        loop.engine.slow_disk = False
        loop.settle()
        assert answer(loop, client) == [ANSWERS["/a.txt"]]
        assert loop.outcomes == {"file": 2}


def test_a_client_that_has_sent_all_is_answered(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        client = loop.connect(get("/a.txt") + get("/dir/"))
        loop.engine.feed_end(client)
        loop.settle()
        assert not loop.engine.is_closed(client)
        loop.engine.slow_disk = False
        loop.settle()
        assert answer(loop, client) == [ANSWERS["/a.txt"], ANSWERS["/dir/"]]
        assert loop.engine.is_finished(client)


@pytest.mark.parametrize("more", [b"", get("/dir/"), b"GET /dir/ HT"])
def test_who_waits_too_long_is_told_so(tmp_path: Path, more: bytes) -> None:
    with cold(tmp_path, send_timeout_s=5.0, header_timeout_s=1.0, idle_timeout_s=1.0) as loop:
        client = loop.connect(get("/a.txt"))
        loop.settle()
        loop.settle(3_000_000)
        loop.send(client, more)
        loop.settle(1_000_000)
        assert loop.engine.output(client) == b"" and not loop.engine.is_closed(client)
        loop.settle(2_000_000)
        (reply,) = loop.replies(client)
        assert (reply.status, reply.headers["retry-after"], reply.headers["connection"]) == (503, "1", "close")
        assert loop.engine.is_finished(client)
        assert loop.outcomes == {"error_5xx": 1} and loop.stats["connections"]["timed_out"] == 1
        loop.engine.slow_disk = False
        loop.settle()
        assert loop.engine.output(client) == b""


def test_the_wait_counts_from_the_end_of_what_was_being_sent(tmp_path: Path) -> None:
    with cold(tmp_path, send_timeout_s=5.0) as loop:
        loop.engine.pretend_cold_names(False)
        client = loop.connect()
        loop.engine.send_limit(client, 100)
        loop.send(client, get("/large.bin"))
        loop.settle()
        loop.engine.pretend_cold_names(True)
        loop.send(client, get("/a.txt"))
        loop.settle(3_000_000)
        loop.engine.send_limit(client, None)
        loop.settle(1_000_000)
        assert loop.engine.openings_waiting == 1
        loop.settle(4_000_000)
        assert len(loop.replies(client)) == 1 and not loop.engine.is_closed(client)
        loop.settle(2_000_000)
        assert [reply.status for reply in loop.replies(client)] == [503]


def test_there_are_as_many_as_connections(tmp_path: Path) -> None:
    with cold(tmp_path, max_connections=4) as loop:
        for number in range(4):
            goer = loop.connect(get(f"/{number}"))
            loop.settle()
            loop.engine.reset(goer)
            loop.settle()
        assert loop.engine.openings_waiting == 4
        joiner = loop.connect(get("/2"))
        refused = loop.ask(get("/a.txt"))
        assert (refused.status, refused.headers["retry-after"]) == (503, "1")
        loop.engine.slow_disk = False
        loop.settle()
        assert answer(loop, joiner) == [(404, b"404 Not Found\n")]
        assert loop.ask(get("/a.txt")).status == 200


def test_a_cached_file_that_cannot_be_waited_for_is_not_trusted(tmp_path: Path) -> None:
    with cold(tmp_path, max_connections=2) as loop:
        loop.engine.pretend_cold_names(False)
        assert loop.ask(get("/a.txt")).status == 200
        loop.engine.pretend_cold_names(True)
        for number in range(2):
            goer = loop.connect(get(f"/{number}"))
            loop.settle()
            loop.engine.reset(goer)
            loop.settle()
        assert loop.ask(get("/a.txt")).status == 503
        loop.engine.slow_disk = False
        assert loop.ask(get("/a.txt")).status == 200
        assert loop.outcomes == {"error_5xx": 1, "file": 1, "hit": 1}


def test_what_comes_behind_is_slowed_down(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        client = loop.connect(get("/a.txt"))
        for _ in range(20):
            loop.send(client, get("/nothing", f"X: {'x' * 10_000}"))
        loop.settle()
        assert loop.engine.is_paused(client)
        assert loop.stats["bytes"]["input_waiting"] < 200_000
        loop.engine.slow_disk = False
        loop.settle()
        assert answer(loop, client) == [ANSWERS["/a.txt"], *[ANSWERS["/nothing"]] * 20]


def test_where_there_is_no_memory_for_what_came_behind(tmp_path: Path) -> None:
    with cold(tmp_path, input_size_bytes_max=1 << 20) as loop:
        clients = [loop.connect(get("/a.txt"), b"x" * 60_000) for _ in range(30)]
        loop.settle()
        statuses = [[reply.status for reply in loop.replies(client)] for client in clients]
        assert [503] in statuses and [] in statuses
        loop.engine.slow_disk = False
        loop.settle()
        for client, before in zip(clients, statuses, strict=True):
            # No method is as long as what came behind.
            assert [reply.status for reply in loop.replies(client)] == ([] if before else [200, 501])


def test_draining_waits_for_them(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        client, idle = loop.connect(get("/a.txt")), loop.connect()
        loop.settle()
        loop.engine.drain()
        loop.settle()
        assert loop.engine.is_closed(idle) and not loop.engine.is_closed(client)
        loop.engine.slow_disk = False
        loop.settle()
        (reply,) = loop.replies(client)
        assert (reply.status, reply.headers["connection"]) == (200, "close")
        assert loop.engine.is_closed(client)


def test_a_request_with_a_body_that_is_no_file(tmp_path: Path) -> None:
    with cold(tmp_path) as loop:
        assert loop.ask(post("/a.txt", b"x" * 5_000)).status == 405
        client = loop.connect(get("/a.txt", body=b"x" * 5_000)[:-10])
        loop.settle()
        assert loop.engine.openings_waiting == 0, "it is not whole"
        loop.send(client, b"x" * 10 + get("/dir/"))
        loop.settle()
        assert loop.engine.openings_waiting == 1
        loop.engine.slow_disk = False
        loop.settle()
        assert answer(loop, client) == [ANSWERS["/a.txt"], ANSWERS["/dir/"]]


def test_what_stands_behind_all_files_is_asked_afterwards(tmp_path: Path) -> None:
    """In the role that looks for a file before it asks a user-mode server."""

    def app(environ: dict[str, object], start_response: object) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])  # type: ignore[operator]
        return [f"app {environ['PATH_INFO']}\n".encode()]

    server = bb.Server(
        config=bb.Config(root=str(tmp_path), role="colocated", handler_threads=0, file_revalidate_s=0.0), wsgi=app
    )
    with cold(tmp_path, server) as loop:
        client = loop.connect(get("/nothing") + get("/a.txt"))
        loop.settle()
        assert loop.engine.output(client) == b""
        loop.engine.slow_disk = False
        loop.settle()
        assert [reply.body for reply in loop.replies(client)] == [b"app /nothing\n", b"the file a\n"]


steps = st.lists(st.tuples(st.sampled_from(sorted(ANSWERS)), st.integers(0, 6), st.integers(1, 5)), max_size=25)


@given(steps, st.sampled_from([0.0, 0.5, 999.0]))
def test_any_mixture_of_comers_and_goers(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, int]], revalidate_s: float
) -> None:
    with cold(tmp_path_factory.mktemp("root"), file_revalidate_s=revalidate_s) as loop:
        under_way: list[tuple[int, list[str]]] = []
        for path, what, number in steps:
            if what <= 2:
                under_way.append((loop.connect(get(path) * number), [path] * number))
            elif what == 3 and under_way:
                client, _ = under_way.pop(number % len(under_way))
                loop.engine.reset(client)
            elif what == 4:
                loop.server.cache.purge(url=path)
            elif what == 5:
                loop.engine.pretend_cold(number % 2 == 0)
            else:
                loop.engine.slow_disk = not loop.engine.slow_disk
            loop.turn(number * 50_000)
        loop.engine.slow_disk = False
        loop.settle()
        for client, paths in under_way:
            assert answer(loop, client) == [ANSWERS[path] for path in paths]
