"""What zero copy saves is drawn from results that have a cost of both modes for a size, and from no others."""

from pathlib import Path

import pytest

from batchbridge.measure.results import Results, Run
from batchbridge.plot.sheet import NothingToDrawError
from bench.zero_copy import MODES, QUICK_SIZES, content, costs, draw


def results_of(*modes: str) -> Results:
    results = Results("versus", settings={"engine": "io_uring"})
    for block in range(3):
        for size_bytes in QUICK_SIZES:
            for mode in modes:
                each = 4.0 + size_bytes / (9000 if mode == "zero copy" else 4000) + block / 10
                parameters: dict[str, float | str] = {"size_bytes": size_bytes, "phase": "cost"}
                results.runs.append(Run(mode, block, parameters, server_cpu_us_per_request=each))
    return results


def test_costs_by_size() -> None:
    found = costs(results_of(*MODES), "one copy")
    assert list(found) == sorted(QUICK_SIZES)
    assert all(len(values) == 3 for values in found.values())


def test_it_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    draw(results_of(*MODES), tmp_path / "zero_copy.png")
    assert (tmp_path / "zero_copy.png").stat().st_size > 10_000


def test_one_mode_alone_is_no_comparison(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(NothingToDrawError):
        draw(results_of("one copy"), tmp_path / "zero_copy.png")


def test_files_have_their_size() -> None:
    assert [len(content(size_bytes)) for size_bytes in QUICK_SIZES] == list(QUICK_SIZES)
