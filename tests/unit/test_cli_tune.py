"""The command `tune`: what makes no sense is one line, before any server is started."""

import pytest

from batchbridge.cli import main
from batchbridge.measure.results import Results

APP = ["--app", "app.py:server"]
ADMIN = ["--admin", "127.0.0.1:1", "--url", "http://127.0.0.1:2"]


@pytest.fixture
def run(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some.requests").write_text('{"path": "/r"}\n')

    def run(*arguments, route="/r", requests="some.requests"):
        status = main(["tune", "--route", route, "--requests", requests, *arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        ([*APP], 2, "give a goal: --p99-us N, --max-throughput or --min-cpu"),
        ([*APP, "--min-cpu", "--max-throughput"], 2, "exclude each other"),
        ([*APP, "--max-throughput", "--rate", "5"], 2, "a closed loop has no rate"),
        ([*APP, "--p99-us", "soon"], 2, "--p99-us: 'soon' is not a duration"),
        ([*APP, "--p99-us", "0"], 2, "no latency is 0"),
        (["--min-cpu"], 2, "either --app, or --admin and --url"),
        ([*APP, *ADMIN, "--min-cpu"], 2, "either --app, or --admin and --url"),
        ([*APP, "--url", "http://127.0.0.1:2", "--min-cpu"], 2, "--url belongs to --admin"),
        ([*ADMIN[:2], "--min-cpu"], 2, "--admin needs --url"),
        (["--admin", "8080:x", "--url", "http://127.0.0.1:2", "--min-cpu"], 2, "--admin: '8080:x' is not HOST:PORT"),
        ([*ADMIN[:3], "ftp://a", "--min-cpu"], 1, "'ftp://a' is not a URL"),
        ([*APP, "--min-cpu", "--sizes", "0"], 2, "--sizes: 0 is out of range"),
        ([*APP, "--min-cpu", "--sizes", "4,x"], 2, "--sizes: 'x' is not a whole number"),
        ([*APP, "--min-cpu", "--delays", "1h,2h"], 2, "--delays: 3600000000 is out of range"),
        ([*APP, "--min-cpu", "--rate", "0"], 2, "--rate"),
        ([*APP, "--min-cpu", "--blocks", "0"], 2, "--blocks"),
        ([*APP, "--min-cpu", "--seconds", "0"], 2, "--seconds"),
        ([*APP, "--min-cpu"], 1, "the server did not start"),
        ([*APP, "--min-cpu", "--output", "none/a.msgpack"], 1, "--output: none is not a folder"),
        ([*APP, "--min-cpu", "--config", "none/a.toml"], 1, "--config: none is not a folder"),
        ([*ADMIN, "--min-cpu"], 1, "cannot ask http://127.0.0.1:1: connection refused; is a server running"),
        ([*APP, "--min-cpu", "--resume"], 1, "results.msgpack cannot be read: no such file"),
    ],
)
def test_what_is_wrong_is_one_line(run, tmp_path, arguments, status, words):
    got, out, err = run(*arguments)
    assert (got, out) == (status, "") and words in err
    assert err.startswith("batchbridge: ") and err.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"some.requests"}, "nothing was written"


def test_requests_that_make_no_sense(run, tmp_path):
    (tmp_path / "bad.requests").write_text("{")
    assert "bad.requests:1: this is not JSON" in run(*APP, "--min-cpu", requests="bad.requests")[2]
    assert "cannot read none.requests" in run(*APP, "--min-cpu", requests="none.requests")[2]


def test_files_that_are_there_are_not_replaced(run, tmp_path):
    path = tmp_path / "results.msgpack"
    Results("load").save(path)
    before = path.read_bytes()
    status, _, err = run(*APP, "--min-cpu")
    assert status == 1 and "--output: results.msgpack is there already; --resume goes on with it" in err
    status, _, err = run(*APP, "--min-cpu", "--resume")
    assert status == 1 and "holds results of kind 'load', and not a sweep" in err
    path.write_bytes(before[:-9])
    assert (
        "results.msgpack is not a results file that can be used: it is cut short"
        in run(*APP, "--min-cpu", "--resume")[2]
    )
    path.unlink()
    (tmp_path / "tuned.toml").write_text("[server]\n")
    status, _, err = run(*APP, "--min-cpu")
    assert status == 1 and "--config: tuned.toml was not written by batchbridge tune" in err
    assert (tmp_path / "tuned.toml").read_text() == "[server]\n"
