"""Real clients' requests: they are recorded as they were sent, the file in the tree is whole, and the share that the
kernel side recognises is counted client by client."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import h11
import pytest

from bench.client_programs import Program
from bench.client_share import RECORDINGS, main, obstacle
from bench.record_clients import chosen, scrubbed, varying
from bench.record_clients import main as record
from support.serving import require_engine


@pytest.fixture(scope="module")
def recordings() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(RECORDINGS.read_text())
    return found


def test_the_recordings_are_requests_and_tell_nothing_of_this_machine(recordings: list[dict[str, Any]]) -> None:
    names = [recording["client"] for recording in recordings]
    assert len(names) == len(set(names)) >= 50
    for recording in recordings:
        request = recording["request"]
        assert request.startswith("GET {target} HTTP/1.") and request.endswith("\r\n\r\n"), recording
        assert not any(trace in request for trace in ("127.0.0.1", "localhost", "/root", "/tmp", "/work")), recording
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(request.replace("{target}", "/x", 1).encode("latin-1"))
        assert isinstance(connection.next_event(), h11.Request), recording


def test_clients_are_recorded_as_they_are(tmp_path: Path) -> None:
    """Of programs that are here wherever Python is."""
    output = tmp_path / "clients.json"
    arguments = [f"--output={output}", f"--workshop={tmp_path}", "--only=http.client", "--only=urllib.request"]
    assert record(arguments) == 0
    found = {recording["client"]: recording for recording in json.loads(output.read_text())}
    assert found["http.client"] == {
        "client": "http.client",
        "request": "GET {target} HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\n\r\n",
        "varies": [],
    }
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    assert f"User-Agent: Python-urllib/{version}\r\nConnection: close\r\n" in found["urllib.request"]["request"]
    # What is recorded again replaces what was; the rest stays.
    assert record([*arguments[:2], "--only=http.client"]) == 0
    assert len(json.loads(output.read_text())) == 2


def test_a_browser_s_ways_of_fetching_are_configurations() -> None:
    requests = {
        "/image.png": [b"GET /image.png HTTP/1.1\r\nHost: server:1\r\nReferer: http://server:1/page.html\r\n\r\n"],
        "/unknown": [b"GET /unknown HTTP/1.1\r\n\r\n"],
    }
    found = chosen(Program("X", ("x",), is_browser=True), requests, "server:1")
    assert found == {"X, image": b"GET {target} HTTP/1.1\r\nHost: {host}\r\nReferer: http://{host}/page.html\r\n\r\n"}


def test_what_varies_is_named() -> None:
    one = scrubbed(b"GET /x HTTP/1.1\r\nHost: server\r\nX-Id: 1\r\n\r\n", "server:1")
    other = scrubbed(b"GET /y HTTP/1.1\r\nHost: server\r\nX-Id: 2\r\n\r\n", "server:1")
    assert varying(one, other) == ["X-Id"] and varying(one, one) == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("GET / HTTP/1.0\r\nHost: x", "HTTP/1.0"),
        ("GET / HTTP/1.1\r\nConnection: Close", "Connection: close"),
        ("GET / HTTP/1.1\r\nRange: bytes=0-", "Range"),
        ("GET / HTTP/1.1\r\nAccept: */*", ""),
    ],
)
def test_obstacles(lines: str, words: str) -> None:
    assert obstacle(f"{lines}\r\n\r\n") == words


def test_the_share_is_counted_by_client(tmp_path: Path) -> None:
    require_engine("kernel")
    recordings = [
        {"client": name, "request": f"GET {{target}} HTTP/1.1\r\nHost: {{host}}\r\n{line}\r\n", "varies": []}
        for name, line in (("kept", "User-Agent: one\r\n"), ("closing", "Connection: close\r\n"))
    ]
    (tmp_path / "clients.json").write_text(json.dumps(recordings))
    arguments = [f"--recordings={tmp_path}/clients.json", "--requests=300", "--warmup-requests=300"]
    assert main([*arguments, f"--json={tmp_path}/figures.json"]) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())["clients"]
    for run in ("kept_alive", "one_connection_each"):
        assert figures["closing"][run] == {"requests": 300, "recognised": 0}
        assert figures["kept"][run]["requests"] == 300
        # The most popular dozen of the thousand are a third of all requests, and were each asked for often enough.
        assert 60 < figures["kept"][run]["recognised"] < 300


def test_usage(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "bench.client_share", "--requests=7"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and "7 is not a multiple of 10" in done.stderr
