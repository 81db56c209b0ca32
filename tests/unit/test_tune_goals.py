"""The Pareto front is the brute-force one, and the recommendation follows from goal, figures and noise."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchbridge.measure.results import Run
from batchbridge.tune.goals import Goal, GoalError, Outcome, judge, outcomes_of, pareto_front, within_noise
from batchbridge.tune.space import Candidate

number = st.integers(0, 6).map(float) | st.just(math.inf)


@given(st.lists(st.tuples(number, number), max_size=25))
def test_the_front_is_what_nothing_beats(points):
    def is_beaten(point):
        return any(o[0] <= point[0] and o[1] <= point[1] and o != point for o in points)

    finite = [place for place, point in enumerate(points) if not is_beaten(point)]
    # A point that is unknown in its second figure is on no front.
    assert pareto_front(points) == [place for place in finite if points[place][1] < math.inf]


def outcome(size, p99_us, cpu_us, rate=1000.0, **more):
    """An outcome of three blocks, whose figures differ a little between them in the same way."""

    def blocks(value):
        return {} if value is None else {block: value * (1 + 0.01 * (block - 1)) for block in range(3)}

    return Outcome(Candidate(size, 0), blocks(p99_us), blocks(cpu_us), blocks(rate), **more)


def test_the_least_cpu_that_holds_the_goal():
    cheap_but_slow, middle, fast = outcome(64, 5000, 4.0), outcome(16, 1500, 5.0), outcome(1, 800, 9.0)
    verdict = judge([cheap_but_slow, middle, fast], Goal("cpu", 2000))
    assert verdict.best is middle and verdict.is_firm and verdict.equals == []
    assert verdict.margin == pytest.approx(0.25)
    assert verdict.front == [fast, middle, cheap_but_slow]
    assert judge([cheap_but_slow, middle, fast], Goal("cpu")).best is cheap_but_slow
    assert judge([cheap_but_slow, middle, fast], Goal("cpu")).margin is None


def test_within_noise_the_least_p99_is_taken():
    a = Outcome(Candidate(8, 0), {0: 900, 1: 910, 2: 905}, {0: 5.0, 1: 5.2, 2: 5.1})
    b = Outcome(Candidate(16, 0), {0: 1900, 1: 1910, 2: 1905}, {0: 5.1, 1: 5.0, 2: 5.05})
    assert within_noise(a, b, "cpu_us") and not within_noise(a, b, "p99_us")
    verdict = judge([a, b], Goal("cpu", 2000))
    assert verdict.best is a and verdict.equals == [b]


def test_a_much_worse_median_is_not_taken_because_blocks_are_few():
    good = Outcome(Candidate(8, 0), {0: 1900, 1: 1910}, {0: 5.0, 1: 7.0})
    worse = Outcome(Candidate(16, 0), {0: 900, 1: 910}, {0: 9.0, 1: 6.5})
    assert within_noise(good, worse, "cpu_us")
    verdict = judge([good, worse], Goal("cpu", 2000))
    assert verdict.best is good and verdict.equals == [worse]


def test_without_common_blocks_intervals_are_compared():
    a = Outcome(Candidate(8, 0), cpu_us={0: 5.0, 1: 5.2, 2: 5.1})
    b = Outcome(Candidate(16, 0), cpu_us={3: 5.15, 4: 5.3, 5: 5.2})
    c = Outcome(Candidate(32, 0), cpu_us={3: 7.0, 4: 7.1, 5: 7.2})
    assert within_noise(a, b, "cpu_us") and not within_noise(a, c, "cpu_us")
    assert not within_noise(a, Outcome(Candidate(1, 1)), "cpu_us"), "what is unknown is not the same"


def test_one_block_leaves_all_within_noise():
    a = Outcome(Candidate(8, 0), {0: 1900}, {0: 5.0})
    b = Outcome(Candidate(16, 0), {0: 900}, {0: 5.2})
    verdict = judge([a, b], Goal("cpu", 2000))
    assert verdict.best is b and verdict.equals == [a] and not verdict.is_firm


def test_a_goal_held_by_the_median_alone_is_not_firm():
    shaky = Outcome(Candidate(8, 0), {0: 1500, 1: 1900, 2: 2500}, {0: 5.0, 1: 5.0, 2: 5.0})
    verdict = judge([shaky], Goal("cpu", 2000))
    assert verdict.best is shaky and not verdict.is_firm
    steady = Outcome(Candidate(1, 0), {0: 1500, 1: 1600, 2: 1550}, {0: 9.0, 1: 9.0, 2: 9.0})
    verdict = judge([shaky, steady], Goal("cpu", 2000))
    assert verdict.best is steady and verdict.is_firm, "what holds firmly goes before what is cheaper"


def test_the_most_throughput():
    slow, fast = outcome(1, 900, 9.0, 50_000.0), outcome(64, 1900, 4.0, 90_000.0)
    assert judge([slow, fast], Goal("throughput")).best is fast
    assert judge([slow, fast], Goal("throughput", 1000)).best is slow
    assert judge([slow, fast], Goal("throughput")).front == [slow, fast]


def test_an_impossible_goal_says_what_was_the_best():
    with pytest.raises(
        GoalError, match=r"no setting holds a p99 of 100 µs; the best was 800 µs with max_batch_size 1,"
    ):
        judge([outcome(64, 5000, 4.0), outcome(1, 800, 9.0)], Goal("cpu", 100))


def test_a_setting_with_an_invalid_run_is_left_out():
    wrong = outcome(64, 500, 1.0, invalid_reason="5 of the server's answers were wrong")
    right = outcome(16, 1500, 5.0)
    verdict = judge([wrong, right], Goal("cpu", 2000))
    assert verdict.best is right and verdict.left_out == [wrong] and wrong not in verdict.front
    with pytest.raises(GoalError, match="no setting has only valid runs: 5 of the server's answers were wrong"):
        judge([wrong], Goal("cpu", 2000))
    with pytest.raises(GoalError, match="none ran"):
        judge([], Goal("cpu"))


def test_a_setting_that_does_not_keep_up_holds_nothing():
    behind = outcome(1, 900, 1.0, 700.0, kept_up_share=0.7)
    with pytest.raises(GoalError, match=r"keeps up .* the best answered 70% of it \(700 requests/s\)"):
        judge([behind], Goal("cpu"))
    right = outcome(16, 1500, 5.0)
    assert judge([behind, right], Goal("cpu", 2000)).best is right


def test_without_cpu_time_there_is_no_least_of_it():
    known = [outcome(64, 1900, None), outcome(1, 800, None)]
    with pytest.raises(GoalError, match="CPU time cannot be known"):
        judge(known, Goal("cpu"))
    verdict = judge(known, Goal("cpu", 2000))
    assert verdict.best is known[1], "the widest margin, since there is nothing else to go by"


def run(block, size, **more):
    parameters = {"max_batch_size": size, "max_queue_delay_us": 0}
    return Run("tune", block, parameters, latency_us={"p99": 100.0 * size}, requests_per_s=900.0,
               offered_per_s=1000.0, **more)  # fmt: skip


def test_runs_become_outcomes_by_setting():
    bad = run(1, 4, valid=False, invalid_reason="it failed")
    found = outcomes_of([run(0, 4, server_cpu_us_per_request=5.0), run(0, 8), bad, run(1, 8)])
    assert [each.candidate for each in found] == [Candidate(4, 0), Candidate(8, 0)]
    assert found[0].p99_us == {0: 400.0} and found[0].cpu_us == {0: 5.0} and found[0].invalid_reason == "it failed"
    assert found[1].p99_us == {0: 800.0, 1: 800.0} and found[1].cpu_us == {} and found[1].invalid_reason is None
    assert found[1].kept_up_share == 0.9
    assert found[1].middle("cpu_us") == math.inf and Outcome(Candidate(1, 1)).middle("requests_per_s") == 0.0
    with pytest.raises(GoalError, match="no sweep"):
        outcomes_of([Run("batchbridge", 0)])


def test_goals_are_spoken():
    assert str(Goal("cpu", 2000)) == "p99 of at most 2,000 µs, then least server CPU per request"
    assert str(Goal("throughput")) == "most requests/s"
