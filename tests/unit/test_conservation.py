"""Between engine and handlers nothing is lost and nothing doubled: whatever clients, clocks, workers and policies do,
each request is answered once, with its own answer or the status that it deserves; and the bridge's counters add up.
"""

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

import batchbridge as bb
from support.loop import Loop, get, looping, make_server

S = 1_000_000
KINDS = ("plain", "same", "timed", "short")
POLICIES: dict[str, dict[str, Any]] = {
    "plain": {},
    "same": {"coalesce": True},
    "timed": {"timeout_us": 10 * S, "queue_timeout_us": 5 * S, "coalesce": True},
    "short": {"max_queue_size": 4},
}

kinds = st.sampled_from(KINDS)
changes = st.sampled_from(
    [
        {"max_batch_size": 1, "preferred_batch_size": ()},
        {"max_batch_size": 7},
        {"policy": "fixed", "max_queue_delay_us": 3 * S},
        {"policy": "idle"},
        {"preferred_batch_size": (2, 3), "max_batch_size": 9},
        {"concurrency": 2},
        {"coalesce": True},
        {"coalesce": False},
        {"response_batch_size": 2},
        {"timeout_us": 8 * S},
    ]
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("ask"), kinds, st.integers(1, 6)),
        st.tuples(st.just("ask"), kinds, st.integers(1, 6)),
        st.tuples(st.just("pipeline"), kinds, st.integers(2, 6)),
        st.tuples(st.just("turn"), st.sampled_from([0, 0, S, 6 * S]), st.booleans()),
        st.tuples(st.just("work"), st.integers(0, 2), st.integers(1, 2)),
        st.tuples(st.just("reset"), st.integers(0, 30), st.just(0)),
        st.tuples(st.just("change"), kinds, changes),
    ),
    max_size=60,
)


def serving() -> bb.Server:
    server = make_server(idle_timeout_s=10_000.0)
    for kind, policy in POLICIES.items():

        @server.batch(f"/{kind}/{{what}}", **policy)
        def handler(batch: bb.Batch) -> list[str]:
            return [f"{request.path}?{request.query_string.decode()}" for request in batch]

    return server


class Run:
    """Clients with what they asked, and what is done to them."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.asked: dict[int, list[str]] = {}
        self.gone: set[int] = set()
        self.count = 0

    def target(self, kind: str) -> str:
        """The same for several, where they may share an answer."""
        self.count += 1
        return f"/{kind}/x?{self.count % 3 if kind in ('same', 'timed') else self.count}"

    def take(self, step: tuple[str, Any, Any]) -> None:
        what, one, other = step
        if what == "ask":
            for _ in range(other):
                target = self.target(one)
                self.asked[self.loop.connect(get(target))] = [target]
        elif what == "pipeline":
            targets = [self.target(KINDS[(KINDS.index(one) + number) % 4]) for number in range(other)]
            self.asked[self.loop.connect(*map(get, targets))] = targets
        elif what == "turn":
            self.loop.turn(one, more_input=other)
        elif what == "work":
            worker = self.loop.workers[one % len(self.loop.workers)]
            for _ in range(other):
                if (batch := worker.next_batch()) is not None:
                    worker.run_batch(batch)
                    del batch
        elif what == "reset" and self.asked:
            client = list(self.asked)[one % len(self.asked)]
            self.loop.engine.reset(client)
            self.gone.add(client)
        elif what == "change":
            self.loop.server.set_policy(f"/{one}/{{what}}", **other)

    def check(self) -> None:
        statuses: list[int] = []
        for client, targets in self.asked.items():
            replies = self.loop.replies(client)
            assert len(replies) == len(targets) or client in self.gone
            for reply, target in zip(replies, targets, strict=False):
                statuses.append(reply.status)
                assert reply.status in (200, 503, 504)
                assert reply.status != 200 or reply.text == target
                assert reply.status != 504 or target.startswith("/timed") or self.has_changed_timeouts(target)
        outcomes = self.loop.outcomes
        sent = len(statuses)
        assert outcomes.get("batch", 0) + outcomes.get("error_5xx", 0) >= sent
        if not self.gone:
            assert (outcomes.get("batch", 0), outcomes.get("error_5xx", 0)) == (
                statuses.count(200),
                sent - statuses.count(200),
            )

    def has_changed_timeouts(self, target: str) -> bool:
        policy = self.loop.server.policy(f"/{target.split('/')[1]}/{{what}}")
        return policy.timeout_us is not None

    def check_counters(self) -> None:
        stats = self.loop.stats
        bridge, routes = stats["bridge"], stats["routes"].values()
        items = sum(route["items"] for route in routes)
        assert bridge["items"] == items
        assert bridge["batches"] == sum(route["batches"] for route in routes)
        assert bridge["batches"] == sum(sum(route["reasons"].values()) for route in routes)
        assert bridge["batches"] == sum(sum(route["batch_size_histogram"]) for route in routes)
        # Each request that went to user mode had an item of its own or shared another's; each item left or was dropped.
        dropped = bridge["dropped_expired"] + bridge["dropped_disconnected"]
        assert bridge["deferred"] - bridge["coalesced"] == items + dropped
        assert bridge["late"] <= items
        refused = sum(route["queue_full"] for route in routes)
        assert stats["requests"]["read"] == bridge["deferred"] + refused


@settings(max_examples=200)
@given(steps, st.integers(1, 3), st.sampled_from([1, 4]), st.booleans())
def test_nothing_is_lost_and_nothing_doubled(
    steps: list[tuple[str, Any, Any]], lanes: int, overlapping: int, late_sends: bool
) -> None:
    with looping(serving(), lanes=lanes, lane_batches_max=overlapping, late_sends=late_sends) as loop:
        run = Run(loop)
        for step in steps:
            run.take(step)
        for _ in range(4):  # whoever waits for a delay, or behind one who does
            loop.settle(3 * S)
        run.check()
        loop.assert_idle()
        run.check_counters()
