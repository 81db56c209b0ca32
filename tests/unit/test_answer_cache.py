"""Answers that a handler lets the engine keep: for which requests they are, for how long, how they are told apart, and
that none outlives its purge. Time is the test's own.
"""

from typing import Any

import pytest

import batchbridge as bb
from support.loop import Loop, get, looping, make_server, post

S = 1_000_000


def serving(*, vary: Any = (), methods: Any = ("GET", "POST"), **answer: Any) -> Any:
    """A Loop around a server whose handler counts up in its answers, which may be kept for 10 s."""
    server = make_server()
    count = [0]

    @server.batch("/h/{name}", methods=methods, vary=vary)
    def handler(batch: bb.Batch) -> None:
        for request in batch:
            count[0] += 1
            kept = {"cache_ttl_s": 10, **answer} if request.method in ("GET", "HEAD") else {}
            request.respond(f"{count[0]}", **kept)

    return looping(server)


def ask(loop: Loop, *requests: bytes) -> list[str]:
    return [loop.ask(request).text for request in requests]


def test_an_answer_is_kept_for_its_time_and_tells_its_age() -> None:
    with serving() as loop:
        first = loop.ask(get("/h/a"))
        assert "age" not in first.headers
        for wait_s, age in ((0, "0"), (3, "3"), (6, "9")):
            loop.turn(wait_s * S)
            reply = loop.ask(get("/h/a"))
            assert (reply.text, reply.headers["age"]) == ("1", age)
            assert {name: value for name, value in reply.headers.items() if name not in ("age", "date")} == {
                name: value for name, value in first.headers.items() if name != "date"
            }
        loop.turn(1 * S)
        reply = loop.ask(get("/h/a"))
        assert (reply.text, "age" in reply.headers) == ("2", False)
        assert loop.outcomes == {"batch": 2, "hit": 3}
        assert loop.stats["cache"]["objects"] == 1


@pytest.mark.parametrize("ttl", [0, -1, 0.5, None])
def test_without_a_time_it_is_not_kept(ttl: Any) -> None:
    with serving(cache_ttl_s=ttl) as loop:
        assert ask(loop, get("/h/a"), get("/h/a")) == ["1", "2"]
        assert loop.stats["cache"]["objects"] == 0


def test_a_request_is_one_hit_or_one_miss(tmp_path: Any) -> None:
    (tmp_path / "a.txt").write_bytes(b"a")
    server = make_server(root=str(tmp_path))
    server.batch("/h/{name}")(lambda batch: [bb.Response("x", cache_ttl_s=9) for _ in batch])
    with looping(server) as loop:
        for request in (get("/h/a"), get("/a.txt"), get("/none"), get("/h/a"), get("/a.txt")):
            loop.ask(request)
        stats = loop.stats["cache"]
        assert (stats["hits"], stats["misses"]) == (2, 3)


def test_a_time_is_whole_seconds_and_bounded() -> None:
    with serving(cache_ttl_s=1e12) as loop:
        assert ask(loop, get("/h/a")) == ["1"]
        for _ in range(3):
            loop.turn(86_400 * 365 * S)
            assert ask(loop, get("/h/a")) == ["1"]
    with serving(cache_ttl_s=1.9) as loop:
        assert ask(loop, get("/h/a")) == ["1"]
        loop.turn(1_500_000)
        assert ask(loop, get("/h/a")) == ["2"]


@pytest.mark.parametrize("bad", ["soon", float("nan"), float("inf"), [1]])
def test_a_time_that_is_no_number_is_refused(bad: Any) -> None:
    server = make_server()
    server.batch("/h")(lambda batch: [bb.Response("x", cache_ttl_s=bad) for _ in batch])
    with server.test_client() as client:
        assert client.get("/h").status == 500


# --- methods and credentials ------------------------------------------------------------------------------------------


def test_head_is_answered_from_a_gets_answer() -> None:
    with serving() as loop:
        assert ask(loop, get("/h/a")) == ["1"]
        reply = loop.ask(get("/h/a", method="HEAD"), method="HEAD")
        assert (reply.status, reply.body, reply.headers["content-length"], reply.headers["age"]) == (200, b"", "1", "0")


