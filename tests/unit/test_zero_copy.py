"""From which size on nothing is copied follows from costs by size, and is as usual where they are noise, or none.

The costs themselves are measured for real: within their time, again and again, with nothing left behind.
"""

import os
import time

import pytest

from batchbridge import zero_copy
from batchbridge.config import Config
from batchbridge.cython_ext import calibrate, ring
from batchbridge.errors import ConfigError
from batchbridge.zero_copy import DEFAULT_SIZE_BYTES, SIZES_BYTES, Calibration, decide, size_for
from support.skips import skip_if

KIB = 1024
FEATURES = ring.probe()
needs_zero_copy = skip_if(
    not zero_copy.has_zero_copy(FEATURES), "no-io-uring", f"zero-copy sends: {FEATURES['ring_error']}"
)
READY = {"send_zc": True, "registered_buffers": True}


def costs(*ratios: float) -> dict[int, tuple[float, float]]:
    """Copied, and without a copy, for each size: what zero copy costs as a part of a copied send."""
    return {size: (4.0, 4.0 * ratio) for size, ratio in zip(SIZES_BYTES, ratios, strict=True)}


@pytest.mark.parametrize(
    ("ratios", "size_kib"),
    [
        ((1.0, 0.9, 0.8, 0.7, 0.5), 16),  # as it is usually
        ((0.5, 0.5, 0.5, 0.5, 0.5), 4),
        ((1.5, 0.7, 0.6, 0.5, 0.4), 8),
        ((0.7, 0.9, 0.6, 0.5, 0.4), 16),  # cheaper at 4 KiB alone is noise
        ((0.79, 0.81, 0.6, 0.5, 0.4), 16),
        ((1.5, 1.2, 1.08, 0.9, 0.8), 16),  # no clear loss
        ((1.5, 1.3, 1.2, 0.9, 0.8), 32),
        ((1.5, 1.3, 1.2, 1.2, 0.8), 64),
        ((0.5, 0.5, 0.5, 1.2, 0.8), 64),
        ((2.0, 2.0, 2.0, 2.0, 2.0), 64),  # never: whole fragments still leave so, which is the bound
    ],
)
def test_the_smallest_size_from_which_on_zero_copy_is_cheaper(ratios: tuple[float, ...], size_kib: int) -> None:
    assert decide(costs(*ratios)) == size_kib * KIB


@pytest.mark.parametrize("size", SIZES_BYTES)
def test_a_cost_that_is_missing_or_none_tells_nothing(size: int) -> None:
    known = costs(0.5, 0.5, 0.5, 0.5, 0.5)
    assert decide({other: pair for other, pair in known.items() if other != size}) == DEFAULT_SIZE_BYTES
    assert decide({**known, size: (0.0, 1.0)}) == DEFAULT_SIZE_BYTES
    assert decide({**known, size: (1.0, 0.0)}) == DEFAULT_SIZE_BYTES
    assert decide({}) == DEFAULT_SIZE_BYTES


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch):
    """Lets the next calibrations find this."""
    calls = []

    def set_to(costs_us, *, rounds=5, error="") -> list[tuple]:
        def measure(*arguments):
            calls.append(arguments)
            return {"costs_us": costs_us, "rounds": rounds, "error": error, "took_us": 7}

        monkeypatch.setattr(calibrate, "measure", measure)
        monkeypatch.setattr(zero_copy, "_found", None)
        return calls

    return set_to


def test_what_was_measured_is_told_with_its_costs(measured) -> None:
    measured(costs(1.0, 0.7, 0.6, 0.5, 0.5))
    found = zero_copy.calibrate()
    assert (found.size_bytes, found.took_us, found.reason) == (8 * KIB, 7, "")
    assert found.words.startswith("4 KiB 4.0 → 4.0 µs, 8 KiB 4.0 → 2.8 µs, ")


def test_an_error_or_too_little_time_leaves_the_usual_size_and_says_why(measured) -> None:
    measured({}, rounds=0, error="Cannot allocate memory")
    assert zero_copy.calibrate() == Calibration(
        DEFAULT_SIZE_BYTES, {}, 7, "no send could be timed: cannot allocate memory"
    )
    measured(costs(0.1, 0.1, 0.1, 0.1, 0.1), rounds=2)
    found = zero_copy.calibrate(2500)
    assert found.size_bytes == DEFAULT_SIZE_BYTES
    assert found.reason == "the machine is busy: 2 of 3 rounds ended in 2.5 ms"


