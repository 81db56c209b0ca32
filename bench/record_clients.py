"""Records what real clients send: the exact bytes of their requests, which `bench.client_share` replays.

    python -P -m bench.record_clients [--output bench/clients.json] [--workshop FOLDER] [--only NAME]...

A listener on loopback answers everything, and each program of `bench.client_programs` that is installed is run against
it, twice. Kept is its first GET, or, of a browser, the first of each way of fetching. Address and target are replaced
by `{host}` (without its port `{name}`) and `{target}`, the kernel's release by a common one. What differs between the
two runs is named.

Libraries are taken from the workshop: `venv/bin/python` in it for Python's, `node_modules` for those of Node.js.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .client_programs import PROGRAMS, PYTHON, Program

RUNS = 2
RUN_PATIENCE_S = 60.0
IDLE_PATIENCE_S = 5.0
HEAD_SIZE_BYTES_MAX = 65_536
RELEASE = "6.1.0"

#: The path that every program is asked to get.
PAGE = "/page.html"

#: What a browser fetches for it: each way of fetching by its path, with what it is answered.
WAYS: dict[str, tuple[str, str, bytes]] = {
    "/page.html": ("document", "text/html", b"""<!doctype html><title>page</title>
<link rel=icon href=/icon.png><link rel=stylesheet href=/style.css><link rel=prefetch href=/prefetch.html>
<script src=/script.js></script><script type=module src=/module.js></script>
<p>text</p><img src=/image.png><iframe src=/frame.html></iframe><video src=/clip.mp4 preload=auto></video>"""),
    "/style.css": ("stylesheet", "text/css", b"@font-face{font-family:f;src:url(/font.woff2)} p{font-family:f}"),
    "/script.js": ("script", "text/javascript", b"""fetch('/fetch.json'); new Worker('/worker.js');
fetch('/fetch-json.json', {headers: {Accept: 'application/json'}});
const x = new XMLHttpRequest(); x.open('GET', '/xhr.json'); x.send();"""),
    "/module.js": ("module", "text/javascript", b"export default 1"),
    "/worker.js": ("worker", "text/javascript", b""),
    "/image.png": ("image", "image/png", b""),
    "/icon.png": ("icon", "image/png", b""),
    "/font.woff2": ("font", "font/woff2", b""),
    "/frame.html": ("frame", "text/html", b"<p>frame"),
    "/fetch.json": ("fetch", "application/json", b"{}"),
    "/fetch-json.json": ("fetch of JSON", "application/json", b"{}"),
    "/xhr.json": ("XMLHttpRequest", "application/json", b"{}"),
    "/prefetch.html": ("prefetch", "text/html", b"<p>prefetched"),
    "/clip.mp4": ("video", "video/mp4", b""),
}  # fmt: skip


class Listener:
    """Answers every request on loopback, and keeps the first ones by path, in the order in which they came."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.requests: dict[str, list[bytes]] = defaultdict(list)
        self.lock = threading.Lock()

    def __enter__(self) -> Listener:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(IDLE_PATIENCE_S)
        waiting = b""
        with connection, contextlib.suppress(OSError):
            while True:
                while b"\r\n\r\n" not in waiting and len(waiting) < HEAD_SIZE_BYTES_MAX:
                    more = connection.recv(65_536)
                    if not more:
                        return
                    waiting += more
                head, separator, waiting = waiting.partition(b"\r\n\r\n")
                connection.sendall(self._answer(head + separator))
                if is_last(head):
                    return

    def _answer(self, request: bytes) -> bytes:
        path = request.split(b" ")[1].decode("latin-1").partition("?")[0]
        with self.lock:
            self.requests[path].append(request)
        _, kind, body = WAYS.get(path, ("", "text/html", b"<p>text"))
        return b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b" % (kind.encode(), len(body), body)


def is_last(head: bytes) -> bool:
    """Whether the client expects the connection to end behind the answer."""
    first, *lines = head.lower().split(b"\r\n")
    said = b",".join(line.partition(b":")[2] for line in lines if line.startswith(b"connection:"))
    options = {option.strip() for option in said.split(b",")}
    return b"close" in options or (first.endswith(b"http/1.0") and b"keep-alive" not in options)


# --- running them -----------------------------------------------------------------------------------------------------


