"""Which requests make a batch, and when it leaves: sizes and reasons under each policy, with a clock of the test's own;
policies changed while requests wait; queues, concurrency, and answers that come back in groups.
"""

from collections.abc import Callable
from typing import Any

import pytest

import batchbridge as bb
from support.loop import Loop, get, looping, make_server, recording

S = 1_000_000
Serve = Callable[..., tuple[bb.Server, list[Any]]]


@pytest.fixture
def serve() -> Serve:
    def serve(**policy: Any) -> tuple[bb.Server, list[Any]]:
        """A server with a handler at /h that notes its batches."""
        server = make_server()
        seen, handler = recording()
        server.batch("/h", **policy)(handler)
        return server, seen

    return serve


def ask(loop: Loop, count: int, path: str = "/h") -> list[int]:
    return [loop.connect(get(path)) for _ in range(count)]


def statuses(loop: Loop, clients: list[int]) -> list[int]:
    return [reply.status for client in clients for reply in loop.replies(client)]


# --- policy idle ------------------------------------------------------------------------------------------------------


def test_what_arrives_in_one_turn_is_one_batch(serve: Serve) -> None:
    server, seen = serve()
    with looping(server) as loop:
        clients = ask(loop, 5)
        loop.settle()
        assert seen == [(5, "idle")]
        assert statuses(loop, clients) == [200] * 5


def test_a_batch_is_full_at_max_batch_size_and_the_rest_gathers_while_the_handler_works(serve: Serve) -> None:
    server, seen = serve(max_batch_size=8)
    with looping(server) as loop:
        ask(loop, 11)
        loop.turn()
        ask(loop, 2)
        loop.turn()
        assert loop.stats["routes"]["/h"]["in_flight"] == 1
        assert loop.stats["routes"]["/h"]["queued"] == 5
        loop.settle()
        assert seen == [(8, "full"), (5, "idle")]


def test_idle_waits_while_more_input_is_there(serve: Serve) -> None:
    server, seen = serve()
    with looping(server) as loop:
        for _ in range(3):
            ask(loop, 1)
            loop.turn(10 * S, more_input=True)
            loop.work()
        assert seen == []
        loop.settle()
        assert seen == [(3, "idle")]


def test_idle_with_a_delay_waits_no_longer_than_that_for_more_input(serve: Serve) -> None:
    server, seen = serve(max_queue_delay_us=10 * S)
    with looping(server) as loop:
        ask(loop, 2)
        loop.turn(more_input=True)
        loop.turn(9 * S, more_input=True)
        assert loop.work() == 0
        assert loop.wait_us() == 0  # what is more must be looked at, or found not to be there
        loop.turn(1 * S, more_input=True)
        assert loop.work() == 1
        assert seen == [(2, "delay")]


@pytest.mark.parametrize(
    ("waiting", "batches"),
    [
        (3, [(3, "idle")]),
        (4, [(4, "idle")]),
        (5, [(4, "idle"), (1, "idle")]),
        (11, [(8, "idle"), (3, "idle")]),
        (16, [(8, "idle"), (8, "idle")]),
        (20, [(20, "full")]),
        (29, [(20, "full"), (8, "idle"), (1, "idle")]),
    ],
)
def test_idle_takes_the_largest_preferred_size_that_is_full(serve: Serve, waiting: int, batches: list[Any]) -> None:
    server, seen = serve(max_batch_size=20, preferred_batch_size=(8, 4))
    with looping(server) as loop:
        ask(loop, waiting)
        loop.settle()
        assert seen == batches


# --- other policies ---------------------------------------------------------------------------------------------------


def test_fixed_leaves_only_when_full_or_when_the_delay_is_over(serve: Serve) -> None:
    server, seen = serve(policy="fixed", max_batch_size=4, max_queue_delay_us=10 * S)
    with looping(server) as loop:
        ask(loop, 3)
        loop.settle()
        loop.settle(9 * S)
        assert seen == []
        ask(loop, 1)
        loop.settle()
        assert seen == [(4, "full")]
        ask(loop, 1)
        loop.settle()
        loop.settle(6 * S)
        ask(loop, 1)  # the delay is the oldest one's
        loop.settle()
        loop.settle(4 * S)
        assert seen[1:] == [(2, "delay")]


def test_fixed_without_a_delay_leaves_at_once(serve: Serve) -> None:
    server, seen = serve(policy="fixed")
    with looping(server) as loop:
        ask(loop, 3)
        loop.turn(more_input=True)
        loop.work()
        assert seen == [(3, "delay")]


