"""What zero copy saves is drawn from results that have a cost of both modes for a size, and from no others.

A run whose counters do not show its mode is none.
"""

from pathlib import Path

import pytest

from batchbridge.measure.experiment import Counted
from batchbridge.measure.results import Results, Run
from batchbridge.plot.sheet import NothingToDrawError
from bench.zero_copy import (
    MODES,
    ONE,
    QUICK_SIZES,
    TWO,
    TWO_COPIES_SIZE_BYTES_MAX,
    ZERO,
    arms,
    both_cost,
    client_cost,
    content,
    costs,
    draw,
    limits_note,
    mode_fault,
    ratios,
    table,
)


def results_of(*modes: str, client: bool = True) -> Results:
    results = Results("versus", settings={"engine": "io_uring"})
    for block in range(3):
        for size_bytes in QUICK_SIZES:
            for mode in modes:
                if mode == TWO and size_bytes > TWO_COPIES_SIZE_BYTES_MAX:
                    continue
                each = 4.0 + size_bytes / {ZERO: 16_384, ONE: 4096, TWO: 2048}[mode] + block / 10
                parameters: dict[str, float | str] = {"size_bytes": size_bytes, "phase": "cost"}
                run = Run(mode, block, parameters, server_cpu_us_per_request=each)
                run.client_core_us_per_request = 8.0 if client else None
                run.client_idle_share = 0.0 if block else 0.5
                results.runs.append(run)
    return results


def test_costs_by_size() -> None:
    found = costs(results_of(*MODES), ONE)
    assert list(found) == sorted(QUICK_SIZES)
    assert all(len(values) == 3 for values in found.values())
    assert list(costs(results_of(*MODES), TWO)) == [1024, 4096, 8192]


def test_ratios_of_one_core_and_of_both() -> None:
    results = results_of(*MODES)
    assert ratios(results, both_cost)[65_536] == pytest.approx((8.1 + 8.0) / (20.1 + 8.0))
    assert set(ratios(results, client_cost).values()) == {1.0}
    assert ratios(results_of(*MODES, client=False), both_cost) == {}


def test_the_table_has_ratios_by_size_and_a_line_for_each_mode() -> None:
    results = results_of(*MODES)
    results.runs[0].loops_per_s, results.runs[0].requests_per_s, results.runs[0].ipis_per_request = 500.0, 2000.0, 0.3
    lines = list(table(results))
    assert len([line for line in lines if " KiB " in line]) == len(QUICK_SIZES)
    assert [" ".join(line.split()) for line in lines[:4]] == [
        "1 KiB zero copy ÷ one copy, server 0.96, both 0.98",
        "zero copy 4.2 + 8.0 µs (0.25 turns, 0.30 interrupts a request)",
        "one copy 4.3 + 8.0 µs",
        "two copies 4.6 + 8.0 µs",
    ]
    assert lines[-1].split()[0] == "one"
    assert list(table(results_of(ZERO))) == []


def test_a_client_without_time_is_told() -> None:
    assert limits_note(results_of(ZERO))[0].startswith("In 16 of 24 runs the client's core was the limit")
    assert limits_note(Results("versus")) == []


@pytest.mark.parametrize("modes", [tuple(MODES), (ZERO, ONE)])
@pytest.mark.parametrize("client", [True, False])
def test_it_is_drawn(tmp_path: Path, modes: tuple[str, ...], client: bool) -> None:
    pytest.importorskip("matplotlib")
    draw(results_of(*modes, client=client), tmp_path / "zero_copy.png")
    assert (tmp_path / "zero_copy.png").stat().st_size > 10_000


def test_one_mode_alone_is_no_comparison(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(NothingToDrawError):
        draw(results_of(ONE), tmp_path / "zero_copy.png")


def test_files_have_their_size() -> None:
    assert [len(content(size_bytes)) for size_bytes in QUICK_SIZES] == list(QUICK_SIZES)


def test_what_is_copied_twice_is_small(tmp_path: Path) -> None:
    made = list(arms(tmp_path, "io_uring", QUICK_SIZES))
    assert [arm.parameters["size_bytes"] for arm in made if arm.name == TWO] == [1024, 4096, 8192]
    assert all(arm.check is not None for arm in made)


@pytest.mark.parametrize(
    ("mode", "pieces", "without", "is_right"),
    [
        (ZERO, 1000, 1000, True),
        (ZERO, 5000, 4000, True),  # each answer's last piece is short
        (ZERO, 2000, 1995, True),
        (ZERO, 5000, 3900, False),
        (ZERO, 1000, 980, False),
        (ZERO, 0, 0, False),
        (ONE, 1000, 0, True),
        (ONE, 5000, 0, True),
        (ONE, 1000, 1, False),
        (ONE, 0, 0, False),  # it left through the scratch
        (TWO, 0, 0, True),
        (TWO, 10, 0, True),
        (TWO, 11, 0, False),
        (TWO, 10, 10, False),
    ],
)
def test_a_run_whose_counters_do_not_show_its_mode_is_invalid(
    mode: str, pieces: int, without: int, is_right: bool
) -> None:
    fault = mode_fault(mode, Counted(1000, pieces=pieces, zero_copy=without))
    assert (fault is None) == is_right
    assert fault is None or (mode in fault and f"{pieces:,} pieces" in fault)
