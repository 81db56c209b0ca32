"""``batchbridge serve`` as an operator meets it: the start-up line, signals and drains, the admin interface; and what
goes wrong is told in one line that names the value, with exit status 1 or 2 and without a traceback."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from batchbridge.doctor import choose_engine
from support.accesslog import parse
from support.serving import Command, command_line, run_command
from support.skips import skip
from support.wire import Client, ask, await_true, head

APP = """
import os, time
import batchbridge as bb

server = bb.Server()

@server.batch("/x/{n}")
def x(batch):
    return [f"x {request.params['n']} {os.getpid()}" for request in batch]

@server.batch("/slow")
def slow(batch):
    time.sleep(1.0)
    return ["slow"] * len(batch)

@server.batch("/kept")
def kept(batch):
    return [bb.Response(str(time.monotonic_ns()), cache_ttl_s=60, tags=("kept",)) for request in batch]
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "a.txt").write_text("a\n")
    (tmp_path / "site" / "big.bin").write_bytes(b"z" * (8 << 20))
    return tmp_path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


# --- starting and ending ----------------------------------------------------------------------------------------------


def test_the_start_up_line(engine: str, folder: Path) -> None:
    with Command("site", "--app", "app.py:server", folder=folder, engine=engine) as command:
        line = command.errors.splitlines()[0]
        assert line.startswith("batchbridge ") and "site" in line and "3 routes" in line
        assert command.url in line and f"with {engine}" in line
        assert ask(command.url, "GET", "/a.txt").body == b"a\n"
        assert ask(command.url, "GET", "/x/1").body.startswith(b"x 1 ")
        assert command.terminate() == 0
        assert len(command.errors.splitlines()) == 1, command.errors
    lines = parse(command.output)
    assert [line.request for line in lines] == ["GET /a.txt HTTP/1.1", "GET /x/1 HTTP/1.1"], "the log is on stdout"


def test_the_installed_script(folder: Path) -> None:
    script = Path(sys.executable).with_name("batchbridge")
    if not script.exists():
        skip("no-script", "the package was installed without its script")
    done = subprocess.run([script, "--version"], cwd=folder, capture_output=True, text=True, timeout=30)
    assert done.returncode == 0 and re.fullmatch(r"batchbridge \d+\.\d+\S*\n", done.stdout)


def test_engine_auto(folder: Path) -> None:
    with Command("site", folder=folder) as command:
        assert command.engine == choose_engine("auto")[0]
        assert ask(command.url, "GET", "/a.txt").status == 200


def test_several_addresses(engine: str, folder: Path) -> None:
    port = free_port()
    with Command("site", "--bind", f"127.0.0.1:{port}", folder=folder, engine=engine) as command:
        urls = re.findall(r"http://[0-9.]+:\d+", command.errors.splitlines()[0])
        assert len(urls) == 2 and f"http://127.0.0.1:{port}" in urls
        assert [ask(url, "GET", "/a.txt").status for url in urls] == [200, 200]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_drains(engine: str, folder: Path, number: int) -> None:
    arguments = ["site", "--app", "app.py:server", "--access-log", "access.log", "--linger-timeout", "200ms"]
    with Command(*arguments, folder=folder, engine=engine) as command:
        busy, idle, reading = Client(command.url), Client(command.url), Client(command.url, receive_buffer_bytes=65_536)
        assert idle.ask("GET", "/a.txt").status == 200
        busy.send(head("GET", "/slow"))
        reading.send(head("GET", "/big.bin"))
        time.sleep(0.3)
        since = time.monotonic()
        command.signal(number)
        assert idle.is_gone(), "nobody waits for an idle connection"
        time.sleep(0.1)
        with pytest.raises(OSError):  # noqa: PT011
            Client(command.url).ask("GET", "/a.txt")
        reply = busy.reply()
        assert (reply.status, reply.body, reply["connection"]) == (200, b"slow", "close")
        assert len(reading.reply().body) == 8 << 20, "a response under way is finished"
        assert command.wait() == 0, command.errors
        assert time.monotonic() - since < 4
        assert "Traceback" not in command.errors
    requests = [line.request for line in parse((folder / "access.log").read_text())]
    assert sorted(requests) == [f"GET {target} HTTP/1.1" for target in ("/a.txt", "/big.bin", "/slow")]


def test_a_drain_waits_only_so_long(engine: str, folder: Path) -> None:
    with Command("site", "--drain-timeout", "500ms", "--access-log", "off", folder=folder, engine=engine) as command:
        stuck = Client(command.url, receive_buffer_bytes=4096)
        stuck.send(head("GET", "/big.bin"))
        stuck.socket.recv(10)
        since = time.monotonic()
        assert command.terminate() == 0
        assert 0.4 < time.monotonic() - since < 4
        assert "Traceback" not in command.errors