def test_the_delay_is_the_only_timer(serve: Serve) -> None:
    server, _ = serve(policy="fixed", max_queue_delay_us=20 * S)
    with looping(server) as loop:
        (client,) = ask(loop, 1)
        loop.turn()
        assert 19 * S < loop.wait_us() <= 20 * S
        loop.turn(15 * S)
        assert 4 * S < loop.wait_us() <= 5 * S
        loop.engine.reset(client)
        loop.turn()
        loop.settle(80 * S)  # beyond all that was ever armed for it
        assert loop.wait_us() == -1


@pytest.mark.parametrize("timeouts", [{"timeout_us": 10 * S}, {"queue_timeout_us": 10 * S}])
def test_a_deadline_lets_a_batch_leave_at_half_of_the_time_out(serve: Serve, timeouts: dict[str, int]) -> None:
    server, seen = serve(policy="fixed", max_queue_delay_us=60 * S, **timeouts)
    with looping(server) as loop:
        clients = ask(loop, 2)
        loop.settle()
        loop.settle(4 * S)
        assert seen == []
        assert 0 < loop.wait_us() <= 1 * S
        loop.settle(1 * S)
        assert seen == [(2, "deadline")]
        assert statuses(loop, clients) == [200, 200]


def test_a_draining_engine_waits_for_nobody(serve: Serve) -> None:
    server, seen = serve(policy="fixed", max_batch_size=4, max_queue_delay_us=60 * S)
    with looping(server) as loop:
        clients = ask(loop, 6)
        loop.turn()
        loop.engine.drain()
        loop.settle()
        assert seen == [(4, "full"), (2, "closing")]
        for client in clients:
            (reply,) = loop.replies(client)
            assert (reply.status, reply.headers["connection"]) == (200, "close")
            assert loop.engine.is_closed(client)


def test_adaptive_halves_its_delay_above_the_objective_and_grows_below(serve: Serve) -> None:
    server, seen = serve(policy="adaptive", max_queue_delay_us=10 * S, latency_objective_us=5 * S)
    with looping(server) as loop:
        delays = [loop.stats["routes"]["/h"]["effective_delay_us"]]
        for _ in range(6):
            ask(loop, 1)
            loop.turn()
            before = len(seen)
            loop.settle(delays[-1] - S)
            assert len(seen) == before
            loop.settle(S)
            assert seen[before:] == [(1, "delay")]
            delays.append(loop.stats["routes"]["/h"]["effective_delay_us"])
        # 5 s and a little is too slow; 2.5 s leaves room for more, a 32nd of the maximum at a time.
        assert delays == [10 * S, 5 * S, 2_500_000, 2_812_500, 3_125_000, 3_437_500, 3_750_000]


def test_adaptive_counts_the_time_that_the_handler_takes(serve: Serve) -> None:
    server, _ = serve(policy="adaptive", max_queue_delay_us=10 * S, latency_objective_us=20 * S, max_batch_size=1)
    with looping(server) as loop:
        for took_us, delay_us in ((21 * S, 5 * S), (21 * S, 2_500_000), (19 * S, 2_500_000), (S, 2_812_500)):
            ask(loop, 1)
            loop.turn()
            loop.turn(took_us)
            loop.settle()
            assert loop.stats["routes"]["/h"]["effective_delay_us"] == delay_us


# --- while it runs ----------------------------------------------------------------------------------------------------


def test_a_changed_policy_holds_for_what_waits_already(serve: Serve) -> None:
    server, seen = serve(policy="fixed", max_queue_delay_us=60 * S)
    with looping(server) as loop:
        ask(loop, 5)
        loop.settle()
        assert seen == []
        assert server.set_policy("/h", policy="idle", max_batch_size=2) == server.policy("/h")
        loop.settle()
        assert seen == [(2, "full"), (2, "full"), (1, "idle")]


def test_a_changed_policy_holds_from_the_next_batch(serve: Serve) -> None:
    server, seen = serve(max_batch_size=2)
    with looping(server) as loop:
        ask(loop, 6)
        loop.turn()
        server.set_policy("/h", max_batch_size=3)
        loop.settle()
        assert seen == [(2, "full"), (3, "full"), (1, "idle")]
        server.set_policy("/h", max_queue_size=1)
        clients = ask(loop, 2)
        loop.settle()
        assert sorted(statuses(loop, clients)) == [200, 503]


