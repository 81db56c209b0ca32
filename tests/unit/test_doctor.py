"""The doctor judges what the probes say, in words, and `choose_engine` follows it."""

import sys
import time

import pytest

from batchbridge import doctor
from batchbridge.errors import ConfigError, EngineError
from batchbridge.zero_copy import Calibration

ALL = dict.fromkeys(doctor.RING_FEATURES, True) | {"ring_error": ""}


@pytest.fixture
def probe(monkeypatch):
    """Sets what the ring probe says."""

    def probe(result):
        monkeypatch.setattr(doctor, "ring_probe", lambda: result)

    return probe


@pytest.fixture
def kernel_side(monkeypatch):
    """Sets what the kernel engine finds."""

    def kernel_side(*, capabilities=(), built=True, types=True):
        monkeypatch.setattr(doctor, "_has_capability", lambda name: name in capabilities)
        monkeypatch.setattr(doctor, "_compiled", lambda name: built if name == "bpf" and built else None)
        monkeypatch.setattr(doctor, "ring_probe", lambda: ALL)
        monkeypatch.setattr(doctor.os, "access", lambda path, mode: types)

    return kernel_side


def test_with_everything_there_auto_takes_kernel(kernel_side):
    kernel_side(capabilities=("CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON"))
    assert doctor.choose_engine("auto") == ("kernel", "the kernel side can be loaded here")
    kernel_side(capabilities=("CAP_SYS_ADMIN", "CAP_NET_ADMIN"))
    assert doctor.choose_engine("auto")[0] == "kernel"


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "missing CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON: run as root, or give the process these capabilities"),
        ({"capabilities": ("CAP_BPF", "CAP_NET_ADMIN")}, "missing CAP_PERFMON"),
        ({"capabilities": ("CAP_SYS_ADMIN", "CAP_NET_ADMIN"), "types": False}, "no readable /sys/kernel/btf/vmlinux"),
        ({"built": False}, "this build has no kernel engine"),
    ],
)
def test_without_the_kernel_side_auto_takes_io_uring_and_says_why(kernel_side, found, words):
    kernel_side(**found)
    name, reason = doctor.choose_engine("auto")
    assert name == "io_uring"
    assert reason.startswith("the kernel engine cannot run here: ") and words in reason and not reason.endswith(".")
    with pytest.raises(EngineError, match="the engine kernel cannot run: ") as caught:
        doctor.choose_engine("kernel")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("result", "words"),
    [
        (None, "this build has no io_uring engine"),
        (ALL | {"ring_error": "Operation not permitted"}, "a ring cannot be set up here: Operation not permitted"),
        (ALL | {"multishot_recv": False, "buffer_ring": False}, "lacks provided buffer rings, multishot receive"),
        ({"ring_error": ""}, "this kernel lacks rings with one submitting thread"),
    ],
)
def test_what_is_missing_is_told_and_auto_falls_back(probe, result, words):
    probe(result)
    name, reason = doctor.choose_engine("auto")
    assert name == "epoll"
    assert words in reason
    with pytest.raises(EngineError, match="the engine io_uring cannot run: ") as caught:
        doctor.choose_engine("io_uring")
    assert words in str(caught.value)


def test_a_missing_extra_costs_speed_only(probe):
    probe(ALL | {"send_zc": False})
    name, reason = doctor.choose_engine("io_uring")
    assert name == "io_uring"
    assert "without zero-copy send" in reason


def test_epoll_is_had_for_the_asking():
    assert doctor.choose_engine("epoll") == ("epoll", "epoll was asked for")


def test_an_engine_that_there_is_not():
    with pytest.raises(ConfigError, match="'uring' is not known; choose auto, kernel"):
        doctor.choose_engine("uring")


def test_choosing_is_quick():
    doctor.choose_engine("auto")
    took_s = []
    for _ in range(5):
        started = time.perf_counter()
        doctor.choose_engine("auto")
        took_s.append(time.perf_counter() - started)
    assert min(took_s) < 0.005


@pytest.mark.parametrize("pyuring_loads", [True, False])
def test_the_report_is_whole(monkeypatch, pyuring_loads):
    if not pyuring_loads:
        monkeypatch.setitem(sys.modules, "pyuring", None)
    report = doctor.diagnose()
    names = [finding.name for finding in report.findings]
    assert len(names) == len(set(names))
    assert {"kernel", "io_uring allowed", "io_uring_setup", "locked memory", "zero copy", "BTF", "libbpf"} <= set(names)
    assert ("io_uring operations" in names) == pyuring_loads or not report.findings[2].ok
    assert report.chosen == doctor.choose_engine("auto")[0]


@pytest.mark.parametrize(
    ("setting", "group", "capable", "ok", "words"),
    [
        ("0", "-1", False, True, "every process may"),
        (None, None, False, True, "nothing in sysctl forbids"),
        ("1", "-1", False, False, "it takes CAP_SYS_ADMIN or the group -1"),
        ("1", "-1", True, True, "this process is exempt"),
        ("2", "-1", True, False, "nobody may"),
    ],
)
def test_the_system_wide_switch(monkeypatch, setting, group, capable, ok, words):
    files = {"/proc/sys/kernel/io_uring_disabled": setting, "/proc/sys/kernel/io_uring_group": group}
    monkeypatch.setattr(doctor, "_read", files.get)
    monkeypatch.setattr(doctor, "_has_capability", lambda name: capable)
    finding = doctor._allowed()
    assert finding.ok == ok
    assert words in finding.detail