def test_get_is_not_answered_from_a_heads_answer() -> None:
    with serving() as loop:
        loop.ask(get("/h/a", method="HEAD"), method="HEAD")
        assert ask(loop, get("/h/a"), get("/h/a")) == ["2", "2"]


def test_other_methods_are_neither_kept_nor_answered() -> None:
    with serving() as loop:
        assert ask(loop, get("/h/a"), post("/h/a"), get("/h/a"), post("/h/a")) == ["1", "2", "1", "3"]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_to_ask_for_it_with_another_method_is_an_error(method: str) -> None:
    server = make_server()
    errors: list[str] = []

    @server.batch("/h", methods=[method])
    def handler(batch: bb.Batch) -> list[str]:
        for request in batch:
            with pytest.raises(ValueError, match="cache_ttl_s: only answers to GET and HEAD") as caught:
                request.respond(b"x", cache_ttl_s=5)
            errors.append(str(caught.value))
        return ["x"] * len(batch)

    with server.test_client() as client:
        assert client.request(method, "/h").status == 200
        assert errors


@pytest.mark.parametrize("credentials", ["Cookie: a=b", "Authorization: Bearer x"])
def test_a_request_with_credentials_is_neither_kept_nor_answered(credentials: str) -> None:
    with serving() as loop:
        own = get("/h/a", credentials)
        assert ask(loop, own, own, get("/h/a"), own, get("/h/a")) == ["1", "2", "3", "4", "3"]


@pytest.mark.parametrize("credentials", ["Cookie: a=b", "Authorization: Bearer x"])
def test_unless_the_answer_is_public(credentials: str) -> None:
    with serving(public=True) as loop:
        own = get("/h/a", credentials)
        assert ask(loop, own, own, get("/h/a"), get("/h/a", "Cookie: other")) == ["1"] * 4


@pytest.mark.parametrize("line", ["Cache-Control: no-cache", "Cache-Control: no-store", "Pragma: no-cache"])
def test_a_client_can_insist_on_a_new_answer(line: str) -> None:
    with serving() as loop:
        assert ask(loop, get("/h/a"), get("/h/a", line)) == ["1", "2"]


@pytest.mark.parametrize("status", [200, 203, 204, 301, 404, 410, 500])
def test_any_status_is_kept_with_its_headers(status: int) -> None:
    server = make_server()
    server.batch("/h")(lambda batch: [bb.Response("x", status, headers={"X": "y"}, cache_ttl_s=9) for _ in batch])
    with looping(server) as loop:
        first, second = loop.ask(get("/h")), loop.ask(get("/h"))
        assert (second.status, second.body, second.headers["x"]) == (status, first.body, "y")
        assert loop.stats["cache"]["hits"] == 1


# --- what tells answers apart -----------------------------------------------------------------------------------------


def test_authority_path_and_query_tell_answers_apart() -> None:
    with serving() as loop:
        requests = [
            get("/h/a"),
            get("/h/a?"),
            get("/h/a?x"),
            get("/h/a?x="),
            get("/h/%61"),
            get("/h/b"),
            get("/h/a").replace(b"Host: test", b"Host: other"),
            get("/h/a").replace(b"Host: test", b"Host: test:80"),
        ]
        first = ask(loop, *requests)
        assert len(set(first)) >= len(requests) - 1  # an empty query may be no query
        assert ask(loop, *requests) == first


def test_absolute_form_names_the_same_as_host() -> None:
    with serving() as loop:
        assert ask(loop, get("/h/a"), get("http://test/h/a"), get("http://else/h/a")) == ["1", "1", "2"]


def test_headers_named_in_vary_tell_answers_apart() -> None:
    with serving(vary=["Accept", "x-tenant"]) as loop:
        requests = [
            get("/h/a"),
            get("/h/a", "Accept: a"),
            get("/h/a", "Accept: b"),
            get("/h/a", "Accept: "),
            get("/h/a", "X-Tenant: a"),
            get("/h/a", "Accept: a", "X-Tenant: a"),
            get("/h/a", "Accept: a", "Accept: b"),
        ]
        first = ask(loop, *requests)
        assert len(set(first)) == len(requests)
        assert ask(loop, *requests) == first
        assert ask(loop, get("/h/a", "ACCEPT:   a ", "X-Other: 1")) == [first[1]]
        assert loop.ask(get("/h/a")).headers["vary"] == "Accept, x-tenant"


