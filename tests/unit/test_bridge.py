"""The engine's batching decisions, in C, are those of batchbridge.policy: for every policy and every state of a queue
`decide` says the same size, reason and wait, and `adapt` the same next delay.
"""

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchbridge.cython_ext import bridge
from batchbridge.errors import ConfigError
from batchbridge.policy import INTEGERS, BatchPolicy, adapt, decide

PREFERRED_MAX = 8  # sizes that the engine's Policy has places for
MANY = settings(max_examples=1000)


def bounded(name):
    """A field's values: small ones, where rules meet, and the whole range."""
    minimum, maximum, optional = INTEGERS[name]
    values = (
        st.integers(minimum, min(maximum, 40)) | st.integers(minimum, maximum) | st.sampled_from([minimum, maximum])
    )
    return st.none() | values if optional else values


@st.composite
def policies(draw):
    fields = {name: draw(bounded(name)) for name in INTEGERS}
    fields["policy"] = draw(st.sampled_from(["idle", "fixed", "adaptive"]))
    if fields["policy"] == "adaptive":
        fields["latency_objective_us"] = fields["latency_objective_us"] or draw(st.integers(1, 1000))
        fields["max_queue_delay_us"] = max(1, fields["max_queue_delay_us"])
    sizes = st.integers(1, fields["max_batch_size"]) | st.integers(1, min(fields["max_batch_size"], 40))
    fields["preferred_batch_size"] = draw(st.lists(sizes, max_size=PREFERRED_MAX))
    return BatchPolicy(**fields)


def near(draw, numbers, maximum):
    """A number at, just below or just above one of these, or any; within 0 and the maximum."""
    at = draw(st.sampled_from(numbers) | st.integers(0, maximum)) + draw(st.integers(-1, 1))
    return max(0, min(maximum, at))


@st.composite
def questions(draw):
    """A policy and a state of its queue: arguments of `decide`, with the numbers close to where answers change."""
    policy = draw(policies())
    delays = [number for number in (policy.queue_timeout_us, policy.timeout_us) if number is not None]
    effective_delay_us = near(draw, [0, policy.max_queue_delay_us], 2 * policy.max_queue_delay_us + 1)
    turning_points_us = [0, policy.max_queue_delay_us, effective_delay_us, *delays, *[delay // 2 for delay in delays]]
    turning_sizes = [0, 1, policy.max_batch_size, policy.max_queue_size, *policy.preferred_batch_size]
    return policy, {
        "waiting": near(draw, turning_sizes, 2**21),
        "oldest_waited_us": near(draw, turning_points_us, 2**40),
        "handlers_free": draw(st.sampled_from([0, 1, 1, 3])),
        "more_input": draw(st.booleans()),
        "closing": draw(st.sampled_from([False, False, True])),
        "effective_delay_us": effective_delay_us,
    }


def decide_in_c(policy, *, waiting, oldest_waited_us, handlers_free, more_input, closing, effective_delay_us):
    fields = asdict(policy) | {"effective_delay_us": effective_delay_us}
    return bridge.decide_for_tests(fields, waiting, oldest_waited_us, handlers_free > 0, more_input, closing)


@MANY
@given(questions())
def test_decide_agrees_with_the_policy_module(question):
    policy, state = question
    size, reason, wait_us = decide(policy, **state)
    assert decide_in_c(policy, **state) == (size, reason or None, wait_us)


@st.composite
def windows(draw):
    policy = draw(policies())
    objective = policy.latency_objective_us or 1000
    delay_us = near(draw, [0, policy.max_queue_delay_us], 2 * policy.max_queue_delay_us + 1)
    return policy, delay_us, near(draw, [0, objective, objective * 7 // 8, objective // 2], 2**40)


@MANY
@given(windows())
def test_adapt_agrees_with_the_policy_module(window):
    policy, effective_delay_us, worst_latency_us = window
    expected = adapt(policy, effective_delay_us, worst_latency_us)
    assert bridge.adapt_for_tests(asdict(policy), effective_delay_us, worst_latency_us) == expected


# Where two readings of the rules could part, by themselves.
IDLE = BatchPolicy(max_batch_size=8, max_queue_delay_us=200)
TURNS = {"waiting": 3, "oldest_waited_us": 0, "handlers_free": 1, "more_input": False, "closing": False}


@pytest.mark.parametrize(
    ("changes", "state", "answer"),
    [
        ({}, {"waiting": 1}, (1, "idle", None)),  # a lone request never waits
        ({}, {"more_input": True}, (0, None, 200)),
        ({"max_queue_delay_us": 0}, {"more_input": True}, (0, None, None)),
        # The delay is over: all leave, whatever size is preferred, and whether or not more is coming.
        ({"preferred_batch_size": (2,)}, {"oldest_waited_us": 200}, (3, "delay", None)),
        ({"preferred_batch_size": (2,)}, {"oldest_waited_us": 199}, (2, "idle", None)),
        # A queue smaller than a batch is full when it is: no more can come.
        ({"max_queue_size": 3}, {"more_input": True}, (3, "full", None)),
        # Half of the shortest time-out bounds the wait.
        ({"timeout_us": 100}, {"more_input": True}, (0, None, 50)),
        ({"timeout_us": 100}, {"more_input": True, "oldest_waited_us": 50}, (3, "deadline", None)),
        ({"queue_timeout_us": 60, "timeout_us": 100}, {"more_input": True, "oldest_waited_us": 29}, (0, None, 1)),
        ({"policy": "fixed", "timeout_us": 100}, {"oldest_waited_us": 50}, (3, "deadline", None)),
        # An adaptive delay that was reached under a longer maximum is bounded by the present one.
        ({"policy": "adaptive", "latency_objective_us": 9}, {"effective_delay_us": 500}, (0, None, 200)),
        ({"policy": "adaptive", "latency_objective_us": 9}, {"effective_delay_us": 0}, (3, "delay", None)),
        ({}, {"handlers_free": 0, "closing": True}, (0, None, None)),
        ({}, {"closing": True, "more_input": True}, (3, "closing", None)),
        ({}, {"waiting": 9, "closing": True}, (8, "full", None)),
    ],
)
def test_both_decide_as_is_written(changes, state, answer):
    policy = IDLE.changed(**changes)
    state = {"effective_delay_us": policy.max_queue_delay_us} | TURNS | state
    size, reason, wait_us = decide(policy, **state)
    assert (size, reason or None, wait_us) == answer
    assert decide_in_c(policy, **state) == answer


def test_there_are_no_more_preferred_sizes_than_the_engine_has_places_for():
    assert decide_in_c(
        IDLE.changed(preferred_batch_size=range(1, PREFERRED_MAX + 1)), **TURNS, effective_delay_us=0
    ) == (3, "idle", None)
    # What is refused here must not reach the C side, which has no place to store it.
    with pytest.raises(ConfigError):
        IDLE.changed(max_batch_size=64, preferred_batch_size=range(1, PREFERRED_MAX + 2))
