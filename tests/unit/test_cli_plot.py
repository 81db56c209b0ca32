"""The command `plot`: pictures where they are wanted, exports, and a sentence for what cannot be drawn."""

import csv
import io
import json

import msgpack
import pytest

from batchbridge.cli import main
from support.samples import batching_results, load_results, sweep_results, versus_results


@pytest.fixture
def run(capsys):
    def run(*arguments):
        status = main([str(argument) for argument in ("plot", *arguments)])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def files(tmp_path):
    for name, results in (("load", load_results()), ("again", load_results()), ("sweep", sweep_results()),
                          ("versus", versus_results()), ("batching", batching_results())):  # fmt: skip
        results.save(tmp_path / f"{name}.msgpack")
    return tmp_path


def test_pictures_follow_from_the_kind(run, files):
    status, out, err = run(files / "sweep.msgpack", "-o", files / "pictures", "--format", "svg")
    assert (status, err) == (0, "")
    names = ["sweep-sweep.svg", "sweep-trade-off.svg", "sweep-latency-cdf.svg", "sweep-batch-sizes.svg"]
    assert out.splitlines() == [str(files / "pictures" / name) for name in names]
    assert all((files / "pictures" / name).read_text().startswith("<?xml") for name in names)


def test_one_figure_into_one_file(run, files):
    path = files / "figure.pdf"
    assert run(files / "batching.msgpack", "--figure", "batching", "-o", path) == (0, f"{path}\n", "")
    assert path.read_bytes().startswith(b"%PDF")
    status, _, err = run(files / "batching.msgpack", "-o", path)
    assert status == 2 and "3 pictures do not fit into one file" in err
    status, _, err = run(files / "batching.msgpack", "--figure", "batching", "-o", path, "--format", "png")
    assert status == 2 and "contradict" in err


def test_loads_are_compared_in_one_figure(run, files):
    status, out, _ = run(files / "load.msgpack", files / "again.msgpack", files / "versus.msgpack", "--format", "svg",
                         "-o", files, "--figure", "latency-cdf")  # fmt: skip
    assert status == 0 and out.splitlines() == [
        str(files / f"{name}-latency-cdf.svg") for name in ("compared", "versus")
    ]
    text = (files / "compared-latency-cdf.svg").read_text()
    assert ">load<" in text and ">again<" in text


def test_two_files_of_one_name_make_two_pictures(run, files):
    (files / "b").mkdir()
    sweep_results().save(files / "b" / "sweep.msgpack")
    status, out, _ = run(files / "sweep.msgpack", files / "b" / "sweep.msgpack", "-o", files, "--figure", "sweep")
    assert status == 0 and [line.rpartition("/")[2] for line in out.splitlines()] == [
        "sweep-sweep.png",
        "sweep-2-sweep.png",
    ]


def test_exports(run, files):
    status, out, _ = run(files / "versus.msgpack", "--json")
    assert status == 0 and len(json.loads(out)["runs"]) == 18
    status, out, _ = run(files / "versus.msgpack", files / "load.msgpack", "--json")
    assert [each["kind"] for each in json.loads(out)] == ["versus", "load"]
    status, out, _ = run(files / "versus.msgpack", "--csv")
    rows = list(csv.DictReader(io.StringIO(out)))
    assert len(rows) == 18 and rows[0]["parameter_rate_per_s"] == "20000"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["none.msgpack"], 1, "none.msgpack cannot be read: no such file"),
        (["short.msgpack"], 1, "short.msgpack is not a results file that can be used: it is cut short"),
        (["damaged.msgpack"], 1, "damaged.msgpack is not a results file that can be used"),
        (["text.msgpack"], 1, "text.msgpack is not a results file that can be used"),
        (["other.msgpack"], 1, "does not say that its schema is batchbridge.results"),
        (["later.msgpack"], 1, "its version is 2"),
        (["load.msgpack", "--figure", "sweep"], 1, "results of kind 'load' have no figure sweep"),
        (
            ["load.msgpack", "--figure", "batch-sizes"],
            1,
            "is not drawn, since no valid run has batch sizes",
        ),
        (["load.msgpack", "--figure", "pie"], 2, "pie"),
        (["load.msgpack", "--format", "gif"], 2, "gif"),
        (["load.msgpack", "--json", "--csv"], 2, "exclude each other"),
        (["load.msgpack", "again.msgpack", "--csv"], 2, "--csv takes one file"),
        (["load.msgpack", "-o", "text.msgpack/folder"], 1, "cannot be made: not a directory"),
        ([], 2, "RESULTS"),
    ],
)
def test_what_is_wrong_is_one_line(run, files, monkeypatch, arguments, status, words):
    whole = (files / "load.msgpack").read_bytes()
    (files / "short.msgpack").write_bytes(whole[:-100])
    (files / "damaged.msgpack").write_bytes(whole[:-400] + bytes([whole[-400] ^ 1]) + whole[-399:])
    (files / "text.msgpack").write_text("hello")
    (files / "other.msgpack").write_bytes(msgpack.packb({"schema": "other"}))
    (files / "later.msgpack").write_bytes(msgpack.packb({"schema": "batchbridge.results", "version": 2}))
    monkeypatch.chdir(files)
    got, out, err = run(*arguments)
    assert (got, out) == (status, "")
    assert err.startswith("batchbridge: ") and err.count("\n") == 1 and words in err


def test_the_other_figures_are_drawn_where_one_cannot_be(run, files):
    status, out, err = run(files / "load.msgpack", "-o", files)
    assert (status, err) == (0, "") and len(out.splitlines()) == 2
    status, out, err = run(files / "load.msgpack", "-o", files, "--figure", "batch-sizes", "--figure", "latency-cdf")
    assert status == 0 and len(out.splitlines()) == 1 and "batch-sizes is not drawn" in err