@pytest.mark.parametrize(
    ("named", "is_kept"),
    [
        ("Accept", True),
        ("X-TENANT , accept", True),
        ("", True),
        ("Accept, Accept-Language", False),
        ("accept-", False),
        ("accep", False),
        ("*", False),
    ],
)
def test_an_answer_that_varies_by_more_than_its_route_is_not_kept(named: str, is_kept: bool) -> None:
    with serving(vary=["Accept", "X-Tenant"], headers={"X-A": "b", "Vary": named}) as loop:
        client = loop.connect(get("/h/a"))
        loop.settle()
        loop.send(client, get("/h/a"))
        loop.settle()
        # Two lines of Vary, which Loop.ask takes none of.
        assert loop.output(client)[-1:] == (b"1" if is_kept else b"2")


def test_a_routes_answer_is_not_given_to_another_routes_request() -> None:
    server = make_server()
    server.batch("/h/a")(lambda batch: [bb.Response("literal", cache_ttl_s=9) for _ in batch])
    server.batch("/h/{name}")(lambda batch: [bb.Response("template", cache_ttl_s=9) for _ in batch])
    with looping(server) as loop:
        assert ask(loop, get("/h/b"), get("/h/a"), get("/h/b"), get("/h/a")) == ["template", "literal"] * 2


def test_a_large_answer_is_kept_like_a_small_one() -> None:
    server = make_server()
    server.batch("/h")(lambda batch: [bb.Response(b"xy" * 200_000, cache_ttl_s=9) for _ in batch])
    with looping(server) as loop:
        client = loop.connect(get("/h"))
        loop.settle()
        loop.send(client, get("/h"), get("/h"))
        loop.settle()
        assert [reply.body for reply in loop.replies(client)] == [b"xy" * 200_000] * 3
        assert loop.outcomes == {"batch": 1, "hit": 2}


def test_a_cache_of_no_size_keeps_nothing() -> None:
    server = make_server(cache_size_bytes=0)
    server.batch("/h")(lambda batch: [bb.Response("x", cache_ttl_s=9) for _ in batch])
    with looping(server) as loop:
        assert ask(loop, get("/h"), get("/h")) == ["x", "x"]
        assert loop.outcomes == {"batch": 2}
        assert loop.stats["cache"]["refused"] == 2


@pytest.mark.parametrize(("length", "is_kept"), [(10, True), (3000, True), (6000, False)])
def test_what_has_a_very_long_name_is_not_kept(length: int, is_kept: bool) -> None:
    with serving() as loop:
        target = "/h/a?" + "q" * length
        assert ask(loop, get(target), get(target)) == (["1", "1"] if is_kept else ["1", "2"])


def test_identical_requests_under_way_each_replace_the_other() -> None:
    with serving() as loop:
        clients = [loop.connect(get("/h/a")) for _ in range(3)]
        loop.settle()
        assert [loop.replies(client)[0].text for client in clients] == ["1", "2", "3"]
        assert loop.stats["cache"]["objects"] == 1
        assert ask(loop, get("/h/a"))[0] in ("1", "2", "3")


# --- purge ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def stocked() -> Any:
    server = make_server()

    @server.batch("/{kind}/{name}")
    def handler(batch: bb.Batch) -> list[bb.Response]:
        return [
            bb.Response("x", cache_ttl_s=9, tags=[f"kind-{r.params['kind']}", "all", r.params["name"]]) for r in batch
        ]

    with looping(server) as loop:
        for target in ("/a/1", "/a/1?q", "/a/12", "/a/2", "/b/1", "/ab/1", "/a/%31"):
            loop.ask(get(target))
        loop.ask(get("/a/1").replace(b"Host: test", b"Host: other"))
        assert loop.stats["cache"]["objects"] == 8
        yield loop