def test_a_second_signal_ends_at_once(engine: str, folder: Path) -> None:
    with Command("site", "--access-log", "off", folder=folder, engine=engine) as command:
        stuck = Client(command.url, receive_buffer_bytes=4096)
        stuck.send(head("GET", "/big.bin"))
        stuck.socket.recv(10)
        command.signal(signal.SIGTERM)
        time.sleep(0.3)
        assert command.process.poll() is None
        since = time.monotonic()
        command.signal(signal.SIGTERM)
        command.wait()
        assert time.monotonic() - since < 2 and "Traceback" not in command.errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_that_another_thread_takes(engine: str, folder: Path, number: int) -> None:
    # The kernel may give a process's signal to any of its threads, though Python handles it in the main one.
    arguments = ["site", "--app", "app.py:server", "--access-log", "access.log"]
    with Command(*arguments, folder=folder, engine=engine) as command:
        process = command.process.pid
        threads = [int(task.name) for task in Path(f"/proc/{process}/task").iterdir() if int(task.name) != process]
        (folder / "access.log").unlink()
        tgkill(process, max(threads), number)
        if number == signal.SIGUSR1:
            await_true((folder / "access.log").exists, 3.0, "the log is opened anew")
        else:
            assert command.wait(5) == 0


def test_the_configuration_is_reloaded(engine: str, folder: Path) -> None:
    file = folder / "server.toml"
    start = '[server]\nroot = "site"\napp = "app.py:server"\n[log]\naccess_log = "first.log"\n[route."/slow"]\n'
    file.write_text(f"{start}max_batch_size = 3\n")
    with Command("--config", file, "--admin", f"127.0.0.1:{free_port()}", folder=folder, engine=engine) as command:

        def size() -> int:
            return int(json.loads(admin(command, "/policy?path=/slow")[1])["max_batch_size"])

        assert size() == 3
        file.write_text(start.replace("first", "second") + "max_batch_size = 5\n")
        command.signal(signal.SIGHUP)
        await_true(lambda: size() == 5)
        assert ask(command.url, "GET", "/a.txt").status == 200
        file.write_text(f"{start}max_batch_size = 'many'\n")
        command.signal(signal.SIGHUP)
        await_true(lambda: "many" in command.errors, what="what is wrong is told, and nothing changes")
        assert size() == 5 and ask(command.url, "GET", "/a.txt").status == 200
        assert command.terminate() == 0
        assert "Traceback" not in command.errors
    assert len(parse((folder / "second.log").read_text())) == 2


def tgkill(process: int, thread: int, number: int) -> None:
    import ctypes
    import platform

    call = {"x86_64": 234, "aarch64": 131}.get(platform.machine())
    if call is None:
        skip("no-tgkill", f"the number of tgkill on {platform.machine()} is not known here")
    assert ctypes.CDLL(None, use_errno=True).syscall(call, process, thread, number) == 0


def test_an_idle_server_uses_no_time(engine: str, folder: Path) -> None:
    with Command("site", "--app", "app.py:server", folder=folder, engine=engine) as command:
        held = [Client(command.url) for _ in range(5)]
        assert [client.ask("GET", "/x/1").status for client in held] == [200] * 5
        time.sleep(0.5)

        def switches() -> int:
            total = 0
            for task in Path(f"/proc/{command.process.pid}/task").iterdir():
                status = (task / "status").read_text()
                total += sum(int(count) for count in re.findall(r"ctxt_switches:\s+(\d+)", status))
            return total

        before = switches()
        time.sleep(1.0)
        assert switches() - before <= 2


def test_without_an_access_log(engine: str, folder: Path) -> None:
    with Command("site", "--access-log", "off", folder=folder, engine=engine) as command:
        assert ask(command.url, "GET", "/a.txt").status == 200
        assert command.terminate() == 0
    assert command.output == ""


