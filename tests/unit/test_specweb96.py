"""SPECweb96's mix is what its specification says: sizes, shares, bytes of a directory, mean transfer; and a root that
was made is served, and asked for by its list of URLs."""

import math
from collections import Counter
from pathlib import Path

import pytest
from click.testing import CliRunner

from batchbridge.cli.bench.documents import command
from batchbridge.measure.specweb96 import DIRECTORY_SIZE_BYTES, documents, mean_size_bytes, url_lines
from batchbridge.measure.traffic import read_urls


def test_sizes_and_classes() -> None:
    one = list(documents(1))
    assert len(one) == 36
    assert sum(document.size_bytes for document in one) == DIRECTORY_SIZE_BYTES
    sizes = [document.size_bytes for document in one]
    assert sizes[:9] == [102, 204, 307, 409, 512, 614, 716, 819, 921]
    assert sizes[9:18] == [1024 * step for step in range(1, 10)]
    assert (sizes[18], sizes[26], sizes[27], sizes[35]) == (10_240, 92_160, 102_400, 921_600)


def test_shares_are_those_of_the_benchmark() -> None:
    shares: Counter[str] = Counter()
    for document in documents(1):
        shares[document.path.partition("class")[2][0]] += document.weight  # type: ignore[assignment]
    assert {kind: round(share, 9) for kind, share in shares.items()} == {"0": 0.35, "1": 0.5, "2": 0.14, "3": 0.01}
    within = [document.weight / 0.35 for document in list(documents(1))[:9]]
    assert [round(share, 3) for share in within] == [0.035, 0.088, 0.146, 0.183, 0.183, 0.152, 0.109, 0.068, 0.038]
    assert mean_size_bytes() == pytest.approx(14_566, abs=1)


def test_directories_are_all_alike() -> None:
    many = list(documents(30))
    assert len({document.path for document in many}) == len(many) == 30 * 36
    assert math.isclose(sum(document.weight for document in many), 1.0)
    assert len({round(document.weight, 12) for document in many if document.path.endswith("class1_5")}) == 1


def test_the_list_of_urls_is_one_that_a_load_takes(tmp_path: Path) -> None:
    (tmp_path / "urls").write_text("\n".join(url_lines(3)))
    exchanges = read_urls(tmp_path / "urls")
    assert [exchange.weight for exchange in exchanges] == pytest.approx([one.weight for one in documents(3)], rel=1e-6)


def test_a_root_is_made_once_and_the_same_each_time(tmp_path: Path) -> None:
    for name in ("one", "two"):
        ran = CliRunner().invoke(command, [str(tmp_path / name), "--directories", "1"])
        assert ran.exit_code == 0 and "36 files, 5 MB" in ran.output, ran.output
    for document in documents(1):
        content = (tmp_path / "one" / "root" / document.path[1:]).read_bytes()
        assert len(content) == document.size_bytes
        assert content == (tmp_path / "two" / "root" / document.path[1:]).read_bytes()
    again = CliRunner().invoke(command, [str(tmp_path / "one")])
    assert again.exit_code == 2 and "is not empty" in again.output
