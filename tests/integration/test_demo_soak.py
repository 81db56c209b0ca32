"""The demo and the soak run as they stand, on either engine; the soak's books notice every request too many or few."""

import copy
import subprocess
import sys
from collections import Counter

import pytest

from batchbridge.cython_ext import ring
from batchbridge.measure.processes import ServerError, ServerProcess
from batchbridge.plot.panels import Series, draw_panels
from bench import demo
from bench.reconcile import against_clients, against_log, at_most, at_rest, equal, is_at_rest, within
from bench.soak import LOG_LINE, Watch, watched
from bench.soak_traffic import Tally
from support.skips import skip_if

needs_ring = skip_if(
    bool(ring.probe()["ring_error"]), "no-io-uring", "the load generator sends and receives by io_uring"
)


def run(*arguments: str, timeout_s: float = 55.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", *arguments], capture_output=True, text=True, timeout=timeout_s, check=False
    )


# --- the demo ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def documents(tmp_path):
    root = tmp_path / "documents"
    (root / "more of it").mkdir(parents=True)
    for number in range(20):
        (root / f"{number}.html").write_text(f"<p>{number}\n" * 100 * number)
        (root / "more of it" / f"{number} %.txt").write_bytes(bytes([number]) * 5000)
    return root


@needs_ring
def test_the_demo_prints_its_table_and_draws_its_picture(engine, documents, tmp_path):
    picture = tmp_path / "batching.png"
    done = run("bench.demo", f"--root={documents}", f"--output={picture}", f"--engine={engine}", "--seconds=0.2",
               "--blocks=1")  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split("│") for line in done.stdout.splitlines() if line.startswith("│")]
    assert [int(row[1]) for row in rows] == [1, 2, 4, 8, 16, 32, 64]
    achieved = [float(row[2]) for row in rows]
    assert achieved[0] == 1 and all(got <= int(row[1]) for got, row in zip(achieved, rows, strict=True))
    assert f"Engine: {engine}, as asked for." in done.stdout and f"{engine} engine" in done.stdout
    assert f"Picture: {picture}" in done.stdout
    assert "The picture shows" in done.stdout
    assert picture.read_bytes().startswith(b"\x89PNG\r\n")


def test_the_demo_says_which_engine_auto_takes(monkeypatch):
    monkeypatch.setattr(
        demo, "choose_engine", lambda wanted: ("io_uring", "the kernel engine cannot run here: no room")
    )
    assert "from inside the kernel" in demo.engine_sentence("kernel", "auto")
    assert demo.engine_sentence("io_uring", "auto") == (
        "Engine: io_uring, since the kernel engine cannot run here: no room."
    )
    monkeypatch.setattr(demo, "choose_engine", lambda wanted: ("kernel", "the kernel side can be loaded here"))
    assert demo.engine_sentence("io_uring", "auto") == "Engine: io_uring; kernel could not be loaded."


def test_the_demo_says_what_it_lacks(tmp_path):
    for root, complaint in ((tmp_path / "none", "is not a folder"), (tmp_path, "has no file to serve")):
        done = run("bench.demo", f"--root={root}")
        assert (done.returncode, complaint in done.stderr) == (2, True), done
    done = run("bench.demo", f"--root={tmp_path}", f"--output={tmp_path}/none/batching.png")
    assert (done.returncode, "may be written to" in done.stderr) == (2, True), done
    done = run("bench.demo", f"--root={tmp_path}", "--seconds=0")
    assert done.returncode == 2 and "0 is not a number above 0" in done.stderr


def test_panels_take_any_runs(tmp_path):
    path = tmp_path / "panels.svg"
    runs = [[1.0, 2.0, 3.0], [5.0]]
    draw_panels(path, title="t", subtitle="s", x_label="x", x=[[1.0], [60.0, 61.0]], x_names=["1", "64"],
                panels=[("a", "ms", [Series("one", runs), Series("two", runs)]), ("b", "µs", [Series("", runs)])],
                footnote="f")  # fmt: skip
    assert "<svg" in path.read_text()


# --- the soak ---------------------------------------------------------------------------------------------------------