def test_it_is_measured_once_a_process_and_only_where_it_is_asked_for(measured) -> None:
    calls = measured(costs(0.5, 0.5, 0.5, 0.5, 0.5))
    assert size_for(20_000, READY) == (20_000, "setting")
    assert size_for("auto", {}) == (DEFAULT_SIZE_BYTES, "none")
    assert size_for(20_000, {"send_zc": True}) == (20_000, "none")
    assert size_for("auto", {"send_zc": True, "registered_buffers": False}) == (DEFAULT_SIZE_BYTES, "none")
    assert not calls
    assert [size_for("auto", READY) for _ in range(3)] == [(4 * KIB, "calibration")] * 3
    assert len(calls) == 1
    measured({}, rounds=0, error="nothing")
    assert size_for("auto", READY) == (DEFAULT_SIZE_BYTES, "default")


# For real


@needs_zero_copy
def test_costs_are_measured_for_all_sizes_and_leave_nothing_behind() -> None:
    calibrate.measure(SIZES_BYTES, 1, 10_000_000)
    before = len(os.listdir("/proc/self/fd"))
    for rounds in (1, 3, 15):
        found = calibrate.measure(SIZES_BYTES, rounds, 10_000_000)
        assert (found["error"], found["rounds"]) == ("", rounds)
        assert tuple(found["costs_us"]) == SIZES_BYTES
        # A system call takes more than 50 ns, and no send of 64 KiB a second.
        assert all(0.05 < cost < 1e6 for pair in found["costs_us"].values() for cost in pair)
        assert len(os.listdir("/proc/self/fd")) == before


@needs_zero_copy
def test_what_is_copied_costs_more_the_more_it_is() -> None:
    found = calibrate.measure((1, 65_536), 9, 10_000_000)["costs_us"]
    assert found[65_536][0] > found[1][0], "64 KiB are copied in no less time than a byte"


@needs_zero_copy
def test_it_ends_when_its_time_is_over() -> None:
    assert calibrate.measure(SIZES_BYTES, 5, 0)["rounds"] == 0
    began = time.thread_time()
    found = calibrate.measure(SIZES_BYTES, 15, 2_000)
    assert time.thread_time() - began < 0.05
    assert found["rounds"] < 15 and found["error"] == ""


@needs_zero_copy
def test_several_threads_may_measure_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: calibrate.measure((4096, 65_536), 3, 10_000_000), range(4)))
    assert [each["error"] for each in found] == [""] * 4


@pytest.mark.parametrize(
    ("sizes", "rounds"), [((), 1), ((4096,) * 9, 1), ((0,), 1), ((65_537,), 1), ((4096,), 0), ((4096,), 16)]
)
def test_nothing_beyond_its_limits_is_measured(sizes: tuple[int, ...], rounds: int) -> None:
    with pytest.raises(ValueError, match=r"^(sizes_bytes|rounds): "):
        calibrate.measure(sizes, rounds, 1000)


# The settings


def test_the_setting_is_auto_or_a_size() -> None:
    assert Config().zero_copy_size_bytes_min == "auto"
    assert Config(zero_copy_size_bytes_min=" Auto ").zero_copy_size_bytes_min == "auto"
    assert Config(zero_copy_size_bytes_min="32k").zero_copy_size_bytes_min == 32 * KIB


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("automatic", r"^zero_copy_size_bytes_min: 'automatic' is not a size; give bytes, .*, or auto$"),
        (None, "None is not a size"),
        (True, "True is not a size"),
        ("1000", r"1000 is too small; the least is 1024 \(1 KiB\)"),
        ("2MiB", r"2MiB is too large; the most is 1048576 \(1 MiB\)"),
    ],
)
def test_what_is_neither_is_told(value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Config(zero_copy_size_bytes_min=value)  # type: ignore[arg-type]


def test_what_leaves_without_a_copy_is_not_copied_twice() -> None:
    assert Config().copied_size_bytes_max == 16 * KIB
    assert Config(zero_copy_size_bytes_min="4k").copied_size_bytes_max == 4 * KIB
    assert Config(zero_copy_size_bytes_min="64k").copied_size_bytes_max == 16 * KIB
    assert Config(zero_copy_size_bytes_min="64k", copied_size_bytes_max="2k").copied_size_bytes_max == 2 * KIB
