"""The server that load generators are compared on: 64 bytes at GET /f, for a known price in processor time.

The handler spins on the engine's thread, so the server is what limits every generator, and all measure the same.
"""

import os
import time

import batchbridge as bb

#: Of the handler, for each request.
WORK_NS = int(os.environ.get("CROSSCHECK_WORK_NS", "100000"))
BODY = b"x" * 64

server = bb.Server(handler_threads=0)


@server.batch("/f")
def f(batch: bb.Batch) -> None:
    until_ns = time.perf_counter_ns()
    for request in batch:
        until_ns += WORK_NS
        while time.perf_counter_ns() < until_ns:
            pass
        request.respond(BODY)