def test_coalescing_can_be_switched_while_it_runs(serve: Serve) -> None:
    server, seen = serve()
    with looping(server) as loop:
        for coalesce, sizes in ((True, [1]), (False, [3])):
            server.set_policy("/h", coalesce=coalesce)
            seen.clear()
            clients = ask(loop, 3)
            loop.settle()
            assert [size for size, _ in seen] == sizes
            assert statuses(loop, clients) == [200] * 3


def test_what_makes_no_sense_changes_nothing(serve: Serve) -> None:
    server, _ = serve(max_batch_size=7)
    with looping(server):
        before = server.policy("/h")
        with pytest.raises(bb.ConfigError, match="max_batch_size"):
            server.set_policy("/h", max_batch_size=0)
        with pytest.raises(bb.ConfigError, match="did you mean max_batch_size"):
            server.set_policy("/h", max_batch_sizes=5)
        with pytest.raises(bb.ConfigError, match="latency_objective_us"):
            server.set_policy("/h", policy="adaptive")
        with pytest.raises(KeyError):
            server.set_policy("/nobody", max_batch_size=5)
        assert server.policy("/h") == before


def test_no_policy_exceeds_the_servers_batch_size_max() -> None:
    server = make_server(batch_size_max=4)
    seen, handler = recording()
    server.batch("/h", max_batch_size=64)(handler)
    with looping(server) as loop:
        ask(loop, 6)
        loop.settle()
        assert seen == [(4, "full"), (2, "idle")]
        assert server.set_policy("/h", max_batch_size=9).max_batch_size == 4


# --- queues -----------------------------------------------------------------------------------------------------------


def test_a_full_queue_says_503_and_when_to_come_again(serve: Serve) -> None:
    server, seen = serve(max_queue_size=3)
    with looping(server) as loop:
        clients = ask(loop, 5)
        loop.settle()
        replies = [reply for client in clients for reply in loop.replies(client)]
        assert [reply.status for reply in replies] == [200, 200, 200, 503, 503]
        assert {reply.headers.get("retry-after") for reply in replies[3:]} == {"1"}
        assert all("connection" not in reply.headers for reply in replies)  # the connection may be used on
        assert seen == [(3, "full")]  # no more than the queue takes can ever wait
        assert loop.stats["routes"]["/h"]["queue_full"] == 2
        assert loop.outcomes == {"batch": 3, "error_5xx": 2}
        loop.send(clients[4], get("/h"))
        loop.settle()
        assert statuses(loop, clients[4:]) == [200]


def test_a_queue_has_room_again_when_a_batch_has_left(serve: Serve) -> None:
    server, _ = serve(max_queue_size=2)
    with looping(server) as loop:
        clients = ask(loop, 2)
        loop.turn()  # they are with the handler now
        clients += ask(loop, 3)
        loop.turn()
        assert loop.stats["routes"]["/h"]["queued"] == 2
        loop.settle()
        assert sorted(statuses(loop, clients)) == [200, 200, 200, 200, 503]


def test_routes_do_not_wait_for_each_other(serve: Serve) -> None:
    server, seen = serve()
    others, handler = recording()
    server.batch("/other", max_queue_size=1)(handler)
    with looping(server, lanes=2) as loop:
        clients = ask(loop, 2) + ask(loop, 2, "/other")
        loop.turn()
        assert [route["in_flight"] for route in loop.stats["routes"].values()] == [1, 1]
        loop.settle()
        assert (seen, others) == ([(2, "idle")], [(1, "full")])
        assert sorted(statuses(loop, clients)) == [200, 200, 200, 503]


# --- handlers at work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("concurrency", "lanes", "at_once"), [(1, 1, 1), (1, 3, 1), (2, 3, 2), (3, 3, 3), (3, 2, 2)])
def test_a_route_has_as_many_batches_under_way_as_it_allows_and_workers_are_free(
    serve: Serve, concurrency: int, lanes: int, at_once: int
) -> None:
    server, seen = serve(concurrency=concurrency)
    with looping(server, lanes=lanes) as loop:
        for _ in range(5):
            ask(loop, 2)
            loop.turn()
        assert loop.stats["routes"]["/h"]["in_flight"] == at_once
        assert loop.stats["routes"]["/h"]["queued"] == 2 * (5 - at_once)
        loop.settle()
        assert sum(size for size, _ in seen) == 10


