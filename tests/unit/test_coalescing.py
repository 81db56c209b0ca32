"""Identical GETs that wait at the same time take one place in a batch and all get its answer, whoever of them goes
first; whatever could make their answers differ keeps them apart.
"""

from collections.abc import Callable
from typing import Any

import pytest

import batchbridge as bb
from support.loop import Loop, get, looping, make_server

S = 1_000_000


def serving(answer: Callable[[bb.Request], Any] | None = None, **policy: Any) -> tuple[bb.Server, list[bb.Request]]:
    """A server whose handler at /h counts up in its answers, unless it is told otherwise, and the requests it saw."""
    server = make_server()
    seen: list[str] = []

    @server.batch("/h", **{"coalesce": True, "methods": ["GET", "POST"], **policy})
    def handler(batch: bb.Batch) -> list[Any]:
        answers = []
        for request in batch:
            seen.append(f"{request.method} {request.authority} {request.path}?{request.query_string.decode()}")
            answers.append(answer(request) if answer else f"answer {len(seen)}")
        return answers

    return server, seen


def texts(loop: Loop, clients: list[int]) -> list[str]:
    return [loop.replies(client)[0].text for client in clients]


def test_identical_requests_share_one_item_and_its_answer() -> None:
    server, seen = serving()
    with looping(server) as loop:
        clients = [loop.connect(get("/h?a=1")) for _ in range(5)]
        loop.settle()
        assert seen == ["GET test /h?a=1"]
        assert texts(loop, clients) == ["answer 1"] * 5
        assert loop.stats["bridge"]["coalesced"] == 4
        assert loop.stats["routes"]["/h"]["items"] == 1
        assert loop.outcomes == {"batch": 5}


def test_a_request_joins_one_that_a_handler_works_on() -> None:
    server, _ = serving()
    with looping(server) as loop:
        clients = [loop.connect(get("/h"))]
        loop.turn()
        clients.append(loop.connect(get("/h")))
        loop.turn()
        loop.settle()
        assert texts(loop, clients) == ["answer 1"] * 2


def test_after_the_answer_the_next_one_asks_anew() -> None:
    server, _ = serving()
    with looping(server) as loop:
        clients = []
        for _ in range(2):
            clients.append(loop.connect(get("/h")))
            loop.settle()
        assert texts(loop, clients) == ["answer 1", "answer 2"]
        assert loop.stats["bridge"]["coalesced"] == 0


@pytest.mark.parametrize(
    ("other", "shared"),
    [
        (get("/h?b"), 1),
        (get("/h"), 1),
        (get("/h?a="), 1),
        (get("/h?a").replace(b"Host: test", b"Host: other"), 1),
        (get("/h?a", "Accept: text/html"), 1),
        (get("/h?a", "accept: TEXT/HTML", "X-Tenant: 1"), 1),
        (get("/h?a", "X-Tenant: 1", "X-Tenant: 2"), 1),
        (get("/%68?a"), 1),
        # These are never shared, not even with their like.
        (get("/h?a", method="HEAD"), 0),
        (get("/h?a", method="POST"), 0),
        (get("/h?a", body=b"x"), 0),
        (get("/h?a", "Cookie: a=b"), 0),
        (get("/h?a", "Authorization: Basic eA=="), 0),
    ],
)
def test_what_may_differ_is_kept_apart(other: bytes, shared: int) -> None:
    server, seen = serving(vary=["accept", "X-Tenant"])
    server.batch("/%68", coalesce=True)(server.handlers["/h"].function)
    with looping(server) as loop:
        clients = [loop.connect(request) for request in (get("/h?a"), other, other)]
        loop.settle()
        assert len(seen) == 3 - shared
        assert loop.stats["bridge"]["coalesced"] == shared
        answers = [loop.replies(client, "HEAD" if other.startswith(b"HEAD") else "GET")[0] for client in clients[1:]]
        first = loop.replies(clients[0])[0]
        assert all(answer.status == 200 and answer.body != first.body for answer in answers)


@pytest.mark.parametrize(
    "other", [get("/h?a", "User-Agent: x"), get("/h?a", version="1.0"), get("http://test/h?a", "X-Other: y")]
)
def test_what_cannot_make_a_difference_does_not(other: bytes) -> None:
    server, _ = serving(vary=["accept"])
    with looping(server) as loop:
        clients = [loop.connect(request) for request in (get("/h?a"), other)]
        loop.settle()
        assert texts(loop, clients) == ["answer 1"] * 2


@pytest.mark.parametrize("size", [10, 5000, 100_000])
def test_each_gets_header_lines_of_its_own(size: int) -> None:
    server, seen = serving(lambda request: b"%b" % (b"x" * size))
    with looping(server) as loop:
        close, keep, old = (
            loop.connect(request)
            for request in (
                get("/h", "Connection: close"),
                get("/h"),
                get("/h", "Connection: keep-alive", version="1.0"),
            )
        )
        loop.settle()
        assert len(seen) == 1
        replies = [loop.replies(client)[0] for client in (close, keep, old)]
        assert [reply.headers.get("connection") for reply in replies] == ["close", None, "keep-alive"]
        assert all(reply.body == b"x" * size for reply in replies)
        assert [loop.engine.is_closed(client) for client in (close, keep, old)] == [True, False, False]


