"""A model server in small: the dot product of 16 floats with a model's weights, a batch at a time.

    batchbridge serve --app examples/score.py:server
    python -c "import sys, numpy; sys.stdout.buffer.write(numpy.arange(16, dtype='<f4').tobytes())" |
        curl --data-binary @- http://127.0.0.1:8080/score/mean | od -t f4

The body of a request is 16 little-endian 32-bit floats, the answer is one. Bodies of a batch lie side by side in shared
memory, so the handler sees them as one (n, 16) array without copying, and answers them with one operation.
"""

from collections.abc import Iterator

import numpy as np

import batchbridge as bb

SIZE = 16


def load_models(server: bb.Server) -> Iterator[dict[str, np.ndarray]]:
    """What handlers find in `batch.state`; a real server would read files here, once per handler thread."""
    yield {"mean": np.full(SIZE, 1 / SIZE, "<f4"), "sum": np.ones(SIZE, "<f4"), "ramp": np.arange(SIZE, dtype="<f4")}


server = bb.Server(lifespan=load_models)


@server.batch(
    "/score/{model}", methods=["POST"], decode=bb.Array("<f4", (SIZE,)), max_batch_size=64, max_queue_delay_us=200
)
def score(batch: bb.Batch) -> np.ndarray | list[np.ndarray | bb.HTTPError]:
    vectors = batch.as_array()
    names = [request.params["model"] for request in batch]
    if len(set(names)) == 1 and names[0] in batch.state:
        return vectors @ batch.state[names[0]]
    # Several models in one batch: those there are, each for its own items.
    weights = [batch.state.get(name) for name in names]
    return [
        bb.HTTPError(404, f"there is no model {name!r}") if weight is None else vector @ weight
        for name, vector, weight in zip(names, vectors, weights, strict=True)
    ]


if __name__ == "__main__":
    server.run()