def test_a_worker_that_lets_batches_overlap_is_given_several(serve: Serve) -> None:
    server, _ = serve(concurrency=3)
    with looping(server, lane_batches_max=32) as loop:
        for _ in range(5):
            ask(loop, 1)
            loop.turn()
        assert loop.stats["routes"]["/h"]["in_flight"] == 3
        batches = [loop.workers[0].next_batch() for _ in range(3)]
        ask_again = loop.workers[0].next_batch()
        assert ask_again is None
        for batch in reversed(batches):
            assert batch is not None
            loop.workers[0].run_batch(batch)
        del batch, batches
        loop.settle()
        assert loop.outcomes == {"batch": 5}


def test_workers_take_turns(serve: Serve) -> None:
    server, _ = serve()
    with looping(server, lanes=3) as loop:
        took = []
        for _ in range(6):
            ask(loop, 1)
            loop.turn()
            for number, worker in enumerate(loop.workers):
                if (batch := worker.next_batch()) is not None:
                    worker.run_batch(batch)
                    del batch
                    took.append(number)
            loop.turn()
        assert took == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("size", "shown"), [(None, [0, 0, 0, 0, 0]), (1, [1, 2, 3, 4, 5]), (2, [0, 2, 2, 4, 4]), (9, [0] * 5)]
)
def test_answers_come_back_in_groups_of_response_batch_size(size: int | None, shown: list[int]) -> None:
    server = make_server()
    clients: list[int] = []
    answered: list[int] = []
    loop: Loop

    @server.batch("/h", response_batch_size=size)
    def handler(batch: bb.Batch) -> None:
        for request in batch:
            request.respond(b"x")
            loop.turn()
            answered.append(sum(loop.engine.send_count(client) for client in clients))

    with looping(server) as loop:
        clients += ask(loop, 5)
        loop.settle()
        assert answered == shown
        assert statuses(loop, clients) == [200] * 5


def test_each_of_several_batches_of_a_worker_has_its_own_response_batch_size() -> None:
    server = make_server()
    server.batch("/soon", response_batch_size=1)(lambda batch: None)
    server.batch("/h")(lambda batch: None)
    with looping(server, lane_batches_max=32) as loop:
        soon, later = ask(loop, 2, "/soon"), ask(loop, 2)
        loop.turn()
        worker = loop.workers[0]
        first, second = worker.next_batch(), worker.next_batch()
        assert first is not None and second is not None
        second[0].respond(b"later")
        loop.turn()
        assert [loop.engine.send_count(client) for client in (*soon, *later)] == [0, 0, 0, 0]
        first[0].respond(b"soon")
        loop.turn()
        assert loop.engine.send_count(soon[0]) == 1
        worker.run_batch(second)
        worker.run_batch(first)
        del first, second
        loop.settle()
        assert statuses(loop, soon + later) == [200, 500, 200, 500]


def test_counters_tell_sizes_and_reasons(serve: Serve) -> None:
    server, _ = serve(max_batch_size=8)
    with looping(server) as loop:
        for count in (1, 2, 3, 4, 5, 8, 1):
            ask(loop, count)
            loop.settle()
        route, bridge = loop.stats["routes"]["/h"], loop.stats["bridge"]
        assert (route["batches"], route["items"]) == (bridge["batches"], bridge["items"]) == (7, 24)
        assert route["reasons"] == {"full": 1, "delay": 0, "idle": 6, "deadline": 0, "closing": 0}
        assert route["batch_size_histogram"] == [2, 1, 2, 2, 0, 0, 0, 0, 0, 0, 0]


def test_a_full_batch_has_its_full_size_wherever_the_queue_stands(serve: Serve) -> None:
    server, seen = serve(policy="fixed", max_batch_size=64, max_queue_delay_us=S)
    with looping(server) as loop:
        ask(loop, 10)
        loop.turn()
        loop.turn(S)
        ask(loop, 64 * 5)
        loop.settle()
        assert seen == [(10, "delay")] + [(64, "full")] * 5


@pytest.mark.parametrize("size", [1024, 2048])
def test_the_largest_batches_come_and_go(size: int) -> None:
    server = make_server(batch_size_max=size, pipelined_requests_max=4096)
    sizes, handler = recording()
    for path in ("/h", "/k"):
        server.batch(path, max_batch_size=size, max_queue_size=4 * size, concurrency=32)(handler)
    with looping(server, lane_batches_max=32) as loop:
        clients = []
        for path in ("/h", "/h", "/h", "/k", "/k"):
            clients.append(loop.connect(get(path) * (size - 1)))
            for _ in range(3):
                loop.turn()
        loop.settle()
        assert loop.outcomes == {"batch": 5 * (size - 1)}
        assert max(seen for seen, _ in sizes) > size // 2
        assert [len(loop.replies(client)) for client in clients] == [size - 1] * 5
