"""Results files: what is saved is read again as it was, and what is no such file is refused with a sentence."""

import csv
import io
import json

import msgpack
import pytest

from batchbridge.errors import BatchBridgeError
from batchbridge.measure.results import LATENCIES, PROFILE_PARTS, Results, ResultsError, Run, load


def full_run(**changes):
    values = {
        "arm": "B(8,8)", "block": 3, "parameters": {"max_batch_size": 8, "phase": "capacity"},
        "seconds": 2.5, "responses": 1000, "requests_per_s": 400.0, "offered_per_s": 410.5,
        "latency_us": dict.fromkeys(LATENCIES, 10.5), "histogram": [(10, 600), (11, 400)],
        "server_cpu_us_per_request": 5.4, "client_idle_share": 0.3, "steal_share": 0.001, "ipis_per_request": 0.2,
        "batch_sizes": [(1, 3), (8, 100)], "mean_batch_size": 7.8,
        "asked": 1100, "errors": {"refused": 20, "unissued": 3}, "server_threads_share": 0.7, "loops_per_s": 50.5,
        "client_core_us_per_request": 6.5,
        "profile": {name: 1 / len(PROFILE_PARTS) for name in PROFILE_PARTS},
    }  # fmt: skip
    return Run(**{**values, **changes})


def some_results(**changes):
    values = {
        "kind": "batching", "machine": {"processor": "a chip", "cores": 2},
        "commands": [["serve", "--app=x.py:server"]],
        "settings": {"seconds": 2.5}, "runs": [full_run(), Run("U1", 0, valid=False, invalid_reason="It died.")],
        "note": "no evidence",
    }  # fmt: skip
    return Results(**{**values, **changes})


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "results.msgpack"
    some_results().save(path)
    return path


def test_what_is_saved_is_read_again(saved):
    again = load(saved)
    assert again == some_results(created=again.created)
    assert again.runs[0].histogram == [(10, 600), (11, 400)]
    assert [path.name for path in saved.parent.iterdir()] == [saved.name], "no scratch file stays"


def test_the_file_is_the_map_that_its_description_shows(saved):
    content = msgpack.unpackb(saved.read_bytes())
    assert list(content) == [
        "schema", "version", "kind", "created", "machine", "commands", "settings", "runs", "note", "checksum",
    ]  # fmt: skip
    assert (content["schema"], content["version"]) == ("batchbridge.results", 1)


def test_a_file_cut_short_anywhere_is_refused(saved):
    whole = saved.read_bytes()
    for length in range(len(whole)):
        saved.write_bytes(whole[:length])
        with pytest.raises(ResultsError, match=r"results\.msgpack is not a results file"):
            load(saved)


