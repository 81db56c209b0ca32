"""What the demo serves beside the documents: a model in small, called once per batch.

The body of a request is 16 little-endian 32-bit integers; the answer is their product with the model's weights, in
64 bits. Whole numbers, so that the client can know each answer to the bit, however large the batch was.
"""

from __future__ import annotations

from typing import Any

import numpy as np

import batchbridge as bb

SIZE = 16
WEIGHTS = np.arange(1, SIZE + 1, dtype="<i8") ** 3
ROUTE = "/score"

server = bb.Server()


@server.batch(ROUTE, methods=["POST"], decode=bb.Array("<i4", (SIZE,)), max_batch_size=64, max_queue_size=4096)
def score(batch: bb.Batch) -> np.ndarray[Any, np.dtype[np.int64]]:
    products: np.ndarray[Any, np.dtype[np.int64]] = batch.as_array().astype("<i8") @ WEIGHTS
    return products


def bodies(count: int, seed: int) -> list[tuple[bytes, bytes]]:
    """Requests' bodies, each with the answer that it must have."""
    vectors = np.random.default_rng(seed).integers(-(2**31), 2**31, (count, SIZE)).astype("<i4")
    return [(vector.tobytes(), (vector.astype("<i8") @ WEIGHTS).tobytes()) for vector in vectors]
