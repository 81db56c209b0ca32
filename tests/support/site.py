"""A document root with something of everything, and a server with it and a few handlers: the fixture `site`."""

import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import batchbridge as bb

from .serving import Gate, make_server, running
from .wire import Client, Reply, ask

CACHED_SIZE_BYTES_MAX = 1 << 20
BIG_SIZE_BYTES = 3 * (1 << 20) + 17


def pattern(size_bytes: int) -> bytes:
    """Bytes of which no two positions within 64 KiB look alike."""
    return b"".join(b"%07x\n" % place for place in range(size_bytes // 8 + 1))[:size_bytes]


def open_below(root: Path) -> int:
    """How many files below the root this process has open."""
    found = 0
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):
            found += os.readlink(f"/proc/self/fd/{number}").startswith(f"{root}/")
    return found


FILES = {
    "index.html": b"<h1>root</h1>\n",
    "a.txt": b"the file a\n",
    "b.txt": b"the file b\n",
    "empty.txt": b"",
    "one.txt": b"1",
    "data.bin": pattern(100_000),
    "big.bin": pattern(BIG_SIZE_BYTES),
    "dir/index.html": b"<h1>dir</h1>\n",
    "dir/page.html": b"<p>page</p>\n",
    "bare/file.txt": b"in a folder without index\n",
    "with space.txt": b"space\n",
    "\u00fc.txt": b"umlaut\n",
    "per%41cent.txt": b"percent\n",
    "q?mark.txt": b"question\n",
    "styles.css": b"p {}\n",
    "script.js": b"1;\n",
    "picture.png": b"\x89PNG\r\n\x1a\n",
    "data.json": b"{}\n",
    "drawing.svg": b"<svg/>\n",
    "noextension": b"plain\n",
    "UPPER.HTML": b"<p>\n",
    "strange.xyzzy": b"?\n",
    ".hidden": b"hidden\n",
}


def make_root(folder: Path) -> Path:
    """Writes the root into `folder`, and beside it what must never be served."""
    root = folder / "root"
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    outside = folder / "outside"
    outside.mkdir()
    (outside / "secret.txt").write_text("secret\n")
    (outside / "index.html").write_text("secret\n")
    (root / "link_inside").symlink_to("a.txt")
    (root / "link_to_dir").symlink_to("dir")
    (root / "link_absolute").symlink_to(outside / "secret.txt")
    (root / "link_relative").symlink_to("../outside/secret.txt")
    (root / "link_out_dir").symlink_to("../outside")
    (root / "link_loop").symlink_to("link_loop")
    (root / "link_dangling").symlink_to("nowhere")
    os.mkfifo(root / "fifo")
    with socket.socket(socket.AF_UNIX) as unix:
        here = os.getcwd()
        os.chdir(root)  # a socket's path may only have 107 bytes
        try:
            unix.bind("socket")
        finally:
            os.chdir(here)
    return root


@dataclass
class Site:
    url: str
    root: Path
    server: bb.Server
    gate: Gate
    seen: list[tuple[str, str, bytes]] = field(default_factory=list)
    """Of each request that a handler saw: method, path, body."""

    def client(self, **more: object) -> Client:
        return Client(self.url, **more)  # type: ignore[arg-type]

    def ask(self, method: str = "GET", target: str = "/", *headers: tuple[str, str] | str, **more: object) -> Reply:
        return ask(self.url, method, target, *headers, **more)


def add_routes(server: bb.Server, gate: Gate, seen: list[tuple[str, str, bytes]]) -> None:
    @server.batch("/items/{name}")
    def item(batch: bb.Batch) -> list[str]:
        return [f"item {request.params['name']}\n" for request in batch]

    @server.batch("/echo", methods=["POST", "PUT", "PATCH"])
    def echo(batch: bb.Batch) -> list[bytes]:
        seen.extend((request.method, request.path, bytes(request.body)) for request in batch)
        return [bytes(request.body) for request in batch]

    @server.batch("/slow", concurrency=8)
    def slow(batch: bb.Batch) -> list[str]:
        gate.pass_through()
        return ["slow\n"] * len(batch)

    @server.batch("/every", methods=["GET", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
    def every(batch: bb.Batch) -> list[bb.Response]:
        return [bb.Response(f"{request.method}\n", headers={"X-Method": request.method}) for request in batch]


def serve_site(engine: str, folder: Path, **settings: object) -> Iterator[Site]:
    root = make_root(folder)
    server = make_server(
        engine, root=str(root), cached_file_size_bytes_max=CACHED_SIZE_BYTES_MAX, file_revalidate_s=0.0, **settings
    )
    gate, seen = Gate(), []
    add_routes(server, gate, seen)
    with running(server):
        yield Site(server.url, root, server, gate, seen)
        gate.open()


@pytest.fixture(scope="module")
def site(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    yield from serve_site(engine, tmp_path_factory.mktemp("site"))


@pytest.fixture
def gate(site: Site) -> Iterator[Gate]:
    """The gate at which the site's /slow waits, shut."""
    site.gate.close()
    yield site.gate
    site.gate.open()
