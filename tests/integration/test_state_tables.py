"""What goes wrong while an object is made leads where the table says: to an error response, to another server on this
machine, or to one elsewhere; and what an application changed in its table is what `states` prints and draws."""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from subprocess import run
from typing import Any

import pytest

import batchbridge as bb
from support.serving import command_line, config, running
from support.wire import Client, Reply, ask

FAILURES = ("/out.txt", "/loop.txt", "/pipe")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"the file\n")
    (folder / "out.txt").symlink_to("/etc/hostname")
    (folder / "loop.txt").symlink_to("loop.txt")
    os.mkfifo(folder / "pipe")
    return folder


@pytest.fixture
def other(engine: str) -> Iterator[bb.Server]:
    """Another server, which says who it is."""
    server = bb.Server(config=config(engine))
    server.batch("/{path:path}")(lambda batch: [f"other: {request.path}" for request in batch])
    with running(server):
        yield server


def asked(server: bb.Server, targets: Iterable[str]) -> list[Reply]:
    with Client(server.url) as client:
        return [client.ask("GET", target) for target in targets]


def test_to_an_error_response(engine: str, root: Path) -> None:
    with running(bb.Server(config=config(engine, root=str(root)))) as server:
        assert [reply.status for reply in asked(server, FAILURES)] == [403] * 3
        assert server.stats()["requests"]["outcomes"]["error_4xx"] == 3


def test_to_a_server_elsewhere(engine: str, root: Path, other: bb.Server) -> None:
    server = bb.Server(config=config(engine, root=str(root), upstream=other.url))
    assert server.machine.role == "frontend"
    server.machine.table["Derive Miss Response", "no route"] = "Derive Uncached Response"
    server.machine.table["Derive Uncached Response", "failed"] = "Derive Remote Response"
    with running(server):
        assert [reply.body for reply in asked(server, FAILURES)] == [f"other: {path}".encode() for path in FAILURES]
        assert ask(server.url, "GET", "/a.txt").body == b"the file\n"
        assert ask(server.url, "GET", "/absent").status == 404  # nothing went wrong: there is none
        assert server.stats()["requests"]["outcomes"]["remote"] == 3
        # The table may be changed back while the server runs.
        server.machine.table["Derive Uncached Response", "failed"] = "Derive Status Response"
        assert [reply.status for reply in asked(server, FAILURES)] == [403] * 3


def test_to_a_server_elsewhere_that_is_not_there(engine: str, root: Path) -> None:
    server = bb.Server(config=config(engine, root=str(root)))
    server.machine.table["Derive Uncached Response", "failed"] = "Derive Remote Response"
    with running(server):
        assert [reply.status for reply in asked(server, FAILURES)] == [502] * 3


def test_to_a_server_on_this_machine(engine: str, root: Path) -> None:
    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain")])
        return [b"application: " + environ["PATH_INFO"].encode()]

    server = bb.Server(config=config(engine, root=str(root)), wsgi=application)
    with running(server):
        assert [reply.status for reply in asked(server, FAILURES)] == [403] * 3
        server.machine.table["Derive Uncached Response", "failed"] = "Derive Deferred Response"
        assert [reply.body for reply in asked(server, FAILURES)] == [
            f"application: {path}".encode() for path in FAILURES
        ]


APP = """
import batchbridge as bb

server = bb.Server(root=".")
server.machine.table["Derive Uncached Response", "failed"] = "Derive Remote Response"
server.batch("/x")(lambda batch: ["x"] * len(batch))
"""


def test_what_an_application_changed_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)

    def states(*arguments: str) -> str:
        ran = run(
            [*command_line("states"), "--app", "app.py:server", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
        return ran.stdout

    edge = '"Derive Uncached Response" -> "Derive Remote Response" [label="failed", style=bold];'
    assert edge in states("--dot")
    rows = json.loads(states("--json"))["transitions"]
    assert {"state": "Derive Uncached Response", "event": "failed", "next": "Derive Remote Response"} in rows
    lines = [line.split("  ") for line in states().splitlines()]
    assert any(
        [word.strip() for word in line if word.strip()] == ["failed", "Derive Remote Response"] for line in lines
    )