@pytest.mark.parametrize(
    ("number", "filtered", "words"),
    [
        (1, True, "operation not permitted: a seccomp filter refuses it, as Docker's default profile does"),
        (38, True, "seccomp filter"),
        (38, False, "built without io_uring"),
        (12, False, "ulimit -l"),
        (24, False, "too many open files"),
    ],
)
def test_a_refused_ring_is_explained(monkeypatch, number, filtered, words):
    pyuring = pytest.importorskip("pyuring")

    def refuse():
        raise OSError(number, "")

    monkeypatch.setattr(pyuring, "get_probe_info", refuse)
    monkeypatch.setattr(doctor, "_status", lambda key: "2" if filtered else "0")
    finding = doctor._seccomp()
    assert not finding.ok
    assert words in finding.detail
    assert doctor._opcodes() == []


@pytest.mark.parametrize(
    ("soft", "capable", "ok", "words"),
    [
        (8 << 20, False, False, "8 MiB may be locked by this user (ulimit -l), without CAP_IPC_LOCK; an engine thread"),
        (
            272 << 20,
            False,
            False,
            "would register 16 MiB for handlers' answers and up to 256 MiB for its cache, beside 1.2 MiB for ",
        ),
        (274 << 20, False, True, "274 MiB may be locked by this user"),
        (8 << 20, True, True, "As much as is wanted may be locked (CAP_IPC_LOCK is there)"),
        (doctor.resource.RLIM_INFINITY, False, True, "(ulimit -l is unlimited)"),
    ],
)
def test_locked_memory_in_words(monkeypatch, soft, capable, ok, words):
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda which: (soft, soft))
    monkeypatch.setattr(doctor, "_has_capability", lambda name: capable)
    finding = doctor._memlock()
    assert finding.ok == ok
    assert words in finding.detail


COSTS_US = {4096: (4.8, 4.9), 8192: (5.4, 5.0), 16384: (6.1, 5.1), 32768: (8.3, 5.3), 65536: (12.4, 5.5)}


@pytest.mark.parametrize(
    ("found", "ok", "words"),
    [
        (Calibration(16384, COSTS_US, 5000), True, "From 16 KiB on a send without a copy is the cheaper one here "),
        (Calibration(8192, COSTS_US, 5000), True, ", 16 KiB 6.1 → 5.1 µs, 32 KiB 8.3 → 5.3 µs, "),
        (Calibration(16384, {}, 9, "no send could be timed: broken"), False, "as is usual: no send could be timed: b"),
        (None, False, "Everything is copied"),
    ],
)
def test_zero_copy_in_words(found, ok, words):
    finding = doctor.judge_zero_copy(found)
    assert finding.ok == ok
    assert words in finding.detail and finding.detail.endswith(".")


@pytest.mark.parametrize("features", [None, {}, ALL | {"send_zc": False}, ALL | {"registered_buffers": False}])
def test_nothing_is_measured_where_zero_copy_is_missing(monkeypatch, features):
    monkeypatch.setattr(doctor, "calibrate", lambda budget_us: pytest.fail("it was measured"))
    assert not doctor._zero_copy(features).ok


def running_stats(source="calibration", registered=4 << 20, handlers=16 << 20):
    return {
        "cache": {
            "arena": {"open_size_bytes": 6 << 20, "registered_size_bytes": registered, "size_bytes_max": 256 << 20}
        },
        "bridge": {
            "response_arena_size_bytes": handlers,
            "response_arena_registered_size_bytes": handlers if registered else 0,
        },
        "sends": {
            "zero_copy": 1200, "pieces": 1500, "zero_copy_size_bytes_min": 16384, "zero_copy_size_from": source,
        },
    }  # fmt: skip


def test_what_a_running_server_has_registered():
    zero_copy, arena, handlers = doctor.judge_running(running_stats())
    assert zero_copy.ok
    assert zero_copy.detail == (
        "It sends without a copy from 16 KiB on, as was measured when it started: 1,200 of 1,500 large sends so far."
    )
    assert not arena.ok
    assert arena.detail == (
        "4 MiB of 6 MiB are registered with the kernel (it may grow to 256 MiB): "
        "the rest is beyond the limit of locked memory."
    )
    assert handlers.ok
    assert handlers.detail == "16 MiB of 16 MiB are registered with the kernel."


@pytest.mark.parametrize(
    ("source", "words"), [("setting", ", as was set: "), ("default", "as is usual: when it started, nothing could be")]
)
def test_where_a_running_server_has_its_size_from(source, words):
    assert words in doctor.judge_running(running_stats(source))[0].detail


def test_a_running_server_without_zero_copy_or_handlers():
    zero_copy, arena = doctor.judge_running(running_stats("none", registered=0, handlers=0))
    assert not zero_copy.ok and zero_copy.detail.startswith("It copies everything")
    assert arena.detail == "0 B of 6 MiB are registered with the kernel (it may grow to 256 MiB)."