def test_a_file_with_any_damaged_byte_is_refused(saved):
    whole = saved.read_bytes()
    for place in range(len(whole)):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        with pytest.raises(ResultsError, match="is not a results file that can be used"):
            load(saved)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "it is empty"),
        (b"hello, I am a text file\n", "more follows"),
        (b"\xc1" * 20, "not msgpack"),
        (b"\x91" * 10_000, "cut short|damaged"),
        (msgpack.packb([1, 2]), "does not say that its schema"),
        (msgpack.packb({"schema": "somebody.else"}), "does not say that its schema"),
        (msgpack.packb({"schema": "batchbridge.results", "version": 2}), "version is 2, and .* reads version 1"),
        (msgpack.packb({"schema": "batchbridge.results", "version": True}), "version is True"),
        (msgpack.packb({"schema": "batchbridge.results", "version": 1}), "lacks the key 'commands'"),
        (msgpack.packb({1: 2}), "not msgpack, or damaged"),
    ],
)
def test_what_is_no_results_file_is_refused(tmp_path, content, reason):
    path = tmp_path / "f"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=reason) as caught:
        load(path)
    assert "\n" not in str(caught.value) and isinstance(caught.value, BatchBridgeError)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kind": "holiday"}, "kind: 'holiday' is not known"),
        ({"created": "yesterday"}, "not a time in ISO 8601"),
        ({"machine": [1]}, "machine: .* not a map"),
        ({"commands": [["a", 1]]}, "commands: 1 is not a text"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"runs": 5}, "runs: 5 is not a list"),
        ({"runs": [{"arm": "x", "block": 0}]}, "a run lacks the key 'valid'"),
        ({"runs": [{"arm": "x", "block": 0, "valid": True, "colour": 1}]}, "a run has the unknown key 'colour'"),
        ({"runs": [{"arm": "x", "block": -1, "valid": True}]}, "block of a run: -1"),
        ({"runs": ["x"]}, "a run is not a map"),
    ],
)
def test_a_file_without_a_checksum_is_checked_field_by_field(tmp_path, changes, reason):
    path = tmp_path / "f"
    content = some_results().to_dict()
    path.write_bytes(msgpack.packb(content))
    assert load(path).kind == "batching"
    path.write_bytes(msgpack.packb({**content, **changes}))
    with pytest.raises(ResultsError, match=reason):
        load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"arm": 5}, {"block": True}, {"block": 1.0}, {"parameters": {"x": None}}, {"parameters": {1: 2}}, {"valid": 1},
        {"valid": False}, {"invalid_reason": "It is wrong."}, {"seconds": float("nan")}, {"responses": -1},
        {"requests_per_s": "many"}, {"latency_us": {"p42": 1.0}}, {"latency_us": {"p50": float("inf")}},
        {"histogram": [(1, 2, 3)]}, {"histogram": [(1.5, 2)]}, {"batch_sizes": 8}, {"profile": {"gpu": 1.0}},
        {"mean_batch_size": True},
    ],
)  # fmt: skip
def test_a_run_that_is_not_as_the_schema_says_is_refused(changes):
    full_run()
    with pytest.raises(ResultsError):
        full_run(**changes)


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ResultsError, match="cannot be read: no such file"):
        load(tmp_path / "none")
    with pytest.raises(ResultsError, match="cannot be written: no such file"):
        some_results().save(tmp_path / "none" / "f")


def test_each_run_is_saved_when_it_is_appended(tmp_path):
    results = Results("load", path=tmp_path / "f")
    for block in range(3):
        results.append(full_run(block=block))
        assert [run.block for run in load(results.path).runs] == list(range(block + 1))


def test_a_save_that_fails_leaves_the_file_as_it_was(saved):
    broken = some_results(settings={"cannot be packed": object()})
    with pytest.raises(ResultsError, match="cannot be written as msgpack"):
        broken.save(saved)
    assert load(saved).settings == {"seconds": 2.5}


def test_arms_and_commands_are_kept_once_in_order():
    results = Results("versus", runs=[Run("b", 0), Run("a", 0), Run("b", 1, {"rate": 5}), Run("a", 1)])
    results.add_command(["x", "y"])
    results.add_command(["x", "y"])
    assert results.commands == [["x", "y"]]
    assert results.arms() == ["b", "a"]
    assert [run.block for run in results.of("b", rate=5)] == [1]


def test_json_is_the_same_map():
    results = some_results()
    found = json.loads(results.to_json())
    assert found == json.loads(json.dumps(results.to_dict()))
    assert found["runs"][0]["histogram"] == [[10, 600], [11, 400]]


def test_the_clients_cost_is_its_cores_where_that_was_watched_else_its_threads():
    assert full_run().client_cpu_us_per_request == 6.5
    assert full_run(client_core_us_per_request=None).client_cpu_us_per_request == pytest.approx(0.7 * 2.5 * 1e6 / 1000)
    assert Run("U1", 0).client_cpu_us_per_request is None


def test_csv_has_a_line_for_each_run():
    first, second = csv.DictReader(io.StringIO(some_results().to_csv()))
    assert (first["arm"], first["parameter_max_batch_size"], first["latency_p999_us"]) == ("B(8,8)", "8", "10.5")
    assert (second["valid"], second["invalid_reason"], second["parameter_phase"]) == ("False", "It died.", "")
