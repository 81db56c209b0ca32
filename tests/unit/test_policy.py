"""Batching decisions: each rule of `decide`, in its order, what holds for all inputs, and where `adapt` settles."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchbridge.errors import ConfigError
from batchbridge.policy import BatchPolicy, adapt, deadline_us, decide


def ask(policy, waiting=1, oldest_waited_us=0, handlers_free=1, more_input=False, closing=False, **more):
    return decide(
        policy, waiting=waiting, oldest_waited_us=oldest_waited_us, handlers_free=handlers_free,
        more_input=more_input, closing=closing, **more,
    )  # fmt: skip


IDLE = BatchPolicy(max_batch_size=8, max_queue_delay_us=200)
FIXED = IDLE.changed(policy="fixed")
ADAPTIVE = IDLE.changed(policy="adaptive", latency_objective_us=1000)


def test_a_lone_request_never_waits():
    assert ask(IDLE) == (1, "idle", None)
    assert ask(IDLE.changed(max_queue_delay_us=0)) == (1, "idle", None)


@pytest.mark.parametrize("policy", [IDLE, FIXED, ADAPTIVE])
def test_without_a_handler_or_a_request_nothing_leaves(policy):
    assert ask(policy, waiting=100, handlers_free=0, oldest_waited_us=10**6, closing=True) == (0, "", None)
    assert ask(policy, waiting=0) == (0, "", None)


@pytest.mark.parametrize("policy", [IDLE, FIXED, ADAPTIVE])
def test_a_full_batch_leaves_and_the_rest_stays(policy):
    assert ask(policy, waiting=8, more_input=True) == (8, "full", None)
    assert ask(policy, waiting=20, closing=True) == (8, "full", None)


def test_a_queue_smaller_than_a_batch_is_full_when_it_is():
    assert ask(FIXED.changed(max_queue_size=4), waiting=4) == (4, "full", None)


@pytest.mark.parametrize("policy", [IDLE, FIXED, ADAPTIVE])
def test_a_server_that_drains_waits_for_nobody(policy):
    assert ask(policy, waiting=3, more_input=True, closing=True) == (3, "closing", None)


def test_idle_spends_its_delay_only_where_more_is_coming():
    assert ask(IDLE, waiting=3, oldest_waited_us=50, more_input=True) == (0, "", 150)
    assert ask(IDLE, waiting=3, oldest_waited_us=200, more_input=True) == (3, "delay", None)
    # Without a delay the input is still read first; its end asks again, so no timer is needed.
    assert ask(IDLE.changed(max_queue_delay_us=0), waiting=3, more_input=True) == (0, "", None)


def test_fixed_leaves_full_or_late_only():
    assert ask(FIXED, waiting=3, oldest_waited_us=199) == (0, "", 1)
    assert ask(FIXED, waiting=3, oldest_waited_us=200) == (3, "delay", None)
    assert ask(FIXED.changed(max_queue_delay_us=0), more_input=True) == (1, "delay", None)


def test_adaptive_waits_as_long_as_it_is_told_within_its_bound():
    assert ask(ADAPTIVE, oldest_waited_us=50, effective_delay_us=80) == (0, "", 30)
    assert ask(ADAPTIVE, oldest_waited_us=80, effective_delay_us=80) == (1, "delay", None)
    assert ask(ADAPTIVE, effective_delay_us=10**9) == (0, "", 200)
    assert ask(ADAPTIVE, effective_delay_us=0) == (1, "delay", None)


def test_a_short_time_out_bounds_the_wait():
    policy = FIXED.changed(queue_timeout_us=100, timeout_us=5000)
    assert deadline_us(policy) == 50
    assert ask(policy, oldest_waited_us=20) == (0, "", 30)
    assert ask(policy, oldest_waited_us=50) == (1, "deadline", None)
    assert deadline_us(FIXED) is None


def test_preferred_sizes_guide_an_idle_batch_and_only_that():
    policy = IDLE.changed(preferred_batch_size=[4, 2])
    assert policy.preferred_batch_size == (2, 4)
    assert [ask(policy, waiting=n).size for n in range(1, 8)] == [1, 2, 2, 4, 4, 4, 4]
    assert ask(policy, waiting=7, oldest_waited_us=200) == (7, "delay", None)


policies = st.builds(
    lambda objective, **fields: BatchPolicy(latency_objective_us=objective, **fields),
    objective=st.integers(1, 10**6),
    max_batch_size=st.integers(1, 300),
    max_queue_delay_us=st.integers(1, 10**6),
    policy=st.sampled_from(["idle", "fixed", "adaptive"]),
    max_queue_size=st.integers(1, 2000),
    queue_timeout_us=st.none() | st.integers(1, 10**6),
    timeout_us=st.none() | st.integers(1, 10**6),
)


@given(
    policies, st.integers(0, 3000), st.integers(0, 10**7), st.integers(0, 3), st.booleans(), st.booleans(),
    st.none() | st.integers(0, 10**6),
)  # fmt: skip
def test_what_always_holds(policy, waiting, waited_us, free, more, closing, delay_us):
    size, reason, wait_us = decide(
        policy, waiting=waiting, oldest_waited_us=waited_us, handlers_free=free, more_input=more, closing=closing,
        effective_delay_us=delay_us,
    )  # fmt: skip
    assert 0 <= size <= min(waiting, policy.max_batch_size)
    assert (size > 0) == (reason != "")
    if size:
        assert free > 0
        assert wait_us is None
    elif waiting and free:
        # What is left waiting has a reason to wait, and a time after which it leaves for sure.
        assert more or policy.policy != "idle"
        assert not closing
        assert wait_us is not None
        assert wait_us > 0
        later = decide(
            policy, waiting=waiting, oldest_waited_us=waited_us + wait_us, handlers_free=free, more_input=more,
            closing=closing, effective_delay_us=delay_us,
        )  # fmt: skip
        assert later.size == waiting
        assert later.reason in ("delay", "deadline")


@given(policies, st.integers(-(10**6), 10**7), st.integers(0, 10**7))
def test_adapt_stays_in_its_bounds_and_never_grows_above_the_objective(policy, delay_us, worst_us):
    after = adapt(policy, delay_us, worst_us)
    assert 0 <= after <= policy.max_queue_delay_us
    if worst_us > policy.latency_objective_us:
        assert after <= max(0, delay_us)


@pytest.mark.parametrize("base_us", [100, 700])
def test_adapt_settles_below_its_objective(base_us):
    """A handler whose latency is `base_us` plus the delay is brought to the band below the objective, and stays."""
    delay_us = 0
    seen = []
    policy = ADAPTIVE.changed(max_queue_delay_us=10_000)
    for _ in range(200):
        worst_us = base_us + delay_us
        seen.append(worst_us)
        delay_us = adapt(policy, delay_us, worst_us)
    assert all(875 <= worst_us <= 1312 for worst_us in seen[20:])
    assert len(set(seen[-20:])) == 1
    assert seen[-1] <= 1000


def test_adapt_without_an_objective_changes_nothing():
    assert adapt(FIXED, 150, 10**6) == 150


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_batch_size": 0}, r"max_batch_size: 0 is out of range; 1 to 65536"),
        ({"max_batch_size": True}, "not a whole number"),
        ({"max_batch_size": None}, "not a whole number$"),
        ({"max_queue_delay_us": 1.5}, "max_queue_delay_us: 1.5 is not a whole number"),
        ({"timeout_us": "1s"}, "timeout_us: '1s' is not a whole number or None"),
        ({"policy": "lazy"}, "policy: 'lazy' is not known; choose idle, fixed or adaptive"),
        ({"on_error": []}, "on_error"),
        ({"coalesce": 1}, "coalesce: 1 is not true or false"),
        ({"preferred_batch_size": "8"}, "not a list"),
        ({"preferred_batch_size": [8, 0]}, "preferred_batch_size: 0 is out of range"),
        ({"preferred_batch_size": (65,)}, "preferred_batch_size: 65 is above max_batch_size 64"),
        ({"policy": "adaptive", "max_queue_delay_us": 5}, "needs latency_objective_us"),
        ({"policy": "adaptive", "latency_objective_us": 5}, "needs max_queue_delay_us"),
    ],
)
def test_a_wrong_policy_is_refused_with_its_name_and_value(fields, words):
    with pytest.raises(ConfigError, match=words):
        BatchPolicy(**fields)


def test_changed_checks_names_and_leaves_the_original():
    assert IDLE.changed(max_batch_size=9).max_batch_size == 9
    assert IDLE.max_batch_size == 8
    with pytest.raises(ConfigError, match="max_batchsize is not a setting of a batch policy; did you mean max_batch_"):
        IDLE.changed(max_batchsize=9)
