"""The command: a flag for each setting, one line for what is wrong, nothing heavy imported to start a server."""

import json
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from batchbridge.cli import COMMANDS, cli, main
from batchbridge.cli.serve import start_line
from batchbridge.cli.settings import settings_flags
from batchbridge.config import OPTIONS, Config


@pytest.fixture
def run(capsys):
    """Runs the command, and returns its status and what it printed."""

    def run(*arguments):
        status = main(arguments)
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


@pytest.fixture
def changes_of():
    """What a command with the settings' flags is called with."""

    @click.command()
    @settings_flags
    def command(changes, sources):
        click.echo(json.dumps([changes, sources]))

    def changes_of(*arguments):
        result = CliRunner().invoke(command, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.output)

    return changes_of


# Flags


def test_flags_become_settings_with_their_units(changes_of):
    changes, sources = changes_of(
        "site", "--cache-size", "64MiB", "--idle-timeout", "500ms", "--bind", "127.0.0.1:1", "--bind", "[::1]:2",
        "--mime", "wasm=application/wasm", "--mime", ".x=text/x", "--index-file", "a", "--index-file", "b",
        "--directory-listing", "--engine-threads", "2",
    )  # fmt: skip
    assert changes == {
        "root": "site", "cache_size_bytes": 64 << 20, "idle_timeout_s": 0.5, "bind": ["127.0.0.1:1", "[::1]:2"],
        "mime": {".wasm": "application/wasm", ".x": "text/x"}, "index_files": ["a", "b"], "directory_listing": True,
        "engine_threads": 2,
    }  # fmt: skip
    assert set(sources.values()) == {"flag"}


def test_nothing_given_changes_nothing(changes_of):
    assert changes_of() == [{}, {}]


def test_flags_go_before_the_file_and_the_file_before_the_defaults(changes_of, tmp_path):
    path = tmp_path / "batchbridge.toml"
    path.write_text("[server]\nengine_threads = 4\ndirectory_listing = true\n[limits]\nmax_connections = 10")
    changes, sources = changes_of("--config", str(path), "--engine-threads", "2", "--no-directory-listing")
    assert changes == {"engine_threads": 2, "directory_listing": False, "max_connections": 10}
    assert sources == {"engine_threads": "flag", "directory_listing": "flag", "max_connections": str(path)}


def test_the_help_names_every_flag_and_default(run):
    status, out, _ = run("serve", "--help")
    assert status == 0
    for option in OPTIONS:
        if option.flag:
            assert f"{option.flag} " in out
    text = " ".join(out.split())
    for spoken in ("[256 MiB]", "[75 s]", "[127.0.0.1:8080]", "[auto]", "[1]", "[-]", "[no]"):
        assert spoken in text