@needs_ring
def test_a_short_soak_finds_nothing(engine):
    done = run("bench.soak", "--minutes=0.05", f"--engine={engine}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All holds" in done.stdout
    assert done.stdout.count(f"{engine}: ") == 3


def test_the_soak_refuses_what_makes_no_sense():
    for arguments in (["--minutes=0"], ["--minutes=-1"], ["--minutes=soon"], ["--engine=none"]):
        assert run("bench.soak", *arguments).returncode == 2


def test_a_server_that_does_not_start_says_why(tmp_path):
    with pytest.raises(ServerError, match="there is no file"):
        ServerProcess(str(tmp_path / "none.py:server"))


# --- its books --------------------------------------------------------------------------------------------------------

STATS = {
    "requests": {
        "read": 120,
        "outcomes": {"hit": 30, "file": 10, "batch": 50, "remote": 0, "local": 5, "error_4xx": 12, "error_5xx": 10,
                     "client_gone": 3},
    },
    "connections": {"accepted": 20, "closed": 20, "open": 0, "refused": 0, "timed_out": 2},
    "bytes": {"input_waiting": 0},
    "bridge": {"batches": 30, "items": 61, "deferred": 70, "in_user_mode": 0, "coalesced": 4, "dropped_expired": 3,
               "dropped_disconnected": 2, "slabs_in_use": 2},
    "routes": {
        "/a": {"batches": 20, "items": 40, "queued": 0, "in_flight": 0, "queue_full": 1,
               "reasons": {"full": 15, "idle": 5}, "batch_size_histogram": [10, 10, 0]},
        "/b": {"batches": 10, "items": 21, "queued": 0, "in_flight": 0, "queue_full": 0,
               "reasons": {"full": 0, "idle": 10}, "batch_size_histogram": [2, 8, 0]},
    },
    "sends": {"zero_copy_pending": 0},
    "fills": {"under_way": 0},
    "cache": {
        "size_bytes": 5000, "size_bytes_max": 5000, "leaving": 7, "fragments": {"pins": 0, "present": 9},
        "arena": {"pieces": 6, "faults": 0}, "plain_memory": {"pieces": 3}, "page_cache": {"pieces": 0},
    },
    "kernel_side": {"images": 7},
    "log": {"lines": 119, "lines_lost": 1},
    "engine": {"table_faults": 0},
}  # fmt: skip

#: Five abandoned requests, of which the server noticed three; two were answered all the same.
TALLY = Tally(Counter(file=38, batch=45, kept=5, local=5, error_4xx=12, error_5xx=10), abandoned=5)


def faults(stats, tally=TALLY, lines=119):
    checks = at_rest(stats) + within(stats) + against_clients(stats, tally) + against_log(stats, lines)
    return [check.fault for check in checks if check.fault and not check.fault.startswith("log lines lost")]


def test_balanced_books_have_no_fault():
    assert faults(STATS) == []
    assert is_at_rest(STATS)


@pytest.mark.parametrize(
    "path",
    [
        ("requests", "read"), *(("requests", "outcomes", name) for name in STATS["requests"]["outcomes"]),
        ("connections", "accepted"), ("connections", "closed"), ("connections", "open"), ("bytes", "input_waiting"),
        ("bridge", "batches"), ("bridge", "items"), ("bridge", "deferred"), ("bridge", "in_user_mode"),
        ("bridge", "coalesced"), ("bridge", "dropped_expired"), ("bridge", "dropped_disconnected"),
        ("routes", "/b", "batches"), ("routes", "/b", "items"), ("routes", "/b", "queued"),
        ("routes", "/b", "in_flight"), ("routes", "/b", "reasons", "idle"), ("sends", "zero_copy_pending"),
        ("log", "lines"), ("log", "lines_lost"),
        ("engine", "table_faults"), ("fills", "under_way"), ("cache", "size_bytes"), ("cache", "leaving"),
        ("cache", "fragments", "pins"), ("cache", "fragments", "present"), ("cache", "arena", "pieces"),
        ("cache", "arena", "faults"), ("cache", "plain_memory", "pieces"), ("cache", "page_cache", "pieces"),
    ],
)  # fmt: skip
def test_a_counter_that_is_off_by_one_is_a_fault(path):
    stats = copy.deepcopy(STATS)
    place = stats
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] += 1
    assert faults(stats)


def test_what_clients_and_log_saw_must_be_there():
    for outcome in TALLY.outcomes:
        assert faults(STATS, Tally(TALLY.outcomes + Counter([outcome]), TALLY.abandoned))
        assert faults(STATS, Tally(TALLY.outcomes - Counter([outcome]), TALLY.abandoned))
    assert faults(STATS, Tally(TALLY.outcomes, TALLY.abandoned + 1))
    assert faults(STATS, Tally(TALLY.outcomes, 2))
    assert faults(STATS, lines=118)


def test_a_fault_is_a_sentence_with_its_figures():
    assert equal("ends", "left", 1200, "right", 1000).fault == "ends: left 1,200, but right 1,000 (+200)."
    assert equal("ends", "left", 7, "right", 7).fault == ""
    assert at_most("heap", "it grew by", 9000, 4096).fault == "heap: it grew by 9,000, which is more than 4,096."


def test_memory_that_grows_and_descriptors_that_stay_are_faults():
    flat = [30_000_000 + 100_000 * (number % 3) for number in range(12)]
    leaking = [size + 1_000_000 * number for number, size in enumerate(flat)]
    watch = Watch(flat, flat, [20] * 12, [9] * 12, 13)
    assert not any(check.fault for check in watched(watch))
    assert any(check.fault for check in watched(Watch(leaking, flat, [20] * 12, [9] * 12, 13)))
    assert any(check.fault for check in watched(Watch(flat, flat, [20] * 11 + [21], [9] * 12, 13)))
    assert any(check.fault for check in watched(Watch(flat, flat, [20] * 12, [9] * 11 + [14], 13)))


def test_log_lines_are_told_from_other_text():
    line = b'127.0.0.1 - - [24/Nov/2026:23:11:02 +0000] "GET /%s HTTP/1.1" 200 5 "-" "x"\n'
    assert LOG_LINE.fullmatch(line % b"a")
    assert LOG_LINE.fullmatch(line % b"\\x22")
    assert not LOG_LINE.fullmatch(line[:-1] % b"a")
    assert not LOG_LINE.fullmatch(line % b'"')
    assert not LOG_LINE.fullmatch(line[:40] + b"\n")
