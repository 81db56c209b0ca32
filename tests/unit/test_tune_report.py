"""What a sweep prints and writes: the recommendation with its margin, what is noise, and TOML that the server takes."""

import json

import pytest
from rich.console import Console

from batchbridge.config import Config
from batchbridge.measure.results import ResultsError, Run
from batchbridge.tune.goals import Goal, Outcome, judge
from batchbridge.tune.report import (
    TOML_HEADER,
    as_json,
    check_toml_path,
    front_table,
    sentences,
    steal_sentences,
    toml,
    write_toml,
)
from batchbridge.tune.space import Candidate

PRESENT = Candidate(64, 200)


def outcome(candidate, p99_us, cpu_us, blocks=3, **more):
    def values(value):
        return {block: value * (1 + 0.01 * block) for block in range(blocks)}

    return Outcome(candidate, values(p99_us), values(cpu_us), values(50_000.0), **more)


BEST, SLOW, NOW = (
    outcome(Candidate(32, 0), 1200, 5.0),
    outcome(Candidate(64, 400), 2500, 4.0),
    outcome(PRESENT, 1500, 6.0),
)
OUTCOMES = [BEST, SLOW, NOW]


def text_of(*shown, width=120):
    console = Console(width=width, highlight=False)
    with console.capture() as captured:
        for each in shown:
            console.print(each, soft_wrap=isinstance(each, str))
    return captured.get()


def test_the_recommendation_has_its_margin_and_its_gain():
    verdict = judge(OUTCOMES, Goal("cpu", 2000))
    text = "\n".join(sentences(verdict, OUTCOMES, "/r", PRESENT))
    assert "Recommended for /r: max_batch_size 32, max_queue_delay_us 0." in text
    assert "Its p99 of 1,212 µs is 39% below the goal of 2,000 µs." in text
    assert "server CPU 6.06 → 5.05 µs/request (-17% within blocks)" in text
    assert "p99 latency 1,515 → 1,212 µs (-20% within blocks)" in text and "throughput" not in text
    assert "No evidence: 3 blocks of the 20 that a claim takes" in text
    assert "Within noise" not in text


def test_what_lies_within_noise_is_said():
    same = outcome(Candidate(16, 0), 1900, 5.0)
    verdict = judge([BEST, same], Goal("cpu", 2000))
    text = "\n".join(sentences(verdict, [BEST, same], "/r", BEST.candidate))
    assert "Within noise of it in server CPU: max_batch_size 16, max_queue_delay_us 0." in text
    assert "That is how it is set now." in text
    one = [outcome(Candidate(size, 0), 900 + size, 5.0, blocks=1) for size in range(1, 8)]
    text = "\n".join(sentences(judge(one, Goal("cpu", 2000)), one, "/r", PRESENT))
    assert "and 2 more" in text and "beyond the goal: within noise" in text and "No evidence: 1 block of" in text


def test_what_was_left_out_is_said():
    wrong = outcome(Candidate(1, 0), 100, 1.0, invalid_reason="7 answers were wrong")
    verdict = judge([BEST, wrong], Goal("cpu"))
    text = "\n".join(sentences(verdict, [BEST, wrong], "/r", PRESENT))
    assert "Left out: max_batch_size 1, max_queue_delay_us 0, since 7 answers were wrong." in text
    assert "goal" not in text


def test_twenty_blocks_are_a_claim():
    many = [outcome(Candidate(32, 0), 1200, 5.0, blocks=20)]
    assert "evidence" not in " ".join(sentences(judge(many, Goal("cpu")), many, "/r", PRESENT)).lower()


def test_what_the_hypervisor_took_is_said():
    quiet, stolen = Run("tune", 0, steal_share=0.009), Run("tune", 1, steal_share=0.2)
    void = Run("tune", 2, valid=False, invalid_reason="it failed", steal_share=0.5)
    assert steal_sentences([quiet, void, Run("tune", 3)]) == []
    assert steal_sentences([quiet, stolen, void])[0].startswith("In 1 of 3 runs the hypervisor took more than 1%")


def test_the_front_is_a_table():
    verdict = judge(OUTCOMES, Goal("cpu", 2000))
    lines = text_of(front_table(verdict, PRESENT)).splitlines()
    assert [line.split()[:3] for line in lines[2:4]] == [["32", "0", "1,212"], ["64", "400", "2,525"]]
    assert lines[2].rstrip().endswith("recommended") and "1,200 to 1,224" in lines[2]
    assert len(lines) == 4, "the present setting is beaten"
    assert "…" not in text_of(front_table(verdict, PRESENT), width=80), "a plain terminal is wide enough"
    unknown = [Outcome(Candidate(1, 0), {0: 900.0}, {}, {0: 100.0})]
    assert "unknown" in text_of(front_table(judge(unknown, Goal("cpu", 2000)), Candidate(1, 0)))
    assert "as it is now" in text_of(front_table(judge(unknown, Goal("cpu", 2000)), Candidate(1, 0)))


def test_json_has_all_of_it():
    wrong = Outcome(Candidate(1, 0), invalid_reason="it failed")
    verdict = judge([*OUTCOMES, wrong], Goal("cpu", 2000))
    told = json.loads(as_json(verdict, [*OUTCOMES, wrong], {"rate_per_s": 1.0}, {"config": "tuned.toml"}))
    assert told["recommendation"]["max_batch_size"] == 32 and told["recommendation"]["is_firm"]
    assert told["recommendation"]["p99_us"]["median"] == 1212 and told["recommendation"]["margin"] == pytest.approx(
        0.394
    )
    assert [each["max_batch_size"] for each in told["front"]] == [32, 64]
    assert len(told["tried"]) == 4 and told["tried"][3]["p99_us"] is None
    assert told["tried"][3]["invalid_reason"] == "it failed"
    assert told["goal"] == {"objective": "cpu", "p99_us": 2000} and told["files"] == {"config": "tuned.toml"}


@pytest.mark.parametrize("route", ["/score/{model}", '/odd "quotes"/\\', "/ümlaut"])
def test_the_configuration_file_is_one_that_the_server_takes(tmp_path, route):
    path = tmp_path / "tuned.toml"
    check_toml_path(path)
    verdict = judge(OUTCOMES, Goal("cpu", 2000))
    write_toml(path, toml(verdict, route, "at 1,000 requests/s offered"))
    assert Config.from_toml(path).routes == {route: {"max_batch_size": 32, "max_queue_delay_us": 0}}
    assert path.read_text().startswith(TOML_HEADER)
    check_toml_path(path)


def test_no_other_file_is_replaced(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[server]\nbind = '127.0.0.1:80'\n")
    with pytest.raises(ResultsError, match="was not written by batchbridge tune and is not replaced"):
        check_toml_path(path)
    with pytest.raises(ResultsError, match="cannot be read: is a directory"):
        check_toml_path(tmp_path)
    with pytest.raises(ResultsError, match="cannot be written"):
        write_toml(tmp_path / "none" / "tuned.toml", "")
