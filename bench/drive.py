"""Loads one server for a few seconds, every answer verified, and prints one line of JSON.

    python -m bench.drive HOST PORT CASE [--connections 64] [--seconds 3]

CASE is a path, such as /f, which must always answer the same; or "score": POST /score/sum with 16 random floats each,
for examples/score.py and for a rival (bench/rivals.py) that does the same one request at a time. The client's
`idle_share` is the share of the time in which its thread waited: where that is small, the figure is the client's, and
the server can do more.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys

import numpy as np

from batchbridge.cython_ext.load import Exchange
from batchbridge.errors import BatchBridgeError
from batchbridge.measure.load import run_load
from batchbridge.measure.traffic import get, learn, random_bodies, request_bytes

VECTORS = 64


def scores(host: str) -> list[Exchange]:
    """Requests with vectors of small whole numbers, whose sums are exact in any order of adding."""
    return [
        Exchange(
            request_bytes("POST", "/score/sum", host=host, body=body),
            body=np.frombuffer(body, "<f4").sum().astype("<f4").tobytes(),
        )
        for body in random_bodies("<f4", (16,), VECTORS, seed=1)
    ]


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("case")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    host = f"{options.host}:{options.port}"
    try:
        if options.case == "score":
            exchanges = scores(host)
        else:
            exchanges = learn(options.host, options.port, get(options.case, host=host))
        figures = run_load(
            options.host, options.port, exchanges, connections=options.connections, seconds=options.seconds
        )
    except BatchBridgeError as error:
        print(f"drive: {error}", file=sys.stderr)
        return 1
    print(json.dumps({name: value for name, value in dataclasses.asdict(figures).items() if name != "histogram"}))
    return 0 if figures.is_valid else 1


if __name__ == "__main__":
    sys.exit(main())
