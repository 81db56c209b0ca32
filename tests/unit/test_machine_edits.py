"""Whatever single transition is changed, and to whatever state: either it is refused, or clients still get well-formed
answers or a closed connection, no request goes uncounted, and nothing is left behind. All changes are tried, in a
process of their own.
"""

import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import batchbridge as bb
from batchbridge.cython_ext.states import STATE_NAMES
from batchbridge.machine import ROLES

TESTS = Path(__file__).parents[1]
PATIENCE_S = 20
S = 1_000_000


def serving(root: str) -> bb.Server:
    from support.loop import make_server

    server = make_server(root=root, cached_file_size_bytes_max=1024, zero_copy_size_bytes_min=1024)
    server.batch("/h", methods=["GET", "POST"], timeout_us=S)(lambda batch: ["answer"] * len(batch))
    server.batch("/kept")(lambda batch: [bb.Response("kept", cache_ttl_s=9)] * len(batch))
    server.batch("/sum", methods=["POST"], decode=bb.Array("<u4"))(lambda batch: batch.as_array())
    return server


def requests() -> list[bytes]:
    from support.loop import get, post

    return [
        *[get(target) for target in ("/h", "/a.txt", "/nothing", "/kept", "/kept", "/dir", "/dir/", "/big.bin")],
        *[post("/h", b"body"), post("/sum", b"odd"), post("/sum", b"even")],
        *[get("/h", method="PUT"), get("/a.txt", method="DELETE"), get("*", method="OPTIONS"), b"bad\r\n\r\n"],
    ]


def complaints(root: str, transition: tuple[str, str], target: str) -> Iterator[str]:
    from support.loop import Loop, get, post

    server = serving(root)
    with Loop(server) as loop:
        try:
            server.machine.table[transition] = target
        except bb.ConfigError:
            return
        for request in requests():
            client = loop.connect(request, get("/h"), get("/a.txt"))
            loop.settle()
            try:
                loop.replies(client)
            except Exception as error:
                yield f"garbled: {error}"
                return
        loop.connect(get("/h"))
        loop.turn()
        loop.turn(2 * S)  # 504
        loop.connect(b"GET /half", post("/h", b"half")[:-1])
        loop.turn()
        loop.settle(20 * S)  # 408
        loop.engine.close()
        loop.settle()
        stats = loop.stats
    if stats["requests"]["read"] != sum(stats["requests"]["outcomes"].values()):
        yield f"unbalanced: {stats['requests']}"
    if stats["bridge"]["in_user_mode"] or stats["bytes"]["input_waiting"]:
        yield f"something is left: {stats['bridge']}, {stats['bytes']}"


def try_all() -> None:
    """Names each change before it is tried, so that who reads on can tell where a crash came from."""
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as root:
        Path(root, "a.txt").write_text("the file\n")
        Path(root, "big.bin").write_bytes(bytes(5000))
        Path(root, "dir").mkdir()
        for transition in ROLES["standalone"]:
            for target in STATE_NAMES:
                print(f"{transition} to {target!r}:", end="", flush=True)
                print(*complaints(root, transition, target), flush=True)


def test_no_change_of_one_transition_does_harm() -> None:
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    try:
        run = subprocess.run(
            [sys.executable, "-P", __file__], capture_output=True, text=True, env=environment, timeout=PATIENCE_S
        )
        output, ending = run.stdout, f"ended with {run.returncode}: {run.stderr[-2000:]}" if run.returncode else ""
    except subprocess.TimeoutExpired as error:
        output, ending = (error.stdout or b"").decode(), f"did not end within {PATIENCE_S} s"
    lines = output.splitlines()
    assert not ending, f"{lines[-1] if lines else ''} {ending}"
    assert len(lines) == len(ROLES["standalone"]) * len(STATE_NAMES)
    bad = [line for line in lines if not line.endswith(":")]
    assert not bad, "\n".join([f"{len(bad)} changes do harm:", *bad[:40]])


if __name__ == "__main__":
    try_all()