# Errors


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["serv"], 2, "serv is not a command; did you mean serve?"),
        (["zzz"], 2, "zzz is not a command; there are serve, check"),
        (["serve", "--bnd", "x"], 2, "--bnd"),
        (["serve", "--cache-size", "12xb"], 2, "--cache-size: '12xb' is not a size"),
        (["serve", "--cache-size"], 2, "--cache-size"),
        (["serve", "--bind", "8080"], 2, "--bind: '8080' is not HOST:PORT"),
        (["check", "--engine", "uring"], 2, "--engine: 'uring' is not known"),
        (["serve", "--app", "hello"], 2, "--app: 'hello' is not MODULE_OR_FILE:OBJECT"),
        (["serve", "a", "b"], 2, "b"),
        (["serve", "--config", "/no/such.toml"], 2, "/no/such.toml: cannot be read"),
        (["states", "--role", "boss"], 2, "--role: 'boss' is not known"),
        (["states", "--dot", "--json"], 2, "exclude each other"),
        (["cache", "purge"], 2, "exactly one of --url, --prefix and --tag"),
        (["cache", "purge", "--url", "/", "--tag", "t"], 2, "exactly one of"),
        (["cache", "stats", "--admin", "nowhere"], 1, "cannot ask http://nowhere:80"),
        (["cache", "stats", "--admin", "http://127.0.0.1:x"], 2, "--admin: '127.0.0.1:x' is not HOST:PORT"),
        (["cache", "stats", "--admin", "127.0.0.1:1"], 1, "is a server running with --admin 127.0.0.1:1?"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_status(run, arguments, status, words):
    got, out, err = run(*arguments)
    assert got == status
    assert out == ""
    assert err.startswith("batchbridge: ")
    assert err.count("\n") == 1
    assert words in err


def test_an_interruption_is_no_traceback(run, monkeypatch):
    def interrupted():
        raise KeyboardInterrupt

    monkeypatch.setattr("batchbridge.cli.doctor.diagnose", interrupted)
    status, _, err = run("doctor")
    assert status == 1
    assert err.strip().splitlines()[-1] == "batchbridge: interrupted"


# What it prints


def test_help_lists_the_commands_in_order(run):
    status, out, _ = run("--help")
    assert status == 0
    places = [out.index(f"\n  {name} ") for name in COMMANDS]
    assert places == sorted(places)
    assert run()[0] == 2


def test_version(run):
    status, out, _ = run("--version")
    assert status == 0
    assert out.startswith("batchbridge ")


def test_every_command_has_a_help(run):
    for name in COMMANDS:
        assert cli.get_command(None, name).help
        assert run(name, "--help")[0] == 0


def test_doctor_prints_a_table_or_json(run):
    status, out, _ = run("doctor")
    assert status == 0
    assert "--engine auto takes" in out
    status, out, _ = run("doctor", "--json")
    assert status == 0
    report = json.loads(out)
    assert report["chosen"] in ("kernel", "io_uring", "epoll")
    assert [engine["name"] for engine in report["engines"]] == ["kernel", "io_uring", "epoll"]
    assert all(finding["detail"].endswith(".") for finding in report["findings"])


@pytest.mark.parametrize(
    ("changes", "routes", "words"),
    [
        ({"root": "site"}, 2, "serving site and 2 routes on http://a:1, http://b:2 with io_uring, 1 engine thread, "),
        ({"engine_threads": 2, "handler_threads": 3}, 1, "serving 1 route on "),
        ({"engine_threads": 2, "handler_threads": 3}, 1, " 2 engine threads, 3 handler threads"),
        ({"handler_threads": 0}, 1, ", handlers on the engine's thread"),
        ({"upstream": "http://c:3"}, 0, "serving for http://c:3 on"),
        ({"admin": "127.0.0.1:9"}, 1, ", admin on http://127.0.0.1:9"),
    ],
)
def test_the_start_line(changes, routes, words):
    config = Config(**changes)
    admin_url = f"http://{config.admin}" if config.admin else None
    line = start_line(config, ["http://a:1", "http://b:2"], routes, "io_uring", admin_url)
    assert line.startswith("batchbridge ")
    assert words in line
    assert "\n" not in line


def test_the_start_line_tells_from_which_size_on_nothing_is_copied():
    line = start_line(Config(), ["http://a:1"], 1, "io_uring", "http://b:2", 16_384)
    assert line.endswith(", 1 handler thread, zero copy from 16 KiB, admin on http://b:2")
    assert "zero copy" not in start_line(Config(), ["http://a:1"], 1, "epoll", None, None)


# Starting fast


def test_settings_and_errors_import_nothing_heavy():
    """In a process of its own: what is imported before the server itself is."""
    code = (
        "import sys, batchbridge.cli.settings, batchbridge.cli.serve, batchbridge.loading\n"
        "heavy = {'rich', 'prometheus_client', 'numpy', 'pyuring', 'http.server', 'urllib.request', 'matplotlib'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_check_tells_the_policies_that_would_be_in_effect(run, tmp_path):
    app, config = tmp_path / "app.py", tmp_path / "config.toml"
    app.write_text("import batchbridge as bb\nserver = bb.Server()\n@server.batch('/a')\ndef a(batch): pass\n")
    config.write_text('[route."/a"]\nmax_batch_size = 7\n')
    status, out, _ = run("check", "--app", f"{app}:server", "--config", str(config), "--json")
    assert status == 0 and json.loads(out)["routes"]["/a"]["max_batch_size"] == 7
    config.write_text('[route."/b"]\nmax_batch_size = 7\n')
    status, _, error = run("check", "--app", f"{app}:server", "--config", str(config))
    assert status != 0 and "no handler has this path" in error