def test_a_reader_of_the_log_that_goes_away(engine: str, folder: Path) -> None:
    arguments = command_line("serve", "site", "--bind", "127.0.0.1:0", "--engine", engine)
    process = subprocess.Popen(arguments, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stderr and process.stdout
    try:
        found = re.search(r"http://\S+:\d+", process.stderr.readline())
        assert found
        process.stdout.close()
        for _ in range(3):
            assert ask(found[0], "GET", "/a.txt").status == 200
            time.sleep(0.3)
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_two_engine_threads(engine: str, folder: Path) -> None:
    arguments = ["site", "--app", "app.py:server", "--engine-threads", "2", "--admin", f"127.0.0.1:{free_port()}"]
    with Command(*arguments, folder=folder, engine=engine) as command:
        for _ in range(30):
            assert ask(command.url, "GET", "/a.txt").status == 200
            assert ask(command.url, "GET", "/x/1").status == 200
        stats = command.stats()
        assert stats["engine"]["threads"] == 2 and stats["requests"]["read"] == 60
        assert command.terminate() == 0


# --- the admin interface ----------------------------------------------------------------------------------------------


def admin(command: Command, path: str, content: Any = None) -> tuple[int, str]:
    data = None if content is None else json.dumps(content).encode()
    request = urllib.request.Request(command.admin + path, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_the_admin_interface(engine: str, folder: Path) -> None:
    arguments = ["site", "--app", "app.py:server", "--admin", f"127.0.0.1:{free_port()}", "--drain-timeout", "5s"]
    with Command(*arguments, folder=folder, engine=engine) as command, Client(command.url) as client:
        assert admin(command, "/healthz") == (200, "ok\n")
        for _ in range(3):
            assert client.ask("GET", "/a.txt").status == 200
        first = client.ask("GET", "/kept").body
        assert client.ask("GET", "/kept").body == first
        stats = json.loads(admin(command, "/stats")[1])
        assert stats["requests"]["read"] == 5 and stats["requests"]["outcomes"]["hit"] == 3
        metrics = admin(command, "/metrics")[1]
        assert re.search(r'^batchbridge_requests_total\{.*outcome="hit".*\} 3\.0$', metrics, re.M), metrics
        assert json.loads(admin(command, "/policy?path=/slow")[1])["max_batch_size"] == 64
        assert json.loads(admin(command, "/policy?path=/slow", {"max_batch_size": 7})[1])["max_batch_size"] == 7
        assert admin(command, "/policy?path=/slow", {"max_batch_size": 0})[0] == 400
        assert admin(command, "/policy?path=/none")[0] == 404
        assert json.loads(admin(command, "/cache/stats")[1])["objects"] >= 2
        assert json.loads(admin(command, "/cache/purge", {"tag": "kept"})[1]) == {
            "purged": 1, "tag": "kept", "soft": False,
        }  # fmt: skip
        assert client.ask("GET", "/kept").body != first
        done = run_command("cache", "purge", "--admin", command.admin, "--url", "/kept", folder=folder)
        assert done.returncode == 0 and "purged 1 object" in done.stdout
        done = run_command("cache", "stats", "--admin", command.admin, "--json", folder=folder)
        assert done.returncode == 0 and json.loads(done.stdout)["objects"] >= 1
        client.send(head("GET", "/slow"))
        time.sleep(0.2)
        command.signal(signal.SIGTERM)
        await_true(lambda: admin(command, "/healthz") == (503, "draining\n"), 1.0)
        assert client.reply().body == b"slow"
        assert command.wait() == 0


# --- configuration ----------------------------------------------------------------------------------------------------


def test_a_configuration_file_and_flags(engine: str, folder: Path) -> None:
    (folder / "server.toml").write_text(
        '[server]\nroot = "site"\napp = "app.py:server"\nserver_name = "mine"\n[log]\naccess_log = "off"\n'
        '[limits]\nbody_size_bytes_max = "2KiB"\n[route."/slow"]\nmax_batch_size = 3\n'
    )
    arguments = ["--config", "server.toml", "--server-name", "yours", "--admin", f"127.0.0.1:{free_port()}"]
    with Command(*arguments, folder=folder, engine=engine) as command:
        reply = ask(command.url, "GET", "/a.txt")
        assert reply["server"] == "yours"
        assert ask(command.url, "POST", "/x/1", body=b"z" * 3000).status == 413
        assert json.loads(admin(command, "/policy?path=/slow")[1])["max_batch_size"] == 3


def test_check(folder: Path) -> None:
    done = run_command("check", "site", "--app", "app.py:server", "--idle-timeout", "5s", folder=folder)
    assert done.returncode == 0 and "/slow" in done.stderr
    settings = tomllib.loads(done.stdout)
    assert settings["timeouts"]["idle_timeout_s"] == 5.0 and settings["server"]["root"].endswith("site")
    (folder / "again.toml").write_text(done.stdout)
    assert run_command("check", "--config", "again.toml", folder=folder).stdout == done.stdout


def test_states(folder: Path) -> None:
    plain = run_command("states", folder=folder)
    dot = run_command("states", "--dot", folder=folder)
    assert plain.returncode == dot.returncode == 0
    for state in ("Derive Request", "Derive Cached Response", "Derive Miss Response", "Send Engine", "Defer Request"):
        assert state in plain.stdout and state in dot.stdout
    assert dot.stdout.lstrip().startswith("digraph")


# --- what goes wrong --------------------------------------------------------------------------------------------------

BROKEN = {
    "raises.py": "raise RuntimeError('not today')\n",
    "syntax.py": "def broken(:\n",
    "imports.py": "import no_such_module_anywhere\n",
    "other.py": "server = 3\n",
    "nothing.py": "import batchbridge\nserver = batchbridge.Server()\n",
    "bad_key.toml": "[server]\nrooot = 'site'\n",
    "bad_table.toml": "[sever]\nroot = 'site'\n",
    "bad_value.toml": "[limits]\nbody_size_bytes_max = 'huge'\n",
    "no.toml": "this is not TOML\n",
    "bad_route.toml": "[server]\napp = 'app.py:server'\n[route.'/none']\nmax_batch_size = 3\n",
    "plain.txt": "a file\n",
}


@pytest.mark.parametrize(
    ("arguments", "status", "named"),
    [
        (["missing"], 2, "missing"),
        (["plain.txt"], 2, "plain.txt"),
        ([], 2, "nothing to serve"),
        (["site", "--nonsense"], 2, "--nonsense"),
        (["site", "--engine", "warp"], 2, "warp"),
        (["site", "--engine-threads", "0"], 2, "0"),
        (["site", "--bind", "127.0.0.1:notaport"], 2, "notaport"),
        (["site", "--bind", "127.0.0.1:99999"], 2, "99999"),
        (["site", "--bind", "192.0.2.1:8080"], 1, "192.0.2.1:8080"),
        (["site", "--bind", "no-such-host.invalid:80"], 1, "no-such-host.invalid"),
        (["site", "--idle-timeout", "soon"], 2, "soon"),
        (["site", "--access-log", "missing/access.log"], 2, "missing/access.log"),
        (["site", "--receive-buffers", "1000"], 2, "1000"),
        (["site", "--admin", "nowhere"], 2, "nowhere"),
        (["--app", "missing.py:server"], 1, "missing.py"),
        (["--app", "no_such_module:server"], 1, "no_such_module"),
        (["--app", "app.py"], 2, "app.py"),
        (["--app", "app.py:sever"], 1, "sever"),
        (["--app", "raises.py:server"], 1, "not today"),
        (["--app", "syntax.py:server"], 1, "syntax.py"),
        (["--app", "imports.py:server"], 1, "no_such_module_anywhere"),
        (["--app", "other.py:server"], 1, "other.py"),
        (["--app", "nothing.py:server"], 2, "nothing to serve"),
        (["--config", "missing.toml"], 2, "missing.toml"),
        (["--config", "no.toml"], 2, "no.toml"),
        (["--config", "bad_key.toml"], 2, "rooot"),
        (["--config", "bad_table.toml"], 2, "sever"),
        (["--config", "bad_value.toml"], 2, "huge"),
        (["--config", "bad_route.toml"], 2, "/none"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_mistake_is_one_line(folder: Path, arguments: list[str], status: int, named: str) -> None:
    for name, content in BROKEN.items():
        (folder / name).write_text(content)
    bind = [] if "--bind" in arguments else ["--bind", "127.0.0.1:0"]
    done = run_command("serve", *arguments, *bind, folder=folder)
    assert done.returncode == status, done
    assert named in done.stderr and len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr and done.stderr.startswith("batchbridge: ") and done.stdout == ""


@pytest.mark.parametrize("threads", [1, 2])
def test_a_port_in_use(folder: Path, threads: int) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        address = f"127.0.0.1:{other.getsockname()[1]}"
        done = run_command("serve", "site", "--bind", address, "--engine-threads", str(threads), folder=folder)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and address in done.stderr
        done = run_command("serve", "site", "--bind", "127.0.0.1:0", "--admin", address, folder=folder)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1 and address in done.stderr


def as_others() -> tuple[str, ...]:
    """What to put before a command so that permissions count for root, too."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        skip("no-setpriv", "root reads every file, and setpriv is not installed")
    return ("setpriv", "--bounding-set=-dac_override,-dac_read_search")


def test_an_unreadable_root(folder: Path) -> None:
    (folder / "site").chmod(0)
    command = [*as_others(), *command_line("serve", "site", "--bind", "127.0.0.1:0")]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=30)
    (folder / "site").chmod(0o755)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "site" in done.stderr, done


def test_an_unreadable_file_is_403_and_no_more(engine: str, folder: Path) -> None:
    (folder / "site" / "closed.txt").write_text("closed\n")
    (folder / "site" / "closed.txt").chmod(0)
    (folder / "site" / "closed").mkdir(0)
    with Command("site", folder=folder, engine=engine, before=as_others()) as command:
        for _ in range(2):
            assert ask(command.url, "GET", "/closed.txt").status == 403
            assert ask(command.url, "GET", "/closed/").status == 403
            assert ask(command.url, "GET", "/closed/x").status == 403
        assert ask(command.url, "GET", "/a.txt").status == 200
        assert command.terminate() == 0
    (folder / "site" / "closed").chmod(0o755)


def test_a_usual_limit_of_open_files(engine: str, folder: Path) -> None:
    import resource

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 4096))

    with Command("site", folder=folder, engine=engine, preexec=limit) as command:
        assert ask(command.url, "GET", "/a.txt").status == 200
