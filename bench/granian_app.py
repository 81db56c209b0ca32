"""What Granian is measured with, by its fastest interface (RSGI).

GET /f answers 64 fixed bytes; POST /score/sum the sum of 16 floats, as examples/score.py does, but one at a time.
"""

import numpy as np

BODY = b"x" * 64
WEIGHTS = np.ones(16, "<f4")
HEADERS = [("content-type", "application/octet-stream")]


async def app(scope, protocol):
    if scope.method == "GET":
        protocol.response_bytes(200, HEADERS, BODY)
        return
    vector = np.frombuffer(await protocol(), "<f4")
    protocol.response_bytes(200, HEADERS, (vector @ WEIGHTS).tobytes())