def test_two_on_one_connection_are_answered_in_order() -> None:
    server, _ = serving()
    with looping(server) as loop:
        client = loop.connect(get("/h?1") + get("/h?2") + get("/h?1") + get("/nothing") + get("/h?2"))
        loop.settle()
        answers = [reply.text for reply in loop.replies(client)]
        assert answers == ["answer 1", "answer 2", "answer 1", "404 Not Found\n", "answer 3"]


def test_an_error_is_shared_too() -> None:
    server, _ = serving(lambda request: bb.HTTPError(404, "not this one"))
    with looping(server) as loop:
        clients = [loop.connect(get("/h")) for _ in range(3)]
        loop.settle()
        assert texts(loop, clients) == ["not this one\n"] * 3


def test_those_who_share_do_not_fill_the_queue() -> None:
    server, seen = serving(max_queue_size=2)
    with looping(server) as loop:
        clients = [loop.connect(get(f"/h?{n}")) for n in (1, 1, 1, 2, 2, 1, 3)]
        loop.settle()
        replies = [loop.replies(client)[0] for client in clients]
        assert [reply.status for reply in replies] == [200] * 6 + [503]
        assert len(seen) == 2


# --- who goes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["waiting", "with the handler"])
@pytest.mark.parametrize("gone", [(0,), (1,), (2,), (0, 1), (0, 2), (1, 0), (2, 1), (1, 2, 0)])
def test_the_others_are_answered_when_some_go(when: str, gone: tuple[int, ...]) -> None:
    server, seen = serving()
    with looping(server) as loop:
        busy = loop.connect(get("/h?busy"))
        loop.turn()
        clients = [loop.connect(get("/h?a")) for _ in range(3)]
        loop.turn()
        if when != "waiting":
            loop.work()
            loop.turn()
        for which in gone:
            loop.engine.reset(clients[which])
            loop.turn()
        loop.settle()
        assert loop.replies(busy)[0].text == "answer 1"
        left = [client for which, client in enumerate(clients) if which not in gone]
        assert texts(loop, left) == ["answer 2"] * len(left)
        assert loop.outcomes == {"batch": 1 + len(left), "client_gone": len(gone)}
        assert len(seen) == (1 if when == "waiting" and not left else 2)
        assert loop.stats["bridge"]["dropped_disconnected"] == (when == "waiting" and not left)


def test_an_heir_is_not_joined_by_newcomers_but_answered() -> None:
    server, _ = serving()
    with looping(server) as loop:
        loop.connect(get("/h?busy"))
        loop.turn()
        leader, heir = (loop.connect(get("/h?a")) for _ in range(2))
        loop.turn()
        loop.engine.reset(leader)
        loop.turn()
        newcomers = [loop.connect(get("/h?a")) for _ in range(2)]
        loop.turn()
        loop.settle()
        assert texts(loop, [heir, *newcomers]) in (["answer 2"] * 3, ["answer 2", "answer 3", "answer 3"])


def test_each_has_its_own_time_out() -> None:
    server, _ = serving(timeout_us=10 * S)
    with looping(server) as loop:
        first = loop.connect(get("/h"))
        loop.turn()
        loop.turn(6 * S)
        second = loop.connect(get("/h"))
        loop.turn()
        loop.turn(5 * S)
        loop.turn()
        assert loop.replies(first)[0].status == 504
        assert loop.output(second) == b""
        loop.settle()
        assert loop.replies(second)[0].text == "answer 1"
        assert loop.stats["bridge"]["late"] == 0


def test_a_follower_may_be_late_while_its_leader_is_not() -> None:
    server, _ = serving(timeout_us=10 * S)
    with looping(server) as loop:
        leader = loop.connect(get("/h"))
        loop.turn()
        follower = loop.connect(get("/h"))
        loop.turn()
        loop.engine.reset(leader)
        loop.turn()
        loop.turn(11 * S)
        loop.turn()
        assert loop.replies(follower)[0].status == 504
        loop.settle()
        assert loop.stats["bridge"]["late"] == 1


def test_each_has_its_own_time_in_the_queue() -> None:
    server, _ = serving(queue_timeout_us=10 * S)
    with looping(server) as loop:
        loop.connect(get("/h?busy"))
        loop.turn()
        leader = loop.connect(get("/h?a"))
        loop.turn()
        loop.turn(9 * S)
        follower = loop.connect(get("/h?a"))
        loop.turn()
        loop.turn(2 * S)
        loop.turn()
        assert loop.replies(leader)[0].status == 503
        loop.settle()
        assert loop.replies(follower)[0].text == "answer 2"
