"""Clients that others wrote get what they expect: curl, wget, requests, httpx, wrk and ab."""

import hashlib
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import requests

import batchbridge as bb
from support.serving import make_server, running
from support.site import pattern
from support.skips import skip

BIG = pattern((3 << 20) + 5)


@pytest.fixture(scope="module")
def url(engine: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    root = tmp_path_factory.mktemp("clients")
    (root / "index.html").write_text('<a href="a.txt">a</a> <a href="sub/">sub</a>\n')
    (root / "a.txt").write_text("the file a\n")
    (root / "big.bin").write_bytes(BIG)
    (root / "sub").mkdir()
    (root / "sub" / "index.html").write_text('<a href="../a.txt">up</a> <a href="b.txt">b</a>\n')
    (root / "sub" / "b.txt").write_text("b\n")
    server = make_server(engine, root=str(root), body_size_bytes_max="8MiB")

    @server.batch("/echo", methods=["POST", "PUT"])
    def echo(batch: bb.Batch) -> list[bb.Response]:
        return [bb.Response(bytes(request.body), content_type=request.headers.get("content-type")) for request in batch]

    @server.batch("/f")
    def f(batch: bb.Batch) -> list[bytes]:
        return [b"x" * 64] * len(batch)

    with running(server):
        yield server.url


def tool(name: str, *arguments: str | Path, folder: Path | None = None, status: int = 0) -> str:
    """What a command prints; the test is skipped where it is not installed."""
    if shutil.which(name) is None:
        skip(f"no-{name}", f"{name} is not installed")
    done = subprocess.run([name, *map(str, arguments)], cwd=folder, capture_output=True, text=True, timeout=30)
    assert done.returncode == status, done
    return done.stdout + done.stderr


def test_curl(url: str, tmp_path: Path) -> None:
    quiet = ("--silent", "--show-error", "--fail-with-body", "--max-time", "10")
    assert tool("curl", *quiet, f"{url}/a.txt", f"{url}/sub/b.txt") == "the file a\nb\n"
    assert tool("curl", *quiet, "--location", f"{url}/sub").startswith("<a")
    assert tool("curl", *quiet, "--http1.0", f"{url}/a.txt") == "the file a\n"
    assert "content-length: 11" in tool("curl", *quiet, "--head", f"{url}/a.txt").lower()
    assert "404" in tool("curl", *quiet, f"{url}/nothing", status=22)
    (tmp_path / "big").write_bytes(BIG)
    # More than 1 MiB: curl waits for 100 Continue.
    for arguments in (
        ["--data-binary", "@big"],
        ["--upload-file", "big"],
        ["--data-binary", "@big", "-H", "Transfer-Encoding: chunked"],
    ):
        tool("curl", *quiet, *arguments, "--output", "echoed", f"{url}/echo", folder=tmp_path)
        assert (tmp_path / "echoed").read_bytes() == BIG
    (tmp_path / "part").write_bytes(BIG[: 1 << 20])
    tool("curl", *quiet, "--continue-at", "-", "--output", "part", f"{url}/big.bin", folder=tmp_path)
    assert (tmp_path / "part").read_bytes() == BIG
    tool("curl", *quiet, "--etag-save", "tag", "--output", "a", f"{url}/a.txt", folder=tmp_path)
    code = tool("curl", *quiet, "--etag-compare", "tag", "--write-out", "%{http_code}", "--output", "b", f"{url}/a.txt",
                folder=tmp_path)  # fmt: skip
    assert code == "304"
    parallel = [f"{url}/big.bin"] * 6
    outputs = [word for place in range(6) for word in ("--output", f"copy{place}")]
    tool("curl", *quiet, "--parallel", *outputs, *parallel, folder=tmp_path)
    assert {hashlib.sha256((tmp_path / f"copy{place}").read_bytes()).digest() for place in range(6)} == {
        hashlib.sha256(BIG).digest()
    }


def test_wget(url: str, tmp_path: Path) -> None:
    quiet = ("--no-verbose", "--tries=1", "--timeout=10")
    tool("wget", *quiet, f"{url}/big.bin", folder=tmp_path)
    assert (tmp_path / "big.bin").read_bytes() == BIG
    (tmp_path / "big.bin").write_bytes(BIG[:100_000])
    tool("wget", *quiet, "--continue", f"{url}/big.bin", folder=tmp_path)
    assert (tmp_path / "big.bin").read_bytes() == BIG
    tool("wget", *quiet, "--timestamping", f"{url}/a.txt", folder=tmp_path)
    before = (tmp_path / "a.txt").stat()
    tool("wget", *quiet, "--timestamping", f"{url}/a.txt", folder=tmp_path)
    assert (tmp_path / "a.txt").stat().st_mtime == before.st_mtime
    tool("wget", *quiet, "--recursive", "--no-host-directories", "--directory-prefix=copy", f"{url}/", folder=tmp_path)
    copied = {str(path.relative_to(tmp_path / "copy")) for path in (tmp_path / "copy").rglob("*") if path.is_file()}
    assert copied >= {"index.html", "a.txt", "sub/index.html", "sub/b.txt"}
    tool("wget", *quiet, f"{url}/nothing", folder=tmp_path, status=8)


def test_requests(url: str) -> None:
    with requests.Session() as session:
        for _ in range(3):
            reply = session.get(f"{url}/a.txt", timeout=10)
            assert (reply.status_code, reply.text, reply.reason) == (200, "the file a\n", "OK")
        assert session.get(f"{url}/sub", timeout=10).history[0].status_code in (301, 308)
        assert session.post(f"{url}/echo", json={"a": 1}, timeout=10).json() == {"a": 1}
        assert session.post(f"{url}/echo", data=(b"piece" for _ in range(100)), timeout=10).content == b"piece" * 100
        assert session.put(f"{url}/echo", data=BIG, timeout=10).content == BIG
        assert session.get(f"{url}/big.bin", headers={"Range": "bytes=5-9"}, timeout=10).content == BIG[5:10]
        etag = session.head(f"{url}/a.txt", timeout=10).headers["ETag"]
        assert session.get(f"{url}/a.txt", headers={"If-None-Match": etag}, timeout=10).status_code == 304
        assert session.delete(f"{url}/a.txt", timeout=10).status_code == 405
        assert session.get(f"{url}/nothing", timeout=10).status_code == 404
        with session.get(f"{url}/big.bin", stream=True, timeout=10) as reply:
            assert b"".join(reply.iter_content(10_000)) == BIG


def test_httpx(url: str) -> None:
    with httpx.Client(base_url=url, timeout=10, follow_redirects=True) as client:
        assert client.get("/a.txt").text == "the file a\n"
        assert client.get("/sub").url.path == "/sub/"
        assert client.post("/echo", content=BIG).content == BIG
        assert client.post("/echo", content=iter([b"a", b"b" * 70_000])).content == b"a" + b"b" * 70_000
        assert client.head("/big.bin").headers["content-length"] == str(len(BIG))
        assert client.options("/a.txt").headers["allow"]
        assert client.request("BREW", "/a.txt").status_code == 501


def test_httpx_many_at_once(url: str) -> None:
    import asyncio

    async def ask_all() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            return await asyncio.gather(*(client.get(("/f", "/a.txt", "/big.bin")[place % 3]) for place in range(60)))

    replies = asyncio.run(ask_all())
    assert {reply.status_code for reply in replies} == {200}
    assert all(reply.content == BIG for reply in replies[2::3])


@pytest.mark.parametrize("target", ["/f", "/a.txt"])
def test_wrk(url: str, target: str) -> None:
    text = tool("wrk", "-t1", "-c16", "-d1s", f"{url}{target}")
    assert "Non-2xx" not in text and "Socket errors" not in text
    found = re.search(r"(\d+) requests in", text)
    assert found and int(found[1]) > 100


@pytest.mark.parametrize("keep_alive", [["-k"], []])
def test_ab(url: str, keep_alive: list[str]) -> None:
    text = tool("ab", "-q", "-n", "500", "-c", "10", *keep_alive, f"{url}/f")
    assert re.search(r"Complete requests:\s+500\b", text) and re.search(r"Failed requests:\s+0\b", text), text
    assert "Non-2xx" not in text