def command_of(program: Program, workshop: Path) -> list[str] | None:
    """What is to be run; None: it is not installed."""
    first = program.command[0]
    if first == PYTHON:
        interpreter = workshop / "venv/bin/python"
        first = str(interpreter) if interpreter.exists() else sys.executable
        looks = [first, "-c", f"import {program.module or 'sys'}"]
        if subprocess.run(looks, capture_output=True, check=False).returncode:
            return None
    elif shutil.which(first) is None or (program.module and not (workshop / "node_modules" / program.module).is_dir()):
        return None
    return [first, *program.command[1:]]


def run(program: Program, command: Sequence[str], workshop: Path) -> dict[str, bytes]:
    """Runs it once: what was recorded, by configuration."""
    with Listener() as listener, tempfile.TemporaryDirectory() as folder:
        names = {"@URL@": f"http://{listener.host}{PAGE}", "@HOST@": "127.0.0.1", "@PORT@": str(listener.port),
                 "@PATH@": PAGE, "@FOLDER@": folder}  # fmt: skip
        for file, text in program.files.items():
            Path(folder, file).write_text(text)
        environment = {**os.environ, "HOME": folder, "NO_PROXY": "*", "no_proxy": "*"}
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(
                [replaced(word, names) for word in command],
                input=replaced(program.given.decode(), names).encode(),
                capture_output=True,
                cwd=workshop,
                env=environment,
                timeout=RUN_PATIENCE_S,
                check=False,
            )
        with listener.lock:
            requests = {path: list(found) for path, found in listener.requests.items()}
    return chosen(program, requests, f"127.0.0.1:{listener.port}")


def replaced(text: str, names: dict[str, str]) -> str:
    for name, value in names.items():
        text = text.replace(name, value)
    return text


def chosen(program: Program, requests: dict[str, list[bytes]], host: str) -> dict[str, bytes]:
    """The requests to be kept, by configuration, without what is particular to this run."""
    if program.is_browser:
        found = {f"{program.name}, {way}": requests[path][0] for path, (way, _, _) in WAYS.items() if path in requests}
    else:
        gets = [request for path in requests for request in requests[path] if request.startswith(b"GET ")]
        found = {program.name: gets[0]} if gets else {}
    return {name: scrubbed(request, host) for name, request in found.items()}


def scrubbed(request: bytes, host: str) -> bytes:
    line, _, rest = request.partition(b"\r\n")
    method, _, version = line.split(b" ")
    for text, placeholder in (
        (host, "{host}"),
        (host.partition(":")[0], "{name}"),
        (os.uname().release, RELEASE),
    ):
        rest = rest.replace(text.encode(), placeholder.encode())
    return b"%b {target} %b\r\n%b" % (method, version, rest)


def varying(one: bytes, other: bytes) -> list[str]:
    """Names of the header lines in which two requests differ."""
    lines = set(one.split(b"\r\n")) ^ set(other.split(b"\r\n"))
    return sorted({line.partition(b":")[0].decode("latin-1") for line in lines})


def record(program: Program, command: Sequence[str], workshop: Path) -> list[dict[str, Any]]:
    """Runs it; its configurations as they go into the file."""
    runs = [run(program, command, workshop) for _ in range(RUNS)]
    return [
        {
            "client": name,
            "request": request.decode("latin-1"),
            "varies": sorted({name_ for later in runs[1:] for name_ in varying(request, later.get(name, request))}),
        }
        for name, request in runs[0].items()
    ]


# --- the file ---------------------------------------------------------------------------------------------------------


def recorded(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    for program in PROGRAMS:
        if options.only and not any(part in program.name for part in options.only):
            continue
        command = command_of(program, options.workshop)
        if command is None:
            print(f"{program.name}: not installed", file=sys.stderr)
            continue
        found = record(program, command, options.workshop)
        print(f"{program.name}: {len(found) or 'no'} recorded", file=sys.stderr)
        yield from found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.record_clients", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--output", type=Path, default=Path("bench/clients.json"), help="the recordings")
    parser.add_argument(
        "--workshop", type=Path, default=Path("build/clients"), help="folder with venv and node_modules"
    )
    parser.add_argument("--only", action="append", metavar="NAME", help="programs with this in their name; repeatable")
    options = parser.parse_args(arguments)
    options.workshop = options.workshop.resolve()
    options.workshop.mkdir(parents=True, exist_ok=True)
    kept = (
        {}
        if not options.output.exists()
        else {known["client"]: known for known in json.loads(options.output.read_text())}
    )
    # What cannot be recorded here today keeps its earlier recording.
    kept |= {found["client"]: found for found in recorded(options)}
    options.output.write_text(json.dumps(list(kept.values()), indent=1) + "\n")
    print(f"{len(kept)} configurations in {options.output}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
