"""64 fixed bytes at GET /f, neither cached nor coalesced: every request reaches the handler.

batchbridge serve --app examples/hello.py:server
curl -i http://127.0.0.1:8080/f
"""

import batchbridge as bb

# The handler takes less than a microsecond, so it runs on the engine's own thread.
server = bb.Server(handler_threads=0)

BODY = b"x" * 64


@server.batch("/f")
def f(batch: bb.Batch) -> None:
    for request in batch:
        request.respond(BODY)


if __name__ == "__main__":
    server.run()
