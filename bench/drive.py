"""Loads one server for a few seconds, every answer verified, and prints one line of JSON.

    python -m bench.drive HOST PORT CASE [--connections 64] [--seconds 3]

CASE is a path, such as /f, which must always answer the same; or "score": POST /score/sum with 16 random floats each,
for examples/score.py and for a rival (bench/rivals.py) that does the same one request at a time. The client's
`idle_share` is the share of the time in which its thread waited: where that is small, the figure is the client's, and
the server can do more.
"""

from __future__ import annotations

import argparse
import json
from http.client import HTTPConnection

import numpy as np

from batchbridge.cython_ext.load import Exchange, Load

VECTORS = 64


def scores(host: str) -> list[Exchange]:
    """Requests with vectors of small whole numbers, whose sums are exact in any order of adding."""
    random = np.random.default_rng(1)
    made = []
    for _ in range(VECTORS):
        vector = random.integers(-100, 100, 16).astype("<f4")
        head = f"POST /score/sum HTTP/1.1\r\nHost: {host}\r\nContent-Length: {vector.nbytes}\r\n\r\n"
        made.append(Exchange(head.encode() + vector.tobytes(), body=vector.sum().astype("<f4").tobytes()))
    return made


def document(host: str, path: str) -> list[Exchange]:
    """A GET, whose answer is what the server says the first time."""
    connection = HTTPConnection(host, timeout=5)
    connection.request("GET", path)
    body = connection.getresponse().read()
    connection.close()
    return [Exchange(f"GET {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: drive\r\n\r\n".encode(), body=body)]


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("case")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=3.0)
    arguments = parser.parse_args()
    host = f"{arguments.host}:{arguments.port}"
    exchanges = scores(host) if arguments.case == "score" else document(host, arguments.case)
    load = Load(arguments.host, arguments.port, exchanges, arguments.connections, arguments.seconds, warmup_s=0.5)
    figures = load.run()
    print(json.dumps({name: value for name, value in figures.items() if name != "exchanges"}, default=str))


if __name__ == "__main__":
    main()
