"""However little a client takes at a time, and wherever a send ends, the parts of an answer arrive as they would at
once; a client that goes in the middle leaves nothing behind."""

import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from support.loop import Loop, get, make_server

CONTENT = b"".join(b"%07x\n" % place for place in range(40_000))
RANGES = "Range: bytes=0-0,1000-21000,100000-100099,150000-319999,-1"


@pytest.fixture(params=[False, True], ids=["soon", "late"])
def loop(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Loop]:
    (tmp_path / "cached.bin").write_bytes(CONTENT)
    (tmp_path / "large.bin").write_bytes(CONTENT + bytes(1))
    server = make_server(root=str(tmp_path), cached_file_size_bytes_max=len(CONTENT), file_revalidate_s=60.0)
    with Loop(server, late_sends=request.param) as loop:
        yield loop


def without_boundary(output: bytes) -> bytes:
    return re.sub(rb"(boundary=|--)[0-9a-f]{16}", rb"\1", output)


def at_once(loop: Loop, target: str) -> bytes:
    client = loop.connect(get(target, RANGES))
    loop.settle()
    output = loop.output(client)
    loop.engine.feed_end(client)
    loop.turn()
    return without_boundary(output)


@pytest.mark.parametrize("target", ["/cached.bin", "/large.bin"])
@pytest.mark.parametrize("steps", [(1, 70, 3), (997,), (50_000, 1), (131_072, 1, 200)])
def test_to_a_client_that_takes_little(loop: Loop, target: str, steps: tuple[int, ...]) -> None:
    whole = at_once(loop, target)
    assert whole.startswith(b"HTTP/1.1 206 ") and CONTENT[150_000:320_000] in whole
    client = loop.connect()
    loop.engine.send_limit(client, 0)
    loop.send(client, get(target, RANGES), get("/cached.bin", "Range: bytes=5-9"))
    output = b""
    # Small steps where parts begin and end; in between they would take for ever.
    for step in itertools.islice(itertools.cycle(steps), 600):
        loop.engine.send_limit(client, step)
        loop.settle()
        output += loop.engine.output(client)
    loop.engine.send_limit(client, None)
    loop.settle()
    output += loop.engine.output(client)
    output = re.sub(rb"Date: [^\r]*\r\n", b"", without_boundary(output))
    assert output.startswith(whole)
    assert output.endswith(b"\r\n\r\n" + CONTENT[5:10])
    loop.engine.feed_end(client)
    loop.turn()


@pytest.mark.parametrize("target", ["/cached.bin", "/large.bin"])
def test_a_client_that_goes_in_the_middle(loop: Loop, target: str) -> None:
    whole = at_once(loop, target)  # from now on, directories are watched
    before = len(os.listdir("/proc/self/fd"))
    for taken in (0, 100, 500, 30_000, 100_000):
        client = loop.connect()
        loop.engine.send_limit(client, taken)
        loop.send(client, get(target, RANGES))
        loop.settle()
        loop.engine.reset(client)
        loop.settle()
    assert len(os.listdir("/proc/self/fd")) == before
    assert loop.stats["connections"]["open"] == 0
    assert at_once(loop, target) == whole