@pytest.mark.parametrize(
    ("what", "count"),
    [
        ({"url": "/a/1"}, 2),  # both hosts'
        ({"url": "/a/1?q"}, 1),
        ({"url": "/a/%31"}, 1),
        ({"url": "/a/"}, 0),
        ({"url": "/a/1?"}, 0),
        ({"url": ""}, 0),
        ({"prefix": "/a/"}, 6),
        ({"prefix": "/a"}, 7),
        ({"prefix": "/a/1"}, 4),
        ({"prefix": "/"}, 8),
        ({"prefix": "/c"}, 0),
        ({"tag": "all"}, 8),
        ({"tag": "kind-a"}, 6),
        ({"tag": "1"}, 6),
        ({"tag": "al"}, 0),
        ({"tag": ""}, 0),
        ({"tag": "12"}, 1),
    ],
)
def test_a_purge_removes_what_it_names_and_nothing_else(stocked: Loop, what: dict[str, str], count: int) -> None:
    assert stocked.server.cache.purge(**what) == count
    stats = stocked.server.cache.stats()
    assert (stats["objects"], stats["purged"]) == (8 - count, count)
    assert stocked.server.cache.purge(**what) == 0


@pytest.mark.parametrize("what", [{}, {"url": "/", "tag": "x"}, {"url": "/", "prefix": "/", "tag": "x"}, {"tag": None}])
def test_a_purge_names_one_thing(stocked: Loop, what: Any) -> None:
    with pytest.raises((ValueError, bb.PurgeError), match="purge takes one of url, prefix and tag"):
        stocked.server.cache.purge(**what)


def test_after_a_purge_nobody_gets_the_old_answer() -> None:
    with serving() as loop:
        assert ask(loop, get("/h/a"), get("/h/a")) == ["1", "1"]
        assert loop.server.cache.purge(url="/h/a") == 1
        assert ask(loop, get("/h/a"), get("/h/a")) == ["2", "2"]


@pytest.mark.parametrize("answered", [True, False])
@pytest.mark.parametrize("what", [{"url": "/h/a"}, {"prefix": "/h"}, {"tag": "t"}])
def test_an_answer_made_before_a_purge_is_not_kept_after_it(answered: bool, what: dict[str, str]) -> None:
    with serving(tags="t") as loop:
        client = loop.connect(get("/h/a"))
        loop.turn()
        batch = loop.workers[0].next_batch()
        assert batch is not None
        if answered:
            loop.workers[0].run_batch(batch)
        loop.server.cache.purge(**what)
        if not answered:
            loop.workers[0].run_batch(batch)
        del batch
        loop.settle()
        assert loop.replies(client)[0].text == "1"
        assert ask(loop, get("/h/a"), get("/h/a")) == ["2", "2"]


def test_an_answer_that_is_leaving_when_it_is_purged_leaves_whole() -> None:
    server = make_server()
    server.batch("/h")(lambda batch: [bb.Response(b"z" * 300_000, cache_ttl_s=9) for _ in batch])
    with looping(server) as loop:
        loop.ask(get("/h"))
        client = loop.connect(get("/h"))
        loop.engine.send_limit(client, 10_000)
        loop.settle()
        assert server.cache.purge(prefix="/") == 1
        for _ in range(50):  # whatever was given back is used again
            loop.ask(get("/h"))
            server.cache.purge(prefix="/")
        loop.engine.send_limit(client, None)
        loop.settle()
        assert loop.replies(client)[0].body == b"z" * 300_000


@pytest.mark.parametrize("tags", ["one", ["one"], ("one", "two"), {"one"}, iter(["one"]), [1, "one"]])
def test_tags_are_one_or_several(tags: Any) -> None:
    with serving(tags=tags) as loop:
        ask(loop, get("/h/a"))
        assert loop.server.cache.purge(tag="one") == 1


def test_a_tag_with_a_nul_cannot_pose_as_two() -> None:
    server = make_server()
    server.batch("/h")(lambda batch: [bb.Response("x", cache_ttl_s=9, tags=["a\0b"]) for _ in batch])
    with looping(server) as loop:
        status = loop.ask(get("/h")).status
        assert status == 500 or (server.cache.purge(tag="a"), server.cache.purge(tag="b")) == (0, 0)
